"""Several workers, which run this very command: on this machine as processes, each with its share of it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from swinexp.mistake import RAISES, Ended, Mistake, check, interrupt
from swinexp.sweep.budget import BEGAN
from swinexp.sweep.options import WHERE
from swinexp.sweep.patience import Away

log = logging.getLogger(__name__)

WORKER = "SWINEXP_WORKER"  # the variable that makes a command a worker, with the process that started it, if it is here
OF_THE_TOP = "SWINEXP_TOP"
MOST_KILLS = 100  # of a command's workers: one that is killed is started again


def is_worker() -> bool:
    """Whether this process was started by another one of the same command."""
    return WORKER in os.environ


def of_the_top() -> bool:
    """Whether it works on the best points' further seeds."""
    return OF_THE_TOP in os.environ


def orphaned() -> bool:
    """Whether that one was here and is gone, and this one is alone with what there is to do at the end."""
    parent = os.environ.get(WORKER, "")
    return parent.isdigit() and os.getppid() != int(parent)


def variables(parent: str, began: float, top: bool) -> dict[str, str]:
    """Those that make the same command a worker, of the best points' further seeds when `top`."""
    return {WORKER: parent, BEGAN: str(began), **({OF_THE_TOP: "1"} if top else {})}


def gpus() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES allows, or the numbers of all. torch is not asked: it takes long."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [each.strip() for each in visible.split(",") if each.strip() not in ("", "-1")]
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def shares(
    workers: int, per_gpu: int, devices: list[str], cores: int, given: Mapping[str, str], each: int = 1
) -> list[dict[str, str]]:
    """The variables of each worker: its GPU, or so many for `each`; or its share of the cores. Raises `Mistake`."""
    if not devices:
        threads = given.get("OMP_NUM_THREADS", str(max(1, cores // workers)))
        return [{"OMP_NUM_THREADS": threads} for _ in range(workers)]
    there = f"there are {len(devices)} GPUs, and "
    if each > 1:
        check(each <= len(devices), "trainer.gpus", each, f"there are {len(devices)} GPUs", "trainer.gpus=1")
        devices = [",".join(devices[first : first + each]) for first in range(0, len(devices) - each + 1, each)]
        there += f"trainer.gpus={each}, and "
    check(
        workers <= per_gpu * len(devices),
        f"{WHERE}.n_jobs",
        workers,
        f"{there}{WHERE}.per_gpu={per_gpu}",
        f"{WHERE}.n_jobs={per_gpu * len(devices)}, or {WHERE}.per_gpu={-(-workers // len(devices))}",
    )
    return [{"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]} for index in range(workers)]


class Workers(ABC):
    """Workers of a command, which ends when they have. What they are is said below, and in `jobs`."""

    pause = 0.25  # seconds between two looks

    def __init__(self) -> None:
        self.kills = 0
        self.asked: list[int] = []

    @abstractmethod
    def start(self) -> None:
        """Start all that are wanted."""

    @abstractmethod
    def again(self, worker: str) -> None:
        """Start another one in the place of one that was killed."""

    @abstractmethod
    def ended(self) -> dict[str, int]:
        """Those that have ended since this was asked before, with their exit codes, which are negative for killed."""

    @abstractmethod
    def left(self) -> bool:
        """Whether any has not ended."""

    @abstractmethod
    def words(self, worker: str) -> list[str]:
        """The lines that one has written."""

    @abstractmethod
    def tell(self, number: int, again: bool) -> None:
        """Pass a signal on; `again`: end them at once."""

    def run(self, seen: Callable[[], object]) -> None:
        """Start them, and again those that are killed, until all have ended by themselves.

        Raises `Mistake` and `Ended` with what a worker said, KeyboardInterrupt after a signal that they followed.
        """
        handlers = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        said: tuple[int, str] | None = None
        try:
            self.start()
            while self.left():
                time.sleep(self.pause)
                for worker, code in self.ended().items():
                    if code == 0 or self.asked:
                        continue
                    line = self._last_line(worker)
                    self.kills += code < 0
                    if code < 0 and self.kills <= MOST_KILLS:
                        log.warning("%s was killed, and is started again; its last line: %s", worker, line)
                        self.again(worker)
                    else:
                        log.warning("%s has ended: %s", worker, line)
                        said = code, line
                with suppress(Away):  # they end by themselves, where their trials have checkpoints
                    seen()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.asked:
            raise interrupt(self.asked[0])
        if said is not None:
            raise Mistake(said[1]) if said[0] == 2 else Ended(said[1])

    def _last_line(self, worker: str) -> str:
        lines = self.words(worker) or [f"{worker} ended without a word"]
        return lines[-1].removeprefix("swinexp: ")

    def _receive(self, number: int, _: object) -> None:
        """The first signal asks the workers to stop where they can go on; the second ends them at once."""
        again = bool(self.asked)
        self.asked.append(number)
        self.tell(number, again)


def _environment() -> dict[str, str]:
    """As the user has it: HYDRA_FULL_ERROR may be ours, and a worker would show tracebacks for its mistakes."""
    ours = ("HYDRA_FULL_ERROR", RAISES) if RAISES in os.environ else ()
    return {name: value for name, value in os.environ.items() if name not in ours}


class Processes(Workers):
    """Of this machine, in sessions of their own: ctrl-C reaches this process alone, which tells them; if it is killed,
    they go on.
    """

    def __init__(self, count: int, per_gpu: int, logs: Path, began: float, top: bool = False, each: int = 1) -> None:
        super().__init__()
        self.logs = logs
        self.variables = variables(str(os.getpid()), began, top)
        found = shares(count, per_gpu, gpus(), len(os.sched_getaffinity(0)), os.environ, each)
        self.shares = {f"worker{index}": share for index, share in enumerate(found)}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        for worker in self.shares:
            if not self.asked:
                self.again(worker)

    def again(self, worker: str) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        with self._log(worker).open("ab") as file:
            process = self.running[worker] = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env={**_environment(), **self.variables, **self.shares[worker]},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        if self.asked:  # while it was being started, and `tell` did not know of it
            process.send_signal(signal.SIGKILL if len(self.asked) > 1 else self.asked[0])

    def ended(self) -> dict[str, int]:
        codes = {worker: process.poll() for worker, process in self.running.items()}
        found = {worker: code for worker, code in codes.items() if code is not None}
        for worker in found:
            del self.running[worker]
        return found

    def left(self) -> bool:
        return bool(self.running)

    def words(self, worker: str) -> list[str]:
        return self._log(worker).read_text(errors="replace").strip().splitlines()

    def _log(self, worker: str) -> Path:
        return self.logs / f"{worker}.log"

    def tell(self, number: int, again: bool) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if again else number)
