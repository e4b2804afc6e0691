"""Muon for hidden matrices and AdamW for the rest, as one optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swinexp.optim.moving import moving

ROUNDS = ((3.4445, -4.7750, 2.0315),) * 5  # of the quintic iteration, with its published coefficients
RMS = 0.2  # of a step per entry, as AdamW's are in practice (arXiv 2502.16982)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the groups whose `algorithm` is "muon", torch's fused AdamW for the others.

    Muon's step is the nearest orthogonal matrix to a mean of gradients, scaled to the size that AdamW's steps have
    (arXiv 2502.16982), so that an lr and a weight decay that suit AdamW suit Muon too. Groups and state are this
    object's; torch's part works on them, and holds nothing of its own.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        betas: tuple[float, float],
        eps: float,
        momentum: float,
        nesterov: bool,
    ) -> None:
        rest = [group for group in groups if group["algorithm"] != "muon"]
        self.rest = torch.optim.AdamW(rest, betas=betas, eps=eps, fused=True) if rest else None
        self.momentum, self.nesterov = momentum, nesterov
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # the training loop has no closure
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            if group["algorithm"] == "muon":
                self._step_matrices(group)
        if self.rest is not None:
            # Shared anew for each step: restoring makes new groups and a new state.
            self.rest.param_groups = [group for group in self.param_groups if group["algorithm"] != "muon"]
            self.rest.state = self.state
            self.rest.step()

    def _step_matrices(self, group: dict[str, Any]) -> None:
        parameters, gradients, means = moving(self, group, momentum_buffer=torch.zeros_like)
        if not parameters:
            return
        torch._foreach_lerp_(means, gradients, 1 - self.momentum)
        moves = torch._foreach_lerp(gradients, means, self.momentum) if self.nesterov else means
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        alike: dict[object, list[tuple[Tensor, Tensor]]] = {}
        for p, move in zip(parameters, moves, strict=True):
            wide = p.shape[0] <= p.shape[1]
            pair = (p, move) if wide else (p.T, move.T)
            # On a GPU, where what takes time is the number of operations, those with as many rows: zeros stay zeros.
            alike.setdefault(len(pair[0]) if p.is_cuda else pair[0].shape, []).append(pair)
        for pairs in alike.values():
            steps = orthogonal(side_by_side([move for _, move in pairs])).to(pairs[0][0].dtype) * -group["lr"]
            for (p, _), step in zip(pairs, steps, strict=True):
                p.add_(step[:, : p.shape[1]], alpha=RMS * p.shape[1] ** 0.5)


def side_by_side(matrices: list[Tensor]) -> Tensor:
    """Matrices of as many rows -> (N, rows, columns of the widest), filled up with zeros."""
    widest = max(m.shape[1] for m in matrices)
    stacked = matrices[0].new_zeros(len(matrices), len(matrices[0]), widest)
    torch._foreach_copy_([into[:, : m.shape[1]] for into, m in zip(stacked, matrices, strict=True)], matrices)
    return stacked


def orthogonal(x: Tensor) -> Tensor:
    """(N, rows, columns), rows ≤ columns -> nearly the nearest matrices with orthonormal rows.

    The Newton–Schulz iteration of kellerjordan.github.io/posts/muon: singular values come out between 0.7 and 1.2.
    In bf16 on a GPU, whose rounding it bears; as the matrices are on a CPU, which is slow at bf16.
    """
    x = x.bfloat16() if x.is_cuda else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for a, b, c in ROUNDS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
