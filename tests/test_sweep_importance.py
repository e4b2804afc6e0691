"""Which parameters matter, as a forest has it, against what made-up objectives are known to follow."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import Trial, create_trial

from swinexp.dashboard.report import _importances
from swinexp.sweep.importance import Forest

pytestmark = pytest.mark.usefixtures("quiet_optuna")

noise = np.random.default_rng(0).normal


def choices(trial: Trial) -> float:
    a, b = trial.suggest_categorical("a", ["p2", "p4", "p8"]), trial.suggest_categorical("b", ["w2", "w4"])
    trial.suggest_float("c", 0, 1)
    return 3 * {"p2": 0, "p4": 1, "p8": 2}[a] + 1.5 * (b == "w4") + 0.3 * noise()


def numbers(trial: Trial) -> float:
    a, b = trial.suggest_float("a", 1e-4, 1e-1, log=True), trial.suggest_float("b", 0, 1)
    trial.suggest_categorical("c", ["u", "v", "w", "x"])
    return -3 * (np.log10(a) + 2.5) ** 2 - 4 * (b - 0.4) ** 2 + 0.2 * noise()


def conditional(trial: Trial) -> float:
    a = trial.suggest_categorical("a", ["adamw", "muon"])
    b = trial.suggest_float("b", 0, 1) if a == "adamw" else trial.suggest_float("c", 0, 1)
    return 0.5 * (a == "muon") - 0.5 * (b - 0.5) ** 2 + 0.05 * noise()


@pytest.mark.parametrize("objective", [choices, numbers, conditional])
def test_what_the_objective_follows_most_comes_first(objective: Callable[[Trial], float]) -> None:
    """With TPE's points, most of which are like the best: there Optuna's own default takes choices for unimportant."""
    for seed in range(3):
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.optimize(objective, n_trials=40)
        shares = Forest().evaluate(study)
        assert sum(shares.values()) == pytest.approx(1)
        assert [*shares.values()] == sorted(shares.values(), reverse=True)
        assert next(iter(shares)) == "a"
        assert shares["a"] > 0.5
        again = optuna.importance.get_param_importances(study, evaluator=Forest())  # as its pictures do
        assert again == pytest.approx(shares)


def test_the_report_on_wandb_has_them_as_a_table() -> None:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(choices, n_trials=12)
    sweep: Any = SimpleNamespace(optuna=study, trials=study.trials, objectives=["val/accuracy"])
    head, rule, first, *_, last = _importances(sweep).splitlines()
    assert (head, rule) == ("| val/accuracy | importance |", "|---|---:|")
    assert re.fullmatch(r"\| a \| \d+% \|", first)
    assert last == "Of 12 complete trials; what was pruned does not count."
    sweep.trials = study.trials[:9]
    assert "Of 9 complete trials, few to go by; " in _importances(sweep)


def test_where_values_do_not_differ_nothing_is_said() -> None:
    study = optuna.create_study()
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        "a": optuna.distributions.FloatDistribution(0, 1)
    }
    for a in (0.1, 0.9):
        study.add_trial(create_trial(params={"a": a}, distributions=distributions, value=1.0))
    with pytest.raises(ValueError, match="no two complete trials have different values"):
        Forest().evaluate(study)
