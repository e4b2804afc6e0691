"""No point is trained twice: which ones were tried, and when there is no other to be found."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from swinexp.sweep.budget import Enough
from swinexp.sweep.options import Options
from swinexp.sweep.space import Point, Space
from swinexp.sweep.trials import FROM, OF, REPEATS, TAKEN, as_key

MOST_POINTS = 10_000  # of a space whose points are counted
MOST_REPEATS = 20  # in a row, after which chance proposes the next point
IN_VAIN = 200  # in a row, after which there is probably no other point


def trains_once(options: Options, space: Space, every: Sequence[Point] | None) -> bool:
    """Whether a point that is proposed again is left out. Of an interval, only GP proposes a number again: its end."""
    proposed = every is None and space.custom is None
    return proposed and not options.repeats and (not space.is_continuous or options.sampler["name"] == "gp")


class Repeats:
    """The points of a study's trials. `since` is the first trial of the config that trials have now.

    `began` is when the command began that this process works for.
    """

    def __init__(self, space: Space, began: float) -> None:
        few = space.few_points(MOST_POINTS)
        self._few = None if few is None else {as_key(point): point for point in few}
        self._began = began

    def other(self, own: FrozenTrial, trials: Sequence[FrozenTrial], since: int) -> int | None:
        """The first trial that has the point of this one."""
        point = as_key(own.params)
        others = (each for each in self._with_points(trials, since) if each.number != own.number)
        return next((each.number for each in others if as_key(each.params) == point), None)

    def left(self, trials: Sequence[FrozenTrial], since: int) -> list[Point] | None:
        """The points that no trial has, if they can be counted."""
        if self._few is None:
            return None
        tried = {as_key(trial.params) for trial in self._with_points(trials, since)}
        return [point for key, point in self._few.items() if key not in tried]

    def in_a_row(self, trials: Sequence[FrozenTrial], since: int) -> int:
        """How many of the last trials that have ended had another one's point."""
        ended = [REPEATS in each.user_attrs for each in trials[since:] if each.state.is_finished()]
        return next((count for count, repeats in enumerate(reversed(ended)) if not repeats), len(ended))

    def all_tried(self, trials: Sequence[FrozenTrial], since: int) -> Enough | None:
        """Why no other point is to be found, if so."""
        why = None
        if self.left(trials, since) == []:
            why = f"all {len(self._few or [])} points were tried"
        elif self.in_a_row(trials, since) >= IN_VAIN:
            why = f"the last {IN_VAIN} points were tried before"
        if why is None:
            return None
        if any(trial.state == TrialState.COMPLETE for trial in trials):
            return Enough(why, gained=True)
        return Enough(f"{why}, and none was trained to its end", failed=True)

    def _with_points(self, trials: Sequence[FrozenTrial], since: int) -> list[FrozenTrial]:
        """Those of this config that were trained, are being trained or will be.

        One that failed has left its point to the next command, for which what failed may have been mended.
        """

        def has(trial: FrozenTrial) -> bool:
            if {FROM, REPEATS} & trial.user_attrs.keys() or trial.user_attrs.get(OF, 0) != since:
                return False
            if trial.state == TrialState.FAIL:
                return trial.datetime_complete is not None and trial.datetime_complete.timestamp() >= self._began
            return trial.state.is_finished() or TAKEN in trial.user_attrs

        return [trial for trial in trials if has(trial)]
