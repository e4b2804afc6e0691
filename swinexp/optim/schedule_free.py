"""Schedule-free AdamW (Defazio et al., arXiv 2405.15682, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from swinexp.optim.moving import moving


class ScheduleFree(torch.optim.Optimizer):
    """Every group has `lr`, `weight_decay`, `betas` and `eps`, counts its steps and sums the squares of its lrs.

    z takes AdamW's steps, without a mean of the gradients. x is the average of z, each step weighing as the square of
    its lr, and is what is to be evaluated. The model holds y, a share of `betas[0]` of the way from z to x, where
    gradients are taken and from where weights decay. x is kept beside z rather than worked out from y and z, so that it
    has no rounding of its own. The bias of the mean square is corrected in the square, as in the authors' later code;
    the paper's algorithm has the correction in the lr.

    Running statistics (BatchNorm's, of patch=p2_conv) are those of y.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps, "steps": 0, "squared_lrs": 0.0})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # the training loop has no closure
        """Move every parameter that has a gradient. An lr of 0 at the very start leaves them where they are."""
        for group in self.param_groups:
            parameters, gradients, z, x, squares = moving(
                self, group, z=torch.clone, x=torch.clone, square=torch.zeros_like
            )
            if not parameters:
                continue
            share, second = group["betas"]
            lr = group["lr"]
            group["steps"] += 1
            group["squared_lrs"] += lr**2
            torch._foreach_mul_(squares, second)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_div_(roots, (1 - second ** group["steps"]) ** 0.5)
            torch._foreach_add_(roots, group["eps"])
            torch._foreach_addcdiv_(z, gradients, roots, -lr)
            torch._foreach_add_(z, parameters, alpha=-lr * group["weight_decay"])
            torch._foreach_lerp_(x, z, lr**2 / group["squared_lrs"] if lr else 0.0)
            _to_y(parameters, z, x, share)

    @torch.no_grad()
    def resume(self) -> None:
        """Give the model y, which training goes on from, worked out of z and x as a step does it, to the bit."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p in self.state]
            if moved:
                z, x = ([self.state[p][name] for p in moved] for name in ("z", "x"))
                _to_y(moved, z, x, group["betas"][0])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model holds x within, and y again afterwards, to the bit. Nothing may be trained within."""
        moved = [p for group in self.param_groups for p in group["params"] if p in self.state]
        kept = [p.detach().clone() for p in moved]
        with torch.no_grad():
            for p in moved:
                p.copy_(self.state[p]["x"])
        try:
            yield
        finally:
            with torch.no_grad():
                for p, y in zip(moved, kept, strict=True):
                    p.copy_(y)


def _to_y(parameters: list[Tensor], z: list[Tensor], x: list[Tensor], share: float) -> None:
    torch._foreach_copy_(parameters, z)
    torch._foreach_lerp_(parameters, x, share)
