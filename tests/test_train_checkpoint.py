"""Nothing is lost: resuming, damaged checkpoints, full disks, signals."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from swinexp.folder import best, earlier
from swinexp.mistake import Mistake
from swinexp.track.files import records
from swinexp.track.history import read_history
from swinexp.train import Asked, Interrupted, build_state, prepare, train
from swinexp.train.checkpoint import Saving
from tests.conftest import SMALL, STRONG, Command, Record, small_run, timeless, trained

STEPS = 4  # of an epoch: 200 images, batches of 50
LEFT_OVER = "trainer.limit_train=210"  # 10 images of an epoch

# Every optimizer, and every other thing that changes in a run, in as few runs as will do.
MATRIX = [
    ("optimizer=adamw", "trainer.ema=0.9", "trainer.accumulate=2"),
    ("optimizer=sgd", "trainer.ema=0.9", "augmentation.mix=mixup"),
    ("optimizer=adam", "trainer.accumulate=3", "trainer.clip_per_tensor=true"),
    ("optimizer=lion", "trainer.ema=0.99", "trainer.accumulate=2", "augmentation.repeats=3"),
    ("optimizer=muon", "trainer.ema=0.9", "augmentation.mix=cutmix"),
    ("optimizer=schedule_free", "schedule=constant", "trainer.ema=0.9", "trainer.accumulate=2"),
    ("optimizer=lamb", "trainer.on_nan=skip", "augmentation.flip=true", "augmentation.flip_in_turn=true"),
    ("optimizer=adamw", "trainer.precision=fp16", "trainer.ema=0.9"),
    ("trainer.small_epochs=2", "patch=p2_conv", "trainer.ema=0.9"),
]


def assert_same(one: tuple[dict[str, float], dict[str, torch.Tensor]], other: object) -> None:
    assert isinstance(other, tuple)
    assert one[0] == other[0]
    for name, weight in one[1].items():
        assert torch.equal(other[1][name], weight), name


@pytest.mark.parametrize("overrides", MATRIX, ids=" ".join)
def test_a_resumed_run_equals_an_unbroken_one_to_the_last_bit(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    overrides = (*STRONG, LEFT_OVER, "test=true", *overrides)
    unbroken = trained(tmp_path / "unbroken/last.pt", *overrides)
    for stop_at in (STEPS + 2, 2 * STEPS):  # within an epoch, and at the end of one
        with pytest.raises(Interrupted) as interrupted:
            trained(tmp_path / "broken/last.pt", *overrides, stop_at=stop_at)
        assert interrupted.value.exit_code == 130
    assert_same(unbroken, trained(tmp_path / "broken/last.pt", *overrides))


@pytest.mark.parametrize("together", [1, 3, STEPS])
def test_it_does_wherever_batches_that_are_augmented_together_begin(
    tmp_path: Path, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from swinexp.train.batches import AT_ONCE

    monkeypatch.setitem(AT_ONCE, "cpu", together * 50 * 3 * 16 * 16)
    unbroken = trained(tmp_path / "unbroken/last.pt", *STRONG)
    for stop_at in (1, 2, 3, STEPS + 1):
        with pytest.raises(Interrupted):
            trained(tmp_path / "broken/last.pt", *STRONG, stop_at=stop_at)
    assert_same(unbroken, trained(tmp_path / "broken/last.pt", *STRONG))


KILLED = """
import os, signal, sys
from pathlib import Path
from swinexp.train import prepare, train
from tests.conftest import small_run
checkpoint, kill_at, *overrides = sys.argv[1:]
run = small_run(*overrides)
def tick(step, lr):
    if step == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)
