"""Where Hydra looks for plugins: a name for it to find, and nothing else. The sweeper is swinexp.sweep."""

from __future__ import annotations

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SwinexpOptuna(Sweeper):
    """`hydra/sweeper=swinexp_optuna`. Hydra scans this file at every start, so nothing heavy is imported in it."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from swinexp.sweep.sweeper import sweep

        assert self.config is not None
        assert self.hydra_context is not None
        sweep(self.options, self.config, self.hydra_context, self.task_function, arguments)
