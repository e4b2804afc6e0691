"""Several workers on this machine: processes that run this very command, each with its share of the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from swinexp.mistake import Ended, Mistake, check
from swinexp.sweep.budget import BEGAN
from swinexp.sweep.options import WHERE

WORKER = "SWINEXP_WORKER"  # the variable that makes a command a worker, with the process that started it
OF_THE_TOP = "SWINEXP_TOP"
POLL = 0.25
MOST_KILLS = 100  # of a worker, which is started again after each


def is_worker() -> bool:
    """Whether this process was started by another one of the same command."""
    return WORKER in os.environ


def of_the_top() -> bool:
    """Whether it works on the best points' further seeds."""
    return OF_THE_TOP in os.environ


def orphaned() -> bool:
    """Whether that one is gone, and this one is alone with what there is to do at the end."""
    return is_worker() and os.getppid() != int(os.environ[WORKER])


def gpus() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES allows, or the numbers of all. torch is not asked: it takes long."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [each.strip() for each in visible.split(",") if each.strip() not in ("", "-1")]
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def shares(
    workers: int, per_gpu: int, devices: list[str], cores: int, given: Mapping[str, str]
) -> list[dict[str, str]]:
    """The variables of each worker: its GPU, or its share of the cores. Raises `Mistake` for too few GPUs."""
    if not devices:
        threads = given.get("OMP_NUM_THREADS", str(max(1, cores // workers)))
        return [{"OMP_NUM_THREADS": threads} for _ in range(workers)]
    check(
        workers <= per_gpu * len(devices),
        f"{WHERE}.n_jobs",
        workers,
        f"there are {len(devices)} GPUs, and {WHERE}.per_gpu={per_gpu}",
        f"{WHERE}.n_jobs={per_gpu * len(devices)}, or {WHERE}.per_gpu={-(-workers // len(devices))}",
    )
    return [{"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]} for index in range(workers)]


class Workers:
    """The processes of a `with` block, which ends when they have.

    They are in sessions of their own: ctrl-C reaches this process alone, which tells them; if it is killed, they go on.
    """

    def __init__(self, count: int, per_gpu: int, logs: Path, began: float, top: bool = False) -> None:
        self.logs = logs
        self.variables = {WORKER: str(os.getpid()), BEGAN: str(began), **({OF_THE_TOP: "1"} if top else {})}
        self.shares = shares(count, per_gpu, gpus(), len(os.sched_getaffinity(0)), os.environ)
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.kills = [0] * count
        self.asked: list[int] = []

    def run(self, seen: Callable[[], object]) -> None:
        """Start them, and again those that are killed, until all have ended by themselves.

        Raises `Mistake` and `Ended` with what a worker said, KeyboardInterrupt after a signal that they followed.
        """
        handlers = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        said: tuple[int, str] | None = None
        try:
            for index in range(len(self.shares)):
                self._start(index)
            while self.running:
                time.sleep(POLL)
                for index, process in list(self.running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del self.running[index]
                    if code == 0 or self.asked:
                        continue
                    self.kills[index] += code < 0
                    if code < 0 and self.kills[index] <= MOST_KILLS:
                        self._start(index)
                    else:
                        said = code, self._last_line(index)
                seen()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.asked:
            interrupt = KeyboardInterrupt(f"stopped by {signal.Signals(self.asked[0]).name}")
            interrupt.exit_code = 128 + self.asked[0]  # type: ignore[attr-defined]
            raise interrupt
        if said is not None:
            raise Mistake(said[1]) if said[0] == 2 else Ended(said[1])

    def _start(self, index: int) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        with self._log(index).open("ab") as log:
            self.running[index] = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env={**os.environ, **self.variables, **self.shares[index]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _log(self, index: int) -> Path:
        return self.logs / f"worker{index}.log"

    def _last_line(self, index: int) -> str:
        lines = self._log(index).read_text(errors="replace").strip().splitlines() or ["a worker ended without a word"]
        return lines[-1].removeprefix("swinexp: ")

    def _receive(self, number: int, _: object) -> None:
        """The first signal asks the workers to stop where they can go on; the second ends them at once."""
        again = bool(self.asked)
        self.asked.append(number)
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if again else number)
