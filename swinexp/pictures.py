"""What a trained network does, drawn: whom it takes for whom, and where it looks."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from swinexp.data import Dataset, Split
    from swinexp.swin import Swin

COUNTED = 20  # classes up to which every cell of a confusion matrix has room for its count
NAMED = 100  # and up to which its rows and columns have room for their names
LONGEST = 20  # characters of a name
SHARES = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)  # that the colour bar names


def draw_confusion(confusion: Tensor, classes: list[str], title: str) -> Figure:
    """The counts (C, C) of each label (row) by prediction, coloured by their share of the label's images.

    The scale is that of the square root: beside a good network's diagonal, its mistakes would all be white.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(classes)
    shares = (confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    side = 0.45 if count <= COUNTED else 0.14 if count <= NAMED else 0.05  # of a cell, in inches
    width = max(side * count, 3.5)
    figure = Figure(figsize=(width + 2.3, width + 1.6), layout="constrained", dpi=120)
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    if count <= COUNTED:
        for label, row in enumerate(confusion.tolist()):
            for guess, number in enumerate(row):
                colour = "white" if shares[label, guess] > 0.4 else "black"
                if number:
                    axes.text(guess, label, f"{number:,}", ha="center", va="center", color=colour, fontsize=8)
    if count <= NAMED:
        names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in classes]
        size = 9 if count <= COUNTED else 7
        turned = 90 if max(len(name) for name in names) > 2 else 0  # 6 and 9 are left upright
        axes.set_xticks(range(count), names, rotation=turned, fontsize=size, parse_math=False)
        axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
        axes.set(xlabel="prediction", ylabel="label")
    else:
        axes.set(xlabel="prediction, as the number of its class", ylabel="label, as the number of its class")
    bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02, ticks=SHARES, label="share of the label's images")
    bar.ax.set_yticklabels([f"{100 * share:.0f} %" for share in SHARES])
    images = int(confusion.sum())
    right = int(confusion.trace())
    spaced = title.replace(",", ",\0 ")  # the name of a run has commas, but no spaces to break a line at
    lines = [re.sub("\0 ?", "", line) for line in textwrap.wrap(spaced, int(9 * (width + 2)))]
    lines.append(f"{right:,} of {images:,} images on the diagonal")
    figure.suptitle("\n".join(lines), fontsize=10, parse_math=False)
    return figure


def draw_attention(model: Swin, dataset: Dataset, split: Split, images: int, blocks: str) -> Figure:
    """Rows of a split's images; columns: the image with label and prediction, blocks (last or all), and the rollout."""
    import torch
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    from swinexp.augment import normalise
    from swinexp.sheet import spread
    from swinexp.swin import SwinBlock, attention_maps, received, rollout

    chosen = split[spread(split.labels, images)].to(dataset.mean.device)
    inputs = normalise(chosen.images, dataset.mean, dataset.std)
    with torch.no_grad():
        probabilities = model(inputs).softmax(-1).cpu()
    looked_at = {name: block for name, block in model.named_modules() if isinstance(block, SwinBlock)}
    if blocks == "last":  # a later block of a stage takes the place of the one before
        looked_at = dict({name.rpartition(".")[0]: (name, block) for name, block in looked_at.items()}.values())
    columns = {
        name: received(looked_at[name], weights).cpu()
        for name, weights in attention_maps(model, inputs, looked_at).items()
    }
    shares = rollout(model, inputs).cpu()
    columns["rollout"] = shares * shares[0].numel()
    rows, width = len(chosen.labels), 1 + len(columns)
    figure = Figure(figsize=(1.7 * width, 1.95 * rows + 0.7), layout="constrained", dpi=110)
    grid = figure.subplots(rows + 1, width, height_ratios=[*[1] * rows, 0.06])
    cells, bars = grid[:-1], grid[-1]  # a row of their own: what is taken off a column's height moves its images
    for row, (image, label) in enumerate(zip(chosen.images.cpu(), chosen.labels.tolist(), strict=True)):
        guess = int(probabilities[row].argmax())
        verdict = f"{dataset.classes[label]} → {dataset.classes[guess]} {100 * probabilities[row, guess]:.0f} %"
        pixels = image.permute(1, 2, 0).numpy()
        cells[row, 0].imshow(pixels)
        cells[row, 0].set_xlabel(verdict, color="black" if guess == label else "firebrick", fontsize=8)
        for column, (name, maps) in enumerate(columns.items(), start=1):
            cell, extent = cells[row, column], (-0.5, pixels.shape[1] - 0.5, pixels.shape[0] - 0.5, -0.5)
            cell.imshow(pixels.mean(axis=2), cmap="gray", alpha=0.6)
            most = max(float(maps.max()), 1.01)
            norm = TwoSlopeNorm(1, vmin=0, vmax=most)  # white is the even share
            drawn = cell.imshow(maps[row].numpy(), cmap="RdBu_r", alpha=0.65, norm=norm, extent=extent)
            if row == 0:
                cell.set_title(name, fontsize=8)
                bar = figure.colorbar(drawn, cax=bars[column], orientation="horizontal")
                bar.set_ticks([0, 0.5, 1, most], labels=["0", "½", "1", f"{most:.3g}"], fontsize=6)
    for cell in cells.flat:
        cell.set(xticks=[], yticks=[])
    bars[0].set_axis_off()
    figure.suptitle(
        "label → prediction; how much a token is attended to: red above the even share of 1, blue below", fontsize=9
    )
    return figure
