from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from swinexp import evaluate
from swinexp.archive import reloaded
from swinexp.data import Data, Split, sources
from swinexp.evaluate import restored, table
from swinexp.reading import Reading, averaged, calibration_error, outputs, read
from swinexp.run import cli
from tests.conftest import SMALL


def record(folder: Path, name: str) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads((folder / "evaluation" / f"{name}.json").read_text())
    return whole


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        evaluate.main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_figures_are_those_of_the_run_to_the_last_bit(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([f"run={finished}"])
    out = capsys.readouterr().out
    summary = json.loads((finished / "summary.json").read_text())
    for split, images in (("val", 288), ("test", 359)):
        there = record(finished, f"{split}-last")
        assert (there["run"], there["checkpoint"], there["epoch"], there["images"]) == ("done", "last", 2, images)
        assert there["classes"] == list("0123456789")
        for key in (f"{split}/loss", f"{split}/accuracy"):
            assert there[key] == summary[key]
        for key in (f"{split}/loss", f"{split}/accuracy", f"{split}/top5", f"{split}/ece"):
            assert f"{key} {there[key]:.4f}" in out
        assert sum(map(sum, there["confusion"])) == images
        for label, row in enumerate(there["confusion"]):
            assert there["accuracy_per_class"][str(label)] == row[label] / sum(row)
    rows = [line.replace("│", " ").split() for line in out.splitlines() if "│" in line]
    assert rows[3] == [
        "3",
        *(f"{record(finished, f'{s}-last')['accuracy_per_class']['3']:.4f}" for s in ("val", "test")),
    ]
    assert {path.name for path in (finished / "evaluation").iterdir()} == {"val-last.json", "test-last.json"}


def test_the_test_set_is_read_when_the_run_has_or_when_asked(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    del summary["test/accuracy"]  # as of a run that was pruned
    (finished / "summary.json").write_text(json.dumps(summary))
    read_split = []

    def spy(data: Data, split: str) -> tuple[list[str], Split]:
        read_split.append(split)
        return sources.read(data, split)

    monkeypatch.setattr("swinexp.data.dataset.read", spy)
    for arguments, files in (
        ([], {"val-last.json"}),
        (["split=val", "checkpoint=last"], {"val-last.json"}),
        (["split=test"], {"val-last.json", "test-last.json"}),
    ):
        assert "test" not in read_split
        evaluate.main([f"run={finished}", *arguments])
        assert {path.name for path in (finished / "evaluation").iterdir()} == files
    assert "test" in read_split


def test_a_checkpoint_gives_the_weights_it_names(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for checkpoint, keys in (("best", ["val/accuracy", "val/loss"]), ("ema", ["val/accuracy", "test/loss"])):
        evaluate.main([f"run={finished}", f"checkpoint={checkpoint}"])
        for key in keys:
            there = record(finished, f"{key.partition('/')[0]}-{checkpoint}")
            assert there[f"{checkpoint}/{key}"] == summary[f"{checkpoint}/{key}"]
            assert key not in there
    assert summary["ema/val/loss"] != summary["val/loss"]

    last, best = (finished / "checkpoints" / f"{name}.pt" for name in ("last", "best"))
    saved = torch.load(last, weights_only=True)
    seven = {**saved["model"], "head.bias": 1e6 * torch.eye(10)[7]}
    best.unlink()  # which may be the same file
    torch.save({**saved, "model": seven, "history": saved["history"][:1]}, best)
    evaluate.main([f"run={finished}", "split=val", "checkpoint=best"])
    assert record(finished, "val-best")["epoch"] == 1
    assert [sum(column) for column in zip(*record(finished, "val-best")["confusion"], strict=True)][7] == 288


def test_flips_are_averaged_beside_the_plain_figures(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = reloaded(finished)
    model, dataset, _ = restored(run, finished, "last")
    plain, mirrored = (outputs(run, model, dataset.val, dataset, mirror) for mirror in (False, True))
    turned = outputs(run, model, Split(dataset.val.images.flip(-1), dataset.val.labels), dataset)
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(mirrored, turned, strict=True))
    for (mean, labels), (one, same), (other, _) in zip(averaged(plain, mirrored), plain, mirrored, strict=True):
        assert torch.equal(mean, torch.stack([one, other]).mean(dim=0))
        assert torch.equal(labels, same)

    evaluate.main([f"run={finished}", "split=val", "flips=true"])
    figures = read(averaged(plain, mirrored), "flips/val").figures
    assert figures["flips/val/loss"] != read(plain, "val").figures["val/loss"]
    assert record(finished, "val-last-flips").items() >= figures.items()
    assert "val/accuracy" in record(finished, "val-last")
    assert "val/accuracy" not in record(finished, "val-last-flips")
    assert f"flips/val/accuracy {figures['flips/val/accuracy']:.4f}" in capsys.readouterr().out


def test_calibration_error_by_hand() -> None:
    # One right at 0.9, one wrong at 0.82; in the bin from 9/15 to 10/15 one right at 0.62 and one wrong at 0.63.
    probabilities = torch.tensor([[0.9, 0.1], [0.82, 0.18], [0.62, 0.38], [0.37, 0.63]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 0])
    assert calibration_error(probabilities, labels) == pytest.approx((0.1 + 0.82 + abs(0.38 - 0.63)) / 4, abs=1e-12)
    sure = torch.eye(3, dtype=torch.float64)
    assert calibration_error(sure, torch.tensor([0, 1, 2])) == 0
    assert calibration_error(sure, torch.tensor([1, 2, 0])) == 1


def test_top5_wants_more_than_five_classes() -> None:
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1], [6.0, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6]])
    figures = read([(logits, torch.tensor([4, 5, 5]))], "val").figures
    assert (figures["val/accuracy"], figures["val/top5"]) == (1 / 3, 2 / 3)
    assert "val/top5" not in read([(logits[:, :5], torch.tensor([4, 0, 0]))], "val").figures


