"""A sweep from the command to its report: what Hydra's plugin calls."""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.config_source import ConfigResult
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from optuna.distributions import IntDistribution

from swinexp.folder import write_text
from swinexp.mistake import Ended, Mistake
from swinexp.sweep.board import Board, print_end
from swinexp.sweep.budget import Enough
from swinexp.sweep.jobs import Jobs
from swinexp.sweep.patience import Away
from swinexp.sweep.plan import Plan, dry_run, plan, rehearse
from swinexp.sweep.ranking import distinct, ranked
from swinexp.sweep.space import Parameter
from swinexp.sweep.storage import check_storage
from swinexp.sweep.study import Study
from swinexp.sweep.trials import by_key
from swinexp.sweep.worker import Launch, Worker
from swinexp.sweep.workers import Processes, Workers, is_worker, of_the_top, orphaned

log = logging.getLogger(__name__)

QUIET = "hydra/job_logging=trial"
HERE = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # trains in this process
TOP = "top"  # the folder of the best points' further seeds


def sweep(
    given: dict[str, Any], config: DictConfig, context: HydraContext, task: TaskFunction, arguments: list[str]
) -> None:
    """Search as the options say that Hydra was `given`. Raises `Mistake`, `Ended` and KeyboardInterrupt."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module="optuna")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    what = plan(given, config, context, arguments)
    if what.options.dry_run:
        dry_run(what, config, context)
        return
    launch = _launcher(config, context, task)
    if is_worker():
        _work(what, launch)
        return
    record = what.folder / "study.json"
    if record.exists():
        check_storage(record, what.options.storage or "sqlite", what.url)
    else:
        _check_new(what.folder, config)
        rehearse(what.space, config, context)
    with ExitStack() as opened:
        study = opened.enter_context(closing(_study(what)))
        study.agree(what.asked)
        study.fill()
        kept = {"name": study.name, "storage": study.url if what.options.storage != "postgres" else "postgres"}
        write_text(record, json.dumps({**kept, "objective": what.objectives, "directions": what.directions}) + "\n")
        if not (what.folder / "multirun.yaml").exists():
            write_text(what.folder / "multirun.yaml", OmegaConf.to_yaml(config))
        top = None
        try:
            enough = _search(what, study, launch)
            if what.options.top_k and str(enough) and not enough.gained:
                log.warning("the best are not trained on further seeds (hydra.sweeper.top_k): %s", enough)
            elif what.options.top_k:
                top = opened.enter_context(closing(_top(what, study)))
                study.choose(top.every or [])
                if not top.every:
                    log.warning("hydra.sweeper.top_k: no trial of this config is complete, and none gets further seeds")
                top.fill()
                _search(what, top, launch)
        except KeyboardInterrupt:
            _leave(study, top, what, "interrupted; the same command goes on")
            raise
        except Away:  # with whom the report would have to be written
            raise
        except (Ended, Mistake) as error:
            if isinstance(error, Ended) or study.finished(study.trials):
                _leave(study, top, what, "its workers ended; the same command goes on")
            raise
        if waiting := study.beyond():
            log.warning(
                "hydra.sweeper.enqueue: %d queued beyond n_trials. Type hydra.sweeper.n_trials=%d to train all",
                waiting,
                study.finished(study.trials) + waiting,
            )
        _leave(study, top, what, str(enough))
    if enough.failed or study.failed():
        why = str(enough) if enough.failed else "each of its trials failed"
        raise Ended(f"study {study.name} ended: {why}. Mend what failed, and the same command goes on")


def _check_new(folder: Path, config: DictConfig) -> None:
    """Raise `Mistake` where a multirun of the same name has its runs: trials would be taken for them."""
    if any(each.is_dir() and each.name.isdecimal() for each in folder.glob("*")):
        typed = any(each.startswith("hydra.sweep.dir=") for each in config.hydra.overrides.hydra)
        another = "hydra.sweep.dir=ANOTHER_FOLDER" if typed else "hydra.sweeper.study_name=ANOTHER_NAME"
        raise Mistake(f"{folder} holds the runs of a multirun, and no study. Type {another}, or remove that folder")


def _study(what: Plan) -> Study:
    return Study(
        what.folder.name, what.folder, what.url, what.directions, what.options, what.space, what.seed, what.every
    )


def _top(what: Plan, study: Study) -> Study:
    """The study of the best points on further seeds, whose trials are all of them."""
    options, seed = what.options, what.seed
    seeds = list(range(seed + options.seeds, seed + options.most_seeds))
    best = distinct(ranked(study, study.current()))[: options.top_k]
    points = [{**by_key(trial.params), "seed": each} for trial in best for each in seeds]
    chosen = IntDistribution(seed, seed + 10**6)
    space = replace(
        what.space, parameters={**what.space.parameters, "seed": Parameter("seed", chosen, "further seeds")}
    )
    sampler, pruner = {"name": "random"}, {"name": "none"}
    plain = replace(
        options,
        sampler=sampler,
        pruner=pruner,
        n_trials=None,
        seeds=1,
        top_k=0,
        top_seeds=None,
        enqueue=[],
        warm_start=None,
    )
    return Study(f"{study.name}-{TOP}", what.folder / TOP, study.url, what.directions, plain, space, seed, points)


def _work(what: Plan, launch: Launch) -> None:
    """As one of several workers; the last one left writes the report where nobody else can."""
    with ExitStack() as opened:
        study = opened.enter_context(closing(_study(what)))
        study.still(what.asked)
        top = opened.enter_context(closing(_top(what, study))) if of_the_top() else None
        enough = _worker(what, top or study, launch).work()
        if orphaned():
            _leave(study, top, what, str(enough))
    if enough.failed:
        raise Ended(str(enough))


def _worker(what: Plan, study: Study, launch: Launch, board: Board | None = None) -> Worker:
    seen = (lambda: False) if board is None else board.look
    place = f"{TOP}/" if _is_top(what, study) else ""
    return Worker(study, launch, what.seed, what.curve, what.constraints, seen, place)


def _is_top(what: Plan, study: Study) -> bool:
    """Whether it is that of the best points, which lies in the sweep's folder; a sweep may be called top itself."""
    return study.folder != what.folder


