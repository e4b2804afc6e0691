"""Milliseconds of a sweeper for a trial that does nothing: Hydra's basic sweeper, its Optuna plugin, ours.

    python benchmarks/overhead.py                              basic and ours
    python benchmarks/overhead.py --official=OTHER/bin/python  … and hydra-optuna-sweeper, in an environment of its own

Each variant is a command of its own, in turn, several rounds; of each the median over all trials and rounds is printed,
from the start of one trial to the start of the next. The search is random, over a number and a choice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
APP = """
import time

import hydra
from hydra.core.config_store import ConfigStore

ConfigStore.instance().store("app", {
    "x": 0.0, "y": 1,
    "hydra": {"output_subdir": None, "sweep": {"dir": "sweep", "subdir": "${hydra.job.num}"}},
})


@hydra.main(version_base="1.3", config_path=None, config_name="app")
def main(cfg):
    with open("times", "a") as file:
        file.write(f"{time.perf_counter()}\\n")
    return (cfg.x - 1) ** 2 + cfg.y


main()
"""


def variants(trials: int, official: str | None) -> dict[str, list[str]]:
    """{name: its command}, each with SQLite where it keeps a study at all."""
    space = ["x=interval(-3,3)", "y=1,2,3"]
    ours = f"hydra.searchpath=[file://{HERE.parent / 'conf'}]"
    count = f"hydra.sweeper.n_trials={trials}"
    found = {
        "hydra basic": [sys.executable, "app.py", "-m", f"x=range(0,{trials})"],
        "swinexp, sqlite": [
            sys.executable,
            "app.py",
            "-m",
            ours,
            "hydra/sweeper=swinexp_optuna",
            "hydra/sweeper/sampler=random",
            count,
            *space,
        ],
    }
    found["swinexp, journal"] = [*found["swinexp, sqlite"], "hydra.sweeper.storage=journal"]
    if official:
        plugin = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "hydra.sweeper.n_jobs=1", count]
        storage = "hydra.sweeper.storage=sqlite:///study.db"
        found["official plugin, sqlite"] = [official, "app.py", "-m", *plugin, storage, *space]
        found["official plugin, memory"] = [official, "app.py", "-m", *plugin, *space]
    return found


def measured(command: list[str]) -> list[float]:
    """Milliseconds from the start of each trial to that of the next."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "app.py").write_text(APP)
        environment = (
            os.environ | {"PYTHONPATH": str(HERE.parent)} if command[0] == sys.executable else dict(os.environ)
        )
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        times = [float(line) for line in Path(folder, "times").read_text().split()]
    return [1000 * (later - earlier) for earlier, later in itertools.pairwise(times)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--official", help="a Python that has hydra-optuna-sweeper")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    commands = variants(options.trials, options.official)
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            taken[name] += measured(command)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, median in medians.items():
        more = median - medians["hydra basic"]
        print(f"{name:26} {median:6.1f} ms a trial  {more:+6.1f} ms")
    if options.json:
        options.json.write_text(json.dumps(medians, indent=2) + "\n")


if __name__ == "__main__":
    main()
