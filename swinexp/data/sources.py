"""How each data set is read: from its published files to classes, images and labels."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from swinexp.data.cache import Decoded, alone, cached
from swinexp.data.download import download, unpack
from swinexp.data.images import read_images, resized
from swinexp.data.options import CIFAR10, CIFAR100, CINIC10, SVHN, Data, Digits, ImageFolder, TinyImageNet
from swinexp.data.splits import Split, stratified
from swinexp.mistake import Mistake, check, one_line

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# (address, MD5 sum) of what torchvision does not know
CINIC10_ARCHIVE = (
    "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
    "6ee4d0c996905fe93221de577967a372",
)
TINY_IMAGENET_ARCHIVE = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")

T = TypeVar("T")
# What its images depend on besides name, split and size, and how to decode them.
Source = tuple[list[object], Callable[[], Decoded]]


def read(data: Data, split: str) -> tuple[list[str], Split]:
    """(classes, images and labels) of a split, as it is published, from the cache or from its files.

    `split` is train or test, and of CINIC-10 also valid, of SVHN also extra. Raises `Mistake`.
    """
    root = Path(getattr(data, "root", "")).expanduser()
    file = root.exists() and not root.is_dir()
    check(not file, "data.root", root, "a file, and not the folder that it is in", f"data.root={root.parent}")
    key, decode = _source(data, split)
    return cached(data.cache, [data.name, split, data.image_size, *key], lambda: _promised(data, split, decode()))


def _source(data: Data, split: str) -> Source:
    match data:
        case Digits():
            return _digits(data, split)
        case CIFAR10() | CIFAR100():
            return _cifar(data, split)
        case SVHN():
            return _svhn(data, split)
        case CINIC10():
            return _cinic10(data, split)
        case TinyImageNet():
            return _tiny_imagenet(data, split)
        case ImageFolder():
            return _image_folder(data, split)
    raise AssertionError(data)


def _promised(data: Data, split: str, decoded: Decoded) -> Decoded:
    """`decoded`, before it is kept. Raises `Mistake` unless it is what the data set promises."""
    classes, images, labels = decoded.classes, decoded.split.images, decoded.split.labels
    differ = ", ".join(sorted(set(classes) ^ set(data.names)))
    wrong = [label for label in labels.unique().tolist() if not 0 <= label < len(classes)]
    problem = None
    if data.names and classes != list(data.names):
        problem = f"'{split}' does not have the classes of {data.name} ({differ} is in one only)"
    elif len(classes) != (data.classes or len(classes)):
        problem = f"'{split}' has {len(classes)} classes instead of {data.classes}"
    elif len(images) != len(labels):
        problem = f"'{split}' has {len(images)} images and {len(labels)} labels"
    elif len(labels) == 0:
        problem = f"there is no image in '{split}'"
    elif wrong:
        problem = f"a label in '{split}' is {wrong[0]}, and not one of 0 to {len(classes) - 1}"
    if problem is not None:
        raise Mistake(
            f"data.root={getattr(data, 'root', '')}: {problem}. "
            f"Remove the files of '{split}' and run the same command again, or type data=digits"
        )
    return decoded


def _digits(data: Digits, split: str) -> Source:
    def decode() -> Decoded:
        from sklearn.datasets import load_digits  # a second of imports

        bunch = load_digits()
        images = torch.from_numpy(bunch.images)[:, None] / 16  # (N, 1, 8, 8), 0 to 1
        size = (data.image_size, data.image_size)
        images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        images = (images * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        labels = torch.from_numpy(bunch.target)
        train, test = stratified(labels, 0.2, seed=0)  # always the same fifth
        return Decoded(list(data.names), Split(images, labels)[train if split == "train" else test], [])

    return [], decode


def _cifar(data: CIFAR10 | CIFAR100, split: str) -> Source:
    root = Path(data.root).expanduser()

    def decode() -> Decoded:
        from torchvision import datasets  # a second of imports

        kind = datasets.CIFAR10 if isinstance(data, CIFAR10) else datasets.CIFAR100
        source = _obtained(
            lambda: kind(str(root), train=split == "train"),
            data,
            (kind.url, kind.tgz_md5),
            root / kind.filename,
            root / kind.base_folder,
        )
        images = resized(source.data.transpose(0, 3, 1, 2), data.image_size)  # which torchvision has as (N, H, W, 3)
        return Decoded(list(source.classes), Split(images, torch.tensor(source.targets)), [])

    return [str(root.resolve())], decode


def _svhn(data: SVHN, split: str) -> Source:
    root = Path(data.root).expanduser()

    def decode() -> Decoded:
        from torchvision import datasets  # a second of imports

        url, name, md5 = datasets.SVHN.split_list[split]
        source = _obtained(lambda: datasets.SVHN(str(root), split=split), data, (url, md5), root / name)
        images = resized(source.data, data.image_size)
        return Decoded(list(data.names), Split(images, torch.from_numpy(np.atleast_1d(source.labels))), [])

    return [str(root.resolve())], decode


def _cinic10(data: CINIC10, split: str) -> Source:
    root = Path(data.root).expanduser()

    def decode() -> Decoded:
        folder = _unpacked(data, root, "CINIC-10", CINIC10_ARCHIVE) / split
        return _decoded(data, *_class_folders(folder, data.root))

    return [data.on_error, str(root.resolve())], decode


def _tiny_imagenet(data: TinyImageNet, split: str) -> Source:
    root = Path(data.root).expanduser()

    def decode() -> Decoded:
        folder = _unpacked(data, root, "tiny-imagenet-200", TINY_IMAGENET_ARCHIVE)
        wnids = sorted(_lines(data, folder / "wnids.txt"))
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        words = dict(line.split("\t", 1) for line in _lines(data, folder / "words.txt") if "\t" in line)
        short = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
        # Two classes may have the same first word: they keep their wnid.
        classes = [
            name if short.count(name) == 1 else f"{name} ({wnid})" for name, wnid in zip(short, wnids, strict=True)
        ]
        if split == "train":
            listed = [(path, wnid) for wnid in wnids for path in _images_below(folder / "train" / wnid, data.root)]
        else:
            annotations = [line.split("\t") for line in _lines(data, folder / "val" / "val_annotations.txt")]
            listed = [(str(folder / "val" / "images" / name), "".join(rest[:1])) for name, *rest in annotations]
        for _, wnid in listed:
            if wnid not in labels:
                raise Mistake(
                    f"data.root={data.root}: val_annotations.txt names the class '{wnid}', wnids.txt does not. "
                    f"Remove {folder} and run the same command again"
                )
        return _decoded(data, classes, [path for path, _ in listed], [labels[wnid] for _, wnid in listed])

    return [data.on_error, str(root.resolve())], decode


def _image_folder(data: ImageFolder, split: str) -> Source:
    folder = Path(data.root).expanduser() / split
    classes, files, labels = _class_folders(folder, data.root)
    stamps = []  # these files are the user's, and may change
    for path in files:
        try:
            stat = os.stat(path)
            stamps.append((path, stat.st_size, stat.st_mtime_ns))
        except OSError as error:
            if data.on_error == "raise":
                raise Mistake(f"data.root={data.root}: {path} cannot be read ({error.strerror}). Remove it") from error
            stamps.append((path, -1, -1))
    return [data.on_error, str(folder.resolve()), classes, stamps], lambda: _decoded(data, classes, files, labels)


def _decoded(
    data: CINIC10 | TinyImageNet | ImageFolder, classes: list[str], files: Sequence[str], labels: Sequence[int]
) -> Decoded:
    log.info("decoding %s images of %s (once; kept in %s)", f"{len(files):,}", data.root, data.cache)
    images, kept, remarks = read_images(files, data.image_size, data.root, data.on_error)
    # A published set's files are not looked at again when it is cached: one that lacks some must not stay that way.
    lasting = isinstance(data, ImageFolder) or len(kept) == len(files)
    return Decoded(classes, Split(images, torch.tensor(labels, dtype=torch.int64)[kept]), remarks, lasting)


def _class_folders(folder: Path, root: str) -> tuple[list[str], list[str], list[int]]:
    """(classes, image files, their labels) of a folder that has a folder for each class. Raises `Mistake`."""
    layout = "Type data.root=FOLDER where FOLDER has train/<class>/*.jpg (or .png, .webp …) and test/<class>/*.jpg"
    if not folder.is_dir():
        layout += ", or test=false" if folder.name == "test" else ""
        missing = folder if folder.parent.is_dir() else folder.parent
        raise Mistake(f"data.root={root}: there is no folder {missing}. {layout}")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:
        raise Mistake(f"data.root={root}: {folder} holds {len(classes)} of the at least 2 folders of classes. {layout}")
    files, labels = [], []
    others: Counter[str] = Counter()
    for label, name in enumerate(classes):
        paths = _images_below(folder / name, root, others)
        if not paths:
            raise Mistake(
                f"data.root={root}: class '{name}' is empty, {folder / name} has no image file "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}). Put images there, or remove the folder"
            )
        files += paths
        labels += [label] * len(paths)
    if others:
        most = sorted(others.items(), key=lambda each: (-each[1], each[0]))
        kinds = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in most[:5])
        read = ", ".join(sorted(IMAGE_SUFFIXES))
        log.warning("%s: %s files are left out, which are none of %s: %s", folder, f"{others.total():,}", read, kinds)
    return classes, files, labels


def _images_below(folder: Path, root: str, others: Counter[str] | None = None) -> list[str]:
    """The image files of a folder and of those within it, sorted; hidden ones are left out, and counted in `others`
    by their suffix what is no image. A folder that links lead to again is read once. Raises `Mistake`.
    """

    def refuse(error: OSError) -> None:
        told = f"{error.filename} cannot be read ({error.strerror})"
        raise Mistake(f"data.root={root}: {told}. Make it readable, or remove it") from error

    found = []
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in IMAGE_SUFFIXES:
                found.append(os.path.join(place, name))
            elif others is not None:
                others[suffix] += 1
    return sorted(found)


def _lines(data: TinyImageNet, path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError as error:
        raise Mistake(
            f"data.root={data.root}: {path} cannot be read ({error.strerror}). "
            f"Type data.root=FOLDER where FOLDER is tiny-imagenet-200 as it is published"
        ) from error


def _unpacked(data: CINIC10 | TinyImageNet, root: Path, name: str, archive: tuple[str, str]) -> Path:
    """The folder with a data set's train/: `root` itself, or `name` within it, downloaded when neither is there."""

    def find() -> Path:
        for folder in (root, root / name):
            if (folder / "train").is_dir():
                return folder
        raise RuntimeError("there is no train/")

    return _obtained(find, data, archive, root / archive[0].rpartition("/")[2], root / name)


def _obtained(
    make: Callable[[], T],
    data: CIFAR10 | CIFAR100 | SVHN | CINIC10 | TinyImageNet,
    source: tuple[str, str],
    archive: Path,
    folder: Path | None = None,
) -> T:
    """What `make` returns; a RuntimeError of it says that files are missing, which are then downloaded first.

    `source` is the archive's address and MD5 sum; it is unpacked where it is to be a `folder`. Raises `Mistake`.
    """
    with suppress(RuntimeError):
        return make()
    url, md5 = source
    try:
        with alone(archive):
            with suppress(RuntimeError):
                return make()  # another process has downloaded it while this one waited
            download(url, archive, md5)
            if folder is not None:
                unpack(archive, folder)
            return make()
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            archive.parent.rmdir()  # when nothing has arrived
        raise Mistake(
            f"data={data.name}: its files are not in data.root={data.root} and could not be downloaded "
            f"({one_line(error)}). Put {archive.name} from {url} into {archive.parent} and run the same command again, "
            "or type data=digits, which needs no download"
        ) from error
