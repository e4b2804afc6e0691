"""The small layers that blocks, merges and embeddings share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinexp.swin.cpu import add_to, by_hand
from swinexp.swin.gpu import on_gpu, residual
from swinexp.swin.operators import convolve
from swinexp.swin.windows import fits, gather, inverse, stage_order


def build_norm(kind: str, dim: int, eps: float) -> nn.Module:
    """Over the last dimension: "layer" as in the paper, or "rms", without mean and bias (arXiv 1910.07467)."""
    return nn.LayerNorm(dim, eps=eps) if kind == "layer" else RMSNorm(dim, eps=eps)


class RMSNorm(nn.RMSNorm):
    """In fp32 under autocast, as a LayerNorm is: torch 2.11 leaves it in bf16, and then has no fused kernel for it."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        return super().forward(x.to(self.weight.dtype))


class DropPath(nn.Module):
    """Add a branch; while training, to images at random, and scaled up to keep the mean (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def draw(self, images: int, device: torch.device) -> Tensor:
        """(images, 1, 1): the factor on the branch of each image, 0 for those that go without it"""
        factors = torch.empty(images, 1, 1, device=device).bernoulli_(1 - self.rate)
        return factors.div_(1 - self.rate)

    def forward(self, x: Tensor, branch: Tensor, factors: Tensor | None = None) -> Tensor:
        """(B, P, C), (B, P, C), and factors (B, 1, 1) drawn beforehand where there are -> (B, P, C)"""
        branch = residual(branch)  # which a norm or a LayerScale in its end leaves in fp32, and x would be too
        if not self.training or self.rate == 0:
            return x + branch
        if factors is None:
            factors = self.draw(len(x), x.device)
        return torch.addcmul(x, branch, factors.to(branch.dtype))

    def around(self, x: Tensor, branch: Callable[[Tensor], Tensor], factors: Tensor | None = None) -> Tensor:
        """`forward` with what makes the branch, image by image: on a CPU, of those only that it is added to."""
        if self.training and self.rate and by_hand(x):
            if factors is None:
                factors = self.draw(len(x), x.device)
            images = factors.flatten().nonzero().flatten()
            if 0 < len(images) < len(x):
                return add_to(x, images, branch(x.index_select(0, images)), factors[images[0]].item())
        out: Tensor = self(x, branch(x), factors)
        return out


class LayerScale(nn.Module):
    """A learnt factor for each channel of a branch (arXiv 2103.17239)."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        return x * self.gamma


def build_scale(dim: int, start: float | None) -> nn.Module:
    """A `LayerScale` that begins at `start`, or nothing."""
    return nn.Identity() if start is None else LayerScale(dim, start)


class DepthwiseConv(nn.Module):
    """A 3×3 convolution of each channel on the map, across the borders of windows, and with `gelu` a GELU of it."""

    order: Tensor
    back: Tensor

    def __init__(self, dim: int, grid: tuple[int, int], window: int, gelu: bool) -> None:
        super().__init__()
        self.gelu = gelu
        self.grid, self.window = grid, window if fits(*grid, window) else grid[1]  # row by row, as `stage_order` has it
        order = stage_order(*grid, window)
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", inverse(order, len(order)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, C), in the stage's order"""
        if on_gpu(x):
            assert self.conv.bias is not None
            return convolve(x, self.conv.weight, self.conv.bias, self.grid, self.window, self.gelu)
        rows = gather(x, self.back, self.order).unflatten(1, self.grid)  # (B, H, W, C)
        rows = self.conv(rows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out = gather(rows.flatten(1, 2), self.order, self.back)
        return F.gelu(out) if self.gelu else out


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, or `conv`, which has its own (arXiv 2105.15203)."""

    def __init__(self, dim: int, hidden: int, conv: DepthwiseConv | None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.conv = conv
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, C)"""
        x = self.fc1(x)
        return self.fc2(F.gelu(x) if self.conv is None else self.conv(x))
