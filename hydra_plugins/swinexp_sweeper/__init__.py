"""Where Hydra looks for plugins: names for it to find, and little else. The sweeper is swinexp.sweep.

Hydra scans this file at every start, so nothing heavy is imported in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SwinexpOptuna(Sweeper):
    """`hydra/sweeper=swinexp_optuna`."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from swinexp.sweep.sweeper import sweep

        assert self.config is not None
        assert self.hydra_context is not None
        sweep(self.options, self.config, self.hydra_context, self.task_function, arguments)


class SwinexpBasic(Sweeper):
    """`hydra/sweeper=basic`: Hydra's own, but that every job is checked before the first one trains."""

    def __init__(self, **options: Any) -> None:
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # of which Hydra's scan makes another one

        self.basic = BasicSweeper(**options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        def check(jobs: Sequence[Sequence[str]]) -> None:
            from swinexp.config import of_job
            from swinexp.explain import check_options

            for overrides in jobs:
                check_options(overrides)
                of_job(config, hydra_context, overrides)

        self.basic.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.basic.validate_batch_is_legal = check  # type: ignore[method-assign, assignment]  # which only composes

    def sweep(self, arguments: list[str]) -> Any:
        from swinexp.mistake import Mistake

        assert self.basic.config is not None
        folder = self.basic.config.hydra.sweep.dir
        if (Path(folder) / "study.json").exists():
            raise Mistake(f"{folder} holds the trials of a study. Type hydra.sweep.dir=ANOTHER_FOLDER, or remove it")
        return self.basic.sweep(arguments)
