"""Data sets as tensors: every split is one uint8 tensor of square RGB images, decoded once and kept on disk.

A data set has a training split, a validation split cut from it, and a test split that is read only when asked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from swinexp.folder import TEMPORARY, write_atomically
from swinexp.mistake import Mistake, check, first_line

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

CACHE_VERSION = 1  # a new one when decoding changes what the pixels are
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass
class Data:
    """What every data set needs; `mirror` says that a mirrored image keeps its label."""

    name: str
    image_size: int
    mirror: bool
    val_fraction: float
    split_seed: int
    cache: str

    def __post_init__(self) -> None:
        check(self.image_size >= 1, "data.image_size", self.image_size, "a size in pixels", "data.image_size=32")
        check(
            0 < self.val_fraction < 1,
            "data.val_fraction",
            self.val_fraction,
            "a share of the training images, between 0 and 1",
            "data.val_fraction=0.1",
        )
        check(
            0 <= self.split_seed < 2**63,
            "data.split_seed",
            self.split_seed,
            "a whole number from 0 to 2⁶³-1",
            "data.split_seed=0",
        )
        check(bool(self.cache), "data.cache", self.cache, "a folder is needed", "data.cache=~/.cache/swinexp")


@dataclass
class Digits(Data):
    """scikit-learn's handwritten digits."""


@dataclass
class CIFAR10(Data):
    """torchvision's CIFAR-10 in `root`, downloaded when it is not there."""

    root: str


@dataclass
class ImageFolder(Data):
    """`root`/train/<class>/ and `root`/test/<class>/ with JPEG or PNG files."""

    root: str


DATA: dict[str, type[Data]] = {"digits": Digits, "cifar10": CIFAR10, "image_folder": ImageFolder}


@dataclass(frozen=True)
class Split:
    """Images (N, 3, S, S) uint8 and their labels (N,) int64, on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Split:
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def batches(self, size: int) -> Iterator[Split]:
        """Every image once, in order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield Split(self.images[start : start + size], self.labels[start : start + size])


@dataclass(frozen=True)
class Dataset:
    """What a run trains on. `mean` and `std` (3,) are of the training split's pixels, scaled to [0, 1]."""

    classes: list[str]
    train: Split
    val: Split
    test: Split | None
    mean: Tensor
    std: Tensor

    def to(self, device: torch.device) -> Dataset:
        """All on one device but the test split, which waits on the host until the end."""
        return replace(
            self,
            train=self.train.to(device),
            val=self.val.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )


def load(data: Data, test: bool, limit_train: int | None = None) -> Dataset:
    """Read the training images, cut off the validation split, and measure mean and std of what is left.

    The test split is read only with `test`. `limit_train` keeps so many training images, the same share of each class.
    Raises `Mistake` when images are missing, unreadable or too few.
    """
    read = {"digits": _digits, "cifar10": _cifar10, "image_folder": _image_folder}[data.name]
    classes, whole = read(data, "train")
    train_index, val_index = stratified(whole.labels, data.val_fraction, data.split_seed)
    for label, name in enumerate(classes):
        trained, judged = (int((whole.labels[index] == label).sum()) for index in (train_index, val_index))
        fits = 0.5 if trained == 0 else math.ceil(1000 / (trained + judged)) / 1000
        check(
            trained > 0 and judged > 0,
            "data.val_fraction",
            data.val_fraction,
            f"of {trained + judged} images of class '{name}' it leaves {trained} for training, {judged} for validation",
            f"data.val_fraction={fits:g}" if trained + judged > 1 else f"nothing, and add images of '{name}'",
        )
    if limit_train is not None:
        check(
            len(classes) <= limit_train <= len(train_index),
            "trainer.limit_train",
            limit_train,
            f"it must be between the number of classes, {len(classes)}, and of training images, {len(train_index)}",
            f"trainer.limit_train={min(max(limit_train, len(classes)), len(train_index))}",
        )
        if limit_train < len(train_index):
            _, kept = stratified(whole.labels[train_index], limit_train / len(train_index), data.split_seed)
            train_index = train_index[kept]
    train = whole[train_index]
    mean, std = mean_std(train.images)
    return Dataset(classes, train, whole[val_index], _test(read, data, classes) if test else None, mean, std)


