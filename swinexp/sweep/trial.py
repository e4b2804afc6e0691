"""The trial that a run belongs to, as the run sees it. Optuna is not imported here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swinexp.sweep.trials import by_key

if TYPE_CHECKING:
    import optuna


FACTS = ("parameters", "flops", "activations")  # known before training
PRUNED = "pruned"  # the attribute of a trial that holds the epoch after which the study had seen enough


class Pruned(Exception):
    """The study has seen enough of a trial."""


class Forbidden(Exception):
    """A constraint of the study does not allow a trial. It has not been trained."""


class Outside:
    """Of a run that belongs to no sweep: nobody listens."""

    number: int | None = None
    study: str | None = None
    point: Mapping[str, object] = {}
    group: str | None = None  # that W&B is told, where it is another process's

    def check(self, facts: Mapping[str, float]) -> None:
        """Tell what is known before training. Raises `Forbidden`."""

    def began(self, wandb: str | None) -> None:
        """Tell the id that W&B knows the run by."""

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Tell the figures of a finished epoch. Raises `Pruned`."""

    def finished(self, epochs: int) -> None:
        """Tell of a run that had finished before how long it was."""

    def ended(self, error: Exception) -> None:
        """Tell why the run ended early."""


@dataclass(frozen=True)
class Constraint:
    """`figure <= bound` or `figure >= bound`, of a figure that is known before training."""

    figure: str
    sign: int
    bound: float

    def excess(self, facts: Mapping[str, float]) -> float:
        """By how much it does not hold; 0 or less where it does."""
        return self.sign * (facts[self.figure] - self.bound)

    def __str__(self) -> str:
        return f"{self.figure} {'<=' if self.sign > 0 else '>='} {self.bound:g}"


def constraint(text: str) -> Constraint | None:
    """`"parameters <= 7.05e6"`; None for what reads otherwise."""
    found = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*([-+.\deE_]+)\s*", text)
    try:
        return None if found is None else Constraint(found[1], 1 if found[2] == "<=" else -1, float(found[3]))
    except ValueError:
        return None


class Inside(Outside):
    """Of a run that is a trial, or one of a trial's seeds. `curve` is the key whose course decides on pruning.

    `once` tries something with the study, which may be away; what it has not been told yet waits in `late`.
    """

    def __init__(
        self,
        trial: optuna.Trial,
        study: str,
        curve: str | None,
        constraints: Sequence[Constraint],
        seen: Callable[[], object],
        once: Callable[[Callable[[], object]], bool] = lambda work: (work(), True)[1],
    ) -> None:
        self.trial, self.study, self.number = trial, study, trial.number
        self.point = by_key(trial.params)
        self.curve, self.constraints, self.seen = curve, constraints, seen
        self.reported = (
            set() if curve is None else set(trial.study._storage.get_trial(trial._trial_id).intermediate_values)
        )
        self.pruned: int | None = trial.user_attrs.get(PRUNED)
        self.best: Mapping[str, float] | None = None  # the figures of the best epoch, as a summary has them
        self.once = once
        self.late: dict[int, float] = {}

    def check(self, facts: Mapping[str, float]) -> None:
        for each in self.constraints:
            excess = each.excess(facts)
            if str(each) not in self.trial.constraints:
                self.trial.set_constraint(str(each), excess)
            if excess > 0:
                raise Forbidden(f"{each}, and it has {facts[each.figure]:,}")

    def began(self, wandb: str | None) -> None:
        if wandb is not None and self.trial.user_attrs.get("wandb") != wandb:
            self.trial.set_user_attr("wandb", wandb)

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self.once(self.seen)
        if self.curve is None:
            return
        value = self._value(metrics)
        if epoch in self.reported:  # before the run was interrupted
            if epoch == self.pruned:
                raise Pruned(f"after epoch {epoch}")
            return
        self.late[epoch] = value
        self.once(lambda: self._report(epoch))

    def finished(self, epochs: int) -> None:
        for _ in range(epochs):
            self.once(self.seen)

    def _report(self, epoch: int) -> None:
        for late, value in list(self.late.items()):
            self.trial.report(value, late)
            self.reported.add(late)
            del self.late[late]
        if self.trial.should_prune():
            self.trial.set_user_attr(PRUNED, epoch)  # the pruner would say otherwise when it is asked again
            raise Pruned(f"after epoch {epoch}")

    def _value(self, metrics: Mapping[str, float]) -> float:
        assert self.curve is not None
        if not self.curve.startswith("best/"):
            return metrics[self.curve]
        if self.best is None or metrics["val/accuracy"] > self.best["val/accuracy"]:
            self.best = metrics
        return self.best[self.curve.removeprefix("best/")]


_current: list[Outside] = [Outside()]


def current_trial() -> Outside:
    """The trial of the run that this process is training; one that does nothing outside a sweep."""
    return _current[-1]


@contextmanager
def live(trial: Outside) -> Iterator[None]:
    """Make it the current one while the block lasts."""
    _current.append(trial)
    try:
        yield
    finally:
        _current.pop()
