from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from swinexp import predict
from swinexp.archive import reloaded
from swinexp.data import Dataset
from swinexp.evaluate import outputs, restored


def written(dataset: Dataset, count: int) -> list[str]:
    """The first validation images as files."""
    names = [f"{i}.png" for i in range(count)]
    for name, image in zip(names, dataset.val.images, strict=False):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(name)
    return names


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    with pytest.raises(SystemExit) as stop:
        predict.main(arguments)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()


def test_labels_are_the_networks_without_reading_the_data(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reloaded(finished)
    model, dataset, _ = restored(run, finished, "last")
    names = written(dataset, 5)
    shares, labels = outputs(run, model, dataset.val, dataset)[0][0][:5].softmax(dim=1).topk(3)

    def no_data(*_: object) -> None:
        raise AssertionError("the data set is read")

    with monkeypatch.context() as patch:
        patch.setattr("swinexp.data.load", no_data)
        predict.main([f"run={finished}", "json=true", *names, names[0]])
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["path"] for one in told] == [*names, names[0]]
    assert [one["classes"] for one in told[:5]] == [[str(label) for label in row] for row in labels.tolist()]
    torch.testing.assert_close(torch.tensor([one["probabilities"] for one in told[:5]]), shares)

    predict.main([f"run={finished}", "top=1", names[0]])
    assert capsys.readouterr().out == f"0.png: {labels[0, 0]} {shares[0, 0]:.4f}\n"
    predict.main([f"run={finished}", "top=100", "json=true", names[0]])
    every = json.loads(capsys.readouterr().out)
    assert sorted(every["classes"]) == list("0123456789")
    assert sum(every["probabilities"]) == pytest.approx(1)


def test_what_a_run_keeps_of_its_data_is_exact(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, dataset, _ = restored(reloaded(finished), finished, "last")
    kept = json.loads((finished / "data.json").read_text())
    assert kept["classes"] == dataset.classes
    assert torch.equal(torch.tensor(kept["mean"]), dataset.mean)
    assert torch.equal(torch.tensor(kept["std"]), dataset.std)

    names = written(dataset, 2)
    predict.main([f"run={finished}", "top=10", *names])
    told = capsys.readouterr().out
    (finished / "data.json").write_text('{"classes": ["0"')  # cut short: the training images are measured again
    predict.main([f"run={finished}", "top=10", *names])
    assert capsys.readouterr().out == told


def test_an_image_that_cannot_be_read_does_not_stop_the_others(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (40, 20), 200).save("wide.png")
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save("clear.png")
    Path("text.png").write_text("no image")
    Path("cut.png").write_bytes(Path("wide.png").read_bytes()[:50])
    out, err = refused([f"run={finished}", "wide.png", "text.png", "cut.png", "gone.png", "clear.png"], capsys)
    assert [line.partition(":")[0] for line in out] == ["wide.png", "clear.png"]
    assert [line.partition(" (")[0] for line in err] == [
        f"swinexp: {name}.png: is not a readable image" for name in ("text", "cut", "gone")
    ]
    assert err[2].endswith("(No such file or directory)")


def test_a_checkpoint_gives_the_weights_it_names(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (16, 16)).save("black.png")
    last = torch.load(finished / "checkpoints" / "last.pt", weights_only=True)
    best: dict[str, Any] = {**last["model"], "head.bias": 1e6 * torch.eye(10)[7]}
    (finished / "checkpoints" / "best.pt").unlink()  # which may be the same file
    torch.save({**last, "model": best}, finished / "checkpoints" / "best.pt")
    predict.main([f"run={finished}", "checkpoint=best", "top=1", "black.png"])
    assert capsys.readouterr().out == "black.png: 7 1.0000\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["a.png"], "run: whose network? Type run=FOLDER"),
        (["run=a"], "run=a: no image is named. Type run=a IMAGE.png"),
        (["run=a", "a.png"], "run=a: there is no run with a checkpoint. Type run=FOLDER"),
        (["run=a", "a.png", "top=0"], "top=0: at least 1 class for an image. Type top=3"),
        (["run=a", "a.png", "checkpoint=frist"], "checkpoint=frist: one of last, best, ema. Type checkpoint=last"),
        (["run=a", "a.png", "tops=1"], "tops=1: no such key; there are run, checkpoint, top, json. Type top=1"),
        (["run=a", "a.png", "--json"], "--json: there are no options but KEY=VALUE. Type json=true"),
        (["run=a", "-b.png"], "-b.png: there are no options but KEY=VALUE. Type ./-b.png if it is an image"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(arguments, capsys) == ([], [f"swinexp: {line}"])


def test_a_runs_folder_is_no_image(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"swinexp: {finished}: a run's folder, and no image. Type run={finished} IMAGE.png"
    assert refused([str(finished), "a.png"], capsys) == ([], [line])


def test_a_path_may_have_an_equals_sign() -> None:
    assert predict.sorted_out(["run=a", "./b=1/c.png", "top=2", "d.png"]) == (
        ["run=a", "top=2"],
        ["./b=1/c.png", "d.png"],
    )
