"""Augmentation policies: which operation each image gets, how strong, and in which direction.

The spaces and sub-policies are those of the papers as torchvision has them. All is drawn on the host, see `operate`.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Generator, Tensor

from swinexp.augment.operations import CODES, GEOMETRIC, OPERATIONS, operate

POLICIES = ("trivial", "rand", "auto")
SIGNED = (*GEOMETRIC, "brightness", "color", "contrast", "sharpness")
DRAWN = tuple(name for name in OPERATIONS if name != "invert")  # by TrivialAugment and RandAugment
BINS = 31  # magnitudes of TrivialAugment and RandAugment; AutoAugment has 10
# AutoAugment's policy for CIFAR-10 (arXiv 1805.09501, table 7): 25 pairs of (operation, probability, magnitude bin).
CIFAR10 = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 0)),
)


def trivial_augment(images: Tensor, generator: Generator) -> Tensor:
    """One operation on each image, of a magnitude drawn anew: TrivialAugment, wide (arXiv 2103.10158).

    (B, 3, H, W) uint8 -> the same; `generator` is on the host.
    """
    operation = _drawn(len(images), generator)
    level = torch.randint(BINS, (len(images),), generator=generator)
    return _signed(images, operation, wide()[operation, level], generator)


def rand_augment(images: Tensor, operations: int, magnitude: int, generator: Generator) -> Tensor:
    """So many operations on each image, all of bin `magnitude` of 0 … 30: RandAugment (arXiv 1909.13719).

    (B, 3, H, W) uint8 -> the same; `generator` is on the host.
    """
    space = narrow(images.shape[-2], images.shape[-1], BINS)
    for _ in range(operations):
        operation = _drawn(len(images), generator)
        images = _signed(images, operation, space[operation, magnitude], generator)
    return images


def auto_augment(images: Tensor, generator: Generator) -> Tensor:
    """A pair of operations on each image, each with its probability: AutoAugment's policy for CIFAR-10.

    (B, 3, H, W) uint8 -> the same; `generator` is on the host.
    """
    B = len(images)
    space = narrow(images.shape[-2], images.shape[-1], 10)
    pair = torch.randint(len(CIFAR10), (B,), generator=generator)
    for operations, probabilities, levels in _cifar10():
        happens = torch.rand(B, generator=generator) < probabilities[pair]
        operation = torch.where(happens, operations[pair], CODES["identity"])
        images = _signed(images, operation, space[operation, levels[pair]], generator)
    return images


def _drawn(count: int, generator: Generator) -> Tensor:
    """(count,): an operation for each image, each of `DRAWN` as likely."""
    return _codes(DRAWN)[torch.randint(len(DRAWN), (count,), generator=generator)]


def _signed(images: Tensor, operation: Tensor, magnitude: Tensor, generator: Generator) -> Tensor:
    """`operate`, with the magnitudes of operations that have two directions turned round for half of the images."""
    turned = torch.randint(2, (len(images),), generator=generator).bool()
    turned &= torch.isin(operation, _codes(SIGNED))
    return operate(images, operation, torch.where(turned, -magnitude, magnitude))


@cache
def _codes(names: tuple[str, ...]) -> Tensor:
    return torch.tensor([CODES[name] for name in names])


@cache
def _cifar10() -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """For the first and the second operation of the pairs: operations, probabilities and bins, each (25,)."""
    return tuple(
        (_codes(names), torch.tensor(probabilities), torch.tensor(levels))
        for names, probabilities, levels in (zip(*turn, strict=True) for turn in zip(*CIFAR10, strict=True))
    )


@cache
def wide() -> Tensor:
    """(15, 31): the magnitudes of each operation in TrivialAugment's wide space."""
    return _space(BINS, shear=0.99, translate=(32, 32), rotate=135, strength=0.99, bits=6)


@cache
def narrow(height: int, width: int, bins: int) -> Tensor:
    """(15, bins): the magnitudes of each operation in RandAugment's and AutoAugment's space."""
    translate = (150 / 331 * width, 150 / 331 * height)
    return _space(bins, shear=0.3, translate=translate, rotate=30, strength=0.9, bits=4)


def _space(
    bins: int, shear: float, translate: tuple[float, float], rotate: float, strength: float, bits: int
) -> Tensor:
    """(15, bins): from nothing to the most that an operation does; posterize keeps 8 bits down to 8 - `bits`."""
    most = {
        "shear_x": shear, "shear_y": shear, "translate_x": translate[0], "translate_y": translate[1], "rotate": rotate,
        "brightness": strength, "color": strength, "contrast": strength, "sharpness": strength,
    }  # fmt: skip
    rows = [torch.linspace(0, most.get(name, 0), bins) for name in OPERATIONS]
    rows[CODES["posterize"]] = 8 - (torch.arange(bins) / ((bins - 1) / bits)).round()
    rows[CODES["solarize"]] = torch.linspace(255, 0, bins)
    return torch.stack(rows)
