"""Loss and accuracy of a split, with the weights and with their moving average."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinexp.augment import normalise
from swinexp.data import Dataset, Split
from swinexp.optim import averaged
from swinexp.ranks import rank, size
from swinexp.swin import Swin, by_threads
from swinexp.train.devices import autocast
from swinexp.train.processes import summed
from swinexp.train.signals import Asked
from swinexp.train.state import State

if TYPE_CHECKING:
    from swinexp.config import Run

EVALUATION_BATCH = {"cpu": 128, "cuda": 1024}  # 128 fits a CPU's cache: 1.3 times as fast as 512
# Batches that a process must evaluate for compiling that to pay: some 8 s, and what a batch then takes Python less is
# estimated at 15 ms (docs/performance.md).
COMPILED_FROM = 500


class Stopped(Exception):
    """A signal came while a split was being judged."""


def judge(
    run: Run, state: State, split: Split, dataset: Dataset, name: str, asked: Asked | None = None
) -> dict[str, float]:
    """The figures of a split with the weights, and with their moving average under names of its own."""
    with averaged(state.optimizer):
        figures = evaluate(run, state.model, split, dataset, name, asked)
    if state.ema is not None:
        with state.ema.applied():
            figures |= evaluate(run, state.model, split, dataset, f"ema/{name}", asked)
    return figures


@torch.no_grad()
def evaluate(
    run: Run, model: nn.Module, split: Split, dataset: Dataset, name: str, asked: Asked | None = None
) -> dict[str, float]:
    """{"<name>/loss", "<name>/accuracy"} over every image of a split, once, without augmentation or label smoothing."""
    device = dataset.mean.device
    loss, correct = torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.int64)
    for logits, labels in predictions(run, model, split, dataset):
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(dim=1) == labels).sum()
        if asked is not None and asked.received:
            raise Stopped
    summed(loss, correct)
    return {f"{name}/loss": loss.item() / len(split), f"{name}/accuracy": correct.item() / len(split)}


@torch.no_grad()
def predictions(
    run: Run, model: nn.Module, split: Split, dataset: Dataset, alone: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, classes) in fp32 and labels (B,), batch by batch, of every image of a split once, in order.

    Several processes take turns with the batches, unless this one is `alone`.
    """
    device = dataset.mean.device
    batch_size = EVALUATION_BATCH[device.type]
    compiled = isinstance(model, Swin) and model.compiled
    batches = run.trainer.epochs * (len(dataset.val) // batch_size) * (2 if run.trainer.ema else 1) // size()
    model.eval()
    first, each = (0, 1) if alone else (rank(), size())
    starts = range(first * batch_size, len(split), each * batch_size)
    for batch in split.each(slice(start, start + batch_size) for start in starts):
        # A last batch of another size is not worth compiling for.
        plain = compiled and (len(batch) != batch_size or batches < COMPILED_FROM)
        forward = model.forward if plain else model
        with autocast(run.trainer, device):
            logits = by_threads(forward, normalise(batch.images, dataset.mean, dataset.std))
        yield logits.float(), batch.labels
