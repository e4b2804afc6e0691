"""Where a study is kept: a SQLite file, a journal file, a server; and the lock under which trials are handed out."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from swinexp.mistake import Mistake, one_line

FILES = {"sqlite": "study.db", "journal": "study.journal"}  # in a sweep's folder
PATIENCE = 60  # seconds that a busy SQLite file is waited for


def url_of(storage: str | None, folder: Path) -> str:
    """The address of a study: `sqlite` and `journal` are files in the sweep's folder."""
    name = storage or "sqlite"
    if name in FILES:
        return f"{name}:///{folder / FILES[name]}"
    if "://" not in name:
        raise Mistake(
            f"hydra.sweeper.storage={name}: one of sqlite, journal, sqlite:///FILE, journal:///FILE, postgresql://… "
            f"is needed. Type hydra.sweeper.storage=sqlite:///{name}"
        )
    return name


class _Lock:
    """Of a journal: the system lets go of it when its holder dies, so it is never stale.

    A line that a kill has cut would make all that follows it unreadable: who takes the lock cuts it off.
    """

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.handle = -1

    def acquire(self) -> bool:
        self.handle = os.open(self.journal.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(self.handle, fcntl.LOCK_EX)
        with self.journal.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            for begin in range(end - 1, -1, -1):
                file.seek(begin)
                if file.read(1) == b"\n":
                    break
            else:
                begin = -1
            if begin + 1 < end:
                file.truncate(begin + 1)
        return True

    def release(self) -> None:
        os.close(self.handle)


def open_storage(url: str) -> BaseStorage:
    """Raises `Mistake` when it cannot be read and written."""
    try:
        if url.startswith("journal:///"):
            return JournalStorage(_journal(Path(url.removeprefix("journal:///"))))
        arguments: dict[str, Any] = {}
        if url.startswith("sqlite:"):
            Path(url.partition(":///")[2]).parent.mkdir(parents=True, exist_ok=True)
            arguments = {"connect_args": {"timeout": PATIENCE}}
        storage = RDBStorage(url, engine_kwargs=arguments)
    except Exception as error:  # each engine has its own kinds
        raise _unusable(url, error) from error
    if url.startswith("sqlite:"):
        _relax(storage)
    from optuna.storages import get_storage

    return get_storage(storage)


def _relax(storage: RDBStorage) -> None:
    """Have SQLite write a log, and wait for the disk when that is full, not at every write."""
    from sqlalchemy import event

    @event.listens_for(storage.engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # connections of before


def _journal(path: Path) -> BaseJournalBackend:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock: Any = _Lock(path)
    return JournalFileBackend(str(path), lock_obj=lock)


def _unusable(url: str, error: Exception) -> Mistake:
    origin = getattr(error, "orig", None) or error
    return Mistake(
        f"hydra.sweeper.storage={shown_url(url)}: cannot be used ({one_line(origin, 160)}). "
        "Give another one, or move what is there out of the way"
    )


def shown_url(url: str) -> str:
    """Without a server's passwords."""
    kind, _, rest = url.partition("://")
    if rest.startswith("/"):  # a file
        return url
    _, at, place = rest.rpartition("@")
    host, query, _ = place.partition("?")
    return f"{kind}://{'…@' if at else ''}{host}{'?…' if query else ''}"


@contextmanager
def checked(url: str) -> Iterator[None]:
    """What an engine says of a file that is damaged or cannot be written becomes a `Mistake`."""
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except (DBAPIError, OSError) as error:
        raise _unusable(url, error) from error
    except ValueError as error:
        if not url.startswith("journal:"):
            raise
        raise _unusable(url, error) from error


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a study's lock, which every worker on the same disk takes to count, to ask, and to mark a trial as its."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