train(run, *prepare(run), Path(checkpoint), watch=lambda *_: None, tick=tick)
"""


@pytest.mark.slow
@pytest.mark.parametrize("overrides", MATRIX, ids=" ".join)
def test_a_killed_run_equals_an_unbroken_one_to_the_last_bit(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    overrides = (*STRONG, LEFT_OVER, *overrides)
    kill_at = random.Random(" ".join(overrides)).randrange(STEPS + 1, 3 * STEPS)
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "broken/last.pt"), str(kill_at), *overrides]
    killed = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert_same(trained(tmp_path / "unbroken/last.pt", *overrides), trained(tmp_path / "broken/last.pt", *overrides))


def test_a_signal_while_the_validation_images_are_judged_is_followed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import swinexp.train.evaluation as evaluation

    unbroken = trained(tmp_path / "unbroken/last.pt")
    predictions, judged = evaluation.predictions, 0

    def interrupting(*arguments: object) -> object:
        nonlocal judged
        for batch in predictions(*arguments):  # type: ignore[arg-type]
            judged += 1
            if judged == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(evaluation, "predictions", interrupting)
    with pytest.raises(Interrupted) as interrupted:
        trained(tmp_path / "broken/last.pt")
    assert interrupted.value.exit_code == 143
    assert judged == 2  # of the three batches that the validation images are
    assert_same(unbroken, trained(tmp_path / "broken/last.pt"))


def test_sigusr1_writes_a_checkpoint_and_training_goes_on(tmp_path: Path) -> None:
    run = small_run()
    saved: list[int] = []

    def tick(step: int, _: float) -> None:
        if step == STEPS + 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        if step == STEPS + 3:
            saved.append(torch.load(tmp_path / "last.pt", weights_only=True)["step"])

    figures = train(run, *prepare(run), tmp_path / "last.pt", watch=Record(), tick=tick)
    assert saved == [STEPS + 2]
    unbroken, _ = trained(tmp_path / "unbroken/last.pt")
    assert {key: figures[key] for key in unbroken} == unbroken


def test_a_signal_passed_on_twice_is_one_and_a_second_one_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        with Asked() as asked:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            assert asked.now() == number
            monkeypatch.setattr("swinexp.train.signals.AGAIN", 0.0)
            if number == signal.SIGTERM:  # whose sender has SIGKILL for that
                os.kill(os.getpid(), number)
                continue
            with pytest.raises(Interrupted) as interrupted:
                os.kill(os.getpid(), number)
            assert interrupted.value.exit_code == 128 + number


def test_training_goes_on_while_a_checkpoint_is_written_and_leaves_no_trace_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Schedule-free weights are evaluated elsewhere than trained.
    options = (*STRONG, "trainer.keep=3", "trainer.ema=0.9", "optimizer=schedule_free", "schedule=constant")
    trained(tmp_path / "unbroken/last.pt", *options)
    save, further = torch.save, threading.Event()

    def slow(saved: dict[str, int], file: object) -> None:
        if saved["step"] == STEPS:
            assert further.wait(60)
        save(saved, file)  # type: ignore[arg-type]

    def tick(step: int, _: float) -> None:
        if step == STEPS + 2:
            further.set()

    monkeypatch.setattr("torch.save", slow)
    run, record = small_run(*options), Record()
    train(run, *prepare(run), tmp_path / "beside/last.pt", watch=record, tick=tick)
    assert record.epochs == [1, 2, 3]
    for name in ("last.pt", "last-1.pt", "last-2.pt"):
        one, other = (torch.load(tmp_path / place / name, weights_only=True) for place in ("unbroken", "beside"))
        for part in ("model", "ema", "losses", "norms", "step"):
            torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)
        torch.testing.assert_close(one["optimizer"]["state"], other["optimizer"]["state"], rtol=0, atol=0)
        assert [*map(timeless, one["history"])] == [*map(timeless, other["history"])]


KILLED_WHILE_WRITING = """
import os, signal, sys, threading
import torch
from swinexp import run
from swinexp.track import Tracker
writing, save, tick = threading.Event(), torch.save, Tracker.tick
def slow(saved, file):
    if saved.get("step") == int(kill_at):
        file.write(b"half of it")
        file.flush()
        writing.set()
        threading.Event().wait()
    save(saved, file)