def test_the_confusion_matrix_has_labels_in_rows() -> None:
    logits = torch.eye(3)[[1, 1, 2, 0]]
    reading = read([(logits[:3], torch.tensor([0, 1, 1])), (logits[3:], torch.tensor([0]))], "val")
    assert reading.confusion.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert reading.per_class == [0.5, 0.5, None]
    assert reading.figures["val/accuracy"] == 0.5


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    reading = read([(torch.full((4, 6), torch.nan), torch.arange(4))], "val")
    with (tmp_path / "record.json").open("wb") as file:
        reading.write(file, {"run": "diverged"}, list("abcdef"))
    there = json.loads((tmp_path / "record.json").read_text())
    assert (there["run"], there["images"], there["val/loss"], there["val/ece"]) == ("diverged", 4, None, None)


def test_of_many_classes_the_table_shows_the_worst() -> None:
    confusion = torch.diag(torch.arange(1, 31))
    confusion[:, 0] = 30 - torch.arange(1, 31)  # of 30 images of each, class k gets k + 1 right
    confusion[0, 0] = 1
    confusion[0, 1] = 29
    confusion[7] = 0
    drawn = table([Reading("val", {}, confusion)], [f"class {k}" for k in range(30)])
    names, values = ([*column.cells] for column in drawn.columns)
    assert names == [f"class {k}" for k in range(21) if k != 7] + ["… 10 more"]
    assert values[:2] == ["0.0333", "0.0667"]


def test_pictures_lie_beside_the_figures(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from matplotlib.image import imread

    sizes = []
    for blocks in ("last", "all"):
        evaluate.main([f"run={finished}", "split=test", "pictures=attention", "images=3", f"blocks={blocks}"])
        assert capsys.readouterr().out.endswith("outputs/runs/done/evaluation/test-last-attention.png\n")
        picture = imread(finished / "evaluation" / "test-last-attention.png")
        assert picture[..., :3].std() > 0.1
        sizes.append(picture.shape)
    assert sizes[1][1] > sizes[0][1]

    evaluate.main([f"run={finished}", "split=val", "flips=true", "pictures=confusion,attention", "images=1"])
    names = [f"val-last{rest}" for rest in (".json", "-confusion.png", "-attention.png", "-flips.json")]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("outputs")]
    assert printed == [f"outputs/runs/done/evaluation/{name}" for name in [*names, "val-last-flips-confusion.png"]]
    assert imread(finished / "evaluation" / "val-last-confusion.png")[..., :3].std() > 0.1


