"""What a run leaves behind: W&B, metrics.jsonl, summary.json, curves.png, and what the console shows meanwhile."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from swinexp import HERE, __version__
from swinexp.folder import Folder, candidates, write_atomically, write_text
from swinexp.mistake import check, one_line
from swinexp.sweep import current_trial

if TYPE_CHECKING:
    import torch

    from swinexp.config import Run
    from swinexp.data import Dataset

log = logging.getLogger(__name__)

WANDB_MODES = ("auto", "online", "offline", "disabled", "", "dryrun")  # the last two for WANDB_MODE
WANDB_START = 10  # seconds that an unreachable server may take at the start of a run
WANDB_END = 8  # and at its end
VERSIONS = ("torch", "torchvision", "hydra-core", "omegaconf", "wandb", "optuna", "numpy")


@dataclass
class Wandb:
    """Where W&B keeps the run. Offline runs go to outputs/wandb/; `wandb sync` sends them.

    With `images` it also gets a contact sheet of what the network is trained on.
    """

    mode: str
    project: str
    tags: list[str]
    images: bool

    def __post_init__(self) -> None:
        check(
            self.mode in WANDB_MODES,
            "wandb.mode",
            self.mode,
            f"one of {', '.join(WANDB_MODES[:4])} (with wandb=auto the variable WANDB_MODE sets it)",
            "wandb=offline",
        )
        check(
            bool(re.fullmatch(r"[^/\\#?%:]{1,128}", self.project)),
            "wandb.project",
            self.project,
            "1 to 128 characters without / \\ # ? % :",
            "wandb.project=swinexp",
        )
        check(
            all(1 <= len(tag) <= 64 for tag in self.tags),
            "wandb.tags",
            self.tags,
            "each tag has 1 to 64 characters",
            "wandb.tags=[baseline]",
        )


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Log lines on standard output as it is at the time: above the progress bar while there is one."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.addFilter(lambda record: not hasattr(record, "told"))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout


class Tracker:
    """Writes a run down while it happens. `facts` are figures known before training, such as the parameters.

    W&B is never the reason that a run stops: what it raises is told in one line, and the run goes on without it.
    """

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
        self.run, self.folder, self.config, self.overrides = run, folder, config, overrides
        self.facts, self.group, self.steps = facts, group, steps
        self.trial = current_trial()
        self.state = "running"
        self.environment = about(run)  # once: the code may change while the run goes on
        self.history: list[dict[str, float]] = []
        self.wandb: Any = None
        self.bar: Any = None
        self.ticks: deque[tuple[int, float]] = deque(maxlen=100)  # the last steps, for the bar's images/s

    def __enter__(self) -> Tracker:
        resuming = bool(candidates(self.folder.checkpoint))
        self.folder.begin(dict(self.config), self.overrides)
        self.metrics = self.folder.path / "metrics.jsonl"
        self.history = read_history(self.metrics) if resuming else []
        write_text(self.metrics, "".join(map(_line, self.history)))
        self._start_wandb(resuming)
        self._start_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_bar()
        if error is not None:
            self.state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        if self.wandb is not None:
            self._try_wandb(lambda: self.wandb.summary.update({"state": self.state}))
        if self.wandb is not None:
            self._try_wandb(lambda: self.wandb.finish(exit_code=0 if error is None else 1))

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Write down a finished epoch, unless it is already; one that was trained again takes the place of what was."""
        row = {"epoch": epoch, **metrics}
        if epoch <= len(self.history):
            if _line(row) == _line(self.history[epoch - 1]):
                return
            del self.history[epoch - 1 :]
            write_text(self.metrics, "".join(map(_line, self.history)))
        if self.wandb is not None:  # the step makes W&B ignore an epoch that it has already
            self._try_wandb(lambda: self.wandb.log(row, step=epoch, commit=True))
        self.history.append(row)
        with self.metrics.open("a") as file:
            file.write(_line(row))
        if self.bar is not None:
            shown = f"loss {metrics['train/loss']:.3f}  accuracy {metrics['val/accuracy']:.4f}  "
            self.bar.update(self.task, figures=shown)
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
        if self.wandb is None or path.exists():
            return
        draw(path)

        def show() -> None:
            import wandb

            self.wandb.log({name: wandb.Image(str(path))}, step=0, commit=True)

        self._try_wandb(show)

    def tick(self, step: int, lr: float) -> None:
        """Move the progress bar. Called after every step, so it never asks the device for anything."""
        if self.bar is None:
            return
        now = time.monotonic()
        self.ticks.append((step, now))
        first, began = self.ticks[0]
        self.bar.update(
            self.task,
            completed=step,
            epoch=min(len(self.history) + 1, self.run.trainer.epochs),
            lr=f"{lr:.1e}",
            speed=f"{(step - first) * self.run.trainer.batch_size / (now - began):,.0f}" if now > began else "…",
        )

    @property
    def id(self) -> str | None:
        """What W&B calls the run, where it has it."""
        return None if self.wandb is None else str(self.wandb.id)

    def finish(self, figures: Mapping[str, float], pruned: bool = False) -> dict[str, Any]:
        """Close a run that has come to its end, or that its study has ended; returns what summary.json holds."""
        self._stop_bar()
        self.state = "pruned" if pruned else "complete"
        summary = {**finite(figures), **self.facts, **self.environment, **({"pruned": True} if pruned else {})}
        if self.wandb is not None:
            self._try_wandb(lambda: self.wandb.summary.update(dict(figures)))
        if self.wandb is not None:
            summary["wandb"] = {"id": self.wandb.id, "project": self.run.wandb.project, "where": self.where()}
        draw_curves(self.history, self.folder.path / "curves.png")
        write_text(self.folder.path / "summary.json", json.dumps(summary, indent=2) + "\n")  # last: it means finished
        return summary

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console()
        if not console.is_terminal or self.trial.number is not None:  # the console is the sweep's
            return
        columns = (
            TextColumn("epoch {task.fields[epoch]}" + f"/{self.run.trainer.epochs}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[figures]}lr {task.fields[lr]}  {task.fields[speed]} images/s"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, transient=True, expand=True)
        total = self.steps * self.run.trainer.epochs
        self.task = self.bar.add_task("train", total=total, epoch=1, figures="", lr="…", speed="…")
        self.bar.start()

    def _stop_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _start_wandb(self, resuming: bool) -> None:
        mode = {"": "auto", "dryrun": "offline"}.get(self.run.wandb.mode, self.run.wandb.mode)
        if mode == "disabled":
            return
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # without network, it delays the exit
        if mode != "offline":
            try:
                found = key_is_configured()
            except Exception as error:
                log.warning("W&B's settings do not work (%s)", one_line(error))
                found = False
            if mode == "online" and not found:  # W&B would ask for a key on a terminal
                log.warning("W&B: no API key is configured (type: wandb login), so the run is kept offline")
            mode = "online" if found else "offline"
        kept = self.folder.path / "wandb.json"
        known = read_id(kept) if resuming else None
        if mode == "online":
            self.wandb = self._init_wandb("online", known)
            if self.wandb is None:  # the failed id stays taken in this process
                known = None
        if self.wandb is None:
            self.wandb = self._init_wandb("offline", known)
        if self.wandb is None:
            return
        write_text(kept, json.dumps({"id": self.wandb.id, "project": self.run.wandb.project}) + "\n")
        self._try_wandb(self._describe_wandb)
        if self.wandb is not None:
            log.info("W&B: %s", self.where())

    def where(self) -> str:
        """Where W&B has the run: its page, or its folder and what to do with that."""
        if not self.wandb.offline:
            return str(self.wandb.url)
        place = os.path.relpath(self.wandb.settings.sync_dir)
        every_part = re.sub(r"\d{8}_\d{6}", "*", place)  # a resumed run has a folder for each of its parts
        command = "wandb" if shutil.which("wandb") else os.path.relpath(Path(sys.executable).parent / "wandb")
        return f"offline; to look: {command} leet {place}; to send: {command} sync {every_part}"

    def _init_wandb(self, mode: str, known: str | None) -> Any:
        try:
            import wandb

            return wandb.init(
                mode=mode,  # type: ignore[arg-type]
                project=self.run.wandb.project,
                name=self.run.name,
                group=self.group,
                job_type="train" if self.trial.number is None else "trial",
                tags=self.run.wandb.tags,
                config={**self.config, "environment": self.environment, **self._sweep()},
                dir="outputs",
                id=known or secrets.token_hex(4),
                resume="allow" if known else None,
                reinit="finish_previous",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=WANDB_START,
                    finish_timeout=WANDB_END,
                    x_transaction_log_flush_interval=1,  # so that kill -9 loses a second, not a run
                ),
            )
        except Exception as error:  # W&B is never the reason that training stops
            log.warning("W&B could not start %s (%s)", mode, one_line(error))
            return None

    def _sweep(self) -> dict[str, Any]:
        if self.trial.number is None:
            return {}
        return {"sweep": {"study": self.trial.study, "trial": self.trial.number}}

    def _describe_wandb(self) -> None:
        # Summaries are the last values, as in summary.json; the best epoch's stand beside them as best/*.
        self.wandb.define_metric("epoch", hidden=True)
        self.wandb.define_metric("train/*", step_metric="epoch")
        self.wandb.define_metric("val/*", step_metric="epoch")
        self.wandb.define_metric("ema/*", step_metric="epoch")
        self.wandb.summary.update(dict(self.facts))

    def _try_wandb(self, action: Any) -> None:
        try:
            action()
        except Exception as error:
            log.warning("W&B stopped working (%s): the run goes on without it", one_line(error))
            self.wandb = None


