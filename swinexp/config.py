"""The typed whole of a run. Values live in conf/, names and types here and in the modules they configure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from swinexp.augment import Augmentation
from swinexp.data import DATA, Data
from swinexp.mistake import Mistake, check, explain, leaves, one_of, shown
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
    objective: str
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
        one_of("objective", self.objective, allowed)
        check(
            self.test or self.objective not in TEST_OBJECTIVES,
            "objective",
            self.objective,
            "the test set is read only with test=true, and choosing by it is not fair",
            "objective=val/accuracy",
        )
        check(
            self.trainer.ema > 0 or self.objective not in EMA_OBJECTIVES,
            "objective",
            self.objective,
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
        check_fit(self.model, self.window, self.patch, self.data.image_size)


def typed(cfg: DictConfig) -> Run:
    """The composed config as dataclasses, checked as a whole. Raises `Mistake`."""
    try:
        schema = OmegaConf.structured(Run)
        for group, kinds in KINDS.items():
            name = OmegaConf.select(cfg, f"{group}.name")
            check(name in kinds, f"{group}.name", name, f"one of {', '.join(kinds)}", f"{group}={next(iter(kinds))}")
            schema[group] = OmegaConf.structured(kinds[name])
        run = OmegaConf.to_object(OmegaConf.merge(schema, cfg))
    except OmegaConfBaseException as error:
        value = leaves(OmegaConf.to_container(cfg, resolve=False)).get(str(error.full_key))
        raise Mistake(explain(error, [f"{error.full_key}={shown(value)}"])) from error
    assert isinstance(run, Run)
    return run
