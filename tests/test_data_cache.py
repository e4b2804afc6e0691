from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

from swinexp.data import load, sources
from swinexp.data.cache import Decoded, alone, cached
from swinexp.data.splits import Split
from tests.published import image_folder, write_folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images")


def decoded() -> Decoded:
    """Images large enough to lie on many pages of a file."""
    images = torch.randint(256, (100, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Decoded(["a", "b"], Split(images, torch.arange(100) % 2), ["one remark"])


def never() -> Decoded:
    raise AssertionError("decoded again")


def test_images_are_decoded_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(image_folder(tree), test=False)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "read_images", never)
        assert torch.equal(load(image_folder(tree), test=False).train.images, first.train.images)
    # another size, and a file that changed, are other images
    assert load(image_folder(tree, image_size=4), test=False).train.images.shape[-1] == 4
    Image.fromarray(np.full((8, 8, 3), 255, dtype=np.uint8)).save(tree / "train" / "ant" / "0000.png")
    changed = load(image_folder(tree), test=False)
    assert (changed.train.images == 255).any() or (changed.val.images == 255).any()


def test_remarks_are_told_in_every_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for decode in (decoded, never):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            cached(str(tmp_path), ["set", "train"], decode)
        assert caplog.messages == ["one remark"]


@pytest.mark.parametrize("damage", ["empty", "start", "half", "all but the end", "zeros", "one bit", "a page"])
def test_a_damaged_file_is_made_anew(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes, first = cached(str(tmp_path), ["set", "train"], decoded)
    (file,) = tmp_path.glob("*.pt")
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    file.write_bytes(
        {
            "empty": b"",
            "start": whole[:100],
            "half": whole[:middle],
            "all but the end": whole[:-1],
            "zeros": bytes(len(whole)),
            "one bit": flipped,
            "a page": whole[:8192] + bytes(4096) + whole[12288:],
        }[damage]
    )
    assert cached(str(tmp_path), ["set", "train"], decoded)[0] == classes
    assert "is damaged" in caplog.text
    assert len(file.read_bytes()) == len(whole)
    again = cached(str(tmp_path), ["set", "train"], never)[1]
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels, first.labels)


@pytest.mark.parametrize("at", [0, 1000, 50_000])
def test_a_disk_that_fills_costs_only_time(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import swinexp.data.cache
    from swinexp.folder import write_atomically

    class Full:
        """A file on a disk with room for `at` bytes."""

        def __init__(self, file: BinaryIO) -> None:
            self.file = file

        def write(self, block: bytes) -> int:
            if self.file.tell() + len(block) > at:
                raise OSError(28, "No space left on device")
            return self.file.write(block)

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    def write(path: Path, content: object) -> None:
        write_atomically(path, lambda file: content(Full(file)))  # type: ignore[operator]

    monkeypatch.setattr(swinexp.data.cache, "write_atomically", write)
    classes, split = cached(str(tmp_path), ["set", "train"], decoded)
    assert (classes, len(split)) == (["a", "b"], 100)
    assert "could not be kept" in caplog.text
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_of_the_system_costs_only_time(tmp_path: Path) -> None:
    code = f"""
import resource, signal
from tests.test_data_cache import cached, decoded
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then what is too large for the limit is an OSError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
print(len(cached({str(tmp_path)!r}, ["set", "train"], decoded)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "100\n"
    assert "could not be kept" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_only_time(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree.parent / "cache").write_text("a file where the folder should be")
    assert len(load(image_folder(tree), test=False).train) == 18
    assert "could not be kept" in caplog.text


@pytest.mark.slow
def test_of_two_processes_one_decodes_and_both_have_the_images(tmp_path: Path) -> None:
    code = f"""
import time
from tests.test_data_cache import cached, decoded
def slow():
    print("decoding", flush=True)
    time.sleep(1)
    return decoded()
classes, split = cached({str(tmp_path)!r}, ["set", "train"], slow)
print(int(split.images.long().sum()))
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [process.communicate()[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(len(printed) for printed in lines) == [1, 2]
    assert {printed[-1] for printed in lines} == {str(int(decoded().split.images.long().sum()))}
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".pt"


def test_only_one_is_in_at_a_time(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(5):
            with alone(tmp_path / "file"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.002)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_removes_meanwhile_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.stat
    removed: list[Path] = []

    def late(path: Any, *rest: Any, **named: Any) -> os.stat_result:
        if str(path).endswith(".lock") and not named and not removed:
            removed.append(path)
            os.unlink(path)
        return plain(path, *rest, **named)

    monkeypatch.setattr(os, "stat", late)
    with alone(tmp_path / "file"):
        assert removed
        assert (tmp_path / ".file.lock").exists()
    assert list(tmp_path.iterdir()) == []
