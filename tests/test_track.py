from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from swinexp import track
from swinexp.folder import Folder
from swinexp.mistake import Diverged
from swinexp.sweep.trial import Outside, live
from swinexp.track import Tracker, git_diff, git_revision, read_history
from swinexp.train import prepare, train
from tests.conftest import SMALL, Command, Record, small_run, stopped

QUICK = ("experiment=quickstart", "trainer.epochs=2", "trainer.limit_train=300", "trainer.device=cpu")


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What W&B's own reader finds in an offline run, of a kind."""
    wandb = Path(sys.executable).parent / "wandb"
    done = subprocess.run([wandb, "leet", "inspect", "--json", folder], capture_output=True, text=True, check=True)
    return [line[kind] for line in map(json.loads, done.stdout.splitlines()) if line["type"] == kind]


def inspect(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What W&B's own reader finds in an offline run: its summary, and its history."""
    wandb = Path(sys.executable).parent / "wandb"
    deadline = time.monotonic() + 10
    while True:  # right after the end the file can lag by milliseconds
        whole = subprocess.run(
            [wandb, "leet", "inspect", "--summary", "--json", folder], capture_output=True, text=True, check=True
        )
        summary = json.loads(whole.stdout)
        if summary["state"] == "finished" or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return summary, [line["item"] for line in records(folder, "history")]


def test_a_run_is_in_its_folder_and_in_wandb(command: Command, tmp_path: Path) -> None:
    done = command(*QUICK, "wandb.tags=[first,second]")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    files = {file.name for file in folder.iterdir()}
    assert files >= {
        "config.yaml",
        "overrides.yaml",
        "run.log",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
        "curves.png",
    }
    summary = json.loads((folder / "summary.json").read_text())
    expected = {
        "val/accuracy",
        "val/loss",
        "test/accuracy",
        "train/images_per_second",
        "val/images_per_second",
        "parameters",
        "flops",
        "epochs",
    }
    assert set(summary) >= expected | {"seconds", "seed", "versions", "device", "git", "best/val/accuracy"}
    assert summary["parameters"] == 370_102
    assert summary["epochs"] == 2
    metrics = read_history(folder / "metrics.jsonl")
    assert [row["epoch"] for row in metrics] == [1, 2]
    assert metrics[-1]["val/accuracy"] == summary["val/accuracy"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "epoch 2/2" in done.stdout
    assert "epoch 2/2" in (folder / "run.log").read_text()
    assert "\r" not in done.stdout  # no progress bar in a log
    assert not done.stderr

    (offline,) = (tmp_path / "outputs" / "wandb").glob("offline-run-*")
    seen, history = inspect(offline)
    assert seen["exit_code"] == 0
    assert seen["project"] == "swinexp"
    assert seen["tags"] == ["first", "second"]
    assert seen["config"]["model"]["depths"] == [2, 2]
    assert seen["config"]["window"]["size"] == 2
    assert seen["config"]["options"]["window"] == "w2"
    assert {"hydra/sweeper", "storage"}.isdisjoint(seen["config"]["options"])
    assert seen["config"]["environment"]["git"] == summary["git"]
    assert [row["epoch"] for row in history] == [1, 2]
    for key in ("train/loss", "val/loss", "val/accuracy"):
        assert [row[key] for row in history] == [row[key] for row in metrics]
    for key in ("val/accuracy", "val/loss", "test/accuracy", "parameters", "flops", "train/images_per_second"):
        assert seen["summary"][key] == summary[key], key
    for key in ("best/val/accuracy", "best/epoch", "val/images_per_second", "state"):
        assert seen["summary"][key] == summary[key], key
    assert all(row["train/grad_norm"] > 0 for row in history)
    axes = {each["glob_name"]: each["step_metric"] for each in records(offline, "metric") if "glob_name" in each}
    assert axes == {"train/*": "epoch", "val/*": "epoch", "ema/*": "epoch"}
    assert summary["wandb"]["id"] == seen["run_id"]


def tracker(folder: Folder, *overrides: str) -> Tracker:
    run = small_run(*overrides)
    config = {"wandb": {}, "seed": 0}
    return Tracker(run, folder, config, overrides, {"model": "nano"}, {"parameters": 5}, group=None, steps=4)


def row(**changes: float) -> dict[str, float]:
    return {
        "train/loss": 1.0,
        "val/loss": 1.0,
        "val/accuracy": 0.5,
        "train/lr": 1e-3,
        "train/images_per_second": 9.0,
        **changes,
    }


def test_an_epoch_is_written_once_though_it_is_told_twice(tmp_path: Path) -> None:
    with Folder(tmp_path) as folder:
        with tracker(folder) as first:
            first.epoch(1, row())
            first.epoch(2, row())
        folder.checkpoint.parent.mkdir()
        folder.checkpoint.touch()
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 3, "train/lo')  # killed while it was writing
        with tracker(folder) as second:
            for epoch in (1, 2, 3):
                second.epoch(epoch, row())
    assert [metrics["epoch"] for metrics in read_history(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_an_epoch_that_is_trained_again_takes_the_place_of_what_was(tmp_path: Path) -> None:
    with Folder(tmp_path) as folder:
        with tracker(folder) as first:
            for epoch in (1, 2, 3, 4):
                first.epoch(epoch, row())
        folder.checkpoint.parent.mkdir()
        folder.checkpoint.with_name("best.pt").touch()  # of epoch 2, the only one that is left
        with tracker(folder) as second:
            for epoch, loss in ((1, 1.0), (2, 1.0), (3, 0.9)):
                second.epoch(epoch, row(**{"train/loss": loss}))
    rows = [(metrics["epoch"], metrics["train/loss"]) for metrics in read_history(tmp_path / "metrics.jsonl")]
    assert rows == [(1, 1.0), (2, 1.0), (3, 0.9)]


def test_without_a_checkpoint_the_history_starts_anew(tmp_path: Path) -> None:
    with Folder(tmp_path) as folder:
        for _ in range(2):
            with tracker(folder) as track:
                track.epoch(1, row())
    assert len(read_history(tmp_path / "metrics.jsonl")) == 1


@pytest.mark.parametrize("name", ["log", "summary", "define_metric", "finish", "log_artifact"])
def test_wandb_that_breaks_is_told_once_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    import wandb

    class Broken:
        id, offline, url, dir = "abc", True, None, str(tmp_path)

        def __getattr__(self, wanted: str) -> Any:
            if wanted == name:
                raise wandb.Error("the service went away\nand more")
            if wanted == "settings":
                return type("Settings", (), {"sync_dir": str(tmp_path)})
            return type("Anything", (), {"__call__": lambda *_, **__: None, "update": lambda *_: None})()

    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    with Folder(tmp_path) as folder, tracker(folder, "wandb=offline", "wandb.checkpoints=last") as track:
        track.epoch(1, row())
        track.epoch(2, row())
        folder.checkpoint.parent.mkdir()
        folder.checkpoint.touch()
        figures = {**row(), "best/epoch": 1, "best/val/accuracy": 0.5, "epochs": 2, "seconds": 1.0}
        assert track.finish(figures)["val/accuracy"] == 0.5
    told = "has not got all of the run" if name == "finish" else "stopped working"
    assert caplog.text.count(f"W&B {told} (the service went away and more)") == 1
    assert len(read_history(tmp_path / "metrics.jsonl")) == 2


def test_wandb_that_does_not_start_leaves_the_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    modes: list[str] = []

    def refuse(mode: str, **_: object) -> None:
        modes.append(mode)
        raise wandb.errors.CommError("no way")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    with Folder(tmp_path) as folder, tracker(folder, "wandb=auto") as track:
        track.epoch(1, row())
    assert modes == ["online", "offline"]
    assert "W&B could not start online (no way)" in caplog.text


def test_online_without_a_key_never_asks_for_one(command: Command) -> None:
    done = command(*QUICK, "wandb=online", "trainer.epochs=1", stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert "no API key is configured (type: wandb login), so the run is kept offline" in done.stdout
    assert "W&B: offline" in done.stdout


@pytest.mark.slow
def test_a_server_that_refuses_costs_seconds_and_no_run(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    began = time.monotonic()
    done = command(*QUICK, "trainer.epochs=1")
    assert done.returncode == 0, done.stderr
    assert "W&B could not start online" in done.stdout
    assert "W&B: offline" in done.stdout
    assert time.monotonic() - began < 60


def test_a_key_is_found_where_wandb_login_puts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from swinexp.track import key_is_configured; print(key_is_configured())"

    def found() -> str:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        ).stdout

    assert found() == "False\n"
    monkeypatch.delenv("NETRC")
    wandb = Path(sys.executable).parent / "wandb"
    subprocess.run([wandb, "login", "--no-verify", "x" * 40], capture_output=True, check=True, timeout=60)
    assert found() == "True\n"
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the key is not for that server
    assert found() == "False\n"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert found() == "True\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [{"WANDB_BASE_URL": "http://["}, {"WANDB_API_KEY": "short"}, {"WANDB_HTTP_TIMEOUT": "abc"}, {"WANDB_MODE": ""}],
    ids=lambda variables: "".join(variables),
)
def test_settings_that_make_no_sense_stop_no_training(
    command: Command, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], tmp_path: Path
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = command(*QUICK, "trainer.epochs=1")
    assert done.returncode == 0, done.stderr
    assert "W&B" in done.stdout
    assert len([*tmp_path.glob("outputs/runs/*/summary.json")]) == 1


def test_a_cut_wandb_json_costs_only_the_id(tmp_path: Path) -> None:
    for content in ("", '{"id": "a', "[]", "null"):
        (tmp_path / "wandb.json").write_text(content)
        assert track.read_id(tmp_path / "wandb.json") is None
    (tmp_path / "wandb.json").write_text('{"id": "abc"}')
    assert track.read_id(tmp_path / "wandb.json") == "abc"


def test_what_is_not_finite_is_null_in_json(tmp_path: Path) -> None:
    nan = float("nan")
    with Folder(tmp_path) as folder, tracker(folder) as track_:
        for epoch in (1, 2):
            track_.epoch(epoch, row(**{"train/loss": nan, "val/loss": nan}))
        figures = {**row(**{"val/loss": nan}), "best/epoch": 1, "best/val/accuracy": 0.5, "epochs": 2, "seconds": 1.0}
        track_.finish(figures)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)["val/loss"] is None
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line, parse_constant=refuse)["train/loss"] is None
    assert (tmp_path / "curves.png").exists()


def test_the_legend_of_curves_covers_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    track.draw_curves([{"epoch": epoch, **row()} for epoch in (1, 2)], tmp_path / "curves.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    losses = figure.axes[0]
    legend = losses.get_legend()
    assert legend is not None
    assert not legend.get_window_extent().overlaps(losses.get_window_extent())


def test_without_matplotlib_only_the_picture_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    caplog.set_level("INFO")
    track.draw_curves([{"epoch": 1, **row()}], tmp_path / "curves.png")
    assert "pip install 'swinexp[plots]'" in caplog.text
    assert not (tmp_path / "curves.png").exists()


def test_the_revision_is_this_checkouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = tmp_path / "swinexp"
    here.mkdir()
    monkeypatch.setattr("swinexp.track.about.HERE", here)
    assert git_revision() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_revision() == head


def offline() -> Path:
    """Where W&B keeps the one run of a test."""
    (folder,) = Path("outputs/wandb").glob("offline-run-*")
    return folder


FIGURES = {**row(), "best/epoch": 1, "best/val/accuracy": 0.5, "epochs": 2, "seconds": 1.0}


@pytest.mark.parametrize("state", ["complete", "pruned", "interrupted", "failed"])
def test_every_end_has_its_state_in_the_summary(tmp_path: Path, state: str) -> None:
    ends = {"interrupted": KeyboardInterrupt(), "failed": Diverged("no")}
    ignored = contextlib.suppress(KeyboardInterrupt, Diverged)
    with Folder(tmp_path / "run") as folder, ignored, tracker(folder, "wandb=offline") as track_:
        track_.epoch(1, row())
        if state in ends:
            raise ends[state]
        assert track_.finish(FIGURES, pruned=state == "pruned")["state"] == state
    seen, history = inspect(offline())
    assert seen["summary"]["state"] == state
    assert seen["exit_code"] == (1 if state in ends else 0)
    assert [each["epoch"] for each in history] == [1]


def test_a_run_is_named_and_tagged_by_what_the_command_overrides(tmp_path: Path) -> None:
    typed = ("model=tiny", "data=cifar10", "++trainer.epochs=3", "data.root='/a b'", "wandb=offline", "wandb.notes=why")
    with Folder(tmp_path / "run") as folder, tracker(folder, *typed, "wandb.tags=[mine]", "wandb.entity=team"):
        pass
    seen, _ = inspect(offline())
    assert seen["tags"] == ["mine", "model=tiny", "data=cifar10"]
    assert seen["name"] == "test"
    assert seen["notes"] == "why"
    assert seen["entity"] == "team"


def test_a_trial_is_named_by_its_point(tmp_path: Path) -> None:
    class Third(Outside):
        number, study, point = 3, "lr", {"optimizer.lr": 0.00123456, "window": "w4", "model.depths": [2, 2]}

    with live(Third()), Folder(tmp_path / "run") as folder, tracker(folder, "wandb=offline"):
        pass
    seen, _ = inspect(offline())
    assert seen["name"] == "lr/3 optimizer.lr=0.00123 window=w4 model.depths=[2,2] seed=0"
    (begun,) = records(offline(), "run")
    assert begun["job_type"] == "trial"


def test_norms_are_of_every_epoch_and_of_the_weights(tmp_path: Path) -> None:
    run = small_run("wandb.norms=true", "trainer.epochs=2")
    model, dataset = prepare(run)
    record = Record()
    train(run, model, dataset, tmp_path / "last.pt", record)
    norm = sum(float(p.detach().double().square().sum()) for p in model.parameters()) ** 0.5
    first, last = (metrics["train/weight_norm"] for metrics in record.metrics)
    assert last == pytest.approx(norm)
    assert first != last
    assert all(metrics["train/grad_norm"] > 0 for metrics in record.metrics)


@pytest.mark.parametrize(
    ("wanted", "best", "expected"),
    [
        ("none", 1, []),
        ("last", 1, [(["last"], 2)]),
        ("best", 1, [(["best"], 1)]),
        ("both", 1, [(["best"], 1), (["last"], 2)]),
        ("both", 2, [(["best", "last"], 2)]),
    ],
)
def test_checkpoints_become_artifacts_in_the_end(
    tmp_path: Path, wanted: str, best: int, expected: list[tuple[list[str], int]]
) -> None:
    kept = ("wandb=offline", f"wandb.checkpoints={wanted}")
    with Folder(tmp_path / "run") as folder, tracker(folder, *kept) as track_:
        folder.checkpoint.parent.mkdir()
        for epoch in (1, 2):
            track_.epoch(epoch, row())
            folder.checkpoint.unlink(missing_ok=True)
            folder.checkpoint.write_text(f"epoch {epoch}")
            if epoch == best:
                folder.checkpoint.with_name("best.pt").hardlink_to(folder.checkpoint)
        track_.finish({**FIGURES, "best/epoch": best})
    inspect(offline())
    found = []
    for artifact in records(offline(), "artifact"):
        (entry,) = artifact["manifest"]["contents"]
        about = json.loads(artifact["metadata"])
        assert artifact["type"] == "model"
        assert Path(entry["local_path"]).is_absolute()
        assert Path(entry["local_path"]).read_text() == f"epoch {about['epoch']}"
        found.append((sorted({*artifact["aliases"]} - {"latest"}), about["epoch"]))
    assert found == expected


def test_what_differs_from_the_commit_is_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = tmp_path / "checkout" / "swinexp"
    here.mkdir(parents=True)
    monkeypatch.setattr("swinexp.track.about.HERE", here)
    assert git_diff() == ""
    git = ["git", "-C", str(here), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (here / "one.py").write_text("first\n")
    for arguments in (["init", "-q", ".."], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    assert git_diff() == ""
    (here / "one.py").write_text("second\n")
    assert "-first\n+second\n" in git_diff()
    with Folder(tmp_path / "run") as folder, tracker(folder, "wandb=offline"):
        pass
    assert (tmp_path / "run" / "code.diff").read_text() == git_diff()
    assert (offline() / "files" / "code.diff").read_text() == git_diff()
    monkeypatch.setattr("swinexp.track.about.LONGEST", 10)
    assert git_diff().endswith("… cut at 10 bytes\n")


@pytest.mark.slow
def test_a_killed_run_has_every_epoch_once_in_wandb(tmp_path: Path, command: Command) -> None:
    arguments = [*SMALL, "wandb=offline", "trainer.epochs=12", "name=killed"]
    stopped(signal.SIGKILL, 17, *arguments)
    assert command(*arguments).returncode == 0
    parts = sorted((tmp_path / "outputs" / "wandb").glob("offline-run-*"))
    seen = [inspect(part) for part in parts]
    killed, ended = (summary["summary"].get("state") for summary, _ in seen)
    assert killed in ("running", None)  # W&B keeps a summary a second or two after it is told
    assert ended == "complete"
    assert [each["epoch"] for _, history in seen for each in history] == [*range(1, 13)]


@pytest.mark.slow
def test_a_run_that_is_killed_at_its_end_is_no_running_one_in_wandb() -> None:
    code = """
import os, signal, time
from swinexp.run import cli
from swinexp.track import tracker

def write(path, text):
    before(path, text)
    if path.name == "summary.json":
        time.sleep(4)  # till W&B's own process has written it too
        os.kill(os.getpid(), signal.SIGKILL)

before, tracker.write_text = tracker.write_text, write
cli()
"""
    done = subprocess.run([sys.executable, "-c", code, *QUICK, "wandb=offline"], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    figures = [record["update"] for record in records(offline(), "summary")]
    assert [each["state"] for each in figures if "state" in each][-1] == "complete"


def test_a_run_that_goes_on_under_another_id_has_its_epochs_of_before(tmp_path: Path) -> None:
    with Folder(tmp_path / "run") as folder:
        with tracker(folder) as first:  # without W&B
            first.epoch(1, row())
        folder.checkpoint.parent.mkdir()
        folder.checkpoint.touch()
        with tracker(folder, "wandb=offline") as second:
            second.epoch(1, row())
            second.epoch(2, row())
    _, history = inspect(offline())
    assert [each["epoch"] for each in history] == [1, 2]


def test_pictures_that_cannot_be_drawn_end_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Dark:
        def errors(self) -> list[Any]:
            raise RuntimeError("too dark\nto see")

    with Folder(tmp_path / "run") as folder, tracker(folder, "wandb=offline") as track_:
        track_.epoch(1, row())
        track_.look(Dark())  # type: ignore[arg-type]
        assert track_.wandb
        assert track_.finish(FIGURES)["state"] == "complete"
    assert "no pictures of the end (too dark to see)" in caplog.text
