"""Workers as jobs on a Slurm cluster, by submitit, which is not imported before there are any."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from swinexp.explain import NO_SLURM, NO_SUBMITIT
from swinexp.mistake import Mistake, check, interrupt, one_line
from swinexp.sweep.options import WHERE, Options
from swinexp.sweep.workers import Workers, is_worker, log, variables

EVERY = 5.0  # seconds between two questions to Slurm, which answers everybody
TOLD = 128 + signal.SIGTERM  # how a job ends that Slurm has asked to: it may be queued again
LATE = 10.0  # seconds that a network disk may take to show the result of a job that has ended
HERE = ("BasicLauncher", "LocalLauncher")  # with which a sweep's workers are processes of this machine


def slurm(config: DictConfig, options: Options) -> dict[str, Any] | None:
    """The keys of `hydra/launcher=slurm`, or None where a sweep's workers are processes. Raises `Mistake`."""
    kind = str(config.hydra.launcher["_target_"]).rpartition(".")[2]
    if kind in HERE:
        return None
    check(
        kind == "SlurmLauncher",
        "hydra/launcher",
        kind,
        "a search has workers of its own",
        f"hydra/launcher=slurm, or {WHERE}.n_jobs=4",
    )
    check(
        not (options.storage or "sqlite").startswith("sqlite"),
        f"{WHERE}.storage",
        options.storage,
        "machines cannot share its file (hydra/launcher=slurm)",
        "storage=postgres, or storage=journal where all of them see this disk",
    )
    if not is_worker():
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise Mistake(f"hydra/launcher=slurm: {NO_SUBMITIT}") from None
        if not (shutil.which("sbatch") and shutil.which("srun")):
            raise Mistake(f"hydra/launcher=slurm: {NO_SLURM}")
    keys: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    return {key: value for key, value in keys.items() if key != "_target_"}


@dataclass(frozen=True)
class Job:
    """What a job does: it runs this very command, as a worker. Slurm's signals reach it as they would in a terminal.

    SIGTERM, and the one before the time limit, stop its trial after the step, with a checkpoint; the trial goes back to
    the study, and the job to Slurm's queue, unless Slurm is ending it already. SIGINT ends it.
    """

    program: str  # a module's name, or a file
    is_module: bool
    arguments: list[str]
    variables: dict[str, str]

    @classmethod
    def of_this_command(cls, variables: dict[str, str]) -> Job:
        main: Any = sys.modules["__main__"]
        if main.__spec__ is None:
            return cls(os.path.abspath(main.__file__), False, sys.argv[1:], variables)
        return cls(main.__spec__.name.removesuffix(".__main__"), True, sys.argv[1:], variables)

    def __call__(self) -> int:
        """Returns the exit code. Called by submitit, in the job."""
        import submitit

        job = submitit.JobEnvironment()
        job.paths.result_pickle.unlink(missing_ok=True)  # of before Slurm queued it again
        os.environ.update(self.variables)
        cores = os.environ.get("SLURM_CPUS_PER_TASK", os.environ.get("SLURM_CPUS_ON_NODE", "1"))
        os.environ.setdefault("OMP_NUM_THREADS", cores)
        warning = job._usr_sig()
        requeue: Any = signal.signal(warning, lambda *_: signal.raise_signal(signal.SIGTERM))
        heed_sigterm()
        signal.signal(signal.SIGUSR1, lambda *_: None)
        code = self._run()
        for number in (signal.SIGTERM, warning):
            signal.signal(number, signal.SIG_IGN)
        if code == TOLD and _state(job.job_id) == "RUNNING":
            requeue(warning, None)  # submitit's own handler, which exits
        return code

    def _run(self) -> int:
        sys.argv[1:] = self.arguments
        try:
            if self.is_module:
                runpy.run_module(self.program, run_name="__main__", alter_sys=True)
            else:
                sys.path[0] = os.path.dirname(self.program)
                runpy.run_path(self.program, run_name="__main__")
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except KeyboardInterrupt as stopped:
            return int(getattr(stopped, "exit_code", 128 + signal.SIGINT))
        return 0

    def checkpoint(self) -> Any:
        """What submitit has run when the job starts again: the same, for all that is to be kept is in the study."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def heed_sigterm() -> None:
    """Have SIGTERM raise KeyboardInterrupt, and again a moment later where that was in vain.

    Python ignores what is raised while it runs a destructor or a weak reference's callback, as SQLAlchemy has them; and
    Slurm says SIGTERM once.
    """

    def stop(number: int, _: object) -> None:
        raise interrupt(number)

    def ignored(what: Any) -> None:
        if isinstance(what.exc_value, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        else:
            sys.__unraisablehook__(what)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
    sys.unraisablehook = ignored


def _asked(*command: str) -> str | None:
    """What one of Slurm's programs says; None when it has no answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def _state(job: str) -> str:
    return (_asked("squeue", "--noheader", f"--jobs={job}", "--format=%T") or "").strip()


