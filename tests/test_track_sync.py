"""What is offline is sent once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from swinexp.folder import Folder
from swinexp.mistake import Ended
from swinexp.track.sync import being_written, unsent
from swinexp.track.sync import sync as send
from tests.slurm import until
from tests.test_track import FIGURES, row, tracker
from tests.wandb_server import Server


def sync(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "swinexp.track.sync", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def run(name: str) -> None:
    with Folder(Path(name)) as folder, tracker(folder, "wandb=offline") as track:
        track.epoch(1, row())
        track.epoch(2, row())
        track.finish(FIGURES)
    until(lambda: not being_written(unsent(Path("outputs/wandb"))), seconds=30)  # W&B's process closes it when it may


@pytest.mark.slow
def test_what_is_offline_is_sent_once(wandb_server: Server) -> None:
    run("first")
    done = sync()
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("1 run sent\n")
    sent = wandb_server.run()
    assert [each["epoch"] for each in sent.history] == [1, 2]
    assert sent.summary["state"] == "complete"
    assert unsent(Path("outputs/wandb")) == []
    assert {path.name for path in Path().iterdir()} == {"first", "outputs"}  # W&B's logs are no third
    assert list(Path("outputs/wandb/logs").glob("debug-sync*.log"))
    again = sync()
    assert again.stdout == "nothing to send in outputs/wandb\n"
    assert len(sent.history) == 2


def test_nothing_is_sent_by_a_command_with_arguments() -> None:
    for flag in ("--help", "-h"):
        assert sync(flag).stdout.startswith("Send what W&B's server lacks")
    for argument in ("--dry-run", "outputs/wandb"):
        done = sync(argument)
        assert (done.returncode, done.stdout) == (2, "")
        instead = "Type python -m swinexp.track.sync, or --help"
        assert done.stderr == f"swinexp: {argument}: nothing can be set, all is sent. {instead}\n"


def test_without_a_key_one_line_says_so() -> None:
    run("first")
    done = sync()
    assert done.returncode == 2
    assert done.stderr == "swinexp: 1 run to send, and no API key is configured. Type wandb login\n"


@pytest.mark.slow
def test_what_cannot_be_sent_is_told_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    run("first")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("swinexp.track.sync.subprocess.run", lambda *_, **__: None)
    with pytest.raises(Ended, match="1 run could not be sent; the same command tries again"):
        send(Path("outputs/wandb"), ["wandb", "sync"])
    assert len(unsent(Path("outputs/wandb"))) == 1


def test_a_file_that_is_open_is_left_alone() -> None:
    place = Path("outputs/wandb/offline-run-1-a")
    place.mkdir(parents=True)
    file = place / "run-a.wandb"
    file.touch()
    assert unsent(place.parent) == [file]
    with file.open("a"):
        assert being_written([file]) == ({file} if sys.platform == "linux" else set())
        assert sync().stdout.startswith("1 run still being written")
    assert being_written([file]) == set()


@pytest.mark.slow
def test_a_server_that_is_away_is_told_and_ctrl_c_leaves_all_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    run("first")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    command = [sys.executable, "-m", "swinexp.track.sync"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert re.fullmatch(
            r"http://127\.0\.0\.1:9 does not answer \(.*refused.*\): W&B goes on trying, ctrl-C ends it\n", line
        )
        while "Syncing 1 run" not in line:
            line = process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.endswith("swinexp: stopped; the same command sends the rest\n")
    assert len(unsent(Path("outputs/wandb"))) == 1
