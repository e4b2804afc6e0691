"""The epochs of a run as metrics.jsonl holds them, and drawn."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swinexp.folder import write_atomically

log = logging.getLogger(__name__)


def read_history(path: Path) -> list[dict[str, float]]:
    """The epochs of a metrics.jsonl, up to a line that a kill may have cut."""
    rows: list[dict[str, float]] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures with null for what is not finite: JSON has no NaN."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in figures.items()
    }


def line(metrics: Mapping[str, Any]) -> str:
    """A line of metrics.jsonl."""
    return json.dumps(finite(metrics), allow_nan=False) + "\n"


def draw_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Loss and accuracy over the epochs, as a PNG; matplotlib is an extra, and without it there is no picture."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.info("no curves.png: matplotlib is not installed (pip install 'swinexp[plots]')")
        return

    def numbers(key: str) -> list[float]:
        return [math.nan if metrics[key] is None else metrics[key] for metrics in history]

    epochs = numbers("epoch")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    marker = "o" if len(epochs) == 1 else None
    losses.plot(
        epochs,
        numbers("train/loss"),
        label="train (augmentation, smoothed labels)",
        marker=marker,
    )
    losses.plot(epochs, numbers("val/loss"), label="validation", marker=marker)
    losses.set(xlabel="epoch", ylabel="loss")
    # Above the curves: within, it would cover one.
    losses.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8, handlelength=1.2, columnspacing=1
    )
    values = [100 * value for value in numbers("val/accuracy")]
    accuracy.plot(epochs, values, color="C1", marker=marker)
    accuracy.set(xlabel="epoch", ylabel="validation accuracy, %", title=f"last epoch {values[-1]:.2f} %")
    for axes in (losses, accuracy):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))
