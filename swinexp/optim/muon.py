"""Muon for hidden matrices and AdamW for the rest, as one optimizer."""

from __future__ import annotations

from typing import Any

import torch


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon for the groups whose `algorithm` is "muon", torch's fused AdamW for the others.

    Muon's step is the gradient's nearest orthogonal matrix, scaled to the size AdamW's steps have
    (arXiv 2502.16982), so that an lr and a weight decay that suit AdamW suit Muon too. Groups and state are this
    object's; the two parts work on them, and hold nothing of their own.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        betas: tuple[float, float],
        eps: float,
        momentum: float,
        nesterov: bool,
    ) -> None:
        self.parts: dict[str, torch.optim.Optimizer] = {}
        matrices = [group for group in groups if group["algorithm"] == "muon"]
        rest = [group for group in groups if group["algorithm"] != "muon"]
        if matrices:
            self.parts["muon"] = torch.optim.Muon(
                matrices, momentum=momentum, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
            )
        if rest:
            self.parts["adamw"] = torch.optim.AdamW(rest, betas=betas, eps=eps, fused=True)
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # the training loop has no closure
        """Move every parameter that has a gradient."""
        for name, part in self.parts.items():
            # Shared anew for each step: restoring makes new groups and a new state.
            part.param_groups = [group for group in self.param_groups if group["algorithm"] == name]
            part.state = self.state
            part.step()
