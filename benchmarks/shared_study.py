"""How many trials a second one study hands out: processes that do nothing but take a trial and tell how it ended.

    SWINEXP_STORAGE=postgresql://host/db python benchmarks/shared_study.py --storage=postgres --processes=8

Each process has a folder of its own where the study is on a server, as if it were a machine of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from swinexp.sweep.budget import Enough
from swinexp.sweep.study import Nothing
from tests.sweeping import study_of


def work(storage: str, trials: int, folder: Path, gate: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = study_of(
        f"hydra.sweeper.storage={storage}",
        f"hydra.sweeper.n_trials={trials}",
        "hydra/sweeper/sampler=random",
        folder=folder,
    )
    gate.wait()
    while True:
        try:
            trial = study.claim()
        except Nothing:
            time.sleep(0.02)
        except Enough:
            break
        else:
            study.tell(trial, TrialState.COMPLETE, [trial.params["x"]])
    study.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--storage", default="sqlite")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--trials", type=int, default=200)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(given.processes + 1)
    with tempfile.TemporaryDirectory() as place:
        name = f"study{os.getpid()}"
        shared = given.storage != "postgres"
        folders = [Path(place, "all" if shared else str(index), name) for index in range(given.processes)]
        processes = [
            context.Process(target=work, args=(given.storage, given.trials, folder, gate)) for folder in folders
        ]
        for process in processes:
            process.start()
        gate.wait()
        began = time.perf_counter()
        for process in processes:
            process.join()
        rate = given.trials / (time.perf_counter() - began)
    print(f"{given.storage}, {given.processes} processes, {given.trials} trials: {rate:.1f} trials/s")


if __name__ == "__main__":
    main()
