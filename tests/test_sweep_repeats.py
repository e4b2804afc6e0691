"""A point is trained once: what is proposed again is left out, and does not count."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path

import pytest
from optuna.trial import Trial, TrialState
from rich.console import Console

from swinexp.sweep import repeats
from swinexp.sweep import study as module
from swinexp.sweep.board import Board, shown_tally
from swinexp.sweep.budget import Enough
from swinexp.sweep.study import Nothing, Study
from swinexp.sweep.trials import ERROR, FORBIDDEN, REPEATS, counts
from tests.sweeping import study_of

RANDOM = "hydra/sweeper/sampler=random"
FEW = ("model=nano,small,tiny", "optimizer=adamw,sgd")

pytestmark = pytest.mark.usefixtures("quiet_optuna")


def run(study: Study, most: int = 100) -> str:
    """Complete so many trials, or as many as there are to be; returns why there are no more."""
    for _ in range(most):
        try:
            trial = study.claim()
        except Enough as enough:
            return f"failed: {enough}" if enough.failed else str(enough)
        study.tell(trial, TrialState.COMPLETE, [1.0])
    return ""


def next_or_none(study: Study) -> Trial | None:
    """A trial; None when there is none for a second."""
    for _ in range(20):
        try:
            return study.claim()
        except Nothing:
            time.sleep(0.05)
    return None


def work(study: Study) -> str:
    """As a worker does, until there is enough; returns why."""
    while True:
        try:
            trial = study.claim()
        except Nothing:
            time.sleep(0.02)
        except Enough as enough:
            return str(enough)
        else:
            study.tell(trial, TrialState.COMPLETE, [1.0])


def points(study: Study) -> list[tuple[object, ...]]:
    return [tuple(sorted(t.params.items())) for t in study.trials if counts(t)]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_every_point_of_a_small_space_is_trained_once(sampler: str) -> None:
    study = study_of(f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.n_trials=40", space=FEW)
    assert run(study) == "all 6 points were tried"
    assert len(points(study)) == len({*points(study)}) == 6
    for trial in study.trials:
        if REPEATS in trial.user_attrs:
            first = study.trials[trial.user_attrs[REPEATS]]
            assert (first.params, first.state) == (trial.params, TrialState.COMPLETE)
    assert run(study_of(RANDOM, "hydra.sweeper.n_trials=40", space=FEW)) == "all 6 points were tried"  # typed again


def test_what_is_left_of_a_small_space_is_not_called_tried_while_it_is_trained() -> None:
    study = study_of(RANDOM, "hydra.sweeper.n_trials=40", space=["optimizer=adamw,sgd"])
    study.tell(study.claim(), TrialState.COMPLETE, [1.0])
    last = study.claim()
    with pytest.raises(Nothing):
        study.claim()
    assert study.spent() is None
    study.give_back(last)
    assert study.spent() is None
    assert study.claim().number == last.number
    study.tell(last, TrialState.COMPLETE, [1.0])
    assert str(study.spent()) == "all 2 points were tried"


def test_of_two_workers_with_one_point_one_has_it() -> None:
    space = ["optimizer=adamw,sgd"]
    options = (RANDOM, "hydra.sweeper.n_trials=40")
    studies = [study_of(*options, space=space) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        claims = [pool.submit(next_or_none, study) for study in studies]
    got = [claim.result() for claim in claims]
    trials = [trial for trial in got if trial is not None]
    assert sorted(trial.params["optimizer"] for trial in trials) == ["adamw", "sgd"]


def test_n_trials_is_how_many_are_trained() -> None:
    study = study_of(RANDOM, "hydra.sweeper.n_trials=5", space=FEW)
    assert run(study) == ""
    assert len({*points(study)}) == 5
    repeated = len(study.trials) - 5
    assert repeated > 0
    assert shown_tally(study.trials) == f"5 complete, {repeated} repeated"


def test_where_the_sampler_finds_no_other_point_one_is_drawn_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REPEATS", 2)
    study = study_of(RANDOM, "hydra.sweeper.n_trials=12", space=("model=nano,small,tiny", "x=range(1,4)"))
    assert run(study) == ""
    assert len({*points(study)}) == 12
    in_a_row = most = 0
    for trial in study.trials:
        in_a_row = in_a_row + 1 if REPEATS in trial.user_attrs else 0
        most = max(most, in_a_row)
    assert most == 2


def test_conditional_points_are_counted_as_they_are() -> None:
    conditional = "hydra.sweeper.conditional=[{when: {optimizer: sgd}, params: {m: '1,2,3'}}]"
    study = study_of(RANDOM, conditional, "hydra.sweeper.n_trials=40", space=["optimizer=adamw,sgd"])
    assert run(study) == "all 4 points were tried"


def test_what_failed_is_tried_again_by_the_next_command_and_a_pruned_or_forbidden_point_never() -> None:
    study = study_of("hydra.sweeper.n_trials=100", RANDOM, space=FEW)
    kinds = [{ERROR: {"kind": "out of memory", "line": ""}}, {FORBIDDEN: "too large"}, {}]
    ends = [TrialState.FAIL, TrialState.PRUNED, TrialState.PRUNED]
    for state, attributes in zip(ends, kinds, strict=True):
        study.tell(study.claim(), state, attributes=attributes)
    failed, *others = (trial.params for trial in study.trials if REPEATS not in trial.user_attrs)
    assert run(study) == "all 6 points were tried"
    assert failed not in [trial.params for trial in study.trials if trial.state == TrialState.COMPLETE]
    time.sleep(0.001)
    assert run(study_of("hydra.sweeper.n_trials=100", RANDOM, space=FEW)) == "all 6 points were tried"
    trained = [trial.params for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert not any(point in trained for point in others)
    assert all(trained.count(point) == 1 for point in trained)
    assert {tuple(failed.items())} | {tuple(each.items()) for each in [*others, *trained]} == {
        (("model", model), ("optimizer", optimizer))
        for model in ("nano", "small", "tiny")
        for optimizer in ("adamw", "sgd")
    }


def test_a_space_of_which_every_point_fails_is_a_failure() -> None:
    study = study_of("hydra.sweeper.n_trials=100", RANDOM, space=["optimizer=adamw,sgd"])
    for _ in range(2):
        study.fail(study.claim(), "bug", "broken")
    with pytest.raises(Enough, match="^all 2 points were tried, and none was trained to its end$") as enough:
        study.claim()
    assert enough.value.failed


def test_numbers_with_a_step_are_counted() -> None:
    study = study_of(RANDOM, "hydra.sweeper.n_trials=40", space=["x=range(0.1,0.7,0.2)", "optimizer=adamw,sgd"])
    assert run(study) == "all 8 points were tried"
    assert len(points(study)) == len({*points(study)}) == 8


def test_points_that_are_not_counted_are_not_trained_twice_either() -> None:
    study = study_of(RANDOM, "hydra.sweeper.n_trials=40", space=["x=tag(int,log,interval(1,4))"])
    assert run(study) == "the last 200 points were tried before"
    assert len(points(study)) == len({*points(study)}) == 4


def test_several_workers_see_that_there_is_no_other_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "IN_VAIN", 30)
    studies = [study_of(RANDOM, "hydra.sweeper.n_trials=40", space=["x=tag(int,log,interval(1,4))"]) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        ends = {*pool.map(work, studies)}
    assert ends == {"the last 30 points were tried before"}
    assert len({*points(studies[0])}) == len(points(studies[0])) == 4
    assert len(studies[0].trials) < 80


def test_the_end_of_an_interval_is_not_tried_again_and_again() -> None:
    study = study_of("hydra/sweeper/sampler=gp", "hydra.sweeper.n_trials=14", space=["x=interval(0,1)"])
    for _ in range(14):
        trial = study.claim()
        study.tell(trial, TrialState.COMPLETE, [trial.params["x"]])  # to be minimized: the best is an end
    assert len({*points(study)}) == 14


def test_what_is_typed_is_the_point_that_is_drawn() -> None:
    few = "x=range(0.1,0.7,0.2)"
    study = study_of(RANDOM, "hydra.sweeper.n_trials=4", "hydra.sweeper.enqueue=[{x: 0.3}]", space=[few])
    study.fill()
    run(study)
    assert sorted(f"{trial.params['x']:.1f}" for trial in study.trials if counts(trial)) == ["0.1", "0.3", "0.5", "0.7"]


def test_a_worker_that_dies_before_its_trial_was_ended_loses_nothing() -> None:
    study = study_of(RANDOM, "hydra.sweeper.n_trials=3", space=["optimizer=adamw,sgd", "model=nano,tiny"])
    run(study, most=1)
    while True:
        trial = study._claim()
        study.space.suggest(trial)
        if (other := study._settled(trial)) is not None:
            break
        study.tell(trial, TrialState.COMPLETE, [1.0])
    trial.set_user_attr(REPEATS, other)  # and there it dies
    study.give_back(trial)
    run(study)
    assert len({*points(study)}) == len(points(study)) == 3
    assert study.trials[trial.number].state == TrialState.PRUNED


def test_what_is_asked_for_is_trained_again() -> None:
    first = study_of("hydra.sweeper.n_trials=1", RANDOM, space=FEW)
    run(first)
    (point,) = (trial.params for trial in first.trials)
    typed = ",".join(f"{key}: {value}" for key, value in point.items())
    study = study_of("hydra.sweeper.n_trials=2", RANDOM, f"hydra.sweeper.enqueue=[{{{typed}}}]", space=FEW)
    study.fill()
    run(study)
    assert points(study) == [tuple(sorted(point.items()))] * 2


def test_repeats_may_be_wanted() -> None:
    study = study_of(RANDOM, "hydra.sweeper.n_trials=12", "hydra.sweeper.repeats=true", space=FEW)
    assert run(study) == ""
    assert len(study.trials) == len(points(study)) == 12


def test_with_another_config_a_point_is_another_run() -> None:
    def asked(epochs: int) -> dict[str, object]:
        return {"space": study.space.described(), "objective": {}, "config": {"trainer.epochs": epochs}}

    study = study_of(RANDOM, "hydra.sweeper.n_trials=6", space=FEW)
    study.agree(asked(3))
    run(study)
    assert len({*points(study)}) == 6
    study = study_of(
        RANDOM, "hydra.sweeper.n_trials=40", "hydra.sweeper.allow_space_change=true", space=FEW, folder=Path("sweep")
    )
    study.agree(asked(4))
    assert run(study) == "all 6 points were tried"
    assert sorted(points(study)) == sorted([*{*points(study)}] * 2)


def test_the_board_says_what_was_left_out() -> None:
    study = study_of(RANDOM, "hydra.sweeper.n_trials=6", space=FEW)
    said = StringIO()
    with Board(study, ["loss"], Console(file=said, width=200)):
        run(study)
    (line,) = (line for line in said.getvalue().splitlines() if line.startswith("trial") and "repeated" in line)
    first = next(trial for trial in study.trials if REPEATS in trial.user_attrs)
    assert line.split() == f"trial {first.number} repeated trial {first.user_attrs[REPEATS]} had this point".split()