def _test(read: Callable[[Data, str], tuple[list[str], Split]], data: Data, classes: list[str]) -> Split:
    test_classes, split = read(data, "test")
    if test_classes != classes:
        differ = ", ".join(sorted(set(test_classes) ^ set(classes)))
        raise Mistake(
            f"data.root={getattr(data, 'root', '')}: train and test do not have the same classes "
            f"({differ} is in one only). Give both the same folders, or type test=false"
        )
    return split


def stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two disjoint sorted index tensors that together are all of `labels`; the second holds `fraction` of each class.

    The second has exactly round(fraction · N) entries: classes whose share is not whole are rounded so that the
    largest remainders are rounded up.
    """
    generator = torch.Generator().manual_seed(seed)
    members = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    shares = torch.tensor([fraction * len(index) for index in members], dtype=torch.float64)
    counts = shares.floor().long()
    missing = round(fraction * len(labels)) - int(counts.sum())
    counts[(shares - counts).argsort(descending=True, stable=True)[:missing]] += 1
    second = torch.zeros(len(labels), dtype=torch.bool)
    for index, count in zip(members, counts.tolist(), strict=True):
        second[index[torch.randperm(len(index), generator=generator)[:count]]] = True
    return (~second).nonzero()[:, 0], second.nonzero()[:, 0]


def mean_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Per-channel mean and standard deviation (3,) of uint8 images, on the scale [0, 1], exact to rounding."""
    channels = images.transpose(0, 1).flatten(1)
    counts = torch.stack([channel.bincount(minlength=256) for channel in channels]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(dim=1, keepdim=True)
    mean = (share * values).sum(dim=1)
    variance = (share * (values - mean[:, None]) ** 2).sum(dim=1)
    # A channel that never varies is left as it is rather than divided by zero.
    std = variance.sqrt()
    return mean.float(), torch.where(std > 0, std, 1.0).float()


def _digits(data: Data, split: str) -> tuple[list[str], Split]:
    def decode() -> tuple[list[str], Split]:
        from sklearn.datasets import load_digits  # a second of imports

        bunch = load_digits()
        images = torch.from_numpy(bunch.images)[:, None] / 16  # (N, 1, 8, 8), 0 to 1
        size = (data.image_size, data.image_size)
        images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        images = (images * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        labels = torch.from_numpy(bunch.target)
        train, test = stratified(labels, 0.2, seed=0)  # always the same fifth
        return [str(name) for name in bunch.target_names], Split(images, labels)[train if split == "train" else test]

    return cached(data.cache, ["digits", split, data.image_size], decode)


def _cifar10(data: Data, split: str) -> tuple[list[str], Split]:
    assert isinstance(data, CIFAR10)
    root = Path(data.root).expanduser()

    def decode() -> tuple[list[str], Split]:
        from PIL import Image
        from torchvision.datasets import CIFAR10 as Source

        try:
            if not _intact(Source, root):
                log.info("downloading CIFAR-10 (170 MB, once) from %s to %s", Source.url, root)
                with _patience(seconds=30):
                    Source(str(root), download=True)
            source = Source(str(root), train=split == "train")
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                root.rmdir()  # when the download has left it empty
            raise Mistake(
                f"data=cifar10: CIFAR-10 is not in data.root={data.root} and could not be downloaded ({error}). "
                f"Put {Source.filename} from {Source.url} into {root} and run the same command again, "
                "or type data=digits, which needs no download"
            ) from error
        pixels = np.stack([_square(Image.fromarray(image), data.image_size) for image in source.data])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        return source.classes, Split(images, torch.tensor(source.targets))

    return cached(data.cache, ["cifar10", split, data.image_size, str(root.resolve())], decode)


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Give up on a server that is silent for so long, where the library would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _intact(source: type, root: Path) -> bool:
    """All of the data set's files are there: a missing one needs the download, a damaged one too."""
    try:
        source(str(root))
    except RuntimeError:
        return False
    return True


def _image_folder(data: Data, split: str) -> tuple[list[str], Split]:
    assert isinstance(data, ImageFolder)
    folder = Path(data.root).expanduser() / split
    layout = "Type data.root=FOLDER where FOLDER has train/<class>/*.jpg (or .png) and test/<class>/*.jpg"
    if not folder.is_dir():
        missing = folder if folder.parent.is_dir() else folder.parent
        raise Mistake(f"data.root={data.root}: there is no folder {missing}. {layout}")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:
        raise Mistake(
            f"data.root={data.root}: {folder} holds {len(classes)} of the at least 2 folders of classes. {layout}"
        )
    files, labels, stamps = [], [], []
    for label, name in enumerate(classes):
        paths = _images_below(folder / name)
        if not paths:
            raise Mistake(
                f"data.root={data.root}: class '{name}' is empty, {folder / name} has no .jpg or .png file. "
                "Put images there, or remove the folder"
            )
        for path in paths:
            try:
                stat = os.stat(path)
            except OSError as error:
                raise Mistake(f"data.root={data.root}: {path} cannot be read ({error.strerror}). Remove it") from error
            files.append(path)
            labels.append(label)
            stamps.append((name, path, stat.st_size, stat.st_mtime_ns))

    def decode() -> tuple[list[str], Split]:
        log.info("decoding %s images of %s (once; kept in %s)", f"{len(files):,}", folder, data.cache)
        images = _read_images(files, data.root, data.image_size)
        return classes, Split(images, torch.tensor(labels))

    return cached(data.cache, ["image_folder", split, data.image_size, str(folder.resolve()), stamps], decode)


def _images_below(folder: Path) -> list[str]:
    """The image files of a folder and of those within it, sorted; hidden ones are left out."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(place, name)
            for name in names
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def _read_images(files: Sequence[str], root: str, size: int) -> Tensor:
    """(N, 3, size, size) uint8, decoded on all cores. Raises `Mistake` naming the first file that is no image."""
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image
    from rich.console import Console
    from rich.progress import track

    images = np.empty((len(files), size, size, 3), dtype=np.uint8)

    def read(i: int) -> None:
        try:
            with Image.open(files[i]) as image:
                images[i] = _square(image, size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise Mistake(
                f"data.root={root}: {files[i]} is not a readable image ({error}). Replace or remove the file"
            ) from error

    console = Console()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the interpreter's lock
        done = pool.map(read, range(len(files)))
        try:
            for _ in track(done, "decoding", total=len(files), console=console, disable=not console.is_terminal):
                pass
        except BaseException:  # ctrl-C too
            pool.shutdown(cancel_futures=True)
            raise
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _square(image: Image.Image, size: int) -> np.ndarray:
    """(size, size, 3) uint8 from an image of any mode and shape: scaled, and cut about its centre."""
    from PIL import Image, ImageOps

    if image.mode.startswith(("I", "F")):  # 16 bits a pixel, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
    image = image.convert("RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def cached(folder: str, key: list[object], decode: Callable[[], tuple[list[str], Split]]) -> tuple[list[str], Split]:
    """What `decode` returns, kept in `folder` under the hash of `key` and memory-mapped from there the next time.

    The file appears whole or not at all, so that a killed run or two runs at once leave no damaged one;
    one that cannot be read all the same is made anew.
    """
    digest = hashlib.sha256(json.dumps([CACHE_VERSION, *key]).encode()).hexdigest()[:24]
    path = Path(folder).expanduser() / f"{key[0]}-{key[1]}-{digest}.pt"
    if path.exists():
        try:
            saved = torch.load(path, mmap=True, weights_only=True)
            return saved["classes"], Split(saved["images"], saved["labels"])
        except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
            log.warning("%s is damaged (%s): decoding again", path, first_line(error))
    classes, split = decode()
    for leftover in path.parent.glob(f".*{TEMPORARY}"):  # of a process that was killed while it wrote
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save({"classes": classes, **vars(split)}, file))
    except OSError as error:
        log.warning("the decoded images could not be kept in %s (%s): they are decoded again next time", folder, error)
    return classes, split
