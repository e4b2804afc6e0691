"""Small data sets, written as the real ones are published."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from swinexp import CONF
from swinexp.data import DATA

FOLDER_CLASSES = ("ant", "bee", "cat")
# Out of order, as wnids.txt is; two classes whose first word is the same.
WNIDS = {"n02000003": "crane", "n01000001": "goldfish, Carassius auratus", "n01000002": "crane, bird"}


def option(name: str, tmp_path: Path, **changes: object) -> Any:
    """An option of the group `data`, with the values of its YAML, and a cache of the test's own."""
    cfg = OmegaConf.create({"data": OmegaConf.load(CONF / "data" / f"{name}.yaml")})
    cfg.data = OmegaConf.merge(cfg.data, {"cache": str(tmp_path / "cache"), **changes})
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    return DATA[name](**values["data"])


def write_folder(root: Path) -> Path:
    """train/ with 8 and test/ with 4 images of each class; the red channel of class k is 80·k, the green one counts."""
    for split, count in (("train", 8), ("test", 4)):
        for k, name in enumerate(FOLDER_CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((8, 8, 3), (80 * k, 10 * i, 7), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:04}.png")
    return root


def image_folder(root: Path, **changes: object) -> Any:
    """The data set of `write_folder`, of which a quarter are validation images."""
    return option("image_folder", root.parent, **{"root": str(root), "image_size": 8, "val_fraction": 0.25, **changes})


def write_cifar(root: Path, kind: Any, monkeypatch: pytest.MonkeyPatch, images: int = 20) -> Path:
    """torchvision's CIFAR-10 or CIFAR-100 with random images, and its table of checksums to match."""
    fine = kind.base_folder == "cifar-100-python"
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    names = DATA["cifar100" if fine else "cifar10"].names

    def write(name: str, content: object) -> str:
        blob = pickle.dumps(content)
        (folder / name).write_bytes(blob)
        return hashlib.md5(blob).hexdigest()

    def batch(name: str) -> tuple[str, str]:
        pixels = random.integers(256, size=(images, 3072), dtype=np.uint8)
        labels = [i % len(names) for i in range(images)]
        known = {"fine_labels": labels, "coarse_labels": [0] * images} if fine else {"labels": labels}
        return name, write(name, {"data": pixels, "batch_label": name, **known})

    monkeypatch.setattr(kind, "train_list", [batch(name) for name, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [batch(name) for name, _ in kind.test_list])
    meta = {kind.meta["key"]: list(names)}
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": write(kind.meta["filename"], meta)})
    return root


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch, labels: list[int] | None = None) -> Path:
    """The .mat files of SVHN: X (32, 32, 3, N), y (N, 1) with 10 for the digit 0; image i is filled with i."""
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    root.mkdir(parents=True)
    table = {}
    for split, count in (("train", 100), ("test", 20), ("extra", 30)):
        name = f"{split}_32x32.mat"
        y = np.array(labels or [1 + i % 10 for i in range(count)], dtype=np.uint8)[:, None]
        images = np.broadcast_to(np.arange(len(y), dtype=np.uint8), (32, 32, 3, len(y)))
        savemat(root / name, {"X": images, "y": y})
        table[split] = ["http://127.0.0.1:9/" + name, name, hashlib.md5((root / name).read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", table)
    return root


def write_cinic10(root: Path) -> Path:
    """train/, valid/ and test/ with four PNG files of each of CIFAR-10's classes, and the files beside them."""
    for s, split in enumerate(("train", "valid", "test")):
        for k, name in enumerate(DATA["cinic10"].names):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.full((32, 32, 3), (10 * k, 50 * s, i), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"cifar10-{split}-{i}.png")
    (root / "README.md").write_text("CINIC-10")
    (root / "synsets-to-cifar-10-classes.txt").write_text("n02690373 airplane")
    return root


def write_tiny_imagenet(root: Path) -> Path:
    """Three classes of Tiny-ImageNet with ten images each, and five validation images with their annotations."""
    for k, wnid in enumerate(sorted(WNIDS)):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (64, 64), (80 * k, 20 * i, 0)).save(folder / f"{wnid}_{i}.JPEG", quality=95)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for i, k in enumerate((2, 0, 1, 1, 0)):
        Image.new("RGB", (64, 64), (80 * k, 0, 0)).save(root / "val" / "images" / f"val_{i}.JPEG", quality=95)
        lines.append(f"val_{i}.JPEG\t{sorted(WNIDS)[k]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "test" / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(root / "test" / "images" / "test_0.JPEG")  # without a label
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    others = "n00001740\tentity\nn00001930\tphysical entity\n"
    (root / "words.txt").write_text(others + "".join(f"{wnid}\t{words}\n" for wnid, words in WNIDS.items()))
    return root
