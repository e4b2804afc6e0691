"""Whether the worker of a trial is alive: by its process where that can be seen, by its signs of life elsewhere."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


@cache
def me() -> dict[str, Any]:
    """This process, so that another one on this machine can tell whether it is alive."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")  # a container has process numbers of its own
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "space": os.readlink(space) if space.exists() else "",
        "pid": os.getpid(),
        "birth": birth(os.getpid()),
    }


def birth(pid: int) -> int | None:
    """When a process of this machine was started, in its clock's ticks; None when it is gone, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


class Liveness:
    """Remembers signs of life. They are counted, and timed by this process's clock: others' may differ by minutes."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._heard: dict[int, tuple[object, float]] = {}

    def gone(self, number: int, worker: Mapping[str, Any], beats: int) -> bool:
        """Whether the worker of trial `number` is dead, which has given so many signs of life."""
        here = all(worker[key] == me()[key] for key in ("host", "boot", "space"))
        if here and worker["birth"] is not None:
            return birth(worker["pid"]) != worker["birth"]
        sign = dict(worker), beats  # another worker's is a sign of life
        if self._heard.get(number, (None, 0.0))[0] != sign:
            self._heard[number] = sign, time.monotonic()
        return time.monotonic() - self._heard[number][1] > self.grace

    def forget(self) -> None:
        """Listen anew: nobody could be heard for a while."""
        self._heard.clear()
