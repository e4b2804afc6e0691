"""Trials an hour of the same search: ours, and Hydra's basic sweeper as people use it, each in a folder of its own.

    python benchmarks/sweep.py                                20 trials of sweep=quickstart, some 10 minutes on 2 cores
    python benchmarks/sweep.py --trials 20 --rounds 2 trainer.epochs=10

Both search the learning rate, weight decay and label smoothing of `sweep=quickstart` on digits. Ours proposes by TPE,
ends bad trials early and keeps its process. The other one trains as many random points of the same space, each to its
end in a process of its own, which is what a shell loop, or a launcher with a process for each job, does; Hydra's basic
launcher in one process, which keeps imports and data but not the network, stands between them. Further arguments go to
all of them. The rounds take turns.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import first_line, machine

ROOT = Path(__file__).parents[1]


def command(folder: Path, *arguments: str) -> None:
    """A run of ours in a folder, quiet unless it fails."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    subprocess.run(
        [sys.executable, "-m", "swinexp.run", *arguments], cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL
    )


def points(count: int, seed: int) -> list[list[str]]:
    """Random points of the space of `sweep=quickstart`, by its distributions."""
    draw = random.Random(seed)

    def log_uniform(low: float, high: float) -> float:
        return math.exp(draw.uniform(math.log(low), math.log(high)))

    return [
        [
            f"optimizer.lr={log_uniform(1e-4, 3e-2):.6g}",
            f"optimizer.weight_decay={log_uniform(1e-3, 0.3):.6g}",
            f"trainer.label_smoothing={draw.uniform(0, 0.2):.6g}",
        ]
        for _ in range(count)
    ]


def plain(given: list[str]) -> list[str]:
    """What `sweep=quickstart` trains, without the sweep."""
    return ["experiment=quickstart", "trainer.epochs=20", "test=false", *given]


def ours(folder: Path, trials: int, seed: int, given: list[str]) -> None:
    command(folder, "sweep=quickstart", f"hydra.sweeper.n_trials={trials}", f"seed={seed}", *given)


def processes(folder: Path, trials: int, seed: int, given: list[str]) -> None:
    for point in points(trials, seed):
        command(folder, *plain(given), f"seed={seed}", *point)


def basic(folder: Path, trials: int, seed: int, given: list[str]) -> None:
    """Random points cannot be swept by the basic sweeper, only grids: a one-dimensional one over whole points."""
    columns = [*zip(*points(trials, seed), strict=True)]
    values = [each.partition("=")[2] for each in columns[0]]
    fixed = [column[0] for column in columns[1:]]
    command(folder, "-m", *plain(given), f"seed={seed}", *fixed, f"optimizer.lr={','.join(values)}")


WAYS = {"ours": ours, "a process each": processes, "basic sweeper": basic}


def outcome(folder: Path) -> tuple[int, int, float]:
    """(trials, epochs trained in all, the best figure) of a folder of runs."""
    histories = [*folder.glob("outputs/*/**/metrics.jsonl")]
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in histories]
    finished = [
        path for path in folder.glob("outputs/*/**/summary.json") if not json.loads(path.read_text()).get("pruned")
    ]
    best = max(json.loads(path.read_text())["val/accuracy"] for path in finished)
    return len(histories), sum(map(len, rows)), best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("overrides", nargs="*", help="for every run")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = machine(device, f"CPU, {len(os.sched_getaffinity(0))} cores")
    print(first_line(about))
    print(f"{'':18}{'trials/h':>10}{'seconds':>10}{'epochs':>8}   ours is faster by   best val/accuracy")
    told: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for turn in range(options.rounds):
        for name in [*WAYS][:: -1 if turn % 2 else 1]:
            with tempfile.TemporaryDirectory() as place:
                began = time.perf_counter()
                WAYS[name](Path(place), options.trials, turn, options.overrides)
                seconds = time.perf_counter() - began
                trials, epochs, best = outcome(Path(place))
            assert trials == options.trials
            told[name].append({"seconds": seconds, "epochs": epochs, "best": best})
    for name, rounds in told.items():
        seconds = statistics.median(each["seconds"] for each in rounds)
        ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(rounds, told["ours"], strict=True))
        best = ", ".join(f"{each['best']:.4f}" for each in rounds)
        epochs = statistics.median(each["epochs"] for each in rounds)
        hourly = 3600 * options.trials / seconds
        print(f"{name:18}{hourly:10.0f}{seconds:10.1f}{epochs:8.0f}   {f'{ratio:.2f}×':17}   {best}")
    if options.json:
        options.json.write_text(json.dumps({**about, "trials": options.trials, "ways": told}, indent=2) + "\n")


if __name__ == "__main__":
    main()
