"""A finished run looked at again: its figures on validation and test images, and pictures.

    python -m swinexp.evaluate run=outputs/runs/quickstart
    python -m swinexp.evaluate run=outputs/runs/cifar10 split=test checkpoint=best flips=true
    python -m swinexp.evaluate run=outputs/runs/quickstart pictures=confusion,attention images=12 blocks=all

split       val, test or both; without it what the run has read: validation, and test images if it has read them
checkpoint  last (the default), best (of the epoch with the best validation accuracy), ema (the average of the weights)
flips=true  also the figures of the mean of each image's logits and its mirror's, as flips/…
pictures    confusion: how often each class is taken for each; attention: for images evenly from all classes (images=8)
            how much each token is attended to by its window, in the last block of every stage (or blocks=all), and
            the rollout of all blocks together
data.root=FOLDER, data.on_error=skip
            where the run's images are now, if they were moved, and that those are left out which cannot be read

All figures go into evaluation/ in the run's folder as <split>-<checkpoint>.json, pictures beside them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from omegaconf import MISSING

from swinexp.archive import CHECKPOINTS, check_data, fill, reloaded, requested, weights
from swinexp.folder import Folder, write_atomically
from swinexp.mistake import Mistake, check, one_of
from swinexp.reading import Reading, averaged, outputs, read
from swinexp.run import reported

if TYPE_CHECKING:
    from rich.table import Table

    from swinexp.config import Run
    from swinexp.data import Data, Dataset
    from swinexp.swin import Swin

SPLITS = ("val", "test", "both")
PICTURES = ("attention", "confusion")
BLOCKS = ("last", "all")
TABLE = 20  # classes that the table shows


@dataclass
class Images:
    """Where a run's images are, and what becomes of those that cannot be read; None as the run had it."""

    root: str | None = None
    on_error: str | None = None


@dataclass
class Request:
    """What the command asks for; several pictures are separated by commas.

    `images` (8 where not given) and `blocks` (last) are those of the picture attention.
    """

    run: str = MISSING
    split: str | None = None
    checkpoint: str = "last"
    flips: bool = False
    pictures: str | None = None
    images: int | None = None
    blocks: str | None = None
    data: Images = field(default_factory=Images)

    def __post_init__(self) -> None:
        if self.split is not None:
            one_of("split", self.split, SPLITS)
        one_of("checkpoint", self.checkpoint, CHECKPOINTS)
        for picture in self.drawn:
            one_of("pictures", picture, PICTURES)
        if self.images is not None:
            check(1 <= self.images <= 100, "images", self.images, "1 to 100 images in a picture", "images=8")
        if self.blocks is not None:
            one_of("blocks", self.blocks, BLOCKS)
        for key, value in (("images", self.images), ("blocks", self.blocks)):
            drawn = ",".join(dict.fromkeys([*self.drawn, "attention"]))
            unused = "it is for the picture attention, which is not drawn"
            check(value is None or "attention" in self.drawn, key, value, unused, f"pictures={drawn}")

    @property
    def drawn(self) -> list[str]:
        return [] if self.pictures is None else self.pictures.split(",")


def moved(data: Data, images: Images) -> Data:
    """A run's options of data with what replaces them. Raises `Mistake`."""
    changes = {key: value for key, value in asdict(images).items() if value is not None}
    for key, value in changes.items():
        check(hasattr(data, key), f"data.{key}", value, f"data={data.name} has no such key", "the command without it")
    return replace(data, **changes)


def restored(run: Run, folder: Path, checkpoint: str) -> tuple[Swin, Dataset, int]:
    """(network, data, epoch) of a run with the weights of a checkpoint. Raises `Mistake`."""
    from swinexp.train import prepare

    kept, epoch = weights(folder, checkpoint)  # before the data, which may take minutes
    model, dataset = prepare(run, resuming=True)
    check_data(folder, dataset, "Bring its images back, or train it again")
    fill(model, kept, folder)
    return model.eval(), dataset, epoch


