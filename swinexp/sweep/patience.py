"""Patience with a server that is away: what is asked of it is asked again, until it is back or away for too long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from optuna.storages import BaseStorage

from swinexp.mistake import Ended, one_line

log = logging.getLogger(__name__)

FIRST, LONGEST = 0.25, 10.0  # seconds between two tries
T = TypeVar("T")


class Away(Ended):
    """The study's server stayed away. Runs have their checkpoints, and the same command goes on."""


class Patience:
    """Of a process with one server. What is tried within a try is not tried again by itself.

    What is tried asks the server, or returns False where it has not. `place` is the server as it may be shown, `most`
    how many seconds it may be away; `back` is called when it is there again.
    """

    def __init__(self, place: str, most: float, back: Callable[[], object]) -> None:
        self.place, self.most, self.back = place, most, back
        self.since: float | None = None
        self._lock = threading.Lock()
        self._inside = threading.local()

    def __call__(self, work: Callable[[], T]) -> T:
        """What `work` returns, as soon as the server is there. Raises `Away`."""
        pause = FIRST
        while True:
            try:
                return self._try(work)
            except Exception as error:
                if getattr(self._inside, "it", False) or not is_away(error):
                    raise
                self._away(error)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST)

    def once(self, work: Callable[[], object]) -> bool:
        """Whether `work` could be done; the server is not waited for. Raises `Away`."""
        try:
            self._try(work)
        except Exception as error:
            if not is_away(error):
                raise
            self._away(error)
            return False
        return True

    def steady(self, storage: BaseStorage) -> BaseStorage:
        """A storage each of whose methods is called so."""
        for name in vars(BaseStorage):
            if not name.startswith("_") and callable(method := getattr(storage, name)):
                setattr(storage, name, self._patient(method))
        return storage

    def _patient(self, method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: self(lambda: method(*given, **named))

    def _try(self, work: Callable[[], T]) -> T:
        with self._within() as outermost:
            result = work()
        if outermost and self.since is not None and result is not False:
            self._back()
        return result

    @contextmanager
    def _within(self) -> Iterator[bool]:
        before = getattr(self._inside, "it", False)
        self._inside.it = True
        try:
            yield not before
        finally:
            self._inside.it = before

    def _away(self, error: Exception) -> None:
        with self._lock:
            now = time.monotonic()
            if self.since is None:
                self.since = now
                log.warning("%s is away (%s): the study waits for it", self.place, _reason(error))
            if now - self.since > self.most:
                raise Away(
                    f"{self.place} has been away for {now - self.since:.0f} seconds (hydra.sweeper.patience="
                    f"{self.most:g}). What was trained is in the runs' checkpoints; the same command goes on"
                ) from error

    def _back(self) -> None:
        with self._lock:
            if self.since is None:
                return
            log.warning("%s is back, after %.0f seconds", self.place, time.monotonic() - self.since)
            self.since = None
        self.back()


class Eager(Patience):
    """With a file, which is there or broken."""

    def __init__(self) -> None:
        super().__init__("", 0, lambda: None)

    def __call__(self, work: Callable[[], T]) -> T:
        return work()

    def once(self, work: Callable[[], object]) -> bool:
        work()
        return True

    def steady(self, storage: BaseStorage) -> BaseStorage:
        return storage


def is_away(error: BaseException | None) -> bool:
    """Whether an error is that of a server that is not there, or is no longer, or not yet."""
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

    while error is not None:
        if isinstance(error, OperationalError | InterfaceError):
            return True
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None and getattr(error, "orig", None) is None:
        error = error.__cause__
    return one_line(getattr(error, "orig", None) or error, 160)
