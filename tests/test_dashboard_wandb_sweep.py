"""Our sweeps as W&B's own: what its agents type is a run of ours, and what it cannot express is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from swinexp import SWEEPS
from swinexp.config import typed
from swinexp.dashboard.wandb_sweep import converted
from swinexp.mistake import Mistake
from swinexp.run import compose
from tests.conftest import SMALL
from tests.wandb_server import Server

AD_HOC = ("hydra/sweeper=swinexp_optuna", "experiment=quickstart")
REFUSED = {
    "levers": "hydra/sweeper/sampler=ablation: W&B's sweeps have no single changes. Type hydra/sweeper/sampler=grid",
    "optimizers": "hydra.sweeper.conditional=[optimizer]: W&B's sweeps have no parameters that depend on others. "
    "Type hydra.sweeper.conditional=[], and what is to be varied in any case",
    "pareto": "objective=[val/accuracy,flops]: W&B's sweeps have one objective. Type objective=val/accuracy",
    "record": "hydra.sweeper.conditional=[optimizer]: W&B's sweeps have no parameters that depend on others. "
    "Type hydra.sweeper.conditional=[], and what is to be varied in any case",
    "window_patch": "hydra.sweeper.constraints=[parameters <= 7.2e6]: W&B's sweeps have no constraints. "
    "Type hydra.sweeper.constraints=[]",
}


def whole(*arguments: str) -> dict[str, Any]:
    found = yaml.safe_load(converted(arguments))
    assert isinstance(found, dict)
    return found


def typed_by_an_agent(sweep: dict[str, Any], point: dict[str, Any]) -> list[str]:
    """The overrides of the run that W&B's agent starts for a point, by its own code."""
    given = create_sweep_command_args({"args": {key: {"value": value} for key, value in point.items()}})
    assert sweep["command"][:4] == ["${env}", "${interpreter}", "-m", "${program}"]
    assert sweep["command"][-2:] == ["hydra.mode=RUN", "${args_no_hyphens}"]
    return [*sweep["command"][4:-2], *given["args_no_hyphens"]]


def ends(parameter: dict[str, Any]) -> list[Any]:
    return parameter["values"] if "values" in parameter else [parameter["min"], parameter["max"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in SWEEPS.glob("*.yaml")))
def test_every_sweep_is_one_of_wandbs_or_says_what_that_lacks(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(Mistake) as told:
            converted([f"sweep={name}"])
        assert str(told.value) == REFUSED[name]
        return
    sweep = whole(f"sweep={name}")
    assert (sweep["name"], sweep["program"]) == (name, "swinexp.run")
    assert sweep["metric"] == {"name": "val/accuracy", "goal": "maximize"}
    for end in (0, -1):
        point = {key: ends(parameter)[end] for key, parameter in sweep["parameters"].items()}
        assert typed(compose(typed_by_an_agent(sweep, point))).objectives == ["val/accuracy"]


def test_lr_wd_is_what_its_file_says() -> None:
    text = converted(["sweep=lr_wd", "data=cifar100", "hydra.sweeper.n_trials=9", "wandb.entity=team"])
    sweep = yaml.safe_load(text)
    assert sweep["command"][4:-2] == ["sweep=lr_wd", "data=cifar100", "wandb.entity=team"]
    del sweep["command"]
    assert sweep == {
        "name": "lr_wd,data=cifar100",
        "project": "swinexp",
        "program": "swinexp.run",
        "method": "bayes",
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "entity": "team",
        "run_cap": 9,
        "early_terminate": {"type": "hyperband", "min_iter": 4, "eta": 3},
        "parameters": {
            "optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
            "optimizer.weight_decay": {"distribution": "log_uniform_values", "min": 5e-3, "max": 0.5},
        },
    }
    (left_out,) = re.findall("^# Left out: (.+)$", text, re.MULTILINE)
    assert left_out.startswith("hydra.sweeper.enqueue=")


@pytest.mark.parametrize(
    ("typed_here", "expected"),
    [
        ("optimizer.lr=interval(1e-4,1e-2)", {"distribution": "uniform", "min": 1e-4, "max": 1e-2}),
        ("trainer.epochs=tag(int,interval(6,9))", {"distribution": "int_uniform", "min": 6, "max": 9}),
        ("trainer.epochs=range(6,12,3)", {"values": [6, 9, 12]}),
        ("trainer.limit_train=null,100", {"values": ["null", 100]}),
        ("data.mirror=true,false", {"values": [True, False]}),
        ("optimizer.betas=[0.9,0.99],[0.8,0.9]", {"values": ["[0.9,0.99]", "[0.8,0.9]"]}),
    ],
)
def test_what_is_tried_is_what_was_typed(typed_here: str, expected: dict[str, Any]) -> None:
    sweep = whole(*AD_HOC, typed_here)
    ((key, parameter),) = sweep["parameters"].items()
    assert parameter == expected
    for value in ends(parameter):
        group, _, name = key.partition(".")
        found = getattr(getattr(typed(compose(typed_by_an_agent(sweep, {key: value}))), group), name)
        assert found == (yaml.safe_load(value) if isinstance(value, str) else value)


@pytest.mark.parametrize(
    ("arguments", "method"),
    [
        (["hydra/sweeper/sampler=random"], "random"),
        (["hydra/sweeper/sampler=qmc"], "random"),
        (["hydra/sweeper/sampler=tpe"], "bayes"),
        (["hydra/sweeper/sampler=grid"], "grid"),
    ],
)
def test_samplers_are_wandbs_methods(arguments: list[str], method: str) -> None:
    assert whole(*AD_HOC, *arguments, "window=w2,w4")["method"] == method


def test_seeds_are_a_parameter_of_a_grid() -> None:
    seeds = whole(*AD_HOC, "hydra/sweeper/sampler=grid", "hydra.sweeper.seeds=2", "window=w2,w4")["parameters"]["seed"]
    assert seeds == {"values": [0, 1]}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["hydra.sweeper.seeds=2", "window=w2,w4"], "hydra.sweeper.seeds=2: W&B's sweeps have one run for each point"),
        (
            ["trainer.epochs=tag(log,int,interval(6,64))"],
            "trainer.epochs=tag(log,int,interval(6,64)): W&B's sweeps have no whole numbers on a logarithmic scale",
        ),
        (
            ["hydra/sweeper/sampler=grid", "optimizer.lr=interval(0,1)"],
            "optimizer.lr=interval(0,1): an interval has no",
        ),
        (
            ["hydra/sweeper/sampler=ablation", "window=w2,w4"],
            "hydra/sweeper/sampler=ablation: W&B's sweeps have no single changes",
        ),
        (["experiment=quickstart"], "hydra.sweeper.params={}: nothing is varied"),
        (["window=w2,w3"], "window=w3: no such option"),
    ],
)
def test_what_wandb_cannot_do_is_refused(arguments: list[str], line: str) -> None:
    with pytest.raises(Mistake) as told:
        converted([*AD_HOC, *arguments])
    assert str(told.value).startswith(line)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.slow