def _search(what: Plan, study: Study, launch: Launch) -> Enough:
    """Have a study's trials run, here or by workers; returns why no more are begun."""
    options = what.options
    with Board(study, what.objectives) as board:
        if options.n_jobs == 1 and what.slurm is None:
            return _worker(what, study, launch, board).work()
        try:
            _workers(what, study).run(lambda: study.patience.once(board.look))
        except (Ended, Mistake) as ended:
            if study.finished(study.trials) < study.wanted:
                spent = study.spent()
                if spent is None or not (spent.failed or spent.gained):
                    raise
                return spent
            log.warning("%s", ended)  # others have done what was left
        return study.spent() or Enough()


def _workers(what: Plan, study: Study) -> Workers:
    options, began, top = what.options, study.budget.began, _is_top(what, study)
    if what.slurm is None:
        return Processes(options.n_jobs, options.per_gpu, what.folder / "workers", began, top, what.gpus)
    spent = study.spent()
    left = 0 if spent else study.wanted - study.finished(study.trials)
    return Jobs(what.slurm, min(options.n_jobs, left), began, top)


def _leave(study: Study, top: Study | None, what: Plan, why: str) -> None:
    """Say what came of it, and write the report."""
    from swinexp.sweep.report import write_report

    print_end(study, top, what.objectives, why)
    try:
        files = write_report(study, top, what.objectives)
    except Exception as error:  # the study is worth more than its report
        log.warning("the report could not be written (%s)", error)
        return
    print(f"in {os.path.relpath(study.folder)}: {', '.join(files)}", flush=True)


class _ReadOnce(CachingConfigRepository):
    """Config files as they were when they were first read. Hydra reads some twenty for every job, a third of its time.

    What is edited while a sweep is running does not reach its trials, which are to differ by their points alone.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> _ReadOnce:
        twin = copy.copy(self)
        twin.delegate = copy.deepcopy(self.delegate, memo)
        return twin

    def load_config(self, config_path: str) -> ConfigResult | None:
        return copy.deepcopy(super().load_config(config_path))


def _launcher(config: DictConfig, context: HydraContext, task: TaskFunction) -> Launch:
    with open_dict(config):
        # Hydra's own would say two lines for each job.
        config.hydra.hydra_logging = {"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}}
        config.hydra.launcher = {"_target_": HERE}
    loader: Any = context.config_loader
    loader.repository = _ReadOnce(loader.repository)
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)

    def launch(overrides: Sequence[str], number: int) -> JobReturn:
        (ended,) = launcher.launch([[*overrides, QUIET]], initial_job_idx=number)
        return ended

    return launch
