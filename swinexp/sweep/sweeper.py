"""A sweep from the command to its report: what Hydra's plugin calls."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import optuna
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from swinexp.folder import incidental, write_text
from swinexp.mistake import Ended, Mistake, check, explain, first_line, leaves
from swinexp.ranks import size
from swinexp.sweep.board import Board, print_end, shown_params
from swinexp.sweep.options import WHERE, Options, options
from swinexp.sweep.search import build_sampler, check_search, every_point
from swinexp.sweep.space import Space, build_space
from swinexp.sweep.storage import shown_url, url_of
from swinexp.sweep.study import Enough, Study, another
from swinexp.sweep.trial import Constraint, constraint
from swinexp.sweep.worker import Launch, Worker
from swinexp.sweep.workers import Workers, is_worker, orphaned

log = logging.getLogger(__name__)

MAXIMIZED = ("accuracy", "images_per_second")
FACTS = ("parameters", "flops", "activations")  # known before training
NO_CURVE = (*FACTS, "test/accuracy", "test/loss", "ema/test/accuracy", "ema/test/loss")
QUIET = "hydra/job_logging=trial"


def sweep(
    given: dict[str, Any], config: DictConfig, context: HydraContext, task: TaskFunction, arguments: list[str]
) -> None:
    """Search as the options say that Hydra was `given`. Raises `Mistake`, `Ended` and KeyboardInterrupt."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module="optuna")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    opts = options(given)
    groups = context.config_loader.get_group_options
    space = build_space(opts.params, arguments, opts.conditional, lambda group: groups(group))
    check(
        bool(space.parameters) or opts.custom_search_space is not None,
        f"{WHERE}.params",
        "{}",
        "nothing is varied",
        "'optimizer.lr=tag(log,interval(1e-4,1e-2))', or model=nano,tiny",
    )
    if opts.custom_search_space is not None:
        space.custom = partial(_custom(opts.custom_search_space), config)
    if size() > 1:
        raise Mistake("a sweep is not started by torchrun: type the same command without it, with hydra.sweeper.n_jobs")
    objectives = _objectives(config)
    directions = _directions(opts, objectives)
    curve = objectives[0] if len(objectives) == 1 and objectives[0] not in NO_CURVE else None
    constraints = _constraints(opts)
    check_search(opts, space, directions, curve is not None)
    for point in opts.enqueue:
        space.check(point)
    if opts.warm_start is not None:
        another(opts.warm_start)
    seed = OmegaConf.select(config, "seed", default=0)
    every_point(opts, space, seed)
    folder = Path(config.hydra.sweep.dir)
    if opts.dry_run:
        _dry_run(opts, space, seed, config, context)
        return
    began = (folder / "study.json").exists()
    if not began and not is_worker():
        _rehearse(space, config, context)
    url = url_of(opts.storage, folder.absolute())
    study = Study(folder.name, folder, url, directions, opts, space, seed)
    if not is_worker():
        study.agree(_asked(config, space, objectives, opts))
        study.fill()
        record = {"name": study.name, "storage": shown_url(url), "objective": objectives, "directions": directions}
        write_text(folder / "study.json", json.dumps(record, indent=2) + "\n")
        if not (folder / "multirun.yaml").exists():
            write_text(folder / "multirun.yaml", OmegaConf.to_yaml(config))
    launch = _launcher(config, context, task)
    try:
        if is_worker():
            enough = Worker(study, launch, seed, curve, constraints, lambda: None).work()
        else:
            with Board(study, objectives) as board:
                if opts.n_jobs > 1:
                    Workers(opts.n_jobs, opts.per_gpu, folder / "workers", study.began).run(board.look)
                    enough = _why(study)
                else:
                    enough = Worker(study, launch, seed, curve, constraints, board.look).work()
    except KeyboardInterrupt:
        if not is_worker():
            _leave(study, objectives, "interrupted; the same command goes on")
        raise
    if not is_worker() or orphaned():
        _leave(study, objectives, str(enough))
    if enough.failed:
        raise Ended(f"study {study.name} ended: {enough}. Mend what failed, and the same command goes on")


def _custom(name: str) -> Callable[[DictConfig, optuna.trial.BaseTrial], object]:
    module, _, function = name.rpartition(".")
    sys.path.insert(0, os.getcwd())
    try:
        found: Callable[[DictConfig, optuna.trial.BaseTrial], object] = getattr(import_module(module), function)
    except (ImportError, ValueError, AttributeError) as error:
        problem = f"it cannot be imported ({first_line(error)})"
        raise Mistake(f"{WHERE}.custom_search_space={name}: {problem}. Type MODULE.FUNCTION") from None
    return found


def _why(study: Study) -> Enough:
    """Why the workers ended, all of which have."""
    try:
        study._enough(study.trials)
    except Enough as enough:
        return enough
    return Enough()


