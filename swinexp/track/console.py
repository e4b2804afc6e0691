"""What the console shows of a run: its lines, its progress, its result."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Log lines on standard output as it is at the time: above the progress bar while there is one."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.addFilter(lambda record: not hasattr(record, "told"))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout


class Bar:
    """The progress of a run of so many epochs and steps on a terminal; elsewhere, and when `quiet`, nothing."""

    def __init__(self, epochs: int, steps: int, batch_size: int, quiet: bool) -> None:
        self.epochs, self.steps, self.batch_size, self.quiet = epochs, steps, batch_size, quiet
        self.bar: Any = None
        self.ticks: deque[tuple[int, float]] = deque(maxlen=100)  # the last steps, for the images/s

    def start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console()
        if self.quiet or not console.is_terminal:
            return
        columns = (
            TextColumn("epoch {task.fields[epoch]}" + f"/{self.epochs}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[figures]}lr {task.fields[lr]}  {task.fields[speed]} images/s"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, transient=True, expand=True)
        total = self.steps * self.epochs
        self.task = self.bar.add_task("train", total=total, epoch=1, figures="", lr="…", speed="…")
        self.bar.start()

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def epoch(self, metrics: Mapping[str, float]) -> None:
        if self.bar is not None:
            shown = f"loss {metrics['train/loss']:.3f}  accuracy {metrics['val/accuracy']:.4f}  "
            self.bar.update(self.task, figures=shown)

    def tick(self, step: int, lr: float, done: int) -> None:
        """`step` steps and `done` epochs are over."""
        if self.bar is None:
            return
        now = time.monotonic()
        self.ticks.append((step, now))
        first, began = self.ticks[0]
        self.bar.update(
            self.task,
            completed=step,
            epoch=min(done + 1, self.epochs),
            lr=f"{lr:.1e}",
            speed=f"{(step - first) * self.batch_size / (now - began):,.0f}" if now > began else "…",
        )


def print_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """The result table, and where to look."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")

    def row(label: str, key: str, form: str) -> None:
        if key in summary:
            table.add_row(label, "not finite" if summary[key] is None else form.format(summary[key]))

    row("validation accuracy, last epoch", "val/accuracy", "{:.4f}")
    row("validation loss, last epoch", "val/loss", "{:.4f}")
    table.add_row("best epoch", f"{summary['best/val/accuracy']:.4f} at {summary['best/epoch']} of {summary['epochs']}")
    row("… of the averaged weights", "ema/val/accuracy", "{:.4f}")
    row("test accuracy", "test/accuracy", "{:.4f}")
    row("… of the averaged weights", "ema/test/accuracy", "{:.4f}")
    row("parameters", "parameters", "{:,}")
    row("FLOPs an image", "flops", "{:,}")
    row("training images/s", "train/images_per_second", "{:,.0f}")
    row("inference images/s", "val/images_per_second", "{:,.0f}")
    row("seconds, training and validation", "seconds", "{:.1f}")
    if "gpu_memory" in summary:
        table.add_row("GPU memory, GiB at most", f"{summary['gpu_memory'] / 2**30:.2f}")
    row("seconds of compiling", "compile_seconds", "{:.1f}")
    table.add_row("device", f"{summary['device']} ({summary['device_name']})")
    console = Console()
    console.print(summary["name"], style="bold", soft_wrap=True, highlight=False)
    console.print(table)
    files = [name for name in ("summary.json", "metrics.jsonl", "curves.png", "run.log") if (folder / name).exists()]
    console.print(f"in {os.path.relpath(folder)}: {', '.join(files)}", soft_wrap=True, highlight=False)
    if "wandb" in summary:
        console.print(f"W&B: {summary['wandb']['where']}", soft_wrap=True, highlight=False)
