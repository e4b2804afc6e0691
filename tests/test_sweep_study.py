"""Who may take which trial, what becomes of those whose worker died, and when there is enough."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from swinexp import HERE
from swinexp.mistake import Mistake
from swinexp.sweep import budget, liveness
from swinexp.sweep.board import Board
from swinexp.sweep.budget import Enough
from swinexp.sweep.liveness import birth, me
from swinexp.sweep.study import Nothing, Study
from swinexp.sweep.trials import BEAT, ERROR, FORBIDDEN, FROM, LOST, WORKER, epochs, error, left_out, took
from tests.sweeping import gone, study_of

ELSEWHERE = {"host": "elsewhere", "boot": "b", "space": "s", "pid": 7, "birth": 8}


pytestmark = pytest.mark.usefixtures("quiet_optuna")


def states(study: Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def run(study: Study, *values: float | None) -> None:
    """Claim a trial for each, and complete it; None: it fails."""
    for value in values:
        trial = study.claim()
        if value is None:
            assert study.fail(trial, "bug", "broken")
        else:
            assert study.tell(trial, TrialState.COMPLETE, [value])


def hand(study: Study, trial: optuna.Trial, worker: dict[str, Any]) -> None:
    """Make it another worker's."""
    study.optuna._storage.set_trial_user_attr(trial._trial_id, WORKER, worker)


def why(study: Study) -> str:
    with pytest.raises(Enough) as enough:
        study.claim()
    return str(enough.value)


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_trial_is_claimed_and_told(storage: str) -> None:
    study = study_of(f"hydra.sweeper.storage={storage}", "hydra.sweeper.n_trials=2")
    first, second = study.claim(), study.claim()
    assert [first.number, second.number] == [0, 1]
    assert study.mine(first)
    assert study.trials[0].user_attrs[WORKER] == me()
    assert study.trials[0].params == first.params
    with pytest.raises(Nothing):  # all are taken, and one may come back
        study.claim()
    assert study.tell(second, TrialState.COMPLETE, [2.0])
    assert study.tell(first, TrialState.PRUNED)
    assert states(study) == ["PRUNED", "COMPLETE"]
    assert not study.mine(first)
    assert why(study) == ""


def test_a_trial_that_is_given_back_is_the_next_as_it_was() -> None:
    study = study_of("hydra.sweeper.n_trials=5")
    first, second = study.claim(), study.claim()
    study.give_back(first)
    assert states(study) == ["WAITING", "RUNNING"]
    again = study.claim()
    assert (again.number, again.params) == (first.number, first.params)
    assert LOST not in study.trials[0].user_attrs
    assert study.tell(again, TrialState.COMPLETE, [1.0])
    study.give_back(again)  # it is finished: nothing happens
    assert states(study) == ["COMPLETE", "RUNNING"]
    assert study.tell(second, TrialState.COMPLETE, [1.0])


def test_a_trial_whose_worker_is_gone_is_the_next_as_it_was() -> None:
    study = study_of()
    first = study.claim()
    first.report(0.5, 3)
    hand(study, first, gone())
    again = study.claim()
    assert (again.number, again.params) == (0, first.params)
    assert study.trials[0].user_attrs[LOST] == [3]
    assert study.trials[0].user_attrs[WORKER] == me()


def test_a_trial_whose_worker_never_said_who_it_is_is_queued_again() -> None:
    study = study_of()
    study.optuna.ask()  # and killed before it could say so
    assert study.claim().number == 0


def test_a_trial_of_a_living_worker_is_left_alone() -> None:
    study = study_of()
    first = study.claim()
    hand(study, first, {**me(), "pid": os.getppid(), "birth": birth(os.getppid())})
    assert study.claim().number == 1
    assert LOST not in study.trials[0].user_attrs


def test_a_process_with_the_number_of_a_dead_worker_is_not_it() -> None:
    study = study_of()
    first = study.claim()
    hand(study, first, {**me(), "pid": os.getppid(), "birth": 1})
    assert study.claim().number == 0


