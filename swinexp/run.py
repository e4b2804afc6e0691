"""The command: compose a config, check it, train.

    python -m swinexp.run model=tiny window=w4 patch=p2 augmentation=strong optimizer=adamw

torch is imported only when a run begins, so that --help, completion and a typo answer at once.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeperConf
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.swinexp_sweeper import SwinexpBasic, SwinexpOptuna
from swinexp import CONF, SWEEPS, nothing_begun
from swinexp.explain import (
    NO_SUCH_FOLDER,
    OF_A_SWEEP,
    check_best,
    check_files,
    check_flags,
    check_options,
    check_single,
    explain,
)
from swinexp.folder import Folder, candidates, folder_name, remove_empty, run_name
from swinexp.group import started, train_together
from swinexp.mistake import RAISES, TOLD, Ended, Mistake, check, first_line, interrupt, let_go, too_late
from swinexp.ranks import local_rank, lost_another, rank, size
from swinexp.sweep import Pruned, current_trial

if TYPE_CHECKING:
    from swinexp.config import Run

log = logging.getLogger("swinexp.run")  # also when it is __main__

HEARD = 10.0  # seconds after which what another process than the first has to say is its own

OmegaConf.register_new_resolver("swinexp.run_name", lambda overrides: run_name(list(overrides)), replace=True)
# Cached under the text of the argument, so that the jobs of a multirun see the name of the whole, not their own.
OmegaConf.register_new_resolver(
    "swinexp.sweep_name",
    lambda study, overrides: (
        folder_name(study, "hydra.sweeper.study_name") if study else folder_name(run_name(list(overrides)))
    ),
    use_cache=True,
    replace=True,
)
OmegaConf.register_new_resolver("swinexp.folder_name", folder_name, replace=True)
for _sweep in sorted(SWEEPS.glob("*.yaml")):
    with suppress(yaml.YAMLError, OSError):  # `check_files` tells it to who asks for this one
        ConfigStore.instance().store(group="sweep", name=_sweep.stem, node=OmegaConf.load(_sweep), package="_global_")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | list[float]:
    """Train what `cfg` describes, or go on where that was interrupted; returns the objective, or all of them."""
    job = HydraConfig.get()
    group = Path(job.sweep.dir).name if job.mode == RunMode.MULTIRUN else current_trial().group
    options = {name: option for name, option in job.runtime.choices.items() if "/" not in name and option is not None}
    if too_late:
        raise interrupt(too_late[0])
    try:
        return _run(cfg, Path(job.runtime.output_dir), list(job.overrides.task), options, group)
    except KeyboardInterrupt:
        remove_empty(Path(job.runtime.output_dir))  # Hydra made it, and nothing has begun there
        raise
    except (Mistake, Ended) as end:
        current_trial().ended(end)
        if isinstance(end, Ended):
            log.error("%s", end, extra=TOLD)
        if group is None and not _full_error:
            _end(str(end), 1 if isinstance(end, Ended) else 2)  # before Hydra adds a line of its own
        if current_trial().number is None:  # whose study tells it
            print(f"swinexp: {end}", file=sys.stderr)  # and the other jobs of a multirun go on
            end.told = True
        if not _full_error:
            let_go(end)  # for Hydra keeps it while the other jobs train
        raise


def _run(
    cfg: DictConfig, path: Path, overrides: list[str], options: dict[str, str], group: str | None
) -> float | list[float]:
    from swinexp.archive import check_data
    from swinexp.config import typed
    from swinexp.describe import count
    from swinexp.look import Look
    from swinexp.sheet import draw_sheet, need_matplotlib
    from swinexp.track import Tracker, print_summary
    from swinexp.train import Left, followed, prepare, steps_per_epoch, summarise, train

    try:
        check_options(overrides)
        _check_mode(HydraConfig.get())
        run = typed(cfg)
        if run.wandb.images:
            need_matplotlib("wandb.images=true")
    except Mistake:
        remove_empty(path)  # Hydra made it
        raise
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    folder, trial = Folder(path), current_trial()
    if run.trainer.gpus > size():
        train_together(run.trainer.gpus, path, _composing(HydraConfig.get()), group)
        folder.check(config)
        summary = folder.summary
        assert summary is not None
        if trial.number is not None and summary.get("pruned"):
            raise Pruned
        return _values(run, summary)
    with folder if rank() == 0 else nullcontext():
        folder.check(config)
        summary = folder.summary
        if summary is not None:
            if rank() == 0:
                trial.finished(int(summary.get("epochs", 0)))
            log.info("already finished; to train anew, type name=ANOTHER_NAME or remove %s", os.path.relpath(path))
        else:
            resuming = bool(candidates(folder.checkpoint))
            model, dataset = prepare(run, resuming)
            if resuming:
                check_data(path, dataset, "Bring its images back, or type name=ANOTHER_NAME")
            facts = asdict(count(model, run.data.image_size)[""])
            trial.check(facts)
            steps = steps_per_epoch(run, dataset)
            if rank() > 0:  # which writes nothing
                try:
                    figures = train(run, model, dataset, folder.checkpoint, lambda *_: followed(lambda: None))
                except Left:
                    return math.nan
                return _values(run, figures)
            with Tracker(run, folder, config, overrides, options, facts, group, steps) as track:
                trial.began(track.wandb.id)
                track.data(dataset)
                if run.wandb.images:
                    track.picture("augmentation", lambda path: draw_sheet(run, dataset, path))

                def watch(epoch: int, metrics: Mapping[str, float]) -> None:
                    track.epoch(epoch, metrics)
                    if epoch <= run.trainer.small_epochs:  # judged on larger images than it has seen
                        followed(lambda: trial.finished(1))
                    else:
                        followed(lambda: trial.epoch(epoch, metrics))

                pruned = False
                try:
                    figures = train(run, model, dataset, folder.checkpoint, watch, track.tick)
                except Pruned:
                    figures, pruned = summarise(track.history, run.trainer.small_epochs), True
                # Not within the handler: matplotlib keeps errors of its own, and they what is then being handled.
                if run.wandb.images and not pruned:
                    track.look(Look(run, dataset, path))
                summary = track.finish(figures, pruned)
        if trial.number is None and rank() == 0:
            print_summary(summary, path)
        if trial.number is not None and summary.get("pruned"):
            raise Pruned
        return _values(run, summary)


def _check_mode(hydra: Any) -> None:
    """Raise `Mistake` where a search is asked for and one run was begun: all that it is told would have no effect."""
    searches = hydra.sweeper._target_ == f"{SwinexpOptuna.__module__}.{SwinexpOptuna.__name__}"
    asked = any(each.startswith(("hydra.mode=", "--run", "-r")) for each in sys.argv)  # Hydra has it always
    if hydra.mode == RunMode.RUN and searches and not asked:
        several = "it searches, and this is one run"
        sweep = hydra.runtime.choices.get("sweep")
        key, value = ("sweep", sweep) if sweep else ("hydra/sweeper", "swinexp_optuna")
        check(False, key, value, several, "-m with it for the search, or hydra.mode=RUN for the run")


def _composing(hydra: Any) -> list[str]:
    """The arguments that compose a job's config in another process: where its files are, and the overrides."""
    flags = {"main": "--config-path", "command-line": "--config-dir"}
    sources = [each for each in hydra.runtime.config_sources if each.provider in flags]
    places = [f"{flags[each.provider]}={each.path}" for each in sources]
    return [*places, f"--config-name={hydra.job.config_name}", *hydra.overrides.task, *hydra.overrides.hydra]


