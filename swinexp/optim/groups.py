"""Which parameters an optimizer treats alike."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from swinexp.optim.options import Muon, Optimizer

BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.")
# Named as in Swin's and Swin V2's own code, which do not decay them either (temperature: their like).
UNDECAYED = ("relative_position_bias_table", "absolute_pos_embed", "cpb_mlp", "logit_scale", "temperature")


@dataclass(frozen=True)
class Group:
    """Parameters of one learning rate and one weight decay, by their names. `algorithm` is what moves them."""

    name: str
    parameters: tuple[str, ...]
    algorithm: str
    peak_lr: float
    weight_decay: float


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices and kernels: not for biases, norms, factors, positions and their biases."""
    return parameter.ndim >= 2 and not any(part in name for part in UNDECAYED)


def orthogonal(name: str, parameter: nn.Parameter) -> bool:
    """Muon is for the linear maps between hidden tokens: those of blocks and merges."""
    hidden = re.match(r"layers\.\d+\.(blocks|downsample)\.", name) is not None
    return hidden and parameter.ndim == 2 and decays(name, parameter)


def layer(name: str, depths: list[int]) -> int:
    """How deep a parameter lies: 0 for the patch embedding, 1 for the first block, one more than blocks for the head.

    `depths` counts the blocks of each stage; a merge lies with the last block before it, the last norm with the head.
    So layer-wise lr decay (arXiv 2106.08254) counts in Swin's case (arXiv 2111.09886).
    """
    if name.startswith(("patch_embed.", "absolute_pos_embed")):
        return 0
    block = BLOCK.match(name)
    if block:
        return sum(depths[: int(block[1])]) + int(block[2]) + 1
    merge = re.match(r"layers\.(\d+)\.", name)
    return sum(depths[: int(merge[1]) + 1]) if merge else sum(depths) + 1


def parameter_groups(config: Optimizer, model: nn.Module) -> list[Group]:
    """The table an optimizer is built from: every trainable parameter once, the head's end first.

    So layer decay leaves the first row's lr as it is. A row without parameters is left out.
    """
    named = dict(model.named_parameters())  # the frozen ones too: they count as layers
    stages = [stage for stage, _ in {(int(b[1]), int(b[2])) for b in map(BLOCK.match, named) if b}]
    depths = [stages.count(i) for i in range(len(set(stages)))]
    rows: dict[tuple[int, bool, bool], list[str]] = {}
    for name, p in named.items():
        if p.requires_grad:
            below = sum(depths) + 1 - layer(name, depths) if config.layer_decay < 1 else 0
            rest = isinstance(config, Muon) and not orthogonal(name, p)
            decayed = p.ndim >= 2 if config.decay == "all_2d" else decays(name, p)
            rows.setdefault((below, rest, not decayed), []).append(name)
    groups = []
    for (below, rest, spared), names in sorted(rows.items()):
        algorithm = "adamw" if rest else config.name
        lr = config.adamw_lr if isinstance(config, Muon) and rest else config.lr
        words = [
            *([f"layer {sum(depths) + 1 - below}"] if config.layer_decay < 1 else []),
            *([algorithm] if isinstance(config, Muon) else []),
            "not decayed" if spared else "decayed",
        ]
        decay = 0.0 if spared else config.weight_decay
        groups.append(Group(", ".join(words), tuple(names), algorithm, lr * config.layer_decay**below, decay))
    return groups
