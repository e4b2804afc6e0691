"""Images with their labels, cut in two with the same share of each class, and measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images (N, 3, S, S) uint8 and their labels (N,) int64, on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Split:
        return Split(self.images[index], self.labels[index])

    @property
    def nbytes(self) -> int:
        return self.images.nbytes + self.labels.nbytes

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def each(self, indices: Iterable[Tensor | slice]) -> Iterator[Split]:
        """The batch of every index, which lies where the labels do."""
        for index in indices:
            yield self[index]

    def batches(self, size: int) -> Iterator[Split]:
        """Every image once, in order; the last batch may be smaller."""
        return self.each(slice(start, start + size) for start in range(0, len(self), size))


def stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two disjoint sorted index tensors that together are all of `labels`; the second holds `fraction` of each class.

    The second has exactly round(fraction · N) entries: classes whose share is not whole are rounded so that the
    largest remainders are rounded up.
    """
    generator = torch.Generator().manual_seed(seed)
    members = labels.argsort(stable=True).split(labels.bincount().tolist())
    shares = torch.tensor([fraction * len(index) for index in members], dtype=torch.float64)
    counts = shares.floor().long()
    missing = round(fraction * len(labels)) - int(counts.sum())
    counts[(shares - counts).argsort(descending=True, stable=True)[:missing]] += 1
    second = torch.zeros(len(labels), dtype=torch.bool)
    for index, count in zip(members, counts.tolist(), strict=True):
        second[index[torch.randperm(len(index), generator=generator)[:count]]] = True
    return (~second).nonzero()[:, 0], second.nonzero()[:, 0]


def mean_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Per-channel mean and standard deviation (3,) of uint8 images, on the scale [0, 1], exact to rounding."""
    # One channel after the other: a copy of all at once would be as large as the data set.
    counts = torch.stack([images[:, c].flatten().bincount(minlength=256) for c in range(3)]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(dim=1, keepdim=True)
    mean = (share * values).sum(dim=1)
    variance = (share * (values - mean[:, None]) ** 2).sum(dim=1)
    # A channel that never varies is left as it is rather than divided by zero.
    std = variance.sqrt()
    return mean.float(), torch.where(std > 0, std, 1.0).float()
