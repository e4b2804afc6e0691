"""The Swin Transformer (Liu et al., arXiv 2103.14030) for images of any small size.

The tokens of a stage lie one after the other in the order of its windows, (B, P, C), so that attention within windows
is a view of them, and every shift, partition and merge is one gather with an index that coordinates gave beforehand.
Shapes are written with these letters:

    B images   H, W rows and columns of a map   P tokens of a map (H·W)   C channels
    G windows of an image   T tokens of a window (window²)   N heads   D channels of a head

Parameters are named as in Microsoft's and timm's implementations, so that weights can be carried over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinexp.mistake import check, shown

NORM_EPS = 1e-6  # the reference network's; 1e-5 in the paper's code


@dataclass
class Model:
    """The size of the network.

    `dim` channels after the patch embedding (they double at every stage), and for each stage its number of
    blocks and of attention heads. `drop_path` is the rate of the last block; the first has 0, and it grows
    linearly between them (stochastic depth, arXiv 1603.09382).
    """

    dim: int
    depths: list[int]
    heads: list[int]
    mlp_ratio: float
    drop_path: float

    def __post_init__(self) -> None:
        check(self.dim >= 1, "model.dim", self.dim, "a width is at least 1", "model.dim=64")
        for key, values in (("model.depths", self.depths), ("model.heads", self.heads)):
            good = bool(values) and all(isinstance(value, int) and value >= 1 for value in values)
            check(good, key, values, "a whole number from 1 for every stage", f"{key}=[2,2]")
        check(
            len(self.heads) == len(self.depths),
            "model.heads",
            self.heads,
            f"one number of heads for each of the {len(self.depths)} stages of model.depths={shown(self.depths)}",
            f"model.heads={shown([2 * 2**stage for stage in range(len(self.depths))])}",
        )
        for stage, heads in enumerate(self.heads):
            width = self.dim * 2**stage
            fitting = [n for n in range(1, width + 1) if width % n == 0]
            nearest = min(fitting, key=lambda n: abs(n - heads))
            check(
                heads in fitting,
                "model.heads",
                self.heads,
                f"{heads} heads do not divide the width of stage {stage + 1}, {width} (model.dim={self.dim})",
                f"model.heads={shown([*self.heads[:stage], nearest, *self.heads[stage + 1 :]])}",
            )
        check(
            1 / self.dim <= self.mlp_ratio < math.inf,
            "model.mlp_ratio",
            self.mlp_ratio,
            "the MLP's width as a multiple of the block's, so that it has at least one channel",
            "model.mlp_ratio=2",
        )
        check(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "a rate in [0, 1)", "model.drop_path=0.1")


@dataclass
class Window:
    """Attention within `size` × `size` tokens; `shift` moves every second block's windows by half of that."""

    size: int
    shift: bool

    def __post_init__(self) -> None:
        check(self.size >= 1, "window.size", self.size, "a window has at least one token", "window.size=4")


@dataclass
class Patch:
    """`size` × `size` pixels make one token."""

    size: int

    def __post_init__(self) -> None:
        check(self.size >= 1, "patch.size", self.size, "a patch has at least one pixel", "patch.size=2")


