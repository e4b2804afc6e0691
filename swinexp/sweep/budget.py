"""When there is enough: time, epochs, failures, and what Optuna's terminators say."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from swinexp.sweep.options import Options
from swinexp.sweep.trials import FORBIDDEN, REPEATS, counts, epochs, error

BEGAN = "SWINEXP_BEGAN"  # the variable that tells a worker when its command began
MOST_FORBIDDEN = 1000  # in a row, after which there is probably nothing that is allowed


class Enough(Exception):
    """No trial is to be begun. The message says why; it is empty when all are done. `failed`: because of failures;
    `gained`: because there is no more to be gained."""

    def __init__(self, why: str = "", failed: bool = False, gained: bool = False) -> None:
        super().__init__(why)
        self.failed, self.gained = failed, gained


class Budget:
    """What the options allow. `began` is when the command began that this process works for."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.began = float(os.environ.get(BEGAN, time.time()))

    def check(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        """Raise `Enough` when no trial is to be begun any more."""
        options = self.options
        if options.timeout is not None and time.time() - self.began > options.timeout:
            raise Enough(f"hydra.sweeper.timeout={options.timeout:g} seconds are over")
        if options.max_epochs_total is not None and epochs(trials) >= options.max_epochs_total:
            raise Enough(f"hydra.sweeper.max_epochs_total={options.max_epochs_total} epochs are trained")
        recent = sorted(
            (t for t in trials if counts(t) and t.datetime_complete and t.datetime_complete.timestamp() >= self.began),
            key=lambda trial: trial.datetime_complete or 0,
        )
        failed = [trial.state == TrialState.FAIL and error(trial)["kind"] != "diverged" for trial in recent]
        row = options.max_consecutive_failures
        if len(failed) >= row and all(failed[-row:]):
            raise Enough(f"{row} trials in a row failed (hydra.sweeper.max_consecutive_failures)", failed=True)
        rate = options.max_failure_rate
        if rate is not None and len(recent) >= 10:
            share = sum(trial.state == TrialState.FAIL for trial in recent) / len(recent)
            if share > rate:
                raise Enough(
                    f"{share:.0%} of {len(recent)} trials failed (hydra.sweeper.max_failure_rate)", failed=True
                )
        forbidden = [FORBIDDEN in t.user_attrs for t in trials if t.state.is_finished() and REPEATS not in t.user_attrs]
        if len(forbidden) >= MOST_FORBIDDEN and all(forbidden[-MOST_FORBIDDEN:]):
            raise Enough(f"the constraints forbade {MOST_FORBIDDEN} points in a row", failed=True)
        if options.terminator is not None and _terminates(study, options.terminator):
            raise Enough(f"no more is to be gained (hydra.sweeper.terminator={options.terminator})", gained=True)

    def spent(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> Enough | None:
        """Why no trial would be begun now, if so."""
        try:
            self.check(study, trials)
        except Enough as enough:
            return enough
        return None


def _terminates(study: optuna.Study, kind: str) -> bool:
    from optuna import terminator as t

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is experimental
        if kind == "stagnation":
            evaluator: Any = t.BestValueStagnationEvaluator()
            return t.Terminator(evaluator, t.StaticErrorEvaluator(0)).should_terminate(study)
        regret = t.RegretBoundEvaluator()
        return t.Terminator(regret, t.MedianErrorEvaluator(regret)).should_terminate(study)