def kill(tracker, step, lr):
    if step == int(kill_at) + 2 and writing.wait(60):
        os.kill(os.getpid(), signal.SIGKILL)
    tick(tracker, step, lr)
torch.save, Tracker.tick = slow, kill
kill_at = sys.argv.pop(1)
run.cli()
"""


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_kill_while_a_checkpoint_is_written_repeats_an_epoch_and_its_line_once(
    command: Command, tmp_path: Path, epochs: int
) -> None:
    arguments = [*SMALL, "wandb=offline", "name=killed"]
    folder = tmp_path / "outputs/runs/killed"
    kill = [sys.executable, "-c", KILLED_WHILE_WRITING, str(epochs * STEPS), *arguments]
    killed = subprocess.run(kill, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(read_history(folder / "metrics.jsonl")) == epochs
    assert (folder / "checkpoints/last.pt").exists() == (epochs == 2)
    again = command(*arguments)
    assert again.returncode == 0, again.stderr
    assert ("resuming after epoch 1 (step 4)" in again.stdout) == (epochs == 2)
    assert [row["epoch"] for row in read_history(folder / "metrics.jsonl")] == [1, 2, 3]
    assert not [*folder.glob("**/.*")]
    places = [*(tmp_path / "outputs/wandb").glob("offline-run-*")]
    assert len(places) == 2
    assert len({place.name.rpartition("-")[2] for place in places}) == 1
    parts = map(records, places)
    items = [each["history"]["item"] for part in parts for each in part if "history" in each]
    assert sorted(item["epoch"] for item in items) == [1, 2, 3]
    whole = command(*SMALL, "wandb=disabled", "name=whole")
    assert whole.returncode == 0, whole.stderr
    one, other = (json.loads((folder.with_name(name) / "summary.json").read_text()) for name in ("killed", "whole"))
    for key in ("val/loss", "train/loss", "best/val/accuracy"):
        assert one[key] == other[key]


def test_the_newest_checkpoints_and_the_best_stay(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    run = small_run("trainer.epochs=5", "trainer.keep=3", "optimizer.lr=3e-3")
    record = Record()
    train(run, *prepare(run), path, watch=record)
    assert {file.name for file in tmp_path.iterdir()} == {"last.pt", "last-1.pt", "last-2.pt", "best.pt"}
    kept = {
        name: torch.load(tmp_path / name, weights_only=True)["step"] for name in ("last.pt", "last-1.pt", "last-2.pt")
    }
    assert kept == {"last.pt": 5 * STEPS, "last-1.pt": 4 * STEPS, "last-2.pt": 3 * STEPS}
    accuracy = [metrics["val/accuracy"] for metrics in record.metrics]
    assert len(torch.load(best(path), weights_only=True)["history"]) == accuracy.index(max(accuracy)) + 1


def test_the_best_epoch_is_kept_though_the_run_was_killed_right_after_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import swinexp.train.checkpoint as files

    def killed(*_: object) -> None:
        raise SystemExit

    path = tmp_path / "last.pt"
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(files, "link", killed)  # of the first epoch, which is the best of one
        trained(path, "trainer.keep=1")
    assert not best(path).exists()
    with pytest.raises(Interrupted):
        trained(path, "trainer.keep=1", stop_at=STEPS + 1)
    assert torch.load(best(path), weights_only=True)["step"] == STEPS


@pytest.mark.parametrize("damage", ["empty", "cut", "bit"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "last.pt"
    unbroken = trained(tmp_path / "unbroken/last.pt")
    with pytest.raises(Interrupted):
        trained(path, stop_at=2 * STEPS + 1)
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
    path.unlink()  # best.pt may be the same file
    path.write_bytes({"empty": b"", "cut": content[:-1000], "bit": content}[damage])
    assert_same(unbroken, trained(path))
    assert "last.pt is damaged" in caplog.text
    assert "going on from the one before, last-1.pt" in caplog.text


def test_a_damaged_checkpoint_is_not_kept_as_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(Interrupted):
        trained(path, stop_at=2 * STEPS + 1)
    path.unlink()
    path.write_bytes(b"damaged")
    with pytest.raises(Interrupted):  # goes on from last-1.pt, and writes one checkpoint
        trained(path, stop_at=2 * STEPS + 1)
    for name in ("last.pt", "last-1.pt"):
        torch.load(tmp_path / name, weights_only=True)


@pytest.mark.parametrize("gone", [["last.pt"], ["last.pt", "last-1.pt"]], ids=" ".join)
def test_a_run_goes_on_from_any_checkpoint_that_is_there_the_best_last_of_all(
    tmp_path: Path, gone: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    unbroken = trained(tmp_path / "unbroken/last.pt")
    path = tmp_path / "broken/last.pt"
    with pytest.raises(Interrupted):
        trained(path, stop_at=2 * STEPS + 1)
    for name in gone:
        (path.parent / name).unlink()
    assert_same(unbroken, trained(path))
    assert "last.pt is not there: going on from the one before" in caplog.text
    assert "resuming after epoch" in caplog.text


@pytest.mark.parametrize("damage", ["empty", "cut", "version", "other network"])
def test_checkpoints_that_cannot_be_read_are_told(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "last.pt"
    trained(path, "trainer.epochs=1")
    content = path.read_bytes()
    best(path).unlink()
    path.unlink()
    path.write_bytes({"empty": b"", "cut": content[:-1000]}.get(damage, content))
    if damage == "version":
        torch.save({**torch.load(path, weights_only=True), "version": 99}, path)
    width = "model.dim=32" if damage == "other network" else "model.dim=16"
    with pytest.raises(Mistake, match=r"last.pt cannot be read .* Remove all to train from the start: rm -r "):
        trained(path, width)


def test_a_checkpoint_takes_the_place_of_the_last_only_when_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "last.pt"
    run = small_run()
    model, _ = prepare(run)
    state = build_state(run, model, STEPS)
    state.step = 7
    with Saving() as saving:
        state.save(path, 2, saving)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    state.step = 8
    mistake = r"last.pt: a checkpoint cannot be written \(No space left on device\)"
    with pytest.raises(Mistake, match=mistake), Saving() as saving:
        state.save(path, 2, saving)
    with pytest.raises(Mistake, match=mistake), Saving() as saving:
        state.save(path, 2, saving)
        state.save(path, 2, saving)  # which finds that the first one failed
        raise AssertionError
    with pytest.raises(KeyError), Saving() as saving:
        state.save(path, 2, saving)
        raise KeyError  # is what ends the run
    assert "last.pt: a checkpoint cannot be written" in caplog.text
    with pytest.raises(KeyError), Saving() as saving:
        saving.begin(lambda: print(1 // 0))
        raise KeyError
    state.restore(path)
    assert state.step == 7
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
    assert not earlier(path, 1).exists()


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_the_last_checkpoint_is_whole(
    command: Command, tmp_path: Path
) -> None:
    done = command(*SMALL, "wandb=disabled", "name=full", "trainer.epochs=2")
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "outputs/runs/full/checkpoints/last.pt").stat().st_size
    arguments = (*SMALL, "wandb=disabled", "name=fuller", "trainer.epochs=2", "model.dim=16")

    def little_room() -> None:  # no file may be as large as a checkpoint, as on a disk that has filled
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    full = command(*arguments, preexec_fn=little_room)
    assert full.returncode == 2, full.stderr
    (line,) = full.stderr.splitlines()
    assert line.startswith("swinexp: ")
    assert "last.pt: a checkpoint cannot be written (File too large). There is none before it; make room" in line
    assert [*tmp_path.glob("outputs/runs/fuller/checkpoints/*")] == []
    again = command(*arguments)
    assert again.returncode == 0, again.stderr
