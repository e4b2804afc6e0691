"""What a trial says of itself, beside its point and its values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

# Names of attributes. `WORKER` has it, `BEAT` counts its signs of life, `LOST` are the epochs that it had each time
# that its worker died, `ERROR` is why it failed, `FROM` is the sweep that it was copied from.
WORKER, BEAT, LOST, ERROR, FROM = "worker", "beat", "lost", "error", "from"
FORBIDDEN = "forbidden"


def as_key(point: Mapping[str, Any]) -> str:
    """A point as something to know it by: the same for the same values, in any order."""
    return json.dumps(point, sort_keys=True)


def counts(trial: FrozenTrial) -> bool:
    """Whether it is one of `n_trials`: not when it was copied, and not when it was forbidden."""
    return FROM not in trial.user_attrs and FORBIDDEN not in trial.user_attrs


def error(trial: FrozenTrial) -> dict[str, str]:
    """Why a trial failed: its kind and one line."""
    return trial.user_attrs.get(ERROR, {"kind": "unknown", "line": "it was ended from outside"})


def epochs(trials: Sequence[FrozenTrial]) -> int:
    """Epochs that were trained in all of them."""
    return sum(
        trial.user_attrs.get("epochs", max(trial.intermediate_values, default=0)) for trial in trials if counts(trial)
    )
