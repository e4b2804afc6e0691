"""A run on several GPUs is one run, whoever starts its processes: real ones, on the CPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Listener
from pathlib import Path

import pytest
import yaml

from swinexp.group import _Starter
from swinexp.mistake import Ended, Mistake
from swinexp.sweep.trial import Outside, Pruned, current_trial
from tests.conftest import SMALL, Command, small_run
from tests.slurm import descendants, until

TWO = (*SMALL, "wandb=disabled", "trainer.gpus=2")


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


def test_it_is_for_whole_gpus() -> None:
    for gpus, device in ((0, "cpu"), (2, "cuda:1")):
        with pytest.raises(Mistake):
            small_run(f"trainer.gpus={gpus}", f"trainer.device={device}")


def test_torchrun_and_the_key_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("WORLD_SIZE", "4"),
        ("RANK", "1"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "a"),
        ("MASTER_PORT", "1"),
    ):
        monkeypatch.setenv(name, value)
    assert small_run().trainer.gpus == 1
    assert small_run("trainer.gpus=4").trainer.gpus == 4
    with pytest.raises(Mistake, match="trainer.gpus=2: torchrun has started 4 processes. Type trainer.gpus=4"):
        small_run("trainer.gpus=2")


class Listening(Outside):
    """A trial that notes what it is told, and prunes after the second epoch."""

    number, study, point = 7, "study", {"x": 1}

    def __init__(self) -> None:
        self.told: list[object] = []

    def check(self, facts: object) -> None:  # noqa: ARG002
        self.told.append("check")

    def epoch(self, epoch: int, metrics: object) -> None:  # noqa: ARG002
        self.told.append(epoch)
        if epoch == 2:
            raise Pruned


def test_the_first_process_speaks_with_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends in one process."""
    from multiprocessing.connection import Listener

    from swinexp import group

    trial = Listening()
    with Listener(family="AF_UNIX", authkey=b"key") as listener:
        starter = group._Starter(listener, trial, "sweep")
        monkeypatch.setenv(group.ADDRESS, str(listener.address))
        monkeypatch.setenv(group.KEY, b"key".hex())
        with group.started():
            there = current_trial()
            assert (there.number, there.study, there.point, there.group) == (7, "study", {"x": 1}, "sweep")
            there.check({"parameters": 1})
            there.epoch(1, {"val/accuracy": 0.5})
            with pytest.raises(Pruned):
                there.epoch(2, {})
            there.ended(Ended("no more"))
    assert trial.told == ["check", 1, 2]
    with pytest.raises(Pruned):  # which came first
        starter.judge(0, Path(), "")


@pytest.mark.slow
def test_a_run_on_two_gpus_is_one_run(command: Command) -> None:
    alone = command(*SMALL, "wandb=disabled", "name=one")
    both = command(*TWO, "name=two")
    assert (alone.returncode, both.returncode) == (0, 0), both.stderr
    one, two = (json.loads(Path(f"outputs/runs/{name}/summary.json").read_text()) for name in ("one", "two"))
    assert two["val/loss"] == pytest.approx(one["val/loss"], rel=1e-3)
    assert "2 processes train their share" in both.stdout
    again = command(*TWO, "name=two")
    assert again.returncode == 0
    assert "already finished" in again.stdout


@pytest.mark.slow
def test_its_processes_read_the_config_that_the_command_does(command: Command) -> None:
    own = Path("my files")
    (own / "experiment").mkdir(parents=True)
    (own / "experiment" / "own.yaml").write_text("# @package _global_\noptimizer: {lr: 0.125}\n")
    (own / "best.yaml").write_text("defaults:\n- config\n- _self_\nseed: 7\n")
    done = command(f"--config-dir={own}", "--config-name=best", *TWO, "experiment=own", "name=own")
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(Path("outputs/runs/own/config.yaml").read_text())
    assert (config["seed"], config["optimizer"]["lr"]) == (7, 0.125)


@contextmanager
def started(*overrides: str) -> Iterator[subprocess.Popen[str]]:
    """The command, gone at the end whatever has become of it."""
    words = [sys.executable, "-m", "swinexp.run", *overrides]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def ranks(process: subprocess.Popen[str]) -> list[int]:
    """Its torchrun's processes, the first one first."""
    found = {}
    for pid in descendants(process.pid):
        try:
            words = Path(f"/proc/{pid}/environ").read_text().split("\0")
        except OSError:
            continue
        found |= {int(word[5:]): pid for word in words if word.startswith("RANK=")}
    return [found[rank] for rank in sorted(found)]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("swinexp: process 0 ends, because another one did: x\nswinexp: only mine\nRoot Cause:\n", "only mine"),
        ("[rank1]: ValueError: no\nswinexp: process 0 ends, because another one did\n", "[rank1]: ValueError: no"),
        ("swinexp: process 0 ends, because another one did: x\n", "it did not say why"),
    ],
)
def test_why_a_process_ended_is_what_it_said(words: str, why: str) -> None:
    with Listener(family="AF_UNIX") as listener:
        starter = _Starter(listener, Outside(), None)
        with pytest.raises(Ended, match=re.escape(f"one of the run's processes ended: {why}") + "$"):
            starter.judge(1, Path("run"), words)


@pytest.mark.slow
def test_signals_and_deaths(command: Command) -> None:
    # Long enough that it is not over when a signal comes, on a fast machine too.
    epochs = 80
    long = (
        *(one for one in TWO if not one.startswith(("trainer.epochs", "trainer.limit_train", "trainer.batch_size"))),
        f"trainer.epochs={epochs}",
        "trainer.batch_size=16",
        "name=long",
    )
    folder = Path("outputs/runs/long")

    def rows() -> int:
        path = folder / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    with started(*long) as process:
        until(rows)
        process.send_signal(signal.SIGINT)
        words = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert words.splitlines() == [
        "swinexp: stopped by SIGINT; outputs/runs/long/checkpoints/last.pt holds all of it, the same command goes on"
    ]
    before = rows()
    with started(*long) as process:
        until(lambda: rows() > before)
        os.kill(ranks(process)[1], signal.SIGKILL)
        words = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "swinexp: one of the run's processes ended: " in words
    assert rows() < epochs
    with started(*long) as process:
        until(lambda: len(ranks(process)) == 2)
        orphans = ranks(process)
        process.kill()
    done = command(*long)  # waits until they have noticed
    assert done.returncode == 0, done.stderr
    assert not any(Path(f"/proc/{pid}").exists() for pid in orphans)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == epochs


@pytest.mark.slow
def test_trials_on_two_gpus_are_pruned_like_others(command: Command) -> None:
    done = command(
        "sweep=quickstart",
        *(one for one in TWO if not one.startswith("trainer.epochs")),
        "trainer.epochs=4",
        "hydra.sweeper.n_trials=2",
        "hydra/sweeper/pruner=threshold",
        "hydra.sweeper.pruner.lower=1.1",
        "hydra.sweeper.study_name=two",
    )
    assert done.returncode == 0, done.stderr
    states = [json.loads(path.read_text())["pruned"] for path in Path("outputs/sweeps/two").glob("*/summary.json")]
    assert states == [True] * 2
    assert "2 pruned" in done.stdout
