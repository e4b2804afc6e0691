"""A sweep on a Slurm cluster and PostgreSQL: jobs are killed, pre-empted, cancelled and adopted, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState

from swinexp.sweep.study import Study
from tests.conftest import SMALL, Command, timeless
from tests.postgres import PASSWORD, Server, binaries, serving
from tests.slurm import Cluster, clustered, missing, until
from tests.sweeping import study_of

pytest.importorskip("submitit", reason="Hydra's submitit launcher is not installed (pip install 'swinexp[slurm]')")
PLACE = binaries()
ABSENT = missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PLACE is None, reason="PostgreSQL's server is not installed (apt-get install postgresql)"),
    pytest.mark.skipif(bool(ABSENT), reason=f"no {', '.join(ABSENT)} (apt-get install slurm-wlm munge)"),
]

OPEN: list[Study] = []
STARTED: list[subprocess.Popen[str]] = []
ARRAY = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
ON_SLURM = ("hydra/launcher=slurm", "storage=postgres", "hydra.sweeper.heartbeat=1")
EPOCHS = 60  # some 6 s: longer than the 5 s between two questions to Slurm, so that what befalls a job is seen
SWEEP = (
    "sweep=quickstart",
    *(one for one in SMALL if not one.startswith("trainer.epochs")),
    "hydra/sweeper/sampler=random",
    "hydra/sweeper/pruner=none",
    "hydra.sweeper.n_jobs=2",
    "wandb=disabled",
)


@pytest.fixture(scope="module")
def places() -> Iterator[tuple[Cluster, Server]]:
    assert PLACE is not None
    with serving(PLACE) as server, clustered() as cluster:
        yield cluster, server


@pytest.fixture
def cluster(places: tuple[Cluster, Server], monkeypatch: pytest.MonkeyPatch, quiet_optuna: None) -> Iterator[Cluster]:  # noqa: ARG001
    """The cluster, where this process and those that it starts find it, and the server."""
    cluster, server = places
    monkeypatch.setenv("SWINEXP_STORAGE", server.url)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, value in cluster.variables.items():
        monkeypatch.setenv(name, value)
    yield cluster
    while OPEN:
        OPEN.pop().close()
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    cluster.call("scancel", f"--user={os.getuid()}")


class Sweep:
    """The command in a process of its own, and what there is to see of it."""

    def __init__(self, name: str, *overrides: str) -> None:
        self.folder = Path("outputs/sweeps") / name
        self.study: Study | None = None
        self.command = ["-m", "swinexp.run", *SWEEP, f"hydra.sweeper.study_name={name}", *overrides]

    def start(self) -> subprocess.Popen[str]:
        STARTED.append(
            subprocess.Popen(
                [sys.executable, *self.command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
        return STARTED[-1]

    def end(self, process: subprocess.Popen[str], code: int = 0) -> str:
        words = process.communicate(timeout=900)[0]
        assert process.returncode == code, words + self.said()
        return words

    @property
    def trials(self) -> list[FrozenTrial]:
        if self.study is None:
            self.study = study_of("hydra.sweeper.storage=postgres", directions=["maximize"], folder=self.folder)
            OPEN.append(self.study)
        return self.study.trials

    def said(self) -> str:
        return "\n".join(path.read_text() for path in self.folder.glob("jobs/*/*.out"))

    def epochs(self, number: int) -> int:
        path = self.folder / str(number) / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def under_way(self, cluster: Cluster) -> dict[str, int]:
        """The running jobs whose trials have an epoch already, and the process of each."""
        found = {}
        for trial in self.trials:
            if trial.state == TrialState.RUNNING and self.epochs(trial.number) > 1:
                pid = trial.user_attrs["worker"]["pid"]
                job = owner(pid)
                if job is not None and cluster.call("squeue", "-h", "-j", job, "-o", "%T").strip() == "RUNNING":
                    found[job] = pid
        return found


def owner(pid: int) -> str | None:
    """The job that a process belongs to."""
    try:
        words = dict(each.split("=", 1) for each in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in each)
    except OSError:
        return None
    return "_".join(words[name] for name in ARRAY) if ARRAY[0] in words else words.get("SLURM_JOB_ID")


def queue(cluster: Cluster) -> list[str]:
    return cluster.call("squeue", "-h", "-r", "-o", "%i").split()


def figures(folder: Path, number: int) -> dict[str, float]:
    summary = json.loads((folder / str(number) / "summary.json").read_text())
    return timeless({key: value for key, value in summary.items() if isinstance(value, float)})


def test_jobs_are_killed_and_pre_empted_and_a_node_fails_and_all_trials_are_exact(cluster: Cluster) -> None:
    total, long = 12, ("hydra.sweeper.n_trials=12", f"trainer.epochs={EPOCHS}")
    plain = Sweep("plain", *long)
    plain.end(plain.start())
    sweep = Sweep("broken", *long, *ON_SLURM)
    process = sweep.start()

    until(lambda: len(sweep.under_way(cluster)) == 2, words=sweep.said)
    (killed, pid), (pre_empted, _) = sweep.under_way(cluster).items()
    os.kill(pid, signal.SIGKILL)
    cluster.call("scancel", "--signal=USR1", pre_empted)
    cluster.call("scancel", "--signal=TERM", pre_empted)
    until(lambda: pre_empted not in sweep.under_way(cluster), words=sweep.said)
    until(lambda: pre_empted in sweep.under_way(cluster), words=sweep.said)
    cluster.call("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    until(lambda: not sweep.under_way(cluster), words=sweep.said)
    until(lambda: sweep.under_way(cluster), words=sweep.said)
    cluster.kill_node()
    cluster.start_node()

    words = sweep.end(process)
    trials = sweep.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * total
    for trial in trials:
        assert figures(sweep.folder, trial.number) == figures(plain.folder, trial.number)
        assert sweep.epochs(trial.number) == EPOCHS
    lost = sum(len(trial.user_attrs.get("lost", [])) for trial in trials)
    assert 2 <= lost <= 3  # of the killed job, and of the node's two: who was told has given its trial back
    assert f"job {killed} was killed" in words
    resumed = sum(path.read_text().count("resuming after epoch") for path in sweep.folder.glob("*/run.log"))
    assert resumed >= 2
    assert queue(cluster) == []


def test_a_supervisor_is_killed_typed_again_and_interrupted(cluster: Cluster) -> None:
    # Longer than a command takes to begin: the trials that the second one interrupts are those of the first.
    sweep = Sweep("adopted", "hydra.sweeper.n_trials=2", f"trainer.epochs={5 * EPOCHS}", *ON_SLURM)
    first = sweep.start()
    until(lambda: len(sweep.under_way(cluster)) == 2, words=sweep.said)
    jobs = queue(cluster)
    first.kill()
    first.communicate()

    second = sweep.start()
    assert second.stdout is not None
    assert any("2 jobs of this sweep are there from before" in line for line in iter(second.stdout.readline, ""))
    assert queue(cluster) == jobs
    second.send_signal(signal.SIGINT)
    words = sweep.end(second, 130)
    assert "interrupted; the same command goes on" in words
    until(lambda: not queue(cluster))
    assert [trial.state for trial in sweep.trials] == [TrialState.WAITING] * 2
    assert not any("lost" in trial.user_attrs for trial in sweep.trials)

    third = sweep.start()
    until(lambda: len(sweep.under_way(cluster)) == 2, words=sweep.said)
    cancelled, _ = sweep.under_way(cluster)
    cluster.call("scancel", cancelled)
    words = sweep.end(third)
    assert f"job {cancelled} has ended: stopped by SIGTERM" in words
    assert [trial.state for trial in sweep.trials] == [TrialState.COMPLETE] * 2
    assert "slurm: 2 jobs submitted" in words
    assert (sweep.folder / "report.html").exists()
    files = [path for path in Path("outputs").rglob("*") if path.is_file()]
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []

    assert "submitted" not in sweep.end(sweep.start())  # there is nothing to do


@pytest.mark.usefixtures("cluster")
def test_a_job_is_warned_of_its_time_limit_and_goes_on_in_the_next() -> None:
    long = ("hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1", "trainer.epochs=100000")
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=30")  # Slurm warns up to a minute early
    sweep = Sweep("limited", *long, *ON_SLURM, *limit)
    process = sweep.start()
    log = sweep.folder / "0" / "run.log"
    until(lambda: log.exists() and "resuming after epoch" in log.read_text(), words=sweep.said)
    before = sweep.epochs(0)
    until(lambda: sweep.epochs(0) > before, words=sweep.said)
    process.send_signal(signal.SIGINT)
    words = sweep.end(process, 130)
    assert words.count("submitted") == 1  # the job is the same one, queued again
    assert "Caught signal SIGUSR2" in sweep.said()
    (trial,) = sweep.trials
    assert trial.state == TrialState.WAITING
    assert "lost" not in trial.user_attrs
    epochs = [json.loads(line)["epoch"] for line in (sweep.folder / "0" / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [*range(1, len(epochs) + 1)]


def test_a_trial_on_two_gpus_is_one_job(cluster: Cluster) -> None:
    together = ("hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1", "trainer.gpus=2", f"trainer.epochs={EPOCHS}")
    plain = Sweep("plain2", *together)
    plain.end(plain.start())
    sweep = Sweep("together", *together, *ON_SLURM, "hydra.launcher.cpus_per_task=2")
    process = sweep.start()
    until(lambda: sweep.under_way(cluster), words=sweep.said)
    (job,) = sweep.under_way(cluster)
    cluster.call("scancel", "--signal=TERM", job)
    words = sweep.end(process)
    assert [trial.state for trial in sweep.trials] == [TrialState.COMPLETE] * 2
    assert not any("lost" in trial.user_attrs for trial in sweep.trials)
    assert figures(sweep.folder, 0) == figures(plain.folder, 0)
    assert figures(sweep.folder, 1) == figures(plain.folder, 1)
    assert "resuming after epoch" in (sweep.folder / "0" / "run.log").read_text()
    assert words.count("submitted") == 1


@pytest.mark.usefixtures("cluster")
def test_a_plain_multirun_goes_through_hydras_own_launcher(command: Command) -> None:
    done = command("-m", *SMALL, "seed=0,1", "hydra/launcher=slurm", "wandb=disabled", "hydra.launcher.name=two")
    assert done.returncode == 0, done.stderr
    summaries = sorted(Path("outputs/sweeps").glob("*/*/summary.json"))
    assert [json.loads(path.read_text())["seed"] for path in summaries] == [0, 1]


@pytest.mark.usefixtures("cluster")
def test_what_sbatch_refuses_is_a_mistake(command: Command) -> None:
    done = command(*SWEEP, *ON_SLURM, "hydra.launcher.partition=moon", "hydra.sweeper.study_name=moon")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "swinexp: hydra/launcher=slurm: not accepted (sbatch: error: invalid partition specified: moon). "
        "Type another value for that hydra.launcher.KEY"
    )