def test_mistakes_about_a_run_are_one_line(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = finished / "checkpoints" / "last.pt"
    assert refused(["run=outputs/runs/dne"], capsys) == (
        "swinexp: run=outputs/runs/dne: there is no run with a checkpoint. Type run=outputs/runs/done"
    )
    best = finished / "checkpoints" / "best.pt"
    best.unlink()
    assert refused([f"run={finished}", "checkpoint=best"], capsys) == (
        f"swinexp: checkpoint=best: there is no {best}. Type checkpoint=last"
    )
    torch.save({**torch.load(last, weights_only=True), "ema": None}, last)
    assert refused([f"run={finished}", "checkpoint=ema"], capsys) == (
        f"swinexp: checkpoint=ema: {last} holds no average of the weights. Type checkpoint=last"
    )
    (finished / "evaluation").write_text("in the way")
    assert refused([f"run={finished}", "split=val"], capsys).startswith(
        f"swinexp: {finished}/evaluation/val-last.json: cannot be written ("
    )
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["data"]["mirror"] = False
    (finished / "config.yaml").write_text(yaml.safe_dump(config))
    assert refused([f"run={finished}", "flips=true"], capsys) == (
        "swinexp: flips=true: a mirrored image of digits is another one (data.mirror=false). Type flips=false"
    )
    data = json.loads((finished / "data.json").read_text())
    (finished / "data.json").write_text(json.dumps({**data, "classes": [*"0123456789X"]}))
    assert refused([f"run={finished}"], capsys) == (
        f"swinexp: {finished}: the classes of its data have changed (X); its validation images may be ones that it was "
        "trained on. Bring its images back, or train it again"
    )
    last.write_bytes(last.read_bytes()[:1000])
    assert refused([f"run={finished}"], capsys).startswith(f"swinexp: run={finished}: {last} cannot be read (")


def test_images_that_were_moved_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(24):
        path = tmp_path / "mine" / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 99, 7 * number)).save(path)
    data = ("data=image_folder", "data.root=mine", "data.image_size=16", "data.val_fraction=0.5", "test=false")
    command = (*SMALL, *data, "trainer.batch_size=4", "trainer.limit_train=null", "trainer.epochs=1", "name=m")
    monkeypatch.setattr(sys, "argv", ["swinexp", *command, "wandb=disabled"])
    cli()
    capsys.readouterr()
    Path("mine").rename("moved")
    monkeypatch.setattr("swinexp.train.setup._again", lambda *given: given[2]())  # nothing is kept
    run = Path("outputs/runs/m")
    assert refused([f"run={run}"], capsys).startswith(
        "swinexp: data.root=mine: there is no folder mine. Type data.root="
    )
    evaluate.main([f"run={run}", "data.root=moved", "data.on_error=skip"])
    summary = json.loads((run / "summary.json").read_text())
    assert record(run, "val-last")["val/accuracy"] == summary["val/accuracy"]
    assert refused([f"run={run}", "data.root=moved", "data.on_error=leave"], capsys) == (
        "swinexp: data.on_error=leave: one of raise, skip. Type data.on_error=raise"
    )
    (tmp_path / "moved" / "train" / "a" / "0.png").write_text("no image")
    assert "its data had " in refused([f"run={run}", "data.root=moved", "data.on_error=skip"], capsys)


def test_digits_are_nowhere_else(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused([f"run={finished}", "data.root=moved"], capsys) == (
        "swinexp: data.root=moved: data=digits has no such key. Type the command without it"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "run: whose network? Type run=FOLDER"),
        (["outputs/a"], "outputs/a: KEY=VALUE is wanted. Type run=outputs/a"),
        (["flips"], "flips: KEY=VALUE is wanted. Type flips=VALUE"),
        (["run=a", "--flips=true"], "--flips=true: there are no options but KEY=VALUE. Type flips=true"),
        (["--hepl"], "--hepl: there are no options but KEY=VALUE. Type --help"),
        (["run=a", "split=train"], "split=train: one of val, test, both. Type split=val"),
        (["run=a", "checkpoint=first"], "checkpoint=first: one of last, best, ema. Type checkpoint=last"),
        (["run=a", "flips=maybe"], "flips=maybe: true or false is needed."),
        (["run=a", "pictures=atention"], "pictures=atention: one of attention, confusion. Type pictures=attention"),
        (["run=a", "pictures=confusion,"], "pictures=: one of attention, confusion. Type pictures=attention"),
        (
            ["run=a", "picture=attention"],
            "picture=attention: no such key; there are run, split, checkpoint, flips, pictures, images, blocks, data.",
        ),
        (["run=a", "data=b"], "data=b: data has root, on_error. Type data.root=b"),
        (["run=a", "data.rot=b"], "data.rot=b: no such key; data has root, on_error. Type data.root=b"),
        (["run=a", "images=none"], "images=none: a whole number is needed."),
        (["run=a", "images=0"], "images=0: 1 to 100 images in a picture. Type images=8"),
        (
            ["run=a", "images=4"],
            "images=4: it is for the picture attention, which is not drawn. Type pictures=attention",
        ),
        (
            ["run=a", "pictures=confusion", "blocks=all"],
            "blocks=all: it is for the picture attention, which is not drawn. Type pictures=confusion,attention",
        ),
        (["run=a", "blocks=first"], "blocks=first: one of last, all. Type blocks=last"),
        (["run=a"], "run=a: there is no run with a checkpoint. Type run=FOLDER"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(arguments, capsys).startswith(f"swinexp: {line}")


def test_without_matplotlib_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("swinexp.sheet.find_spec", lambda _: None)
    told = refused(["run=a", "pictures=attention"], capsys)
    assert "matplotlib is not installed. Type pip install 'swinexp[plots]'" in told
