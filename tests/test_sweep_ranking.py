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

CONFIG = {"config": {"trainer.epochs": 1}, "space": {"x": "interval(0,1)"}, "objective": {"seeds": 1}}

pytestmark = pytest.mark.usefixtures("quiet_optuna")


def searched(values: Mapping[float, float], *overrides: str) -> Study:
    """A study in which these points have these values, of which the smallest is the best."""
    study = study_of(*overrides, "hydra.sweeper.n_trials=9")
    study.agree(CONFIG)
    for x, value in values.items():
        study.optuna.enqueue_trial({"x": x})
        study.tell(study.claim(), TrialState.COMPLETE, [value])
    return study


def further(study: Study, seeds: range, *points: float) -> Study:
    """The study of these points' further seeds."""
    space = Space([], {**study.space.parameters, "seed": Parameter("seed", IntDistribution(0, 99), "further seeds")})
    every = [{"x": x, "seed": seed} for x in points for seed in seeds]
    top = Study("top", study.folder / "top", study.url, ["minimize"], study.options, space, 0, every)
    study.choose(every)
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


CHANGE = ("hydra.sweeper.allow_space_change=true", "hydra.sweeper.top_k=1", "hydra.sweeper.top_seeds=2")
LONGER = {**CONFIG, "config": {"trainer.epochs": 3}}


def test_further_seeds_of_a_finished_study_are_of_its_config() -> None:
    study = study_of("hydra.sweeper.n_trials=1")
    study.agree(CONFIG)
    study.tell(study.claim(), TrialState.COMPLETE, [1.0])
    for other in (LONGER, {**CONFIG, "objective": {"seeds": 2}}):
        with pytest.raises(Mistake, match=r"^hydra\.sweeper\.top_k=1: study sweep is done, with something else \("):
            study_of("hydra.sweeper.n_trials=1", *CHANGE).agree(other)
    study_of("hydra.sweeper.n_trials=1", *CHANGE).agree({**CONFIG, "space": {"x": "interval(0,2)"}})  # the same runs


def test_of_a_changed_study_only_new_trials_are_chosen() -> None:
    """Also those that were queued before, as all of a grid are."""
    study = study_of("hydra.sweeper.n_trials=9", "hydra.sweeper.enqueue=[{x: 0.1}, {x: 0.2}, {x: 0.3}]")
    study.agree(CONFIG)
    study.fill()
    study.tell(study.claim(), TrialState.COMPLETE, [1.0])
    again = study_of("hydra.sweeper.n_trials=9", *CHANGE)
    again.agree(LONGER)
    assert again.current() == []
    again.tell(again.claim(), TrialState.COMPLETE, [2.0])
    again.optuna.enqueue_trial({"x": 0.1})
    again.tell(again.claim(), TrialState.COMPLETE, [5.0])
    again.tell(again.claim(), TrialState.COMPLETE, [4.0])
    assert [(trial.number, trial.params["x"]) for trial in again.current()] == [(1, 0.2), (2, 0.3), (3, 0.1)]
    top = further(again, range(1, 2), 0.1)
    train(top, 6.0)
    assert best(again, top) == [(0.1, [4.0, 6.0])]  # and not with the 1.0 of before


def test_further_seeds_of_before_a_change_are_told_before_anything_is_trained() -> None:
    study = searched({0.1: 1.0})
    top = further(study, range(1, 2), 0.1)
    train(top, 1.5)
    assert best(study, top) == [(0.1, [1.0, 1.5])]
    with pytest.raises(Mistake, match="has further seeds of another config"):
        study_of("hydra.sweeper.n_trials=9", *CHANGE).agree(LONGER)
    plain = study_of("hydra.sweeper.n_trials=9", CHANGE[0])
    plain.agree(LONGER)
    plain.optuna.enqueue_trial({"x": 0.1})
    plain.tell(plain.claim(), TrialState.COMPLETE, [0.5])
    assert best(plain, top) == [(0.1, [0.5])]  # a dashboard reads both
    assert [each.figures for each in confirmed(plain, top)] == [[[1.0], [1.5]]]
    with pytest.raises(Mistake, match="has further seeds of another config"):
        study_of("hydra.sweeper.n_trials=9", *CHANGE).agree(LONGER)


def test_a_study_that_does_not_say_what_was_chosen_has_all_that_has_further_seeds() -> None:
    study = searched({0.1: 1.0, 0.2: 2.0, 0.3: 9.0})
    top = further(study, range(1, 2), 0.1, 0.2)
    train(top, 8.0, 2.0)
    study.optuna.set_user_attr("chosen", None)
    assert best(study, top) == [(0.2, [2.0, 2.0]), (0.1, [1.0, 8.0])]
