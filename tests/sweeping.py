"""What tests of sweeps share: options, spaces and studies as a command would make them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from swinexp import CONF
from swinexp.sweep.grammar import build_space
from swinexp.sweep.liveness import me
from swinexp.sweep.options import Options, options
from swinexp.sweep.search import every_point
from swinexp.sweep.space import Space
from swinexp.sweep.storage import url_of
from swinexp.sweep.study import Study

GROUPS = {"model": ["nano", "small", "tiny"], "optimizer": ["adamw", "lamb", "sgd"]}


def sweeper_options(*overrides: str) -> Options:
    """The options of `hydra/sweeper=swinexp_optuna` with overrides such as `hydra.sweeper.n_trials=3`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("config", ["name=test", "hydra/sweeper=swinexp_optuna", *overrides], return_hydra_config=True)
    given = whole.hydra.sweeper
    with open_dict(given):
        del given["_target_"]
    return options(given)


def space_of(*overrides: str, opts: Options | None = None, groups: Mapping[str, Sequence[str]] = GROUPS) -> Space:
    params, conditional = (opts.params, opts.conditional) if opts is not None else (None, [])
    return build_space(params, overrides, conditional, lambda group: groups.get(group, []))


def study_of(
    *overrides: str,
    space: Sequence[str] = ("x=interval(0,1)",),
    directions: Sequence[str] = ("minimize",),
    folder: Path | None = None,
    seed: int = 0,
) -> Study:
    """A study as a command with these overrides of the sweeper opens it; of the same folder, the same one.

    Its storage is a journal, which is quicker to make, unless it is given.
    """
    given = any(override.startswith("hydra.sweeper.storage=") for override in overrides)
    opts = sweeper_options(*([] if given else ["hydra.sweeper.storage=journal"]), *overrides)
    place = folder or Path("sweep")
    whole = space_of(*space, opts=opts)
    return Study(
        place.name,
        place,
        url_of(opts.storage, place.absolute()),
        directions,
        opts,
        whole,
        seed,
        every_point(opts, whole, seed),
    )


def gone() -> dict[str, Any]:
    """A worker of this machine whose process has ended."""
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    pid = process.pid
    process.join()
    return {**me(), "pid": pid, "birth": 1}
