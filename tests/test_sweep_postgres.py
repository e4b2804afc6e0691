"""A study on PostgreSQL: machines share it, its server may go away for a while, and its password stays where it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from swinexp import HERE
from swinexp.sweep.patience import Away
from swinexp.sweep.study import Study
from swinexp.sweep.trials import LOST
from tests.conftest import SMALL
from tests.postgres import PASSWORD, Server, binaries, serving
from tests.sweeping import study_of
from tests.test_sweep_chaos import children, start, write_app

pytest.importorskip("psycopg", reason="psycopg is not installed")
PLACE = binaries()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PLACE is None, reason="PostgreSQL's server is not installed (apt-get install postgresql)"),
]

OPEN: list[Study] = []

# A machine: it has a folder of its own, and so shares nothing but the server.
MACHINE = """
import sys, time
from pathlib import Path
import optuna
from optuna.trial import TrialState
from swinexp.sweep.budget import Enough
from swinexp.sweep.study import Nothing
from tests.sweeping import study_of

optuna.logging.set_verbosity(optuna.logging.ERROR)
folder, total, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
study = study_of("hydra.sweeper.storage=postgres", f"hydra.sweeper.n_trials={total}",
                 "hydra/sweeper/sampler=random", folder=folder)
print("ready", flush=True)
while True:
    try:
        trial = study.claim()
    except Nothing:
        time.sleep(0.1)
        continue
    except Enough:
        break
    print(trial.number, flush=True)
    time.sleep(pause)
    assert study.tell(trial, TrialState.COMPLETE, [trial.params["x"]])
"""


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    assert PLACE is not None
    with serving(PLACE) as server:
        yield server


@pytest.fixture
def server(served: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, empty and running, where `storage=postgres` finds it."""
    monkeypatch.setenv("SWINEXP_STORAGE", served.url)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield served
    optuna.logging.set_verbosity(before)
    last = study(folder="last")
    for name in optuna.get_all_study_names(last.optuna._storage):
        optuna.delete_study(study_name=name, storage=last.optuna._storage)
    while OPEN:
        OPEN.pop().close()


def study(*overrides: str, folder: str = "sweep", direction: str = "minimize") -> Study:
    """One that the fixture closes."""
    storage = "hydra.sweeper.storage=postgres"
    OPEN.append(study_of(storage, *overrides, directions=[direction], folder=Path(folder)))
    return OPEN[-1]


def machine(name: str, total: int, pause: float = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MACHINE, f"{name}/sweep", str(total), str(pause)],
        env=os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> list[int]:
    """The trials that a machine had, when it has ended."""
    lines = process.communicate(timeout=300)[0].split()
    return [int(line) for line in lines if line != "ready"]


@pytest.mark.usefixtures("server")
def test_eight_machines_lose_no_trial_and_none_is_done_twice() -> None:
    total = 8 * 200
    machines = [machine(f"m{index}", total) for index in range(8)]
    shares = [said(each) for each in machines]
    assert [each.returncode for each in machines] == [0] * 8
    assert Counter(number for share in shares for number in share) == Counter(range(total))
    assert min(map(len, shares)) > 0
    trials = study(folder="m0/sweep").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * total
    assert [trial.values for trial in trials] == [[trial.params["x"]] for trial in trials]
    assert not any(LOST in trial.user_attrs for trial in trials)


@pytest.mark.usefixtures("server")
def test_who_is_killed_loses_only_its_trial() -> None:
    first = machine("m0", 20, pause=0.2)
    assert first.stdout is not None
    numbers = [first.stdout.readline() for _ in range(4)][1:]
    second = machine("m1", 20, pause=0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert int(numbers[-1]) in said(second)
    assert second.returncode == 0
    trials = study(folder="m1/sweep").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 20
    assert [trial.number for trial in trials if LOST in trial.user_attrs] == [int(numbers[-1])]


@pytest.mark.usefixtures("server")
def test_the_lock_of_who_is_killed_is_let_go() -> None:
    held = study()
    code = "\n".join(
        (
            "from tests.test_sweep_postgres import study",
            "with study(folder='other/sweep').alone():",
            "    print(1, flush=True)",
            "    input()",
        )
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(HERE.parent)},
    )
    assert other.stdout is not None
    other.stdout.readline()
    began = time.monotonic()
    threading.Timer(1, other.kill).start()
    with held.alone():
        assert 0.9 < time.monotonic() - began < 20
    other.communicate()


