"""A study is kept in a file or on a server, outlives a kill in mid-word, and keeps passwords to itself."""

from __future__ import annotations

import threading
from pathlib import Path

import optuna
import pytest

from swinexp.mistake import Mistake
from swinexp.sweep.storage import _Lock, alone, checked, open_storage, shown_url, url_of

pytestmark = pytest.mark.usefixtures("quiet_optuna")


def study_in(url: str) -> optuna.Study:
    return optuna.create_study(storage=open_storage(url), study_name="s", load_if_exists=True)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (None, "sqlite:////f/study.db"),
        ("sqlite", "sqlite:////f/study.db"),
        ("journal", "journal:////f/study.journal"),
        ("sqlite:///here.db", "sqlite:///here.db"),
        ("journal:///here", "journal:///here"),
        ("postgresql://host/db", "postgresql://host/db"),
    ],
)
def test_the_address_of_a_study(given: str | None, url: str) -> None:
    assert url_of(given, Path("/f")) == url


def test_a_word_that_is_no_address_is_told() -> None:
    with pytest.raises(Mistake) as told:
        url_of("study.db", Path("/f"))
    assert str(told.value) == (
        "hydra.sweeper.storage=study.db: one of sqlite, journal, postgres, sqlite:///FILE, journal:///FILE, "
        "postgresql://… is needed. Type hydra.sweeper.storage=sqlite:///study.db"
    )


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_what_is_written_is_there_for_the_next(kind: str, tmp_path: Path) -> None:
    url = url_of(kind, tmp_path / "deep" / "folder")
    study = study_in(url)
    trial = study.ask()
    x = trial.suggest_float("x", 0, 1)
    trial.report(0.5, 1)
    trial.set_user_attr("k", {"a": [1, None]})
    study.tell(trial, 2.0)
    (found,) = study_in(url).trials
    assert (found.params, found.values, found.intermediate_values) == ({"x": x}, [2.0], {1: 0.5})
    assert found.user_attrs == {"k": {"a": [1, None]}}


def test_a_relative_sqlite_file_gets_its_folder(tmp_path: Path) -> None:
    study_in("sqlite:///new/place.db")
    assert (tmp_path / "new" / "place.db").exists()


def test_sqlite_waits_for_the_disk_only_at_checkpoints(tmp_path: Path) -> None:
    storage = open_storage(url_of("sqlite", tmp_path))
    engine = storage._backend.engine  # type: ignore[attr-defined]
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1


@pytest.mark.parametrize("kept", [1, 5, -1])
def test_a_journal_whose_last_line_is_cut_goes_on(tmp_path: Path, kept: int) -> None:
    url = url_of("journal", tmp_path)
    study = study_in(url)
    for value in (1.0, 2.0):
        study.tell(study.ask(), value)
    path = tmp_path / "study.journal"
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole + last[:kept])  # a kill in mid-word
    again = study_in(url)
    assert [trial.value for trial in again.trials] == [1.0, 2.0]
    again.tell(again.ask(), 3.0)
    assert path.read_bytes().startswith(whole)
    assert [trial.value for trial in study_in(url).trials] == [1.0, 2.0, 3.0]
    assert [trial.value for trial in study.trials] == [1.0, 2.0, 3.0]  # for who had it open, too


def test_a_journal_of_which_only_a_cut_line_is_there_begins(tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_bytes(b'{"op_code": 0, "wor')
    assert study_in(url_of("journal", tmp_path)).trials == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://…@host:5432/db"),
        ("postgresql+psycopg2://me:se@cret@host/db", "postgresql+psycopg2://…@host/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?…"),
        ("postgresql://me:secret@host/db?sslpassword=secret", "postgresql://…@host/db?…"),
        ("sqlite:///a@b/study.db", "sqlite:///a@b/study.db"),
        ("journal:///a@b/study.journal", "journal:///a@b/study.journal"),
        ("sqlite:////f/study.db", "sqlite:////f/study.db"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown
    assert "secret" not in shown


def unusable(url: str) -> str:
    with pytest.raises(Mistake) as told, checked(url):
        study_in(url)
    line = str(told.value)
    assert "\n" not in line
    assert line.startswith(f"hydra.sweeper.storage={shown_url(url)}: cannot be used (")
    assert line.endswith("). Give another one, or move what is there out of the way")
    return line


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_file_that_is_something_else_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    path.write_text("something else entirely\n" * 100)
    unusable(f"{kind}:///{path}")
    assert path.read_text() == "something else entirely\n" * 100


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_folder_is_no_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "thing").mkdir()
    unusable(f"{kind}:///{tmp_path / 'thing'}")


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_place_below_a_file_is_told(tmp_path: Path, kind: str) -> None:
    (tmp_path / "thing").write_text("")
    unusable(f"{kind}:///{tmp_path / 'thing' / 'study'}")


@pytest.mark.parametrize(
    "url", ["postgresql://me:secret@localhost:1/db", "nonsense://me:secret@host/db", "redis://me:secret@localhost:1"]
)
def test_a_server_that_is_not_there_is_told_without_its_password(url: str) -> None:
    assert "secret" not in unusable(url)


def test_a_lock_that_is_interrupted_is_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = _Lock(tmp_path / "journal.log")

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(lock, "_mend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
    waiting = threading.Thread(target=lock.acquire, daemon=True)
    waiting.start()
    waiting.join(20)
    assert not waiting.is_alive()


def test_the_lock_is_for_one_at_a_time(tmp_path: Path) -> None:
    path, order, entered = tmp_path / "lock", [], threading.Event()

    def other() -> None:
        entered.set()
        with alone(path):
            order.append("other")

    thread = threading.Thread(target=other)
    with alone(path):
        thread.start()
        entered.wait()
        thread.join(timeout=0.2)  # it has all the time to come in wrongly
        assert thread.is_alive()
        order.append("first")
    thread.join()
    assert order == ["first", "other"]
    with pytest.raises(ZeroDivisionError), alone(path):
        1 / 0  # noqa: B018
    with alone(path):
        pass
