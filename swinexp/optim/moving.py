"""What a step of the optimizers that are written here begins with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def moving(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], **state: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], ...]:
    """(parameters of a group that have a gradient, their gradients, and their tensors of each kind of state).

    `state` says how a parameter's is made before its first step, name=torch.zeros_like.
    """
    parameters = [p for p in group["params"] if p.grad is not None]
    for p in parameters:
        if not optimizer.state[p]:
            optimizer.state[p].update({name: make(p) for name, make in state.items()})
    kept = ([optimizer.state[p][name] for p in parameters] for name in state)
    return parameters, [p.grad for p in parameters], *kept
