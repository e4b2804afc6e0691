"""One worker: takes the next trial, has it trained, tells how it ended, until there is enough."""

from __future__ import annotations

import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from optuna.trial import TrialState

from swinexp.explain import explain
from swinexp.mistake import Diverged, Ended, Mistake, OutOfMemory, let_go, one_line
from swinexp.sweep.budget import Enough
from swinexp.sweep.patience import Away
from swinexp.sweep.study import Nothing, Study
from swinexp.sweep.trial import Constraint, Forbidden, Inside, Pruned, live
from swinexp.sweep.trials import FORBIDDEN

log = logging.getLogger(__name__)

POLL = 0.5  # seconds between two looks for a trial that has become free

Launch = Callable[[Sequence[str], int], JobReturn]
Seen = Callable[[], object]


class Worker:
    """`launch` runs a job with overrides and a number; `curve` is the key that trials are pruned by, if any.

    `seen` is called when there may be something new to show; `place` is the study's folder within the sweep's.
    """

    def __init__(
        self,
        study: Study,
        launch: Launch,
        seed: int,
        curve: str | None,
        constraints: Sequence[Constraint],
        seen: Seen,
        place: str = "",
    ) -> None:
        self.study, self.launch, self.seed, self.seen = study, launch, seed, seen
        self.constraints, self.place = constraints, place
        self.by_seeds = study.options.pruner["name"] == "wilcoxon"
        self.curve = None if self.by_seeds else curve
        self.epochs = 0
        self.late: dict[int, float] = {}

    def work(self) -> Enough:
        """Until there is enough; returns why. An interrupted trial goes back to the queue."""
        while True:
            try:
                trial = self.study.claim()
            except Nothing:
                time.sleep(POLL)
                continue
            except Enough as enough:
                return enough
            self.seen()
            try:
                with self._alive(trial):
                    self._try(trial)
            except KeyboardInterrupt:
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends it more than once
                self.study.give_back(trial)
                raise
            self.seen()

    def _try(self, trial: optuna.Trial) -> None:
        options, number = self.study.options, trial.number
        overrides = self.study.space.overrides(trial.params)
        trained: list[list[float]] = []
        self.epochs = 0
        for index in range(options.seeds):
            curve = self.curve if index == 0 else None
            inside = Inside(trial, self.study.name, curve, self.constraints, self._count, self.study.patience.once)
            self.late = inside.late if index == 0 else self.late  # only the first seed has a curve
            seeded = [f"seed={self.seed + index}"] if options.seeds > 1 else []
            where = f"hydra.sweep.subdir={self.place}{number}" + (f"/seed{index}" if seeded else "")
            try:
                with live(inside):
                    ended = self.launch([*overrides, *seeded, where], number)
            except HydraException as error:  # what is suggested does not compose
                self.study.fail(trial, "mistake", explain(error, overrides) or one_line(error))
                return
            if ended.status is not JobStatus.COMPLETED:
                self._ended_early(trial, ended._return_value)
                let_go(ended._return_value)  # which Hydra's frame holds, and it that frame
                if "torch" in sys.modules and kind_of(ended._return_value) == "out of memory":
                    sys.modules["torch"].cuda.empty_cache()
                return
            values = ended.return_value
            trained.append([float(value) for value in (values if isinstance(values, Sequence) else [values])])
            if not all(map(math.isfinite, trained[-1])):
                self.study.fail(trial, "no figure", f"the objective is {', '.join(map(str, trained[-1]))}")
                return
            if self.by_seeds:
                trial.report(trained[-1][0], index)
                if trial.should_prune():
                    self._finish(trial, TrialState.PRUNED)
                    return
        seeds = [values[0] if len(values) == 1 else values for values in trained]
        more = {"seeds": seeds} if options.seeds > 1 else {}
        self._finish(trial, TrialState.COMPLETE, [sum(each) / len(each) for each in zip(*trained, strict=True)], more)

    def _finish(
        self,
        trial: optuna.Trial,
        state: TrialState,
        values: list[float] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        more = dict(attributes or {})
        if self.epochs and (self.curve is None or self.study.options.seeds > 1):  # else they are those of its curve
            more["epochs"] = self.epochs
        self.study.tell(trial, state, values, more, self.late)

    def _ended_early(self, trial: optuna.Trial, error: Any) -> None:
        match error:
            case Away():
                raise error
            case Pruned():
                self._finish(trial, TrialState.PRUNED)
            case Forbidden():
                self._finish(trial, TrialState.PRUNED, attributes={FORBIDDEN: str(error)})
            case optuna.exceptions.UpdateFinishedTrialError():
                log.warning("trial %d was finished by another worker meanwhile", trial.number)
            case _:
                kind = kind_of(error)
                if kind == "bug":
                    self.study.crashed(trial, error)
                    return
                name = "" if isinstance(error, Mistake | Ended) else f"{type(error).__name__}: "
                self.study.fail(trial, kind, name + one_line(error))

    def _count(self) -> object:
        self.epochs += 1
        return self.seen()

    @contextmanager
    def _alive(self, trial: optuna.Trial) -> Iterator[None]:
        """Give signs of life while the block lasts."""
        over = threading.Event()

        def beats() -> None:
            count = 0
            while not over.wait(self.study.options.heartbeat):
                count += 1
                with suppress(Away):  # whoever asks something of the study ends
                    self.study.beat(trial, count)

        thread = threading.Thread(target=beats, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def kind_of(error: BaseException) -> str:
    """What to call a failure."""
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, OutOfMemory) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory"
    return "mistake" if isinstance(error, Mistake) else "bug"


def trial_folder(sweep: Path, number: int) -> Path:
    """Where a trial's run lies; with several seeds, that of the first."""
    whole = sweep / str(number)
    return first if (first := whole / "seed0").is_dir() else whole