def key_is_configured() -> bool:
    """W&B finds credentials for its server without asking. Raises what it raises over settings that make no sense."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb.login(prompt=False, verify=False)


def about(run: Run) -> dict[str, Any]:
    """What a figure needs beside it to be believed: code, versions, machine."""
    import torch

    device = run.trainer.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "name": run.name,
        "seed": run.seed,
        "objective": run.objective,
        "device": device,
        "device_name": chip(torch.device(device)),
        "git": git_revision(),
        "versions": {"swinexp": __version__, "python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONS}


def chip(device: torch.device) -> str:
    """The GPU's name; or the CPU's, and how many threads torch uses on it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = models[0] if models else name
    except OSError:
        pass
    return f"{name}, {torch.get_num_threads()} threads"


def git_revision() -> str | None:
    """The commit of this checkout, with -dirty when files differ from it; None outside a checkout."""
    if not (HERE.parent / ".git").exists():
        return None
    command = ["git", "-C", str(HERE.parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def read_id(path: Path) -> str | None:
    """The W&B id that a run had before, if its file is whole."""
    try:
        return str(json.loads(path.read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


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


def _line(metrics: Mapping[str, Any]) -> str:
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
    losses.legend()
    values = [100 * value for value in numbers("val/accuracy")]
    accuracy.plot(epochs, values, color="C1", marker=marker)
    accuracy.set(xlabel="epoch", ylabel="validation accuracy, %", title=f"last epoch {values[-1]:.2f} %")
    for axes in (losses, accuracy):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


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
    row("seconds of compiling", "compile_seconds", "{:.1f}")
    table.add_row("device", f"{summary['device']} ({summary['device_name']})")
    console = Console()
    console.print(summary["name"], style="bold", soft_wrap=True, highlight=False)
    console.print(table)
    files = [name for name in ("summary.json", "metrics.jsonl", "curves.png", "run.log") if (folder / name).exists()]
    console.print(f"in {os.path.relpath(folder)}: {', '.join(files)}", soft_wrap=True, highlight=False)
    if "wandb" in summary:
        console.print(f"W&B: {summary['wandb']['where']}", soft_wrap=True, highlight=False)
