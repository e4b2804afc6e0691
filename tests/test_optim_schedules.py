"""Schedules at points that their papers' formulas give in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from swinexp.config import typed
from swinexp.mistake import Mistake
from swinexp.optim import WSD, Constant, Cosine, Linear, OneCycle, Restarts, Schedule, Step, lr_scale
from tests.conftest import config


def at(schedule: Schedule, epochs: float, *points: float) -> list[float]:
    return [lr_scale(schedule, point, epochs) for point in points]


def test_cosine_warms_up_peaks_and_ends_at_its_final_share() -> None:
    expected = [0.1, 1, 0.01 + 0.99 * (1 + math.cos(math.pi / 4)) / 2, 0.01 + 0.99 * 0.5, 0.01]
    assert at(Cosine("cosine", 5, 0.01), 25, 0.5, 5, 10, 15, 25) == pytest.approx(expected)


def test_constant_stays_at_the_peak_after_warming_up() -> None:
    assert at(Constant("constant", 2), 10, 1, 2, 5, 10) == [0.5, 1, 1, 1]
    assert at(Constant("constant", 0), 10, 0.01) == [1]


def test_linear_is_a_straight_line() -> None:
    assert at(Linear("linear", 2, 0.2), 10, 1, 2, 4, 6, 10) == pytest.approx([0.5, 1, 0.8, 0.6, 0.2])


def test_wsd_decays_in_the_last_share_alone() -> None:
    assert at(WSD("wsd", 4, 0.2, "linear", 0.0), 100, 1, 4, 50, 80, 90, 100) == pytest.approx([0.25, 1, 1, 1, 0.5, 0])
    assert at(WSD("wsd", 0, 0.2, "sqrt", 0.1), 100, 80, 85, 95, 100) == pytest.approx(
        [1, 0.55, 0.1 + 0.9 * (1 - math.sqrt(0.75)), 0.1]
    )
    assert at(WSD("wsd", 8, 1.0, "linear", 0.0), 10, 4, 8, 9) == pytest.approx([0.5, 1, 0.5])  # no jump
    assert at(WSD("wsd", 0, 0.0, "linear", 0.0), 10, 9.9, 10) == [1, 1]


def test_step_divides_after_its_milestones() -> None:
    schedule = Step("step", 4, [0.5, 0.75], 0.1)
    assert at(schedule, 100, 2, 50, 50.01, 75, 75.01, 100) == pytest.approx([0.5, 1, 0.1, 0.1, 0.01, 0.01])
    assert at(Step("step", 0, [], 0.1), 100, 99) == [1]


def test_one_cycle_goes_up_down_and_on() -> None:
    schedule = OneCycle("one_cycle", 40, 0.1, 0.2, 0.001)
    expected = [0.1, 0.55, 1, 0.55, 0.1, 0.001 + 0.099 / 2, 0.001]
    assert at(schedule, 100, 0, 20, 40, 60, 80, 90, 100) == pytest.approx(expected)


@pytest.mark.parametrize("epochs", [50, 44.5, 41])
def test_one_cycle_without_room_for_its_way_down_falls_in_its_tail(epochs: float) -> None:
    schedule = OneCycle("one_cycle", 40, 0.1, 0.2, 0.001)
    halfway = (40 + epochs) / 2
    assert at(schedule, epochs, 20, 40, halfway, epochs) == pytest.approx([0.55, 1, 0.001 + 0.999 / 2, 0.001])
    assert at(schedule, 40, 40) == [1]
    assert at(OneCycle("one_cycle", 3, 0.1, 0.7, 0.001), 10, 3.1)[0] > 0.98  # (1 - 0.7) * 10 is a little over 3


def test_restarts_begin_again_with_longer_cycles() -> None:
    schedule = Restarts("restarts", 0, 0.1, 10, 2, False)
    halfway = 0.1 + 0.9 / 2
    assert at(schedule, 70, 0, 5, 10, 20, 30, 50, 70) == pytest.approx([1, halfway, 0.1, halfway, 0.1, halfway, 0.1])
    assert at(schedule, 70, 10.001, 30.001) == pytest.approx([1, 1])
    warm = Restarts("restarts", 2, 0.1, 10, 1, False)
    assert at(warm, 20, 1, 2, 6, 11, 12, 16) == pytest.approx([0.55, 1, 0.55, 0.55, 1, 0.55])


def test_a_restart_per_epoch_is_at_the_peak_for_its_whole_first_epoch() -> None:
    schedule = Restarts("restarts", 0, 0.0, 2, 1, True)
    assert at(schedule, 4, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4) == pytest.approx([1, 1, 1, 0.5, 0.5, 1, 1, 0.5, 0.5])


def test_reference_is_the_reference_script_epoch_by_epoch() -> None:
    """Four cycles of 50 epochs: ten from 1e-6 up to 1e-3, forty down a cosine, every step of an epoch at one lr."""
    run = typed(config("schedule=reference", "trainer.epochs=200", "optimizer.lr=1e-3"))
    up = [1e-6 + (1e-3 - 1e-6) * epoch / 10 for epoch in range(10)]
    down = [1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * epoch / 40)) / 2 for epoch in range(40)]
    steps = 7
    lrs = [run.optimizer.lr * lr_scale(run.schedule, (step + 1) / steps, 200) for step in range(200 * steps)]
    assert lrs[steps - 1 :: steps] == pytest.approx(4 * (up + down), rel=1e-12)
    assert all(lrs[step] == lrs[step - step % steps] for step in range(len(lrs)))
    assert [epoch for epoch in range(200) if lrs[epoch * steps] < 1.001e-6] == [0, 50, 100, 150]


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "wsd", "one_cycle", "step", "restarts", "reference"])
def test_every_schedule_stays_between_nothing_and_the_peak(name: str) -> None:
    schedule = typed(config(f"schedule={name}")).schedule
    for epochs in (1, 30, 400):
        assert all(0 <= lr_scale(schedule, epochs * i / 500, epochs) <= 1 for i in range(501))
    assert max(lr_scale(schedule, 400 * i / 8000, 400) for i in range(8001)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cosine("cosine", -1, 0.0), "schedule.warmup_epochs=-1: it must not be negative"),
        (lambda: Cosine("cosine", 1, 2.0), "schedule.final=2.0: a share of the peak lr"),
        (lambda: Linear("linear", 1, -0.1), "schedule.final=-0.1: a share of the peak lr"),
        (lambda: WSD("wsd", 1, 1.5, "sqrt", 0.0), "schedule.decay=1.5: a share of the run. Type schedule.decay=0.2"),
        (lambda: WSD("wsd", 1, 0.2, "cosine", 0.0), "schedule.shape=cosine: one of sqrt, linear"),
        (lambda: Step("step", 1, [0.5, 2.0], 0.1), r"schedule.milestones=\[0.5,2.0\]: shares of the run .* Type "),
        (lambda: Step("step", 1, [0.5, 0.25], 0.1), r"schedule.milestones=\[0.5,0.25\]: .* larger than the one before"),
        (lambda: Step("step", 1, [0.5], 1.0), "schedule.factor=1.0: a factor between 0 and 1"),
        (lambda: OneCycle("one_cycle", 1, 2.0, 0.1, 0.0), "schedule.start=2.0: a share of the peak lr"),
        (lambda: OneCycle("one_cycle", 1, 0.1, 1.0, 0.0), "schedule.tail=1.0: a share of the run"),
        (
            lambda: OneCycle("one_cycle", 1, 0.1, 0.1, 0.5),
            "schedule.final=0.5: .* at most schedule.start=0.1. Type schedule.final=0.001",
        ),
        (
            lambda: Restarts("restarts", 10, 0.1, 10, 1, False),
            "schedule.cycle_epochs=10: .* schedule.warmup_epochs=10. Type schedule.cycle_epochs=50",
        ),
        (lambda: Restarts("restarts", 0, 0.1, 1e-17, 1, False), "schedule.cycle_epochs=1e-17: at least 1 epoch"),
        (lambda: Restarts("restarts", 0, 0.1, 10, 0.5, False), "schedule.cycle_factor=0.5: at least 1"),
    ],
)
def test_mistakes(build: Callable[[], object], message: str) -> None:
    with pytest.raises(Mistake, match=message):
        build()
