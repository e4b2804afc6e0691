"""Weights from files: of swinexp, timm, torchvision and Microsoft, and for other windows, patches and classes.

Nothing that a file holds is ever executed, and a network gets all of its weights or none.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from swinexp.mistake import Mistake, check, first_line, nearest, shown
from swinexp.swin.network import Swin

KEY = "model.pretrained"
WRAPPINGS = ("model", "state_dict", "model_state_dict")  # under which training scripts keep the weights
PREFIXES = r"^((module|_orig_mod)\.)+"  # left behind by parallel training and by torch.compile
OFFSETS = "relative_coords_table"
COMPUTED = ("relative_position_index", OFFSETS, "attn_mask", "k_bias")  # made anew by every network


@dataclass(frozen=True)
class Weights:
    """The tensors of a file, by the names that they have there."""

    path: Path
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Report:
    """What became of each tensor of a network: `resized` gives the shapes, there → here."""

    source: str
    loaded: list[str]
    resized: dict[str, str]
    fresh: list[str]

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.resized) + len(self.fresh)
        parts = [f"{len(self.loaded)} of {total} tensors loaded ({self.source})"]
        if self.resized:
            parts.append("resized: " + ", ".join(f"{name} {change}" for name, change in _grouped(self.resized)))
        if self.fresh:
            parts.append(f"left fresh: {', '.join(self.fresh)}")
        return "; ".join(parts)


def load_pretrained(model: Swin, path: str | Path) -> Report:
    """`fit` with what `read` finds in a file."""
    return fit(model, read(path))


def fit(model: Swin, weights: Weights) -> Report:
    """Give `model` these weights, resized where that is meaningful.

    Bias tables and absolute positions are resized bicubically, a patch embedding so that it answers to a resized patch
    as it did to the patch; a head for another number of classes is left fresh. Everything else must fit.
    Raises `Mistake` naming what does not, and then nothing is loaded.
    """
    found, source = translated(weights.tensors)
    wanted = model.state_dict()
    fitting: dict[str, Tensor] = {}
    resized, fresh, wrong = {}, [], []
    if _scaled_otherwise(model, weights.tensors):
        raise Mistake(
            f"{KEY}={weights.path}: its continuous position bias takes offsets on the scale of other windows, which it "
            "was trained with before. Type a file that was trained with windows of one size"
        )
    for name, here in wanted.items():
        there = found.pop(name, None)
        if name.startswith("head.") and (there is None or _of_other_classes(there, here)):
            fresh.append(name)
            continue
        if there is None:
            wrong.append((name, "is missing"))
            continue
        change = f"{_shape(there)} → {_shape(here)}"
        if there.shape != here.shape:
            fitted = next((by(there, here.shape) for end, by in _RESIZED.items() if name.endswith(end)), None)
            if fitted is None:
                wrong.append((name, f"has another shape ({change})"))
                continue
            there, resized[name] = fitted, change
        if not torch.isfinite(there).all():
            wrong.append((name, "holds values that are not finite"))
        fitting[name] = there
    wrong += [(name, "has no place") for name in found]
    if wrong:
        raise Mistake(
            f"{KEY}={weights.path}: these weights ({source}) do not fit this network: {_listed(wrong)}. "
            "Type the model, window, patch, attention and block that they were made with"
        )
    model.load_state_dict({**wanted, **fitting})
    return Report(source, [name for name in fitting if name not in resized], resized, fresh)


def _scaled_otherwise(model: Swin, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file's offsets for windows of the same size are others than ours, in any block in which it has them."""
    theirs = [value.flatten() for name, value in tensors.items() if name.endswith(OFFSETS)]
    ours = [value.flatten().cpu() for name, value in model.named_buffers() if name.endswith(OFFSETS)]
    return len(theirs) == len(ours) and any(
        one.shape == other.shape and not torch.allclose(one.float(), other.float(), atol=1e-3)
        for one, other in zip(theirs, ours, strict=True)
    )


def _of_other_classes(there: Tensor, here: Tensor) -> bool:
    return there.ndim == here.ndim and there.shape[1:] == here.shape[1:] and there.shape != here.shape


def read(path: str | Path) -> Weights:
    """The weights of a safetensors file, or of one that torch saved. Raises `Mistake`."""
    path = Path(path).expanduser()
    last = path / "checkpoints" / "last.pt"
    if path.is_dir():
        there = f"Type {KEY}={last}" if last.exists() else f"Type {KEY}=FILE"
        raise Mistake(f"{KEY}={path}: this is a folder, and a file is needed. {there}")
    if not path.exists():
        raise Mistake(f"{KEY}={path}: there is no such file. Type {KEY}=FILE, or {KEY}=null for none")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises almost anything
        reason = first_line(error)
        if "Unsupported operand" in str(error) or not re.search("[A-Za-z]", reason):  # figures of the unpickler's
            reason = "it is a file of another kind, or damaged"
        elif "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it holds Python objects, which are never loaded because that can run any code"
        raise Mistake(
            f"{KEY}={path}: it cannot be read as weights ({reason}). Save them as safetensors, or with "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    for key in WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor) and isinstance(name, str):
            dense = value.layout == torch.strided
            check(dense, KEY, path, f"{name} is no dense tensor ({value.layout})", f"{KEY}=FILE of dense ones")
            tensors[re.sub(PREFIXES, "", name)] = value
    if not tensors:
        raise Mistake(f"{KEY}={path}: there are no weights in it. Save them with torch.save(model.state_dict(), FILE)")
    return Weights(path, tensors)


