"""From options to an optimizer, and what the training loop does with it besides stepping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from swinexp.optim import lamb, lion, muon, options, schedule_free
from swinexp.optim.groups import parameter_groups


def build_optimizer(config: options.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the model's trainable parameters, one group for each row of `parameter_groups`.

    A group holds its row's `name`, `algorithm`, `peak_lr` and `weight_decay` beside what torch keeps there.
    No `step()` waits for the device. Raises `ValueError` when nothing is trainable.
    """
    named = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {
            "params": [named[name] for name in group.parameters],
            "name": group.name,
            "algorithm": group.algorithm,
            "lr": group.peak_lr,
            "peak_lr": group.peak_lr,
            "weight_decay": group.weight_decay,
        }
        for group in parameter_groups(config, model)
    ]
    if isinstance(config, options.SGD):
        sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
        if config.momentum:  # torch leaves it as the memory was where fp16 overflows in the first step
            for p in (p for group in sgd.param_groups for p in group["params"]):
                sgd.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return sgd
    if isinstance(config, options.Lion):
        return lion.Lion(groups, (config.betas[0], config.betas[1]))
    assert isinstance(config, options.Moments)
    betas, eps = (config.betas[0], config.betas[1]), config.eps
    if isinstance(config, options.Muon):
        return muon.MuonAdamW(groups, betas, eps, config.momentum, config.nesterov)
    if isinstance(config, options.ScheduleFree):
        return schedule_free.ScheduleFree(groups, betas, eps)
    if isinstance(config, options.Lamb):
        return lamb.Lamb(groups, betas, eps)
    kind = torch.optim.AdamW if isinstance(config, options.AdamW) else torch.optim.Adam
    return kind(groups, betas=betas, eps=eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Set every group's lr to `scale` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * scale


def is_recordable(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a CUDA graph can hold its step: it can read its lr from a tensor, and its state begins as zeros."""
    return isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW | muon.MuonAdamW)


@contextmanager
def reading_lr(optimizer: torch.optim.Optimizer, lrs: Sequence[Tensor]) -> Iterator[None]:
    """While the block lasts, a step of an optimizer that `is_recordable` reads each group's lr from a tensor ()."""
    before = [dict(group) for group in optimizer.param_groups]
    recorded = lrs[0].is_cuda and torch.cuda.is_current_stream_capturing()
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        group.update(lr=lr, capturable=recorded)  # torch wants to know, and warns where it is not so
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group.clear()
            group.update(values)


def averaged(optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
    """Within, the model holds the weights that are to be evaluated; afterwards those that are trained, to the bit.

    They differ for the schedule-free optimizer alone.
    """
    return optimizer.averaged() if isinstance(optimizer, schedule_free.ScheduleFree) else nullcontext()


def resume(optimizer: torch.optim.Optimizer) -> None:
    """Give a model with the weights that are evaluated those that are trained, when `optimizer` has its state back."""
    if isinstance(optimizer, schedule_free.ScheduleFree):
        optimizer.resume()
