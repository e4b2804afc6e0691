from __future__ import annotations

import re
from pathlib import Path

import pytest

from swinexp import describe
from swinexp.config import typed
from swinexp.describe import Cost, count, lr_curve
from swinexp.mistake import Mistake
from swinexp.run import compose
from swinexp.train import build_model
from tests.conftest import SMALL, config, small_run

REFERENCE = ("model=cifar", "window=w4", "patch=p2")


def test_the_reference_network_costs_what_is_published() -> None:
    run = typed(config(*REFERENCE))
    model = build_model(run, classes=10)
    costs = count(model, run.data.image_size)
    assert costs[""] == Cost(7_048_612, 242_759_424, 1_296_394)
    assert len(list(model.parameters())) == 170
    parts = {name: (costs[name].parameters, costs[name].flops) for name in ("patch_embed", "layers", "norm", "head")}
    assert parts == {
        "patch_embed": (1_440, 417_792),
        "layers": (7_042_554, 242_307_072),
        "norm": (768, 30_720),
        "head": (3_850, 3_840),
    }


@pytest.mark.parametrize(
    ("override", "parameters", "flops"),
    [
        ("patch=p4", 7_050_148, 60_766_464),
        ("patch=p1", 7_047_748, 970_141_440),
        ("window=w2", 7_045_012, 239_220_480),
        ("window=w8", 7_056_004, 254_555_904),
        ("model.mlp_ratio=4", 10_372_132, 356_005_632),
    ],
)
def test_variants_cost_what_is_published(override: str, parameters: int, flops: int) -> None:
    run = typed(config(*REFERENCE, override))
    cost = count(build_model(run, classes=10), 32)[""]
    assert (cost.parameters, cost.flops) == (parameters, flops)


def test_the_parts_add_up() -> None:
    costs = count(build_model(small_run(), classes=10), 16)
    for parent in ("", "layers", "layers.0", "layers.0.blocks.0"):
        children = [name for name in costs if name and name.rpartition(".")[0] == parent]
        for figure in ("parameters", "flops", "activations"):
            assert sum(getattr(costs[name], figure) for name in children) == getattr(costs[parent], figure), parent


def test_the_command_prints_table_and_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describe.throughput, "__defaults__", (0.05,))
    describe.main([*SMALL, "--classes=12", "optimizer=muon", "optimizer.adamw_lr=3e-4"])
    out = capsys.readouterr().out
    whole = count(build_model(small_run(), classes=12), 16)[""]
    assert f"{whole.parameters:,}" in out
    assert f"{whole.flops:,}" in out
    assert "layers.1.blocks.1" in out
    # of the three blocks' matrices and the merge's; the patch embedding's and the head's; all that is not decayed
    assert re.search(r"muon, decayed +│ +13 │ +[\d,]+ │ +0\.001 │ +0\.05 ", out)
    assert re.search(r"adamw, decayed +│ +2 │ +[\d,]+ │ +0\.0003 │ +0\.05 ", out)
    assert re.search(r"adamw, not decayed +│ +\d+ │ +[\d,]+ │ +0\.0003 │ +0 ", out)
    assert "optimizer.lr of muon over the run, schedule cosine" in out
    assert "\n".join(lr_curve(small_run("optimizer=muon"))) in out
    speeds = re.search(r"images/s at batch 50 on .*: training ([\d,]+), inference ([\d,]+)", out)
    assert speeds
    assert all(int(speed.replace(",", "")) > 10 for speed in speeds.groups())


def test_the_curve_is_the_schedule_over_the_whole_run() -> None:
    run = small_run("schedule=linear", "schedule.warmup_epochs=2", "trainer.epochs=4", "optimizer.lr=2e-3")
    assert lr_curve(run, width=8, height=2) == [
        "   0.002 ┤  ▂▆▆▂",
        "   0.001 ┤▂▆████▆▂",
        "       0 └────────",
        "   epoch  0      4",
    ]


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    mistakes = {
        "model=tinny": "model=tiny",
        "window.size=5": "window.size=4",
        "--classes=ten": "--classes=10",
        "--class=1000": "--classes=1000",
        "--clases": "--classes=N",
        "--hepl": "--help",
        "--epochs=3": "trainer.epochs=3, or --help",
        "model=nano,tiny": "model=nano",
        "optimizer.betas=[0.9,0.99],[0.9,0.95]": "'optimizer.betas=[0.9,0.99]'",
        "optimizer.lr=interval(0.1,1)": "optimizer.lr=VALUE",
        "data.root=/tmp/my images, 2": "\"data.root='/tmp/my images, 2'\"",
    }
    for argument, instead in mistakes.items():
        with pytest.raises(SystemExit) as stop:
            describe.main([argument])
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"Type {instead}")


@pytest.mark.parametrize("flags", [["--config-dir", "my"], ["--config-dir=my"], ["-cd", "my"]])
def test_it_reads_files_that_a_run_reads(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "own.yaml").write_text("# @package _global_\noptimizer: {lr: 0.125}\n")
    (tmp_path / "my" / "best.yaml").write_text("defaults:\n- config\n- _self_\nseed: 7\n")
    assert typed(compose([*flags, "experiment=own"])).optimizer.lr == 0.125
    run = typed(compose([*flags, "--config-name", "best", "model=tiny"]))
    assert (run.seed, run.model.depths) == (7, typed(compose(["model=tiny"])).model.depths)
    assert run.name == "model=tiny"
    (tmp_path / "my" / "model").mkdir()
    (tmp_path / "my" / "model" / "tiny.yaml").write_text("dim: 8\n")
    assert typed(compose([*flags, "--config-name", "best", "model=tiny"])).model.dim == run.model.dim  # ours is first
    (tmp_path / "my" / "best.yaml").write_text("defaults:\n- config\n- _self_\nname: best-of-all\n")
    assert typed(compose([*flags, "--config-name", "best", "model=tiny"])).name == "best-of-all"
    (tmp_path / "my" / "study.json").write_text("{}")  # a sweep's
    with pytest.raises(Mistake, match=r"^--config-dir=my: the best\.yaml there is read where it is named"):
        compose([*flags, "model=tiny"])
    assert typed(compose([*flags, "--config-name=config"])).name != "best-of-all"
    with pytest.raises(Mistake, match=r"^--config-dir/-cd: expected one argument\. Type --config-dir=FOLDER"):
        compose(["--config-dir"])
    with pytest.raises(Mistake, match=r"^--config-dir=nowhere: there is no such folder\. Type that of a sweep"):
        compose(["--config-dir", "nowhere"])
