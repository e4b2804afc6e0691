"""What the terminal shows of a study: a line for each finished trial, and below them, not in a log, what is running."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from swinexp.sweep.ranking import front, leaders, shown_values
from swinexp.sweep.space import text
from swinexp.sweep.study import Study
from swinexp.sweep.trials import (
    CHANGED,
    FORBIDDEN,
    FROM,
    REPEATS,
    WORKER,
    by_key,
    counts,
    epochs,
    error,
    left_out,
    took,
)

EVERY = 0.5  # seconds between two looks at the study
TOLD_LEFT_OUT = (1, 10, 100, 1000)  # which of the trials that were forbidden, or repeat others, have a line
STYLES = {TrialState.PRUNED: "dim", TrialState.FAIL: "red"}


class Board:
    """Shows a study while a `with` block lasts, as often as `look` is called. `objectives` name its values."""

    def __init__(self, study: Study, objectives: Sequence[str], console: Console | None = None) -> None:
        self.study, self.objectives = study, list(objectives)
        self.console = console or Console()
        self.looked = 0.0
        self.began = time.monotonic()
        self.live: Live | None = None
        self.left_out: Counter[str] = Counter()
        self.told = {t.number for t in study.trials if t.state.is_finished()}
        self.before = study.finished(study.trials)

    def __enter__(self) -> Board:
        where, trials = os.path.relpath(self.study.folder), self.study.trials
        more = ""
        if taken := [trial for trial in trials if FROM in trial.user_attrs]:
            numbers = f"numbers {taken[0].number}–{taken[-1].number}"
            more += f", beside {len(taken)} of {taken[0].user_attrs[FROM]} ({numbers})"
        if self.before:
            more += f", {self.before} trials done before"
            leader = self._leader(trials)
            more += f" (best {shown_values(leader)}, trial {leader.number})" if leader is not None else ""
        begun = sum(not t.state.is_finished() and WORKER in t.user_attrs for t in trials)
        more += f", {begun} begun and not finished" if begun else ""
        self._say(f"study {self.study.name}: {self.study.wanted} trials{more}; in {where}")
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
        self.look(now=True)

    def look(self, now: bool = False) -> bool:
        """Show what is new, and return True, unless it was looked a moment ago."""
        if not now and time.monotonic() - self.looked < EVERY:
            return False
        trials = self.study.trials
        leader = self._leader(trials)
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self.told and counts(trial):
                self.told.add(trial.number)
                style = STYLES.get(trial.state) if leader is not trial else "bold green"
                self._say(self._line(trial, leader), style)
            elif trial.number not in self.told and (why := left_out(trial)) is not None:
                self.told.add(trial.number)
                kind = state(trial)
                self.left_out[kind] += 1
                if self.left_out[kind] in TOLD_LEFT_OUT:
                    which = "trial" if self.left_out[kind] == 1 else f"{self.left_out[kind]} trials,"
                    self._say(f"{which} {trial.number}  {kind:9}  {why}")
        if self.live is not None:
            self.live.update(self._running(trials), refresh=True)
        self.looked = time.monotonic()
        return True

    def _say(self, line: str, style: str | None = None) -> None:
        self.console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)

    def _leader(self, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
        return next(iter(front(self.study, trials)), None) if len(self.objectives) == 1 else None

    def _line(self, trial: FrozenTrial, leader: FrozenTrial | None) -> str:
        parts = [f"trial {trial.number}", f"{state(trial):9}", shown_values(trial)]
        if leader is not None:
            other = f"(best {shown_values(leader)}, trial {leader.number})"
            parts.append("best so far" if leader.number == trial.number else other)
        parts += [shown_params(trial.params), _seconds(trial)]
        if trial.state == TrialState.FAIL:
            parts.append(error(trial)["line"])
        return "  ".join(part for part in parts if part)

    def _running(self, trials: Sequence[FrozenTrial]) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("trial", ", ".join(self.objectives), "epoch"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("running", no_wrap=True)
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                last = max(trial.intermediate_values, default=None)
                value = "" if last is None else f"{trial.intermediate_values[last]:.4g}"
                epoch = "" if last is None else str(last)
                table.add_row(str(trial.number), value, epoch, shown_params(trial.params))
        return Group(table, Text(self.headline(trials), style="bold"))

    def headline(self, trials: Sequence[FrozenTrial]) -> str:
        """Counts, the best, and the time that is left, on one line."""
        done = self.study.finished(trials)
        line = f"{done}/{self.study.wanted}: {shown_tally(trials)}"
        leader = self._leader(trials)
        if leader is not None:
            line += f"; best {shown_values(leader)} (trial {leader.number})"
        here = done - self.before
        if here and done < self.study.wanted:
            left = (time.monotonic() - self.began) / here * (self.study.wanted - done)
            line += f"; {shown_time(left)} left"
        return line


def tally(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """How many there are of each state, copied ones apart."""
    own = [state(trial) for trial in trials if FROM not in trial.user_attrs]
    return {
        name: own.count(name) for name in ("running", "complete", "pruned", "failed", "forbidden", "repeated", "queued")
    }


def shown_tally(trials: Sequence[FrozenTrial]) -> str:
    """`12 complete, 3 pruned`."""
    return ", ".join(f"{number} {name}" for name, number in tally(trials).items() if number)


def failures(trials: Sequence[FrozenTrial]) -> list[str]:
    """A line for each kind of failure: which trials, and what the first one said."""
    kinds: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.FAIL:
            kinds.setdefault(error(trial)["kind"], []).append(trial)
    lines = []
    for kind, failed in kinds.items():
        numbers = ", ".join(str(trial.number) for trial in failed[:10]) + (", …" if len(failed) > 10 else "")
        lines.append(f"{kind}: trial{'s' if len(failed) > 1 else ''} {numbers}; first: {error(failed[0])['line']}")
    return lines


def state(trial: FrozenTrial) -> str:
    """What we call a trial's state."""
    for mark, name in ((FORBIDDEN, "forbidden"), (REPEATS, "repeated"), (CHANGED, "outdated")):
        if mark in trial.user_attrs:
            return name
    names = {TrialState.FAIL: "failed", TrialState.WAITING: "queued"}
    return names.get(trial.state, trial.state.name.lower())


def shown_params(params: Mapping[str, Any]) -> str:
    """The point of a trial, with numbers to three digits."""
    point = by_key(params)
    return " ".join(f"{key}={f'{x:.3g}' if isinstance(x, float) else text(x)}" for key, x in point.items())


def _seconds(trial: FrozenTrial) -> str:
    return "" if (own := took(trial)) is None else shown_time(own)


def shown_time(seconds: float) -> str:
    """A duration: 14 s, 3 min 20 s, 5 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def print_end(
    study: Study, top: Study | None, objectives: Sequence[str], why: str, console: Console | None = None
) -> None:
    """What came of it: counts, the best and how to run it again, failures, and where to look."""
    console = console or Console()
    trials = study.trials

    def say(line: str, style: str | None = None) -> None:
        console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)

    head = f"study {study.name}: {shown_tally(trials) or 'no trials'}; {epochs(trials)} epochs in all"
    say(head + (f"; {why}" if why else ""), "bold")
    for failure in failures(trials):
        say(failure)
    place = "best" if len(objectives) == 1 else "on the front"
    for leader in leaders(study, top)[:10]:
        trial = leader.trial
        say(f"{place}: {', '.join(objectives)} {leader}, trial {trial.number}: {shown_params(trial.params)}")