def translated(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The weights under our names, without what every network computes itself, and whose names they had."""
    kept = {name: value for name, value in weights.items() if not name.endswith(COMPUTED)}
    rename: Callable[[str], str]
    if any(name.startswith("features.") for name in kept):
        source, rename = "torchvision's names", _from_torchvision
    elif any(name.startswith("head.fc.") for name in kept) or _merges_first(kept):
        source, rename = "timm's names", _from_timm
    else:
        source, rename = "Microsoft's names, which are ours", str
    ours = {rename(name): value for name, value in kept.items()}
    for name in [name for name in ours if name.endswith("attn.q_bias")]:  # of Swin V2: k has none
        attention = name.removesuffix("q_bias")
        q, v = ours.pop(name), ours.pop(f"{attention}v_bias", None)
        if v is not None:
            ours[f"{attention}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return ours, source


def _merges_first(names: Iterable[str]) -> bool:
    """Whether the second stage merges and the first one does not, as in a file of timm without a head."""
    merging = {name.split(".")[1] for name in names if ".downsample." in name}
    return bool(merging) and "0" not in merging


def _from_timm(name: str) -> str:
    """timm merges at the beginning of a stage, we at the end of the one before."""
    name = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
    return name.replace("head.fc.", "head.")


def _from_torchvision(name: str) -> str:
    name = re.sub(r"^features\.0\.0\.", "patch_embed.proj.", name)
    name = re.sub(r"^features\.0\.2\.", "patch_embed.norm.", name)
    name = re.sub(r"^features\.(\d*[13579])\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.", name)
    name = re.sub(r"^features\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2 - 1}.downsample.", name)
    return name.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")


def resize_table(table: Tensor, shape: Sequence[int]) -> Tensor | None:
    """A bias table for another window: ((2w-1)², N) -> `shape`, or None where that cannot be."""
    if table.ndim != 2 or len(shape) != 2:
        return None
    (entries, heads), (wanted, wanted_heads) = table.shape, shape
    there, here = math.isqrt(entries), math.isqrt(wanted)
    if heads != wanted_heads or there**2 != entries or here**2 != wanted:
        return None
    grid = table.float().T.reshape(1, heads, there, there)
    return F.interpolate(grid, (here, here), mode="bicubic", align_corners=False).reshape(heads, -1).T


def _resize_positions(positions: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Absolute positions (1, P, C) of a square map for another one."""
    if positions.ndim != 3 or positions.shape[2] != shape[2]:
        return None
    resized = resize_table(positions[0], shape[1:])
    return None if resized is None else resized[None]


def resize_patch(kernel: Tensor, shape: Sequence[int]) -> Tensor | None:
    """A patch embedding for patches of another size: (C, 3, p, p) -> `shape`, or None where that cannot be.

    A bicubically resized patch gets, as nearly as can be, the token that the patch got: the pseudo-inverse
    resize of arXiv 2212.08013.
    """
    if kernel.ndim != 4 or kernel.shape[:2] != tuple(shape[:2]):
        return None
    there, here = kernel.shape[2:], tuple(shape[2:])
    patches = torch.eye(math.prod(there)).view(-1, 1, *there)
    resize = F.interpolate(patches, here, mode="bicubic", align_corners=False, antialias=True).flatten(1)
    resized = kernel.float().flatten(2) @ torch.linalg.pinv(resize).T
    return resized.view(*shape)


_RESIZED: dict[str, Callable[[Tensor, Sequence[int]], Tensor | None]] = {
    "relative_position_bias_table": resize_table,
    "absolute_pos_embed": _resize_positions,
    "patch_embed.proj.weight": resize_patch,
}


def freeze(model: Swin, patterns: Iterable[str]) -> list[str]:
    """Train no parameter that one of `patterns` names: itself, a module above it, or either with wildcards.

    Returns the names of what is frozen. Raises `Mistake` when a pattern names nothing or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen = set()
    given = list(patterns)
    for pattern in given:
        matching = _matching(names, pattern)
        parts = ", ".join(name for name, _ in model.named_children())
        check(
            bool(matching),
            "model.freeze",
            pattern,
            f"no parameter has this name; the network has {parts}, and layers.0, layers.0.blocks.1 … within",
            f"model.freeze={shown([_meant(names, each) for each in given])}",
        )
        frozen.update(matching)
    check(
        len(frozen) < len(names),
        "model.freeze",
        given,
        "that leaves nothing to train",
        "model.freeze=[patch_embed,layers]",
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return [name for name in names if name in frozen]


def _matching(names: Sequence[str], pattern: str) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(above, pattern) for above in _above(name))]


def _meant(names: Sequence[str], pattern: str) -> str:
    """A pattern that names something; the nearest name for one that does not, or else the first."""
    above = [each for name in names for each in _above(name)]
    return pattern if _matching(names, pattern) else nearest(pattern, above)


def _above(name: str) -> list[str]:
    """A parameter's name and those of the modules that it is in."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _shape(tensor: Tensor) -> str:
    return "×".join(str(side) for side in tensor.shape) or "1"


def _grouped(changes: Mapping[str, str]) -> list[tuple[str, str]]:
    """Those of one kind and change together: 12 tables are one entry."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, change in changes.items():
        groups.setdefault((name.rpartition(".")[2], change), []).append(name)
    return [(same[0] if len(same) == 1 else f"{len(same)} {kind}s", c) for (kind, c), same in groups.items()]


def _listed(wrong: Sequence[tuple[str, str]], longest: int = 6) -> str:
    """Names by what is wrong with them."""
    problems: dict[str, list[str]] = {}
    for name, problem in wrong:
        problems.setdefault(problem, []).append(name)
    parts = []
    for problem, names in problems.items():
        more = f" and {len(names) - longest} more" if len(names) > longest else ""
        parts.append(f"{', '.join(names[:longest])}{more} {problem}")
    return "; ".join(parts)
