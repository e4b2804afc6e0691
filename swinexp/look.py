"""What a run shows of its network in the end: its worst mistakes, whom it takes for whom, where it looks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from swinexp.archive import fill, weights

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray
    from torch import Tensor

    from swinexp.config import Run
    from swinexp.data import Dataset, Split
    from swinexp.reading import Batches
    from swinexp.swin import Swin

WORST = 32  # mistakes that are shown
ROWS = 8  # images of the attention picture


@dataclass(frozen=True)
class Error:
    """An image (S, S, 3) that the network takes for something else, with the loss on it."""

    image: NDArray[uint8]
    label: str
    prediction: str
    confidence: float
    loss: float


class Look:
    """At the weights of a run's last checkpoint, on test images where the run has read those, else on validation."""

    def __init__(self, run: Run, dataset: Dataset, folder: Path) -> None:
        self.run, self.dataset, self.folder = run, dataset, folder
        self.name = "val" if dataset.test is None else "test"
        split = dataset.val if dataset.test is None else dataset.test
        self.split: Split = split.to(dataset.mean.device)

    @cached_property
    def model(self) -> Swin:
        """One of its own: that of the training may be compiled, or be between two averages."""
        from swinexp.train import build_model

        model = build_model(self.run, len(self.dataset.classes))
        fill(model, weights(self.folder, "last")[0], self.folder)
        return model.to(self.dataset.mean.device).eval()

    @cached_property
    def outputs(self) -> Batches:
        from swinexp.reading import outputs

        return outputs(self.run, self.model, self.split, self.dataset)

    def errors(self) -> list[Error]:
        """The mistakes with the largest loss, the worst first."""
        import torch
        import torch.nn.functional as F

        logits, labels = (torch.cat(parts) for parts in zip(*self.outputs, strict=True))
        losses = F.cross_entropy(logits, labels, reduction="none")
        confidences, guesses = logits.softmax(dim=1).max(dim=1)
        wrong = (guesses != labels).nonzero()[:, 0]
        worst = wrong[losses[wrong].argsort(descending=True)[:WORST]]
        images = self.split.images[worst.to(self.split.images.device)].permute(0, 2, 3, 1).cpu().numpy()
        columns: list[Tensor] = [labels[worst], guesses[worst], confidences[worst], losses[worst]]
        names = self.dataset.classes
        return [
            Error(image, names[label], names[guess], confidence, loss)
            for image, label, guess, confidence, loss in zip(images, *(c.tolist() for c in columns), strict=True)
        ]

    def draw_confusion(self, path: Path) -> None:
        from swinexp.pictures import draw_confusion
        from swinexp.reading import read

        reading = read(self.outputs, self.name)
        draw_confusion(reading.confusion, self.dataset.classes, f"{self.run.name}, {self.name}").savefig(path)

    def draw_attention(self, path: Path) -> None:
        from swinexp.pictures import draw_attention

        draw_attention(self.model, self.dataset, self.split, ROWS, "last").savefig(path)