def check_fit(model: Model, window: Window, patch: Patch, image_size: int) -> None:
    """Raise `Mistake` unless patches divide the image, stages halve the grid, and windows divide every grid.

    A window at least as large as a later stage's grid is cut down to that grid, as in the paper's code.
    """
    sizes = [size for size in (1, 2, 4, 8, 16) if image_size % size == 0]
    check(
        image_size % patch.size == 0,
        "patch.size",
        patch.size,
        f"it does not divide the image of {image_size}×{image_size} pixels (data.image_size); {sizes} do",
        f"patch.size={max((size for size in sizes if size < patch.size), default=1)}",
    )
    grid = image_size // patch.size
    halvings = len(model.depths) - 1
    check(
        grid % 2**halvings == 0,
        "model.depths",
        model.depths,
        f"{halvings + 1} stages halve the grid {halvings} times, which {grid}×{grid} tokens do not allow "
        f"(data.image_size={image_size} / patch.size={patch.size})",
        f"data.image_size={max(1, round(grid / 2**halvings)) * 2**halvings * patch.size}, or fewer stages",
    )
    grids = [grid // 2**stage for stage in range(halvings + 1)]
    fitting = [size for size in range(1, grid + 1) if all(side % min(size, side) == 0 for side in grids)]
    check(
        window.size in fitting,
        "window.size",
        window.size,
        f"windows must tile the grid of every stage, here {', '.join(f'{side}×{side}' for side in grids)} tokens; "
        f"{fitting} do",
        f"window.size={min(fitting, key=lambda size: abs(size - window.size))}",
    )


def to_windows(x: Tensor, window: int) -> Tensor:
    """Cut a map into windows, row by row: (B, H, W, C) -> (B, G, T, C). `window` divides H and W."""
    B, H, W, C = x.shape
    x = x.view(B, H // window, window, W // window, window, C)
    return x.transpose(2, 3).reshape(B, -1, window * window, C)


def from_windows(x: Tensor, window: int, height: int) -> Tensor:
    """Put windows back into a map of `height` rows: (B, G, T, C) -> (B, H, W, C)."""
    B, G, _, C = x.shape
    rows, columns = height // window, G * window // height
    x = x.view(B, rows, columns, window, window, C)
    return x.transpose(2, 3).reshape(B, height, columns * window, C)


def window_order(height: int, width: int, window: int, shift: tuple[int, int] = (0, 0)) -> Tensor:
    """(G·T,): which token of a map, counted row by row, has each place in the windows of the shifted map.

    Windows that overhang the map hold H·W in the places that no token has.
    """
    places = torch.arange(height * width).view(height, width)
    places = F.pad(places, (0, -width % window, 0, -height % window), value=height * width)
    return to_windows(places.roll((-shift[0], -shift[1]), dims=(0, 1))[None, :, :, None], window).flatten()


def stage_order(height: int, width: int, window: int) -> Tensor:
    """(P,): the order in which a stage keeps its tokens: window by window, or row by row where windows overhang."""
    whole = height % window == 0 and width % window == 0
    return window_order(height, width, window) if whole else torch.arange(height * width)


def merge_order(height: int, width: int) -> Tensor:
    """(⌈H/2⌉·⌈W/2⌉, 4): the 2×2 tokens that become one, row by row, by columns within; H·W where the map ends."""
    places = torch.arange(height * width).view(height, width)
    places = F.pad(places, (0, width % 2, 0, height % 2), value=height * width)
    corners = [places[0::2, 0::2], places[1::2, 0::2], places[0::2, 1::2], places[1::2, 1::2]]
    return torch.stack(corners, dim=-1).flatten(0, 1)


def inverse(index: Tensor, size: int) -> Tensor:
    """(size,): where each of 0 … size-1 stands in `index`, which holds each once, and `size` any number of times."""
    places = torch.empty(size + 1, dtype=torch.long)
    places[index] = torch.arange(len(index))
    return places[:size]


def placed(tokens: Tensor, order: Tensor) -> Tensor:
    """For tokens of a map, counted row by row, their places in a stage's order; overhanging places stay so."""
    return torch.cat([inverse(order, len(order)), torch.tensor([len(order)])])[tokens]


class _Gather(torch.autograd.Function):
    """Every token moves to one place, so the gradient is gathered back, where autograd would scatter and add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(index, back)
        return _take(x, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        _, back = ctx.saved_tensors
        return _take(gradients[0], back), None, None


def _take(x: Tensor, index: Tensor) -> Tensor:
    if len(index) > x.shape[1]:
        x = F.pad(x, (0, 0, 0, 1))  # the token of zeros that overhanging places are filled with
    B, P, C = x.shape
    # As rows of one matrix: on a CPU this copies at nearly the memory's speed, along dimension 1 at half of it.
    rows = torch.arange(0, B * P, P, device=x.device)[:, None] + index
    return x.reshape(B * P, C).index_select(0, rows.flatten()).view(B, -1, C)


def gather(x: Tensor, index: Tensor, back: Tensor) -> Tensor:
    """(B, P, C) -> (B, len(index), C): the tokens in the order of `index`, whose inverse is `back`."""
    return _Gather.apply(x, index, back)


def relative_position_index(window: int) -> Tensor:
    """(T, T): the row of the bias table for each pair of tokens of a window, by their offset."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + window - 1
    dx = x[:, None] - x[None, :] + window - 1
    return dy * (2 * window - 1) + dx


def shift_mask(height: int, width: int, window: int, shift: tuple[int, int]) -> Tensor:
    """(G, T, T), added to the scores of a shifted map: -100 between tokens that only the shift brought together.

    After the shift, the last window of each axis holds tokens of both ends of the map (padded up to whole windows);
    tokens attend to each other only when they come from the same end of both axes.
    """
    rows, columns = height + -height % window, width + -width % window
    row_end = (torch.arange(rows) >= rows - shift[0]).long()
    column_end = (torch.arange(columns) >= columns - shift[1]).long()
    ends = to_windows((row_end[:, None] * 2 + column_end)[None, :, :, None], window)[0, :, :, 0]  # (G, T)
    return (ends[:, :, None] != ends[:, None, :]).float() * -100.0


class DropPath(nn.Module):
    """Add a branch; while training, to images at random, and scaled up to keep the mean (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """(B, P, C), (B, P, C) -> (B, P, C)"""
        if not self.training or self.rate == 0:
            return x + branch
        keep = x.new_empty(x.shape[0], 1, 1).bernoulli_(1 - self.rate).div_(1 - self.rate)
        return torch.addcmul(x, branch, keep.to(branch.dtype))


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learnt bias for each offset between two tokens."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)

    def relative_position_bias(self) -> Tensor:
        """(N, T, T)"""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, G, T, C) -> (B, G, T, C); `mask` (G, T, T) is added to the scores."""
        B, G, T, C = x.shape
        qkv = self.qkv(x).view(B, G, T, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)  # each (B, G, N, T, D)
        # Two products rather than the fused op: for windows of 16 tokens they are the faster ones on a CPU.
        scores = (q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias()
        scores = scores + (bias if mask is None else bias + mask[:, None])  # (B, G, N, T, T)
        x = scores.softmax(-1) @ v
        return self.proj(x.transpose(2, 3).reshape(B, G, T, C))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Window attention and MLP, each normalised first and added to what came in."""

    order: Tensor | None
    back: Tensor | None
    mask: Tensor | None

    def __init__(
        self,
        dim: int,
        heads: int,
        grid: tuple[int, int],
        window: int,
        shift: tuple[int, int],
        mlp_ratio: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        order = placed(window_order(*grid, window, shift), stage_order(*grid, window))
        size = grid[0] * grid[1]
        moves = not torch.equal(order, torch.arange(size))
        self.register_buffer("order", order if moves else None, persistent=False)
        self.register_buffer("back", inverse(order, size) if moves else None, persistent=False)
        self.register_buffer("mask", shift_mask(*grid, window, shift) if any(shift) else None, persistent=False)

    def attention(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, C): into this block's windows, attend, and back."""
        if self.order is not None and self.back is not None:
            x = gather(x, self.order, self.back)
        x = self.attn(x.unflatten(1, (-1, self.window**2)), self.mask).flatten(1, 2)
        if self.order is not None and self.back is not None:
            x = gather(x, self.back, self.order)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, C)"""
        x = self.drop_path(x, self.attention(self.norm1(x)))
        return self.drop_path(x, self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Every 2×2 tokens become one of twice the channels, in the next stage's order."""

    index: Tensor
    back: Tensor

    def __init__(self, dim: int, here: Tensor, there: Tensor, grid: tuple[int, int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=NORM_EPS)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        index = placed(merge_order(*grid)[there].flatten(), here)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("back", inverse(index, len(here)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, ⌈H/2⌉·⌈W/2⌉, 2C)"""
        B, _, C = x.shape
        return self.reduction(self.norm(gather(x, self.index, self.back).view(B, -1, 4 * C)))


class PatchEmbedding(nn.Module):
    """Each patch of pixels to a token, by one linear map."""

    order: Tensor
    back: Tensor

    def __init__(self, patch: int, dim: int, order: Tensor) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", inverse(order, len(order)), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> (B, P, C), in the first stage's order"""
        return gather(self.norm(self.proj(images).flatten(2).transpose(1, 2)), self.order, self.back)


class Stage(nn.Module):
    """Blocks at one resolution, then a patch merging unless it is the last stage."""

    def __init__(self, blocks: list[Block], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, P/4, 2C), or (B, P, C) in the last stage"""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class Swin(nn.Module):
    """Logits for images of one size.

    `image_size` is (height, width) in pixels, or one number for square images. Linear layers and bias tables
    start from a normal distribution of std 0.02 cut at ±2, biases at 0, as in the paper's code.
    """

    def __init__(
        self, model: Model, window: Window, patch: Patch, image_size: int | tuple[int, int], classes: int
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        # The map of each stage, (H, W), and its window: no larger than the map, as in the paper's code.
        grids = [(height // patch.size, width // patch.size)]
        for _ in model.depths[1:]:
            grids.append((math.ceil(grids[-1][0] / 2), math.ceil(grids[-1][1] / 2)))
        windows = [min(window.size, *grid) for grid in grids]
        orders = [stage_order(*grid, size) for grid, size in zip(grids, windows, strict=True)]
        rates = iter(torch.linspace(0, model.drop_path, sum(model.depths)).tolist())
        self.patch_embed = PatchEmbedding(patch.size, model.dim, orders[0])
        stages = []
        for i, (depth, heads, grid, size) in enumerate(zip(model.depths, model.heads, grids, windows, strict=True)):
            dim = model.dim * 2**i
            half = [size // 2 if window.shift and size < side else 0 for side in grid]
            shifts = [(half[0], half[1]) if j % 2 else (0, 0) for j in range(depth)]
            blocks = [Block(dim, heads, grid, size, shift, model.mlp_ratio, next(rates)) for shift in shifts]
            merging = PatchMerging(dim, orders[i], orders[i + 1], grid) if i + 1 < len(grids) else None
            stages.append(Stage(blocks, merging))
        self.layers = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.head = nn.Linear(dim, classes)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> logits (B, classes)"""
        x = self.patch_embed(images)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(dim=1))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
