"""Looking inside a network: what its blocks put out, and what their tokens attend to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from swinexp.swin.network import Stage, Swin, SwinBlock
from swinexp.swin.windows import from_windows, merge_order, window_order


@torch.no_grad()
def features(model: Swin, images: Tensor, blocks: Iterable[str] | None = None) -> dict[str, Tensor]:
    """{"layers.0.blocks.1": (B, H, W, C), …}: what blocks put out, as maps; of all blocks, or of those named.

    `images` are (B, 3, height, width), normalised; a network in evaluation mode has no drop path.
    Raises `ValueError` for a name that no block has.
    """
    wanted = _named(model, blocks)
    return {name: stage.to_map(out) for name, stage, _, _, out in _walk(model, images) if name in wanted}


@torch.no_grad()
def attention_maps(model: Swin, images: Tensor, blocks: Iterable[str] | None = None) -> dict[str, Tensor]:
    """{"layers.0.blocks.1": (B, G, N, T, T), …}: how much each token of a window attends to each; rows add up to 1.

    Of all blocks, or of those named. Places of windows that overhang the map count as tokens.
    `images` are (B, 3, height, width), normalised. Raises `ValueError` for a name that no block has.
    """
    wanted = _named(model, blocks)
    return {name: block.attention_weights(x) for name, _, block, x, _ in _walk(model, images) if name in wanted}


def received(block: SwinBlock, attention: Tensor) -> Tensor:
    """How much each token is attended to by its window: (B, G, N, T, T) -> (B, H, W), with 1 as the even share."""
    shares = attention.mean(dim=2).sum(dim=2)  # (B, G, T)
    height, width = block.grid
    padded = [side + -side % block.window for side in (height, width)]
    shifted = from_windows(shares[..., None], block.window, padded[0])[..., 0]
    return shifted.roll(block.shift, dims=(1, 2))[:, :height, :width]


@torch.no_grad()
def rollout(model: Swin, images: Tensor) -> Tensor:
    """How much each patch went into what the head sees, by the attention of all blocks: (B, H, W), adding up to 1.

    Attention rollout (Abnar and Zuidema, arXiv 2005.00928): the mean over heads, half of it the token itself for the
    residual path, multiplied through the blocks, and through the merges as means.
    """
    stages = list(model.stages())
    patches = stages[0].grid[0] * stages[0].grid[1]
    joint = torch.eye(patches, device=images.device).expand(len(images), -1, -1)  # (B, P, patches), by row
    last = stages[0]
    for _, stage, block, x, _ in _walk(model, images):
        if stage is not last:
            merged = F.pad(joint, (0, 0, 0, 1))[:, merge_order(*last.grid).to(images.device)].sum(dim=2)
            joint, last = merged / merged.sum(dim=-1, keepdim=True), stage
        joint = (joint + _whole(block, block.attention_weights(x)) @ joint) / 2
    return joint.mean(dim=1).unflatten(1, stages[0].grid)


def _whole(block: SwinBlock, attention: Tensor) -> Tensor:
    """(B, G, N, T, T) -> (B, P, P), over the tokens of the map row by row, which leaves out overhanging places."""
    B, G, _, T, _ = attention.shape
    tokens = window_order(*block.grid, block.window, block.shift).view(G, T).to(attention.device)
    size = block.grid[0] * block.grid[1]
    whole = attention.new_zeros(B, size + 1, size + 1)
    whole[:, tokens[:, :, None], tokens[:, None, :]] = attention.mean(dim=2)
    whole = whole[:, :size, :size]
    return whole / whole.sum(dim=-1, keepdim=True)


def _walk(model: Swin, images: Tensor) -> Iterator[tuple[str, Stage, SwinBlock, Tensor, Tensor]]:
    """(name, its stage, the block, what goes in, what comes out) of one block after the other."""
    x = model.tokens(images)
    for i, stage in enumerate(model.stages()):
        for j, block in enumerate(stage.blocks):
            assert isinstance(block, SwinBlock)
            inside, x = x, block(x)
            yield f"layers.{i}.blocks.{j}", stage, block, inside, x
        if stage.downsample is not None:
            x = stage.downsample(x)


def _named(model: Swin, names: Iterable[str] | None) -> set[str]:
    blocks = [name for name, module in model.named_modules() if isinstance(module, SwinBlock)]
    wanted = list(blocks if names is None else names)
    unknown = [name for name in wanted if name not in blocks]
    if unknown:
        raise ValueError(f"no block is named {', '.join(unknown)}; there are {', '.join(blocks)}")
    return set(wanted)
