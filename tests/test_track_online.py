"""Runs with W&B's server, a local one that remembers what it is sent, and with one that fails in every known way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest

from swinexp.track.sync import being_written
from tests.conftest import SMALL, Command, stopped
from tests.wandb_server import KEY, Server, serving

pytestmark = pytest.mark.slow

RUN = Path("outputs/runs/r")
EPOCHS = 3
TIMES = ("train/seconds", "val/seconds", "train/images_per_second", "val/images_per_second")
START, END = 15, 10  # seconds that a server may cost a run


@dataclass(frozen=True)
class Outcome:
    """How a run ended, what it said, and the seconds from its first line to its first epoch and from its last to the end."""

    code: int
    said: list[str]
    start: float
    end: float

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.said if line.startswith("WARNING")]

    @property
    def loss(self) -> float:
        return float(json.loads((RUN / "summary.json").read_text())["val/loss"])


def trained(*overrides: str) -> Outcome:
    """A small run by command."""
    command = [sys.executable, "-m", "swinexp.run", *SMALL, f"trainer.epochs={EPOCHS}", "name=r", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    ended = time.time()
    assert "Traceback" not in done.stderr
    lines = [line for line in (RUN / "run.log").read_text().splitlines() if re.match(r"\d{4}-\d\d-", line)]

    def at(wanted: str) -> float:
        told = next(line for line in lines if wanted in line)
        return datetime.fromisoformat(told[:23].replace(",", ".")).timestamp()

    start = at("epoch 1/") - at("training on the CPU")
    return Outcome(done.returncode, [line[24:] for line in lines], start, ended - at(f"epoch {EPOCHS}/{EPOCHS}"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """What the same run comes to without W&B, and how long it takes to begin and to end."""
    before, place = Path.cwd(), tmp_path_factory.mktemp("undisturbed")
    os.chdir(place)
    try:
        plain = trained("wandb=disabled")
        return {"loss": plain.loss, "start": plain.start, "end": plain.end}
    finally:
        os.chdir(before)


@contextmanager
def failing_from_the_start(fault: int | str) -> Iterator[Mapping[str, str]]:
    with serving() as server:
        server.fail(fault)
        yield server.environment


@contextmanager
def failing_in_mid_run(fault: int | str) -> Iterator[Mapping[str, str]]:
    """A server that takes the run, and nothing after that."""
    with serving() as server:

        def fail() -> None:
            while not server.runs and not server.over.wait(0.01):
                pass
            server.fail(fault)

        waiting = threading.Thread(target=fail)
        waiting.start()
        yield server.environment
        waiting.join(10)
        assert all(not run.history for run in server.runs.values())


OFFLINE = r"so the run is kept offline"
LATE = r"W&B has not got all of the run \(.*\); to send the rest: python -m swinexp.track.sync$"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (401, OFFLINE),
        (403, OFFLINE),
        (404, OFFLINE),
        (500, OFFLINE),
        ("swallow", OFFLINE),
        ("refuse", OFFLINE),
    ],
)
def test_a_server_that_fails_from_the_start(
    fault: int | str, told: str, undisturbed: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing_from_the_start(fault) as environment:
        _without_harm(environment, told, undisturbed, monkeypatch)
    assert len([*Path("outputs/wandb").glob("offline-run-*")]) == 1


@pytest.mark.parametrize("fault", ["refuse", "swallow", 500, 401])
def test_a_server_that_fails_in_mid_run(
    fault: int | str, undisturbed: dict[str, float], monkeypatch: pytest.MonkeyPatch, wandb_server: Server
) -> None:
    with failing_in_mid_run(fault) as environment:
        _without_harm(environment, LATE, undisturbed, monkeypatch)
    for name, value in wandb_server.environment.items():
        monkeypatch.setenv(name, value)
    for sent in ("1 run sent", "nothing to send in outputs/wandb"):  # once
        done = subprocess.run([sys.executable, "-m", "swinexp.track.sync"], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == sent
    run = wandb_server.run()
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    assert (run.state, run.summary["state"], run.name) == ("finished", "complete", "r")


def _without_harm(
    environment: Mapping[str, str], told: str, undisturbed: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> Outcome:
    """The run comes to the same, says one line of what happened, and is not much later."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    outcome = trained("wandb=online")
    assert (outcome.code, outcome.loss) == (0, undisturbed["loss"])
    assert len(outcome.warnings) == 1, outcome.warnings
    assert re.search(told, outcome.warnings[0])
    if told == OFFLINE:
        assert any(re.search(r"W&B: offline; .* to send: .*wandb sync ", line) for line in outcome.said)
    assert outcome.start - undisturbed["start"] <= START
    assert outcome.end - undisturbed["end"] <= END
    return outcome


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, r"W&B: no API key is configured \(type: wandb login\), so the run is kept offline"),
        ({"WANDB_API_KEY": "short"}, r"W&B's settings do not work \(.*API key.*\), so the run is kept offline"),
    ],
)
def test_no_key_and_one_that_is_none(
    environment: dict[str, str], told: str, undisturbed: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_harm(environment, told, undisturbed, monkeypatch)


def test_a_place_for_its_files_that_is_none(undisturbed: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("outputs").mkdir()
    Path("outputs/wandb").write_text("a file")
    monkeypatch.setenv("WANDB_MODE", "offline")
    outcome = trained()
    assert (outcome.code, outcome.loss) == (0, undisturbed["loss"])
    (warning,) = outcome.warnings
    assert re.search(r"W&B could not start offline \(.*Not a directory.*\), so the run goes on without it", warning)


@pytest.mark.usefixtures("wandb_server")
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_full_disk_below_its_files(
    mode: str, undisturbed: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "none")  # no diff of the code, which may be larger than the disk
    place = tmp_path / "outputs" / "wandb"
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here (only root may)")
    try:
        outcome = trained(f"wandb={mode}")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    assert (outcome.code, outcome.loss) == (0, undisturbed["loss"])
    assert re.search(r"the disk of outputs/wandb/.* is full: W&B may lack part of the run", outcome.warnings[-1])
    assert outcome.start - undisturbed["start"] <= START
    assert outcome.end - undisturbed["end"] <= END


def test_what_a_server_has_got_is_not_sent_twice(wandb_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server loses its network with the first epochs taken; one at the same place, which knows them, gets the rest."""
    for name, value in wandb_server.environment.items():
        monkeypatch.setenv(name, value)
    assert trained("wandb=online").code == 0
    run = wandb_server.run()
    whole = list(run.history)
    del run.history[1:]
    run.summary, run.state = dict(whole[0]), "running"
    (folder,) = Path("outputs/wandb").glob("run-*")
    (file,) = folder.glob("run-*.wandb")
    file.with_name(file.name + ".unsent").touch()
    done = subprocess.run([sys.executable, "-m", "swinexp.track.sync"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1 run sent"
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    own = [key for key in whole[0] if not key.startswith("_")]
    assert [{key: row[key] for key in own} for row in run.history] == [{key: row[key] for key in own} for row in whole]
    assert (run.state, run.summary["state"], run.name) == ("finished", "complete", "r")
    assert run.config["optimizer"]["lr"] == 0.001


# With a server that works


def test_a_run_is_there_as_its_folder_has_it(wandb_server: Server) -> None:
    outcome = trained(
        "wandb=online", "wandb.tags=[first]", "wandb.notes=why", "wandb.norms=true", "model.drop_path=0.1"
    )
    assert (outcome.code, outcome.warnings) == (0, [])
    run = wandb_server.run()
    rows = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in rows[0]} for row in run.history] == rows
    summary = json.loads((RUN / "summary.json").read_text())
    for key in ("val/accuracy", "val/loss", "best/val/accuracy", "best/epoch", "parameters", "flops", "state"):
        assert run.summary[key] == summary[key]
    assert run.config["model"]["drop_path"] == 0.1
    assert run.config["environment"]["git"] == summary["git"]
    assert (run.name, run.job_type, run.notes, run.state) == ("r", "train", "why", "finished")
    assert "first" in run.tags
    assert "train/weight_norm" in run.history[0]


def test_pictures_and_checkpoints_are_sent(wandb_server: Server) -> None:
    assert trained("wandb=online", "wandb.images=true", "wandb.checkpoints=both").code == 0
    run = wandb_server.run()
    kept = [artifact for artifact in run.artifacts if artifact.type == "model"]
    assert {alias for artifact in kept for alias in artifact.aliases} >= {"best", "last"}
    assert all(artifact.committed for artifact in kept)
    last = next(artifact for artifact in kept if "last" in artifact.aliases)
    assert (RUN / "checkpoints" / "last.pt").read_bytes() in last.files.values()
    shown = {key for row in run.history for key in row}
    assert {"errors", "confusion", "attention"} <= shown
    assert sum(name.endswith(".png") for name in run.files) >= 3


EIGHT = (*SMALL, "trainer.epochs=8", "name=r", "wandb=online")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_resumed_run_goes_on_in_its_own_history(
    number: signal.Signals, wandb_server: Server, command: Command
) -> None:
    stopped(number, 13, *EIGHT)
    if number == signal.SIGINT:
        assert wandb_server.run().summary["state"] == "interrupted"
    done = command(*EIGHT)
    assert done.returncode == 0, done.stderr
    run = wandb_server.run()
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["_step"] for row in run.history] == [1, 2, 3, 4, 5, 6, 7, 8]
    rows = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    for sent, own in zip(run.history, rows, strict=True):
        assert {key: sent[key] for key in own if key not in TIMES} == {key: own[key] for key in own if key not in TIMES}
    assert (run.state, run.summary["state"], run.summary["val/loss"]) == ("finished", "complete", rows[-1]["val/loss"])


@pytest.mark.parametrize("gone", [0, 2])
def test_a_run_that_goes_on_offline_is_the_same_run(gone: int, wandb_server: Server, command: Command) -> None:
    stopped(signal.SIGKILL, 13, *EIGHT)
    files = [*Path("outputs/wandb").glob("run-*/run-*.wandb")]
    while being_written(files):  # by W&B's process
        time.sleep(0.05)
    del wandb_server.run().history[3 - gone :]  # as if the kill had come before they were sent
    (known,) = wandb_server.runs
    wandb_server.fail(401)
    done = command(*EIGHT)
    assert done.returncode == 0, done.stderr
    assert OFFLINE in done.stdout
    assert json.loads((RUN / "summary.json").read_text())["wandb"]["id"] == known
    wandb_server.fault = None
    for said in ("1 run sent", "nothing to send in outputs/wandb"):
        done = subprocess.run([sys.executable, "-m", "swinexp.track.sync"], capture_output=True, text=True, check=False)
        assert done.stdout.splitlines()[-1] == said, done.stderr
    run = wandb_server.run()
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (run.state, run.summary["state"]) == ("finished", "complete")


def test_a_run_that_diverges_is_failed(wandb_server: Server, command: Command) -> None:
    done = command(*SMALL, "name=r", "wandb=online", "optimizer=sgd", "optimizer.lr=1e30", "trainer.clip_norm=0")
    assert done.returncode == 1
    run = wandb_server.run()
    assert (run.state, run.summary["state"]) == ("failed", "failed")


def offline_runs() -> list[dict[str, Any]]:
    """What W&B's files say of each run: {config, group, job_type, name, history, summary}."""
    found = []
    for place in sorted(Path("outputs/wandb").glob("offline-run-*")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(place)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        run: dict[str, Any] = {"config": {}, "summary": {}, "history": []}
        for line in told.splitlines():
            record = json.loads(line)
            about = record.get("run", {})
            run["config"] |= about.get("config", {}).get("update", {})
            names = {"display_name": "name", "run_group": "group", "job_type": "job_type", "run_id": "id"}
            run |= {own: about[key] for key, own in names.items() if key in about}
            run["summary"] |= record.get("summary", {}).get("update", {})
            if "epoch" in (row := record.get("history", {}).get("item", {})):
                run["history"].append(row)
        found.append(run)
    return found


def server_runs(server: Server) -> list[dict[str, Any]]:
    keys = ("id", "name", "group", "job_type", "config", "history", "summary")
    return [{key: getattr(run, key) for key in keys} for run in server.runs.values()]


Read = Callable[[Server], list[dict[str, Any]]]
BOTH = pytest.mark.parametrize(("mode", "read"), [("online", server_runs), ("offline", lambda _: offline_runs())])


@BOTH
def test_a_multirun_of_six(mode: str, read: Read, wandb_server: Server, command: Command) -> None:
    done = command("-m", *SMALL, f"wandb={mode}", "trainer.epochs=2", "window=w2,w4", "seed=0,1,2")
    assert done.returncode == 0, done.stderr
    (folder,) = Path("outputs/sweeps").iterdir()
    runs = {run["id"]: run for run in read(wandb_server)}
    assert len(runs) == 6
    for place in folder.glob("[0-9]"):
        summary = json.loads((place / "summary.json").read_text())
        run = runs[summary["wandb"]["id"]]
        assert (run["group"], run["job_type"], run["name"]) == (folder.name, "train", summary["name"])
        assert [row["epoch"] for row in run["history"]] == [1, 2]
        assert run["summary"]["val/accuracy"] == summary["val/accuracy"]
        assert run["summary"]["state"] == "complete"
    points = {(run["config"]["window"]["size"], run["config"]["seed"]) for run in runs.values()}
    assert points == {(size, seed) for size in (2, 4) for seed in (0, 1, 2)}


@BOTH
@pytest.mark.usefixtures("quiet_optuna")
def test_a_sweep_of_twelve_is_linked_both_ways(mode: str, read: Read, wandb_server: Server, command: Command) -> None:
    done = command(
        "sweep=quickstart",
        *SMALL,
        f"wandb={mode}",
        "trainer.epochs=4",
        "hydra.sweeper.n_trials=12",
        "hydra.sweeper.study_name=twelve",
    )
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name="twelve", storage="sqlite:///outputs/sweeps/twelve/study.db")
    runs = {run["id"]: run for run in read(wandb_server)}
    assert len(runs) == len(study.trials) == 12
    states = {"COMPLETE": "complete", "PRUNED": "pruned"}
    assert {trial.state.name for trial in study.trials} == {*states}
    for trial in study.trials:
        run = runs[trial.user_attrs["wandb"].rpartition("/")[2]]
        assert run["config"]["sweep"] == {"study": "twelve", "trial": trial.number}
        assert (run["group"], run["job_type"]) == ("twelve", "trial")
        assert run["summary"]["state"] == states[trial.state.name]
        assert run["config"]["optimizer"]["lr"] == pytest.approx(trial.params["optimizer.lr"], rel=1e-6)
        told = {int(row["epoch"]): row["val/accuracy"] for row in run["history"]}
        assert told == pytest.approx(trial.intermediate_values)


@pytest.mark.usefixtures("wandb_server")
def test_the_key_is_written_nowhere() -> None:
    assert trained("wandb=online").code == 0
    files = [path for path in Path("outputs").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
