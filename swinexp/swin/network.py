"""The network: stages of blocks, and what leads in and out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor, nn

from swinexp.swin.attention import WindowAttention
from swinexp.swin.embedding import PatchEmbedding, PatchMerging
from swinexp.swin.gpu import attends, residual
from swinexp.swin.layers import DepthwiseConv, DropPath, Mlp, build_norm, build_scale
from swinexp.swin.options import Attention, Block, Model, Patch, Window
from swinexp.swin.windows import diagonal_mask, gather, inverse, placed, shift_mask, stage_order, take, window_order

STD = 0.02  # of weights as they begin in the paper's code
BY_FAN_IN = ("fc1", "fc2", "reduction")  # the linear layers of MLPs and merges; attention has an init of its own
PUBLISHED_MASK = -100.0  # which published code adds to scores that it leaves out


class SwinBlock(nn.Module):
    """Window attention and MLP, each added to what came in."""

    order: Tensor | None
    back: Tensor | None
    mask: Tensor | None

    def __init__(
        self,
        dim: int,
        heads: int,
        grid: tuple[int, int],
        window: int,
        table: int,
        shift: tuple[int, int],
        drop_path: float,
        model: Model,
        attention: Attention,
        block: Block,
    ) -> None:
        super().__init__()
        self.grid, self.window, self.shift = grid, window, shift
        self.normed_first = block.placement == "pre"
        stage = stage_order(*grid, window)
        hidden = int(dim * model.mlp_ratio)
        self.norm1 = build_norm(block.norm, dim, model.norm_eps)
        self.attn = WindowAttention(dim, heads, grid, window, table, attention, model.norm_eps)
        self.norm2 = build_norm(block.norm, dim, model.norm_eps)
        self.mlp = Mlp(dim, hidden, DepthwiseConv(hidden, grid, window, gelu=True) if block.depthwise_conv else None)
        self.drop_path = DropPath(drop_path)
        self.ls1 = build_scale(dim, block.layer_scale)
        self.ls2 = build_scale(dim, block.layer_scale)
        order = placed(window_order(*grid, window, shift), stage)
        size = grid[0] * grid[1]
        moves = not torch.equal(order, torch.arange(size))
        mask = shift_mask(*grid, window, shift)
        if attention.similarity == "local":
            mask = diagonal_mask(mask)
        elif attention.similarity == "cosine":  # its scores may be 200 apart, and then published weights see through
            mask = mask.clamp(min=PUBLISHED_MASK)
        self.register_buffer("order", order if moves else None, persistent=False)
        self.register_buffer("back", inverse(order, size) if moves else None, persistent=False)
        self.register_buffer("mask", mask if mask.any() else None, persistent=False)

    def windows(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, G, T, C), the shift included"""
        if self.order is not None and self.back is not None:
            x = gather(x, self.order, self.back)
        return x.unflatten(1, (-1, self.window**2))

    def attention(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, C): into this block's windows, attend, and back."""
        if self.attn.has_kernel and attends(x, self.attn.heads, self.window**2, self.order):
            return self.attn.in_place(x, self.order, self.mask)
        x = self.attn(self.windows(x), self.mask, self.order, self.back).flatten(1, 2)
        if self.order is not None and self.back is not None:
            x = gather(x, self.back, self.order)
        return x

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, G, N, T, T): how much each token of a window attends to each."""
        q, k, _ = self.attn.qkv_heads(self.windows(self.norm1(x) if self.normed_first else x))
        return self.attn.weights(q, k, self.mask)

    def forward(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """(B, P, C) -> (B, P, C); `factors` (2, B, 1, 1) are of drop path, for each branch"""
        first, second = (None, None) if factors is None else factors.unbind(0)
        x = self.drop_path.around(x, self.attended, first)
        return self.drop_path.around(x, self.transformed, second)

    def attended(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, C), the first branch"""
        x = self.attention(self.norm1(x)) if self.normed_first else self.norm1(self.attention(x))
        out: Tensor = self.ls1(x)
        return out

    def transformed(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, C), the second branch"""
        x = self.mlp(self.norm2(x)) if self.normed_first else self.norm2(self.mlp(x))
        out: Tensor = self.ls2(x)
        return out


class Stage(nn.Module):
    """Blocks at one resolution, then a patch merging unless it is the last stage."""

    rows: Tensor

    def __init__(
        self, blocks: list[SwinBlock], downsample: PatchMerging | None, grid: tuple[int, int], order: Tensor
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.grid = grid
        self.register_buffer("rows", inverse(order, len(order)), persistent=False)

    def to_map(self, x: Tensor) -> Tensor:
        """Tokens in this stage's order to a map: (B, P, C) -> (B, H, W, C)"""
        return take(x, self.rows).unflatten(1, self.grid)

    def forward(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """(B, P, C) -> (B, P/4, 2C), or (B, P, C) in the last stage; `factors` (blocks, 2, B, 1, 1) of drop path"""
        for i, block in enumerate(self.blocks):
            x = block(x, None if factors is None else factors[i])
        return x if self.downsample is None else self.downsample(x)


class Swin(nn.Module):
    """Logits for images of one size.

    `image_size` is (height, width) in pixels, or one number for square images. Linear layers and bias tables
    start from a normal distribution of std 0.02 cut at ±2, biases at 0, as in the paper's code, unless `model`, `patch`
    and `attention` say otherwise in their `init`. `tables` are the windows, one for each stage, whose offsets the bias
    tables hold, where those are larger than the stages' own.
    Raises `ValueError` for images that patches do not divide.
    """

    keeps: Tensor  # (blocks, 1, 1, 1, 1): the share of images that a block's branches are added to

    def __init__(
        self,
        model: Model,
        window: Window,
        patch: Patch,
        attention: Attention,
        block: Block,
        image_size: int | tuple[int, int],
        classes: int,
        tables: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.parts = (model, window, patch, attention, block)
        self._resized: dict[int, Swin] = {}
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < patch.size or height % patch.size or width % patch.size:
            raise ValueError(
                f"images of {height}×{width} pixels cannot be cut into patches of {patch.size}×{patch.size}"
            )
        self.image_size = (height, width)
        # The map of each stage, (H, W), and its window: no larger than the map, as in the paper's code.
        grids = [(height // patch.size, width // patch.size)]
        for _ in model.depths[1:]:
            grids.append((math.ceil(grids[-1][0] / 2), math.ceil(grids[-1][1] / 2)))
        self.windows = [min(window.size, *grid) for grid in grids]
        windows, tables = self.windows, self.windows if tables is None else tables
        orders = [stage_order(*grid, size) for grid, size in zip(grids, windows, strict=True)]
        rates = torch.linspace(0, model.drop_path, sum(model.depths))
        self.drops = bool(rates.any())
        self.register_buffer("keeps", (1 - rates).view(-1, 1, 1, 1, 1), persistent=False)
        drop_path = iter(rates.tolist())
        self.patch_embed = PatchEmbedding(patch, model.dim, orders[0], block.norm, model.norm_eps)
        positions = torch.empty(1, len(orders[0]), model.dim)  # row by row, as in the paper's code
        self.absolute_pos_embed = nn.Parameter(positions) if patch.absolute_position else None
        stages = []
        sizes = zip(model.depths, model.heads, grids, windows, tables, strict=True)
        for i, (depth, heads, grid, size, table) in enumerate(sizes):
            dim = model.dim * 2**i
            half = [size // 2 if window.shift and size < side else 0 for side in grid]
            shifts = [(half[0], half[1]) if j % 2 else (0, 0) for j in range(depth)]
            blocks = [
                SwinBlock(dim, heads, grid, size, table, shift, next(drop_path), model, attention, block)
                for shift in shifts
            ]
            merging = None
            if i + 1 < len(grids):
                shifted = patch.embedding == "spt"
                merging = PatchMerging(dim, orders[i], orders[i + 1], grid, shifted, block, model.norm_eps)
            stages.append(Stage(blocks, merging, grid, orders[i]))
        self.layers = nn.ModuleList(stages)
        # About how many multiply-adds an image takes: those of the linear layers.
        self.work = sum(
            math.prod(stage.grid) * sum(p.numel() for p in stage.parameters() if p.ndim == 2) for stage in stages
        )
        self.norm = build_norm(block.norm, dim, model.norm_eps)
        self.head = nn.Linear(dim, classes)
        self.apply(_initialise)
        if model.init == "fan_in":
            _by_fan_in(self.layers)
        if attention.init == "mimetic":  # after all others, which so begin as they do without it
            for module in self.modules():
                if isinstance(module, WindowAttention):
                    module.begin_mimetic()
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=STD)

    @property
    def compiled(self) -> bool:
        """Whether `compile` was called."""
        return self._compiled_call_impl is not None

    def uncompile(self) -> None:
        """Undo `compile`, of what is `resized` too."""
        for network in (self, *self._resized.values()):
            network._compiled_call_impl = None

    def resized(self, side: int) -> Swin:
        """This network for smaller square images: the same parameters and statistics, not copies of them. Made once.

        Where windows are cut down to a smaller map, they take the inner part of the bias tables.
        Raises `ValueError` for larger images, and for learnt absolute positions, which are of one size.
        """
        if side > min(self.image_size) or self.absolute_pos_embed is not None:
            height, width = self.image_size
            raise ValueError(f"a network for {height}×{width} pixels has no positions for images of {side}×{side}")
        if side not in self._resized:
            with torch.random.fork_rng(devices=[]):
                other = Swin(*self.parts, side, self.head.out_features, self.windows)
            other.to(self.head.weight.device)
            kept = self.state_dict().keys()
            for name, mine in self.named_modules():
                theirs = other.get_submodule(name)
                for key, parameter in mine.named_parameters(recurse=False):
                    setattr(theirs, key, parameter)
                for key, buffer in mine.named_buffers(recurse=False):
                    if f"{name}.{key}".lstrip(".") in kept:
                        setattr(theirs, key, buffer)
            self._resized[side] = other
        return self._resized[side]

    def stages(self) -> Iterator[Stage]:
        """One after the other."""
        return (stage for stage in self.layers if isinstance(stage, Stage))

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> (B, P, C), what the first block gets. Raises `ValueError` for other images."""
        if images.shape[1:] != (3, *self.image_size):
            expected = " × ".join(str(side) for side in ("B", 3, *self.image_size))
            raise ValueError(f"images must be {expected}, and these are {' × '.join(map(str, images.shape))}")
        x = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            x = x + self.absolute_pos_embed[:, self.patch_embed.order]
        return x

    def draw_drop_path(self, images: int, generator: Generator) -> Tensor | None:
        """(blocks, 2, images, 1, 1): what drop path draws for a whole batch, so that parts of it train as the whole.

        Nothing when no block drops anything. `generator` is on the device of the network.
        """
        if not self.drops:
            return None
        shape, like = (len(self.keeps), 2, images, 1, 1), self.keeps
        drawn = torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)
        return (drawn < like).to(like.dtype).div_(like)

    def forward(self, images: Tensor, factors: Tensor | None = None) -> Tensor:
        """(B, 3, height, width) -> logits (B, classes); `factors` (blocks, 2, B, 1, 1) are of `draw_drop_path`"""
        return self.logits(self.tokens(images), factors)

    def logits(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """(B, P, C), the `tokens` -> (B, classes)"""
        done = 0
        for stage in self.stages():
            depth = len(stage.blocks)
            x = stage(residual(x), None if factors is None else factors[done : done + depth])
            done += depth
        logits: Tensor = self.head(self.norm(x).mean(dim=1))
        return logits


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, PatchEmbedding) and isinstance(module.proj, nn.Linear):
        # As that of a convolution begins: else a patch without edges is a token of zeros, whose length norms divide by.
        bound = module.proj.in_features**-0.5
        nn.init.uniform_(module.proj.bias, -bound, bound)
    elif isinstance(module, WindowAttention) and module.attention.position_bias == "table":
        nn.init.trunc_normal_(module.relative_position_bias_table, std=STD)
    elif isinstance(module, SwinBlock) and not module.normed_first:
        # Every block begins as the identity: what Swin V2's code does for stability at large sizes.
        for norm in (module.norm1, module.norm2):
            nn.init.zeros_(norm.weight)  # type: ignore[arg-type]


@torch.no_grad()
def _by_fan_in(stages: nn.Module) -> None:
    """Weights of std 1/√(inputs) for the linear layers of MLPs and merges, from those that `_initialise` drew."""
    for name, layer in stages.named_modules():
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in BY_FAN_IN:
            layer.weight.mul_(layer.in_features**-0.5 / STD)
