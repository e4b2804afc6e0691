"""An optimizer step: the gradients of a batch, whole or in parts, clipped, and what they change."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinexp.mistake import OutOfMemory
from swinexp.ranks import size
from swinexp.swin import by_threads
from swinexp.train.devices import autocast
from swinexp.train.graph import Gradients
from swinexp.train.processes import shared, unshared
from swinexp.train.state import State

if TYPE_CHECKING:
    from swinexp.config import Run

log = logging.getLogger(__name__)


def train_step(run: Run, state: State, images: Tensor, labels: Tensor, factors: Tensor | None, index: int) -> None:
    """One optimizer step over a batch, whose loss and gradient norm become those of step `index` of the epoch."""
    skips = run.trainer.on_nan == "skip"
    restore = restoring(state.running if skips else {})
    way = state.way(images)
    loss, norm = (way.captured or clipped(run, state))(images, labels, factors)
    state.losses[index].copy_(loss)
    state.norms[index].copy_(norm)
    if skips and not norm.isfinite():  # waits for the device
        state.losses[index].fill_(math.nan)
        restore()
        if state.scaler is not None:
            state.scaler.update()
        return
    if state.scaler is not None:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    elif way.update is not None:
        way.update()
    else:
        state.optimizer.step()
    if state.ema is not None:
        state.ema.update(state.step + 1)


def clipped(run: Run, state: State) -> Gradients:
    """What leaves the gradients of a batch in the parameters, clipped; it returns the loss and their norm before."""

    def step(images: Tensor, labels: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor]:
        loss = gradients(run, state, images, labels, factors)
        if state.scaler is not None:
            state.scaler.unscale_(state.optimizer)
        return loss, clip(run, state.parameters())

    return step


def gradients(run: Run, state: State, images: Tensor, labels: Tensor, factors: Tensor | None) -> Tensor:
    """Leave the gradient of a batch's mean loss in the parameters; returns this process's share of that loss.

    Raises `OutOfMemory`.
    """
    restore = restoring(state.running if run.trainer.fit_memory else {})
    while True:
        try:
            return _gradients(run, state, images, labels, factors)
        except torch.OutOfMemoryError:
            largest = math.ceil(len(images) / (size() * state.parts))
            smaller = math.ceil(len(images) / (size() * 2 * state.parts))
            if not run.trainer.fit_memory or size() > 1 or largest == 1:
                instead = f"Type trainer.accumulate={2 * state.parts}"
                instead += " or trainer.fit_memory=true" if size() == 1 else ""
                raise OutOfMemory(
                    f"{images.device} has not enough memory for {largest} images of trainer.batch_size="
                    f"{run.trainer.batch_size} at once. {instead if largest > 1 else 'Type a smaller model'}"
                ) from None
        # Not within the handler, where the error would keep what was computed.
        state.optimizer.zero_grad(set_to_none=True)
        restore()  # what a part counted that is computed again
        torch.cuda.empty_cache()
        state.parts *= 2
        log.warning("%d images at once are too many for the memory: going on with %d", largest, smaller)


def _gradients(run: Run, state: State, images: Tensor, labels: Tensor, factors: Tensor | None) -> Tensor:
    state.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=images.device)
    parts = shared(len(images), state.parts)
    forward = state.way(images).forward
    for part in parts:
        with nullcontext() if part is parts[-1] else unshared(forward):
            with autocast(run.trainer, images.device):
                logits = by_threads(forward, images[part], None if factors is None else factors[:, :, part])
            loss = F.cross_entropy(
                logits.float(), labels[part], label_smoothing=run.trainer.label_smoothing, reduction="sum"
            ) / len(images)
            total += loss.detach()
            loss = loss * size()  # for the mean over all processes is taken of their gradients
            (loss if state.scaler is None else state.scaler.scale(loss)).backward()
    return total


def clip(run: Run, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Scale the gradients down to `trainer.clip_norm`, all together or each; returns their norm before, of all."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    most = run.trainer.clip_norm
    norms = torch.stack(torch._foreach_norm(gradients))
    norm = torch.linalg.vector_norm(norms)
    if most and run.trainer.clip_per_tensor:
        torch._foreach_mul_(gradients, list((most / (norms + 1e-6)).clamp(max=1).unbind()))
    elif most:
        torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1))
    return norm


def restoring(tensors: Mapping[str, Tensor]) -> Callable[[], None]:
    """What gives tensors the values again that they have now."""
    before = {name: value.clone() for name, value in tensors.items()}

    def restore() -> None:
        for name, value in before.items():
            tensors[name].copy_(value)

    return restore
