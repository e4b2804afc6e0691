"""A run that several processes train (`trainer.gpus`): the same run again under torchrun, which is waited for.

The process that starts them keeps the run's trial, if it is one. The first of them speaks with it: what it tells its
trial goes there, and what the trial raises comes back.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from swinexp.mistake import Ended, interrupt, too_late
from swinexp.ranks import rank
from swinexp.sweep.liveness import birth
from swinexp.sweep.trial import Outside, current_trial, live

ADDRESS, KEY = "SWINEXP_GROUP", "SWINEXP_GROUP_KEY"  # where the first process finds the one that started it
STARTED = ("hydra.mode=", "hydra.run.dir=", "hydra.sweep.")  # overrides of how the run was started
TELLING = re.compile(  # of what torchrun and its processes print
    r"^swinexp: (?!process \d+ ends)|^(\[rank\d+\]: )?(?!.*ChildFailedError)[\w.]*Error: |received by PID"
)
FREE = 20.0  # seconds that the folder of a run whose starter was killed is waited for
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Lost(Ended):
    """The processes ended, and did not say why."""


class FromAfar(Outside):
    """The trial of a run whose starter has it, and the W&B group that it told."""

    def __init__(self, starter: Connection) -> None:
        self.starter = starter
        pid, self.number, self.study, self.point, self.group = self._asked("hello", os.getpid())
        threading.Thread(target=self._stop_when_alone, args=(pid,), daemon=True).start()

    def check(self, facts: Mapping[str, float]) -> None:
        self._asked("check", dict(facts))

    def began(self, wandb: str | None) -> None:
        self._asked("began", wandb)

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self._asked("epoch", epoch, dict(metrics))

    def finished(self, epochs: int) -> None:
        self._asked("finished", epochs)

    def ended(self, error: Exception) -> None:
        """Tell why the run ended early; the starter says it."""
        self._asked("ended", error)

    def _asked(self, what: str, *given: object) -> Any:
        try:
            self.starter.send((what, given))
            error, answer = self.starter.recv()
        except (EOFError, OSError):
            raise Ended("the process that started the run is gone; the same command goes on") from None
        if error is not None:
            raise error
        return answer

    def _stop_when_alone(self, starter: int) -> None:
        born = birth(starter)
        while born is not None and birth(starter) == born:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def started() -> Iterator[None]:
    """While the block lasts, the trial is that of the process that started this one, if one did."""
    if ADDRESS not in os.environ or rank() > 0:
        yield
        return
    with Client(os.environ[ADDRESS], authkey=bytes.fromhex(os.environ[KEY])) as starter, live(FromAfar(starter)):
        yield


def train_together(processes: int, path: Path, arguments: Sequence[str], group: str | None) -> None:
    """Have so many processes train the run of a folder, whose config `arguments` compose.

    Raises `Pruned` and `Forbidden` for a trial, `Mistake` and `Ended` as one process would, KeyboardInterrupt after
    a signal that they followed.
    """
    _wait_until_free(path)
    where = str(path).replace("\\", "\\\\").replace("'", "\\'")
    mine = [each for each in arguments if not each.startswith(STARTED)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command += [f"--nproc-per-node={processes}", "-m", "swinexp.run", *mine, "hydra.mode=RUN"]
    key = secrets.token_bytes(16)
    cores = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
    with Listener(family="AF_UNIX", authkey=key) as listener, tempfile.TemporaryFile("w+") as errors:
        told = {ADDRESS: str(listener.address), KEY: key.hex(), "OMP_NUM_THREADS": str(max(1, cores // processes))}
        with _unheard():
            process = subprocess.Popen(
                [*command, f"hydra.run.dir='{where}'"],
                env={**os.environ, **told},
                stdin=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        starter = _Starter(listener, current_trial(), group)
        try:
            with starter.passed_on(process):
                code = process.wait()
        except BaseException:
            process.kill()
            raise
        errors.seek(0)
        starter.judge(code, path, errors.read())


@contextmanager
def _unheard() -> Iterator[None]:
    """What is started within ignores Slurm's warnings, which may reach all of a job's processes and end torchrun."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_until_free(path: Path) -> None:
    end = time.monotonic() + FREE
    while path.exists() and time.monotonic() < end:
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.5)
        finally:
            os.close(handle)


class _Starter:
    """The other end of `FromAfar`: a thread that answers."""

    def __init__(self, listener: Listener, trial: Outside, group: str | None) -> None:
        self.listener, self.trial, self.group = listener, trial, group
        self.first: int | None = None
        self.error: Exception | None = None
        self.asked: list[int] = []
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        with suppress(EOFError, OSError), self.listener.accept() as first:
            while True:
                what, given = first.recv()
                answer: tuple[Exception | None, Any]
                try:
                    answer = None, self._done(what, *given)
                except Exception as error:
                    self.error = error
                    answer = error, None
                first.send(answer)

    def _done(self, what: str, *given: Any) -> Any:
        if what == "hello":
            (self.first,) = given
            return os.getpid(), self.trial.number, self.trial.study, dict(self.trial.point), self.group
        if what == "ended":
            self.error = self.error or given[0]
            return None
        return getattr(self.trial, what)(*given)

    @contextmanager
    def passed_on(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Signals reach the first process, which tells the others; or torchrun, as long as there is none."""

        def receive(number: int, _: object) -> None:
            self.asked.append(number)
            with suppress(ProcessLookupError):
                if self.first is not None:
                    os.kill(self.first, number)
                elif number != signal.SIGUSR1:
                    process.terminate()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def judge(self, code: int, path: Path, words: str) -> None:
        """Raise what the run's end was, unless it came to its own."""
        if self.error is not None:
            raise self.error
        stopping = [number for number in self.asked if number != signal.SIGUSR1]
        if code == 0:
            too_late.extend(stopping)
            return
        if stopping:
            error: Any = interrupt(stopping[0])
            error.checkpoint = checkpoint if (checkpoint := path / "checkpoints" / "last.pt").exists() else None
            raise error
        said = [line.removeprefix("swinexp: ").strip() for line in words.splitlines() if TELLING.search(line)]
        lost = Lost(f"one of the run's processes ended: {said[-1] if said else 'it did not say why'}")
        if self.trial.number is None:
            print(words, file=sys.stderr)
        else:
            lost.add_note(words)
        raise lost
