"""A sweep whose workers and supervisor are killed, again and again, ends with every trial finished once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from swinexp import CONF, HERE
from swinexp.sweep.storage import open_storage, url_of

APP = """
import os, time
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig

ConfigStore.instance().store("app", {
    "x": 0.0, "y": 1, "sleep": 0.0,
    "hydra": {"searchpath": ["file://CONF"], "output_subdir": None,
              "sweep": {"dir": "sweep", "subdir": "${hydra.job.num}"}},
})


@hydra.main(version_base="1.3", config_path=None, config_name="app")
def main(cfg):
    done = Path(HydraConfig.get().runtime.output_dir) / "done"
    if not done.exists():  # as a run that has its summary
        time.sleep(cfg.sleep)
        with done.open("x") as file:
            file.write(f"{cfg.x} {cfg.y}")
    return (cfg.x - 1) ** 2 + cfg.y


main()
"""


def write_app(folder: Path) -> None:
    (folder / "app.py").write_text(APP.replace("CONF", str(CONF)))


def command(*overrides: str) -> list[str]:
    return [sys.executable, "app.py", "-m", "hydra/sweeper=swinexp_optuna", "x=interval(-3,3)", "y=1,2,3", *overrides]


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """The command as a terminal would start it, in a session of its own."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command(*overrides), cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def busy(folder: Path, storage: str, process: subprocess.Popen[bytes]) -> list[int]:
    """The command's workers, as soon as one of them has a trial, which is the first; none when it has ended."""
    for _ in range(100):
        mine = children(process.pid)
        if process.poll() is not None:
            return []
        if len(mine) > 1 and (folder / "sweep" / "study.json").exists():
            running = [t.user_attrs.get("worker") for t in trials_of(folder, storage) if t.state == TrialState.RUNNING]
            training = [worker["pid"] for worker in running if worker is not None and worker["pid"] in mine]
            if training:
                return [*training, *(pid for pid in mine if pid not in training)]
        time.sleep(0.1)
    return mine


def trials_of(folder: Path, storage: str) -> list[optuna.trial.FrozenTrial]:
    kept = open_storage(url_of(storage, folder / "sweep"))
    return optuna.load_study(study_name="sweep", storage=kept).get_trials()


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_whoever_is_killed_every_trial_is_finished_once(tmp_path: Path, storage: str) -> None:
    dice = random.Random(storage)
    write_app(tmp_path)
    total = 40
    overrides = (
        f"hydra.sweeper.storage={storage}",
        f"hydra.sweeper.n_trials={total}",
        "hydra.sweeper.n_jobs=2",
        "hydra/sweeper/sampler=random",
        "sleep=1.5",
    )
    process = start(tmp_path, *overrides)
    victims = []
    for _ in range(20):
        time.sleep(dice.uniform(0, 3))
        mine = busy(tmp_path, storage, process)
        victim = dice.choice(["worker", "supervisor", "both"])
        if process.poll() is not None:
            victim = "nobody"  # it had ended
        elif victim != "supervisor":
            for worker in mine if victim == "both" else mine[:1]:
                kill(worker)
        if victim in ("supervisor", "both"):
            kill(process.pid)
            process.wait()
        if process.poll() is not None:
            process = start(tmp_path, *overrides)
        victims.append(victim)
    assert process.wait(timeout=180) == 0, (tmp_path / "log").read_text()[-2000:]
    trials = trials_of(tmp_path, storage)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * total, victims
    for trial in trials:
        x, y = (tmp_path / "sweep" / str(trial.number) / "done").read_text().split()
        assert float(x) == pytest.approx(trial.params["x"])
        assert int(y) == trial.params["y"]
    assert sum(len(trial.user_attrs.get("lost", [])) for trial in trials) > 0, "nobody was killed in a trial"
    rows = (tmp_path / "sweep" / "results.csv").read_text().splitlines()
    assert len(rows) == total + 1
    assert json.loads((tmp_path / "sweep" / "study.json").read_text())["objective"] == ["value"]


@pytest.mark.slow
def test_two_commands_share_one_study(tmp_path: Path) -> None:
    write_app(tmp_path)
    total = 200
    overrides = (f"hydra.sweeper.n_trials={total}", "hydra/sweeper/sampler=random")
    three = [start(tmp_path, *overrides, "hydra.sweeper.n_jobs=2"), start(tmp_path, *overrides)]
    for process in three:
        assert process.wait(timeout=240) == 0, (tmp_path / "log").read_text()[-2000:]
    trials = trials_of(tmp_path, "sqlite")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * total
    assert len({trial.params["x"] for trial in trials}) == total
    workers = [trial.user_attrs["worker"]["pid"] for trial in trials]
    assert len(set(workers)) == 3
    assert min(workers.count(worker) for worker in set(workers)) > total / 10


@pytest.mark.slow
def test_a_sweep_may_be_called_as_the_folder_of_the_best_is(tmp_path: Path) -> None:
    write_app(tmp_path)
    process = start(tmp_path, "hydra.sweep.dir=top", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2")
    assert process.wait(timeout=120) == 0, (tmp_path / "log").read_text()[-2000:]
    assert sorted(path.parent.name for path in (tmp_path / "top").glob("*/done")) == ["0", "1", "2", "3"]
