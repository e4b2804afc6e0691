from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from PIL import Image

from swinexp.sheet import draw_sheet, spread
from swinexp.train import prepare
from tests.conftest import SMALL, Command, small_run
from tests.test_track import inspect


def test_images_come_from_all_classes_in_turn() -> None:
    labels = torch.tensor([2, 2, 2, 0, 1, 0, 2])
    assert spread(labels, 5).tolist() == [3, 4, 0, 5, 1]
    assert sorted(spread(labels, 100).tolist()) == list(range(7))


def test_the_sheet_shows_what_the_augmentation_does(tmp_path: Path) -> None:
    drawn = {}
    for name, overrides in {
        "none": ["augmentation=none"],
        "again": ["augmentation=none"],
        "trivial": ["augmentation=trivial", "augmentation.crop=1"],
        "reference": ["augmentation=reference", "augmentation.crop=1"],
        "in_turn": ["augmentation=none", "augmentation.flip=true", "augmentation.flip_in_turn=true"],
    }.items():
        run = small_run(*overrides)
        draw_sheet(run, prepare(run)[1], tmp_path / f"{name}.png")
        drawn[name] = imread(tmp_path / f"{name}.png")
    assert (drawn["none"] == drawn["again"]).all()
    for name in ("trivial", "reference", "in_turn"):
        assert drawn[name].shape != drawn["none"].shape or (drawn[name] != drawn["none"]).mean() > 0.02, name


def test_the_command_prints_what_the_data_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def command(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["swinexp.data", *arguments])
        runpy.run_module("swinexp.data", run_name="__main__")

    command("augmentation=basic", "data.image_size=16", "augmentation.crop=2")
    out = capsys.readouterr().out
    assert "10 classes, images of 16×16 pixels" in out
    rows = [line.replace("│", " ").split() for line in out.splitlines() if "│" in line]
    assert ["all", "1,150", "288", "359"] in rows
    assert sum(int(row[1]) for row in rows if row[0].isdigit()) == 1150
    assert "mean of the training pixels: 0." in out
    place = out.splitlines()[-1]
    assert place == "outputs/data/augmentation=basic,augmentation.crop=2,data.image_size=16.png"
    assert imread(place)[..., :3].std() > 0.1
    command("data.image_size=16", "augmentation.crop=2", "--out=sheet.png")
    assert (tmp_path / "sheet.png").exists()
    command("data.image_size=16", "augmentation.crop=2", "--out=new/sheet")
    assert capsys.readouterr().out.splitlines()[-1] == "new/sheet.png"
    assert (tmp_path / "new" / "sheet.png").exists()
    for typed, told in {
        "x.txt": "pictures end in one of ",
        "sheet.png/x.png": "sheet.png is no folder to write in",
    }.items():
        with pytest.raises(SystemExit) as stop:
            command(f"--out={typed}")
        assert stop.value.code == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"swinexp: --out={typed}: {told}")
        assert said.out == ""
    for typed, instead in {"--ou=x.png": "--out=x.png", "model=nano,tiny": "model=nano"}.items():
        with pytest.raises(SystemExit) as stop:
            command(typed)
        assert stop.value.code == 2
        assert capsys.readouterr().err.endswith(f". Type {instead}\n")
    for name in ("a/x.png", "a/y.png", "b/x.png", "b/y.png"):  # and no folder test/
        (tmp_path / "mine" / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "mine" / "train" / name)
    command("data=image_folder", "data.root=mine", "data.image_size=8", "augmentation.crop=0", "data.val_fraction=0.5")
    head = capsys.readouterr().out
    assert "validation" in head
    assert "test" not in head
    with pytest.raises(SystemExit) as stop:
        command("augmentation=trival")
    assert stop.value.code == 2
    assert "Type augmentation=trivial" in capsys.readouterr().err


def test_a_run_shows_its_sheet_in_wandb_once(command: Command) -> None:
    arguments = (*SMALL, "wandb=offline", "wandb.images=true", "trainer.epochs=1", "test=true", "name=shown")
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    folder = Path("outputs/runs/shown")
    assert (folder / "pictures" / "augmentation.png").exists()
    (sent,) = Path("outputs/wandb").glob("offline-run-*/files/media/images/augmentation_0_*.png")
    assert sent.read_bytes() == (folder / "pictures" / "augmentation.png").read_bytes()
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 1

    offline = sent.parents[3]
    _, (first, epoch, last) = inspect(offline)
    assert "augmentation._type" in first
    assert epoch["epoch"] == 1
    assert {"confusion._type", "attention._type", "errors._type"} <= set(last)
    for name in ("confusion", "attention"):
        (shown,) = offline.glob(f"files/media/images/{name}_*.png")
        assert shown.read_bytes() == (folder / "pictures" / f"{name}.png").read_bytes()
    (table,) = offline.glob("files/media/table/errors_*.table.json")
    kept = json.loads(table.read_text())
    assert kept["columns"] == ["image", "label", "prediction", "confidence", "loss"]
    losses = [each[4] for each in kept["data"]]
    assert len(losses) == 32  # of a network that has hardly been trained
    assert losses == sorted(losses, reverse=True)
    assert all(each[1] != each[2] for each in kept["data"])