def test_wandbs_own_agent_trains_its_points(wandb_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # where agents find `python`
    command = [sys.executable, "-m", "swinexp.dashboard", "export=wandb_sweep"]
    with Path("sweep.yaml").open("w") as file:
        arguments = ["sweep=quickstart", *SMALL, "trainer.epochs=2", "window=w2,w4"]
        subprocess.run([*command, *arguments], check=True, stdout=file, timeout=120)
    wandb = str(Path(sys.executable).parent / "wandb")
    made = subprocess.run([wandb, "sweep", "sweep.yaml"], capture_output=True, text=True, check=True, timeout=120)
    assert "wandb agent me/swinexp/sweep0" in made.stderr
    (sweep,) = wandb_server.sweeps.values()
    keys = ["optimizer.lr", "optimizer.weight_decay", "trainer.label_smoothing", "window"]
    assert sorted(sweep["parameters"]) == keys
    points = {(1e-3, 0.01, 0, "w2"), (0.002, 0.1, 0.1, "w4")}  # 0: a server's JSON has no 0.0
    wandb_server.points = [dict(zip(keys, values, strict=True)) for values in points]
    agent = [wandb, "agent", "--count", "2", "me/swinexp/sweep0"]
    done = subprocess.run(agent, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert len(wandb_server.runs) == 2, done.stdout + done.stderr
    for run in wandb_server.runs.values():
        assert (run.state, run.summary["state"]) == ("finished", "complete")
        assert run.history[-1][sweep["metric"]["name"]] == run.summary["val/accuracy"]
        assert run.config["optimizer"]["lr"] == run.config["optimizer.lr"]
        # A group that a sweep of W&B's varies is its option there; the values are in the run's folder.
        assert run.config["window"] == run.config["options"]["window"]
    folders = sorted(Path("outputs/runs").iterdir())
    trained = set()
    for folder in folders:
        has = yaml.safe_load((folder / "config.yaml").read_text())
        rates = has["optimizer"]["lr"], has["optimizer"]["weight_decay"], has["trainer"]["label_smoothing"]
        trained.add((*rates, f"w{has['window']['size']}"))
    assert trained == points
    ids = {json.loads((folder / "summary.json").read_text())["wandb"]["id"] for folder in folders}
    assert ids == {*wandb_server.runs}
