"""Runs read back from the folders that they left, whatever state those are in; nothing in them is touched."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from swinexp.folder import as_now, held
from swinexp.mistake import Mistake, leaves, one_line

# What only a run writes into its folder; config.yaml is written when it begins, summary.json when it has ended.
MARKS = ("config.yaml", "metrics.jsonl", "summary.json")
NEVER_BEGAN = "error.txt"  # all that a trial leaves that failed before its run began
WANDB = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-(.+)")  # a folder of W&B's
BESIDE = ("options", "sweep")  # what W&B has in a run's config that its folder has elsewhere
PASSED_OVER = {"checkpoints", "evaluation", "workers", "plots"}

COMPLETE, PRUNED, FAILED, RUNNING, UNFINISHED, DAMAGED = STATES = (
    "complete",
    "pruned",
    "failed",
    "running",
    "unfinished",
    "damaged",
)


@dataclass(frozen=True)
class Found:
    """A run as its folder tells it; `trouble` says what is wrong with one that is not complete.

    `config` and `summary` have their keys with dots, as one types them; `history` is a line for each epoch.
    """

    path: Path
    state: str
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def wandb(self) -> str | None:
        """What W&B calls it."""
        return self.summary.get("wandb.id")

    @property
    def epochs(self) -> int:
        return len(self.history)

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """(epochs, values) of the finite values that the history has of a key."""
        points = [(row["epoch"], row[key]) for row in self.history if row.get(key) is not None]
        return [epoch for epoch, _ in points], [value for _, value in points]


def find(paths: Iterable[str | Path]) -> list[Found]:
    """The runs in folders and below them, and in W&B's offline files; each run once. Raises `Mistake`."""
    runs: dict[str, Found] = {}
    parts: dict[str, list[Path]] = {}
    below = {path: [*_places(path)] if path.is_dir() else [] for path in map(Path, paths)}
    for path, places in below.items():
        empty = "there is no run in it" if path.is_dir() else "is no folder"
        if not places and path.is_dir() and any(below.values()):
            runs[str(path)] = Found(path, FAILED, trouble=empty)
        elif not places:
            raise Mistake(f"{path}: {empty}. Type a run's folder, or one of several: {_example(path)}")
        for place in places:
            if (told := WANDB.fullmatch(place.name)) is not None:
                parts.setdefault(told[1], []).append(place)
            else:
                runs.setdefault(str(place.resolve()), read(place))
    known = {run.wandb for run in runs.values()}
    return [*runs.values(), *(_of_wandb(name, places) for name, places in parts.items() if name not in known)]


def _places(path: Path) -> Iterator[Path]:
    """The folders of runs in a folder, in the order of their numbers."""
    if _is_run(path):
        yield path
        return
    below = (each for each in path.iterdir() if each.is_dir() and not each.is_symlink())
    for each in sorted(below, key=_natural):
        if each.name not in PASSED_OVER and not each.name.startswith("."):
            yield from _places(each)


def _is_run(path: Path) -> bool:
    return bool(WANDB.fullmatch(path.name)) or any((path / name).exists() for name in (*MARKS, NEVER_BEGAN))


def _natural(path: Path) -> list[tuple[int, str]]:
    """The order of names in which 10 comes after 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _example(path: Path) -> str:
    for there in ("outputs/sweeps", "outputs/runs"):
        full = [each for each in Path(there).glob("*") if each != path and each.is_dir() and any(_places(each))]
        newest = max(full, key=lambda each: each.stat().st_mtime, default=None)
        if newest is not None:
            return str(newest)
    return "outputs/sweeps/NAME"


def read(path: Path) -> Found:
    """A run from its own folder."""
    if not any((path / name).exists() for name in MARKS):
        return Found(path, FAILED, trouble=f"ended before it began, see {NEVER_BEGAN}")
    try:
        config = leaves(yaml.load((path / "config.yaml").read_bytes(), _Loader))
        if not config or "" in config:
            raise ValueError("it is empty")
        config = as_now(config)
    except (OSError, ValueError, yaml.YAMLError) as error:
        return Found(path, DAMAGED, trouble=f"config.yaml cannot be read ({_reason(error)})")
    history, cut = _history(path / "metrics.jsonl")
    try:
        text = (path / "summary.json").read_bytes()
    except FileNotFoundError:
        state, trouble = (DAMAGED, cut) if cut else (RUNNING, "") if held(path) else (UNFINISHED, _last_words(path))
        return Found(path, state, config, history=history, trouble=trouble)
    try:
        summary = leaves(json.loads(text))
        if not summary or "" in summary:
            raise ValueError("it holds no figures")
    except (OSError, ValueError) as error:
        return Found(path, DAMAGED, config, history=history, trouble=f"summary.json cannot be read ({_reason(error)})")
    state = PRUNED if summary.get("pruned") else str(summary.get("state", COMPLETE))
    if cut or len(history) < summary.get("epochs", 0):
        return Found(path, DAMAGED, config, summary, history, cut or "metrics.jsonl lacks epochs")
    return Found(path, state, config, summary, history)


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # eight times faster, where it was built


def _history(path: Path) -> tuple[list[dict[str, Any]], str]:
    """(the epochs, what is wrong with them); a last line that a kill has cut is not there."""
    try:
        whole, _, _ = path.read_text().rpartition("\n")
    except FileNotFoundError:
        return [], ""
    except (OSError, ValueError) as error:
        return [], f"metrics.jsonl cannot be read ({_reason(error)})"
    lines = whole.split("\n") if whole else []
    try:
        rows = json.loads(f"[{','.join(lines)}]")  # in one go, which takes two thirds of the time
        if len(rows) == len(lines) and all("epoch" in row for row in rows):
            return rows, ""
    except (ValueError, TypeError):
        pass
    for number, line in enumerate(lines):
        try:
            good = "epoch" in json.loads(line)
        except (ValueError, TypeError):
            good = False
        if not good:
            return [json.loads(each) for each in lines[:number]], f"metrics.jsonl, line {number + 1}, cannot be read"
    return [], "metrics.jsonl cannot be read"


def _last_words(path: Path) -> str:
    """The line of run.log that says why the run ended, if its last one does."""
    try:
        lines = (path / "run.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    told = re.match(r"\S+ \S+ (?:ERROR|CRITICAL)\s+(.*)", lines[-1]) if lines else None
    return told[1] if told else ""


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error, 80)


def _of_wandb(name: str, places: list[Path]) -> Found:
    """A run from W&B's files of it, by W&B's own reader; a run that was resumed has several, in the order of time."""
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {"wandb": {"id": name}}
    history: dict[int, dict[str, Any]] = {}
    for place in sorted(places):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(place)]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            lines = told.stderr.strip().splitlines() or [f"exit code {told.returncode}"]
            return Found(place, DAMAGED, leaves(config), leaves(summary), [*history.values()], lines[-1][:120])
        for line in told.stdout.splitlines():
            record = json.loads(line)
            config |= record.get("run", {}).get("config", {}).get("update", {})
            summary |= record.get("summary", {}).get("update", {})
            row = record.get("history", {}).get("item", {})
            if "epoch" in row and any("/" in key for key in row):
                history.setdefault(int(row["epoch"]), {}).update(row)
    environment = config.pop("environment", {})
    known = {key: value for key, value in config.items() if key not in BESIDE and not key.startswith("_")}
    state = str(summary.get("state", UNFINISHED))
    state = state if state in STATES else UNFINISHED  # "running" and "interrupted" are of the time of writing
    return Found(places[-1], state, as_now(leaves(known)), leaves({**environment, **summary}), [*history.values()])
