from __future__ import annotations

import os
import pickle
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from swinexp.data import DATA, Data, load
from swinexp.mistake import Mistake
from tests.published import (
    FOLDER_CLASSES,
    image_folder,
    option,
    write_cifar,
    write_cinic10,
    write_folder,
    write_svhn,
    write_tiny_imagenet,
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images")


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def sizes(data: Data) -> list[int]:
    dataset = load(data, test=True)
    assert dataset.test is not None
    return [len(split) for split in (dataset.train, dataset.val, dataset.test)]


def test_image_folder_has_its_labels_and_pixels(tree: Path) -> None:
    dataset = load(image_folder(tree), test=True)
    assert dataset.test is not None
    assert dataset.classes == list(FOLDER_CLASSES)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (18, 6, 12)
    for split in (dataset.train, dataset.val, dataset.test):
        assert torch.equal(split.images[:, 0, 0, 0].long(), 80 * split.labels)
        assert split.images[:, 2].eq(7).all()
    assert dataset.test.images[:4, 1, 0, 0].tolist() == [0, 10, 20, 30]


def test_images_in_folders_within_a_class_count_and_hidden_ones_do_not(tree: Path) -> None:
    below = tree / "train" / "ant" / "more" / "images"
    below.mkdir(parents=True)
    for name in ("a.png", "._a.png"):
        Image.new("RGB", (8, 8)).save(below / name, "PNG")
    (tree / "train" / ".ipynb_checkpoints").mkdir()
    dataset = load(image_folder(tree), test=False)
    assert dataset.classes == list(FOLDER_CLASSES)
    assert len(dataset.train) + len(dataset.val) == 25


def test_a_folder_that_links_lead_to_again_is_read_once(tree: Path) -> None:
    (tree / "train" / "ant" / "again").symlink_to(".")
    (tree / "train" / "bee" / "all").symlink_to("..")
    (tree / "train" / "cat" / "elsewhere").symlink_to(tree / "test" / "cat")
    dataset = load(image_folder(tree), test=False)
    counts = [sum(int((split.labels == label).sum()) for split in (dataset.train, dataset.val)) for label in range(3)]
    assert counts == [8, 28, 12]  # of bee all, for its link leads to the folder of them


def test_files_that_are_no_images_are_counted(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("webp", "bmp", "tiff", "gif"):
        Image.new("RGB", (8, 8)).save(tree / "train" / "ant" / f"another.{kind}")
    load(image_folder(tree), test=False)
    assert "left out" not in caplog.text
    for name in ("notes.txt", "one.HEIC", "two.heic", "README", ".hidden.txt"):
        (tree / "train" / "bee" / name).touch()
    for _ in range(2):  # from the cache too
        caplog.clear()
        dataset = load(image_folder(tree), test=False)
        assert len(dataset.train) + len(dataset.val) == 28
        (line,) = [each for each in caplog.messages if "left out" in each]
        assert line.startswith(f"{tree}/train: 4 files are left out, which are none of .bmp, .gif, ")
        assert line.endswith(": 2 .heic, 1 without a suffix, 1 .txt")


def test_a_folder_that_cannot_be_looked_into_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.scandir

    def refusing(path: str | Path) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    (tree / "train" / "ant" / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(Mistake, match=r"data.root=.*: .*/train/ant/locked cannot be read \(Permission denied\)\. "):
        load(image_folder(tree), test=False)


def test_a_link_to_nowhere_is_named(tree: Path) -> None:
    (tree / "train" / "ant" / "gone.png").symlink_to(tree / "nowhere.png")
    with pytest.raises(Mistake, match=r"ant/gone.png cannot be read \(No such file or directory\). Remove it"):
        load(image_folder(tree), test=False)
    dataset = load(image_folder(tree, on_error="skip"), test=False)
    assert len(dataset.train) + len(dataset.val) == 24


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
    archive = tree / "images.tar.gz"
    archive.touch()
    with pytest.raises(Mistake, match=rf"data.root={archive}: a file, and not the .*\. Type data.root={tree}$"):
        load(image_folder(archive), test=False)
    (tree / "train" / "dog").mkdir()
    with pytest.raises(Mistake, match=r"class 'dog' is empty, .*/train/dog has no image file \(.bmp, "):
        load(image_folder(tree), test=False)
    for i in range(4):
        Image.new("RGB", (8, 8)).save(tree / "train" / "dog" / f"{i}.png")
    with pytest.raises(Mistake, match=r"train and test do not have the same classes \(dog is in one only\)"):
        load(image_folder(tree), test=True)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_its_pickles(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    kind = getattr(torchvision.datasets, name.upper())
    root = write_cifar(tmp_path / "cifar", kind, monkeypatch, images=500)
    data = option(name, tmp_path, root=str(root), val_fraction=0.2)
    dataset = load(data, test=True)
    assert dataset.test is not None
    whole = 500 * len(kind.train_list)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (whole * 4 // 5, whole // 5, 500)
    assert dataset.classes == list(data.names)
    raw = pickle.loads((root / kind.base_folder / kind.test_list[0][0]).read_bytes())
    assert torch.equal(dataset.test.images, torch.from_numpy(raw["data"].reshape(500, 3, 32, 32)))
    assert dataset.test.labels.tolist() == raw["labels" if name == "cifar10" else "fine_labels"]
    for file in root.rglob("*_batch*"):
        file.unlink()  # all of it is in the cache
    assert torch.equal(load(data, test=False).train.images, dataset.train.images)


def test_svhn_is_read_from_its_mat_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_svhn(tmp_path / "svhn", monkeypatch)
    data = option("svhn", tmp_path, root=str(root), val_fraction=0.25)
    dataset = load(data, test=True)
    assert dataset.test is not None
    assert dataset.classes == [str(digit) for digit in range(10)]
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (75, 25, 20)
    for split in (dataset.train, dataset.val, dataset.test):
        # image i is filled with i, and shows 1, 2 … 9, 0 (which the file calls 10), 1 …
        assert torch.equal(split.labels, (split.images[:, 0, 0, 0].long() + 1) % 10)
    assert dataset.test.images[13].unique().tolist() == [13]


def test_svhn_extra_is_for_training_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_svhn(tmp_path / "svhn", monkeypatch)
    without = load(option("svhn", tmp_path, root=str(root)), test=False)
    extra = load(option("svhn", tmp_path, root=str(root), extra=True), test=False)
    assert len(extra.train) == len(without.train) + 30
    assert torch.equal(extra.val.images, without.val.images)
    limited = load(option("svhn", tmp_path, root=str(root), extra=True), test=False, limit_train=20)
    assert limited.train.labels.bincount().tolist() == [2] * 10


def test_cinic10_has_its_own_validation_images(tmp_path: Path) -> None:
    data = option("cinic10", tmp_path, root=str(write_cinic10(tmp_path / "cinic")))
    assert not hasattr(data, "val_fraction")
    dataset = load(data, test=True)
    assert dataset.test is not None
    assert dataset.classes == list(DATA["cifar10"].names)
    for s, split in enumerate((dataset.train, dataset.val, dataset.test)):
        assert len(split) == 40
        assert torch.equal(split.images[:, 0, 0, 0].long(), 10 * split.labels)
        assert split.images[:, 1].unique().tolist() == [50 * s]


def test_tiny_imagenet_is_read_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATA["tiny_imagenet"], "classes", 3)
    data = option("tiny_imagenet", tmp_path, root=str(write_tiny_imagenet(tmp_path / "tiny-imagenet-200")))
    dataset = load(data, test=True)
    assert dataset.test is not None
    assert dataset.classes == ["goldfish", "crane (n01000002)", "crane (n02000003)"]
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (27, 3, 5)
    assert dataset.test.labels.tolist() == [2, 0, 1, 1, 0]
    assert dataset.test.images.shape == (5, 3, 64, 64)
    for split in (dataset.train, dataset.val, dataset.test):
        assert ((split.images[:, 0, 0, 0].int() - 80 * split.labels).abs() <= 3).all()


def test_tiny_imagenet_without_a_class_is_a_mistake(tmp_path: Path) -> None:
    root = write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    gone = sorted((root / "train").iterdir())[0]
    gone.rename(tmp_path / "gone")
    with pytest.raises(Mistake, match=rf"data.root={root}: {gone} cannot be read \(No such file or directory\)\. "):
        load(option("tiny_imagenet", tmp_path, root=str(root)), test=False)


def test_tiny_imagenet_with_other_annotations_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tiny_imagenet(tmp_path / "tiny")
    with pytest.raises(Mistake, match="'train' has 3 classes instead of 200. Remove the files"):
        load(option("tiny_imagenet", tmp_path, root=str(root)), test=False)
    monkeypatch.setattr(DATA["tiny_imagenet"], "classes", 3)
    data = option("tiny_imagenet", tmp_path, root=str(root), on_error="skip")
    annotations = root / "val" / "val_annotations.txt"
    (root / "val" / "images" / "val_1.JPEG").unlink()
    assert sizes(data) == [27, 3, 4]
    Image.new("RGB", (64, 64)).save(root / "val" / "images" / "val_1.JPEG")
    assert sizes(data) == [27, 3, 5]  # what lacked images has not been kept
    for line, unknown in (("val_0.JPEG\tn09999999\t0\t0\t9\t9\n", "n09999999"), ("val_0.JPEG\n", "")):
        annotations.write_text(line)
        with pytest.raises(Mistake, match=f"val_annotations.txt names the class '{unknown}', wnids.txt does not"):
            load(option("tiny_imagenet", tmp_path, root=str(root), cache=str(tmp_path / "other")), test=True)
    annotations.unlink()
    with pytest.raises(Mistake, match=r"val_annotations.txt cannot be read \(No such file"):
        load(option("tiny_imagenet", tmp_path, root=str(root)), test=True)


def test_classes_that_are_not_the_data_set_s_own_are_a_mistake(tmp_path: Path) -> None:
    root = write_cinic10(tmp_path / "cinic")
    (root / "train" / "deer").rename(root / "train" / "elk")
    with pytest.raises(Mistake, match=r"'train' does not have the classes of cinic10 \(deer, elk is in one only\)"):
        load(option("cinic10", tmp_path, root=str(root)), test=False)


@pytest.mark.parametrize(("labels", "wrong"), [([1] * 39 + [11], "11"), ([1] * 39 + [200], "200")])
def test_a_label_out_of_range_is_a_mistake(
    labels: list[int], wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_svhn(tmp_path / "svhn", monkeypatch, labels)
    with pytest.raises(Mistake, match=rf"a label in 'train' is {wrong}, and not one of 0 to 9. Remove the files of"):
        load(option("svhn", tmp_path, root=str(root)), test=False)
    assert not list((tmp_path / "cache").glob("*"))


def test_an_empty_split_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATA["tiny_imagenet"], "classes", 3)
    root = write_tiny_imagenet(tmp_path / "tiny")
    (root / "val" / "val_annotations.txt").write_text("")
    with pytest.raises(Mistake, match=r"data.root=.*tiny: there is no image in 'test'. Remove the files"):
        load(option("tiny_imagenet", tmp_path, root=str(root)), test=True)
    for file in (root / "train" / "n01000001").rglob("*.JPEG"):
        file.unlink()
    with pytest.raises(Mistake, match=r"data.val_fraction=0.1: of 0 images of class 'goldfish' it leaves 0"):
        load(option("tiny_imagenet", tmp_path, root=str(root), image_size=32), test=False)


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("svhn", "train_32x32.mat"),
        ("cinic10", "CINIC-10.tar.gz"),
        ("tiny_imagenet", "tiny-imagenet-200.zip"),
    ],
)
@pytest.mark.usefixtures("_no_network")
def test_without_network_it_says_what_to_do(name: str, archive: str, tmp_path: Path) -> None:
    with pytest.raises(
        Mistake,
        match=rf"data={name}: .* could not be downloaded .*no network.*Put {archive} from http.* type data=digits",
    ) as mistake:
        load(option(name, tmp_path, root=str(tmp_path / "elsewhere")), test=False)
    assert "\n" not in str(mistake.value)
    assert not (tmp_path / "elsewhere").exists()
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("name", ["cinic10", "tiny_imagenet"])
def test_an_archive_that_is_there_is_unpacked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from swinexp.data import sources
    from swinexp.data.download import checksum

    monkeypatch.setattr(DATA["tiny_imagenet"], "classes", 3)
    root = tmp_path / "root"
    root.mkdir()
    write, made, constant = {
        "cinic10": (write_cinic10, "CINIC-10.tar.gz", "CINIC10_ARCHIVE"),
        "tiny_imagenet": (write_tiny_imagenet, "tiny-imagenet-200.zip", "TINY_IMAGENET_ARCHIVE"),
    }[name]
    files = write(tmp_path / "packed" / "tiny-imagenet-200")
    if name == "cinic10":  # which has no folder around its splits
        shutil.make_archive(str(root / "CINIC-10"), "gztar", files)
    else:
        shutil.make_archive(str(root / "tiny-imagenet-200"), "zip", files.parent)
    address: Any = (getattr(sources, constant)[0], checksum(root / made))
    monkeypatch.setattr(sources, constant, address)
    assert sizes(option(name, tmp_path, root=str(root))) == ([40, 40, 40] if name == "cinic10" else [27, 3, 5])
    assert {path.name for path in root.iterdir()} == {made, made.partition(".")[0]}


@pytest.mark.usefixtures("_no_network")
def test_two_that_miss_the_same_files_unpack_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    import threading

    from swinexp.data import sources
    from swinexp.data.download import checksum, unpack

    root = tmp_path / "root"
    root.mkdir()
    shutil.make_archive(str(root / "CINIC-10"), "gztar", write_cinic10(tmp_path / "packed"))
    monkeypatch.setattr(sources, "CINIC10_ARCHIVE", (sources.CINIC10_ARCHIVE[0], checksum(root / "CINIC-10.tar.gz")))
    unpacked, seen = [], []
    monkeypatch.setattr(sources, "unpack", lambda *paths: (unpacked.append(paths), unpack(*paths)))
    options = [option("cinic10", tmp_path, root=str(root), image_size=size) for size in (16, 32)]
    threads = [threading.Thread(target=lambda each=each: seen.append(sizes(each))) for each in options]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[40, 40, 40]] * 2
    assert len(unpacked) == 1


@pytest.mark.usefixtures("_no_network")
def test_damaged_pickles_are_unpacked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from torchvision.datasets import CIFAR10

    from swinexp.data.download import checksum

    root = write_cifar(tmp_path / "cifar", CIFAR10, monkeypatch)
    shutil.make_archive(str(root / "cifar-10-python"), "gztar", root, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", checksum(root / CIFAR10.filename))
    (root / CIFAR10.base_folder / "data_batch_3").write_bytes(b"damaged")
    assert sizes(option("cifar10", tmp_path, root=str(root))) == [90, 10, 20]


def test_a_folder_that_cannot_be_written_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from swinexp.data import sources

    def never(*_: object) -> None:
        raise AssertionError("locked")

    monkeypatch.setattr(sources, "alone", never)
    assert sizes(option("cinic10", tmp_path, root=str(write_cinic10(tmp_path / "cinic")))) == [40, 40, 40]


def test_images_of_another_size_are_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_svhn(tmp_path / "svhn", monkeypatch)
    dataset = load(option("svhn", tmp_path, root=str(root), image_size=16), test=True)
    assert dataset.test is not None
    assert dataset.test.images.shape == (20, 3, 16, 16)
    assert np.array_equal(dataset.test.images[:, 0, 8, 8], np.arange(20))
