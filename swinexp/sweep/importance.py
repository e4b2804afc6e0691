"""Which parameters a study's objective follows."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from optuna import Study
from optuna.distributions import CategoricalDistribution
from optuna.importance import BaseImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

FEW = 10  # complete trials below which the order of the parameters is mostly chance


def out_of(complete: int) -> str:
    """How many complete trials importances are reckoned from, with a warning where they are few."""
    return f"{complete} complete trials{', few to go by' if complete < FEW else ''}"


class Forest(BaseImportanceEvaluator):
    """Each parameter's share of the variance that a random forest explains: Breiman's mean decrease in impurity (2001).

    A parameter that a condition leaves out of a trial has the median of its values there, and of choices none, so that
    it says little beyond what the condition's own key does. Optuna's default, PED-ANOVA, asks what the best tenth of
    the trials have in common, and misjudges choices (docs/decisions.md).
    """

    def evaluate(
        self, study: Study, params: list[str] | None = None, *, target: Callable[[FrozenTrial], float] | None = None
    ) -> dict[str, float]:
        """{parameter: share}, the largest first, 1 in all. Raises ValueError where the trials' values do not differ."""
        from sklearn.ensemble import RandomForestRegressor  # a second of imports

        trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        values = [trial.value if target is None else target(trial) for trial in trials]
        if len(set(values)) < 2:
            raise ValueError("no two complete trials have different values")
        shares = dict.fromkeys(params or sorted({name for trial in trials for name in trial.params}), 0.0)
        columns = [(name, column) for name in shares for column in _columns(name, trials)]
        if columns:
            features = [*zip(*(column for _, column in columns), strict=True)]
            forest = RandomForestRegressor(random_state=0).fit(features, values)
            for (name, _), share in zip(columns, forest.feature_importances_, strict=True):
                shares[name] += float(share)
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _columns(name: str, trials: list[FrozenTrial]) -> list[list[float]]:
    """A parameter as the forest sees it: its numbers, or for each of its choices where it was made."""
    having = [trial for trial in trials if name in trial.params]
    given: list[Any] = [trial.params[name] for trial in having]
    if any(isinstance(trial.distributions[name], CategoricalDistribution) for trial in having):
        return [
            [float(name in trial.params and trial.params[name] == choice) for trial in trials]
            for choice in dict.fromkeys(given)
        ]
    middle = statistics.median(given)
    return [[float(trial.params.get(name, middle)) for trial in trials]]
