"""A network's figures on a split of the data, and which images it takes for what."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

from swinexp.track import finite

if TYPE_CHECKING:
    from torch import Tensor, nn

    from swinexp.config import Run
    from swinexp.data import Dataset, Split

BINS = 15  # of the calibration error, as in its paper

Batches = list[tuple["Tensor", "Tensor"]]  # logits (B, C) and labels (B,)


@dataclass(frozen=True)
class Reading:
    """What a network makes of a split; `confusion` (C, C) counts the images of each label (row) by prediction.

    Its name is before its figures, as in summary.json: val, best/val, ema/test …, and flips/val for those of flips.
    """

    name: str
    figures: dict[str, float]
    confusion: Tensor

    @property
    def per_class(self) -> list[float | None]:
        """The accuracy on each class; None where the split has no image of it."""
        counts = self.confusion.sum(dim=1).tolist()
        hits = self.confusion.diagonal().tolist()
        return [hit / count if count else None for hit, count in zip(hits, counts, strict=True)]

    def write(self, file: BinaryIO, about: dict[str, Any], classes: list[str]) -> None:
        """Write all of it as JSON, what it is about first; a line for each key."""
        record = {
            **about,
            "images": int(self.confusion.sum()),
            **finite(self.figures),
            "accuracy_per_class": dict(zip(classes, self.per_class, strict=True)),
            "classes": classes,
            "confusion": self.confusion.tolist(),
        }
        lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())


def outputs(run: Run, model: nn.Module, split: Split, dataset: Dataset, mirror: bool = False) -> Batches:
    """The logits and labels of every image of a split, or of its mirror, batch by batch as in training.

    This process goes through all of them.
    """
    from swinexp.train import predictions

    turned = replace(split, images=split.images.flip(-1)) if mirror else split
    return list(predictions(run, model, turned, dataset, alone=True))


def averaged(plain: Batches, mirrored: Batches) -> Batches:
    """The mean of the logits of each image and its mirror."""
    return [((one + other) / 2, labels) for (one, labels), (other, _) in zip(plain, mirrored, strict=True)]


def read(batches: Batches, name: str) -> Reading:
    """The figures <name>/…: loss and accuracy as a run logs them, top5 of more than five classes, and ece."""
    import torch
    import torch.nn.functional as F

    # Batch by batch and on the device, as in training: another order of adding gives other last bits.
    loss = sum(F.cross_entropy(logits, labels, reduction="sum") for logits, labels in batches)
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    count, classes = logits.shape
    correct = (logits.argmax(dim=1) == labels).sum()
    figures = {f"{name}/loss": float(loss) / count, f"{name}/accuracy": correct.item() / count}
    if classes > 5:
        among = (logits.topk(5).indices == labels[:, None]).any(dim=1)
        figures[f"{name}/top5"] = among.sum().item() / count
    figures[f"{name}/ece"] = calibration_error(logits.cpu().double().softmax(dim=1), labels.cpu())
    pairs = (labels * classes + logits.argmax(dim=1)).cpu()
    return Reading(name, figures, pairs.bincount(minlength=classes**2).view(classes, classes))


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """The expected calibration error (arXiv 1706.04599) of probabilities (N, C), over equally wide bins.

    In each bin of confidence, how far the accuracy is from the mean confidence; then the mean over all images.
    """
    import torch

    confidence, guesses = probabilities.max(dim=1)
    inner = torch.linspace(0, 1, BINS + 1, dtype=confidence.dtype)[1:-1]
    bins = torch.bucketize(confidence, inner)  # each with its upper edge, without its lower
    surplus = (guesses == labels).to(confidence.dtype) - confidence
    return torch.bincount(bins, weights=surplus, minlength=BINS).abs().sum().item() / len(labels)
