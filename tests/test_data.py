from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swinexp.data import Split, load, mean_std, stratified
from swinexp.mistake import Mistake
from tests.published import image_folder, option, write_folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images")


def test_digits_are_split_in_three_without_overlap(tmp_path: Path) -> None:
    dataset = load(option("digits", tmp_path, image_size=16), test=True)
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
    digits = option("digits", tmp_path, image_size=16)
    whole, limited = load(digits, test=False), load(digits, test=False, limit_train=100)
    assert len(limited.train) == 100
    assert torch.equal(limited.val.images, whole.val.images)
    counts = limited.train.labels.bincount()
    assert counts.min() >= 9
    assert counts.max() <= 11
    for wrong in (5, 2000):
        with pytest.raises(
            Mistake, match=rf"trainer.limit_train={wrong}: it must be between the number of classes, 10,"
        ):
            load(digits, test=False, limit_train=wrong)


def test_mean_and_std_are_exact() -> None:
    images = torch.randint(256, (50, 3, 9, 9), dtype=torch.uint8)
    mean, std = mean_std(images)
    pixels = images.double() / 255
    torch.testing.assert_close(mean, pixels.mean(dim=(0, 2, 3)).float())
    torch.testing.assert_close(std, pixels.std(dim=(0, 2, 3), correction=0).float())
    assert mean_std(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))[1].tolist() == [1, 1, 1]


def test_too_few_images_for_a_validation_split(tree: Path) -> None:
    with pytest.raises(Mistake, match=r"=0.05: of 8 images of class '\w+' it leaves 8 for training, 0 for .*=0.125"):
        load(image_folder(tree, val_fraction=0.05), test=False)
    assert len(load(image_folder(tree, val_fraction=0.125), test=False).val) == 3
    with pytest.raises(Mistake, match=r"data.val_fraction=1.5: a share of the training images"):
        image_folder(tree, val_fraction=1.5)


def test_limit_train_leaves_no_class_without_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import swinexp.data.dataset as dataset

    labels = torch.cat([torch.zeros(900, dtype=torch.int64), torch.arange(1, 10).repeat(20)])
    images = torch.zeros(len(labels), 3, 16, 16, dtype=torch.uint8)
    monkeypatch.setattr(dataset, "read", lambda *_: ([str(i) for i in range(10)], Split(images, labels)))
    digits = option("digits", tmp_path, image_size=16)
    with pytest.raises(
        Mistake, match=r"limit_train=20: no training image of class '\d' is left. Type .*=(\d+)"
    ) as told:
        load(digits, test=False, limit_train=20)
    limited = load(digits, test=False, limit_train=int(str(told.value).rpartition("=")[2]))
    assert limited.train.labels.bincount().min() > 0
