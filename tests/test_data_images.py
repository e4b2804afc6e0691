from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swinexp.data import load
from swinexp.data.images import on_all_cores, opened, resized, square
from swinexp.mistake import Mistake
from tests.published import image_folder, write_folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images")


def test_every_mode_and_shape_becomes_square_rgb(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tree / "train" / "ant"
    for file in folder.iterdir():
        file.unlink()
    grey = np.full((8, 8), 100, dtype=np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(grey).save(folder / "grey.jpg", quality=100)
    Image.fromarray(grey).convert("LA").save(folder / "la.png")
    Image.fromarray(grey).convert("RGBA").save(folder / "rgba.png")
    Image.fromarray(grey).convert("P").save(folder / "palette.png")
    Image.fromarray(grey).convert("P").save(folder / "transparent.png", transparency=bytes(range(256)))
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(np.full((40, 20, 3), 100, dtype=np.uint8)).save(folder / "tall.jpg")
    Image.fromarray(np.full((5, 30, 3), 100, dtype=np.uint8)).save(folder / "WIDE.JPEG")
    (folder / "notes.txt").write_text("is no image")
    with caplog.at_level(logging.INFO):
        dataset = load(image_folder(tree), test=False)
    ants = torch.cat([split.images[split.labels == 0] for split in (dataset.train, dataset.val)])
    assert len(ants) == 9
    assert (ants.int() - 100).abs().max() <= 1
    (told,) = [message for message in caplog.messages if "converted" in message]
    before, _, counts = told.partition("of 25 images some were not RGB and have been converted: ")
    assert before == f"{tree}: "
    assert set(counts.split(", ")) == {"2 grey", "2 palette", "1 grey with transparency", "1 RGBA", "1 16-bit"}


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_a_photo_is_turned_upright(suffix: str, tmp_path: Path) -> None:
    upright = np.zeros((32, 32, 3), dtype=np.uint8)
    upright[:16] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / f"photo.{suffix}", exif=exif)
    with Image.open(tmp_path / f"photo.{suffix}") as photo:
        assert np.abs(square(photo, 32).transpose(1, 2, 0).astype(int) - upright).max() <= 10


@pytest.mark.parametrize("mode", ["L", "CMYK", "I;16"])
def test_a_tiff_of_any_kind_is_turned_upright(mode: str, tmp_path: Path) -> None:
    grey = np.zeros((16, 32), dtype=np.uint16 if mode == "I;16" else np.uint8)
    grey[:4, :16] = 50_000 if mode == "I;16" else 200
    image = Image.fromarray(grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    (image.convert(mode) if mode == "CMYK" else image).save(tmp_path / "scan.tif", exif=exif)
    with opened(str(tmp_path / "scan.tif")) as scan:
        turned = square(scan, 32)[0]
    assert turned[:12, 26:].min() > 100  # what was top left
    assert max(turned[:, :20].max(), turned[20:].max()) < 50


@pytest.mark.parametrize("pixels", [np.ones((8, 8), dtype=np.float32), np.full((8, 8), 255, dtype=np.int32)])
def test_pixels_of_no_known_range_are_no_image(pixels: np.ndarray, tree: Path) -> None:
    path = tree / "train" / "bee" / "0003.tif"
    Image.fromarray(pixels).save(path)
    with pytest.raises(Mistake, match=rf"{path} is not a readable image \(what is white is not known in mode [FI]\)"):
        load(image_folder(tree), test=False)


def test_whatever_is_wrong_with_an_exif_the_pixels_count(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8298] = 6, "a maker", "somebody"
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "photo.jpg", exif=exif, quality=100)
    whole, random = (tmp_path / "photo.jpg").read_bytes(), np.random.default_rng(0)
    first = whole.index(b"Exif")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(300):
            damaged = bytearray(whole)
            for place in random.integers(first + 6, first + 70, size=4):
                damaged[place] = random.integers(256)
            (tmp_path / "photo.jpg").write_bytes(damaged)
            with opened(str(tmp_path / "photo.jpg")) as photo:
                assert (square(photo, 8) == 9).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_says_nothing(tmp_path: Path) -> None:
    for damaged in (b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0no tiff at all"):
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "photo.jpg", exif=damaged, quality=100)
        with Image.open(tmp_path / "photo.jpg") as photo:
            assert (square(photo, 8) == 9).all()


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8\xff\xe0 cut short"])
def test_an_unreadable_image_is_named(tree: Path, content: bytes) -> None:
    broken = tree / "train" / "bee" / "0003.png"
    broken.write_bytes(content)
    with pytest.raises(
        Mistake, match=rf"{broken} is not a readable image .* Replace or remove the file, or type data.on_error=skip"
    ):
        load(image_folder(tree), test=False)
    assert not list((tree.parent / "cache").glob("*"))


def test_a_truncated_image_is_named(tree: Path) -> None:
    broken = tree / "train" / "bee" / "0003.png"
    noise = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(broken)
    broken.write_bytes(broken.read_bytes()[:-500])
    with pytest.raises(Mistake, match=rf"{broken} is not a readable image"):
        load(image_folder(tree), test=False)


def test_unreadable_images_are_skipped_when_asked(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("ant/0000.png", "bee/0003.png"):
        (tree / "train" / name).write_bytes(b"no image")
    for _ in ("decoded", "from the cache"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            dataset = load(image_folder(tree, on_error="skip"), test=False)
        assert "2 of 24 images could not be read and have been skipped; the first is" in caplog.text
        assert "ant/0000.png" in caplog.text
        assert len(dataset.train) + len(dataset.val) == 22
        for split in (dataset.train, dataset.val):
            assert torch.equal(split.images[:, 0, 0, 0].long(), 80 * split.labels)
    with pytest.raises(Mistake, match="not a readable image"):  # what was skipped is no answer to raise
        load(image_folder(tree), test=False)


def test_skipping_everything_is_a_mistake(tree: Path) -> None:
    for file in (tree / "train").rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(Mistake, match=r"none of 24 images is readable; the first is .*/ant/0000.png"):
        load(image_folder(tree, on_error="skip"), test=False)


def test_arrays_keep_their_pixels_or_are_resized() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(3, 3, 8, 8), dtype=np.uint8)
    assert torch.equal(resized(pixels, 8), torch.from_numpy(pixels))
    flat = np.broadcast_to(np.array([10, 20, 30], dtype=np.uint8)[:, None, None], (5, 3, 8, 8))
    larger = resized(flat, 20)
    assert larger.shape == (5, 3, 20, 20)
    assert larger[:, :, 7, 3].tolist() == [[10, 20, 30]] * 5


@pytest.mark.parametrize("count", [0, 1, 64, 1000])
def test_everything_is_done_once(count: int) -> None:
    done = np.zeros(count, dtype=np.int64)

    def work(i: int) -> None:
        done[i] += 1

    on_all_cores(work, count, "counting")
    assert (done == 1).all()


def test_no_bar_where_there_is_no_terminal(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(image_folder(tree), test=False)
    assert capsys.readouterr().out == ""
