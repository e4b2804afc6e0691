"""A moving average of the weights, evaluated beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """`weights` holds an exponential moving average of a model's parameters and running statistics.

    Its decay warms up, min(`decay`, (1 + t) / (10 + t)) in step t, so that it soon forgets the weights that the
    model began with.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        live = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
        self.live = list(live.values())  # the model's own memory
        self.weights: dict[str, Tensor] = {name: value.clone() for name, value in live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step`, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), self.live, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights while the block lasts, and after it its own again."""
        own = [value.clone() for value in self.live]
        with torch.no_grad():
            torch._foreach_copy_(self.live, list(self.weights.values()))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.live, own)
