"""What W&B gets of a run that is online, by a server that remembers it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import SMALL, Command
from tests.wandb_server import Server


@pytest.mark.slow
def test_a_run_online_is_at_the_server(wandb_server: Server, command: Command) -> None:
    done = command(*SMALL, "name=one", "wandb.tags=[first]", "wandb.notes=why", "model=nano")
    assert done.returncode == 0, done.stderr
    run = wandb_server.run()
    summary = json.loads(Path("outputs/runs/one/summary.json").read_text())
    rows = [json.loads(line) for line in Path("outputs/runs/one/metrics.jsonl").read_text().splitlines()]
    assert f"W&B: {wandb_server.url}/me/swinexp/runs/{run.id}" in done.stdout
    assert (run.id, run.state, run.exit_code) == (summary["wandb"]["id"], "finished", 0)
    assert (run.name, run.project, run.group, run.job_type) == ("one", "swinexp", None, "train")
    assert (run.tags, run.notes) == (["first", "model=nano"], "why")
    assert run.config["model"]["depths"] == [1, 2]
    assert run.config["environment"]["git"] == summary["git"]
    assert [{key: row[key] for key in rows[0]} for row in run.history] == rows
    for key in ("val/accuracy", "best/val/loss", "parameters", "flops", "train/images_per_second", "state"):
        assert run.summary[key] == summary[key], key
