"""What a dashboard is of: the runs of a sweep, or all runs of a project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from swinexp import CONF
from swinexp.folder import kept
from swinexp.mistake import leaves
from swinexp.sweep.learning import another
from swinexp.sweep.sweeper import TOP
from swinexp.sweep.trials import FROM, key_of

SWEEPS = Path("outputs", "sweeps")
FEW = 12  # values that can be told apart as groups
# What a project's runs differ in, where no sweep says it.
GROUPS = ("model", "window", "patch", "attention", "block", "augmentation", "optimizer", "schedule", "data")
NUMBERS = ("optimizer.lr", "optimizer.weight_decay")


@dataclass(frozen=True)
class Varied:
    """A key that runs differ in. `few`: by values that can be told apart as groups; `log`: by their logarithm."""

    key: str
    few: bool
    log: bool = False

    @property
    def path(self) -> str:
        """Where W&B's config has it: of a group, the name of its option."""
        return f"options.{self.key}" if _is_group(self.key) else self.key


@dataclass(frozen=True)
class Sweep:
    """A sweep read back from its folder; as much of a study as it takes to judge its trials."""

    name: str
    folder: Path
    optuna: optuna.Study
    objectives: list[str]
    top: Sweep | None = None  # the further seeds of its best points

    @cached_property
    def trials(self) -> list[FrozenTrial]:
        """All of its own, none that was copied from another sweep."""
        return [trial for trial in self.optuna.get_trials(deepcopy=False) if FROM not in trial.user_attrs]

    @property
    def seeds(self) -> int:
        """Trainings of each point."""
        return int(self._asked("objective").get("seeds", 1))

    @property
    def space(self) -> dict[str, str]:
        """{key: what was tried}, as it was typed."""
        return dict(self._asked("space"))

    def _asked(self, part: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.optuna.user_attrs.get("asked", {}).get(part, {})
        return found

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config of one of its runs, {"optimizer.lr": …}; empty where none has begun."""
        first = next(iter(sorted(self.folder.glob("**/config.yaml"))), None)
        return {} if first is None else leaves(kept(first))

    @cached_property
    def figures(self) -> set[str]:
        """The keys of all figures that its finished runs have."""
        return {key for path in self.folder.glob("**/summary.json") for key in kept(path)}


@dataclass(frozen=True)
class Subject:
    """`sweep` is None for all runs of a project; `entity` is None for whoever the API key belongs to."""

    project: str
    entity: str | None
    objectives: Sequence[str]
    varied: Sequence[Varied]
    sweep: Sweep | None = None

    @property
    def title(self) -> str:
        return "All runs" if self.sweep is None else f"Sweep {self.sweep.name}"[:128]

    @property
    def folder(self) -> Path:
        """Where its pages are kept without a server."""
        return Path("outputs", "dashboard", self.project) if self.sweep is None else self.sweep.folder / "dashboard"

    @property
    def repeated(self) -> bool:
        """Whether points were trained on several seeds."""
        return self.sweep is not None and (self.sweep.seeds > 1 or self.sweep.top is not None)


def subject(study: str | None, project: str | None, entity: str | None) -> Subject:
    """What was asked for: a sweep by its name or folder, or a project. Raises `Mistake`."""
    sweep = None if study is None else _sweep(study)
    if sweep is None or not sweep.config:
        plain: Any = OmegaConf.to_container(OmegaConf.load(CONF / "wandb" / "auto.yaml"), resolve=True)
        known = {f"wandb.{key}": value for key, value in plain.items()}
    else:
        known = sweep.config
    where = project or known["wandb.project"], entity or known["wandb.entity"]
    if sweep is None:
        usual = [*(Varied(key, few=True) for key in GROUPS), *(Varied(key, few=False, log=True) for key in NUMBERS)]
        return Subject(*where, ["val/accuracy"], usual)
    return Subject(*where, sweep.objectives, _varied(sweep), sweep)


def _sweep(study: str) -> Sweep:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = Path(study) if "/" in study or not (SWEEPS / study).is_dir() else SWEEPS / study
    found = another(str(folder), "study")
    record = kept(folder / "study.json")
    objectives = [str(name) for name in record["objective"]]
    name = record["name"]
    try:
        further = optuna.load_study(study_name=f"{name}-{TOP}", storage=found._storage)
    except KeyError:
        return Sweep(name, folder, found, objectives)
    return Sweep(name, folder, found, objectives, Sweep(further.study_name, folder / TOP, further, objectives))


def _varied(sweep: Sweep) -> list[Varied]:
    """The parameters of its trials that are keys of their config, but the seed."""
    found: dict[str, BaseDistribution] = {}
    for trial in sweep.trials:
        found |= {key_of(name).lstrip("+"): distribution for name, distribution in trial.distributions.items()}
    return [
        Varied(key, _few(distribution), bool(getattr(distribution, "log", False)))
        for key, distribution in found.items()
        if key != "seed" and (_is_group(key) or key in sweep.config)
    ]


def _few(distribution: BaseDistribution) -> bool:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return len(choices) <= FEW
        case IntDistribution() as whole:
            return (whole.high - whole.low) // whole.step < FEW
        case FloatDistribution(step=step) as stepped if step is not None:
            return (stepped.high - stepped.low) / step < FEW
    return False


def _is_group(key: str) -> bool:
    return key.isidentifier() and (CONF / key).is_dir()
