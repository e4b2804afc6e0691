"""A finished run looked at again: its figures on the validation and test images, and pictures.

    python -m swinexp.evaluate run=outputs/runs/quickstart
    python -m swinexp.evaluate run=outputs/runs/quickstart pictures=attention
    python -m swinexp.evaluate run=outputs/runs/quickstart pictures=attention images=12 blocks=all

The weights are those of the run's last epoch. Pictures are drawn over test images, evenly from all classes, into
pictures/ in the run's folder: attention shows, for the last block of every stage (or for all), how much each token is
attended to by its window, and the rollout of all blocks together.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from swinexp.mistake import Mistake, check, one_of
from swinexp.run import reported

if TYPE_CHECKING:
    from swinexp.config import Run
    from swinexp.data import Dataset
    from swinexp.swin import Swin

PICTURES = ("attention",)
BLOCKS = ("last", "all")


@dataclass
class Request:
    """What the command asks for."""

    run: str = MISSING
    pictures: str | None = None
    images: int = 8
    blocks: str = "last"

    def __post_init__(self) -> None:
        if self.pictures is not None:
            one_of("pictures", self.pictures, PICTURES)
        check(1 <= self.images <= 100, "images", self.images, "1 to 100 images in a picture", "images=8")
        one_of("blocks", self.blocks, BLOCKS)


def requested(arguments: Sequence[str]) -> Request:
    """The request of a command line of KEY=VALUE. Raises OmegaConf's errors, and `Mistake`."""
    from omegaconf import OmegaConf

    cfg = OmegaConf.merge(OmegaConf.structured(Request), OmegaConf.from_dotlist(list(arguments)))
    request = OmegaConf.to_object(cfg)
    assert isinstance(request, Request)
    return request


def restored(folder: Path) -> tuple[Run, Swin, Dataset]:
    """A run with the weights of its last checkpoint and its data, test images included. Raises `Mistake`."""
    import torch
    from omegaconf import OmegaConf

    from swinexp.config import typed
    from swinexp.mistake import first_line
    from swinexp.train import prepare

    config, checkpoint = folder / "config.yaml", folder / "checkpoints" / "last.pt"
    if not config.exists() or not checkpoint.exists():
        others = sorted(Path("outputs").glob("*/**/checkpoints/last.pt"), key=lambda path: path.stat().st_mtime)
        newest = others[-1].parent.parent if others else "FOLDER"
        raise Mistake(f"run={folder}: there is no run with a checkpoint. Type run={newest}")
    cfg = OmegaConf.merge(OmegaConf.load(config), {"test": True, "trainer": {"device": "auto"}})
    run = typed(cfg)  # type: ignore[arg-type]
    model, dataset = prepare(run, resuming=True)
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
    except Exception as error:  # a damaged file raises almost anything
        raise Mistake(
            f"run={folder}: {checkpoint} cannot be read ({first_line(error)}). Train the run again"
        ) from error
    return run, model.eval(), dataset


def draw_attention(model: Swin, dataset: Dataset, request: Request, path: Path) -> None:
    """Rows of images; columns: the image with label and prediction, blocks, and the rollout."""
    import torch
    from matplotlib.figure import Figure

    from swinexp.augment import normalise
    from swinexp.sheet import spread
    from swinexp.swin import SwinBlock, attention_maps, received, rollout

    assert dataset.test is not None
    device = dataset.mean.device
    chosen = dataset.test[spread(dataset.test.labels, request.images)].to(device)
    inputs = normalise(chosen.images, dataset.mean, dataset.std)
    with torch.no_grad():
        probabilities = model(inputs).softmax(-1).cpu()
    blocks = {name: block for name, block in model.named_modules() if isinstance(block, SwinBlock)}
    if request.blocks == "last":  # a later block of a stage takes the place of the one before
        blocks = dict({name.rpartition(".")[0]: (name, block) for name, block in blocks.items()}.values())
    columns = {
        name: received(blocks[name], weights).cpu() for name, weights in attention_maps(model, inputs, blocks).items()
    }
    shares = rollout(model, inputs).cpu()
    columns["rollout"] = shares * shares[0].numel()
    rows, width = len(chosen.labels), 1 + len(columns)
    figure = Figure(figsize=(1.7 * width, 1.95 * rows + 0.7), layout="constrained", dpi=110)
    cells = figure.subplots(rows, width, squeeze=False)
    for row, (image, label) in enumerate(zip(chosen.images.cpu(), chosen.labels.tolist(), strict=True)):
        guess = int(probabilities[row].argmax())
        verdict = f"{dataset.classes[label]} → {dataset.classes[guess]} {100 * probabilities[row, guess]:.0f} %"
        pixels = image.permute(1, 2, 0).numpy()
        cells[row, 0].imshow(pixels)
        cells[row, 0].set_xlabel(verdict, color="black" if guess == label else "firebrick", fontsize=8)
        for column, (name, maps) in enumerate(columns.items(), start=1):
            cell, extent = cells[row, column], (-0.5, pixels.shape[1] - 0.5, pixels.shape[0] - 0.5, -0.5)
            cell.imshow(pixels.mean(axis=2), cmap="gray", alpha=0.6)
            drawn = cell.imshow(
                maps[row].numpy(), cmap="magma", alpha=0.65, vmin=0, vmax=float(maps.max()), extent=extent
            )
            if row == 0:
                cell.set_title(name, fontsize=8)
                drawn_over = cells[:, column].tolist()
                bar = figure.colorbar(drawn, ax=drawn_over, location="bottom", fraction=0.03, pad=0.01, aspect=14)
                bar.ax.tick_params(labelsize=6)
    for cell in cells.flat:
        cell.set(xticks=[], yticks=[])
    figure.suptitle("label → prediction; how much a token is attended to, 1 the even share", fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)


def evaluate_run(request: Request) -> None:
    """Print the figures, and draw the picture that was asked for."""
    from swinexp.sheet import need_matplotlib
    from swinexp.train import evaluate

    folder = Path(request.run)
    if request.pictures:
        need_matplotlib(f"pictures={request.pictures}")
    run, model, dataset = restored(folder)
    for name, split in (("val", dataset.val), ("test", dataset.test)):
        assert split is not None
        figures = evaluate(run, model, split.to(dataset.mean.device), dataset, name)
        line = "  ".join(f"{key} {value:.4f}" for key, value in figures.items())
        print(f"{line}  ({len(split):,} images)")
    if request.pictures:
        path = folder / "pictures" / f"{request.pictures}.png"
        draw_attention(model, dataset, request, path)
        print(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        print(__doc__)
        return
    with reported(given):
        evaluate_run(requested(given))


if __name__ == "__main__":
    main()