def test_a_server_that_is_away_for_a_while_is_waited_for(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    machines = [machine(f"m{index}", 60, pause=0.1) for index in range(2)]
    for each in machines:
        assert each.stdout is not None
        for _ in range(5):
            each.stdout.readline()
    mine = study(folder="m2/sweep")
    server.stop()
    try:
        assert not mine.patience.once(lambda: mine.trials)
        assert not mine.patience.once(lambda: mine.trials)
        time.sleep(3)
    finally:
        server.start()
    for each in machines:
        said(each)
    assert [each.returncode for each in machines] == [0, 0]
    assert [trial.state for trial in mine.trials] == [TrialState.COMPLETE] * 60
    lines = [record.getMessage() for record in caplog.records if record.name == "swinexp.sweep.patience"]
    assert [" is away (" in lines[0], " is back, after " in lines[1]] == [True, True]
    assert len(lines) == 2
    assert PASSWORD not in caplog.text


def test_training_goes_on_and_tells_what_is_late(server: Server) -> None:
    from swinexp.sweep.trial import Inside

    one = study("hydra.sweeper.n_trials=2", "hydra/sweeper/pruner=asha")
    trial = one.claim()
    inside = Inside(trial, one.name, "loss", [], lambda: None, one.patience.once)
    inside.epoch(1, {"loss": 1.0})
    server.stop()
    try:
        began = time.monotonic()
        inside.epoch(2, {"loss": 0.5})
        one.beat(trial, 1)
        one.give_back(trial)
        assert time.monotonic() - began < 5
        assert inside.late == {2: 0.5}
    finally:
        server.start()
    inside.epoch(3, {"loss": 0.4})
    assert inside.late == {}
    assert one.trials[0].intermediate_values == {1: 1.0, 2: 0.5, 3: 0.4}
    assert one.tell(trial, TrialState.COMPLETE, [0.4], late={4: 0.3})
    assert one.tell(trial, TrialState.COMPLETE, [0.4])  # again, because the answer was lost
    assert one.trials[0].intermediate_values[4] == 0.3


def test_a_server_that_stays_away_ends_the_worker(server: Server) -> None:
    one = study("hydra.sweeper.patience=1")
    server.stop()
    try:
        with pytest.raises(Away) as told:
            one.claim()
    finally:
        server.start()
    line = str(told.value)
    assert line.startswith("postgresql://…@127.0.0.1:")
    assert line.endswith(
        "(hydra.sweeper.patience=1). What was trained is in the runs' checkpoints; the same command goes on"
    )
    assert PASSWORD not in line


def test_training_ends_with_a_checkpoint_when_the_server_stays_away(server: Server, tmp_path: Path) -> None:
    given = [one for one in SMALL if not one.startswith("trainer.epochs")]
    sweep = ["sweep=quickstart", "storage=postgres", "hydra.sweeper.patience=2", "hydra.sweeper.heartbeat=0.5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "swinexp.run", *sweep, *given, "trainer.epochs=10000", "wandb=disabled"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not list(tmp_path.glob("outputs/sweeps/*/0/metrics.jsonl")):
            assert process.poll() is None
            time.sleep(0.1)
        server.stop()
        try:
            words = process.communicate(timeout=120)[1]
        finally:
            server.start()
    finally:
        process.kill()
        process.communicate()
    last = words.strip().splitlines()[-1]
    assert process.returncode == 1, words
    assert last.startswith("swinexp: postgresql://…@127.0.0.1:"), words
    assert last.endswith("the same command goes on")
    (folder,) = tmp_path.glob("outputs/sweeps/*/0")
    assert list(folder.rglob("last.pt"))
    assert [
        path for path in folder.parent.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()
    ] == []
    one = study(folder=str(folder.parent), direction="maximize")
    assert one.trials[0].state == TrialState.RUNNING
    assert one._claim().number == 0
    assert len(one.trials[0].user_attrs[LOST]) == 1


def arguments() -> str:
    """What a list of processes shows of all of them."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(each.read_bytes())
        except OSError:
            continue
    return b"\n".join(found).decode(errors="replace")


def test_a_sweep_outlives_half_a_minute_without_its_server_and_tells_nobody_the_password(
    server: Server, tmp_path: Path
) -> None:
    write_app(tmp_path)
    total = 40
    overrides = (
        "hydra.sweeper.storage=postgres",
        f"hydra.sweeper.n_trials={total}",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.heartbeat=1",
        "hydra/sweeper/sampler=random",
        "sleep=0.3",
    )
    process = start(tmp_path, *overrides)
    while not (tmp_path / "sweep" / "5" / "done").exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    assert "hydra.sweeper.storage=postgres" in arguments()
    assert PASSWORD not in arguments()
    server.stop()
    time.sleep(30)
    server.start()
    assert process.wait(timeout=240) == 0, (tmp_path / "log").read_text()[-2000:]
    trials = study().trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * total
    lost = [trial.number for trial in trials if LOST in trial.user_attrs]
    assert len(lost) <= 2, "more than those that were just being handed out"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len((tmp_path / "sweep" / "results.csv").read_text().splitlines()) == total + 1
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []
    words = "".join(path.read_text() for path in (tmp_path / "sweep" / "workers").iterdir())
    assert " is away (" in words
    assert " is back, after " in words


OPENS = """
import sys, time
from pathlib import Path
from tests.sweeping import study_of

time.sleep(max(0, float(sys.argv[1]) - time.time()))
study_of("hydra.sweeper.storage=postgres", folder=Path(sys.argv[2])).close()
"""


def test_of_studies_that_are_the_first_on_a_server_all_are_made(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE fresh")
    monkeypatch.setenv("SWINEXP_STORAGE", server.url.replace("/postgres", "/fresh"))
    when = str(time.time() + 8)  # when all have imported what they need
    opening = [
        subprocess.Popen(
            [sys.executable, "-c", OPENS, when, f"s{index}"], env=os.environ | {"PYTHONPATH": str(HERE.parent)}
        )
        for index in range(4)
    ]
    assert [process.wait(timeout=60) for process in opening] == [0] * 4


def test_a_server_that_stays_away_ends_all_workers_with_checkpoints(server: Server, tmp_path: Path) -> None:
    given = [one for one in SMALL if not one.startswith("trainer.epochs")]
    sweep = ["sweep=quickstart", "storage=postgres", "hydra.sweeper.patience=2", "hydra.sweeper.n_jobs=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "swinexp.run", *sweep, *given, "trainer.epochs=10000", "wandb=disabled"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while len(list(tmp_path.glob("outputs/sweeps/*/*/metrics.jsonl"))) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        workers = children(process.pid)
        assert len(workers) == 2
        server.stop()
        try:
            words = process.communicate(timeout=120)[1]
        finally:
            server.start()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1, words
    last = words.strip().splitlines()[-1]
    assert last.startswith("swinexp: postgresql://…@127.0.0.1:"), words
    assert last.endswith("the same command goes on")
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert len(list(tmp_path.glob("outputs/sweeps/*/*/checkpoints/last.pt"))) == 2