class Jobs(Workers):
    """Of a cluster. If this process is killed they go on, and the same command finds those that are still there.

    A job that is killed, and is not queued again by Slurm, is submitted anew.
    """

    def __init__(self, keys: Mapping[str, Any], count: int, began: float, top: bool = False) -> None:
        super().__init__()
        self.keys, self.count = dict(keys), count
        self.job = Job.of_this_command(variables("slurm", began, top))
        self.jobs: dict[str, Any] = {}
        self.gone: dict[str, float] = {}
        self.looked = 0.0
        self.waiting = ""

    def start(self) -> None:
        import submitit

        for name, _, _ in self._queue() or []:
            job: Any = submitit.SlurmJob(self.keys["submitit_folder"], name)
            if job.paths.submitted_pickle.exists():
                self.jobs[_called(name)] = job
        if self.jobs:
            log.warning("%d jobs of this sweep are there from before (%s)", len(self.jobs), ", ".join(self.jobs))
        if self.count > len(self.jobs):
            self._submit(self.count - len(self.jobs))

    def again(self, worker: str) -> None:  # noqa: ARG002
        self._submit(1)

    def _submit(self, count: int) -> None:
        import submitit

        keys = {f"slurm_{key}": value for key, value in self.keys.items() if key != "submitit_folder"}
        most = {"slurm_max_num_timeout": keys.pop("slurm_max_num_timeout")}
        executor = submitit.AutoExecutor(self.keys["submitit_folder"], cluster="slurm", **most)
        try:
            executor.update_parameters(**keys)
            jobs = executor.submit_array([self.job] * count)
        except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.UncompletedJobError) as error:
            line = next((line for line in str(error).splitlines() if "error:" in line), one_line(error))
            raise Mistake(
                f"hydra/launcher=slurm: not accepted ({line}). Type another value for that hydra.launcher.KEY"
            ) from error
        self.jobs |= {_called(job.job_id): job for job in jobs}
        print(f"slurm: {count} job{'s' if count > 1 else ''} submitted, {jobs[0].job_id} …", flush=True)

    def ended(self) -> dict[str, int]:
        codes = {name: code for name, job in self.jobs.items() if (code := _code(job)) is not None}
        found = {name: code for name, code in codes.items() if code != TOLD}
        if time.monotonic() - self.looked > EVERY and (queue := self._queue()) is not None:
            self.looked = time.monotonic()
            self._tell_what_waits([(state, why) for name, state, why in queue if _called(name) in self.jobs])
            there = {_called(name) for name, _, _ in queue}
            self.gone = {name: self.gone.get(name, self.looked) for name in self.jobs if name not in there}
            for name, since in self.gone.items():
                if name in codes or self.looked - since > LATE:
                    found[name] = codes.get(name, -signal.SIGKILL)
        self.last = {name: self.jobs.pop(name) for name in found}
        return found

    def _queue(self) -> list[tuple[str, str, str]] | None:
        """(id, state, reason) of this user's jobs that have not ended."""
        said = _asked("squeue", "--me", "--array", "--noheader", "--format=%i %T %r")
        return None if said is None else [tuple(line.split(maxsplit=2)) for line in said.splitlines()]  # type: ignore

    def _tell_what_waits(self, queue: list[tuple[str, str]]) -> None:
        why = sorted({why for state, why in queue if state == "PENDING" and why != "None"})
        waiting = ", ".join(why) if all(state == "PENDING" for state, _ in queue) else ""
        if waiting and waiting != self.waiting:
            log.warning("slurm: no job runs, %d wait (%s)", len(queue), waiting)
        self.waiting = waiting

    def left(self) -> bool:
        return bool(self.jobs)

    def words(self, worker: str) -> list[str]:
        path = self.last[worker].paths.stdout
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return [line for line in lines if line.strip() and not line.startswith(("submitit ", "srun: "))]

    def tell(self, number: int, again: bool) -> None:  # noqa: ARG002
        names = [job.job_id for job in self.jobs.values()]
        if again:
            _asked("scancel", *names)
            return
        _asked("scancel", "--state=PENDING", *names)
        _asked("scancel", "--signal=INT", *names)


def _called(job: str) -> str:
    return f"job {job}"


def _code(job: Any) -> int | None:
    """The exit code of a job that has ended by itself."""
    from submitit.core.utils import pickle_load

    if not job.paths.result_pickle.exists():
        return None
    outcome, result = pickle_load(job.paths.result_pickle)
    return result if outcome == "success" else 1
