"""A sweep as a user types it: what it leaves, how it goes on, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

from swinexp import HERE
from swinexp.mistake import Mistake
from swinexp.sweep.storage import check_storage, open_storage
from tests.conftest import SMALL, Command, stopped
from tests.test_mistake import refused
from tests.test_track import inspect

SWEEP = ("-m", "hydra/sweeper=swinexp_optuna", *SMALL, "wandb=disabled", "hydra.sweeper.study_name=one")
LR = "optimizer.lr=tag(log,interval(1e-5,1e-2))"


def folder_of(place: Path) -> Path:
    return place / "outputs" / "sweeps" / "one"


def trials_of(place: Path) -> list[FrozenTrial]:
    url = json.loads((folder_of(place) / "study.json").read_text())["storage"]
    return optuna.load_study(study_name="one", storage=open_storage(url)).get_trials()


def results(place: Path) -> list[dict[str, str]]:
    with (folder_of(place) / "results.csv").open() as file:
        return list(csv.DictReader(file))


def summary(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "summary.json").read_text())
    assert isinstance(found, dict)
    return found


def epochs(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    return [json.loads(row)["epoch"] for row in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, str]:
    """Where a sweep was, of which one trial is pruned, and what it said; tests only read it."""
    place = tmp_path_factory.mktemp("swept")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "SWINEXP_", "HYDRA_"))}
    changes = (
        "wandb=offline",
        LR,
        "window=w2,w4",
        "hydra.sweeper.n_trials=4",
        "hydra/sweeper/pruner=threshold",
        "hydra.sweeper.pruner.lower=0.25",
        "hydra.sweeper.enqueue=[{optimizer.lr: 0.002, window: w4}, {optimizer.lr: 1e-5, window: w2}]",
    )
    done = subprocess.run(
        [sys.executable, "-m", "swinexp.run", *SWEEP, *changes],
        check=False,
        capture_output=True,
        text=True,
        cwd=place,
        env={**env, "SWINEXP_CACHE": str(cache), "PYTHONPATH": str(HERE.parent), "HOME": str(place)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return place, done.stdout


@pytest.mark.slow
def test_a_sweep_leaves_its_results_and_says_where(swept: tuple[Path, str]) -> None:
    place, said = swept
    folder = folder_of(place)
    files = {path.name for path in folder.iterdir()}
    assert files >= {"study.db", "study.json", "multirun.yaml", "results.csv", "best.yaml", "report.html", "plots"}
    assert {path.name for path in (folder / "plots").iterdir()} >= {"history.png", "curves.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (folder / "plots").iterdir())
    rows = results(place)
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    assert [(row["state"], row["epochs"]) for row in rows[:2]] == [("complete", "3"), ("pruned", "1")]
    for row, trial in zip(rows, trials_of(place), strict=True):
        assert float(row["optimizer.lr"]) == pytest.approx(trial.params["optimizer.lr"])
        assert row["window"] == trial.params["window"]
        if row["state"] == "complete":
            kept = summary(place / row["folder"])
            assert float(row["val/accuracy"]) == kept["val/accuracy"] == trial.value
            assert row["wandb"] == kept["wandb"]["id"]
    page = (folder / "report.html").read_text()
    for text in ("val/accuracy", "optimizer.lr", "pruned", "--config-name best", "Plotly"):
        assert text in page
    assert "http://" not in page.partition("<h1>")[2].partition("<script")[0]
    lines = said.splitlines()
    assert lines[0] == "study one: 4 trials; in outputs/sweeps/one"
    assert lines[-1] == "in outputs/sweeps/one: results.csv, best.yaml, report.html, plots/*.png"
    assert sum(line.startswith("trial ") for line in lines) == 4


@pytest.mark.slow
def test_the_configs_of_trials_are_what_was_suggested(swept: tuple[Path, str]) -> None:
    place, _ = swept
    for trial in trials_of(place):
        config = yaml.safe_load((folder_of(place) / str(trial.number) / "config.yaml").read_text())
        assert config["optimizer"]["lr"] == pytest.approx(trial.params["optimizer.lr"], rel=1e-10)
        assert config["window"]["size"] == {"w2": 2, "w4": 4}[trial.params["window"]]
        assert config["seed"] == 0


@pytest.mark.slow
def test_the_best_config_trains_to_the_same_accuracy(swept: tuple[Path, str], tmp_path: Path, command: Command) -> None:
    place, _ = swept
    leader = max((t for t in trials_of(place) if t.state == TrialState.COMPLETE), key=lambda t: t.value or 0)
    shutil.copytree(folder_of(place), folder_of(tmp_path))
    done = command("--config-dir", "outputs/sweeps/one", "--config-name", "best", "wandb.mode=disabled")
    assert done.returncode == 0, done.stderr
    again = summary(tmp_path / "outputs" / "runs" / "best-of-one")
    first = summary(folder_of(place) / str(leader.number))
    for key in ("val/accuracy", "val/loss", "train/loss", "best/val/accuracy"):
        assert again[key] == first[key]


@pytest.mark.slow
def test_a_pruned_trial_is_a_run_with_its_figures(swept: tuple[Path, str]) -> None:
    place, _ = swept
    folder = folder_of(place) / "1"
    kept = summary(folder)
    assert kept["pruned"] is True
    assert epochs(folder) == [1]
    (row,) = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    assert kept["val/accuracy"] == row["val/accuracy"] < 0.25
    assert "pruned" not in summary(folder_of(place) / "0")
    (offline,) = (place / "outputs" / "wandb").glob(f"offline-run-*-{kept['wandb']['id']}")
    whole, history = inspect(offline)
    assert whole["state"] == "finished"
    assert whole["summary"]["state"] == kept["state"] == "pruned"
    assert whole["name"].startswith("one/1 ")
    assert [each["epoch"] for each in history] == [1]
    assert len([*(place / "outputs" / "wandb").glob("offline-run-*")]) == 4


def begun(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "swinexp.run", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


LONG = (*SWEEP, "trainer.epochs=30", LR, "hydra.sweeper.n_trials=2", "hydra/sweeper/sampler=random")


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_trial_goes_on_in_its_folder(end: signal.Signals, tmp_path: Path, command: Command) -> None:
    folder = folder_of(tmp_path) / "0"
    told = stopped(end, 17, *LONG)
    assert epochs(folder) == [1, 2, 3, 4]
    (trial,) = trials_of(tmp_path)
    point = trial.params
    if end != signal.SIGKILL:
        assert trial.state == TrialState.WAITING
        assert len(told.stderr.splitlines()) == 1
        assert told.stderr.startswith(f"swinexp: stopped by {end.name}")
        assert "interrupted; the same command goes on" in told.stdout
        assert results(tmp_path)[0]["state"] == "queued"

    done = command(*LONG)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "resuming after epoch" in (folder / "run.log").read_text()
    for number, trial in enumerate(trials_of(tmp_path)):
        assert trial.state == TrialState.COMPLETE
        assert epochs(folder_of(tmp_path) / str(number)) == [*range(1, 31)]
        assert sorted(trial.intermediate_values) == [*range(1, 31)]
    assert trials_of(tmp_path)[0].params == point
    assert {path.name for path in folder_of(tmp_path).iterdir() if path.is_dir()} == {"0", "1", "plots"}
    assert [row["state"] for row in results(tmp_path)] == ["complete"] * 2

    if end == signal.SIGINT:
        again = command(*LONG)
        assert again.returncode == 0
        assert "2 trials, 2 trials done before" in again.stdout
        assert len(trials_of(tmp_path)) == 2


@pytest.mark.slow
def test_a_constraint_forbids_a_trial_without_training_it(tmp_path: Path, command: Command) -> None:
    arguments = (
        *SWEEP,
        "hydra/sweeper/sampler=grid",
        "model.dim=8,16",
        "hydra.sweeper.constraints=['parameters <= 15000']",
        "trainer.epochs=1",
        "schedule.warmup_epochs=0",
    )
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    rows = results(tmp_path)
    assert [(row["model.dim"], row["state"], row["epochs"]) for row in rows] == [
        ("8", "complete", "1"),
        ("16", "forbidden", "0"),
    ]
    assert not (folder_of(tmp_path) / "1" / "metrics.jsonl").exists()
    forbidden = trials_of(tmp_path)[1]
    assert forbidden.user_attrs["forbidden"].startswith("parameters <= 15000, and it has 22,")
    assert forbidden.constraints["parameters <= 15000"] > 0
    config = yaml.safe_load((folder_of(tmp_path) / "best.yaml").read_text())
    assert config["model"]["dim"] == 8
    assert "1 complete, 1 forbidden" in done.stdout
    again = command(*arguments)
    assert again.returncode == 0, again.stderr
    assert len(trials_of(tmp_path)) == 2


@pytest.mark.slow
def test_the_mean_of_several_seeds_is_optimized(tmp_path: Path, command: Command) -> None:
    arguments = (*SWEEP, LR, "hydra.sweeper.seeds=2", "hydra.sweeper.n_trials=2", "seed=5")
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    for trial in trials_of(tmp_path):
        folders = [folder_of(tmp_path) / str(trial.number) / f"seed{index}" for index in range(2)]
        values = [summary(folder)["val/accuracy"] for folder in folders]
        assert trial.values == [pytest.approx(sum(values) / 2)]
        assert trial.user_attrs["seeds"] == values
        assert [yaml.safe_load((folder / "config.yaml").read_text())["seed"] for folder in folders] == [5, 6]
    assert [row["epochs"] for row in results(tmp_path)] == ["6", "6"]
    assert "(mean ± standard deviation of 2 seeds)" in done.stdout
    head = (folder_of(tmp_path) / "best.yaml").read_text().partition("\n")[0]
    best = max(trials_of(tmp_path), key=lambda trial: trial.value)
    assert head.endswith(f". To run it again, with seed 5 alone ({best.user_attrs['seeds'][0]:.4g}):")
    again = command("--config-dir", "outputs/sweeps/one", "--config-name", "best", "--cfg", "job")
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_a_trial_is_not_pruned_by_what_it_is_worth_while_its_images_are_small(tmp_path: Path, command: Command) -> None:
    pruner = ("hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.lower=1.1", "hydra.sweeper.n_trials=1")
    done = command(*SWEEP, LR, *pruner, "trainer.small_epochs=2", "trainer.epochs=5")
    assert done.returncode == 0, done.stderr
    (trial,) = trials_of(tmp_path)
    assert trial.state == TrialState.PRUNED
    assert [*trial.intermediate_values] == [3]
    assert epochs(folder_of(tmp_path) / "0") == [1, 2, 3]


@pytest.mark.slow
def test_several_objectives_have_a_front(tmp_path: Path, command: Command) -> None:
    done = command(
        *SWEEP,
        "objective=[val/accuracy,parameters]",
        "hydra/sweeper/sampler=nsgaii",
        "model.dim=8,16",
        LR,
        "hydra.sweeper.n_trials=3",
        "trainer.epochs=1",
        "schedule.warmup_epochs=0",
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((folder_of(tmp_path) / "study.json").read_text())
    assert record["objective"] == ["val/accuracy", "parameters"]
    assert record["directions"] == ["maximize", "minimize"]
    front = []
    for row, trial in zip(results(tmp_path), trials_of(tmp_path), strict=True):
        kept = summary(folder_of(tmp_path) / row["trial"])
        assert trial.values == [kept["val/accuracy"], kept["parameters"]]
        assert [float(row["val/accuracy"]), float(row["parameters"])] == trial.values
        front.append(trial)
    best = {t.number for t in optuna.load_study(study_name="one", storage=open_storage(record["storage"])).best_trials}
    said = {line for line in done.stdout.splitlines() if line.startswith("on the front: val/accuracy, parameters ")}
    assert len(said) == len(best) >= 1
    assert all(any(f"trial {number}:" in line for line in said) for number in best)
    assert (folder_of(tmp_path) / "report.html").exists()
    assert (folder_of(tmp_path) / "plots" / "pareto_front.png").exists()


@pytest.mark.slow
def test_two_workers_share_the_trials(tmp_path: Path, command: Command) -> None:
    done = command(*SWEEP, LR, "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2")
    assert done.returncode == 0, done.stderr
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE] * 6
    assert len({trial.user_attrs["worker"]["pid"] for trial in trials_of(tmp_path)}) == 2
    assert [epochs(folder_of(tmp_path) / str(number)) for number in range(6)] == [[1, 2, 3]] * 6
    assert (folder_of(tmp_path) / "report.html").exists()
    assert sum(line.startswith("trial ") for line in done.stdout.splitlines()) == 6


@pytest.mark.slow
def test_two_workers_end_when_every_point_was_tried(tmp_path: Path, command: Command) -> None:
    few = (*SWEEP, "window=w2,w4", "trainer.epochs=1", "schedule.warmup_epochs=0", "hydra.sweeper.n_jobs=2")
    for _ in range(2):  # and typed again, nothing is begun
        done = command(*few, "hydra.sweeper.n_trials=9")
        assert done.returncode == 0, done.stderr
        (end,) = (line for line in done.stdout.splitlines() if "epochs in all" in line)
        assert end.endswith("; 2 epochs in all; all 2 points were tried")
        trained = [trial for trial in trials_of(tmp_path) if trial.state == TrialState.COMPLETE]
        assert sorted(trial.params["window"] for trial in trained) == ["w2", "w4"]
    again = [trial.user_attrs["repeats"] for trial in trials_of(tmp_path) if trial.state == TrialState.PRUNED]
    assert all(trials_of(tmp_path)[number] in trained for number in again)
    assert {path.name for path in folder_of(tmp_path).glob("[0-9]*")} == {str(trial.number) for trial in trained}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("hydra_plugins.hydra_submitit_launcher") is None, reason="wants the extra slurm")
def test_an_editable_install_finds_its_sweeper_beside_an_installed_plugin(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH")
    done = command(*SWEEP, LR, "hydra.sweeper.dry_run=1")
    if "No module named swinexp" in done.stderr:
        pytest.skip("swinexp is not installed here")
    assert done.returncode == 0, done.stderr
    assert "optimizer.lr=" in done.stdout


@pytest.mark.slow
def test_a_dry_run_leaves_nothing(tmp_path: Path, command: Command) -> None:
    done = command(*SWEEP, LR, "window=w2,w4", "hydra.sweeper.dry_run=3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["0", "1", "2"]
    assert lines[-1].startswith("dry run: 3 of 20 trials")
    few = command(*SWEEP, "window=w2,w4", "hydra.sweeper.dry_run=5").stdout.splitlines()
    assert sorted(line.split()[1] for line in few[:-1]) == ["window=w2", "window=w4"]  # each once
    assert few[-1].startswith("dry run: 2 of 20 trials")
    refused = command(*SWEEP, "optimizer=adamw,sgd", "optimizer.momentum=interval(0.8,0.9)", "hydra.sweeper.dry_run=3")
    assert refused.returncode == 2
    assert re.match(r"swinexp: \d of these 3 would be refused. optimizer.momentum=.*: no such key; ", refused.stderr)
    assert sum("✗" in line for line in refused.stdout.splitlines()) == int(refused.stderr.split()[1])
    assert not folder_of(tmp_path).exists() or [*folder_of(tmp_path).iterdir()] == []


@pytest.mark.slow
def test_choices_of_numbers_are_drawn_without_a_word(tmp_path: Path, command: Command) -> None:
    grid = (*SWEEP, "hydra/sweeper/sampler=grid", "trainer.epochs=1", "schedule.warmup_epochs=0")
    done = command(*grid, "trainer.label_smoothing=0.0,0.1", "hydra.sweeper.n_jobs=2")
    assert done.returncode == 0, done.stderr
    assert (folder_of(tmp_path) / "plots" / "slices.png").exists()
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"study", "trial", "best:", "in"}


@pytest.mark.slow
def test_another_space_is_refused_and_changes_nothing(tmp_path: Path, command: Command) -> None:
    grid = (*SWEEP, "hydra/sweeper/sampler=grid", "trainer.epochs=1", "schedule.warmup_epochs=0")
    assert command(*grid, "window=w2,w4").returncode == 0
    before = sorted(path.name for path in folder_of(tmp_path).iterdir())
    refusal = command(*grid, "window=w2,w4", "optimizer.lr=0.01")
    assert refusal.returncode == 2
    (line,) = refusal.stderr.splitlines()
    assert "study one was begun with something else (optimizer.lr was 0.0" in line
    assert line.endswith("hydra.sweeper.allow_space_change=true to go on with it")
    assert sorted(path.name for path in folder_of(tmp_path).iterdir()) == before
    assert len(trials_of(tmp_path)) == 2


def own_options(weight_decay: float) -> tuple[str, ...]:
    """An optimizer of one's own, as a file that may be edited."""
    path = Path("my", "optimizer", "mine.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"defaults: [adamw, _self_]\nweight_decay: {weight_decay}\n")
    return ("--config-dir", "my")


@pytest.mark.slow
def test_a_tried_option_whose_file_was_edited_is_another_one(tmp_path: Path, command: Command) -> None:
    options = (*SWEEP, "hydra/sweeper/sampler=grid", "trainer.epochs=1", "schedule.warmup_epochs=0")
    assert command(*own_options(0.05), *options, "optimizer=mine,sgd").returncode == 0
    refusal = command(*own_options(0.75), *options, "optimizer=mine,sgd")
    assert refusal.returncode == 2
    (line,) = refusal.stderr.splitlines()
    assert "begun with something else (optimizer=mine: weight_decay was 0.05 and is 0.75 now)" in line
    assert len(trials_of(tmp_path)) == 2


@pytest.mark.slow
def test_workers_do_not_train_with_a_file_that_is_edited_meanwhile(tmp_path: Path, command: Command) -> None:
    top = ("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "hydra.sweeper.top_k=1", "hydra.sweeper.top_seeds=2")
    options = (*SWEEP, "trainer.epochs=60", "optimizer=mine", "optimizer.lr=1e-3,2e-3", *top)
    process = begun(*own_options(0.05), *options)
    wait_for(process, lambda: all(epochs(folder_of(tmp_path) / str(number)) for number in range(2)))
    own_options(0.75)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    (line,) = [each for each in errors.splitlines() if each.startswith("swinexp: ")]
    assert "a file was changed meanwhile (optimizer.weight_decay was 0.05 and is 0.75 now)" in line
    assert "best: " in said
    assert not (folder_of(tmp_path) / "top" / "0").exists()
    assert command(*own_options(0.05), *options).returncode == 0
    assert (
        yaml.safe_load((folder_of(tmp_path) / "top" / "0" / "config.yaml").read_text())["optimizer"]["weight_decay"]
        == 0.05
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["optimizer.lrr=1,2"], "optimizer.lrr=1,2: no such key; optimizer has name, lr, weight_decay, decay, layer_decay, betas, eps. Type optimizer.lr=1,2"),
        (["window=w2,w9"], "window=w9: no such option; there are "),
        (["optimizer.lr=interval(1,0)"], "optimizer.lr=interval(1,0): an interval goes from a number up to a larger one. Type optimizer.lr=interval(0.1,1)"),
        (["optimizer.lr=interval(-1,1)"], "optimizer.lr=-1.0: "),
        (["trainer.epochs=many,few"], "trainer.epochs=many: a whole number is needed. Type for example trainer.epochs=1"),
        (["trainer.epochs=3"], "hydra.sweeper.params={}: nothing is varied. Type 'optimizer.lr=tag(log,interval(1e-4,1e-2))', or model=nano,tiny"),
        (["hydra.sweeper.params={optimizer.lr:[1e-3,1e-2]}"], "hydra.sweeper.params={optimizer.lr:[0.001,0.01]}: nothing is varied. Type optimizer.lr=0.001,0.01"),
        (["hydra.sweeper.params={optimizer.lr:1e-3}"], "hydra.sweeper.params={optimizer.lr:0.001}: nothing is varied. Type 'optimizer.lr="),
        (["window=w2,w4", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: at least 1. Type hydra.sweeper.n_trials=1"),
        (["window=w2,w4", "hydra.sweeper.n_trials=many"], "hydra.sweeper.n_trials=many: a whole number is needed. Type for example hydra.sweeper.n_trials=1"),
        (["window=w2,w4", "hydra.sweeper.direction=up"], "hydra.sweeper.direction=up: one of minimize, maximize. Type hydra.sweeper.direction=minimize"),
        (["window=w2,w4", "hydra.sweeper.direction=[minimize,maximize]"], "hydra.sweeper.direction=[minimize,maximize]: there are 1 objectives: val/accuracy. Type hydra.sweeper.direction=maximize"),
        (["window=w2,w4", "hydra.sweeper.storage=mine"], "hydra.sweeper.storage=mine: one of sqlite, journal, "),
        (["window=w2,w4", "hydra.sweeper.storage=nonsense://x"], "hydra.sweeper.storage=nonsense://x: cannot be used ("),
        (["window=w2,w4", "hydra.sweeper.enqueue=[{window: w8}]"], "hydra.sweeper.enqueue: window=w8 is not one of w2,w4. Type one that is, or widen it"),
        (["window=w2,w4", "hydra.sweeper.constraints=['size < 3']"], "hydra.sweeper.constraints=size < 3: FIGURE <= NUMBER or FIGURE >= NUMBER in quotes, with one of parameters, flops, activations. Type "),
        (["window=w2,w4", "hydra.sweeper.custom_search_space=no.where"], "hydra.sweeper.custom_search_space=no.where: it cannot be imported ("),
        (["window=w2,w4", "hydra.sweeper.custom_search_space=os.sep"], "hydra.sweeper.custom_search_space=os.sep: it is no function. Type MODULE.FUNCTION"),
        (["window=w2,w4", "hydra.sweeper.custom_search_space=os.chdir", "hydra.sweeper.dry_run=1"], "hydra.sweeper.custom_search_space=os.chdir: it fails (TypeError: "),
        (["window=w2,w4", "hydra.sweeper.sampler.name=null"], "hydra/sweeper/sampler=null: one of tpe, gp, cmaes, nsgaii, nsgaiii, qmc, random, grid, brute_force, ablation. Type hydra/sweeper/sampler=tpe"),
        (["window=w2,w4", "~hydra.sweeper.pruner.name"], "hydra/sweeper/pruner=null: one of none, asha, "),
        (["optimizer.lr=range(1e-3,1e-2)"], "optimizer.lr=range(1e-3,1e-2): its step of 1 is longer than the range. Type optimizer.lr=range(0.001,0.01,0.00225)"),
        (["window=w2,w4", "objective=[val/loss,val/loss]"], "objective=[val/loss,val/loss]: one is there twice. Type objective=val/loss"),
        ([LR, "window=w2,w4", "hydra.sweeper.conditional=[{when: {optimizer.lr: 1e-3}, params: {seed: '0,1'}}]"], "hydra.sweeper.conditional={when: {optimizer.lr: 0.001}}: hardly ever so: an interval has no end of values. "),
        (["trainer.epochs=range(1,4)", "hydra.sweeper.conditional=[{when: {trainer.epochs: '<3'}, params: {seed: '0,1'}}]"], "hydra.sweeper.conditional={when: {trainer.epochs: <3}}: never so: trainer.epochs is one of range(1,4). Type trainer.epochs: 1"),
        (["window=w2,w4", "hydra.sweeper.conditional=[{when: {window: []}, params: {seed: '0,1'}}]"], "hydra.sweeper.conditional={when: {window: []}}: there is no value in it. Type window: w2"),
        (["window=w2,w4", "hydra.sweeper.conditional=[{when: {}, params: {seed: '0,1'}}]"], "hydra.sweeper.conditional={when: {}}: there is nothing in it. Type for example {when: {optimizer: sgd}}"),
        (["window=w2,w4", "hydra.sweeper.conditional=[{when: {window: w2}, params: {}}]"], "hydra.sweeper.conditional={params: {}}: there is nothing in it. "),
        (["window=w2,w4", "hydra.sweeper.warm_start=nowhere"], "hydra.sweeper.warm_start=nowhere: no sweep's folder. Type one that has a study.json, such as outputs/sweeps/NAME"),
        (["optimizer.lr=interval(0,1)", "hydra/sweeper/sampler=grid"], "optimizer.lr=interval(0,1): an interval has no grid. Type "),
        (["window=w2,w4", "hydra/sweeper/sampler=cmaes"], "hydra/sweeper/sampler=cmaes: it needs two numbers to vary at least, and here there are 0. Type hydra/sweeper/sampler=tpe"),
        (["window=w2,w4", "hydra/sweeper/pruner=median", "objective=test/accuracy", "test=true"], "hydra/sweeper/pruner=median: the objective has no value before the end of a run"),
        (["seed=0,1", "hydra.sweeper.top_k=2"], "hydra.sweeper.top_k=2: seed is varied already, so that trials are not of several seeds. Type hydra.sweeper.top_k=0, or one seed"),
        (["seed=0,1", "hydra.sweeper.seeds=2"], "hydra.sweeper.seeds=2: seed is varied already, "),
        (["window=w2,w4", "hydra.sweeper.sampler.n_startup_trials=abc"], "hydra.sweeper.sampler.n_startup_trials=abc: hydra/sweeper/sampler=tpe takes a whole number. Type hydra.sweeper.sampler.n_startup_trials=null "),
        (["window=w2,w4", "hydra.sweeper.sampler.n_startup_trials=-4"], "hydra.sweeper.sampler.n_startup_trials=-4: at least 0. "),
        (["window=w2,w4", "hydra.sweeper.sampler.multivariate=maybe"], "hydra.sweeper.sampler.multivariate=maybe: hydra/sweeper/sampler=tpe takes true or false. "),
        (["window=w2,w4", "hydra.sweeper.sampler.seed=abc"], "hydra.sweeper.sampler.seed=abc: a whole number, at least 0. Type hydra.sweeper.sampler.seed=0"),
        (["window=w2,w4", "hydra/sweeper/pruner=asha", "hydra.sweeper.pruner.reduction_factor=2.5"], "hydra.sweeper.pruner.reduction_factor=2.5: hydra/sweeper/pruner=asha takes a whole number. "),
        (["window=w2,w4", "hydra/sweeper/pruner=median", "hydra.sweeper.pruner.interval_steps=1.5"], "hydra.sweeper.pruner.interval_steps=1.5: hydra/sweeper/pruner=median takes a whole number. "),
        (["window=w2,w4", "hydra.sweeper.constraints='parameters <= 1e5'"], "hydra.sweeper.constraints=parameters <= 1e5: a list is needed. Type 'hydra.sweeper.constraints=[\"parameters <= 1e5\"]'"),
        (["window=w2,w4", "hydra.sweeper.top_k=2", "hydra.sweeper.top_seeds=1"], "hydra.sweeper.top_seeds=1: more than seeds. Type hydra.sweeper.top_seeds=3"),
        (["window=w2,w4", "hydra.sweeper.top_seeds=5"], "hydra.sweeper.top_seeds=5: it is on how many seeds the hydra.sweeper.top_k best points are trained, which are none. Type hydra.sweeper.top_k=3 beside it"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And Hydra's folder of the sweep goes again."""
    told = refused([*SWEEP, *arguments], capsys, monkeypatch)
    assert told.startswith(line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-m", "sweep=quickstart,grid"], "sweep=quickstart,grid: a sweep at a time. Type sweep=quickstart, and then the others"),
        (["sweep=quickstart,grid"], "sweep=quickstart,grid: a sweep at a time. "),
        (["-m", "sweep=glob(*)"], "sweep=glob(*): a sweep at a time. Type sweep=VALUE, and then the others"),
        (["hydra/sweeper=swinexp_optuna", "hydra.sweeper.n_trials=2", *SMALL], "hydra/sweeper=swinexp_optuna: it searches, and this is one run. Type -m with it for the search, or hydra.mode=RUN for the run"),
    ],
)  # fmt: skip
def test_what_would_search_nothing_is_refused(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert refused(arguments, capsys, monkeypatch).startswith(line)
    assert list(tmp_path.iterdir()) == []


def test_a_study_is_not_looked_for_in_another_storage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = {"name": "one", "storage": "sqlite:////moved/from/here/study.db"}
    folder_of(tmp_path).mkdir(parents=True)
    (folder_of(tmp_path) / "study.json").write_text(json.dumps(record))
    assert refused([*SWEEP, "window=w2,w4", "storage=journal"], capsys, monkeypatch) == (
        "hydra.sweeper.storage=journal: the study of outputs/sweeps/one is kept in "
        "sqlite:////moved/from/here/study.db. Type storage=sqlite, or hydra.sweeper.study_name=ANOTHER_NAME"
    )
    for there, storage, url, same in (
        (record["storage"], "sqlite", "sqlite:////here/study.db", True),
        ("postgres", "postgres", "postgresql://host/db", True),
        ("postgres", "sqlite", "sqlite:////here/study.db", False),
        ("sqlite:///mine", "sqlite:///mine", "sqlite:///mine", True),
        ("sqlite:///mine", "sqlite:///yours", "sqlite:///yours", False),
    ):
        (folder_of(tmp_path) / "study.json").write_text(json.dumps({"storage": there}))
        with nullcontext() if same else pytest.raises(Mistake, match="is kept in"):
            check_storage(folder_of(tmp_path) / "study.json", storage, url)


def test_a_misspelt_key_of_the_search_is_told_with_the_one_that_is_meant(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = refused([*SWEEP, "window=w2,w4", "+hydra.sweeper.n_trial=3"], capsys, monkeypatch)
    assert told.startswith("hydra.sweeper.n_trial=3: no such key; there are sampler, ")
    assert told.endswith(". Type hydra.sweeper.n_trials=3")


@pytest.mark.slow
def test_a_refusal_is_exit_code_2_and_one_line(tmp_path: Path, command: Command) -> None:
    done = command(*SWEEP, "optimizer.lrr=1,2")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


LATE = """
import os, signal
import swinexp.train.loop as loop
from swinexp import run
plain = loop.summarise
def late(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    return plain(*arguments)
loop.summarise = late
run.cli()
"""


def test_a_signal_in_the_last_moment_of_a_trial_ends_the_sweep_after_it(tmp_path: Path, command: Command) -> None:
    arguments = (*SWEEP, LR, "hydra.sweeper.n_trials=3", "trainer.epochs=1", "schedule.warmup_epochs=0")
    late = subprocess.run([sys.executable, "-c", LATE, *arguments], capture_output=True, text=True, check=False)
    assert late.returncode == 130, late.stderr
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE, TrialState.WAITING]
    again = command(*arguments)
    assert again.returncode == 0, again.stderr
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.COMPLETE] * 3


LEFT_BEHIND = """
import gc, weakref
import swinexp.train.loop as loop
import swinexp.train.step as step
from swinexp import run
gc.disable()  # which may come by, or not
states, build, gradients = [], loop.build_state, step._gradients
def watched(*arguments):
    print("STATES", [index for index, each in enumerate(states) if each() is not None])
    state = build(*arguments)
    states.append(weakref.ref(state))
    return state
def small_memory(run, state, images, *rest):
    if run.seed == 2 and state.step == 2:
        raise step.torch.OutOfMemoryError("CUDA out of memory")
    if run.seed == 3 and state.step == 2:
        raise RuntimeError("a bug")
    return gradients(run, state, images, *rest)
loop.build_state, step._gradients = watched, small_memory
run.cli()
"""


@pytest.mark.parametrize(
    "way",
    [
        ("-m", "seed=2,1,2,0"),
        ("-m", "hydra/sweeper=swinexp_optuna", "hydra/sweeper/sampler=grid", "seed=0,2,3,1", "hydra.sweeper.study_name=one",
         "hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.lower=0.99"),
    ],
)  # fmt: skip
def test_a_run_that_ends_early_leaves_its_memory_to_the_next(way: tuple[str, ...], tmp_path: Path) -> None:
    """On a GPU its step as a CUDA graph holds all that a step needs: the next would be short of it."""
    command = [sys.executable, "-c", LEFT_BEHIND, *way, *SMALL, "wandb=disabled"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = [line for line in done.stdout.splitlines() if line.startswith("STATES")]
    assert told == ["STATES []"] * 4, done.stdout + done.stderr
    if "hydra/sweeper=swinexp_optuna" in way:
        assert sorted(row["state"] for row in results(tmp_path)) == ["failed", "failed", "pruned", "pruned"]
    else:
        assert done.stderr.count("has not enough memory") >= 2


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_sweep_that_ends_by_failures_leaves_its_report(jobs: int, tmp_path: Path, command: Command) -> None:
    (tmp_path / "broken.py").write_text("def space(config, trial):\n    raise KeyError('typo')\n")
    failing = ("hydra.sweeper.custom_search_space=broken.space", "hydra.sweeper.max_consecutive_failures=2")
    done = command(*SWEEP, LR, *failing, f"hydra.sweeper.n_jobs={jobs}")
    assert done.returncode == 1, done.stderr
    assert "2 trials in a row failed" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("Mend what failed, and the same command goes on")
    assert "KeyError: 'typo'" in done.stdout
    assert {row["state"] for row in results(tmp_path)} == {"failed"}


def test_a_sweep_of_which_each_trial_failed_is_no_success(tmp_path: Path, command: Command) -> None:
    (tmp_path / "broken.py").write_text("def space(config, trial):\n    raise KeyError('typo')\n")
    done = command(*SWEEP, LR, "hydra.sweeper.custom_search_space=broken.space", "hydra.sweeper.n_trials=1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "swinexp: study one ended: each of its trials failed. Mend what failed, and the same command goes on"
    )
    assert "in space" in (folder_of(tmp_path) / "0" / "error.txt").read_text()
