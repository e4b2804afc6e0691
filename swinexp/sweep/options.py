"""The keys of `hydra.sweeper`; their values live in conf/hydra/sweeper/, with a comment each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from swinexp.explain import SWEEPER, explain, misshapen
from swinexp.mistake import Mistake, check, one_of, shown

TERMINATORS = ("regret", "stagnation")
DIRECTIONS = ("minimize", "maximize")
WHERE = SWEEPER


@dataclass
class Conditional:
    """Parameters that only exist where others have certain values."""

    when: dict[str, Any]
    params: dict[str, Any]


@dataclass
class Options:
    """How a study is searched. All of it may change when a study goes on, but the space and the directions."""

    sampler: dict[str, Any]
    pruner: dict[str, Any]
    params: dict[str, Any] | None
    conditional: list[Conditional]
    custom_search_space: str | None
    n_trials: int | None
    n_jobs: int
    per_gpu: int
    direction: Any
    storage: str | None
    study_name: str | None
    enqueue: list[dict[str, Any]]
    warm_start: str | None
    constraints: list[str]
    repeats: bool
    seeds: int
    top_k: int
    top_seeds: int | None
    timeout: float | None
    max_epochs_total: int | None
    terminator: str | None
    max_consecutive_failures: int
    max_failure_rate: float | None
    max_interruptions: int
    heartbeat: float
    grace: float
    patience: float
    allow_space_change: bool
    dry_run: int

    def __post_init__(self) -> None:
        at_least = {"n_jobs": 1, "per_gpu": 1, "seeds": 1, "top_k": 0, "dry_run": 0}
        at_least |= {"max_consecutive_failures": 1, "max_interruptions": 1}
        if self.n_trials is not None:
            at_least["n_trials"] = 1
        if self.max_epochs_total is not None:
            at_least["max_epochs_total"] = 1
        for key, least in at_least.items():
            self._check(getattr(self, key) >= least, key, f"at least {least}", max(least, 1))
        for key, example in (("timeout", 3600), ("heartbeat", 30), ("grace", 180), ("patience", 300)):
            value = getattr(self, key)
            self._check(value is None or value > 0, key, "seconds, more than 0", example)
        self._check(self.grace >= 2 * self.heartbeat, "grace", "at least twice the heartbeat", 3 * self.heartbeat)
        rate = self.max_failure_rate
        self._check(rate is None or 0 <= rate <= 1, "max_failure_rate", "a share in [0, 1]", 0.5)
        if self.terminator is not None:
            one_of(f"{WHERE}.terminator", self.terminator, TERMINATORS)
        for direction in self.directions or []:
            one_of(f"{WHERE}.direction", str(direction).lower(), DIRECTIONS)
        if self.top_seeds is not None:
            self._check(self.top_seeds > self.seeds, "top_seeds", "more than seeds", self.seeds + 2)
            alone = f"it is on how many seeds the {WHERE}.top_k best points are trained, which are none"
            check(self.top_k > 0, f"{WHERE}.top_seeds", self.top_seeds, alone, f"{WHERE}.top_k=3 beside it")

    def _check(self, condition: bool, key: str, allowed: str, example: object) -> None:
        check(condition, f"{WHERE}.{key}", getattr(self, key), allowed, f"{WHERE}.{key}={example}")

    @property
    def most_seeds(self) -> int:
        """On how many seeds each of the best points is trained in the end, those included that it had."""
        return self.seeds + 2 if self.top_seeds is None else self.top_seeds

    @property
    def directions(self) -> list[str] | None:
        """As they were given, one for each objective."""
        given = [self.direction] if isinstance(self.direction, str) else self.direction
        return None if given is None else [str(direction).lower() for direction in given]


def options(given: dict[str, Any]) -> Options:
    """The options that Hydra hands over, with their types checked. Raises `Mistake`."""
    cfg = OmegaConf.create(given)
    assert isinstance(cfg, DictConfig)
    try:
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        for name, value in plain.items():
            if (line := misshapen(str(name), value)) is not None:
                raise Mistake(line)
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Options), cfg))
    except OmegaConfBaseException as error:
        key = str(error.full_key)
        value = OmegaConf.select(cfg, key, default="…") if key else "…"
        line = explain(error, [f"{key}={shown(value)}"]) or str(error)
        if value != "…":  # else within a list's item, whose keys cannot be typed alone
            line = re.sub(r"(?<=\bexample )|(?<=\bType )(?!for example)|(?<=\bRemove )", f"{WHERE}.", line)
        raise Mistake(f"{WHERE}.{line}") from error
    assert isinstance(found, Options)
    return found
