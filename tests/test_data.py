from __future__ import annotations

import hashlib
import pickle
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swinexp import data
from swinexp.data import CIFAR10, Digits, ImageFolder, Split, load, mean_std, stratified
from swinexp.mistake import Mistake

CLASSES = ("ant", "bee", "cat")


def digits(tmp_path: Path, **changes: object) -> Digits:
    values = {"image_size": 16, "mirror": False, "val_fraction": 0.2, "split_seed": 0, "cache": str(tmp_path / "cache")}
    return Digits(name="digits", **{**values, **changes})  # type: ignore[arg-type]


def image_folder(root: Path, **changes: object) -> ImageFolder:
    values = {
        "image_size": 8,
        "mirror": True,
        "val_fraction": 0.25,
        "split_seed": 0,
        "cache": str(root.parent / "cache"),
    }
    return ImageFolder(name="image_folder", root=str(root), **{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train/ with 8 and test/ with 4 images of each class; the red channel of class k is 80·k, the green one counts."""
    root = tmp_path / "images"
    for split, count in (("train", 8), ("test", 4)):
        for k, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((8, 8, 3), (80 * k, 10 * i, 7), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:04}.png")
    return root


def test_digits_are_split_in_three_without_overlap(tmp_path: Path) -> None:
    dataset = load(digits(tmp_path), test=True)
    assert dataset.test is not None
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [1150, 288, 359]
    assert dataset.classes == [str(digit) for digit in range(10)]
    assert dataset.train.images.shape == (1150, 3, 16, 16)
    assert dataset.train.images.dtype == torch.uint8
    seen = [{image.numpy().tobytes() for image in s.images} for s in (dataset.train, dataset.val, dataset.test)]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]


def test_test_images_are_read_only_when_asked(tree: Path) -> None:
    for file in (tree / "test").rglob("*.png"):
        file.write_bytes(b"never opened")
    assert load(image_folder(tree), test=False).test is None
    with pytest.raises(Mistake, match="not a readable image"):
        load(image_folder(tree), test=True)


def test_the_split_is_stratified_and_decided_by_its_seed() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 21)
    train, val = stratified(labels, 0.1, seed=0)
    assert len(val) == 10
    assert labels[val].bincount().tolist() in ([5, 3, 2],)
    assert sorted(torch.cat([train, val]).tolist()) == list(range(101))
    assert torch.equal(stratified(labels, 0.1, seed=0)[1], val)
    assert not torch.equal(stratified(labels, 0.1, seed=1)[1], val)


def test_limit_train_keeps_shares_and_leaves_validation_alone(tmp_path: Path) -> None:
    whole, limited = load(digits(tmp_path), test=False), load(digits(tmp_path), test=False, limit_train=100)
    assert len(limited.train) == 100
    assert torch.equal(limited.val.images, whole.val.images)
    counts = limited.train.labels.bincount()
    assert counts.min() >= 9
    assert counts.max() <= 11
    for wrong in (5, 2000):
        with pytest.raises(
            Mistake, match=rf"trainer.limit_train={wrong}: it must be between the number of classes, 10,"
        ):
            load(digits(tmp_path), test=False, limit_train=wrong)


def test_mean_and_std_are_exact() -> None:
    images = torch.randint(256, (50, 3, 9, 9), dtype=torch.uint8)
    mean, std = mean_std(images)
    pixels = images.double() / 255
    torch.testing.assert_close(mean, pixels.mean(dim=(0, 2, 3)).float())
    torch.testing.assert_close(std, pixels.std(dim=(0, 2, 3), correction=0).float())
    assert mean_std(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))[1].tolist() == [1, 1, 1]


def test_a_split_yields_every_image_once() -> None:
    split = Split(torch.arange(7 * 3, dtype=torch.uint8).view(7, 3, 1, 1), torch.arange(7))
    batches = list(split.batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([batch.images for batch in batches]), split.images)


def test_image_folder_has_its_labels_and_pixels(tree: Path) -> None:
    dataset = load(image_folder(tree), test=True)
    assert dataset.test is not None
    assert dataset.classes == list(CLASSES)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (18, 6, 12)
    for split in (dataset.train, dataset.val, dataset.test):
        assert torch.equal(split.images[:, 0, 0, 0].long(), 80 * split.labels)
        assert split.images[:, 2].eq(7).all()
    assert dataset.test.images[:4, 1, 0, 0].tolist() == [0, 10, 20, 30]


def test_images_are_decoded_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(image_folder(tree), test=False)

    def never(*_: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(data, "_read_images", never)
        assert torch.equal(load(image_folder(tree), test=False).train.images, first.train.images)
    # another size, and a file that changed, are other images
    assert load(image_folder(tree, image_size=4), test=False).train.images.shape[-1] == 4
    Image.fromarray(np.full((8, 8, 3), 255, dtype=np.uint8)).save(tree / "train" / "ant" / "0000.png")
    changed = load(image_folder(tree), test=False)
    assert (changed.train.images == 255).any() or (changed.val.images == 255).any()


def test_a_damaged_cache_is_made_anew(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = load(image_folder(tree), test=False)
    (file,) = (tree.parent / "cache").glob("*.pt")
    whole = file.read_bytes()
    for damage in (b"", whole[:100], whole[: len(whole) // 2], b"\0" * len(whole)):
        file.write_bytes(damage)
        caplog.clear()
        assert torch.equal(load(image_folder(tree), test=False).train.images, first.train.images)
        assert "is damaged" in caplog.text
        assert len(file.read_bytes()) == len(whole)


def test_a_cache_that_cannot_be_written_costs_only_time(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree.parent / "cache").write_text("a file where the folder should be")
    assert len(load(image_folder(tree), test=False).train) == 18
    assert "could not be kept" in caplog.text


def test_every_mode_and_shape_becomes_square_rgb(tree: Path) -> None:
    folder = tree / "train" / "ant"
    for file in folder.iterdir():
        file.unlink()
    grey = np.full((8, 8), 100, dtype=np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(grey).convert("RGBA").save(folder / "rgba.png")
    Image.fromarray(grey).convert("P").save(folder / "palette.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(np.full((40, 20, 3), 100, dtype=np.uint8)).save(folder / "tall.jpg")
    Image.fromarray(np.full((5, 30, 3), 100, dtype=np.uint8)).save(folder / "WIDE.JPEG")
    (folder / "notes.txt").write_text("is no image")
    dataset = load(image_folder(tree), test=False)
    ants = torch.cat([split.images[split.labels == 0] for split in (dataset.train, dataset.val)])
    assert len(ants) == 6
    assert (ants.int() - 100).abs().max() <= 1


def test_images_in_folders_within_a_class_count_and_hidden_ones_do_not(tree: Path) -> None:
    below = tree / "train" / "ant" / "more" / "images"
    below.mkdir(parents=True)
    for name in ("a.png", "._a.png"):
        Image.new("RGB", (8, 8)).save(below / name, "PNG")
    (tree / "train" / ".ipynb_checkpoints").mkdir()
    dataset = load(image_folder(tree), test=False)
    assert dataset.classes == list(CLASSES)
    assert len(dataset.train) + len(dataset.val) == 25


def test_a_link_to_nowhere_is_named(tree: Path) -> None:
    (tree / "train" / "ant" / "gone.png").symlink_to(tree / "nowhere.png")
    with pytest.raises(Mistake, match=r"ant/gone.png cannot be read \(No such file or directory\). Remove it"):
        load(image_folder(tree), test=False)


def test_one_class_is_not_enough(tree: Path) -> None:
    for name in ("bee", "cat"):
        (tree / "train" / name).rename(tree / name)
    with pytest.raises(Mistake, match=r"train holds 1 of the at least 2 folders of classes"):
        load(image_folder(tree), test=False)


def test_mistakes_about_folders_name_the_folder(tree: Path) -> None:
    with pytest.raises(Mistake, match=r"data.root=.*nowhere: there is no folder .*nowhere\. Type data.root=FOLDER"):
        load(image_folder(tree / "nowhere"), test=False)
    with pytest.raises(Mistake, match=r"there is no folder .*/ant/train\."):
        load(image_folder(tree / "train" / "ant"), test=False)
    (tree / "train" / "dog").mkdir()
    with pytest.raises(Mistake, match=r"class 'dog' is empty, .*/train/dog has no .jpg or .png file"):
        load(image_folder(tree), test=False)
    for i in range(4):
        Image.new("RGB", (8, 8)).save(tree / "train" / "dog" / f"{i}.png")
    with pytest.raises(Mistake, match=r"the same classes \(dog is in one only\)"):
        load(image_folder(tree), test=True)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8\xff\xe0 cut short"])
def test_an_unreadable_image_is_named(tree: Path, content: bytes) -> None:
    broken = tree / "train" / "bee" / "0003.png"
    broken.write_bytes(content)
    with pytest.raises(Mistake, match=rf"{broken} is not a readable image .* Replace or remove the file"):
        load(image_folder(tree), test=False)
    assert not list((tree.parent / "cache").glob("*"))


def test_a_truncated_image_is_named(tree: Path) -> None:
    broken = tree / "train" / "bee" / "0003.png"
    noise = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(broken)
    broken.write_bytes(broken.read_bytes()[:-500])
    with pytest.raises(Mistake, match=rf"{broken} is not a readable image"):
        load(image_folder(tree), test=False)


def test_too_few_images_for_a_validation_split(tree: Path) -> None:
    with pytest.raises(Mistake, match=r"=0.05: of 8 images of class '\w+' it leaves 8 for training, 0 for .*=0.125"):
        load(image_folder(tree, val_fraction=0.05), test=False)
    assert len(load(image_folder(tree, val_fraction=0.125), test=False).val) == 3
    with pytest.raises(Mistake, match=r"data.val_fraction=1.5: a share of the training images"):
        image_folder(tree, val_fraction=1.5)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CIFAR10:
    """CIFAR-10's own pickles, with 20 random images a file, where torchvision looks for them."""
    from torchvision.datasets import CIFAR10 as Source

    folder = tmp_path / "cifar" / Source.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)

    def write(name: str, content: object) -> str:
        blob = pickle.dumps(content)
        (folder / name).write_bytes(blob)
        return hashlib.md5(blob).hexdigest()

    def batch(name: str) -> tuple[str, str]:
        pixels = random.integers(256, size=(20, 3072), dtype=np.uint8)
        return name, write(name, {"data": pixels, "labels": [i % 10 for i in range(20)], "batch_label": name})

    monkeypatch.setattr(Source, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(Source, "test_list", [batch("test_batch")])
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", {"label_names": names})}
    monkeypatch.setattr(Source, "meta", meta)
    return CIFAR10("cifar10", 32, True, 0.2, 0, str(tmp_path / "cache"), str(tmp_path / "cifar"))


def test_cifar10_is_read_from_its_pickles(cifar10: CIFAR10) -> None:
    dataset = load(cifar10, test=True)
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (80, 20, 20)
    assert dataset.classes[3] == "cat"
    raw = pickle.loads((Path(cifar10.root) / "cifar-10-batches-py" / "test_batch").read_bytes())
    assert torch.equal(dataset.test.images, torch.from_numpy(raw["data"].reshape(20, 3, 32, 32)))
    assert dataset.test.labels.tolist() == raw["labels"]


def test_cifar10_without_network_says_what_to_do(
    cifar10: CIFAR10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    cifar10.root = str(tmp_path / "elsewhere")
    with pytest.raises(
        Mistake, match=r"could not be downloaded .*no network.*Put cifar-10-python.tar.gz .* type data=digits"
    ):
        load(cifar10, test=False)
    assert not (tmp_path / "elsewhere").exists()
