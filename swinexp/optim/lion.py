"""Lion: the sign of a mean of gradients (Chen et al., arXiv 2302.06675)."""

from __future__ import annotations

from typing import Any

import torch

from swinexp.optim.moving import moving


class Lion(torch.optim.Optimizer):
    """Every group has `lr`, `weight_decay` and `betas`; the first weighs the step, the second the memory.

    One tensor of state for each parameter. Weight decay is decoupled, and multiplied by the lr.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"betas": betas})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # the training loop has no closure
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            parameters, gradients, means = moving(self, group, mean=torch.zeros_like)
            if not parameters:
                continue
            near, far = group["betas"]
            moves = torch._foreach_lerp(means, gradients, 1 - near)
            torch._foreach_sign_(moves)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, moves, alpha=-group["lr"])
            torch._foreach_lerp_(means, gradients, 1 - far)
