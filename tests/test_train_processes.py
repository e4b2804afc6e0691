"""Several processes are one: real processes, as torchrun starts them, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from swinexp.mistake import Mistake
from swinexp.ranks import lost_another, rank, size
from swinexp.run import reported
from swinexp.train import pick_device
from swinexp.train.processes import shared
from tests.conftest import DONE, SMALL, STRONG, Command, small_run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
ARGUMENTS = (*SMALL, *STRONG, "wandb=disabled", "test=true", "trainer.ema=0.9", "data.val_fraction=0.19")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def torchrun(*arguments: str, program: Sequence[str] = ("-m", "swinexp.run")) -> subprocess.Popen[str]:
    command = [*TORCHRUN, f"--master-port={29600 + os.getpid() % 300}", *program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=180)
    return out, err


def test_the_parts_of_a_batch_are_all_of_it_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (rank(), size()) == (0, 1)
    assert shared(10, 1) == [slice(0, 10)]
    for name, value in (("WORLD_SIZE", "3"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    rows: list[int] = []
    for each in range(3):
        monkeypatch.setenv("RANK", str(each))
        assert (rank(), size()) == (each, 3)
        rows += [row for part in shared(50, 2) for row in range(50)[part]]
    assert rows == list(range(50))


def told(monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    """What torchrun tells one of two processes."""
    for name, value in (
        ("WORLD_SIZE", "2"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("RANK", rank),
        ("LOCAL_RANK", rank),
        ("MASTER_ADDR", "a"),
        ("MASTER_PORT", "1"),
    ):
        monkeypatch.setenv(name, value)


def test_only_the_loss_of_another_process_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1234\nand more")
    assert not lost_another(closed)
    told(monkeypatch, "1")
    with pytest.raises(SystemExit) as stopped, reported([]):
        raise closed
    assert stopped.value.code == 1
    line = (
        "swinexp: process 1 ends, because another one did: [gloo/transport/tcp/pair.cc:538] Connection closed by peer"
    )
    assert capsys.readouterr().err.splitlines() == [f"{line} [127.0.0.1]:1234"]
    assert lost_another(RuntimeError("ncclRemoteError: A call failed possibly due to a network error"))
    for own in ("ncclInvalidUsage: Duplicate GPU detected", "[gloo/allreduce.cc:12] unequal sizes", "heads"):
        assert not lost_another(RuntimeError(own)), own


def test_the_whole_error_is_shown_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, "1")
    monkeypatch.setattr("swinexp.run._full_error", True)
    with pytest.raises(RuntimeError, match="reset by peer"), reported([]):
        raise RuntimeError("Connection reset by peer")


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(("gpus", "instead"), [(1, "--nproc-per-node=1"), (0, "trainer.device=cpu")])
def test_every_process_sees_that_there_are_fewer_gpus(
    monkeypatch: pytest.MonkeyPatch, rank: str, gpus: int, instead: str
) -> None:
    told(monkeypatch, rank)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(Mistake, match=f"this machine has {gpus} CUDA GPUs for 2 processes. Type {instead}"):
        pick_device(small_run("trainer.device=cuda").trainer)


def test_a_finished_run_is_summed_up_by_the_first_process(
    finished: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (finished / "summary.json").exists()
    told(monkeypatch, "1")
    done = command(*DONE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "small"), [(1, 0), (2, 2)])
def test_two_processes_are_one(tmp_path: Path, accumulate: int, small: int) -> None:
    length = f"trainer.small_epochs={small}"
    one = [sys.executable, "-m", "swinexp.run", *ARGUMENTS, length, "name=one"]
    alone = subprocess.run(one, capture_output=True, text=True, timeout=180, check=False)
    assert alone.returncode == 0, alone.stderr
    process = torchrun(*ARGUMENTS, length, "name=two", f"trainer.accumulate={accumulate}")
    out, err = ended(process)
    assert process.returncode == 0, err
    assert out.count("epoch 3/3") == 1  # one of them speaks
    assert "Warning" not in err
    folders = [tmp_path / "outputs/runs" / name for name in ("one", "two")]
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in folders)
    for key in ("val/loss", "test/loss", "train/loss", "ema/val/loss", "ema/test/loss"):
        assert second[key] == pytest.approx(first[key], rel=1e-4), key
    for key in ("val/accuracy", "test/accuracy"):
        assert second[key] == pytest.approx(first[key], abs=0.004), key  # one image of 272 and of 360
    weights, others = (torch.load(f / "checkpoints/last.pt", weights_only=True)["model"] for f in folders)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-2, atol=2e-4)
    assert sorted(path.name for path in folders[0].iterdir()) == sorted(path.name for path in folders[1].iterdir())


@pytest.mark.slow
def test_what_two_processes_judge_is_what_they_keep_running_statistics_included(tmp_path: Path) -> None:
    changes = ("patch=p2_conv", "trainer.batch_size=10", "optimizer.lr=3e-3")  # so that shares differ, and it matters
    process = torchrun(*ARGUMENTS, *changes, "name=conv")
    out, err = ended(process)
    assert process.returncode == 0, err
    assert "BatchNorm normalises each of 2 parts of a batch by itself" in out
    folder = tmp_path / "outputs/runs/conv"
    summary = json.loads((folder / "summary.json").read_text())
    for checkpoint, key in (("last", "val/loss"), ("ema", "ema/val/loss")):
        request = [f"run={folder}", "split=val", f"checkpoint={checkpoint}"]
        subprocess.run([sys.executable, "-m", "swinexp.evaluate", *request], check=True, capture_output=True)
        kept = json.loads((folder / f"evaluation/val-{checkpoint}.json").read_text())
        assert kept[key] == pytest.approx(summary[key], rel=1e-6), key


TERMINATING = """
import os, signal, time
import swinexp.train.loop as loop
plain = loop.train_step
def train_step(run, state, *rest):
    if os.environ["RANK"] == "0" and state.step == 22:
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1)  # till torchrun has passed it on
    plain(run, state, *rest)
