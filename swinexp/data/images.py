"""From image files and arrays to one uint8 tensor, on all cores."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch import Tensor

from swinexp.mistake import Mistake, one_line

log = logging.getLogger(__name__)

CHUNK = 64  # images that a thread does at a time: handing out work costs as much as decoding a small image
KINDS = {"1": "grey", "L": "grey", "LA": "grey with transparency", "P": "palette"}
# What Pillow raises over a file that is no image, or one cut short.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

Pixels = NDArray[np.uint8]


def read_images(files: Sequence[str], size: int, root: str, on_error: str) -> tuple[Tensor, Tensor, list[str]]:
    """(images (K, 3, size, size) uint8, which of the files they are (K,), remarks about the files).

    A file that is no image is left out with `on_error` skip. Raises `Mistake` with raise, naming it, or when all are.
    """
    images = torch.empty((len(files), 3, size, size), dtype=torch.uint8)
    pixels = images.numpy()
    kinds = [""] * len(files)
    errors: dict[int, Exception] = {}

    def read(i: int) -> None:
        try:
            with opened(files[i]) as image:
                pixels[i] = square(image, size)
                kinds[i] = "16-bit" if image.mode.startswith(("I", "F")) else KINDS.get(image.mode, image.mode)
        except UNREADABLE as error:
            if on_error == "raise":
                raise Mistake(
                    f"data.root={root}: {files[i]} is not a readable image ({one_line(error)}). "
                    "Replace or remove the file, or type data.on_error=skip"
                ) from error
            errors[i] = error

    on_all_cores(read, len(files), "decoding")
    remarks = []
    if converted := Counter(kind for kind in kinds if kind not in ("", "RGB")):
        counts = ", ".join(f"{count:,} {kind}" for kind, count in converted.most_common())
        remarks.append(f"{root}: of {len(files):,} images some were not RGB and have been converted: {counts}")
    kept = torch.tensor([i for i in range(len(files)) if i not in errors], dtype=torch.int64)
    if errors:
        first = min(errors)
        example = f"the first is {files[first]} ({one_line(errors[first])})"
        if not len(kept):
            raise Mistake(f"data.root={root}: none of {len(files):,} images is readable; {example}. Replace the files")
        remarks.append(
            f"{root}: {len(errors):,} of {len(files):,} images could not be read and have been skipped; {example}"
        )
        images = images[kept]
    return images, kept, remarks


def resized(pixels: Pixels, size: int) -> Tensor:
    """(N, 3, H, W) -> (N, 3, size, size) uint8."""
    if pixels.shape[2:] == (size, size):
        return torch.from_numpy(np.ascontiguousarray(pixels))
    images = torch.empty((len(pixels), 3, size, size), dtype=torch.uint8)
    target = images.numpy()

    def resize(i: int) -> None:
        target[i] = square(Image.fromarray(np.ascontiguousarray(pixels[i].transpose(1, 2, 0))), size)

    on_all_cores(resize, len(pixels), "resizing")
    return images


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """An image file, through a handle: what Pillow opens by name it maps into memory, and turns some TIFFs wrongly.

    Raises `UNREADABLE`.
    """
    with open(path, "rb") as file, Image.open(file) as image:
        yield image


def square(image: Image.Image, size: int) -> Pixels:
    """(3, size, size) from an image of any mode and shape: turned as its EXIF says, scaled, cut about its centre."""
    image.load()
    with suppress(Exception):  # which it raises of almost any kind over an EXIF that is damaged, and so says nothing
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError(f"what is white is not known in mode {image.mode}")
    if image.mode.startswith(("I", "F")):  # 16 bits a pixel, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:  # which Pillow wants to have seen
        image = image.convert("RGBA")
    image = image.convert("RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def on_all_cores(work: Callable[[int], None], count: int, title: str) -> None:
    """Call `work` with every number below `count`, with a bar on a terminal. Raises the first error that one raises."""

    def chunk(start: int) -> None:
        for i in range(start, min(start + CHUNK, count)):
            work(i)

    starts = range(0, count, CHUNK)
    console = Console()
    # The cores of this process, which may be fewer than the machine's; macOS does not tell them.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(cores) as pool:  # Pillow decodes without the interpreter's lock
        done = pool.map(chunk, starts)
        try:
            for _ in track(done, title, total=len(starts), console=console, disable=not console.is_terminal):
                pass
        except BaseException:  # ctrl-C too
            pool.shutdown(cancel_futures=True)
            raise
