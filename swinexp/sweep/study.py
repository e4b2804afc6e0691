"""A study and its trials: who may take which, and what becomes of those whose worker died.

A trial that is interrupted goes back to the queue as it is, with its number, its point and its folder, and so with its
checkpoint. All that decides who runs what happens under one lock.
"""

from __future__ import annotations

import logging
import random
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from swinexp.folder import remove_empty, write_text
from swinexp.mistake import Ended, Mistake, one_line
from swinexp.sweep.agreement import alike, check_change, difference, trains_alike
from swinexp.sweep.budget import Budget, Enough
from swinexp.sweep.learning import learn
from swinexp.sweep.liveness import Liveness, me
from swinexp.sweep.options import Options
from swinexp.sweep.patience import Eager, Patience, is_away
from swinexp.sweep.ranking import without_seed
from swinexp.sweep.repeats import MOST_REPEATS, Repeats, trains_once
from swinexp.sweep.search import build_pruner, build_sampler
from swinexp.sweep.space import Point, Space
from swinexp.sweep.storage import (
    Everywhere,
    alone,
    checked,
    is_postgres,
    is_server,
    open_storage,
    shown_url,
    unusable,
)
from swinexp.sweep.trials import (
    BEAT,
    BEFORE,
    CHANGED,
    CHOSEN,
    ERROR,
    FROM,
    LEARNT,
    LED,
    LOST,
    OF,
    REPEATS,
    SINCE,
    SPENT,
    TAKEN,
    WORKER,
    as_key,
    counts,
    error,
)

log = logging.getLogger(__name__)


N_TRIALS = 20  # when the search has no end of its own


class Nothing(Exception):
    """No trial is free now, but one may be: those that run may lose their worker."""


