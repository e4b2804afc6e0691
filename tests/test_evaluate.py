from __future__ import annotations

import json
from pathlib import Path

import pytest

from swinexp import evaluate
from tests.conftest import SMALL, Command


@pytest.fixture
def finished(command: Command) -> Path:
    done = command(*SMALL, "wandb=disabled", "trainer.epochs=2", "test=true", "name=done")
    assert done.returncode == 0, done.stderr
    return Path("outputs/runs/done")


def test_figures_are_those_of_the_run_and_the_picture_is_drawn(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([f"run={finished}"])
    out = capsys.readouterr().out
    summary = json.loads((finished / "summary.json").read_text())
    for key in ("val/loss", "val/accuracy", "test/loss", "test/accuracy"):
        assert f"{key} {summary[key]:.4f}" in out
    assert not (finished / "pictures").exists()

    from matplotlib.image import imread

    sizes = []
    for blocks in ("last", "all"):
        evaluate.main([f"run={finished}", "pictures=attention", "images=3", f"blocks={blocks}"])
        assert capsys.readouterr().out.endswith("outputs/runs/done/pictures/attention.png\n")
        picture = imread(finished / "pictures" / "attention.png")
        assert picture[..., :3].std() > 0.1
        sizes.append(picture.shape)
    assert sizes[1][1] > sizes[0][1]

    checkpoint = finished / "checkpoints" / "last.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(SystemExit) as stop:
        evaluate.main([f"run={finished}"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"swinexp: run={finished}: {checkpoint} cannot be read")
    with pytest.raises(SystemExit):
        evaluate.main(["run=outputs/runs/dne"])
    assert capsys.readouterr().err == (
        "swinexp: run=outputs/runs/dne: there is no run with a checkpoint. Type run=outputs/runs/done\n"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "run=???: it has no default and must be given. Type run=VALUE"),
        (["run=a", "pictures=atention"], "pictures=atention: one of attention. Type pictures=attention"),
        (["run=a", "picture=attention"], "picture=attention: no such key; there are run, pictures, images, blocks."),
        (["run=a", "images=none"], "images=none: a whole number is needed."),
        (["run=a", "images=0"], "images=0: 1 to 100 images in a picture. Type images=8"),
        (["run=a", "blocks=first"], "blocks=first: one of last, all. Type blocks=last"),
        (["run=a"], "run=a: there is no run with a checkpoint. Type run=FOLDER"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluate.main(arguments)
    assert stop.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"swinexp: {line}")


def test_without_matplotlib_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("swinexp.sheet.find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        evaluate.main(["run=a", "pictures=attention"])
    assert "matplotlib is not installed. Type pip install 'swinexp[plots]'" in capsys.readouterr().err
