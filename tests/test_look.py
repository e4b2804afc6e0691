from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from swinexp.archive import reloaded
from swinexp.look import Look
from swinexp.train import prepare


def test_the_errors_are_those_of_the_last_checkpoint_the_worst_first(finished: Path) -> None:
    run = reloaded(finished)
    _, dataset = prepare(run)  # another network, which is not looked at
    look = Look(run, dataset, finished)
    assert look.name == "test"
    errors = look.errors()
    losses = [error.loss for error in errors]
    assert losses == sorted(losses, reverse=True)
    assert 0 < len(errors) <= 32
    assert all(error.label != error.prediction and 0 < error.confidence <= 1 for error in errors)
    logits, labels = (torch.cat(parts) for parts in zip(*look.outputs, strict=True))
    wrong = logits.argmax(dim=1) != labels
    every = torch.nn.functional.cross_entropy(logits, labels, reduction="none")[wrong]
    assert losses[0] == pytest.approx(every.max().item())
    accuracy = (~wrong).sum().item() / len(labels)
    assert accuracy == json.loads((finished / "summary.json").read_text())["test/accuracy"]