def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen(["true"])
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert birth(process.pid) is None
    process.wait()
    assert birth(process.pid) is None
    assert birth(os.getpid()) == me()["birth"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(liveness.time, "monotonic", found)
    return found


def elsewhere(study: Study, *trials: optuna.Trial, beats: int = 0, pid: int = 7) -> None:
    """Trials of a worker on another machine, which has given so many signs of life."""
    for trial in trials:
        hand(study, trial, {**ELSEWHERE, "pid": pid})
        study.optuna._storage.set_trial_user_attr(trial._trial_id, BEAT, beats)


def lost(study: Study, number: int = 0) -> bool:
    return study._lost(study.trials[number])


def test_a_worker_elsewhere_is_dead_after_the_grace_without_a_sign(clock: Clock) -> None:
    study = study_of("hydra.sweeper.grace=100")
    trial = study.claim()
    elsewhere(study, trial, beats=5)
    assert not lost(study)
    clock.now += 99
    assert not lost(study)
    clock.now += 2
    assert lost(study)
    assert study.claim().number == 0


def test_a_worker_elsewhere_lives_as_long_as_it_gives_signs(clock: Clock) -> None:
    study = study_of("hydra.sweeper.grace=100")
    trial = study.claim()
    for beats in range(5):
        elsewhere(study, trial, beats=beats)
        assert not lost(study)
        clock.now += 90
        assert not lost(study)
    clock.now += 20
    assert lost(study)


def test_a_trial_that_another_worker_takes_up_has_its_grace_anew(clock: Clock) -> None:
    study = study_of("hydra.sweeper.grace=100")
    first, second = study.claim(), study.claim()
    elsewhere(study, first, second, beats=5)
    assert study.claim().number == 2
    clock.now += 101
    assert study.claim().number == 0  # both are lost; the second is taken up by a third machine, with no sign yet
    assert states(study) == ["RUNNING", "WAITING", "RUNNING"]
    study.optuna._storage.set_trial_state_values(second._trial_id, TrialState.RUNNING)
    hand(study, second, {**ELSEWHERE, "host": "third"})
    assert not lost(study, 1)
    clock.now += 101
    assert lost(study, 1)


def test_the_signs_of_life_are_of_who_has_the_trial() -> None:
    study = study_of()
    trial = study.claim()
    study.beat(trial, 3)
    assert study.trials[0].user_attrs[BEAT] == 3
    hand(study, trial, ELSEWHERE)
    study.beat(trial, 4)
    assert study.trials[0].user_attrs[BEAT] == 3
    hand(study, trial, me())
    study.tell(trial, TrialState.COMPLETE, [1.0])
    study.beat(trial, 5)  # the thread that gives them may be late


@pytest.mark.parametrize("finished", [False, True])
def test_who_was_taken_for_dead_cannot_tell(finished: bool, caplog: pytest.LogCaptureFixture) -> None:
    study, other = study_of(), study_of()
    trial = study.claim()
    hand(study, trial, ELSEWHERE)
    if finished:
        other.optuna.tell(trial.number, 7.0)
    before = other.trials[0].user_attrs
    with caplog.at_level(logging.WARNING):
        assert not study.tell(trial, TrialState.COMPLETE, [1.0], {"seeds": [1]})
        assert not study.fail(trial, "bug", "broken")
        study.give_back(trial)
    assert caplog.text.count("trial 0 was given to another worker meanwhile: its end here does not count") == 2
    now = other.trials[0]
    assert now.state == (TrialState.COMPLETE if finished else TrialState.RUNNING)
    assert now.values == ([7.0] if finished else None)
    assert now.user_attrs == before


def test_a_failure_says_why() -> None:
    study = study_of()
    run(study, None)
    assert study.trials[0].state == TrialState.FAIL
    assert error(study.trials[0]) == {"kind": "bug", "line": "broken"}
    assert error(optuna.trial.create_trial(state=TrialState.FAIL))["kind"] == "unknown"


def test_n_trials_is_a_total_however_often_the_command_is_given() -> None:
    run(study_of("hydra.sweeper.n_trials=3"), 1.0, None)
    second = study_of("hydra.sweeper.n_trials=3")
    run(second, 1.0)
    assert why(second) == ""
    assert len(second.trials) == 3
    third = study_of("hydra.sweeper.n_trials=4")
    run(third, 1.0)
    assert why(third) == ""


def test_there_are_20_trials_unless_a_grid_has_its_own_number() -> None:
    assert study_of().wanted == 20
    grid = ("hydra/sweeper/sampler=grid",)
    space = ("x=1,2,3", "y=1,2")
    assert study_of(*grid, space=space, folder=Path("a")).wanted == 6
    assert study_of(*grid, "hydra.sweeper.n_trials=4", space=space, folder=Path("b")).wanted == 4
    assert study_of(*grid, "hydra.sweeper.n_trials=40", space=space, folder=Path("c")).wanted == 6


def test_a_forbidden_trial_is_not_counted() -> None:
    study = study_of("hydra.sweeper.n_trials=2")
    for _ in range(4):
        assert study.tell(study.claim(), TrialState.PRUNED, attributes={FORBIDDEN: "parameters <= 1"})
    run(study, 1.0, 1.0)
    assert why(study) == ""
    assert len(study.trials) == 6


def test_a_grid_ends_with_its_points_though_some_are_forbidden() -> None:
    study = study_of("hydra/sweeper/sampler=grid", space=["x=1,2,3", "y=1,2"])
    study.fill()
    tried = []
    for _ in range(6):
        trial = study.claim()
        tried.append(dict(trial.params))
        if trial.params["x"] == 2:
            study.tell(trial, TrialState.PRUNED, attributes={FORBIDDEN: "x"})
        else:
            study.tell(trial, TrialState.COMPLETE, [1.0])
    assert tried == study.every
    assert why(study) == ""


def test_a_part_of_a_grid_goes_on_past_what_is_forbidden() -> None:
    study = study_of("hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=2", space=["x=1,2,3,4"])
    study.fill()
    assert states(study) == ["WAITING"] * 2
    study.tell(study.claim(), TrialState.PRUNED, attributes={FORBIDDEN: "x"})
    run(study, 1.0, 1.0)
    assert [trial.params["x"] for trial in study.trials] == [1, 2, 3]
    assert why(study) == ""


def test_a_constraint_that_forbids_everything_ends_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MOST_FORBIDDEN", 5)
    study = study_of()
    for _ in range(5):
        study.tell(study.claim(), TrialState.PRUNED, attributes={FORBIDDEN: "x"})
    with pytest.raises(Enough, match="forbade 5 points in a row") as enough:
        study.claim()
    assert enough.value.failed


def test_failures_in_a_row_end_the_command() -> None:
    options = "hydra.sweeper.max_consecutive_failures=3"
    study = study_of(options)
    run(study, None, None, 1.0, None, None, None)
    with pytest.raises(Enough, match=r"3 trials in a row failed \(hydra.sweeper.max_consecutive_failures\)") as enough:
        study.claim()
    assert enough.value.failed
    time.sleep(0.001)
    assert study_of(options).claim().number == 6  # the same command tries again


def test_a_diverged_trial_is_no_failure_in_a_row() -> None:
    study = study_of("hydra.sweeper.max_consecutive_failures=2")
    run(study, None)
    for _ in range(5):
        study.fail(study.claim(), "diverged", "the loss is not finite")
    run(study, None)
    assert study.claim().number == 7


def test_a_share_of_failures_ends_the_command() -> None:
    study = study_of("hydra.sweeper.max_failure_rate=0.5")
    run(study, *[1.0, None] * 4, None)
    run(study, None)  # there were fewer than ten
    assert why(study) == "60% of 10 trials failed (hydra.sweeper.max_failure_rate)"
    half = study_of("hydra.sweeper.max_failure_rate=0.5", folder=Path("half"))
    run(half, *[1.0, None] * 5)
    assert half.claim().number == 10


def test_a_timeout_begins_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of("hydra.sweeper.timeout=60")
    run(study, 1.0)
    study.budget.began -= 61
    assert why(study) == "hydra.sweeper.timeout=60 seconds are over"
    monkeypatch.setenv("SWINEXP_BEGAN", str(time.time() - 61))  # a worker of that command
    assert why(study_of("hydra.sweeper.timeout=60")) == "hydra.sweeper.timeout=60 seconds are over"
    monkeypatch.delenv("SWINEXP_BEGAN")
    assert study_of("hydra.sweeper.timeout=60").claim().number == 1


def test_epochs_in_all_end_the_study() -> None:
    study = study_of("hydra.sweeper.max_epochs_total=10")
    for last in (4, 5):
        trial = study.claim()
        for epoch in range(1, last + 1):
            trial.report(0.1, epoch)
        study.tell(trial, TrialState.PRUNED)
    trial = study.claim()
    assert epochs(study.trials) == 9
    assert study.tell(trial, TrialState.COMPLETE, [1.0], {"epochs": 1})  # without a curve
    assert epochs(study.trials) == 10
    assert why(study) == "hydra.sweeper.max_epochs_total=10 epochs are trained"


def test_a_trial_that_loses_its_worker_again_and_again_fails() -> None:
    study = study_of("hydra.sweeper.max_interruptions=3")
    dead = gone()
    for _ in range(2):
        trial = study.claim()
        assert trial.number == 0
        hand(study, trial, dead)
    trial = study.claim()
    trial.report(0.5, 1)  # it has got further
    hand(study, trial, dead)
    for _ in range(2):
        trial = study.claim()
        assert trial.number == 0
        hand(study, trial, dead)
    assert study.claim().number == 1
    assert study.trials[0].user_attrs[LOST] == [0, 0, 1, 1, 1]
    assert study.trials[0].state == TrialState.FAIL
    assert study.trials[0].user_attrs[ERROR] == {
        "kind": "lost",
        "line": "its worker died 3 times without finishing another epoch",
    }


def test_an_interruption_by_the_user_is_none_of_those() -> None:
    study = study_of("hydra.sweeper.max_interruptions=1")
    for _ in range(4):
        study.give_back(study.claim())
    assert states(study) == ["WAITING"]


def asked(study: Study, **config: Any) -> dict[str, Any]:
    return {"space": study.space.described(), "objective": {"objective": ["val/loss"]}, "config": config}


def test_another_space_or_config_is_refused_with_the_difference() -> None:
    study = study_of()
    study.agree(asked(study, epochs=3, dim=16))
    study_of().agree(asked(study, epochs=3, dim=16))
    with pytest.raises(Mistake) as told:
        study_of().agree(asked(study, epochs=4, dim=16))
    assert str(told.value) == (
        "study sweep was begun with something else (epochs was 3 and is 4 now). Type hydra.sweeper."
        "study_name=ANOTHER_NAME, or hydra.sweeper.allow_space_change=true to go on with it"
    )
    wider = study_of(space=["x=interval(0,2)", "y=1,2"])
    with pytest.raises(Mistake) as told:
        wider.agree(asked(wider, epochs=1, dim=1))
    assert (
        "(x was interval(0,1) and is interval(0,2) now, y was not there and is 1,2 now, dim was 16 and is 1 now, "
        "and 1 more)" in str(told.value)
    )
    allowed = study_of("hydra.sweeper.allow_space_change=true", space=["x=interval(0,2)", "y=1,2"])
    allowed.agree(asked(wider, epochs=1, dim=1))
    study_of().agree(asked(wider, epochs=1, dim=1))  # what it is now
    with pytest.raises(Mistake):
        study.agree(asked(study, epochs=3, dim=16))


def test_a_study_from_before_a_key_goes_on_with_what_all_did_then() -> None:
    study = study_of()
    study.agree(asked(study, epochs=3))
    study_of().agree(asked(study, **{"epochs": 3, "patch.init": "normal", "attention.init": "normal"}))
    with pytest.raises(Mistake, match=r"\(patch\.init was normal and is whitened now\)"):
        study_of().agree(asked(study, **{"epochs": 3, "patch.init": "whitened"}))


def test_what_was_begun_with_another_config_is_left_behind() -> None:
    first = study_of("hydra.sweeper.n_trials=2", "hydra.sweeper.enqueue=[{x: 0.5}]")
    first.agree(asked(first, epochs=3))
    first.fill()
    first.give_back(first.claim())
    first.give_back(first.claim())  # the same one
    study = study_of("hydra.sweeper.n_trials=2", "hydra.sweeper.allow_space_change=true")
    study.agree(asked(study, epochs=4))
    again = study.claim()
    assert (again.number, again.params) == (1, {"x": 0.5})
    study.give_back(again)  # begun with this config
    run(study, 1.0, 1.0)
    assert why(study) == ""
    assert states(study) == ["PRUNED", "COMPLETE", "COMPLETE"]
    assert [left_out(trial) for trial in study.trials] == [
        "it was interrupted, and its config is not the study's any more",
        None,
        None,
    ]


def test_a_grid_tries_a_point_again_whose_config_was_changed() -> None:
    def opened(epochs: int) -> Study:
        options = ("hydra/sweeper/sampler=grid", "hydra.sweeper.allow_space_change=true")
        study = study_of(*options, space=["x=1,2"])
        study.agree(asked(study, epochs=epochs))
        study.fill()
        return study

    study = opened(3)
    study.give_back(study.claim())
    study = opened(4)
    run(study, 1.0, 1.0)
    assert why(study) == ""
    assert sorted(trial.params["x"] for trial in study.trials if trial.state == TrialState.COMPLETE) == [1, 2]


def test_a_worker_whose_files_were_changed_meanwhile_does_not_begin() -> None:
    study = study_of("hydra.sweeper.n_trials=1")
    study.agree(asked(study, epochs=3))
    worker = study_of("hydra.sweeper.n_trials=1")
    worker.still(asked(study, epochs=3))
    with pytest.raises(
        Mistake, match=r"a file was changed meanwhile \(epochs was 3 and is 4 now\). Undo that, and type"
    ):
        worker.still(asked(study, epochs=4))


def test_the_seconds_of_an_interrupted_trial_are_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of()
    now = time.time()
    trial = study.claim()
    monkeypatch.setattr("swinexp.sweep.study.time.time", lambda: now + 100)
    study.give_back(trial)
    run(study, 1.0)
    (done,) = study.trials
    assert 99 < (took(done) or 0) < 110


def test_the_seconds_till_a_worker_died_are_those_till_its_last_epoch() -> None:
    study = study_of()
    hand(study, study.claim(), gone())
    written = study.folder / "0" / "metrics.jsonl"
    written.parent.mkdir()
    written.write_text("{}\n")
    os.utime(written, (time.time() + 50, time.time() + 50))
    run(study, 1.0)
    (done,) = study.trials
    assert 49 < (took(done) or 0) < 60


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_study_whose_trials_were_all_mistaken_begins_anew(storage: str) -> None:
    def opened() -> Study:
        return study_of(f"hydra.sweeper.storage={storage}", "hydra.sweeper.n_trials=2")

    study = opened()
    study.agree(asked(study, epochs=3))
    for _ in range(2):
        study.fail(study.claim(), "mistake", "trainer.batch_size=128: there are only 120 training images")
    assert why(study) == ""
    study.close()
    study = opened()
    study.agree(asked(study, epochs=4))  # mended
    assert study.trials == []
    study.fail(study.claim(), "bug", "broken")
    study.fail(study.claim(), "mistake", "of some points alone")
    study.close()
    study = opened()
    with pytest.raises(Mistake):
        study.agree(asked(study, epochs=5))
    assert states(study) == ["FAIL", "FAIL"]


def test_another_config_with_which_nothing_is_trained_is_not_what_the_study_is() -> None:
    study = study_of("hydra.sweeper.n_trials=1")
    study.agree(asked(study, epochs=3))
    run(study, 1.0)
    done = study_of("hydra.sweeper.n_trials=1", "hydra.sweeper.allow_space_change=true")
    done.agree(asked(done, epochs=4))
    again = study_of("hydra.sweeper.n_trials=1")
    again.agree(asked(again, epochs=3))
    more = study_of("hydra.sweeper.n_trials=2", "hydra.sweeper.allow_space_change=true")
    more.agree(asked(more, epochs=4))
    with pytest.raises(Mistake):
        again.agree(asked(again, epochs=3))


def test_a_wider_space_goes_on_with_what_there_was() -> None:
    run(study_of(), 1.0, 0.5)
    wider = study_of("hydra.sweeper.allow_space_change=true", space=["x=interval(0,2)", "y=1,2"])
    run(wider, *[1.0] * 12)
    assert max(trial.params["x"] for trial in wider.trials) > 1
    assert "y" in wider.trials[-1].params


def test_another_direction_is_refused() -> None:
    study_of()
    with pytest.raises(Mistake) as told:
        study_of(directions=["maximize"])
    assert str(told.value) == (
        "hydra.sweeper.direction=maximize: study sweep is there already, and its direction is minimize. "
        "Type hydra.sweeper.study_name=ANOTHER_NAME for another objective, or remove sweep"
    )
    with pytest.raises(Mistake, match="direction=minimize,maximize"):
        study_of(directions=["minimize", "maximize"])
    assert Path("sweep/study.journal").exists()


def test_points_are_queued_once() -> None:
    options = ("hydra.sweeper.enqueue=[{x: 0.25, y: 2}, {x: 0.5}, {y: 2, x: 0.25}]", "hydra.sweeper.n_trials=4")
    for _ in range(2):
        study = study_of(*options, space=["x=interval(0,1)", "y=1,2"])
        study.fill()
        assert states(study) == ["WAITING"] * 2
    run(study, 1.0, 1.0, 1.0, 1.0)
    study.fill()
    assert states(study) == ["COMPLETE"] * 4
    assert why(study) == ""
    assert study.trials[0].params == {"x": 0.25, "y": 2}
    assert study.trials[1].params["x"] == 0.5
    more = study_of("hydra.sweeper.enqueue=[{x: 0.75}]", "hydra.sweeper.n_trials=5", space=["x=interval(0,1)", "y=1,2"])
    more.fill()
    run(more, 1.0)
    assert more.trials[4].params["x"] == 0.75


def test_points_that_are_queued_beyond_the_number_of_trials_are_counted() -> None:
    study = study_of("hydra.sweeper.n_trials=2", "hydra.sweeper.enqueue=[{x: 0.5}]")
    study.fill()
    assert study.beyond() == 0
    run(study, 1.0, 1.0)
    more = study_of("hydra.sweeper.n_trials=2", "hydra.sweeper.enqueue=[{x: 0.25}, {x: 0.75}]")
    more.fill()
    assert more.beyond() == 2
    assert study_of("hydra.sweeper.n_trials=3").beyond() == 0


def test_a_queued_point_of_a_grid_is_not_tried_again() -> None:
    study = study_of("hydra/sweeper/sampler=grid", "hydra.sweeper.enqueue=[{y: 2, x: 3}]", space=["x=1,2,3", "y=1,2"])
    study.fill()
    run(study, *[1.0] * 6)
    assert why(study) == ""
    points = [tuple(trial.params.values()) for trial in study.trials]
    assert points[0] in [(3, 2), (2, 3)]
    assert len(set(points)) == 6


def test_what_points_leave_open_is_drawn_anew_for_each() -> None:
    options = (
        "hydra.sweeper.enqueue=[{y: 1}, {y: 2}, {y: 3}]",
        "hydra/sweeper/sampler=random",
    )
    study = study_of(*options, space=["x=interval(0,1)", "y=1,2,3"])
    study.fill()
    run(study, *[1.0] * 5)
    assert len({trial.params["x"] for trial in study.trials}) == 5


def learn_from(study: Study) -> None:
    """Leave a study as a sweep does."""
    record = {"name": study.name, "storage": study.url}
    (study.folder / "study.json").write_text(json.dumps(record))


def test_a_warm_start_copies_what_fits_and_counts_none_of_it() -> None:
    old = study_of(space=["x=interval(0,2)", "y=1,2"], folder=Path("old"), seed=3)
    run(old, *[0.1 * number for number in range(8)], None)
    pruned = old.claim()
    pruned.report(0.9, 1)
    old.tell(pruned, TrialState.PRUNED)
    old.claim()
    learn_from(old)
    fitting = [t for t in old.trials if t.values is not None and t.params["x"] <= 1]
    assert 0 < len(fitting) < 9
    options = ("hydra.sweeper.warm_start=old", "hydra.sweeper.n_trials=3")
    space = ["x=interval(0,1)", "y=1,2"]
    for _ in range(2):
        study = study_of(*options, space=space)
        study.fill()
        copied = [t for t in study.trials if FROM in t.user_attrs]
        assert [(t.params, t.values, t.state) for t in copied] == [(t.params, t.values, t.state) for t in fitting]
    run(study, 1.0, 1.0, 1.0)
    assert why(study) == ""
    assert epochs(study.trials) == 0
    learn_from(study)
    third = study_of("hydra.sweeper.warm_start=sweep", space=space, folder=Path("third"))
    third.fill()
    assert len(third.trials) == 3  # not what that one was copied from


def test_a_warm_start_that_was_cut_short_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    old = study_of(folder=Path("old"))
    run(old, 0.0, 1.0, 2.0, 3.0, 4.0)
    learn_from(old)
    study = study_of("hydra.sweeper.warm_start=old")
    copies = []

    def killed(trial: FrozenTrial) -> None:
        if len(copies) == 2:
            raise KeyboardInterrupt
        copies.append(trial)
        add(trial)

    add = study.optuna.add_trial
    monkeypatch.setattr(study.optuna, "add_trial", killed)
    with pytest.raises(KeyboardInterrupt):
        study.fill()
    for _ in range(2):
        study_of("hydra.sweeper.warm_start=old").fill()
        assert [trial.value for trial in study.trials] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_warm_start_of_another_space_teaches_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    old = study_of(space=["y=1,2"], folder=Path("old"))
    run(old, 1.0)
    learn_from(old)
    study = study_of("hydra.sweeper.warm_start=old")
    study.fill()
    assert study.trials == []
    assert "nothing is to be learnt from old, which varies y, where this sweep varies x" in caplog.text


def test_the_board_tells_of_forbidden_trials_and_of_what_was_begun(capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of()
    for _ in range(12):
        trial = study.claim()
        study.tell(trial, TrialState.PRUNED, attributes={FORBIDDEN: "parameters <= 1, and it has 2"})
    trial = study.claim()
    with Board(study, ["value"]) as board:
        board.told = set()
        board.look(now=True)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "study sweep: 20 trials, 1 begun and not finished; in sweep"
    assert lines == [
        "trial 0  forbidden  parameters <= 1, and it has 2",
        "10 trials, 9  forbidden  parameters <= 1, and it has 2",
    ]


def test_the_board_begins_with_what_was_done_and_taken_over(capsys: pytest.CaptureFixture[str]) -> None:
    old = study_of(folder=Path("old"))
    run(old, 0.25, 0.0)
    learn_from(old)
    study = study_of("hydra.sweeper.warm_start=old")
    study.fill()
    run(study, 0.5, 0.125, 0.75)
    with Board(study, ["value"]):
        pass
    line = "study sweep: 20 trials, beside 2 of old (numbers 0–1), 3 trials done before (best 0.125, trial 3); in sweep"
    assert capsys.readouterr().out == f"{line}\n"


def test_a_warm_start_that_cannot_be_is_told() -> None:
    with pytest.raises(Mistake, match=r"warm_start=nowhere: no sweep's folder. Type one that has a study.json"):
        study_of("hydra.sweeper.warm_start=nowhere").fill()
    Path("moved").mkdir()
    storage = f"journal:///{Path('moved/there.log').absolute()}"
    Path("moved/study.json").write_text(json.dumps({"name": "moved", "storage": storage}))
    with pytest.raises(Mistake, match=r"warm_start=moved: its study is no longer in journal:///.*there.log"):
        study_of("hydra.sweeper.warm_start=moved").fill()


def test_a_study_that_cannot_be_opened_leaves_no_folder() -> None:
    Path("file").write_text("no database")
    with pytest.raises(Mistake):
        study_of(f"hydra.sweeper.storage=sqlite:///{Path('file').absolute()}", folder=Path("new"))
    assert not Path("new").exists()


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_two_may_open_a_fresh_study_at_once(storage: str) -> None:
    barrier, found, problems = threading.Barrier(4), [], []

    study = study_of(f"hydra.sweeper.storage={storage}", folder=Path("other"))  # Hydra composes in one thread only

    def make() -> None:
        barrier.wait()
        try:
            url = study.url.replace("other", "sweep")
            one = Study("sweep", Path("sweep"), url, ["minimize"], study.options, study.space, 0)
            found.append(one.claim().number)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert sorted(found) == [0, 1, 2, 3]


WORK = """
import sys
import optuna
from optuna.trial import TrialState
from swinexp.sweep.budget import Enough
from swinexp.sweep.study import Nothing
from tests.sweeping import study_of
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = study_of(*sys.argv[1:])
while True:
    try:
        trial = study.claim()
    except Nothing:
        continue
    except Enough:
        break
    print(trial.number, trial.params["x"], flush=True)
    assert study.tell(trial, TrialState.COMPLETE, [trial.params["x"]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_six_processes_lose_no_trial_and_take_none_twice(storage: str) -> None:
    options = (f"hydra.sweeper.storage={storage}", "hydra.sweeper.n_trials=60", "hydra/sweeper/sampler=random")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", WORK, *options], stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(6)
    ]
    lines = [line.split() for process in processes for line in process.communicate(timeout=240)[0].splitlines()]
    assert [process.returncode for process in processes] == [0] * 6
    assert Counter(int(number) for number, _ in lines) == Counter(range(60))
    trials: list[FrozenTrial] = study_of(*options).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 60
    for number, x in lines:
        assert trials[int(number)].values == [float(x)]
    assert len({trial.params["x"] for trial in trials}) == 60


def test_points_that_were_wanted_once_do_not_count() -> None:
    study = study_of(space=["x=1,2,3"])
    study.every = [{"x": 1}, {"x": 2}]
    study.fill()
    run(study, 0.5, 0.6)
    assert why(study) == ""
    study.every = [{"x": 3}, {"x": 1}]  # the best by now
    study.fill()
    assert study.claim().params == {"x": 3}


def test_a_list_cannot_change_within_a_study() -> None:
    study = study_of(space=["x=1,2"])
    study.agree({"space": {"x": "1,2"}})
    run(study, 1.0)
    wider = study_of("hydra.sweeper.allow_space_change=true", space=["x=1,2,3"])
    with pytest.raises(Mistake, match=r"x=1,2,3: a study can change the ends of an interval, not its scale or kind, n"):
        wider.agree({"space": {"x": "1,2,3"}})


def test_a_warm_start_knows_the_interval_of_each_condition() -> None:
    conditional = (
        "hydra.sweeper.params={optimizer: 'adamw,sgd'}",
        "hydra.sweeper.conditional=[{when: {optimizer: adamw}, params: {lr: 'interval(0,1)'}},"
        "{when: {optimizer: sgd}, params: {lr: 'interval(5,9)'}}]",
    )
    old = study_of(*conditional, space=[], folder=Path("old"))
    run(old, *[1.0] * 8)
    learn_from(old)
    assert {trial.params["optimizer"] for trial in old.trials} == {"adamw", "sgd"}
    study = study_of("hydra.sweeper.warm_start=old", *conditional, space=[])
    study.fill()
    assert [trial.params for trial in study.trials] == [trial.params for trial in old.trials]


def test_what_a_custom_space_raises_fails_the_trial() -> None:
    study = study_of()

    def broken(trial: optuna.trial.BaseTrial) -> None:
        trial.suggest_int("y", 0, 3)
        raise KeyError("typo")

    study.space.custom = broken
    with pytest.raises(Nothing):
        study.claim()
    assert states(study) == ["FAIL"]
    assert study.trials[0].user_attrs[ERROR] == {"kind": "bug", "line": "KeyError: 'typo'"}
    assert "in broken" in (study.folder / "0" / "error.txt").read_text()
    assert study.failed()
    study.space.custom = None
    run(study, 1.0)
    assert not study.failed()


def test_epochs_that_the_study_is_not_told_of_are_progress_too() -> None:
    study = study_of("hydra.sweeper.max_interruptions=2")
    metrics = study.folder / "0" / "seed1" / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    for count in range(4):
        metrics.write_text("{}\n" * count)
        trial = study.claim()
        assert trial.number == 0
        hand(study, trial, gone())
    metrics.write_text("{}\n" * 4)
    assert study.claim().number == 0
    assert study.trials[0].user_attrs[LOST] == [1, 2, 3, 4]
