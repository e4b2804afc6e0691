"""Optimizers, the parameter groups they work on, and learning rate schedules as pure functions of progress."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from swinexp.mistake import check


@dataclass
class Optimizer:
    """What every optimizer needs. `lr` is the peak of the schedule."""

    name: str
    lr: float
    weight_decay: float

    def __post_init__(self) -> None:
        check(0 < self.lr < math.inf, "optimizer.lr", self.lr, "it must be positive", "optimizer.lr=1e-3")
        check(
            0 <= self.weight_decay < math.inf,
            "optimizer.weight_decay",
            self.weight_decay,
            "it must not be negative",
            "optimizer.weight_decay=0.05",
        )


@dataclass
class AdamW(Optimizer):
    """Loshchilov and Hutter, arXiv 1711.05101."""

    betas: tuple[float, float]
    eps: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            "optimizer.betas",
            self.betas,
            "two numbers in [0, 1)",
            "optimizer.betas=[0.9,0.99]",
        )
        check(self.eps > 0, "optimizer.eps", self.eps, "it must be positive", "optimizer.eps=1e-8")


@dataclass
class SGD(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov's by default (Sutskever et al., 2013)."""

    momentum: float
    nesterov: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "in [0, 1)", "optimizer.momentum=0.9")
        check(
            self.momentum > 0 or not self.nesterov,
            "optimizer.nesterov",
            "true",
            "it needs a momentum, and optimizer.momentum=0",
            "optimizer.nesterov=false",
        )


# Named as in Swin's and Swin V2's own code, which do not decay them either (temperature: their like).
UNDECAYED = ("relative_position_bias_table", "absolute_pos_embed", "cpb_mlp", "logit_scale", "temperature")

OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "sgd": SGD}


@dataclass
class Schedule:
    """`warmup_epochs` of linear rise to the peak lr; what comes then is the subclass."""

    name: str
    warmup_epochs: float

    def __post_init__(self) -> None:
        check(
            0 <= self.warmup_epochs < math.inf,
            "schedule.warmup_epochs",
            self.warmup_epochs,
            "it must not be negative",
            "schedule.warmup_epochs=3",
        )


@dataclass
class Constant(Schedule):
    """The peak lr to the end."""


@dataclass
class Cosine(Schedule):
    """Half a cosine down to `final` times the peak lr (Loshchilov and Hutter, arXiv 1608.03983)."""

    final: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.final <= 1, "schedule.final", self.final, "a share of the peak lr", "schedule.final=0.001")


SCHEDULES: dict[str, type[Schedule]] = {"constant": Constant, "cosine": Cosine}


def lr_scale(schedule: Schedule, epoch: float, epochs: float) -> float:
    """The factor on the peak lr when `epoch` of `epochs` are trained; both may be fractions of an epoch."""
    if epoch < schedule.warmup_epochs:
        return epoch / schedule.warmup_epochs
    if isinstance(schedule, Cosine):
        progress = (epoch - schedule.warmup_epochs) / max(epochs - schedule.warmup_epochs, 1e-12)
        return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return 1.0


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices and kernels: not for biases, norms, factors, positions and their biases."""
    return parameter.ndim >= 2 and not any(part in name for part in UNDECAYED)


def build_optimizer(config: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the model's trainable parameters, in two groups: with weight decay, and without."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
    if isinstance(config, AdamW):
        return torch.optim.AdamW(
            groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=True
        )
    assert isinstance(config, SGD)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
