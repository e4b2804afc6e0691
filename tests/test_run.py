from __future__ import annotations

import json
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

import swinexp.run
from swinexp import HERE
from tests.conftest import SMALL, Command, stopped
from tests.test_track import inspect

ROOT = HERE.parent
CHECK = """
import sys
from swinexp.run import cli
sys.argv = ["swinexp", *{arguments!r}]
try:
    cli()
except SystemExit as stop:
    print("exit", stop.code)
print("heavy:", sorted({{"torch", "wandb", "optuna", "sklearn", "matplotlib", "rich"}} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["trainer.epohcs=3"], 2), (["model=tinny"], 2), (["--cfg", "job", "experiment=cifar10"], 0)],
)
def test_help_and_typos_are_answered_without_heavy_imports(arguments: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(arguments=arguments)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert (f"exit {code}" in done.stdout) or (arguments[0] == "--cfg" and "depths" in done.stdout)


def test_help_lists_groups_and_examples(command: Command) -> None:
    done = command("--help")
    assert done.returncode == 0
    for text in (
        "model: base, cifar, nano, record, small, swin_b, swin_s, swin_t, tiny",
        "sweep: augmentation, grid, levers, lr_wd",
        "experiment=quickstart",
        "weight_decay",
    ):
        assert text in done.stdout


@pytest.mark.slow
def test_an_interrupted_run_leaves_a_checkpoint_and_goes_on(tmp_path: Path, command: Command) -> None:
    small = [*SMALL, "wandb=offline", "trainer.epochs=40"]
    (line,) = stopped(signal.SIGINT, 13, *small).stderr.splitlines()
    assert line.startswith("swinexp: stopped by SIGINT; outputs/runs/")
    assert line.endswith("the same command goes on")
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert (folder / "checkpoints" / "last.pt").exists()
    assert not (folder / "summary.json").exists()

    resumed = command(*small)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after epoch" in resumed.stdout
    assert [json.loads(row)["epoch"] for row in (folder / "metrics.jsonl").read_text().splitlines()] == [*range(1, 41)]
    parts = sorted((tmp_path / "outputs" / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    assert (
        parts[0].name.rpartition("-")[2] == parts[1].name.rpartition("-")[2]
    )  # one id: `wandb sync` makes one run of them
    epochs = [row["epoch"] for part in parts for row in inspect(part)[1]]
    assert epochs == [*range(1, 41)]

    finished = command(*small)
    assert finished.returncode == 0
    assert "already finished" in finished.stdout
    assert "epoch 40/40" not in finished.stdout


EARLY = """
import os, signal, sys
import swinexp.run as run
plain = run._run
def early(*arguments):
    os.kill(os.getpid(), signal.SIGUSR1)
    return plain(*arguments)
