from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swinexp.folder import Folder, run_name, write_atomically, write_text
from swinexp.mistake import Mistake


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "default"),
        (["experiment=quickstart"], "quickstart"),
        (["model=tiny", "experiment=quickstart"], "quickstart,model=tiny"),
        (["optimizer.lr=1e-3", "model=tiny"], "model=tiny,optimizer.lr=1e-3"),
        (["model=nano", "wandb=disabled", "wandb.tags=[a]"], "model=nano"),
        (["model=nano", "name=mine"], "mine"),
        (["sweep=sizes", "seed=3"], "sizes,seed=3"),
        (["model=nano", "data.cache=/tmp/cache"], "model=nano"),
        (["data=image_folder", "data.root=pets/"], "data=image_folder,data.root=pets"),
    ],
)
def test_a_name_says_what_is_overridden(overrides: list[str], name: str) -> None:
    assert run_name(overrides) == name


def test_names_are_good_file_names_and_never_the_same_for_different_overrides() -> None:
    values = ["/data/a/images", "/data/b/images", "[2,2]", "'[2,2]'", "a b", "x" * 300, "x" * 301, "é", "../up", "a:b"]
    names = [run_name([f"data.root={value}"]) for value in values]
    assert len(set(names)) == len(values)
    for name in names:
        assert len(name) <= 100
        assert not set(name) & set("/ '[]:")
    assert run_name(["data.root=/data/a/images"]).startswith("data.root=images-")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "first")

    def fail(file: object) -> None:
        file.write(b"sec")  # type: ignore[attr-defined]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    with Folder(tmp_path), pytest.raises(Mistake, match="another process is running this very command. Wait"):
        Folder(tmp_path).__enter__()
    with Folder(tmp_path):
        pass


def test_a_killed_run_lets_go_of_its_folder(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from swinexp.folder import Folder
with Folder(Path({str(tmp_path)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with Folder(tmp_path):
        pass


def test_another_config_is_refused_and_named(tmp_path: Path) -> None:
    config = {"name": "a", "seed": 0, "trainer": {"epochs": 3, "batch_size": 8}, "wandb": {"mode": "auto"}}
    with Folder(tmp_path / "a") as folder:
        folder.check(config)
        folder.begin(config, ["seed=0"])
        elsewhere = {"wandb": {"mode": "offline"}, "name": "b", "data": {"cache": "elsewhere"}}
        folder.check({**config, **elsewhere})  # does not change the figures
        other = {**config, "seed": 1, "trainer": {"epochs": 5, "batch_size": 8}}
        with pytest.raises(
            Mistake, match=r"\(seed is 0 there and 1 now, trainer.epochs is 3 there and 5 now\). Type name=ANOTHER_NAME"
        ):
            folder.check(other)
        with pytest.raises(Mistake, match=r"Type hydra\.run\.dir=ANOTHER_FOLDER, or remove that folder"):
            folder.check({**other, "name": "b"})  # which is not why it lies here


def test_a_run_from_before_a_key_goes_on_with_what_all_did_then(tmp_path: Path) -> None:
    config = {"name": "a", "patch": {"size": 2}}
    with Folder(tmp_path / "a") as folder:
        folder.begin(config, [])
        folder.check({"name": "a", "patch": {"size": 2, "init": "normal"}, "attention": {"init": "normal"}})
        with pytest.raises(Mistake, match=r"\(patch\.init is normal there and whitened now\)"):
            folder.check({"name": "a", "patch": {"size": 2, "init": "whitened"}, "attention": {"init": "normal"}})


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    leftovers = [tmp_path / ".summary.json.abc.part", tmp_path / "checkpoints" / ".last.pt.abc.part"]
    for leftover in leftovers:
        leftover.touch()
    (tmp_path / "kept").touch()
    with Folder(tmp_path):
        assert not any(leftover.exists() for leftover in leftovers)
    assert (tmp_path / "kept").exists()


def test_a_published_set_may_lie_elsewhere_but_a_folder_of_images_may_not(tmp_path: Path) -> None:
    for name in ("cifar10", "tiny_imagenet", "image_folder"):
        config = {"data": {"name": name, "root": "here"}}
        (tmp_path / name).mkdir()
        with Folder(tmp_path / name) as folder:
            folder.begin(config, [])
            if name == "image_folder":
                with pytest.raises(Mistake, match="data.root is here there and there now"):
                    folder.check({"data": {"name": name, "root": "there"}})
            else:
                folder.check({"data": {"name": name, "root": "there"}})


def test_a_mistake_leaves_nothing_but_what_was_there(tmp_path: Path) -> None:
    fresh = tmp_path / "outputs" / "runs" / "a"
    fresh.mkdir(parents=True)
    with pytest.raises(Mistake, match="no"), Folder(fresh):
        (fresh / "run.log").write_text("…")
        raise Mistake("no")
    assert not (tmp_path / "outputs").exists()
    fresh.mkdir(parents=True)
    with pytest.raises(Mistake, match="no"), Folder(fresh) as folder:
        folder.begin({"seed": 0}, [])
        raise Mistake("no")
    assert folder.began


def test_checkpoints_without_a_config_are_nobodys(tmp_path: Path) -> None:
    with Folder(tmp_path) as folder:
        folder.check({"seed": 0})
        folder.checkpoint.parent.mkdir()
        folder.checkpoint.write_text("…")
        with pytest.raises(
            Mistake, match=r"has checkpoints of a run whose config.yaml is gone. Type name=ANOTHER_NAME"
        ):
            folder.check({"seed": 0})


def test_a_damaged_summary_is_told(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"val/acc')
    with pytest.raises(Mistake, match=r"summary.json is damaged. Remove it, and the same command writes it again: rm "):
        Folder(tmp_path).summary  # noqa: B018


def test_a_damaged_config_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: [")
    line = rf"^{tmp_path}/config.yaml cannot be read \(.*\)\. Bring it back, or remove {tmp_path}$"
    with pytest.raises(Mistake, match=line):
        Folder(tmp_path).check({"seed": 0})


def test_what_is_no_file_is_written_to_and_a_link_is_followed(tmp_path: Path) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "told")
    assert os.read(reader, 9) == b"told"
    os.close(reader)
    assert pipe.is_fifo()
    link.symlink_to(target)
    write_text(link, "kept")
    assert link.is_symlink()
    assert target.read_text() == "kept"
