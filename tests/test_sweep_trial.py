"""What a run tells its study, and what it is told."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import optuna
import pytest

from swinexp.sweep.trial import Constraint, Forbidden, Inside, Pruned, constraint, current_trial, live

pytestmark = pytest.mark.usefixtures("quiet_optuna")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parameters <= 7.05e6", Constraint("parameters", 1, 7.05e6)),
        ("parameters<=7050000", Constraint("parameters", 1, 7.05e6)),
        ("  flops >= 1_000 ", Constraint("flops", -1, 1000)),
        ("flops >= -1.5E-3", Constraint("flops", -1, -0.0015)),
        ("parameters < 7", None),
        ("parameters <= many", None),
        ("parameters <= 1e", None),
        ("parameters <= 1 and flops <= 2", None),
        ("7 <= parameters", None),
        ("<= 7", None),
        ("", None),
    ],
)
def test_a_constraint_is_read(text: str, expected: Constraint | None) -> None:
    assert constraint(text) == expected


def test_the_excess_is_above_0_where_a_constraint_does_not_hold() -> None:
    most, least = Constraint("parameters", 1, 10), Constraint("parameters", -1, 10)
    assert [most.excess({"parameters": value}) for value in (8, 10, 13)] == [-2, 0, 3]
    assert [least.excess({"parameters": value}) for value in (8, 10, 13)] == [2, 0, -3]
    assert str(most) == "parameters <= 10"
    assert constraint(str(least)) == least


class Told:
    """How often the worker was told of an epoch."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


class Judge(optuna.pruners.BasePruner):
    """Ends a trial at an epoch."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.asked: list[int] = []

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:  # noqa: ARG002
        self.asked.append(max(trial.intermediate_values))
        return self.asked[-1] == self.at


def inside(
    curve: str | None = "val/accuracy", *constraints: str, at: int = 0, trial: optuna.Trial | None = None
) -> tuple[Inside, Judge, Told]:
    judge, told = Judge(at), Told()
    if trial is None:
        trial = optuna.create_study(direction="maximize", pruner=judge).ask()
    limits = [found for each in constraints if (found := constraint(each)) is not None]
    return Inside(trial, "s", curve, limits, told), judge, told


def reported(run: Inside) -> dict[int, float]:
    return run.trial.study.get_trials()[run.trial.number].intermediate_values


def test_each_epoch_is_reported_once_and_asked_for() -> None:
    run, judge, told = inside()
    for epoch in (1, 2, 3):
        run.epoch(epoch, {"val/accuracy": epoch / 10, "val/loss": 9.0})
    run.epoch(3, {"val/accuracy": 0.9})
    assert reported(run) == {1: 0.1, 2: 0.2, 3: 0.3}
    assert judge.asked == [1, 2, 3]
    assert told.times == 4
    run.finished(5)  # another seed, before the trial was interrupted
    assert told.times == 9


def test_a_resumed_run_reports_only_what_is_new() -> None:
    run, _, _ = inside()
    run.epoch(1, {"val/accuracy": 0.1})
    run.epoch(2, {"val/accuracy": 0.2})
    again, _, _ = inside(trial=run.trial)
    again.epoch(2, {"val/accuracy": 0.7})  # trained again from the checkpoint of epoch 1
    again.epoch(3, {"val/accuracy": 0.3})
    assert reported(again) == {1: 0.1, 2: 0.2, 3: 0.3}


def test_a_run_is_pruned_when_the_study_says_so() -> None:
    run, judge, _ = inside(at=2)
    run.epoch(1, {"val/accuracy": 0.1})
    with pytest.raises(Pruned, match="after epoch 2"):
        run.epoch(2, {"val/accuracy": 0.1})
    assert judge.asked == [1, 2]
    assert reported(run) == {1: 0.1, 2: 0.1}  # for the others to be compared with


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ("best/val/accuracy", [0.3, 0.5, 0.5, 0.6]),
        ("best/val/loss", [3.0, 2.0, 2.0, 1.0]),
        ("val/loss", [3.0, 2.0, 1.5, 1.0]),
    ],
)
def test_the_best_so_far_is_a_curve_of_its_own(curve: str, expected: list[float]) -> None:
    run, _, _ = inside(curve)
    rows = [(0.3, 3.0), (0.5, 2.0), (0.4, 1.5), (0.6, 1.0)]  # of the best epoch, as a summary has it
    for epoch, (accuracy, loss) in enumerate(rows, 1):
        run.epoch(epoch, {"val/accuracy": accuracy, "val/loss": loss})
    assert list(reported(run).values()) == expected


def test_without_a_curve_nothing_is_reported_or_asked() -> None:
    run, judge, told = inside(None, at=1)
    run.epoch(1, {"val/accuracy": 0.1})
    assert reported(run) == {}
    assert judge.asked == []
    assert told.times == 1


def test_what_is_forbidden_is_told_before_training() -> None:
    run, _, _ = inside("val/loss", "parameters <= 1000", "flops >= 5")
    with pytest.raises(Forbidden) as told:
        run.check({"parameters": 123456, "flops": 9})
    assert str(told.value) == "parameters <= 1000, and it has 123,456"
    known = run.trial.study.get_trials()[0].constraints
    assert known["parameters <= 1000"] == 122456


def test_what_is_allowed_is_written_down_once() -> None:
    run, _, _ = inside("val/loss", "parameters <= 1000", "flops >= 5")
    for _ in range(2):  # again when the run goes on
        run.check({"parameters": 1000, "flops": 9})
    assert run.trial.study.get_trials()[0].constraints == {"parameters <= 1000": 0, "flops >= 5": -4}


def test_the_run_that_wandb_knows_is_written_down() -> None:
    run, _, _ = inside()
    run.began(None)
    assert run.trial.user_attrs == {}
    run.began("abc")
    assert run.trial.study.get_trials()[0].user_attrs == {"wandb": "abc"}


def test_the_current_trial_is_the_one_that_lives() -> None:
    outside = current_trial()
    assert (outside.number, outside.study) == (None, None)
    outside.check({"parameters": 1e12})
    outside.began("abc")
    outside.epoch(1, {})
    run, _, _ = inside()
    with live(run):
        assert current_trial() is run
        assert (run.number, run.study) == (0, "s")
    assert current_trial() is outside
    with pytest.raises(ZeroDivisionError), live(run):
        1 / 0  # noqa: B018
    assert current_trial() is outside


def test_a_run_does_not_import_optuna() -> None:
    code = "import sys, swinexp.sweep; print('optuna' in sys.modules)"
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_verdict_holds_for_a_trial_that_was_killed_before_it_was_told() -> None:
    run, _, _ = inside(at=2)
    run.epoch(1, {"val/accuracy": 0.1})
    with pytest.raises(Pruned):
        run.epoch(2, {"val/accuracy": 0.1})
    again, judge, _ = inside(trial=run.trial)
    again.epoch(1, {"val/accuracy": 0.1})
    with pytest.raises(Pruned, match="after epoch 2"):
        again.epoch(2, {"val/accuracy": 0.1})
    assert judge.asked == []
