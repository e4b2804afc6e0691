"""A run written down while it happens: in its folder, in W&B, and on the console."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from swinexp.folder import Folder, best, candidates, write_text
from swinexp.mistake import one_line, shown
from swinexp.sweep import current_trial
from swinexp.track.about import about, git_diff
from swinexp.track.console import Bar
from swinexp.track.history import draw_curves, finite, line, read_history
from swinexp.track.wandb import WandbRun

if TYPE_CHECKING:
    from swinexp.config import Run
    from swinexp.data import Dataset
    from swinexp.look import Look
    from swinexp.sweep.trial import Outside

log = logging.getLogger(__name__)

LONGEST = 128  # characters of a name in W&B
TAG = r"\+{0,2}(data|model)=[\w.-]{1,50}"  # an override that is a good tag


def called(run: Run, trial: Outside) -> str:
    """What W&B calls a run: its name, which says what the command overrides; of a trial, its number and its point."""
    if trial.number is None:
        return run.name
    point = {key: f"{value:.3g}" if isinstance(value, float) else shown(value) for key, value in trial.point.items()}
    parts = [f"{trial.study}/{trial.number}", *(f"{key}={value}" for key, value in {**point, "seed": run.seed}.items())]
    return " ".join(parts)[:LONGEST]


def tags(given: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Those that were given, then data=… and model=… as they were typed."""
    return list(dict.fromkeys([*given, *(each.lstrip("+") for each in overrides if re.fullmatch(TAG, each))]))


class Tracker:
    """Writes a run down while it happens.

    `options` are those of the config's groups, {group: option}, by which W&B can tell runs apart and group them;
    `facts` are figures known before training, such as the parameters.
    """

    def __init__(
        self,
        run: Run,
        folder: Folder,
        config: Mapping[str, Any],
        overrides: Sequence[str],
        options: Mapping[str, str],
        facts: Mapping[str, float],
        group: str | None,
        steps: int,
    ) -> None:
        self.run, self.folder, self.config, self.overrides, self.facts = run, folder, config, overrides, facts
        self.state = "running"
        self.environment, self.diff = about(run), git_diff()  # once: the code may change while the run goes on
        self.history: list[dict[str, float]] = []
        alone = (trial := current_trial()).number is None
        sweep = {} if alone else {"sweep": {"study": trial.study, "trial": trial.number}}
        self.wandb = WandbRun(
            run.wandb,
            folder.path / "wandb.json",
            name=called(run, trial),
            group=group,
            job_type="train" if alone else "trial",
            notes=run.wandb.notes,
            tags=tags(run.wandb.tags, overrides),
            config={**config, "options": dict(options), "environment": self.environment, **sweep},
        )
        # In a sweep, the console is the sweep's.
        self.bar = Bar(run.trainer.epochs, steps, run.trainer.batch_size, quiet=not alone)

    def __enter__(self) -> Tracker:
        resuming = bool(candidates(self.folder.checkpoint))
        self.folder.begin(dict(self.config), self.overrides)
        self.metrics = self.folder.path / "metrics.jsonl"
        before = read_history(self.metrics)
        young = len(before) < 2  # its first checkpoint was not whole yet: W&B has it all the same
        self.history = before if resuming else []
        write_text(self.metrics, "".join(map(line, self.history)))
        if self.diff:
            write_text(self.folder.path / "code.diff", self.diff)
        self.wandb.start(resuming or young, {**self.facts, "state": self.state}, self.history)
        if self.diff:
            self.wandb.file("code.diff", self.diff)
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
        """Write down what the network needs to be used without its data, and what tells whether they have changed.

        Classes, mean and std, to the last bit; the number of images of each class.
        """
        kept = {"classes": dataset.classes, "mean": dataset.mean.tolist(), "std": dataset.std.tolist()}
        write_text(self.folder.path / "data.json", json.dumps({**kept, "images": dataset.counts}, indent=2) + "\n")

    def picture(self, name: str, draw: Callable[[Path], object]) -> None:
        """Draw a picture into the run's folder and show it in W&B, once in the run."""
        if self.wandb and not (path := self._picture(name)).exists():
            draw(path)
            self.wandb.show(0, {name: path})

    def look(self, look: Look) -> None:
        """Show in W&B what the network makes of images in the end; that this can fail is no reason to lose the run."""
        if not self.wandb:
            return
        try:
            errors = look.errors()
            pictures = {"confusion": look.draw_confusion, "attention": look.draw_attention}
            for name, draw in pictures.items():
                draw(self._picture(name))
        except Exception as error:
            log.warning("no pictures of the end (%s)", one_line(error))
            return
        self.wandb.show(len(self.history) + 1, {name: self._picture(name) for name in pictures}, errors)

    def _picture(self, name: str) -> Path:
        path = self.folder.path / "pictures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        return path

    def tick(self, step: int, lr: float) -> None:
        """Move the progress bar. Called after every step, so it never asks the device for anything."""
        self.bar.tick(step, lr, len(self.history))

    def _keep_checkpoints(self, figures: Mapping[str, float]) -> None:
        last, wanted = self.folder.checkpoint, self.run.wandb.checkpoints
        files = {"best": (best(last), figures["best/epoch"]), "last": (last, figures["epochs"])}
        files = {alias: file for alias, file in files.items() if file[0].exists() and wanted in (alias, "both")}
        if len({path.stat().st_ino for path, _ in files.values()}) < len(files):  # the last epoch is the best one
            files = {"best last": files["last"]}
        for aliases, (path, epoch) in files.items():
            accuracy = self.history[int(epoch) - 1]["val/accuracy"]
            about = {"run": self.run.name, "epoch": epoch, "val/accuracy": accuracy}
            self.wandb.checkpoint(path, aliases.split(), about)

    def finish(self, figures: Mapping[str, float], pruned: bool = False) -> dict[str, Any]:
        """Close a run that has come to its end, or that its study has ended; returns what summary.json holds."""
        self.bar.stop()
        self.state = "pruned" if pruned else "complete"
        known = {"state": self.state, **self.environment, **({"pruned": True} if pruned else {})}
        summary = {**finite(figures), **self.facts, **known}
        self.wandb.summary({**figures, "state": self.state})  # a kill after summary.json would leave it as running
        if not pruned:
            self._keep_checkpoints(figures)
        if self.wandb:
            summary["wandb"] = {"id": self.wandb.id, "project": self.run.wandb.project, "where": self.wandb.where()}
        draw_curves(self.history, self.folder.path / "curves.png")
        write_text(self.folder.path / "summary.json", json.dumps(summary, indent=2) + "\n")  # last: it means finished
        return summary
