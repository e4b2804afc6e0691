"""Which trials are the best of a study, and by how much they can be believed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from swinexp.sweep.trials import CHOSEN, OF, SINCE, as_key, counts


class Known(Protocol):
    """A study, or one that is only read: as much as it takes to judge its trials."""

    @property
    def optuna(self) -> Study: ...

    @property
    def trials(self) -> list[FrozenTrial]: ...


@dataclass(frozen=True)
class Leader:
    """A trial with its values on every seed that its point was trained on, (seeds, objectives)."""

    trial: FrozenTrial
    figures: list[list[float]]

    @property
    def means(self) -> list[float]:
        """The mean of each objective over the seeds."""
        return [statistics.fmean(values) for values in zip(*self.figures, strict=True)]

    def __str__(self) -> str:
        shown = []
        for mean, values in zip(self.means, zip(*self.figures, strict=True), strict=True):
            spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
            shown.append(f"{number(mean)}{spread}")
        seeds = len(self.figures)
        return ", ".join(shown) + (f" (mean ± standard deviation of {seeds} seeds)" if seeds > 1 else "")


def leaders(study: Known, top: Known | None = None) -> list[Leader]:
    """The best trial of a study with one objective, or the front of one with several.

    With a study `top` of further seeds, the points that these are for and that have any, the best mean first.
    """
    found = [Leader(trial, on_seeds(trial)) for trial in front(study, study.trials)]
    if top is None:
        return found
    attributes = study.optuna.user_attrs
    chosen = attributes.get(CHOSEN)
    if chosen is not None and chosen["since"] != attributes.get(SINCE, 0):  # of another config
        return found
    every = confirmed(study, top)
    best = [each for each in every if chosen is None or as_key(each.trial.params) in chosen["points"]]
    sign = _signs(study)[0]
    return sorted(best, key=lambda leader: sign * leader.means[0]) or found


def confirmed(study: Known, top: Known) -> list[Leader]:
    """Every point that has further seeds, with all of its figures with that config."""
    further: dict[int, list[list[float]]] = {}
    since = (study.optuna.user_attrs.get(CHOSEN) or {"since": 0})["since"]
    alike = [trial for trial in study.trials if trial.user_attrs.get(OF, 0) == since]
    trials = {as_key(trial.params): trial for trial in distinct(ranked(study, alike))}
    for each in top.trials:
        trial = trials.get(as_key(without_seed(each.params)))
        if each.state == TrialState.COMPLETE and trial is not None:
            further.setdefault(trial.number, []).append(each.values)
    every = (trial for trial in trials.values() if trial.number in further)
    return [Leader(trial, [*on_seeds(trial), *further[trial.number]]) for trial in every]


def on_all_seeds(study: Known, top: Known | None, trials: Iterable[FrozenTrial]) -> list[Leader]:
    """Complete trials with all of their figures, further seeds included."""
    known = {} if top is None else {leader.trial.number: leader for leader in confirmed(study, top)}
    return [known.get(trial.number) or Leader(trial, on_seeds(trial)) for trial in trials]


def without_seed(point: Mapping[str, Any]) -> dict[str, Any]:
    """The point that a further seed is of."""
    return {key: value for key, value in point.items() if key != "seed"}


def ranked(study: Known, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials that keep the constraints, the best one first."""
    own = (t for t in trials if t.state == TrialState.COMPLETE and counts(t))
    kept = [t for t in own if all(excess <= 0 for excess in t.constraints.values())]
    return sorted(kept, key=lambda trial: (_costs(study, trial), trial.number))


def distinct(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The first trial of every point: samplers may propose one again."""
    return [*{as_key(trial.params): trial for trial in reversed(trials)}.values()][::-1]


def front(study: Known, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials that no other one is better than in every objective; of one objective, the best alone."""
    kept = ranked(study, trials)
    if len(study.optuna.directions) == 1:
        return kept[:1]
    costs = [_costs(study, trial) for trial in kept]

    def beaten(mine: Sequence[float]) -> bool:
        return any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in costs)

    return [trial for trial, mine in zip(kept, costs, strict=True) if not beaten(mine)]


def shown_values(trial: FrozenTrial) -> str:
    """The values of a trial, as far as it has any."""
    return ", ".join(map(number, trial.values or []))


def number(value: float) -> str:
    """Four digits, or a whole number with separators."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _signs(study: Known) -> list[int]:
    return [-1 if direction.name == "MAXIMIZE" else 1 for direction in study.optuna.directions]


def _costs(study: Known, trial: FrozenTrial) -> list[float]:
    return [sign * value for sign, value in zip(_signs(study), trial.values, strict=True)]


def on_seeds(trial: FrozenTrial) -> list[list[float]]:
    """The values of a complete trial, (seeds, objectives)."""
    seeds = trial.user_attrs.get("seeds", [trial.values])
    return [value if isinstance(value, list) else [value] for value in seeds]
