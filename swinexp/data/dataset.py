"""The splits of a data set put together: read, checked, cut, and measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from swinexp.data.options import SVHN, Data, TwoSplits
from swinexp.data.placement import HostSplit, place
from swinexp.data.sources import read
from swinexp.data.splits import Split, mean_std, stratified
from swinexp.mistake import Mistake, check


@dataclass(frozen=True)
class Dataset:
    """What a run trains on. `mean` and `std` (3,) are of the training split's pixels, scaled to [0, 1]."""

    classes: list[str]
    train: Split
    val: Split
    test: Split | None
    mean: Tensor
    std: Tensor

    @property
    def counts(self) -> dict[str, list[int]]:
        """How many images of each class the training and the validation split have."""
        splits = {"train": self.train, "val": self.val}
        return {name: split.labels.bincount(minlength=len(self.classes)).tolist() for name, split in splits.items()}

    def to(self, device: torch.device, placement: str = "auto") -> Dataset:
        """Its training and validation images on one device, or beside it as `placement` says.

        The test split stays on the host until the end, and its batches go to the device one by one.
        """
        return replace(
            self,
            train=place(self.train, placement, device),
            val=place(self.val, placement, device),
            test=None if self.test is None else HostSplit(self.test.images, self.test.labels, device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )


def load(data: Data, test: bool, limit_train: int | None = None) -> Dataset:
    """Read the training images, cut off the validation split where none is published, and measure mean and std.

    The test split is read only with `test`. `limit_train` keeps so many training images, the same share of each class.
    Raises `Mistake` when images are missing, unreadable or too few.
    """
    classes, train = read(data, "train")
    if isinstance(data, TwoSplits):
        train, val = _cut(data, classes, train)
    else:
        val = _same_classes(data, "valid", classes)
    if isinstance(data, SVHN) and data.extra:  # after the cut: with it and without, runs are judged on the same images
        extra = _same_classes(data, "extra", classes)
        train = Split(torch.cat([train.images, extra.images]), torch.cat([train.labels, extra.labels]))
    if limit_train is not None:
        check(
            len(classes) <= limit_train <= len(train),
            "trainer.limit_train",
            limit_train,
            f"it must be between the number of classes, {len(classes)}, and of training images, {len(train)}",
            f"trainer.limit_train={min(max(limit_train, len(classes)), len(train))}",
        )
        if limit_train < len(train):
            rarest = max(1, int(train.labels.bincount(minlength=len(classes)).min()))
            enough = math.ceil(len(train) / rarest)
            train = train[stratified(train.labels, limit_train / len(train), data.split_seed)[1]]
            counts = train.labels.bincount(minlength=len(classes)).tolist()
            check(
                0 not in counts,
                "trainer.limit_train",
                limit_train,
                f"no training image of class '{classes[counts.index(min(counts))]}' is left",
                f"trainer.limit_train={enough}",
            )
    mean, std = mean_std(train.images)
    return Dataset(classes, train, val, _same_classes(data, "test", classes) if test else None, mean, std)


def _same_classes(data: Data, split: str, classes: list[str]) -> Split:
    """The images of another split than train. Raises `Mistake` unless it has the same classes."""
    others, images = read(data, split)
    if others != classes:
        differ = ", ".join(sorted(set(others) ^ set(classes)))
        instead = "Give both the same folders" + (", or type test=false" if split == "test" else "")
        raise Mistake(
            f"data.root={getattr(data, 'root', '')}: train and {split} do not have the same classes "
            f"({differ} is in one only). {instead}"
        )
    return images


def _cut(data: TwoSplits, classes: list[str], whole: Split) -> tuple[Split, Split]:
    """(what is trained on, the validation split). Raises `Mistake` when a class would be missing in one of them."""
    train_index, val_index = stratified(whole.labels, data.val_fraction, data.split_seed)
    trained, judged = (whole.labels[index].bincount(minlength=len(classes)) for index in (train_index, val_index))
    for name, kept, cut in zip(classes, trained.tolist(), judged.tolist(), strict=True):
        fits = 0.5 if kept == 0 else math.ceil(1000 / (kept + cut)) / 1000
        check(
            kept > 0 and cut > 0,
            "data.val_fraction",
            data.val_fraction,
            f"of {kept + cut} images of class '{name}' it leaves {kept} for training, {cut} for validation",
            f"data.val_fraction={fits:g}" if kept + cut > 1 else f"nothing, and add images of '{name}'",
        )
    return whole[train_index], whole[val_index]
