"""A run read back from its folder: its config, the weights of a checkpoint, and what its data were like."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from swinexp import CONF
from swinexp.folder import candidates, kept
from swinexp.mistake import Mistake, first_line, flag_meant, one_line

if TYPE_CHECKING:
    from torch import Tensor

    from swinexp.config import Run
    from swinexp.data import Dataset
    from swinexp.swin import Swin

CHECKPOINTS = ("last", "best", "ema")  # ema: the average of the weights that last.pt holds beside them

ALIKE = 2e-5  # how far apart the means of the same images may be: decoders of JPEG round in their own ways

T = TypeVar("T")


def requested(kind: type[T], arguments: Sequence[str]) -> T:
    """A command line of KEY=VALUE as the dataclass that a command takes. Raises OmegaConf's errors, and `Mistake`."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    cfg = OmegaConf.structured(kind)
    for argument in arguments:
        if argument.startswith("-"):
            instead = flag_meant(argument, ["--help"], [*map(str, cfg)]) or "KEY=VALUE, or --help"
            raise Mistake(f"{argument}: there are no options but KEY=VALUE. Type {instead}")
        if "=" not in argument:
            instead = f"{argument}=VALUE" if argument in cfg else f"{next(iter(cfg))}={argument}"
            raise Mistake(f"{argument}: KEY=VALUE is wanted. Type {instead}")
        key, _, given = argument.partition("=")
        if key in cfg and OmegaConf.is_dict(within := OmegaConf.select(cfg, key)):
            raise Mistake(
                f"{argument}: {key} has {', '.join(map(str, within))}. Type {key}.{next(iter(within))}={given}"
            )
        try:
            cfg = OmegaConf.merge(cfg, OmegaConf.from_dotlist([argument]))
        except YAMLError as error:
            raise Mistake(f"{argument}: cannot be read ({one_line(error)}). Type \"{key}='{given}'\"") from error
    if OmegaConf.is_missing(cfg, "run"):
        raise Mistake(f"run: whose network? Type run={some_run()}")
    request = OmegaConf.to_object(cfg)
    assert isinstance(request, kind)
    return request


def some_run(typed: Path | None = None) -> Path | str:
    """A run below outputs/ that may have been meant: about or within what was typed, called like it, or the newest."""
    there = sorted(Path("outputs").glob("*/**/checkpoints/last.pt"), key=lambda path: path.stat().st_mtime)
    runs = [path.parent.parent for path in there]
    if typed is not None:
        near = [run for run in runs if run in typed.parents or typed in run.parents]
        best = _best(typed)
        near = [run for run in near if run in (best, best / "seed0")] or near
        near = near or [run for run in runs if run.name == typed.name]
        names = difflib.get_close_matches(str(typed), [str(run) for run in runs], n=1, cutoff=0.8)
        runs = near or [Path(name) for name in names] or runs
    return runs[-1] if runs else "FOLDER"


def _best(sweep: Path) -> Path:
    """The folder of the trial that a sweep's best.yaml is of; of another folder, itself."""
    try:
        head = (sweep / "best.yaml").read_text().partition("\n")[0]
    except (OSError, ValueError):
        return sweep
    trial = re.search(r": trial (\d+), ", head)
    return sweep / trial[1] if trial else sweep


def reloaded(folder: Path, **changes: Any) -> Run:
    """The config of a run, with changes, on the device that it names, or on another where this machine lacks that.

    Raises `Mistake`.
    """
    from omegaconf import OmegaConf

    from swinexp.config import typed
    from swinexp.train import pick_device

    if not (folder / "config.yaml").exists() or not candidates(folder / "checkpoints" / "last.pt"):
        raise Mistake(f"run={folder}: there is no run with a checkpoint. Type run={some_run(folder)}")
    silent = OmegaConf.load(CONF / "wandb" / "disabled.yaml")  # a run of before may lack keys of that group
    run = typed(OmegaConf.merge(kept(folder / "config.yaml"), {"wandb": silent}, changes))  # type: ignore[arg-type]
    try:
        pick_device(run.trainer)
    except Mistake:
        run = replace(run, trainer=replace(run.trainer, device="auto"))
    return run


def weights(folder: Path, checkpoint: str) -> tuple[dict[str, Tensor], int]:
    """(the network's weights, the epoch after which they were written). Raises `Mistake`."""
    import torch

    from swinexp.train.checkpoint import read

    path = folder / "checkpoints" / ("best.pt" if checkpoint == "best" else "last.pt")
    if not path.exists():
        there = "best" if checkpoint == "last" else "last"
        raise Mistake(f"checkpoint={checkpoint}: there is no {path}. Type checkpoint={there}")
    try:
        saved = read(path, torch.device("cpu"))
        kept, averaged, epoch = saved["model"], saved.get("ema"), len(saved["history"])
    except Exception as error:  # a damaged file raises almost anything
        other = checkpoint != "best" and (folder / "checkpoints" / "best.pt").exists()
        instead = "Type checkpoint=best" if other else "Train the run again"
        raise Mistake(f"run={folder}: {path} cannot be read ({first_line(error)}). {instead}") from error
    if checkpoint == "ema":
        if averaged is None:
            raise Mistake(f"checkpoint=ema: {path} holds no average of the weights. Type checkpoint=last")
        kept = {**kept, **averaged}  # what cannot be averaged, such as a count, is not in the average
    return kept, epoch


def fill(model: Swin, kept: dict[str, Tensor], folder: Path) -> None:
    """Give a network the weights of a checkpoint. Raises `Mistake` unless they are its own."""
    try:
        model.load_state_dict(kept)
    except RuntimeError as error:  # its first line only says so
        problem = one_line(error).partition(": ")[2]
        raise Mistake(f"run={folder}: its weights do not fit its network ({problem}). Train the run again") from error


class Known(NamedTuple):
    """What a run's data.json holds: classes, mean (3,) and std (3,) to the last bit, and how many images of each class
    its splits had, which it does not tell of runs from earlier."""

    classes: list[str]
    mean: Tensor
    std: Tensor
    images: dict[str, list[int]]


def kept_data(folder: Path) -> Known | None:
    """What is known of a run's data; None where there is no whole file, as of runs from before it was written."""
    import torch

    try:
        kept = json.loads((folder / "data.json").read_text())
        classes = [str(name) for name in kept["classes"]]
        return Known(classes, torch.tensor(kept["mean"]), torch.tensor(kept["std"]), kept.get("images", {}))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_data(folder: Path, dataset: Dataset, instead: str) -> None:
    """Raise `Mistake` when the data are not those that a run was trained on, as far as its data.json tells.

    They may be cut otherwise too, and validation images then be ones that it was trained on.
    """
    known = kept_data(folder)
    difference = None if known is None else _difference(known, dataset)
    if difference is not None:
        raise Mistake(f"{folder}: {difference}; its validation images may be ones that it was trained on. {instead}")


def _difference(known: Known, dataset: Dataset) -> str | None:
    if known.classes != dataset.classes:
        differ = ", ".join(sorted({*known.classes} ^ {*dataset.classes})) or "their order"
        return f"the classes of its data have changed ({differ})"
    for name, counts in dataset.counts.items():
        before = known.images.get(name, counts)
        if sum(before) != sum(counts):
            return f"its data had {sum(before):,} {name} images and have {sum(counts):,} now"
        if before != counts:
            return f"its data have other {name} images of some classes"
    apart = max(float((a - b.cpu()).abs().max()) for a, b in ((known.mean, dataset.mean), (known.std, dataset.std)))
    return "the images of its data have changed" if apart > ALIKE else None
