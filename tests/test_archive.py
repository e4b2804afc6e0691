from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from swinexp.archive import check_data, fill, reloaded, requested, some_run, weights
from swinexp.folder import LATER
from swinexp.mistake import Mistake
from swinexp.train import build_model, prepare


def test_a_run_comes_back_on_a_device_that_is_there(finished: Path) -> None:
    assert reloaded(finished).trainer.device == "cpu"
    assert reloaded(finished, seed=5).seed == 5
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["trainer"]["device"] = "cuda:99"
    (finished / "config.yaml").write_text(yaml.safe_dump(config))
    assert reloaded(finished).trainer.device == "auto"


def test_a_run_from_before_a_key_of_wandb_comes_back(finished: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["wandb"] = {"mode": "online", "project": "p", "tags": [], "images": True}
    (finished / "config.yaml").write_text(yaml.safe_dump(config))
    assert reloaded(finished).wandb.mode == "disabled"


def test_a_run_from_before_a_key_of_the_network_comes_back(finished: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    for key in LATER:
        group, _, name = key.partition(".")
        del config[group][name]
    (finished / "config.yaml").write_text(yaml.safe_dump(config))
    run = reloaded(finished)
    assert {run.model.init, run.attention.init, run.patch.init} == {"normal"}
    fill(build_model(run, 10), weights(finished, "last")[0], finished)


def test_weights_fit_or_are_refused(finished: Path) -> None:
    kept, epoch = weights(finished, "last")
    assert epoch == 2
    model = build_model(reloaded(finished), 10)
    fill(model, kept, finished)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    last = finished / "checkpoints" / "last.pt"
    saved = torch.load(last, weights_only=True)
    assert torch.equal(weights(finished, "ema")[0]["head.weight"], saved["ema"]["head.weight"])
    torch.save({**saved, "ema": {"head.bias": torch.ones(10)}}, last)  # a count is not averaged
    averaged, _ = weights(finished, "ema")
    assert torch.equal(averaged["head.bias"], torch.ones(10))
    assert torch.equal(averaged["head.weight"], kept["head.weight"])
    with pytest.raises(
        Mistake, match=r"^run=outputs/runs/done: its weights do not fit its network \(size mismatch.*\)\. Train"
    ):
        fill(build_model(reloaded(finished), 9), kept, finished)


@pytest.mark.parametrize(
    ("damage", "reason"), [("version", "its version is 99"), ("bit", "the checksum of .* is wrong")]
)
def test_a_checkpoint_that_a_run_would_not_go_on_from_is_refused(finished: Path, damage: str, reason: str) -> None:
    last = finished / "checkpoints" / "last.pt"
    saved = torch.load(last, weights_only=True)
    if damage == "version":
        torch.save({**saved, "version": 99}, last)
    else:
        content = bytearray(last.read_bytes())
        weight = saved["model"]["head.weight"].numpy().tobytes()
        content[content.index(weight)] ^= 1
        last.write_bytes(content)
        torch.load(last, weights_only=True)  # torch does not notice
    with pytest.raises(
        Mistake, match=rf"^run=outputs/runs/done: .*last.pt cannot be read \({reason}.*\)\. Type checkpoint=best"
    ):
        weights(finished, "last")


def test_a_folder_without_its_key_is_told_the_key(finished: Path) -> None:
    from swinexp.evaluate import Request

    with pytest.raises(Mistake, match=rf"^{finished}: KEY=VALUE is wanted. Type run={finished}$"):
        requested(Request, [str(finished)])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data["images"]["train"].__setitem__(0, 1), "its data had 181 train images and have 200 now"),
        (lambda data: data["images"].update(val=data["images"]["val"][::-1]), "its data have other val images of some"),
        (lambda data: data["mean"].__setitem__(0, data["mean"][0] + 1e-3), "the images of its data have changed"),
        (lambda data: data["classes"].__setitem__(0, "zero"), r"the classes of its data have changed \(0, zero\)"),
        (lambda data: data["mean"].__setitem__(0, data["mean"][0] + 1e-6), None),  # another decoder
        (lambda data: data.pop("images"), None),  # a run from before
    ],
)
def test_data_that_are_not_the_runs_are_refused(
    change: Callable[[dict[str, Any]], object], told: str | None, finished: Path
) -> None:
    run = reloaded(finished)
    _, dataset = prepare(run)
    kept = json.loads((finished / "data.json").read_text())
    change(kept)
    (finished / "data.json").write_text(json.dumps(kept))
    if told is None:
        check_data(finished, dataset, "")
        return
    with pytest.raises(Mistake, match=rf"^{finished}: {told}"):
        check_data(finished, dataset, "Train it again")


def test_of_a_sweep_its_best_trial_is_suggested() -> None:
    for trial in ("0", "1/seed0", "1/seed1", "2"):
        place = Path("outputs/sweeps/mine", trial, "checkpoints")
        place.mkdir(parents=True)
        (place / "last.pt").touch()
        os.utime(place / "last.pt", (int(trial[0]), int(trial[0])))
    assert some_run(Path("outputs/sweeps/mine")) == Path("outputs/sweeps/mine/2")
    for trial, run in ((1, "1/seed0"), (0, "0")):
        head = f"# The best trial of study mine: trial {trial}, 0.9 ± 0.1. To run it again:\n"
        Path("outputs/sweeps/mine/best.yaml").write_text(head)
        assert some_run(Path("outputs/sweeps/mine")) == Path("outputs/sweeps/mine", run)


def test_what_is_suggested_is_near_to_what_was_typed() -> None:
    for age, name in enumerate(("runs/again1", "runs/x", "sweeps/s1/3", "sweeps/s1/8", "runs/newest")):
        last = Path("outputs", name, "checkpoints", "last.pt")
        last.parent.mkdir(parents=True)
        last.touch()
        os.utime(last, (age, age))
    near = {
        "outputs/runs/agin1": "runs/again1",
        "again1": "runs/again1",
        "outputs/runs/x/config.yaml": "runs/x",
        "outputs/sweeps/s1": "sweeps/s1/8",
        "elsewhere": "runs/newest",
    }
    for typed, meant in near.items():
        assert some_run(Path(typed)) == Path("outputs", meant), typed
    assert some_run() == Path("outputs/runs/newest")
