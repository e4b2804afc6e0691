"""Where a study is kept: a SQLite file, a journal file, a server; and the locks under which trials are handed out."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from swinexp.folder import kept
from swinexp.mistake import Mistake, one_line
from swinexp.sweep.patience import is_away

FILES = {"sqlite": "study.db", "journal": "study.journal"}  # in a sweep's folder
PATIENCE = 60  # seconds that a busy SQLite file is waited for
SERVER = "SWINEXP_STORAGE"  # the variable that says where `postgres` is
TABLES = "/tables"  # of the lock for these, which no study is called
EXAMPLE = f"{SERVER}=postgresql://host/db"
# libpq's: seconds after which a server that does not answer is away, rather than the system's many minutes.
WAIT = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
# The server's: those after which a machine that does not answer loses its connection, and so its lock.
ALIVE = ("tcp_keepalives_idle = 30", "tcp_keepalives_interval = 10", "tcp_keepalives_count = 3")


def url_of(storage: str | None, folder: Path) -> str:
    """The address of a study: `sqlite` and `journal` are files in the sweep's folder, `postgres` is in the environment.

    Others are in files and in lists of processes, and so without user and password.
    """
    name = storage or "sqlite"
    if name in FILES:
        return f"{name}:///{folder / FILES[name]}"
    if name == "postgres":
        return _server()
    if "://" not in name:
        raise Mistake(
            f"hydra.sweeper.storage={name}: one of sqlite, journal, postgres, sqlite:///FILE, journal:///FILE, "
            f"postgresql://… is needed. Type hydra.sweeper.storage=sqlite:///{name}"
        )
    if shown_url(name) != name:
        raise Mistake(
            f"hydra.sweeper.storage={shown_url(name)}: a command is read by all, and no place for user and password. "
            f"Type storage=postgres, with {SERVER}=ADDRESS in the environment"
        )
    return name


def check_storage(record: Path, storage: str, url: str) -> None:
    """Raise `Mistake` where a sweep's study.json says that its study is kept elsewhere than in `url`, which `storage`
    stands for: one of the same name there would be another study, with this one's trials in its folder."""
    there = str(kept(record)["storage"])

    def place(url: str) -> str:  # of a folder that may have been moved
        return next((name for name, file in FILES.items() if url.startswith(name) and url.endswith(f"/{file}")), url)

    if place(there) != place("postgres" if storage == "postgres" else url):
        known = place(there)
        instead = f"storage={known}" if known in (*FILES, "postgres") else f"hydra.sweeper.storage={known}"
        raise Mistake(
            f"hydra.sweeper.storage={shown_url(storage)}: the study of {record.parent} is kept in {shown_url(there)}. "
            f"Type {instead}, or hydra.sweeper.study_name=ANOTHER_NAME"
        )


def _server() -> str:
    url = os.environ.get(SERVER)
    if not url:
        raise Mistake(
            f"storage=postgres: {SERVER} is not in the environment, which says where. Type {EXAMPLE} before it"
        )
    if not is_postgres(url):
        raise Mistake(f"{SERVER}={shown_url(url)}: an address of PostgreSQL is needed. Type {EXAMPLE}")
    return url


def is_postgres(url: str) -> bool:
    """Whether an address is that of a PostgreSQL server, by whichever driver."""
    return re.match(r"postgresql(\+\w+)?://", url) is not None


def is_server(url: str) -> bool:
    """Whether it is that of a server, which may be away for a while."""
    return not url.startswith(("sqlite", "journal:"))


class _Lock:
    """Of a journal: the system lets go of it when its holder dies, so it is never stale.

    A line that a kill has cut would make all that follows it unreadable: who takes the lock cuts it off.
    """

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.handle = -1

    def acquire(self) -> bool:
        handle = os.open(self.journal.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            self._mend()
        except BaseException:  # a signal's too: this process would wait for itself
            os.close(handle)
            raise
        self.handle = handle
        return True

    def _mend(self) -> None:
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
        if is_postgres(url):
            arguments = {"connect_args": waiting(url)}
        with _making_tables(url):
            storage = RDBStorage(url, engine_kwargs=arguments)
    except ImportError as error:
        raise _no_driver(url, error) from error
    except Exception as error:  # each engine has its own kinds
        raise unusable(url, error) from error
    if url.startswith("sqlite:"):
        _relax(storage)
    from optuna.storages import get_storage

    return get_storage(storage)


@contextmanager
def _making_tables(url: str) -> Iterator[None]:
    """Alone with a server where Optuna may have to make its tables, whichever study is opened."""
    if not is_postgres(url):
        yield
        return
    everywhere = Everywhere(url, TABLES)
    try:
        with everywhere():
            yield
    finally:
        everywhere.close()


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


def waiting(url: str) -> dict[str, int]:
    """What libpq is told beside an address, for drivers that are made of it."""
    return WAIT if url.startswith(("postgresql:", "postgresql+psycopg")) else {}


def _no_driver(url: str, error: ImportError) -> Mistake:
    if url.startswith(("postgresql:", "postgresql+psycopg:")):
        return Mistake("storage=postgres: psycopg is not installed. Type pip install 'swinexp[postgres]'")
    return unusable(url, error)


def unusable(url: str, error: Exception) -> Mistake:
    """What to say of a storage that cannot be used."""
    origin = getattr(error, "orig", None) or error
    return Mistake(
        f"hydra.sweeper.storage={shown_url(url)}: cannot be used ({one_line(origin, 160)}). "
        "Give another one, or move what is there out of the way"
    )


def shown_url(url: str) -> str:
    """Without a server's passwords."""
    kind, _, rest = url.partition("://")
    if not rest or rest.startswith("/"):  # a word, a file
        return url
    _, at, place = rest.rpartition("@")
    host, query, _ = place.partition("?")
    return f"{kind}://{'…@' if at else ''}{host}{'?…' if query else ''}"


@contextmanager
def checked(url: str) -> Iterator[None]:
    """What an engine says of a file that is damaged or cannot be written becomes a `Mistake`.

    Not what is said of a server that is away: `Patience` has to hear it.
    """
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except (DBAPIError, OSError) as error:
        if is_server(url) and is_away(error):
            raise
        raise unusable(url, error) from error
    except ValueError as error:
        if not url.startswith("journal:"):
            raise
        raise unusable(url, error) from error


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a study's lock, which every worker on the same disk takes to count, to ask, and to mark a trial as its."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Everywhere:
    """A study's lock on a PostgreSQL server, for workers that share no disk.

    It belongs to a connection of its own, and is let go with it: when its process is killed, and soon after its machine
    has gone. Threads of a process must not take it at the same time.
    """

    def __init__(self, url: str, name: str) -> None:
        from sqlalchemy import NullPool, create_engine

        self.key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)
        try:
            self.engine = create_engine(
                url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=waiting(url)
            )
        except ImportError as error:
            raise _no_driver(url, error) from error
        except Exception as error:  # an address that cannot be read
            raise unusable(url, error) from error
        self.connection: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self._say("pg_advisory_lock")
        try:
            yield
        finally:
            with suppress(Exception):  # then it is let go of already
                self._say("pg_advisory_unlock")

    def _say(self, function: str) -> None:
        try:
            if self.connection is None:
                self.connection = self.engine.connect()
                for setting in ALIVE:
                    self.connection.exec_driver_sql(f"SET {setting}")
            self.connection.exec_driver_sql(f"SELECT {function}({self.key})")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the connection, and so of the lock."""
        if self.connection is not None:
            with suppress(Exception):
                self.connection.invalidate()
            with suppress(Exception):
                self.connection.close()
            self.connection = None
