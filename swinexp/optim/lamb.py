"""LAMB: Adam whose step is as long as the tensor it moves (You et al., arXiv 1904.00962)."""

from __future__ import annotations

from typing import Any

import torch

from swinexp.optim.moving import moving


class Lamb(torch.optim.Optimizer):
    """Every group has `lr`, `weight_decay`, `betas` and `eps`, and counts its steps.

    Biases and norms, tensors of one dimension, take Adam's step as it is, as in the authors' code: a bias of
    0 could not move otherwise. So do tensors whose norm, or whose step's, is 0.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps, "steps": 0})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # the training loop has no closure
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            parameters, gradients, means, squares = moving(self, group, mean=torch.zeros_like, square=torch.zeros_like)
            if not parameters:
                continue
            first, second = group["betas"]
            group["steps"] += 1
            torch._foreach_lerp_(means, gradients, 1 - first)
            torch._foreach_mul_(squares, second)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_div_(roots, (1 - second ** group["steps"]) ** 0.5)
            torch._foreach_add_(roots, group["eps"])
            moves = torch._foreach_div(means, roots)
            torch._foreach_div_(moves, 1 - first ** group["steps"])
            if group["weight_decay"]:
                torch._foreach_add_(moves, parameters, alpha=group["weight_decay"])
            fitted = [i for i, p in enumerate(parameters) if p.ndim >= 2]
            if fitted:
                theirs = [moves[i] for i in fitted]
                lengths = torch.stack(torch._foreach_norm([parameters[i] for i in fitted]))
                steps = torch.stack(torch._foreach_norm(theirs))
                ratios = torch.where((lengths > 0) & (steps > 0), lengths / steps, torch.ones_like(steps))
                torch._foreach_mul_(theirs, list(ratios.unbind()))
            torch._foreach_add_(parameters, moves, alpha=-group["lr"])