def table(readings: Sequence[Reading], classes: list[str]) -> Table:
    """The accuracy on each class; of many classes, on those that the first reading is worst at."""
    from rich.table import Table

    columns = {reading.name: reading.per_class for reading in readings}
    labels = list(range(len(classes)))
    if len(classes) > TABLE:
        worst = [math.inf if value is None else value for value in next(iter(columns.values()))]
        labels = sorted(labels, key=worst.__getitem__)[:TABLE]
    drawn = Table()
    drawn.add_column("accuracy on" if len(classes) <= TABLE else f"accuracy on the worst {TABLE}")
    for name in columns:
        drawn.add_column(name, justify="right")
    for label in labels:
        values = (column[label] for column in columns.values())
        drawn.add_row(classes[label], *("no image" if value is None else f"{value:.4f}" for value in values))
    if len(classes) > TABLE:
        drawn.add_row(f"… {len(classes) - TABLE} more")
    return drawn


def written(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file of the evaluation, and print where. Raises `Mistake` where that cannot be."""
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, write)
    except OSError as error:
        raise Mistake(f"{path}: cannot be written ({error.strerror}). Make room there, or copy the run") from error
    print(path)


def evaluate_run(request: Request) -> None:
    """Print the figures, write them down, and draw the pictures that were asked for."""
    from rich.console import Console

    from swinexp.pictures import draw_attention, draw_confusion
    from swinexp.sheet import need_matplotlib
    from swinexp.track import chip

    folder = Path(request.run)
    if request.drawn:
        need_matplotlib(f"pictures={request.pictures}")
    tested = "test/accuracy" in (Folder(folder).summary or {})
    test = tested if request.split is None else request.split != "val"
    run = reloaded(folder, objective="val/accuracy", test=test)  # which any run has, tested or not
    run = replace(run, data=moved(run.data, request.data))
    check(
        run.data.mirror or not request.flips,
        "flips",
        request.flips,
        f"a mirrored image of {run.data.name} is another one (data.mirror=false)",
        "flips=false",
    )
    model, dataset, epoch = restored(run, folder, request.checkpoint)
    device = dataset.mean.device
    splits = {} if request.split == "test" else {"val": dataset.val}
    if dataset.test is not None:
        splits["test"] = dataset.test
    readings = []
    for name, split in splits.items():
        plain = outputs(run, model, split.to(device), dataset)
        named = name if request.checkpoint == "last" else f"{request.checkpoint}/{name}"
        readings.append((name, "", read(plain, named)))
        if request.flips:
            mirrored = outputs(run, model, split.to(device), dataset, mirror=True)
            readings.append((name, "-flips", read(averaged(plain, mirrored), f"flips/{named}")))
    print(f"{run.name}: checkpoint {request.checkpoint}, after epoch {epoch}, on {chip(device)}")
    for *_, reading in readings:
        line = "  ".join(f"{key} {value:.4f}" for key, value in reading.figures.items())
        print(f"{line}  ({int(reading.confusion.sum()):,} images)")
    Console().print(table([reading for *_, reading in readings], dataset.classes))
    about = {"run": run.name, "checkpoint": request.checkpoint, "epoch": epoch, "device_name": chip(device)}
    for name, flips, reading in readings:
        stem = folder / "evaluation" / f"{name}-{request.checkpoint}{flips}"
        written(Path(f"{stem}.json"), partial(reading.write, about=about, classes=dataset.classes))
        if "confusion" in request.drawn:
            title = f"{run.name}, {name}{flips.replace('-', ' with ')}, checkpoint {request.checkpoint}"
            figure = draw_confusion(reading.confusion, dataset.classes, title)
            written(Path(f"{stem}-confusion.png"), partial(figure.savefig, format="png"))
        if "attention" in request.drawn and not flips:
            figure = draw_attention(model, dataset, splits[name], request.images or 8, request.blocks or "last")
            written(Path(f"{stem}-attention.png"), partial(figure.savefig, format="png"))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        print(__doc__)
        return
    with reported(given):
        evaluate_run(requested(Request, given))


if __name__ == "__main__":
    main()
