"""A server that is away is asked again; a file, and any other error, is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from swinexp.mistake import Mistake
from swinexp.sweep import patience
from swinexp.sweep.patience import Away, Eager, Patience, is_away
from swinexp.sweep.storage import checked, url_of
from tests.conftest import Command

GONE = OperationalError("SELECT 1", None, Exception("connection refused"))


class Work:
    """Fails so many times, and then does not."""

    def __init__(self, failures: int, error: Exception = GONE) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "done"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only pauses move."""
    taken: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", taken.append)
    monkeypatch.setattr(patience.time, "monotonic", lambda: sum(taken))
    return taken


def test_it_is_asked_again_until_it_is_back(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    backs: list[int] = []
    patient = Patience("the server", 300, lambda: backs.append(1))
    assert patient(Work(8)) == "done"
    assert pauses == [0.25, 0.5, 1, 2, 4, 8, 10, 10]
    assert [record.getMessage() for record in caplog.records] == [
        "the server is away (connection refused): the study waits for it",
        "the server is back, after 36 seconds",
    ]
    assert backs == [1]
    assert patient(Work(0)) == "done"
    assert backs == [1]


def test_it_is_not_waited_for_forever(pauses: list[float]) -> None:
    with pytest.raises(Away) as told:
        Patience("the server", 60, list)(Work(1000))
    assert str(told.value).startswith("the server has been away for ")
    assert 60 < sum(pauses) < 72


def test_what_is_tried_once_does_not_wait(pauses: list[float]) -> None:
    patient = Patience("the server", 60, list)
    assert not patient.once(Work(1))
    assert patient.once(Work(0))
    assert pauses == []
    assert not patient.once(Work(1))
    pauses.append(61)
    with pytest.raises(Away):
        patient.once(Work(1))


def test_what_has_asked_nothing_does_not_say_that_the_server_is_back(pauses: list[float]) -> None:
    patient = Patience("the server", 60, list)
    assert not patient.once(Work(1))
    assert patient.once(lambda: False)
    pauses.append(61)
    with pytest.raises(Away):
        patient.once(Work(1))


def test_what_is_within_is_tried_again_as_a_whole(pauses: list[float]) -> None:
    patient, inner, outer = Patience("the server", 60, list), Work(2), Work(0)

    def whole() -> None:
        outer()
        patient(inner)

    patient(whole)
    assert (outer.calls, inner.calls, len(pauses)) == (3, 3, 2)


@pytest.mark.parametrize("error", [ValueError("x"), ProgrammingError("", None, Exception("no such table"))])
def test_other_errors_are_not_tried_again(error: Exception, pauses: list[float]) -> None:
    work = Work(1, error)
    with pytest.raises(type(error)):
        Patience("the server", 60, list)(work)
    assert (work.calls, pauses) == (1, [])


def test_a_file_is_not_waited_for(pauses: list[float]) -> None:
    with pytest.raises(OperationalError):
        Eager()(Work(1))
    with pytest.raises(OperationalError):
        Eager().once(Work(1))
    assert pauses == []
    with pytest.raises(Mistake), checked("sqlite:///f"):
        raise GONE
    with pytest.raises(OperationalError), checked("postgresql://host/db"):
        raise GONE


def test_what_optuna_wraps_is_seen() -> None:
    wrapped = StorageInternalError("…")
    wrapped.__cause__ = GONE
    assert is_away(wrapped)
    assert is_away(DBAPIError("", None, Exception("terminated"), connection_invalidated=True))
    assert not is_away(StorageInternalError("…"))


def test_the_address_of_a_server_is_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Mistake) as told:
        url_of("postgres", Path("/f"))
    assert str(told.value) == (
        "storage=postgres: SWINEXP_STORAGE is not in the environment, which says where. "
        "Type SWINEXP_STORAGE=postgresql://host/db before it"
    )
    monkeypatch.setenv("SWINEXP_STORAGE", "mysql://me:secret@host/db")
    with pytest.raises(Mistake) as told:
        url_of("postgres", Path("/f"))
    assert str(told.value) == (
        "SWINEXP_STORAGE=mysql://…@host/db: an address of PostgreSQL is needed. "
        "Type SWINEXP_STORAGE=postgresql://host/db"
    )
    monkeypatch.setenv("SWINEXP_STORAGE", "postgresql://me:secret@host/db")
    assert url_of("postgres", Path("/f")) == "postgresql://me:secret@host/db"


@pytest.mark.parametrize("url", ["postgresql://me:secret@host/db", "postgresql://host/db?password=secret"])
def test_a_password_has_no_place_in_a_command(url: str) -> None:
    with pytest.raises(Mistake) as told:
        url_of(url, Path("/f"))
    assert "secret" not in str(told.value)
    assert "Type storage=postgres, with SWINEXP_STORAGE=ADDRESS in the environment" in str(told.value)


@pytest.mark.parametrize("option", ["sqlite", "journal", "postgres"])
def test_a_run_keeps_no_study(option: str, command: Command) -> None:
    ended = command(f"storage={option}")
    assert ended.returncode == 2
    assert ended.stderr == (
        f"swinexp: storage={option}: only a sweep of ours keeps a study. Type sweep=NAME storage={option}, "
        f"or -m hydra/sweeper=swinexp_optuna storage={option}\n"
    )
    assert not Path("outputs").exists()


def test_a_sweep_without_the_address_leaves_nothing(command: Command) -> None:
    ended = command("sweep=quickstart", "storage=postgres")
    assert ended.returncode == 2
    assert ended.stderr.startswith("swinexp: storage=postgres: SWINEXP_STORAGE is not in the environment")
    assert not Path("outputs").exists()