loop.train_step = train_step
from swinexp.run import cli
cli()
"""


@pytest.mark.slow
def test_sigterm_stops_all_after_the_same_step_and_the_same_command_goes_on(tmp_path: Path) -> None:
    arguments = (*ARGUMENTS, "name=stopped", "trainer.epochs=20")
    (tmp_path / "terminating.py").write_text(TERMINATING)
    _, err = ended(torchrun(*arguments, program=["terminating.py"]))
    assert err.count("swinexp: stopped by SIGTERM; outputs/runs/stopped/checkpoints/last.pt holds all of it") == 1
    step = torch.load(tmp_path / "outputs/runs/stopped/checkpoints/last.pt", weights_only=True)["step"]
    assert 22 < step < 28
    again = torchrun(*arguments)
    out, err = ended(again)
    assert again.returncode == 0, err
    assert f"(step {step})" in out
    summary = json.loads((tmp_path / "outputs/runs/stopped/summary.json").read_text())
    alone = [sys.executable, "-m", "swinexp.run", *ARGUMENTS, "name=alone", "trainer.epochs=20"]
    assert subprocess.run(alone, capture_output=True, timeout=180, check=False).returncode == 0
    unbroken = json.loads((tmp_path / "outputs/runs/alone/summary.json").read_text())
    assert summary["val/loss"] == pytest.approx(unbroken["val/loss"], rel=0.01)
    assert summary["epochs"] == 20


DYING = """
import os, sys
import swinexp.train.loop as loop
plain = loop.train_step
def train_step(run, state, *rest):
    if os.environ["RANK"] == "1" and state.step == 5:
        raise ZeroDivisionError("the second one dies")
    plain(run, state, *rest)
loop.train_step = train_step
from swinexp.run import cli
cli()
"""


@pytest.mark.slow
def test_a_process_that_dies_ends_all_with_its_traceback_once(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    process = torchrun(*ARGUMENTS, "name=dead", program=["dying.py"])
    _, err = ended(process)
    assert process.returncode != 0
    assert err.count("ZeroDivisionError: the second one dies") == 1
    assert err.count("Connection closed by peer") <= 1  # in the one line of the first
    assert torch.load(tmp_path / "outputs/runs/dead/checkpoints/last.pt", weights_only=True)["step"] == 4


SAVING = """
import os, signal
import swinexp.train.loop as loop
plain, save = loop.train_step, loop.State.save
def train_step(run, state, *rest):
    if os.environ["RANK"] == "1" and state.step == 5:
        os.kill(os.getpid(), signal.SIGUSR1)
    plain(run, state, *rest)
def saving(state, *rest):
    print("saved after step", state.step, flush=True)
    save(state, *rest)
loop.train_step, loop.State.save = train_step, saving
from swinexp.run import cli
cli()
"""


@pytest.mark.slow
def test_sigusr1_to_one_of_them_is_one_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "saving.py").write_text(SAVING)
    process = torchrun(*ARGUMENTS, "name=saved", program=["saving.py"])
    out, err = ended(process)
    assert process.returncode == 0, err
    saved = [int(line.rpartition(" ")[2]) for line in out.splitlines() if line.startswith("saved after step")]
    assert saved == [4, 7, 8, 12]  # after each epoch of 4 steps, and when all had heard of it


MISTAKEN = """
import os, time
import swinexp.run as run
if os.environ["RANK"] == os.environ.get("LATE"):
    time.sleep(4)
if os.environ["RANK"] == os.environ.get("ALONE"):
    import swinexp.train
    from swinexp.mistake import Mistake
    def prepare(*_):
        raise Mistake("only mine")
    swinexp.train.prepare, run.HEARD = prepare, 1.0
run.cli()
"""


@pytest.mark.slow
@pytest.mark.parametrize("late", ["0", "1"])
def test_a_mistake_is_told_once_whoever_is_the_first_to_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    monkeypatch.setenv("LATE", late)
    err = mistaken(tmp_path, "trainer.batch_size=5000")
    assert err.count("swinexp: trainer.batch_size=5000: there are only 200 training images") == 1
    assert "exitcode  : 2" in err


@pytest.mark.slow
def test_a_mistake_that_only_another_process_sees_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALONE", "1")
    assert mistaken(tmp_path).count("swinexp: only mine\n") == 1


def mistaken(tmp_path: Path, *more: str) -> str:
    """What two processes print to standard error that come to a bad end."""
    (tmp_path / "mistaken.py").write_text(MISTAKEN)
    process = torchrun(*ARGUMENTS, *more, program=["mistaken.py"])
    _, err = ended(process)
    assert process.returncode != 0
    return err
