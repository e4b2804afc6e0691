"""Where tokens are: windows, shifts and merges as indices made from coordinates, and the gather that follows them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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
    return window_order(height, width, window) if fits(height, width, window) else torch.arange(height * width)


def fits(height: int, width: int, window: int) -> bool:
    """Whether windows cover a map without overhanging it."""
    return height % window == 0 and width % window == 0


def merge_order(height: int, width: int, shift: tuple[int, int] = (0, 0)) -> Tensor:
    """(⌈H/2⌉·⌈W/2⌉, 4): the 2×2 tokens that become one, row by row, by columns within; H·W where the map ends.

    With `shift`, those so many rows and columns further on, of -1, 0 or 1.
    """
    rows, columns = torch.arange(height)[:, None] + shift[0], torch.arange(width) + shift[1]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    places = torch.where(inside, rows * width + columns, height * width)
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
        return take(x, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        _, back = ctx.saved_tensors
        return take(gradients[0], back), None, None


def take(x: Tensor, index: Tensor) -> Tensor:
    """(B, P, C) -> (B, len(index), C): the token at each index, which may stand there several times; zeros for P."""
    if len(index) > x.shape[1]:
        x = F.pad(x, (0, 0, 0, 1))  # the token of zeros that overhanging places are filled with
    B, P, C = x.shape
    # As rows of one matrix: on a CPU this copies at nearly the memory's speed, along dimension 1 at half of it.
    rows = torch.arange(0, B * P, P, device=x.device)[:, None] + index
    return x.reshape(B * P, C).index_select(0, rows.flatten()).view(B, -1, C)


def gather(x: Tensor, index: Tensor, back: Tensor) -> Tensor:
    """`take`, for an index that holds each token once, and `back` its inverse."""
    return _Gather.apply(x, index, back)


def relative_position_index(window: int, table: int) -> Tensor:
    """(T, T): for each pair of tokens of a window, by their offset, its row in the bias table of windows of `table`."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + table - 1
    dx = x[:, None] - x[None, :] + table - 1
    return dy * (2 * table - 1) + dx


def pairs_by_offset(window: int, table: int) -> Tensor:
    """((2·table - 1)², T): for each row of the bias table, which pairs of T² take it; T² where there are fewer."""
    index = relative_position_index(window, table).flatten()
    at = torch.argsort(index, stable=True)
    counts = index.bincount(minlength=(2 * table - 1) ** 2)
    within = torch.arange(len(index)) - (counts.cumsum(0) - counts)[index[at]]
    pairs = torch.full((len(counts), window**2), len(index))
    pairs[index[at], within] = at
    return pairs


class _FromTable(torch.autograd.Function):
    """A row's gradient is gathered from the pairs that took it, where autograd would sort all pairs by their row."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, pairs: Tensor) -> Tensor:
        ctx.save_for_backward(pairs)
        return table[index]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (pairs,) = ctx.saved_tensors
        taken = take(gradients[0].flatten(0, 1)[None], pairs.flatten())
        return taken.view(*pairs.shape, -1).sum(1), None, None


def from_table(table: Tensor, index: Tensor, pairs: Tensor) -> Tensor:
    """((2·table - 1)², N), `relative_position_index` and `pairs_by_offset` -> (N, T, T)"""
    out: Tensor = _FromTable.apply(table, index, pairs)
    return out.permute(2, 0, 1)


def shift_mask(height: int, width: int, window: int, shift: tuple[int, int]) -> Tensor:
    """(G, T, T), added to the scores of a shifted map: -inf between tokens that only the shift brought together.

    After the shift, the last window of each axis holds tokens of both ends of the map (padded up to whole windows);
    tokens attend to each other only when they come from the same end of both axes.

    Published code adds -100. The weights are the same wherever scores lie within 70 of each other, save that e^-100 is
    subnormal in fp32, and some CPUs take thirty times as long for a product with such a number (docs/performance.md).
    """
    rows, columns = height + -height % window, width + -width % window
    row_end = (torch.arange(rows) >= rows - shift[0]).long()
    column_end = (torch.arange(columns) >= columns - shift[1]).long()
    ends = to_windows((row_end[:, None] * 2 + column_end)[None, :, :, None], window)[0, :, :, 0]  # (G, T)
    apart = ends[:, :, None] != ends[:, None, :]
    return torch.zeros(apart.shape).masked_fill(apart, -torch.inf)


def diagonal_mask(mask: Tensor) -> Tensor:
    """`mask` (G, T, T), and -inf between a token and itself, unless it has no other token to attend to."""
    itself = torch.eye(mask.shape[-1], dtype=torch.bool)
    others = ((mask == 0) & ~itself).any(dim=-1, keepdim=True)
    return mask.masked_fill(itself & others, -torch.inf)


def log_spaced_offsets(window: int) -> Tensor:
    """((2·window - 1)², 2): the offset of each row of a bias table, scaled to ±8 and then to ±log2(9)/3 by logarithm.

    As in Swin V2 (arXiv 2111.09883, equation 4).
    """
    steps = torch.arange(1 - window, window) / max(window - 1, 1) * 8
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).flatten(0, 1)
    return offsets.sign() * (offsets.abs() + 1).log2() / 3
