"""What the group augmentation decides, and the way of a batch through it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from swinexp.augment.colour import jitter
from swinexp.augment.mixing import cutmix, mixup
from swinexp.augment.policies import BINS, POLICIES, auto_augment, rand_augment, trivial_augment
from swinexp.augment.spatial import cutout, flip, random_crop, random_erase, random_resized_crop
from swinexp.mistake import check, one_of, shown

MIXES = ("cutmix", "mixup", "switch")
PADDINGS = ("zeros", "reflect")
LEAST_ALPHA = 0.05  # below, draws of Beta(α, α) need more than fp32


@dataclass
class Augmentation:
    """What is done to training images, in this order; every image draws for itself.

    `resized_crop`   range of its share of the image's area, or null
    `policy`         null or one of `POLICIES`; `rand_operations` and `rand_magnitude` are RandAugment's n and m
    `flip`           mirrors half of the images; with `flip_in_turn` each image in every second epoch
    `crop`           pixels of padding; `crop_padding` is what they are, one of `PADDINGS`
    `jitter`         strengths of brightness, contrast, saturation and hue, or null
    `erase`          share of the images that lose a rectangle
    `cutout`         side of the square that every image loses
    `mix`            null or one of `MIXES`, switch being either, half of the time; on a share `mix_prob` of the
                     batches, drawn for each image or, without `mix_each`, once for the batch
    `repeats`        views of an image in a batch
    `normalise`      the network sees mean 0 and standard deviation 1, and otherwise [0, 1]
    """

    resized_crop: list[float] | None
    policy: str | None
    rand_operations: int
    rand_magnitude: int
    flip: bool
    flip_in_turn: bool
    crop: int
    crop_padding: str
    jitter: list[float] | None
    erase: float
    cutout: int
    mix: str | None
    mix_prob: float
    mix_each: bool
    mixup_alpha: float
    cutmix_alpha: float
    repeats: int
    normalise: bool

    def __post_init__(self) -> None:
        for key in ("crop", "cutout"):
            value = getattr(self, key)
            check(value >= 0, f"augmentation.{key}", value, "pixels, 0 for none", f"augmentation.{key}=4")
        for key in ("erase", "mix_prob"):
            value = getattr(self, key)
            check(0 <= value <= 1, f"augmentation.{key}", value, "a share between 0 and 1", f"augmentation.{key}=0.25")
        for key in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, key)
            check(
                LEAST_ALPHA <= value < math.inf,
                f"augmentation.{key}",
                value,
                f"at least {LEAST_ALPHA}",
                f"augmentation.{key}=1",
            )
        one_of("augmentation.crop_padding", self.crop_padding, PADDINGS)
        check(
            self.crop > 0 or self.crop_padding == "zeros",
            "augmentation.crop_padding",
            self.crop_padding,
            "there is no padding (augmentation.crop=0)",
            "augmentation.crop=2, or augmentation.crop_padding=zeros",
        )
        if self.policy is not None:
            one_of("augmentation.policy", self.policy, POLICIES)
        if self.mix is not None:
            one_of("augmentation.mix", self.mix, MIXES)
        n, m = self.rand_operations, self.rand_magnitude
        check(n >= 1, "augmentation.rand_operations", n, "at least 1", "augmentation.rand_operations=2")
        most = BINS - 1
        check(0 <= m <= most, "augmentation.rand_magnitude", m, f"0 to {most}", "augmentation.rand_magnitude=9")
        check(self.repeats >= 1, "augmentation.repeats", self.repeats, "at least 1 view", "augmentation.repeats=1")
        check(
            self.flip or not self.flip_in_turn,
            "augmentation.flip_in_turn",
            True,
            "images are not mirrored (augmentation.flip=false)",
            "augmentation.flip=true, or augmentation.flip_in_turn=false",
        )
        area = self.resized_crop
        check(
            area is None or (len(area) == 2 and 0 < area[0] <= area[1] <= 1),
            "augmentation.resized_crop",
            area,
            "the least and the largest share of the image's area, or null",
            "augmentation.resized_crop=[0.35,1]",
        )
        check(
            self.jitter is None
            or (
                len(self.jitter) == 4 and min(self.jitter) >= 0 and max(self.jitter[:3]) <= 1 and self.jitter[3] <= 0.5
            ),
            "augmentation.jitter",
            self.jitter,
            "strengths of brightness, contrast, saturation (0 to 1) and hue (0 to 0.5), or null",
            f"augmentation.jitter={shown([0.4, 0.4, 0.4, 0.1])}",
        )


def augment(
    config: Augmentation,
    images: Tensor,
    labels: Tensor,
    classes: int,
    mean: Tensor,
    std: Tensor,
    generator: Generator,
    mirrored: Tensor | None = None,
    batch: int | None = None,
    host: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """uint8 images (B, 3, H, W) and labels (B,) -> normalised float images, label weights (B, K) that sum to 1.

    `mean` and `std` are (3,); `generator` is on the images' device and decides every draw but those of a policy, which
    `host` decides, a generator on the host; on a CPU one may be both. `mirrored` (B,) says which images `flip_in_turn`
    mirrors. They may be several batches of `batch` images, which are not mixed with others.
    """
    if config.resized_crop is not None:
        images = random_resized_crop(images, config.resized_crop, generator)
    host = host or generator
    if config.policy == "trivial":
        images = trivial_augment(images, host)
    elif config.policy == "rand":
        images = rand_augment(images, config.rand_operations, config.rand_magnitude, host)
    elif config.policy == "auto":
        images = auto_augment(images, host)
    if config.flip and mirrored is None:
        mirrored = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    if config.crop:
        images = random_crop(images, config.crop, generator, mirrored, config.crop_padding == "reflect")
    elif mirrored is not None:
        images = flip(images, mirrored)
    if config.jitter is not None:
        images = jitter(images, config.jitter, generator)
    pixels = normalise(images, mean, std)
    if config.erase:
        pixels = random_erase(pixels, config.erase, generator, reuse=True)
    if config.cutout:
        pixels = cutout(pixels, config.cutout, generator)
    weights = (labels[:, None] == torch.arange(classes, device=labels.device)).to(pixels.dtype)
    if config.mix is not None:
        pixels, weights = _mixed(config, pixels, weights, batch or len(images), generator)
    return pixels, weights


def _mixed(
    config: Augmentation, pixels: Tensor, weights: Tensor, batch: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """The batches mixed, or as they are: by what share, so that the device is not asked which."""
    draw = torch.rand(2, len(pixels) // batch, generator=generator, device=pixels.device)
    happens, kind = draw.repeat_interleave(batch, dim=1)
    happens = happens < config.mix_prob
    by_mixup = kind < {"mixup": 1, "switch": 0.5, "cutmix": 0}[config.mix or ""]
    each = config.mix_each
    if config.mix != "cutmix":
        now = happens & by_mixup
        pixels, weights = mixup(pixels, weights, config.mixup_alpha, each, generator, now, reuse=True, batch=batch)
    if config.mix != "mixup":
        now = happens & ~by_mixup
        pixels, weights = cutmix(pixels, weights, config.cutmix_alpha, each, generator, now, reuse=True, batch=batch)
    return pixels, weights


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float, (pixel / 255 - mean) / std for each channel."""
    scale = 1 / (255 * std)
    return images.float().mul_(scale[:, None, None]).sub_((mean / std)[:, None, None])


def mirrored_in_turn(count: int, epoch: int, generator: Generator) -> Tensor:
    """(count,) bool: the images that are mirrored in this epoch, which are those that were not in the one before.

    `generator` decides the first epoch, and must be seeded alike in all of them. As in airbench (arXiv 2404.00498).
    """
    first = torch.rand(count, generator=generator, device=generator.device) < 0.5
    return first ^ bool(epoch % 2)
