"""What the groups model, window, patch, attention and block decide, and whether it fits together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from swinexp.mistake import check, one_of, shown

EMBEDDINGS = ("linear", "conv", "spt")
SIMILARITIES = ("dot", "cosine", "qk_norm", "local")
POSITION_BIASES = ("table", "continuous", "none")
MODEL_INITS = ("normal", "fan_in")
PATCH_INITS = ("normal", "whitened")
ATTENTION_INITS = ("normal", "mimetic")
NORMS = ("layer", "rms")
PLACEMENTS = ("pre", "res_post")


@dataclass
class Model:
    """The size of the network, and the weights it begins with.

    `dim` channels after the patch embedding (they double at every stage), and for each stage its number of
    blocks and of attention heads. `drop_path` is the rate of the last block; the first has 0, and it grows
    linearly between them (stochastic depth, arXiv 1603.09382). `norm_eps` is that of every norm: 1e-6 in the
    reference network, 1e-5 in the paper's.
    `init` is how the linear layers of MLPs and merges begin: "normal", with weights of std 0.02 at any width, as in the
    paper's code, or "fan_in", of std 1/√(inputs), which keeps the size of what goes through them (LeCun et al.,
    Efficient BackProp, 1998).
    `pretrained` is a file of weights, `freeze` the names (or patterns of names) of what they are not trained in.
    """

    dim: int
    depths: list[int]
    heads: list[int]
    mlp_ratio: float
    drop_path: float
    norm_eps: float
    init: str
    pretrained: str | None
    freeze: list[str]

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
        widths = [self.dim * 2**stage for stage in range(len(self.heads))]
        fitting = [_fitting(heads, width) for heads, width in zip(self.heads, widths, strict=True)]
        for stage, (heads, width) in enumerate(zip(self.heads, widths, strict=True)):
            check(
                heads == fitting[stage],
                "model.heads",
                self.heads,
                f"{heads} heads do not divide the width of stage {stage + 1}, {width} (model.dim={self.dim})",
                f"model.heads={shown(fitting)}",
            )
        check(
            1 / self.dim <= self.mlp_ratio < math.inf,
            "model.mlp_ratio",
            self.mlp_ratio,
            "the MLP's width as a multiple of the block's, so that it has at least one channel",
            "model.mlp_ratio=2",
        )
        check(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "a rate in [0, 1)", "model.drop_path=0.1")
        check(0 < self.norm_eps < 1, "model.norm_eps", self.norm_eps, "small and positive", "model.norm_eps=1e-6")
        one_of("model.init", self.init, MODEL_INITS)
        check(
            self.pretrained != "",
            "model.pretrained",
            "''",
            "a file of weights, or null for none",
            "model.pretrained=null",
        )


@dataclass
class Window:
    """Attention within `size` × `size` tokens; `shift` moves every second block's windows by half of that."""

    size: int
    shift: bool

    def __post_init__(self) -> None:
        check(self.size >= 1, "window.size", self.size, "a window has at least one token", "window.size=4")


@dataclass
class Patch:
    """`size` × `size` pixels make one token, by one of `EMBEDDINGS`; `absolute_position` adds a learnt vector to it.

    `init` is how the first convolution begins: as all others, or "whitened", after the training images.
    """

    size: int
    embedding: str
    absolute_position: bool
    init: str

    def __post_init__(self) -> None:
        check(self.size >= 1, "patch.size", self.size, "a patch has at least one pixel", "patch.size=2")
        one_of("patch.embedding", self.embedding, EMBEDDINGS)
        one_of("patch.init", self.init, PATCH_INITS)
        check(
            self.embedding != "conv" or self.size & (self.size - 1) == 0,
            "patch.size",
            self.size,
            "convolutions of stride 2 (patch.embedding=conv) make patches of 1, 2, 4, 8 … pixels",
            f"patch.size={2 ** (self.size.bit_length() - 1)}",
        )
        check(
            self.embedding != "spt" or self.size >= 2,
            "patch.size",
            self.size,
            "shifted patches (patch.embedding=spt) move by half a patch, so they have at least 2 pixels",
            "patch.size=2",
        )
        check(
            self.init == "normal" or self.embedding == "conv",
            "patch.init",
            self.init,
            f"it is how a convolution of overlapping pixels begins, and patch.embedding={self.embedding} has none",
            "patch.embedding=conv, or patch.init=normal",
        )


@dataclass
class Attention:
    """How tokens of a window are compared (`similarity`), and what their offset adds to that (`position_bias`).

    `init` is how its matrices begin: as all others, or "mimetic". `lepe` adds a 3×3 convolution of the values to what
    attention makes of them.
    """

    similarity: str
    position_bias: str
    init: str
    lepe: bool

    def __post_init__(self) -> None:
        one_of("attention.similarity", self.similarity, SIMILARITIES)
        one_of("attention.position_bias", self.position_bias, POSITION_BIASES)
        one_of("attention.init", self.init, ATTENTION_INITS)


@dataclass
class Block:
    """What a block has around its attention and MLP.

    `norm` is the kind of every norm of the network; `placement` is before each branch, or after it (and after the
    linear map of a patch merging). `layer_scale` is where the learnt factors on each branch's channels begin; null is
    none. `depthwise_conv` puts a 3×3 convolution between the two layers of the MLP.
    """

    norm: str
    placement: str
    layer_scale: float | None
    depthwise_conv: bool

    def __post_init__(self) -> None:
        one_of("block.norm", self.norm, NORMS)
        one_of("block.placement", self.placement, PLACEMENTS)
        check(
            self.layer_scale is None or 0 < self.layer_scale < math.inf,
            "block.layer_scale",
            self.layer_scale,
            "a positive number, or null for none",
            "block.layer_scale=0.1",
        )


def check_fit(model: Model, window: Window, patch: Patch, image_size: int) -> None:
    """Raise `Mistake` unless patches divide the image, stages halve the grid, and windows divide every grid.

    A window at least as large as a later stage's grid is cut down to that grid, as in the paper's code.
    """
    halvings = len(model.depths) - 1
    unit = patch.size * 2**halvings
    fits = f"data.image_size={max(1, round(image_size / unit)) * unit}"
    sizes = [size for size in range(1, image_size + 1) if image_size % (size * 2**halvings) == 0]
    smaller = max((size for size in sizes if size < patch.size), default=None)
    check(
        image_size % patch.size == 0,
        "patch.size",
        patch.size,
        f"it does not divide the image of {image_size}×{image_size} pixels (data.image_size)"
        + (f"; {sizes} do, in a grid of {halvings + 1} stages" if sizes else ""),
        f"patch.size={smaller}, or {fits}" if smaller else fits,
    )
    grid = image_size // patch.size
    check(
        grid % 2**halvings == 0,
        "model.depths",
        model.depths,
        f"{halvings + 1} stages halve the grid {halvings} times, which {grid}×{grid} tokens do not allow "
        f"(data.image_size={image_size} / patch.size={patch.size})",
        f"{fits}, or fewer stages",
    )
    check(
        patch.init == "normal" or image_size >= 3,
        "patch.init",
        patch.init,
        f"its filters are of 3×3 pixels, and images of {image_size}×{image_size} (data.image_size)",
        "patch.init=normal",
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


def _fitting(heads: int, width: int) -> int:
    """The number of heads nearest to this one that divides a stage's width."""
    return min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - heads))
