"""The typed whole of a run. Values live in conf/, names and types here and in the modules they configure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from swinexp.augment import Augmentation
from swinexp.data import DATA, Data
from swinexp.explain import explain, slip
from swinexp.folder import LATER
from swinexp.mistake import Mistake, check, leaves, one_of, shown
from swinexp.optim import OPTIMIZERS, SCHEDULES, Constant, Optimizer, Schedule, ScheduleFree
from swinexp.swin import Attention, Block, Model, Patch, Window, check_fit
from swinexp.track import Wandb
from swinexp.train import EMA_OBJECTIVES, OBJECTIVES, TEST_OBJECTIVES, Trainer

# Groups whose keys depend on their option's name.
KINDS: dict[str, dict[str, Any]] = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "data": DATA}


@dataclass
class Run:
    """Everything that decides a run."""

    name: str
    seed: int
    objective: Any  # a key of summary.json, or a list of them for a sweep with several objectives
    test: bool
    model: Model
    window: Window
    patch: Patch
    attention: Attention
    block: Block
    augmentation: Augmentation
    optimizer: Optimizer
    schedule: Schedule
    data: Data
    trainer: Trainer
    wandb: Wandb

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2⁶³-1", "seed=0")
        allowed = OBJECTIVES + EMA_OBJECTIVES + TEST_OBJECTIVES
        check(bool(self.objectives), "objective", self.objective, "nothing to optimize", "objective=val/accuracy")
        once = list(dict.fromkeys(self.objectives))
        twice, instead = "one is there twice", f"objective={once[0] if len(once) == 1 else shown(once)}"
        check(once == self.objectives, "objective", self.objective, twice, instead)
        for objective in self.objectives:
            one_of("objective", objective, allowed)
            check(
                self.test or objective not in TEST_OBJECTIVES,
                "objective",
                objective,
                "the test set is read only with test=true, and choosing by it is not fair",
                "objective=val/accuracy",
            )
            check(
                self.trainer.ema > 0 or objective not in EMA_OBJECTIVES,
                "objective",
                objective,
                "there is no moving average of the weights (trainer.ema=0)",
                "trainer.ema=0.999",
            )
        check(
            isinstance(self.schedule, Constant) or not isinstance(self.optimizer, ScheduleFree),
            "schedule.name",
            self.schedule.name,
            "optimizer=schedule_free takes the schedule's place and needs a constant one",
            "schedule=constant",
        )
        check(
            self.augmentation.crop_padding == "zeros" or self.augmentation.crop < self.data.image_size,
            "augmentation.crop",
            self.augmentation.crop,
            f"images of {self.data.image_size} pixels (data.image_size) have not so many within their border to mirror",
            f"augmentation.crop={max(1, self.data.image_size // 16)}, or augmentation.crop_padding=zeros",
        )
        check_fit(self.model, self.window, self.patch, self.data.image_size)
        self._check_small()

    def _check_small(self) -> None:
        """Raise `Mistake` unless the network takes the smaller images of the first epochs."""
        side, whole = self.trainer.small_side(self.data.image_size), self.data.image_size
        if not self.trainer.small_epochs:
            return
        key, typed = "trainer.small_size", self.trainer.small_size
        check(
            not self.patch.absolute_position,
            "trainer.small_epochs",
            self.trainer.small_epochs,
            "learnt absolute positions are of one size (patch.absolute_position=true)",
            "patch.absolute_position=false",
        )
        unit = self.patch.size * 2 ** (len(self.model.depths) - 1)
        fitting = range(unit, whole, unit)  # windows may overhang
        check(
            bool(fitting),
            "trainer.small_epochs",
            self.trainer.small_epochs,
            f"no image of less than {whole} pixels fits the network's patches and stages",
            "trainer.small_epochs=0",
        )
        near = min(fitting, key=lambda size: abs(size - side))
        told = f"patches and stages fit smaller images of {', '.join(map(str, fitting))} pixels"
        check(side in fitting, key, typed, told if typed else f"half of {whole} pixels, and {told}", f"{key}={near}")

    @property
    def objectives(self) -> list[str]:
        """The keys of summary.json that a sweeper optimizes."""
        return [*map(str, self.objective)] if isinstance(self.objective, list) else [str(self.objective)]


def typed(cfg: DictConfig) -> Run:
    """The composed config as dataclasses, checked as a whole. Raises `Mistake`."""
    try:
        schema = OmegaConf.structured(Run)
        for group, kinds in KINDS.items():
            name = OmegaConf.select(cfg, f"{group}.name")
            check(name in kinds, f"{group}.name", name, f"one of {', '.join(kinds)}", f"{group}={next(iter(kinds))}")
            schema[group] = OmegaConf.structured(kinds[name])
        later = OmegaConf.from_dotlist([f"{key}={shown(value)}" for key, value in LATER.items()])
        run = OmegaConf.to_object(OmegaConf.merge(schema, later, cfg))
    except OmegaConfBaseException as error:
        key, all_of_it = str(error.full_key), leaves(OmegaConf.to_container(cfg, resolve=False))
        if not key and (deep := next((each for each in all_of_it if each.count(".") > 1), None)):
            key = deep.rpartition(".")[0]  # a mapping where a list is needed: no key of a group has any
            all_of_it = {key: OmegaConf.to_container(OmegaConf.select(cfg, key))}
        given = [f"{each}={shown(value)}" for each, value in all_of_it.items() if f"{each}.".startswith(f"{key}.")]
        raise Mistake(_slip(key, schema) or explain(error, given or [f"{key}=null"])) from error
    assert isinstance(run, Run)
    return run


def _slip(full_key: str, schema: DictConfig) -> str | None:
    """One line for a key that a file sets and that no run has."""
    group, _, key = full_key.rpartition(".")
    kinds = [Run if not group else get_type_hints(Run).get(group)]
    if group in KINDS:
        kinds = [OmegaConf.get_type(schema, group), *KINDS[group].values()]
    names = [[each.name for each in fields(kind)] for kind in kinds if is_dataclass(kind)]
    return None if not names or any(key in each for each in names) else slip(group, key, names[0])


def of_job(config: DictConfig, context: HydraContext, overrides: Sequence[str], given: Sequence[str] = ()) -> Run:
    """The config of a job, composed and checked; `given` is what was typed for it, where that is something else.

    Raises `Mistake`.
    """
    try:
        composed = context.config_loader.load_sweep_config(config, list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        line = explain(error, given or overrides)
        if line is None:
            raise
        raise Mistake(line) from error
    with open_dict(composed):
        del composed["hydra"]
        composed.name = "rehearsal"
    return typed(composed)
