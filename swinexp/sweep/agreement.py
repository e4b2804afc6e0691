"""Whether a command asks for the sweep that a study was begun with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from swinexp.folder import as_now
from swinexp.mistake import Mistake
from swinexp.sweep.space import Space, compatible


def alike(known: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether two sweeps are the same one, in what both tell."""
    return all(_part(known, part) == _part(asked, part) for part in known.keys() & asked.keys())


def trains_alike(known: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether a point would be the same runs in both, and have the same figure."""
    before, now = known.get("objective", {}), asked.get("objective", {})
    return all(_part(known, part) == _part(asked, part) for part in ("config", "options")) and all(
        before.get(part) == now.get(part) for part in ("objective", "seeds")
    )


def difference(known: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first three keys by which two sweeps differ, with both values, and how many more there are."""
    said = []
    for part in ("space", "objective", "config", "options"):
        before, now = _part(known, part), _part(asked, part)
        if not isinstance(before, dict):
            before, now = {part: before}, {part: now}
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                said.append(f"{key} was {before.get(key, 'not there')} and is {now.get(key, 'not there')} now")
    more = f", and {len(said) - 3} more" if len(said) > 3 else ""
    return ", ".join(said[:3]) + more


def _part(sweep: Mapping[str, Any], part: str) -> Any:
    """What a sweep tells of its space, objective, config or options; a config of before, as it would be told now."""
    found = sweep.get(part, {})
    return as_now(found) if part == "config" else found


def check_change(space: Space, trials: Sequence[FrozenTrial], folder: Path) -> None:
    """Raise `Mistake` where the values of a key are no longer of the kind that a study's trials have."""
    before = {key: each for trial in trials for key, each in trial.distributions.items()}
    for parameter in space.all():
        if not compatible(before.get(parameter.name, parameter.distribution), parameter.distribution):
            raise Mistake(
                f"{parameter.key}={parameter.typed}: a study can change the ends of an interval, not its scale or "
                "kind, nor the values of a list. "
                f"Type hydra.sweeper.study_name=ANOTHER_NAME hydra.sweeper.warm_start={folder}"
            )
