"""What a trial says of itself, beside its values. Optuna is not imported here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# Names of attributes. `WORKER` has it, `BEAT` counts its signs of life, `LOST` are the epochs that it had each time
# that its worker died, `ERROR` is why it failed, `FROM` is the sweep that it was copied from, `REPEATS` the trial that
# has its point, `TAKEN` says that its point is its own, and `LED` that chance chose it.
# `SPENT` are the seconds before it was last interrupted. `BEFORE` was begun with another config than the study has now,
# and `CHANGED` could for that not go on.
WORKER, BEAT, LOST, ERROR, FROM = "worker", "beat", "lost", "error", "from"
FORBIDDEN, REPEATS, TAKEN, LED = "forbidden", "repeats", "taken", "led"
SPENT, BEFORE, CHANGED = "spent", "before", "changed"
# Of a study: its first trial of the config that it has now (`OF` is what that was when a trial began, unless it was 0),
# whether it has all that it is to learn from, and the points that were chosen for further seeds, with what `SINCE` was.
SINCE, OF, LEARNT, CHOSEN = "since", "of", "learnt", "chosen"
WHEN = " when "  # between a key and the condition under which a study has it as a parameter of its own


def key_of(name: str) -> str:
    """The key that a parameter of a study is for: optimizer.lr of `optimizer.lr when optimizer=sgd`."""
    return name.partition(WHEN)[0]


def by_key(params: Mapping[str, Any]) -> dict[str, Any]:
    """A study's parameters as {key: value}."""
    return {key_of(name): value for name, value in params.items()}


def keys_of(trials: Iterable[FrozenTrial]) -> list[str]:
    """The keys that any of them has a value for, as they first come."""
    return list(dict.fromkeys(key for trial in trials for key in by_key(trial.params)))


def as_key(point: Mapping[str, Any]) -> str:
    """A point, or a study's parameters, as something to know it by: the same for the same overrides, in any order."""
    typed = {key: float(f"{value:.12g}") if isinstance(value, float) else value for key, value in by_key(point).items()}
    return json.dumps(typed, sort_keys=True)


def counts(trial: FrozenTrial) -> bool:
    """Whether it is one of `n_trials`: not a copied or forbidden one, nor one whose point or config is another's."""
    return not {FROM, FORBIDDEN, REPEATS, CHANGED} & trial.user_attrs.keys()


def left_out(trial: FrozenTrial) -> str | None:
    """Why a trial was not trained, or not to its end, if it does not count."""
    if REPEATS in trial.user_attrs:
        return f"trial {trial.user_attrs[REPEATS]} had this point"
    if CHANGED in trial.user_attrs:
        return "it was interrupted, and its config is not the study's any more"
    return trial.user_attrs.get(FORBIDDEN)


def took(trial: FrozenTrial) -> float | None:
    """How long a trial that has ended ran, interruptions left out."""
    return None if trial.duration is None else trial.duration.total_seconds() + trial.user_attrs.get(SPENT, 0.0)


def error(trial: FrozenTrial) -> dict[str, str]:
    """Why a trial failed: its kind and one line."""
    return trial.user_attrs.get(ERROR, {"kind": "unknown", "line": "it was ended from outside"})


def epochs(trials: Sequence[FrozenTrial]) -> int:
    """Epochs that were trained in all of them."""
    return sum(
        trial.user_attrs.get("epochs", max(trial.intermediate_values, default=0)) for trial in trials if counts(trial)
    )
