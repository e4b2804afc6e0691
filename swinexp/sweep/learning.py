"""Another sweep's study: found by its folder, and learnt from."""

from __future__ import annotations

import logging
from pathlib import Path

import optuna
from optuna.trial import TrialState

from swinexp.folder import kept
from swinexp.mistake import Mistake
from swinexp.sweep.space import Space
from swinexp.sweep.storage import FILES, open_storage, url_of
from swinexp.sweep.trials import FROM, by_key, keys_of

log = logging.getLogger(__name__)


def another(folder: str, key: str = "hydra.sweeper.warm_start") -> optuna.Study:
    """The study of another sweep's folder, which was typed for `key`. Raises `Mistake`."""
    record = Path(folder) / "study.json"
    if not record.is_file():
        raise Mistake(f"{key}={folder}: no sweep's folder. Type one that has a study.json, such as outputs/sweeps/NAME")
    there = kept(record)
    here = [name for name, file in FILES.items() if (record.parent / file).exists()]  # which may have been moved
    url = url_of(here[0] if here else there["storage"], record.parent.absolute())
    try:
        return optuna.load_study(study_name=there["name"], storage=open_storage(url))
    except KeyError:
        raise Mistake(f"{key}={folder}: its study is no longer in {url}. Move it back there") from None


def learn(study: optuna.Study, space: Space, folder: str, there: int) -> None:
    """Copy the trials of another study, but for the first ones that are `there`: a kill may have cut it short."""
    known = another(folder)
    taken = 0
    for trial in known.get_trials(deepcopy=False):
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) or FROM in trial.user_attrs:
            continue
        try:
            point = space.check(by_key(trial.params))
        except Mistake:  # not in this space
            continue
        parts = space.parts(point)
        if trial.values is None or len(parts) != len(point):
            continue
        taken += 1
        if taken <= there:
            continue
        study.add_trial(
            optuna.trial.create_trial(
                state=trial.state,
                values=trial.values,
                params={part.name: point[part.key] for part in parts},
                distributions={part.name: part.distribution for part in parts},
                intermediate_values=trial.intermediate_values,
                user_attrs={FROM: folder},
            )
        )
    if taken:
        log.info("hydra.sweeper.warm_start: the sampler learns from %d trials of %s", taken, folder)
        return
    theirs = ", ".join(keys_of(known.get_trials(deepcopy=False)))
    ours = ", ".join(dict.fromkeys(parameter.key for parameter in space.all()))
    log.warning(
        "hydra.sweeper.warm_start: nothing is to be learnt from %s, which varies %s, where this sweep varies %s",
        folder,
        theirs or "nothing",
        ours,
    )
