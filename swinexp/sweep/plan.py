"""What a sweep is to do, checked before anything of it is done."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import optuna
from hydra.types import HydraContext
from omegaconf import DictConfig, ListConfig, OmegaConf
from optuna.trial import TrialState

from swinexp.explain import no_constraint, to_vary
from swinexp.folder import incidental, published
from swinexp.mistake import Mistake, check, first_line, leaves, one_line
from swinexp.ranks import size
from swinexp.sweep.board import shown_params
from swinexp.sweep.grammar import build_space
from swinexp.sweep.jobs import slurm
from swinexp.sweep.learning import another
from swinexp.sweep.options import WHERE, Options, options
from swinexp.sweep.repeats import MOST_REPEATS, trains_once
from swinexp.sweep.search import build_sampler, check_search, every_point
from swinexp.sweep.space import Point, Space
from swinexp.sweep.storage import url_of
from swinexp.sweep.study import N_TRIALS
from swinexp.sweep.trial import FACTS, Constraint, constraint
from swinexp.sweep.trials import as_key

log = logging.getLogger(__name__)

MAXIMIZED = ("accuracy", "images_per_second")
NO_CURVE = (*FACTS, "test/accuracy", "test/loss")


@dataclass(frozen=True)
class Plan:
    """`curve` is the key that trials are pruned by, if any; `every` are the points of a grid."""

    options: Options
    space: Space
    objectives: list[str]
    directions: list[str]
    curve: str | None
    constraints: list[Constraint]
    seed: int
    every: list[Point] | None
    folder: Path
    url: str
    gpus: int  # that a trial is trained on
    slurm: dict[str, Any] | None  # what its jobs are to be, if it has any
    asked: dict[str, Any]  # what makes two sweeps the same one


def plan(given: dict[str, Any], config: DictConfig, context: HydraContext, arguments: list[str]) -> Plan:
    """The plan of a command, from the options that Hydra was `given`. Raises `Mistake`."""
    if size() > 1:
        raise Mistake(f"a sweep is not started by torchrun. Type the same command without it, with {WHERE}.n_jobs")
    opts = options(given)
    groups = context.config_loader.get_group_options
    space = build_space(opts.params, arguments, opts.conditional, lambda group: groups(group))
    check(
        bool(space.parameters) or opts.custom_search_space is not None,
        f"{WHERE}.params",
        opts.params or {},
        "nothing is varied",
        to_vary(opts.params),
    )
    if opts.custom_search_space is not None:
        space.custom = partial(_custom(opts.custom_search_space), config)
    objectives = _objectives(config)
    directions = _directions(opts, objectives)
    curve = objectives[0] if len(objectives) == 1 and objectives[0] not in NO_CURVE else None
    constraints = _constraints(opts)
    check_search(opts, space, directions, curve is not None)
    for name, plain in (("seeds", 1), ("top_k", 0)):
        value, varied = getattr(opts, name), any(parameter.key == "seed" for parameter in space.all())
        told = "seed is varied already, so that trials are not of several seeds"
        check(value == plain or not varied, f"{WHERE}.{name}", value, told, f"{WHERE}.{name}={plain}, or one seed")
    for point in opts.enqueue:
        space.check(point)
    if opts.warm_start is not None:
        known = [direction.name.lower() for direction in another(opts.warm_start).directions]
        check(
            known == directions,
            f"{WHERE}.warm_start",
            opts.warm_start,
            f"it has the direction {', '.join(known)}, and this sweep {', '.join(directions)}",
            f"another sweep's folder, or {WHERE}.warm_start=null",
        )
    seed = OmegaConf.select(config, "seed", default=0)
    every = every_point(opts, space, seed)
    asked = _asked(config, space, objectives, opts) | _varied_options(space, context)
    folder = Path(config.hydra.sweep.dir)
    url = url_of(opts.storage, folder.absolute())
    gpus = OmegaConf.select(config, "trainer.gpus", default=1)
    jobs = slurm(config, opts)
    return Plan(opts, space, objectives, directions, curve, constraints, seed, every, folder, url, gpus, jobs, asked)


def _custom(name: str) -> Callable[[DictConfig, optuna.trial.BaseTrial], object]:
    module, _, function = name.rpartition(".")
    sys.path.insert(0, os.getcwd())
    try:
        found: Callable[[DictConfig, optuna.trial.BaseTrial], object] = getattr(import_module(module), function)
    except (ImportError, ValueError, AttributeError) as error:
        problem = f"it cannot be imported ({first_line(error)})"
        raise Mistake(f"{WHERE}.custom_search_space={name}: {problem}. Type MODULE.FUNCTION") from None
    check(callable(found), f"{WHERE}.custom_search_space", name, "it is no function", "MODULE.FUNCTION")
    return found


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
        if one is None or one.figure not in FACTS:
            raise Mistake(no_constraint(each))
        found.append(one)
    return found


def _asked(config: DictConfig, space: Space, objectives: Sequence[str], opts: Options) -> dict[str, Any]:
    """What makes two sweeps the same one."""
    whole: Any = OmegaConf.to_container(config, resolve=False)
    whole.pop("hydra", None)
    varied = {parameter.key for parameter in space.all()}
    fixed = leaves(whole)
    apart = ("objective", "data.root") if published(fixed) else ("objective",)

    def same(key: str) -> bool:
        under = any(key == each or key.startswith(f"{each}.") for each in varied)
        return not under and not incidental(key) and key not in apart

    return {
        "space": space.described(),
        "objective": {"objective": list(objectives), "seeds": opts.seeds, "constraints": opts.constraints},
        "config": {key: value for key, value in fixed.items() if same(key)},
    }


def _varied_options(space: Space, context: HydraContext) -> dict[str, Any]:
    """What the files hold whose options are tried, of which the config of the command says nothing."""
    loader: Any = context.config_loader
    found: dict[str, Any] = {}
    for parameter in space.all():
        options = set(loader.get_group_options(parameter.key))
        for option in options.intersection(map(str, parameter.values() if options else [])):
            read = loader.repository.load_config(f"{parameter.key}/{option}")
            content: Any = OmegaConf.to_container(read.config, resolve=False)
            found |= {f"{parameter.key}={option}: {key}": value for key, value in leaves(content).items()}
    return {"options": found} if found else {}


def rehearse(space: Space, config: DictConfig, context: HydraContext) -> None:
    """Compose a config for the extremes of each parameter, and check it. Raises `Mistake`."""
    if not {"model", "trainer", "objective"} <= set(config):  # another application
        return
    from swinexp.config import of_job

    def refusal(point: Point) -> Mistake | None:
        try:
            of_job(config, context, space.overrides(point), given)
        except Mistake as mistake:
            return mistake
        return None

    given = [*space.fixed, *(f"{each.key}={each.typed}" for each in space.all())]
    refused: list[Mistake] = []
    corners = list(space.corners())
    for parameter, point in corners:
        key, value = parameter.key, point[parameter.key]
        mistake = refusal(point)
        if mistake is not None and str(mistake).startswith(f"{key}="):
            if isinstance(value, float) and refusal({**point, key: round(value)}) is None:
                check(False, key, parameter.typed, "whole numbers are needed", f"'{key}={parameter.whole()}'")
            raise mistake
        if mistake is not None:
            refused.append(mistake)
    if corners and len(refused) == len(corners):
        raise refused[0]


def dry_run(plan: Plan, config: DictConfig, context: HydraContext) -> None:
    """List the first configs that would be run, as far as they do not depend on results; compose and check each."""
    from swinexp.config import of_job

    opts, space, seed, every = plan.options, plan.space, plan.seed, plan.every
    study = optuna.create_study(sampler=build_sampler(opts, space, seed, 0))
    for point in [*map(space.check, opts.enqueue), *(every or [])][: opts.dry_run]:
        study.enqueue_trial(space.named(point))
    number = min(opts.dry_run, len(every)) if every is not None else opts.dry_run
    refused: list[Mistake] = []
    listed: list[str] = []
    for index in range(number + MOST_REPEATS):
        if len(listed) == number:
            break
        study.sampler = build_sampler(opts, space, seed, index)
        trial = study.ask()
        try:
            point = space.suggest(trial)
        except Exception as error:  # of hydra.sweeper.custom_search_space
            if space.custom is None or isinstance(error, Mistake):
                raise
            problem = f"it fails ({type(error).__name__}: {one_line(error)})"
            raise Mistake(f"{WHERE}.custom_search_space={opts.custom_search_space}: {problem}. Mend it") from error
        if as_key(point) in listed and trains_once(opts, space, every):
            study.tell(trial, state=TrialState.PRUNED)
            continue
        listed.append(as_key(point))
        try:
            of_job(config, context, space.overrides(point))
            verdict = ""
        except Mistake as mistake:
            verdict = f"  ✗ {mistake}"
            refused.append(mistake)
        print(f"{index}  {shown_params(point)}{verdict}")
    total = len(every) if every is not None else (opts.n_trials or N_TRIALS)
    print(f"dry run: {len(listed)} of {total} trials; fixed overrides: {' '.join(space.fixed) or 'none'}")
    if refused:
        raise Mistake(f"{len(refused)} of these {len(listed)} would be refused. {refused[0]}")
