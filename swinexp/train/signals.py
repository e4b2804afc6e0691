"""Signals that ask a run to stop or to save, heard after the step under way."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from swinexp.mistake import too_late
from swinexp.ranks import size

STOPPING = (signal.SIGINT, signal.SIGTERM)
SAVING = signal.SIGUSR1  # what Slurm is asked to send before it takes a job's node away
ORDER: tuple[int, ...] = (0, SAVING, *STOPPING)  # of several, the last is followed
AGAIN = 0.5  # seconds: what comes sooner is the same signal, which may come to a process and to its group


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop; it stopped after a step, and `checkpoint` holds all of it; or at once."""

    def __init__(self, number: int, checkpoint: Path | None = None) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number
        self.checkpoint = checkpoint


class Asked:
    """Receives SIGINT, SIGTERM and SIGUSR1 while a `with` block lasts. A second SIGINT stops at once; SIGTERM may come
    more than once from who has SIGKILL for that.

    `now` is asked once a step. Of several processes each says in one step what it has received, and all learn it
    in the next, so that all stop after the same one; neither the device nor the step waits for that.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._first: dict[int, float] = {}
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._said: tuple[Any, torch.Tensor] | None = None

    def __enter__(self) -> Asked:
        if threading.current_thread() is threading.main_thread():  # only the main thread can receive signals
            self._before = {number: signal.signal(number, self._receive) for number in (*STOPPING, SAVING)}
        if size() > 1:
            self._group = dist.new_group(backend="gloo")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._said is not None and error is None:
            self._said[0].wait()
        if not isinstance(error, KeyboardInterrupt):
            too_late.extend(number for number in self.received if number in STOPPING)

    def _receive(self, number: int, _: object) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and now - self._first.setdefault(number, now) > AGAIN:
            raise Interrupted(number)
        self.received.append(number)

    def now(self) -> int:
        """The signal to follow after this step, 0 for none: one that stops before one that saves."""
        if self._group is None:
            return self._mine()
        heard = 0
        if self._said is not None:
            work, told = self._said
            work.wait()
            heard = ORDER[int(told.item())]
        if heard == SAVING:
            self.forget(SAVING)  # before it is said again
        told = torch.tensor(ORDER.index(self._mine()))
        self._said = dist.all_reduce(told, dist.ReduceOp.MAX, group=self._group, async_op=True), told
        return heard

    def _mine(self) -> int:
        return max(self.received, key=ORDER.index, default=0)

    def forget(self, number: int) -> None:
        """It has been followed."""
        self.received[:] = [each for each in self.received if each != number]