run._run = early
run.cli()
"""


def test_sigusr1_before_training_begins_is_no_reason_to_end(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", EARLY, *SMALL, "wandb=disabled", "trainer.epochs=1", "name=early"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs/runs/early/summary.json").exists()


@pytest.mark.slow
def test_a_killed_quickstart_ends_in_the_same_figures(tmp_path: Path, command: Command) -> None:
    quickstart = ["experiment=quickstart", "trainer.device=cpu"]
    done = command(*quickstart, "name=unbroken")
    assert done.returncode == 0, done.stderr
    unbroken = json.loads((tmp_path / "outputs/runs/unbroken/summary.json").read_text())
    assert unbroken["val/accuracy"] >= 0.97
    assert unbroken["seconds"] < 60

    steps = torch.load("outputs/runs/unbroken/checkpoints/last.pt", weights_only=True)["step"] // 40
    for epoch in (7, 23):  # killed twice, in the middle of an epoch
        stopped(signal.SIGKILL, epoch * steps + steps // 2, *quickstart, "name=killed")
    done = command(*quickstart, "name=killed")
    assert done.returncode == 0, done.stderr
    killed = json.loads((tmp_path / "outputs/runs/killed/summary.json").read_text())
    for key in ("val/loss", "val/accuracy", "train/loss", "test/loss", "test/accuracy", "best/epoch"):
        assert killed[key] == unbroken[key], key


@pytest.mark.slow
def test_a_multirun_is_four_runs_in_four_folders_and_one_group(tmp_path: Path, command: Command) -> None:
    arguments = [
        "-m",
        "model=nano,tiny",
        "optimizer=adamw,sgd",
        "trainer.epochs=1",
        "trainer.limit_train=128",
        "wandb=offline",
    ]
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    folders = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == ["0", "1", "2", "3"]
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in folders]
    chosen = [(config["model"]["depths"], config["optimizer"]["name"]) for config in configs]
    assert chosen == [([2, 2], "adamw"), ([2, 2], "sgd"), ([2, 4, 2], "adamw"), ([2, 4, 2], "sgd")]
    offline = sorted((tmp_path / "outputs" / "wandb").glob("offline-run-*"))
    assert len(offline) == 4
    ids = {json.loads((folder / "summary.json").read_text())["wandb"]["id"] for folder in folders}
    assert ids == {path.name.rpartition("-")[2] for path in offline}
    wandb = Path(sys.executable).parent / "wandb"
    for path in offline:
        records = subprocess.run(
            [wandb, "leet", "inspect", "--json", path], capture_output=True, text=True, check=True
        ).stdout
        (run,) = [json.loads(line)["run"] for line in records.splitlines() if json.loads(line)["type"] == "run"]
        assert run["run_group"] == sweep.name
    again = command(*arguments)
    assert again.returncode == 0
    assert again.stdout.count("already finished") == 4
    search = command(*arguments, "hydra/sweeper=swinexp_optuna", "hydra/sweeper/sampler=grid")
    assert search.returncode == 2
    assert "holds the runs of a multirun, and no study. Type hydra.sweeper.study_name=ANOTHER_NAME" in search.stderr
    assert not (sweep / "study.db").exists()
    (sweep / "study.json").touch()
    assert command(*arguments).returncode == 2


def test_a_sweep_file_is_one_command(command: Command, tmp_path: Path) -> None:
    done = command("sweep=sizes", "model=nano", "wandb=disabled", "trainer.epochs=1", "trainer.limit_train=128")
    assert done.returncode == 0, done.stderr
    assert "Launching 2 jobs" in done.stdout
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert sweep.name.startswith("sizes,model=nano")
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0", "1"]


def test_main_returns_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    from swinexp import run

    returned = []
    train = run._run
    monkeypatch.setattr(run, "_run", lambda *arguments: returned.append(train(*arguments)) or returned[-1])
    monkeypatch.setattr(
        sys, "argv", ["swinexp", *SMALL, "wandb=disabled", "trainer.epochs=1", "objective=val/loss", "name=one"]
    )
    run.cli()
    assert returned == [json.loads(Path("outputs/runs/one/summary.json").read_text())["val/loss"]]


@pytest.mark.slow
def test_a_wheel_works_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    subprocess.run(["git", "-C", str(ROOT), "checkout-index", "-a", f"--prefix={source}/"], check=True)
    for name in ("conf", "swinexp", "sweeps", "setup.cfg", "pyproject.toml"):  # as it is, not as it was added last
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    packed = {str(path.relative_to(site / "swinexp" / "conf")) for path in (site / "swinexp" / "conf").rglob("*.yaml")}
    assert packed == {str(path.relative_to(ROOT / "conf")) for path in (ROOT / "conf").rglob("*.yaml")}
    monkeypatch.setenv("PYTHONPATH", str(site))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "swinexp.run", *SMALL, "wandb=disabled", "trainer.epochs=1"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "validation accuracy" in done.stdout
    assert (elsewhere / "outputs" / "runs").is_dir()
    assert "swinexp = swinexp.run:cli" in next(site.glob("*.dist-info/entry_points.txt")).read_text()


def test_an_interrupt_while_a_command_is_imported_is_one_line() -> None:
    code = "import os, signal, sys; import swinexp; os.kill(os.getpid(), signal.SIGINT); print('on')"
    for first, typed, told in (
        ("-m", ["python", "-m", "swinexp.track.sync"], "swinexp: interrupted\n"),
        ("bin/swinexp", ["python", "bin/swinexp"], "swinexp: interrupted\n"),
        ("notebook", ["python", "notebook"], None),
        ("-m", ["python", "-m", "theirs.train"], None),  # a package that imports this one
    ):
        heard = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also behind an &
        given = f"{heard}; sys.argv, sys.orig_argv = [{first!r}], {typed!r}; {code}"
        done = subprocess.run([sys.executable, "-c", given], capture_output=True, text=True, check=False, timeout=60)
        assert done.stdout == ""
        assert done.stderr == told if told else "KeyboardInterrupt" in done.stderr  # who only imports it, has Python's


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGTERM, 143, "swinexp: stopped by SIGTERM\n"), (signal.SIGINT, 130, "swinexp: interrupted\n")],
)
def test_a_signal_before_training_is_told_and_leaves_nothing(
    number: signal.Signals, code: int, line: str,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["swinexp", "name=early"])
    monkeypatch.setattr(swinexp.run, "_run", lambda *_: signal.raise_signal(number))
    before = signal.signal(signal.SIGINT, swinexp.nothing_begun)  # as a command has it, also behind an &
    with pytest.raises(SystemExit) as stop:
        swinexp.run.cli()
    signal.signal(signal.SIGINT, before)
    assert stop.value.code == code
    assert capsys.readouterr().err == line
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert list(tmp_path.iterdir()) == []


def test_a_sigterm_within_an_import_has_its_own_exit_code(tmp_path: Path) -> None:
    code = 'import signal, swinexp.run as r\nwith r.reported([]):\n    exec("signal.raise_signal(signal.SIGTERM)")\n'
    (tmp_path / "m.py").write_text(code)
    done = subprocess.run([sys.executable, "-m", "m"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "swinexp: stopped by SIGTERM\n")