def _values(run: Run, summary: Mapping[str, Any]) -> float | list[float]:
    """What a sweep is told: the objective, or a list of them."""
    values = [math.nan if (value := summary.get(key)) is None else value for key in run.objectives]
    return values if len(values) > 1 else values[0]


class _Flags(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Mistake(f"{message.removeprefix('argument ')}. Type --config-dir=FOLDER --config-name=best, or --help")


def compose(arguments: list[str], *flags: str) -> DictConfig:
    """The config that a command composes, for commands that keep no folder; `flags` are its own.

    --config-dir and --config-name are those of `main`.
    """
    known = ("--config-dir=FOLDER", "--config-name=best", *flags, "--help")
    parser = _Flags(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn")
    where, overrides = parser.parse_known_args(arguments)
    check_flags(arguments, [each for each in overrides if each.startswith("-")], known)
    check_best(where.config_dir, where.config_name)
    check_single(overrides)
    check_options(overrides)
    check_files(overrides, where.config_dir)
    places = create_config_search_path(str(CONF))
    if where.config_dir is not None:
        own = Path(where.config_dir).absolute()
        check(own.is_dir(), "--config-dir", where.config_dir, NO_SUCH_FOLDER, OF_A_SWEEP)
        places.prepend("command-line", f"file://{own}", SearchPathQuery(provider="schema"))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        GlobalHydra.instance().clear()
        Hydra.create_main_hydra2("swinexp", places)  # as `hydra.main` does
        cfg = hydra.compose(where.config_name or "config", overrides)
    if OmegaConf.is_interpolation(cfg, "name"):  # of what only a run has
        cfg.name = run_name(overrides)
    return cfg


def _end(line: str, code: int) -> NoReturn:
    if line and local_rank() > 0:  # the first of its machine has the same to say, and torchrun ends all with it
        time.sleep(HEARD)
    if line:
        print(f"swinexp: {' '.join(line.splitlines())}", file=sys.stderr)
    exec("")  # else python -m ends by SIGINT, whatever the code, where an exec (of a dataclass, say) was interrupted
    sys.exit(code)


def _forget_refused_sweeps(began: float) -> None:
    """Remove the folder of a multirun that no job of began: Hydra makes it before it looks at the jobs."""
    for record in Path("outputs", "sweeps").glob("*/multirun.yaml"):
        if record.stat().st_mtime >= began and [*record.parent.iterdir()] == [record]:
            record.unlink()
            remove_empty(record.parent)


_full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"


@contextmanager
def heeding() -> Iterator[None]:
    """Have ctrl-C and SIGTERM raise KeyboardInterrupt while the block lasts, where nobody has said otherwise."""

    def stop(number: int, _: object) -> None:
        raise interrupt(number)

    usual = {signal.SIGINT: nothing_begun, signal.SIGTERM: signal.SIG_DFL}
    mine = [number for number, handler in usual.items() if signal.getsignal(number) is handler]
    if threading.current_thread() is not threading.main_thread():  # only it can receive signals
        mine = []
    for number in mine:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else stop)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def reported(arguments: list[str]) -> Iterator[None]:
    """A mistake becomes one line and exit code 2; SIGINT ends with 130, SIGTERM with 143."""
    try:
        with heeding():
            yield
        sys.stdout.flush()
    except BrokenPipeError:  # … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt as interrupt:
        checkpoint = getattr(interrupt, "checkpoint", None)
        where = f"; {os.path.relpath(checkpoint)} holds all of it, the same command goes on" if checkpoint else ""
        said = "" if local_rank() > 0 else f"{str(interrupt) or 'interrupted'}{where}"
        _end(said, getattr(interrupt, "exit_code", 130))
    except Exception as error:
        if lost_another(error) and not _full_error:
            print(f"swinexp: process {rank()} ends, because another one did: {first_line(error)}", file=sys.stderr)
            sys.exit(1)
        line = None if _full_error else explain(error, arguments)
        if line is None:
            raise
        _end("" if getattr(error, "told", False) else line, 1 if isinstance(error, Ended) else 2)


def cli() -> None:
    """`main` for the command line."""
    # Hydra scans folders, and so does not find it in an editable install beside an installed plugin.
    for sweeper in (SwinexpOptuna, SwinexpBasic):
        Plugins.instance().register(sweeper)
    basic = f"{SwinexpBasic.__module__}.{SwinexpBasic.__name__}"  # in the place of Hydra's own
    ConfigStore.instance().store("basic", replace(BasicSweeperConf(), _target_=basic), "hydra/sweeper")
    if not _full_error:
        os.environ[RAISES] = "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # have Hydra raise, so that mistakes can be told apart here
    if rank() > 0:  # the first process speaks for all
        sys.argv[:] = [each for each in sys.argv if not each.startswith("hydra/job_logging=")]
        sys.argv.append("hydra/job_logging=disabled")
    signal.signal(signal.SIGUSR1, lambda *_: None)  # before training begins there is nothing to save
    began = time.time() - 1  # a file system's clock may be coarse
    with reported(sys.argv[1:]), started():
        given, unknown = get_args_parser().parse_known_args(sys.argv[1:])
        check_flags(sys.argv[1:], unknown)
        check_best(given.config_dir, given.config_name)
        check_files(sys.argv[1:], given.config_dir)
        try:
            main()
        except Pruned:  # told to the process that started this one
            return
        except Exception:
            _forget_refused_sweeps(began)
            raise


if __name__ == "__main__":
    cli()
