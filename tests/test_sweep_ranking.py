"""Which trials are called the best, with the further seeds of the best points."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from swinexp.mistake import Mistake
from swinexp.sweep.ranking import confirmed, leaders
from swinexp.sweep.report import write_report
from swinexp.sweep.space import Parameter, Space
from swinexp.sweep.study import Study
from tests.sweeping import study_of

CONFIG = {"config": {"trainer.epochs": 1}, "space": {"x": "interval(0,1)"}}

pytestmark = pytest.mark.usefixtures("quiet_optuna")


def searched(values: Mapping[float, float], *overrides: str) -> Study:
    """A study in which these points have these values, of which the smallest is the best."""
    study = study_of(*overrides, "hydra.sweeper.n_trials=9")
    for x, value in values.items():
        study.optuna.enqueue_trial({"x": x})
        study.tell(study.claim(), TrialState.COMPLETE, [value])
    return study


def further(study: Study, seeds: range, *points: float) -> Study:
    """The study of these points' further seeds."""
    space = Space([], {**study.space.parameters, "seed": Parameter("seed", IntDistribution(0, 99), "further seeds")})
    every = [{"x": x, "seed": seed} for x in points for seed in seeds]
    top = Study("top", study.folder / "top", study.url, ["minimize"], study.options, space, 0, every)
    top.choose(study)
    top.fill()
    return top


def train(top: Study, *values: float | None) -> None:
    """Complete its next trials; None fails."""
    for value in values:
        trial = top.claim()
        if value is None:
            top.fail(trial, "bug", "it broke")
        else:
            top.tell(trial, TrialState.COMPLETE, [value])


def best(study: Study, top: Study) -> list[tuple[float, list[float]]]:
    return [(each.trial.params["x"], [value for (value,) in each.figures]) for each in leaders(study, top)]


def test_the_best_mean_wins() -> None:
    study = searched({0.1: 1.0, 0.2: 2.0, 0.3: 9.0})
    top = further(study, range(1, 3), 0.1, 0.2)
    assert best(study, top) == [(0.1, [1.0])]  # before any is trained
    train(top, 5.0, 6.0, 2.0, 3.0)
    assert best(study, top) == [(0.2, [2.0, 2.0, 3.0]), (0.1, [1.0, 5.0, 6.0])]


def test_a_point_that_was_the_best_once_is_not_for_its_seeds_alone() -> None:
    study = searched({0.1: 5.0})
    train(further(study, range(1, 4), 0.1), 5.0, 6.0, 7.0)
    study.optuna.enqueue_trial({"x": 0.2})
    study.tell(study.claim(), TrialState.COMPLETE, [1.0])
    top = further(study, range(1, 3), 0.2)
    train(top, 2.0)  # and there it is interrupted
    assert best(study, top) == [(0.2, [1.0, 2.0])]
    assert sorted(len(each.figures) for each in confirmed(study, top)) == [2, 4]


def test_a_seed_that_failed_does_not_cost_a_point_its_place() -> None:
    study = searched({0.1: 1.0, 0.2: 2.0})
    top = further(study, range(1, 3), 0.1, 0.2)
    train(top, None, 1.5, 3.0, 3.0)
    assert best(study, top) == [(0.1, [1.0, 1.5]), (0.2, [2.0, 3.0, 3.0])]


def test_all_seeds_of_a_point_are_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = searched({0.1: 5.0})
    train(further(study, range(1, 4), 0.1), 5.0, 6.0, 8.0)
    study.optuna.enqueue_trial({"x": 0.2})
    study.tell(study.claim(), TrialState.COMPLETE, [1.0])
    top = further(study, range(1, 2), 0.2)
    train(top, 2.0)
    (study.folder / "best.yaml").write_text("of another trial")
    assert "best.yaml" not in write_report(study, top, ["val/loss"])  # nothing was trained here
    assert not (study.folder / "best.yaml").exists()
    with (study.folder / "results.csv").open() as file:
        rows = [(row["seeds"], row["val/loss mean"]) for row in csv.DictReader(file)]
    assert rows == [("4", "6.0"), ("2", "1.5")]


def test_further_seeds_are_of_the_config_that_the_points_had() -> None:
    change = ("hydra.sweeper.allow_space_change=true", "hydra.sweeper.top_k=1", "hydra.sweeper.top_seeds=2")
    study = study_of("hydra.sweeper.n_trials=1")
    study.agree(CONFIG)
    study.tell(study.claim(), TrialState.COMPLETE, [1.0])
    longer = {**CONFIG, "config": {"trainer.epochs": 3}}
    with pytest.raises(
        Mistake, match=r"^hydra\.sweeper\.top_k=1: study sweep is done, with something else \(trainer\.ep"
    ):
        study_of("hydra.sweeper.n_trials=1", *change).agree(longer)
    wider = {**CONFIG, "space": {"x": "interval(0,2)"}}
    study_of("hydra.sweeper.n_trials=1", *change).agree(wider)  # whose runs are the same

    again = study_of("hydra.sweeper.n_trials=2", *change)
    train(further(again, range(1, 2), *(trial.params["x"] for trial in study.trials)), 1.0)
    again.agree(longer)
    assert again.current(again.trials) == []
    again.tell(again.claim(), TrialState.COMPLETE, [2.0])
    assert [trial.number for trial in again.current(again.trials)] == [1]
    with pytest.raises(Mistake, match="has further seeds of another config"):
        further(again, range(1, 2), 0.5)
