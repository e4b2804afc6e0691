"""A run written down while it happens: in its folder, in W&B, and on the console."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from swinexp.folder import Folder, candidates, write_text
from swinexp.sweep import current_trial
from swinexp.track.about import about
from swinexp.track.console import Bar
from swinexp.track.history import draw_curves, finite, line, read_history
from swinexp.track.wandb import WandbRun

if TYPE_CHECKING:
    from swinexp.config import Run
    from swinexp.data import Dataset

log = logging.getLogger(__name__)


class Tracker:
    """Writes a run down while it happens. `facts` are figures known before training, such as the parameters."""

    def __init__(
        self,
        run: Run,
        folder: Folder,
        config: Mapping[str, Any],
        overrides: Sequence[str],
        facts: Mapping[str, float],
        group: str | None,
        steps: int,
    ) -> None:
        self.run, self.folder, self.config, self.overrides, self.facts = run, folder, config, overrides, facts
        self.state = "running"
        self.environment = about(run)  # once: the code may change while the run goes on
        self.history: list[dict[str, float]] = []
        trial = current_trial()
        alone = trial.number is None
        sweep = {} if alone else {"sweep": {"study": trial.study, "trial": trial.number}}
        self.wandb = WandbRun(
            run.wandb,
            folder.path / "wandb.json",
            name=run.name,
            group=group,
            job_type="train" if alone else "trial",
            tags=run.wandb.tags,
            config={**config, "environment": self.environment, **sweep},
        )
        # In a sweep, the console is the sweep's.
        self.bar = Bar(run.trainer.epochs, steps, run.trainer.batch_size, quiet=not alone)

    def __enter__(self) -> Tracker:
        resuming = bool(candidates(self.folder.checkpoint))
        self.folder.begin(dict(self.config), self.overrides)
        self.metrics = self.folder.path / "metrics.jsonl"
        self.history = read_history(self.metrics) if resuming else []
        write_text(self.metrics, "".join(map(line, self.history)))
        self.wandb.start(resuming, self.facts)
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if error is not None:
            self.state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        self.wandb.finish(self.state, failed=error is not None)

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Write down a finished epoch, unless it is already; one that was trained again takes the place of what was."""
        row = {"epoch": epoch, **metrics}
        if epoch <= len(self.history):
            if line(row) == line(self.history[epoch - 1]):
                return
            del self.history[epoch - 1 :]
            write_text(self.metrics, "".join(map(line, self.history)))
        self.wandb.log(row, step=epoch)
        self.history.append(row)
        with self.metrics.open("a") as file:
            file.write(line(row))
        self.bar.epoch(metrics)
        epochs = self.run.trainer.epochs
        log.info(
            "epoch %*d/%d  train loss %.4f  val loss %.4f  val accuracy %.4f%s  lr %.2e  %s images/s",
            len(str(epochs)),
            epoch,
            epochs,
            metrics["train/loss"],
            metrics["val/loss"],
            metrics["val/accuracy"],
            f" (ema {metrics['ema/val/accuracy']:.4f})" if "ema/val/accuracy" in metrics else "",
            metrics["train/lr"],
            f"{metrics['train/images_per_second']:,.0f}",
        )

    def data(self, dataset: Dataset) -> None:
        """Write down what the network needs to be used without its data: classes, mean and std, to the last bit."""
        kept = {"classes": dataset.classes, "mean": dataset.mean.tolist(), "std": dataset.std.tolist()}
        write_text(self.folder.path / "data.json", json.dumps(kept, indent=2) + "\n")

    def picture(self, name: str, draw: Callable[[Path], object]) -> None:
        """Draw a picture into the run's folder and show it in W&B, once in the run."""
        path = self.folder.path / "pictures" / f"{name}.png"
        if not self.wandb or path.exists():
            return
        draw(path)
        self.wandb.picture(name, path, step=0)

    def tick(self, step: int, lr: float) -> None:
        """Move the progress bar. Called after every step, so it never asks the device for anything."""
        self.bar.tick(step, lr, len(self.history))

    def finish(self, figures: Mapping[str, float], pruned: bool = False) -> dict[str, Any]:
        """Close a run that has come to its end, or that its study has ended; returns what summary.json holds."""
        self.bar.stop()
        self.state = "pruned" if pruned else "complete"
        summary = {**finite(figures), **self.facts, **self.environment, **({"pruned": True} if pruned else {})}
        self.wandb.summary(figures)
        if self.wandb:
            summary["wandb"] = {"id": self.wandb.id, "project": self.run.wandb.project, "where": self.wandb.where()}
        draw_curves(self.history, self.folder.path / "curves.png")
        write_text(self.folder.path / "summary.json", json.dumps(summary, indent=2) + "\n")  # last: it means finished
        return summary
