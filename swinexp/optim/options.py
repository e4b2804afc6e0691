"""What decides an optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from swinexp.mistake import check, one_of

DECAYS = ("matrices", "all_2d")


@dataclass
class Optimizer:
    """What every optimizer needs. `lr` is the peak of the schedule.

    `decay` says what weight decay is for: `matrices` and kernels, or `all_2d`, every tensor of at least two
    dimensions. `layer_decay` multiplies the lr once for each block between a layer and the head.
    """

    name: str
    lr: float
    weight_decay: float
    decay: str
    layer_decay: float

    def __post_init__(self) -> None:
        check(0 < self.lr < math.inf, "optimizer.lr", self.lr, "it must be positive", "optimizer.lr=1e-3")
        check(
            0 <= self.weight_decay < math.inf,
            "optimizer.weight_decay",
            self.weight_decay,
            "it must not be negative",
            "optimizer.weight_decay=0.05",
        )
        one_of("optimizer.decay", self.decay, DECAYS)
        check(
            0 < self.layer_decay <= 1,
            "optimizer.layer_decay",
            self.layer_decay,
            "a factor in (0, 1], where 1 gives every layer the same lr",
            "optimizer.layer_decay=0.8",
        )


def check_betas(betas: tuple[float, float]) -> None:
    """Raise `Mistake` unless both can weigh a running mean."""
    check(
        len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
        "optimizer.betas",
        betas,
        "two numbers in [0, 1)",
        "optimizer.betas=[0.9,0.99]",
    )


def check_momentum(momentum: float, nesterov: bool) -> None:
    """Raise `Mistake` unless it can weigh past gradients, and there is one where Nesterov's wants it."""
    check(0 <= momentum < 1, "optimizer.momentum", momentum, "in [0, 1)", "optimizer.momentum=0.9")
    check(
        momentum > 0 or not nesterov,
        "optimizer.nesterov",
        "true",
        "it needs a momentum, and optimizer.momentum=0",
        "optimizer.nesterov=false",
    )


@dataclass
class Moments(Optimizer):
    """Those that divide a mean of gradients by the root of a mean of their squares; `betas` weigh the past of both."""

    betas: tuple[float, float]
    eps: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_betas(self.betas)
        check(0 < self.eps < math.inf, "optimizer.eps", self.eps, "it must be positive", "optimizer.eps=1e-8")


@dataclass
class AdamW(Moments):
    """Loshchilov and Hutter, arXiv 1711.05101."""


@dataclass
class Adam(Moments):
    """Kingma and Ba, arXiv 1412.6980; weight decay is an L2 penalty, and so a part of the gradient."""


@dataclass
class Lamb(Moments):
    """You et al., arXiv 1904.00962."""


@dataclass
class ScheduleFree(Moments):
    """Schedule-free AdamW: Defazio et al., arXiv 2405.15682. `betas[0]` is where between z and its average x to look.

    It replaces the schedule, so `swinexp.config` lets it have a constant one only.
    """


@dataclass
class Lion(Optimizer):
    """Chen et al., arXiv 2302.06675."""

    betas: tuple[float, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_betas(self.betas)


@dataclass
class Muon(Moments):
    """Muon for the matrices of blocks and merges (Jordan et al., 2024), AdamW with `adamw_lr` for all the rest.

    `momentum` and `nesterov` are Muon's, `betas` and `eps` AdamW's.
    """

    momentum: float
    nesterov: bool
    adamw_lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_momentum(self.momentum, self.nesterov)
        check(
            0 < self.adamw_lr < math.inf,
            "optimizer.adamw_lr",
            self.adamw_lr,
            "it must be positive",
            "optimizer.adamw_lr=1e-3",
        )


@dataclass
class SGD(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov's by default (Sutskever et al., 2013)."""

    momentum: float
    nesterov: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_momentum(self.momentum, self.nesterov)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adamw": AdamW,
    "adam": Adam,
    "sgd": SGD,
    "lion": Lion,
    "muon": Muon,
    "schedule_free": ScheduleFree,
    "lamb": Lamb,
}
