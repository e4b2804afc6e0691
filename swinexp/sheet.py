"""What training sees: images beside views of them as a run's augmentation makes them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from swinexp.mistake import Mistake, check

if TYPE_CHECKING:
    from torch import Tensor

    from swinexp.config import Run
    from swinexp.data import Dataset

IMAGES = 8  # rows of a contact sheet
VIEWS = 8  # augmented views in each row


def picture_path(typed: str) -> Path:
    """The file of a picture that was asked for by `--out`; PNG where its name has no ending. Raises `Mistake`."""
    from matplotlib.figure import Figure

    path = Path(typed)
    path = path if path.suffix else path.with_suffix(".png")
    kinds = sorted(Figure().canvas.get_supported_filetypes())
    told = f"pictures end in one of {', '.join(f'.{kind}' for kind in kinds)}"
    check(path.suffix[1:].lower() in kinds, "--out", typed, told, f"--out={path.with_suffix('.png')}")
    there = next(each for each in path.absolute().parents if each.exists())
    good = there.is_dir() and os.access(there, os.W_OK)
    check(good, "--out", typed, f"{os.path.relpath(there)} is no folder to write in", "--out=FILE.png")
    return path


def need_matplotlib(wanted: str) -> None:
    """Raise `Mistake` when pictures cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise Mistake(f"{wanted}: matplotlib is not installed. Type pip install 'swinexp[plots]'")


def spread(labels: Tensor, count: int) -> Tensor:
    """(count,): indices of the first image of each class, then of the second of each, and so on."""
    import torch

    one_hot = torch.nn.functional.one_hot(labels)
    turn = (one_hot.cumsum(dim=0) * one_hot).sum(dim=1)  # which image of its class it is
    return (turn * one_hot.shape[1] + labels).argsort()[:count]


def draw_sheet(run: Run, dataset: Dataset, path: Path) -> None:
    """Draw a contact sheet of training images: each beside augmented views, with the labels that the loss gets."""
    import torch
    from matplotlib.figure import Figure

    from swinexp.augment import mirrored_in_turn
    from swinexp.train import augmented, derive

    device, classes = dataset.mean.device, dataset.classes
    chosen = dataset.train[spread(dataset.train.labels, IMAGES)].to(device)
    generator = torch.Generator(device)
    rows = len(chosen.labels)
    figure = Figure(figsize=(1.25 * (VIEWS + 1), 1.55 * rows + 0.4), layout="constrained", dpi=110)
    cells = figure.subplots(rows, VIEWS + 1, squeeze=False)
    for row, (image, label) in enumerate(zip(chosen.images.cpu(), chosen.labels.tolist(), strict=True)):
        cells[row, 0].imshow(image.permute(1, 2, 0).numpy())
        cells[row, 0].set_xlabel(_short(classes[label]), fontsize=8, fontweight="bold")
    for view in range(VIEWS):
        mirrored = None
        if run.augmentation.flip_in_turn:
            mirrored = mirrored_in_turn(rows, view, generator.manual_seed(derive(run.seed, "flip")))
        pixels, weights = augmented(run, dataset, chosen, derive(run.seed, "sheet", view), mirrored)
        pixels = (pixels * dataset.std[:, None, None] + dataset.mean[:, None, None]).clamp(0, 1).cpu()
        for row, (image, weight) in enumerate(zip(pixels, weights.cpu(), strict=True)):
            cells[row, view + 1].imshow(image.permute(1, 2, 0).numpy())
            cells[row, view + 1].set_xlabel(_label(weight, classes), fontsize=7)
    for cell in cells.flat:
        cell.set(xticks=[], yticks=[])
    cells[0, 0].set_title("original", fontsize=8)
    cells[0, 1].set_title("as the network sees it", fontsize=8, loc="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _label(weights: Tensor, classes: list[str]) -> str:
    """The classes of an image, with their shares where there are two."""
    shares, labels = weights.topk(min(2, len(weights)))
    named = [_short(classes[label]) for label in labels.tolist()]
    if len(named) == 1 or shares[1] < 0.005:
        return f"{named[0]}\n"
    return "\n".join(f"{name} {100 * share:.0f} %" for name, share in zip(named, shares.tolist(), strict=True))


def _short(name: str) -> str:
    return name if len(name) <= 10 else f"{name[:9]}…"


def report(run: Run, out: str) -> None:
    """Print what a run's data are, and draw its contact sheet there. Raises `Mistake`."""
    from rich.console import Console
    from rich.table import Table

    from swinexp.data import load
    from swinexp.data.options import ImageFolder
    from swinexp.train import as_the_network_sees

    need_matplotlib("contact sheet")
    path = picture_path(out)
    folder = run.data.root if isinstance(run.data, ImageFolder) else None
    tested = folder is None or Path(folder, "test").expanduser().is_dir()  # which training does not need
    dataset = load(run.data, tested, run.trainer.limit_train)
    splits = {"train": dataset.train, "validation": dataset.val}
    if dataset.test is not None:
        splits["test"] = dataset.test
    table = Table()
    table.add_column("class")
    for name in splits:
        table.add_column(name, justify="right")
    counts = [split.labels.bincount(minlength=len(dataset.classes)).tolist() for split in splits.values()]
    shown = 20
    for name, *numbers in list(zip(dataset.classes, *counts, strict=True))[:shown]:
        table.add_row(name, *(f"{number:,}" for number in numbers))
    if len(dataset.classes) > shown:
        table.add_row(f"… {len(dataset.classes) - shown} more")
    table.add_section()
    table.add_row("all", *(f"{len(split):,}" for split in splits.values()), style="bold")
    console = Console()
    size = run.data.image_size
    print(f"{len(dataset.classes)} classes, images of {size}×{size} pixels")
    console.print(table)
    for name, values in (("mean", dataset.mean), ("std", dataset.std)):
        print(f"{name} of the training pixels: " + ", ".join(f"{value:.4f}" for value in values.tolist()))
    try:
        draw_sheet(run, as_the_network_sees(run, dataset), path)
    except OSError as error:
        raise Mistake(f"--out={out}: cannot be written ({error.strerror}). Type --out=FILE.png") from error
    print(path)
