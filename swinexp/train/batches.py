"""The batches of an epoch, as the network is trained on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from swinexp.augment import augment, mirrored_in_turn
from swinexp.data import Dataset, Split
from swinexp.train.devices import derive
from swinexp.train.state import State

if TYPE_CHECKING:
    from swinexp.config import Run

AT_ONCE = {"cpu": 5 * 2**18, "cuda": 2**25}  # values of images to augment together: a cache, and what fills a GPU


def batches_at_once(batch_size: int, values: int, device: torch.device) -> int:
    """How many batches of images with so many values each are augmented together."""
    return max(1, AT_ONCE[device.type] // (batch_size * values))


def batches(run: Run, state: State, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches from where `state` is to the end of its epoch, as the network is trained on them; see `augmented`.

    Small batches are augmented several at a time, which are the same ones wherever an epoch goes on: one batch is
    too little work for the number of operations.
    """
    device, train_set = dataset.mean.device, dataset.train
    batch_size, repeats = run.trainer.batch_size, run.augmentation.repeats
    steps, epoch = state.steps, len(state.history)
    generator = Generator(device)
    generator.manual_seed(derive(run.seed, "order", epoch))
    order = torch.randperm(len(train_set), generator=generator, device=device)
    views = steps * batch_size  # of the epoch; the last image may have fewer
    order = order[: math.ceil(views / repeats)].repeat_interleave(repeats)[:views]
    start = state.step - epoch * steps
    side = run.trainer.side(epoch, run.data.image_size)
    together = min(steps, batches_at_once(batch_size, train_set.images[0].numel(), device))
    firsts = range(start - start % together, steps, together)
    parts = [slice(first * batch_size, (first + together) * batch_size) for first in firsts]
    mirrored: Sequence[Tensor | None] = [None] * len(parts)
    if run.augmentation.flip_in_turn:
        generator.manual_seed(derive(run.seed, "flip"))
        turns = mirrored_in_turn(len(train_set), epoch, generator)[order]
        mirrored = [turns[part] for part in parts]
    lying = order.to(train_set.labels.device)  # where the images lie
    several = train_set.each(lying[part] for part in parts)
    for first, split, flips in zip(firsts, several, mirrored, strict=True):
        seed = derive(run.seed, "augmentation", epoch * steps + first)
        images, labels = augmented(run, dataset, split, seed, flips, batch_size)
        images = scaled(images, side)
        trained = max(0, start - first)
        yield from zip(images.split(batch_size)[trained:], labels.split(batch_size)[trained:], strict=True)


def scaled(images: Tensor, side: int) -> Tensor:
    """(B, 3, S, S) -> (B, 3, side, side): each pixel the mean of those that it covers."""
    return images if images.shape[-1] == side else F.interpolate(images, size=(side, side), mode="area")


def augmented(
    run: Run, dataset: Dataset, split: Split, seed: int, mirrored: Tensor | None = None, batch: int | None = None
) -> tuple[Tensor, Tensor]:
    """Images as the network is trained on them, (B, 3, S, S), and label weights (B, K); see `augment`."""
    mean, std, classes = dataset.mean, dataset.std, len(dataset.classes)
    generator = Generator(mean.device).manual_seed(seed)
    host = generator if mean.device.type == "cpu" else Generator().manual_seed(seed)
    return augment(run.augmentation, split.images, split.labels, classes, mean, std, generator, mirrored, batch, host)
