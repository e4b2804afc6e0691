"""The benchmarks run, at their smallest, and say what they have to."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SMALL

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def benchmark(name: str, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_scaling_has_the_slopes_of_what_is_known_exactly() -> None:
    small = (
        "--rounds",
        "1",
        "--batch",
        "1",
        "--images",
        "16",
        "32",
        "64",
        "--windows",
        "2",
        "4",
        "--batches",
        "1",
        "2",
    )
    said = benchmark("scaling", *small, "--depths", "1", "2", "--json", "out.json", "model.dim=8")
    tables = json.loads(Path("out.json").read_text())["tables"]
    assert tables["image side"]["slopes"]["activations"] == pytest.approx(2, abs=0.01)
    assert tables["batch"]["slopes"]["flops"] == 0
    assert 0.9 < tables["depth"]["slopes"]["flops"] < 1
    assert said.count("slope") == 4


def test_a_cpu_agrees_with_itself_and_everything_is_looked_at() -> None:
    said = benchmark("agree", "--out", "out.txt")
    assert "✗" not in said
    for name in (
        "attention=mimetic",
        "block=swinv2",
        "patch=p2_conv",
        "operation equalize",
        "host and device placement",
    ):
        assert name in Path("out.txt").read_text()


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_speedrun_tells_mean_spread_and_seconds(seeds: int) -> None:
    said = benchmark(
        "speedrun", "--seeds", str(seeds), "--experiment", "quickstart", "--aim", "0.01", "--out", "a.json", *SMALL
    )
    kept = json.loads(Path("a.json").read_text())
    accuracies = [run["test/accuracy"] for run in kept["runs"]]
    assert [run["seed"] for run in kept["runs"]] == [*range(seeds)]
    assert f"{100 * sum(accuracies) / seeds:.2f} {'±' if seeds > 1 else '%'}" in said
    assert f"n={seeds}  aim 1.00 % reached" in said
    (history,) = Path("outputs/sweeps").glob(f"*/{seeds - 1}/metrics.jsonl")
    epochs = [json.loads(line) for line in history.read_text().splitlines()]
    assert kept["warm"] == sum(epoch["train/seconds"] for epoch in epochs)


def test_a_sweep_is_faster_with_pruning_and_one_process() -> None:
    said = benchmark("sweep", "--trials", "2", "--json", "out.json", *SMALL)
    ways = json.loads(Path("out.json").read_text())["ways"]
    assert {name: len(rounds) for name, rounds in ways.items()} == {"ours": 1, "a process each": 1, "basic sweeper": 1}
    assert ways["a process each"][0]["seconds"] > ways["basic sweeper"][0]["seconds"]
    assert "trials/h" in said


def test_the_parts_of_a_step_are_told() -> None:
    tiny = ("model=nano", "window=w4", "trainer.batch_size=8", "trainer.device=cpu", "trainer.ema=0.9", "--steps", "2")
    lines = benchmark("parts", *tiny).splitlines()
    assert lines[1].split() == ["ms,", "batch", "8", "Python", "done"]
    told = {line[:28].strip(): [float(each) for each in line[28:].split()[:2]] for line in lines[2:]}
    assert [*told] == ["a step, whole", "augmentation", "gradients", "optimizer", "average of the weights"]
    assert all(0 < asked <= done for asked, done in told.values())
    assert told["a step, whole"][1] > told["augmentation"][1]


def test_gpu_sh_runs_every_part_and_leaves_a_log_of_each(tmp_path: Path) -> None:
    environment = {**os.environ, "BUDGET": "0.01", "PYTHON": os.path.relpath(sys.executable), "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "benchmarks" / "gpu.sh")
    done = subprocess.run([script, "out"], env=environment, capture_output=True, text=True, check=True, timeout=300)
    parts = ["agree", "augment", "step", "pipeline", "speedrun", "record"]
    assert [line.split()[0] for line in done.stdout.splitlines()] == parts
    assert all((tmp_path / "out" / f"{part}.log").exists() for part in parts)
    assert "exit code 127" not in done.stdout  # that of a command that is not found


def test_what_is_not_ready_in_time_is_left_out_of_the_steps_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    step = importlib.import_module("step")
    variants = [step.Variant("ours", "eager", batch) for batch in (1, 2, 3)]
    ours, theirs = zip(*(multiprocessing.Pipe() for _ in variants), strict=True)
    theirs[0].send(1.5)
    theirs[1].close()
    told = step.heard(dict(zip(variants, ours, strict=True)), 0.2)
    assert [told[variant] for variant in variants] == [1.5, "its process ended", "not ready after 0 s"]