def _leave(study: Study, objectives: Sequence[str], why: str) -> None:
    from swinexp.sweep.report import write_report

    print_end(study, objectives, why)
    try:
        files = write_report(study, objectives)
    except Exception as error:  # the study is worth more than its report
        log.warning("the report could not be written (%s)", error)
        return
    print(f"in {os.path.relpath(study.folder)}: {', '.join(files)}", flush=True)


def _objectives(config: DictConfig) -> list[str]:
    """The keys that a study optimizes; an application that names none returns one value."""
    given = OmegaConf.select(config, "objective", default="value")
    return [str(each) for each in given] if isinstance(given, ListConfig) else [str(given)]


def _directions(opts: Options, objectives: Sequence[str]) -> list[str]:
    better = ["maximize" if name.endswith(MAXIMIZED) else "minimize" for name in objectives]
    given = opts.directions
    if given is None:
        return better
    check(
        len(given) == len(objectives),
        f"{WHERE}.direction",
        given,
        f"there are {len(objectives)} objectives: {', '.join(objectives)}",
        f"{WHERE}.direction=[{','.join(better)}]" if len(better) > 1 else f"{WHERE}.direction={better[0]}",
    )
    for name, asked, natural in zip(objectives, given, better, strict=True):
        if name != "value" and asked != natural:
            log.warning("%s.direction=%s: %s gets worse that way; %s is what one wants", WHERE, asked, name, natural)
    return given


def _constraints(opts: Options) -> list[Constraint]:
    found = []
    for each in opts.constraints:
        one = constraint(each)
        check(
            one is not None and one.figure in FACTS,
            f"{WHERE}.constraints",
            each,
            f"FIGURE <= NUMBER or FIGURE >= NUMBER, with one of {', '.join(FACTS)}",
            f"'{WHERE}.constraints=[\"parameters <= 7.05e6\"]'",
        )
        found.append(one)
    return [one for one in found if one is not None]


def _asked(config: DictConfig, space: Space, objectives: Sequence[str], opts: Options) -> dict[str, Any]:
    """What makes two sweeps the same one."""
    whole: Any = OmegaConf.to_container(config, resolve=False)
    whole.pop("hydra", None)
    varied = {parameter.key for parameter in space.all()}

    def same(key: str) -> bool:
        under = any(key == each or key.startswith(f"{each}.") for each in varied)
        return not under and not incidental(key) and key not in ("data.root", "objective")

    return {
        "space": space.described(),
        "objective": {"objective": list(objectives), "seeds": opts.seeds, "constraints": opts.constraints},
        "config": {key: value for key, value in leaves(whole).items() if same(key)},
    }


def _composed(config: DictConfig, context: HydraContext, overrides: Sequence[str]) -> DictConfig:
    """The config of a job. Raises `Mistake`."""
    try:
        composed = context.config_loader.load_sweep_config(config, list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        line = explain(error, overrides)
        if line is None:
            raise
        raise Mistake(line) from error
    with open_dict(composed):
        del composed["hydra"]
        composed.name = "rehearsal"
    return composed


def _rehearse(space: Space, config: DictConfig, context: HydraContext) -> None:
    """Compose a config for the extremes of each parameter, and check it. Raises `Mistake`."""
    if not {"model", "trainer", "objective"} <= set(config):  # another application
        return
    from swinexp.config import typed

    refused: list[Mistake] = []
    corners = list(space.corners())
    for key, point in corners:
        composed = _composed(config, context, space.overrides(point))
        try:
            typed(composed)
        except Mistake as mistake:
            if str(mistake).startswith(f"{key}="):
                raise
            refused.append(mistake)
    if corners and len(refused) == len(corners):
        raise refused[0]


def _dry_run(opts: Options, space: Space, seed: int, config: DictConfig, context: HydraContext) -> None:
    """List the first configs that would be run, as far as they do not depend on results; compose and check each."""
    from swinexp.config import typed

    every = every_point(opts, space, seed)
    study = optuna.create_study(sampler=build_sampler(opts, space, seed, 0))
    for point in [*map(space.check, opts.enqueue), *(every or [])][: opts.dry_run]:
        study.enqueue_trial(point)
    number = min(opts.dry_run, len(every)) if every is not None else opts.dry_run
    for index in range(number):
        study.sampler = build_sampler(opts, space, seed, index)
        point = space.suggest(study.ask())
        try:
            typed(_composed(config, context, space.overrides(point)))
            verdict = ""
        except Mistake as mistake:
            verdict = f"  ✗ {mistake}"
        print(f"{index}  {shown_params(point)}{verdict}")
    total = len(every) if every is not None else (opts.n_trials or 20)
    print(f"dry run: {number} of {total} trials, {len(space.fixed)} fixed overrides: {' '.join(space.fixed) or 'none'}")


def _launcher(config: DictConfig, context: HydraContext, task: TaskFunction) -> Launch:
    with open_dict(config):
        # Hydra's own would say two lines for each job.
        config.hydra.hydra_logging = {"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}}
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)

    def launch(overrides: Sequence[str], number: int) -> JobReturn:
        (ended,) = launcher.launch([[*overrides, QUIET]], initial_job_idx=number)
        return ended

    return launch
