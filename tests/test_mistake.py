"""What a user sees who mistypes: the command's own words, exit code 2, and nothing left on the disk."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from swinexp import run
from swinexp.mistake import explain
from tests.conftest import SMALL, Command


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The one line that a command is refused with."""
    monkeypatch.setattr(sys, "argv", ["swinexp", *arguments])
    with pytest.raises(SystemExit) as stop:
        run.cli()
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("swinexp: ")
    assert len(lines) == 1, lines
    return lines[-1].removeprefix("swinexp: ")


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("trainer.epohcs=3", "trainer.epohcs=3: no such key; trainer has epochs, batch_size, accumulate, label_smoothing, clip_norm, clip_per_tensor, ema, patience, keep, device, gpus, precision, compile, on_nan, fit_memory, limit_train. Type trainer.epochs=3"),
        ("model=tinny", "model=tinny: no such option; there are base, cifar, nano, record, small, swin_b, swin_s, swin_t, tiny. Type model=tiny"),
        ("experiment=quickstrat", "experiment=quickstrat: no such option; there are cifar10, quickstart, record, reference, speedrun. Type experiment=quickstart"),
        (
            "sweep=size",
            "sweep=size: no such option; there are augmentation, grid, levers, lr_wd, optimizers, pareto, quickstart, record, sizes, window_patch. Type sweep=sizes",
        ),
        ("data.root=images", "data.root=images: no such key; data has name, image_size, mirror, val_fraction, split_seed, placement, cache. Type data=cifar10 data.root=images"),
        ("optimizer.momentum=0.9", "optimizer.momentum=0.9: no such key; optimizer has name, lr, weight_decay, decay, layer_decay, betas, eps. Type optimizer=sgd optimizer.momentum=0.9"),
        ("trainer.limit_train=100", "trainer.batch_size=128: there are only 100 training images. Type trainer.batch_size=64"),
        ("trainer=3", "trainer=3: no such option; there are default. Type trainer=default"),
        ("model=nano,tiny", "model=nano,tiny: several values are a multirun. Type -m model=nano,tiny"),
        ("optimizer.lr=range(1,3)", "optimizer.lr=range(1,3): several values are a multirun. Type -m 'optimizer.lr=range(1,3)'"),
        ("+trainer.epochs=3", "+trainer.epochs=3: the key is there already. Type trainer.epochs=3"),
        ("trainer.epochs=many", "trainer.epochs=many: a whole number is needed. Type for example trainer.epochs=1"),
        ("trainer.batch_size=1e2", "trainer.batch_size=100.0: a whole number is needed. Type trainer.batch_size=100"),
        ("trainer.batch_size='3.0'", "trainer.batch_size=3.0: a whole number is needed. Type trainer.batch_size=3"),
        ("optimizer.betas=0.9", "optimizer.betas=0.9: a list is needed. Type for example optimizer.betas=[0.9,0.99]"),
        ("model.freeze=head", "model.freeze=head: a list is needed. Type for example model.freeze=[head]"),
        ("optimizer.name=sgd", "optimizer.name=sgd: an option is more than its name. Type optimizer=sgd"),
        ("schedule.name=linear", "schedule.name=linear: an option is more than its name. Type schedule=linear"),
        ("data.name=cifar10", "data.name=cifar10: an option is more than its name. Type data=cifar10"),
        ("name=../x", "name=../x: 1 to 120 characters without a slash, the first a letter or digit. Type name=ANOTHER_NAME"),
        ("window.size=5", "window.size=5: windows must tile the grid of every stage, here 8×8, 4×4 tokens; [1, 2, 4, 8] do. Type window.size=4"),
        ("data=image_folder", "data.root=???: it has no default and must be given. Type data.root=FOLDER"),
    ],
)  # fmt: skip
def test_the_whole_line(
    argument: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert refused([argument], capsys, monkeypatch) == line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "instead"),
    [
        ("modle=tiny", "model=tiny"),
        ("n_trials=6", "hydra.sweeper.n_trials=6"),
        ("sampler=random", "hydra/sweeper/sampler=random"),
        ("expriment=quickstart", "experiment=quickstart"),
        ("swep=quickstart", "sweep=quickstart"),
        ("sweeps=quickstart", "sweep=quickstart"),
        ("stroage=journal", "storage=journal"),
        ("epochs=3", "trainer.epochs=3"),
        ("model.name=tiny", "model=tiny"),
        ("optimizer.name=sdg", "optimizer=sgd"),
        ("lr=0.1", "optimizer.lr=0.1"),
        ("trainer.lr=0.1", "optimizer.lr=0.1"),
        ("optimzer.lr=3", "optimizer.lr=3"),
        ("+modle=tiny", "model=tiny"),
        ("++augmentation.flp=true", "augmentation.flip=true"),
        ("hydra.rum.dir=x", "hydra.run.dir=x"),
        (
            "trainer.epochs=[1",
            "KEY=VALUE, or \"KEY='VALUE'\" where the value has spaces, commas or brackets of its own",
        ),
        ("+experiment=quickstart", "experiment=quickstart"),
        ("++experiment=quickstart", "experiment=quickstart"),
        ("trainer.epochs.x=3", "trainer.epochs=3"),
        ("--learning-rate=1e-3", "optimizer.lr=1e-3, or --help"),
        ("--model=tinny", "model=tinny, or --help"),
        ("--foo", "KEY=VALUE, or --help"),
        ("--config-name=bst", "--config-name best, or leave it out"),
        ("--config-dir=nowhere", "that of a sweep, which has its best.yaml"),
        ("optimizer.learning_rate=0.1", "optimizer.lr=0.1"),
        ("trainer.max_epochs=3", "trainer.epochs=3"),
        ("bs=32", "trainer.batch_size=32"),
        ("data.rooot=images", "data=cifar10 data.root=images"),
        ("data.batch_size=3", "trainer.batch_size=3"),
        ("optimizer=AdamW", "optimizer=adamw"),
        ("trainer.precision=BF16", "trainer.precision=bf16"),
        ("wandb=none", "wandb=disabled"),
        ("hydra.sweeper.n_trial=3", "sweep=NAME hydra.sweeper.n_trials=3"),
    ],
)
def test_did_you_mean(
    argument: str, instead: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused([argument], capsys, monkeypatch).endswith(f". Type {instead}")


@pytest.mark.parametrize(
    ("argument", "instead"),
    [
        ("hydra.sweeper.direction=max", "hydra.sweeper.direction=maximize"),
        ("hydra.sweeper.sampler=random", "hydra/sweeper/sampler=random"),
        ("hydra.sweeper.study_name=a/b", "hydra.sweeper.study_name=ANOTHER_NAME"),
        ("batch_size=interval(16,64)", "trainer.batch_size=interval(16,64)"),
        ("trainer.batch_size=interval(16,64)", "'trainer.batch_size=tag(int,interval(16,64))'"),
        ("trainer.batch_size=tag(log,interval(16,64))", "'trainer.batch_size=tag(int,log,interval(16,64))'"),
    ],
)
def test_did_you_mean_in_a_sweep(
    argument: str, instead: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert refused(["sweep=quickstart", argument], capsys, monkeypatch).endswith(f". Type {instead}")
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_only_on_the_disk_leaves_nothing_either(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = refused(["data=image_folder", "data.root=nowhere"], capsys, monkeypatch)
    assert line.startswith("data.root=nowhere: there is no folder nowhere. Type data.root=FOLDER")
    assert "trainer.batch_size=5000" in refused(["trainer.batch_size=5000"], capsys, monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_flags_come_first_and_are_hydras(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    line = refused(["experiment=quickstart", "--epochs", "3"], capsys, monkeypatch)
    assert line == "--epochs: there is no such flag; settings are KEY=VALUE. Type trainer.epochs=3, or --help"
    line = refused(["experiment=quickstart", "-m", "seed=0,1"], capsys, monkeypatch)
    assert line == "seed=0,1: what begins with - comes before all that is set. Type -m experiment=quickstart seed=0,1"
    line = refused(["experiment=quickstart", "seed=0,1"], capsys, monkeypatch)
    assert line == "seed=0,1: several values are a multirun. Type -m experiment=quickstart seed=0,1"


@pytest.mark.parametrize("name", ["", ".", "..", "../..", "a/b", "-rf", ".hidden", "x" * 200])
def test_a_name_stays_within_its_folder(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "run.log").write_text("the user's own")
    for multirun in ([], ["-m"]):
        line = refused([*multirun, f"name={name}", "trainer.epochs=1"], capsys, monkeypatch)
        assert "1 to 120 characters without a slash" in line
    assert [path.name for path in tmp_path.rglob("*")] == ["run.log"]


def test_an_outputs_that_cannot_be_written_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "outputs").write_text("a file")
    line = refused([*SMALL, "wandb=disabled"], capsys, monkeypatch)
    assert "outputs" in line
    assert line.endswith("cannot be written (Not a directory). Run from another directory, or make room there")


def test_a_multirun_with_a_misspelt_option_starts_no_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert refused(["-m", "model=nano,tinny"], capsys, monkeypatch).endswith("Type model=tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_multirun_with_a_mistaken_job_starts_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = refused(["-m", "window.size=2,3", *SMALL, "wandb=disabled"], capsys, monkeypatch)
    assert line.startswith("window.size=3: windows must tile the grid")
    assert not list(tmp_path.glob("outputs/sweeps/*"))


def test_a_job_that_cannot_begin_does_not_stop_the_others_and_is_told_once(tmp_path: Path, command: Command) -> None:
    done = command("-m", "model.pretrained=none.pt,null", *SMALL, "wandb=disabled")
    assert done.returncode == 2
    mine, hydras = done.stderr.splitlines()
    assert mine.startswith("swinexp: model.pretrained=none.pt: ")
    assert hydras.startswith("Error executing job with overrides: ['model.pretrained=none.pt'")
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert (sweep / "1" / "summary.json").exists()


DIVERGING = [*SMALL, "wandb=disabled", "optimizer=sgd", "trainer.clip_norm=0", "trainer.epochs=1"]


def test_a_run_that_diverges_says_so_once_and_in_its_log(tmp_path: Path, command: Command) -> None:
    done = command(*DIVERGING, "optimizer.lr=1e30", "name=far")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("swinexp: the loss is not finite at step 2 ")
    assert "not finite" not in done.stdout
    log = (tmp_path / "outputs" / "runs" / "far" / "run.log").read_text().splitlines()
    assert log[-1].endswith(f" ERROR   {line.removeprefix('swinexp: ')}")


def test_jobs_that_diverge_each_say_so_and_do_not_stop_the_others(tmp_path: Path, command: Command) -> None:
    done = command("-m", *DIVERGING, "optimizer.lr=1e30,1e-3,1e31")
    assert done.returncode == 1
    assert [f"lr {lr}," in done.stderr for lr in ("5e+29", "5e+30")] == [True, True]
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert [(sweep / job / "summary.json").exists() for job in "012"] == [False, True, False]
    assert all("ERROR   the loss is not finite" in (sweep / job / "run.log").read_text() for job in "02")


def test_another_runs_folder_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = [*SMALL, "wandb=disabled", "trainer.epochs=1", "name=mine"]
    monkeypatch.setattr(sys, "argv", ["swinexp", *small])
    run.cli()
    before = {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()}
    capsys.readouterr()
    line = refused([*small, "seed=5"], capsys, monkeypatch)
    assert "outputs/runs/mine holds a run with another config (seed is 0 there and 5 now)" in line
    assert {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()} == before


def test_hydra_full_error_shows_everything(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    done = command("window.size=5")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "Mistake: window.size=5" in done.stderr


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(run, "_run", bug)
    monkeypatch.setattr(sys, "argv", ["swinexp"])
    with pytest.raises(ZeroDivisionError):
        run.cli()


def test_full_memory_is_not_answered_with_what_was_typed_already() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory.")
    assert (explain(error) or "").endswith("Type a smaller trainer.batch_size, or trainer.fit_memory=true")
    assert (explain(error, ["trainer.fit_memory=True"]) or "").endswith("Type a smaller trainer.batch_size")