class Study:
    """An Optuna study in its folder. `every` are the points that it consists of, if it does."""

    def __init__(
        self,
        name: str,
        folder: Path,
        url: str,
        directions: Sequence[str],
        options: Options,
        space: Space,
        seed: int,
        every: list[Point] | None = None,
    ) -> None:
        self.name, self.folder, self.url, self.options, self.space, self.seed = name, folder, url, options, space, seed
        self.budget = Budget(options)
        self.every = every
        self._repeats = Repeats(space, self.budget.began) if trains_once(options, space, every) else None
        self._liveness = Liveness(options.grace)
        self.patience = Patience(shown_url(url), options.patience, self._liveness.forget) if is_server(url) else Eager()
        self._everywhere = Everywhere(url, name) if is_postgres(url) else None
        self._unsure: int | None = None  # the trial that this process may have, or not, since the server went away
        new = not folder.exists()
        try:
            self._open(directions)
        except Exception as error:
            if new:
                (folder / ".lock").unlink(missing_ok=True)
                remove_empty(folder)
            if is_server(url) and is_away(error):
                raise unusable(url, error) from error
            raise

    def _open(self, directions: Sequence[str]) -> None:
        name, url = self.name, self.url
        with self.alone():  # of two first ones on a new file, one would fail
            storage = self.patience.steady(open_storage(url))
            with checked(url):
                try:
                    self.optuna = self._created(storage, [StudyDirection[each.upper()] for each in directions])
                except ValueError as error:
                    raise Mistake(f"hydra.sweeper.study_name={name}: {error}") from error
                there = [direction.name.lower() for direction in self.optuna.directions]
        if there != list(directions):
            raise Mistake(
                f"hydra.sweeper.direction={','.join(directions)}: study {name} is there already, and its direction is "
                f"{','.join(there)}. Type hydra.sweeper.study_name=ANOTHER_NAME for another objective, or remove "
                f"{self.folder}"
            )

    def _created(self, storage: Any, directions: Sequence[StudyDirection]) -> optuna.Study:
        """Optuna's study, made unless it is there."""
        return optuna.create_study(
            storage=storage,
            study_name=self.name,
            directions=directions,
            load_if_exists=True,
            pruner=build_pruner(self.options),
            sampler=build_sampler(self.options, self.space, self.seed, 0),
        )

    def close(self) -> None:
        """Let go of the storage; SQLite then puts its log into its one file."""
        backend = getattr(self.optuna._storage, "_backend", None)
        if isinstance(backend, RDBStorage):
            backend.remove_session()
            backend.engine.dispose()
        if self._everywhere is not None:
            self._everywhere.close()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the study's lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone(self.folder / ".lock"), self._everywhere() if self._everywhere is not None else nullcontext():
            yield

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials as they are now, not to be changed."""
        with checked(self.url):
            return self.optuna.get_trials(deepcopy=False)

    def agree(self, asked: Mapping[str, Any]) -> None:
        """Raise `Mistake` when the study was begun with another space, objective or config; write down this one."""
        self.patience(lambda: self._agree(asked))

    def _agree(self, asked: Mapping[str, Any]) -> None:
        with self.alone():
            if self._barren():
                self._begin_anew()
            known = self.optuna.user_attrs.get("asked")
            if known is not None and alike(known, asked):
                self._check_chosen(self._since)
                return
            if known is not None and not self.options.allow_space_change:
                raise Mistake(
                    f"study {self.name} was begun with something else ({difference(known, asked)}). Type "
                    "hydra.sweeper.study_name=ANOTHER_NAME, or hydra.sweeper.allow_space_change=true to go on with it"
                )
            check_change(self.space, self.trials, self.folder)
            since = self._since if known is not None and trains_alike(known, asked) else len(self.trials)
            done = known is not None and self.finished(self.trials) >= self.wanted
            # Where it is done, nothing is trained with this config but the further seeds.
            if known is not None and done and since != self._since and self.options.top_k:
                raise Mistake(
                    f"hydra.sweeper.top_k={self.options.top_k}: study {self.name} is done, with something else "
                    f"({difference(known, asked)}), so that further seeds would not be of its points. Type the command "
                    "as it was with top_k, or hydra.sweeper.study_name=ANOTHER_NAME"
                )
            self._check_chosen(since)
            if not done:
                self._leave_behind()
                self.optuna.set_user_attr(SINCE, since)
                self.optuna.set_user_attr("asked", dict(asked))

    def still(self, asked: Mapping[str, Any]) -> None:
        """Raise `Mistake` when the files that make the config have changed since the sweep's command read them."""
        known = self.optuna.user_attrs["asked"]
        done = self.options.allow_space_change and self.finished(self.trials) >= self.wanted  # and `known` of before
        if not done and not alike(known, asked):
            raise Mistake(
                f"study {self.name} began with something else, and a file was changed meanwhile "
                f"({difference(known, asked)}). Undo that, and type the same command; or with "
                "hydra.sweeper.study_name=ANOTHER_NAME, or hydra.sweeper.allow_space_change=true to go on with it"
            )

    def _check_chosen(self, since: int) -> None:
        """Raise `Mistake` when further seeds are wanted, and there are some of another config."""
        chosen = self.optuna.user_attrs.get(CHOSEN)
        if self.options.top_k and chosen is not None and chosen["since"] != since:
            raise Mistake(
                f"hydra.sweeper.top_k={self.options.top_k}: study {self.name} has further seeds of another config, of "
                "before allow_space_change. Type hydra.sweeper.study_name=ANOTHER_NAME, or leave top_k out"
            )

    def _leave_behind(self) -> None:
        """Mark what was begun with another config and is not finished: it cannot go on with this one."""
        for trial in self.trials:
            if WORKER in trial.user_attrs and not trial.state.is_finished():
                self.optuna._storage.set_trial_user_attr(trial._trial_id, BEFORE, True)

    def _barren(self) -> bool:
        """Whether no trial has begun to train: each was refused for a mistake, and left no folder."""
        own = [trial for trial in self.trials if FROM not in trial.user_attrs]
        return bool(own) and all(
            trial.state == TrialState.FAIL
            and error(trial)["kind"] == "mistake"
            and not (self.folder / str(trial.number)).exists()
            for trial in own
        )

    def _begin_anew(self) -> None:
        storage, directions = self.optuna._storage, self.optuna.directions
        log.info("study %s begins anew: none of its trials could begin before", self.name)
        optuna.delete_study(study_name=self.name, storage=storage)
        self.optuna = self._created(storage, directions)

    def fill(self) -> None:
        """Queue what is to be tried in any case: known points, and every point of a grid. Copy what is learnt from."""
        self.patience(self._fill)

    def _fill(self) -> None:
        with self.alone():
            trials = self.trials
            if self.options.warm_start is not None and LEARNT not in self.optuna.user_attrs:
                there = sum(FROM in trial.user_attrs for trial in trials)
                learn(self.optuna, self.space, self.options.warm_start, there)
                self.optuna.set_user_attr(LEARNT, self.options.warm_start)
            points = [*map(self.space.check, self.options.enqueue), *(self.every or [])[: self.options.n_trials]]
            self._queue(points, trials, most=len(points))

    def _queue(self, points: Sequence[Point], trials: Sequence[FrozenTrial], most: int) -> int:
        """Queue those that were not queued before, so many at most; returns how many."""
        queued = [t for t in trials if "fixed_params" in t.system_attrs and CHANGED not in t.user_attrs]
        there = {as_key(trial.system_attrs["fixed_params"]) for trial in queued}
        new = {as_key(point): point for point in points if as_key(point) not in there}
        for point in [*new.values()][:most]:
            self.optuna.enqueue_trial(self.space.named(point))
        return min(len(new), most)

    @property
    def wanted(self) -> int:
        """How many trials there are to be in all."""
        known = N_TRIALS if self.every is None else len(self.every)
        given = self.options.n_trials
        return known if given is None else given if self.every is None else min(known, given)

    def claim(self) -> optuna.Trial:
        """The next trial, with its point; this process has it from now on. Raises `Nothing`, `Enough` and `Away`.

        A trial whose point another one has is ended, and the next one taken: with the same seed it would come out the
        same. To a sampler it is a pruned one, which turns TPE to other points (docs/decisions.md).
        """
        while True:
            trial = self.patience(self._claim)
            if BEFORE in trial.user_attrs:
                self._end_outdated(trial)
                continue
            try:
                self.space.suggest(trial)
            except Exception as error:
                if self.space.custom is None or isinstance(error, Ended):  # not of hydra.sweeper.custom_search_space
                    raise
                self.crashed(trial, error)
                raise Nothing from error
            other = self.patience(lambda: self._settled(trial))  # noqa: B023
            if other is None:
                return trial
            self.tell(trial, TrialState.PRUNED, attributes={REPEATS: other})

    def _end_outdated(self, trial: optuna.Trial) -> None:
        """End a trial that was begun with another config; a point that was asked for is queued again."""
        self.tell(trial, TrialState.PRUNED, attributes={CHANGED: True})
        asked = self.optuna._storage.get_trial(trial._trial_id).system_attrs.get("fixed_params")
        if asked is not None:
            self.patience(lambda: self.optuna.enqueue_trial(asked))

    def _settled(self, trial: optuna.Trial) -> int | None:
        """The trial that has this one's point; none where this one has it from now on, or was asked for."""
        if self._repeats is None:
            return None
        with self.alone(), checked(self.url):
            trials, since = self.trials, self._since
            own = trials[trial.number]
            if REPEATS in own.user_attrs:  # of a worker that died before it had ended it
                return int(own.user_attrs[REPEATS])
            if TAKEN in own.user_attrs:
                return None
            asked = "fixed_params" in own.system_attrs and LED not in own.user_attrs
            first = None if asked else self._repeats.other(own, trials, since)
            if first is None:
                trial.set_user_attr(TAKEN, True)
            return first

    @property
    def _since(self) -> int:
        """The first trial of the config that trials have now."""
        return int(self.optuna.user_attrs.get(SINCE, 0))

    def _claim(self) -> optuna.Trial:
        with self.alone(), checked(self.url):
            trials = self.trials
            lost = [each for each in trials if each.state == TrialState.RUNNING and self._lost(each)]
            for each in lost:
                self._requeue(each)
            trials = self.trials if lost else trials
            self.budget.check(self.optuna, trials)
            running = sum(each.state == TrialState.RUNNING for each in trials)
            queued = next((each.number for each in trials if each.state == TrialState.WAITING), None)
            if self.finished(trials) + running >= self.wanted or (
                self.every is not None and queued is None and not self._queue(self.every, trials, most=1)
            ):
                if running:
                    raise Nothing
                raise Enough
            number = len(trials) if queued is None else queued
            self.optuna.sampler = build_sampler(self.options, self.space, self.seed, number)
            if queued is None and self._repeats is not None:
                if (over := self._repeats.all_tried(trials, self._since)) is not None:
                    raise Nothing if running else over
                if self._repeats.in_a_row(trials, self._since) >= MOST_REPEATS:
                    self._leave_to_chance(trials, self._repeats.left(trials, self._since))
            trial = self.optuna.ask()
            self._unsure = trial.number
            trial.set_user_attr(WORKER, me())
            if self._since:
                trial.set_user_attr(OF, self._since)
            self._unsure = None
            return trial

    def spent(self) -> Enough | None:
        """Why no trial would be begun now, if so, other than that all that are wanted are done."""
        trials = self.trials
        spent = self.budget.spent(self.optuna, trials)
        if spent is None and self._repeats is not None and self.finished(trials) < self.wanted:
            ended = all(trial.state.is_finished() for trial in trials)
            return self._repeats.all_tried(trials, self._since) if ended else None
        return spent

    def _leave_to_chance(self, trials: Sequence[FrozenTrial], left: Sequence[Point] | None) -> None:
        """Have the next trial's point drawn, from those that are left where they can be counted."""
        chance = f"{self.seed} {len(trials)}"
        if left:
            point = random.Random(chance).choice(left)
            self.optuna.enqueue_trial(self.space.named(point), user_attrs={LED: True})
        else:
            self.optuna.sampler = optuna.samplers.RandomSampler(seed=random.Random(chance).getrandbits(32))

    def beyond(self) -> int:
        """How many queued points are not trained, because as many as are wanted are finished."""
        trials = self.trials
        if self.every is not None or self.finished(trials) < self.wanted:
            return 0
        return sum(trial.state == TrialState.WAITING and WORKER not in trial.user_attrs for trial in trials)

    def current(self) -> list[FrozenTrial]:
        """The trials that have the config that the study has now."""
        return [trial for trial in self.trials if trial.user_attrs.get(OF, 0) == self._since]

    def choose(self, points: Sequence[Point]) -> None:
        """Write down which points get further seeds."""
        chosen = {"since": self._since, "points": sorted({as_key(without_seed(point)) for point in points})}
        self.patience(lambda: self.optuna.set_user_attr(CHOSEN, chosen))

    def finished(self, trials: Sequence[FrozenTrial]) -> int:
        """How many of those that are wanted are finished; of fixed points, none that were wanted once."""
        done = [trial for trial in trials if trial.state.is_finished() and counts(trial)]
        if self.every is None:
            return len(done)
        every = {as_key(point) for point in self.every}
        return sum(as_key(trial.params or trial.system_attrs.get("fixed_params", {})) in every for trial in done)

    def failed(self) -> bool:
        """Whether all that was trained failed, each trial of it."""
        done = [trial.state for trial in self.trials if trial.state.is_finished() and counts(trial)]
        return bool(done) and all(state == TrialState.FAIL for state in done)

    def mine(self, trial: optuna.Trial) -> bool:
        """Whether this process still has it: it may have been taken for dead."""
        return self._with_me(trial) == TrialState.RUNNING

    def _with_me(self, trial: optuna.Trial) -> TrialState | None:
        """Its state as this process left it; None when it is another worker's by now."""
        now = self.optuna._storage.get_trial(trial._trial_id)
        return now.state if now.user_attrs.get(WORKER) == me() else None

    def tell(
        self,
        trial: optuna.Trial,
        state: TrialState,
        values: Sequence[float] | None = None,
        attributes: Mapping[str, Any] | None = None,
        late: Mapping[int, float] | None = None,
    ) -> bool:
        """Write down how a trial ended, and what there is to say of it; False when it is another worker's by now.

        `late` are the figures of epochs that could not be told when they were there.
        """
        return self.patience(lambda: self._tell(trial, state, values, attributes or {}, late or {}))

    def _tell(
        self,
        trial: optuna.Trial,
        state: TrialState,
        values: Sequence[float] | None,
        attributes: Mapping[str, Any],
        late: Mapping[int, float],
    ) -> bool:
        with self.alone(), checked(self.url):
            now = self._with_me(trial)
            if now == state:  # the server's answer was lost
                return True
            if now != TrialState.RUNNING:
                log.warning("trial %d was given to another worker meanwhile: its end here does not count", trial.number)
                return False
            for epoch, value in late.items():
                trial.report(value, epoch)
            for key, value in attributes.items():
                trial.set_user_attr(key, value)
            self.optuna.tell(trial, values, state)
            return True

    def fail(self, trial: optuna.Trial, kind: str, line: str) -> bool:
        """Write down that a trial failed, and why."""
        return self.tell(trial, TrialState.FAIL, attributes={ERROR: {"kind": kind, "line": line}})

    def crashed(self, trial: optuna.Trial, error: BaseException) -> None:
        """Write down that a trial failed for a bug, whose traceback goes into its folder."""
        folder = self.folder / str(trial.number)
        folder.mkdir(exist_ok=True)
        write_text(folder / "error.txt", "".join(traceback.format_exception(error)))
        self.fail(trial, "bug", f"{type(error).__name__}: {one_line(error)}")

    def give_back(self, trial: optuna.Trial) -> None:
        """Queue an interrupted trial again; whoever looks next does where the server is away."""
        self.patience.once(lambda: self._give_back(trial))

    def _give_back(self, trial: optuna.Trial) -> None:
        with self.alone(), checked(self.url):
            if self.mine(trial):
                self._spend(self.optuna._storage.get_trial(trial._trial_id), time.time())
                self.optuna._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    def beat(self, trial: optuna.Trial, count: int) -> None:
        """A sign of life for workers on other machines, as long as this process has the trial."""
        self.patience.once(lambda: self._beat(trial, count))

    def _beat(self, trial: optuna.Trial, count: int) -> None:
        with self.alone():
            if self.mine(trial):
                self.optuna._storage.set_trial_user_attr(trial._trial_id, BEAT, count)

    def _lost(self, trial: FrozenTrial) -> bool:
        """Whether a running trial's worker is gone. Only asked under the lock, where each has one."""
        worker = trial.user_attrs.get(WORKER)
        if worker is None or (trial.number == self._unsure and worker == me()):
            return True
        return self._liveness.gone(trial.number, worker, trial.user_attrs.get(BEAT, 0))

    def _requeue(self, trial: FrozenTrial) -> None:
        storage, number = self.optuna._storage, trial._trial_id
        written = [*(self.folder / str(trial.number)).glob("**/metrics.jsonl")]  # a study need not be told of epochs
        self._spend(trial, max((path.stat().st_mtime for path in written), default=0.0))
        epochs = sum(path.read_text().count("\n") for path in written)
        lost = [*trial.user_attrs.get(LOST, []), max(epochs, *trial.intermediate_values, 0)]
        storage.set_trial_user_attr(number, LOST, lost)
        most = self.options.max_interruptions
        if len(lost) >= most and len(set(lost[-most:])) == 1:
            line = f"its worker died {most} times without finishing another epoch"
            storage.set_trial_user_attr(number, ERROR, {"kind": "lost", "line": line})
            storage.set_trial_state_values(number, TrialState.FAIL)
            return
        storage.set_trial_state_values(number, TrialState.WAITING)

    def _spend(self, trial: FrozenTrial, until: float) -> None:
        """Keep the seconds that a trial ran till it was interrupted: Optuna counts from when it goes on."""
        if trial.datetime_start is not None:
            own = max(0.0, until - trial.datetime_start.timestamp())
            self.optuna._storage.set_trial_user_attr(trial._trial_id, SPENT, trial.user_attrs.get(SPENT, 0.0) + own)
