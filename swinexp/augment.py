"""Augmentation of whole batches on the device, as pure functions: every image draws for itself, from one generator.

B images, H × W pixels, K classes. No loop over images, no global random state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from swinexp.mistake import check


@dataclass
class Augmentation:
    """`crop`: pixels of padding. `erase`: share of the images. `mix`: null or cutmix, on `mix_prob` of the batches."""

    crop: int
    flip: bool
    erase: float
    mix: str | None
    mix_prob: float

    def __post_init__(self) -> None:
        check(self.crop >= 0, "augmentation.crop", self.crop, "pixels of padding, 0 for none", "augmentation.crop=4")
        for key in ("erase", "mix_prob"):
            value = getattr(self, key)
            check(0 <= value <= 1, f"augmentation.{key}", value, "a share between 0 and 1", f"augmentation.{key}=0.25")
        check(self.mix in (None, "cutmix"), "augmentation.mix", self.mix, "null or cutmix", "augmentation.mix=cutmix")
        check(
            (self.mix is None) == (self.mix_prob == 0),
            "augmentation.mix_prob",
            self.mix_prob,
            f"it has no effect with augmentation.mix={'null' if self.mix is None else self.mix}",
            "augmentation.mix=cutmix augmentation.mix_prob=0.5, or augmentation.mix=null augmentation.mix_prob=0",
        )


def augment(
    config: Augmentation, images: Tensor, labels: Tensor, classes: int, mean: Tensor, std: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """uint8 images (B, 3, H, W) and labels (B,) -> normalised float images, label weights (B, K) that sum to 1.

    `mean` and `std` are (3,); `generator` is on the images' device and decides every draw.
    """
    if config.crop:
        images = random_crop(images, config.crop, generator)
    if config.flip:
        images = random_flip(images, generator)
    pixels = normalise(images, mean, std)
    if config.erase:
        pixels = random_erase(pixels, config.erase, generator)
    weights = (labels[:, None] == torch.arange(classes, device=labels.device)).to(pixels.dtype)
    if config.mix == "cutmix":
        pixels, weights = cutmix(pixels, weights, config.mix_prob, generator)
    return pixels, weights


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float, (pixel / 255 - mean) / std for each channel."""
    scale = 1 / (255 * std)
    return images.float() * scale[:, None, None] - (mean / std)[:, None, None]


def random_crop(images: Tensor, padding: int, generator: Generator) -> Tensor:
    """A window of the original size out of each zero-padded image. (B, C, H, W) -> (B, C, H, W)"""
    B, _, H, W = images.shape
    device = images.device
    top = torch.randint(2 * padding + 1, (B, 1), generator=generator, device=device)
    left = torch.randint(2 * padding + 1, (B, 1), generator=generator, device=device)
    rows = top + torch.arange(H, device=device)  # (B, H)
    columns = left + torch.arange(W, device=device)  # (B, W)
    padded = F.pad(images, (padding, padding, padding, padding))
    image = torch.arange(B, device=device)
    # The channel slice stands between the index tensors, so the result is (B, H, W, C).
    return padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror half of the images left to right. (B, C, H, W) -> (B, C, H, W)"""
    flip = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < 0.5
    return torch.where(flip, images.flip(-1), images)


def random_erase(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Set a rectangle to 0, the mean colour of normalised images, in a share of the images (arXiv 1708.04896).

    Area 2 % to 33 % of the image, aspect ratio 0.3 to 3.3, log-uniform; a side is cut down to the image's.
    """
    B, _, H, W = images.shape
    draw = torch.rand(5, B, generator=generator, device=images.device)
    area = H * W * (0.02 + (0.33 - 0.02) * draw[0])
    aspect = torch.exp(math.log(3.3) * (2 * draw[1] - 1))
    height = (area * aspect).sqrt().round().clamp(1, H)
    width = (area / aspect).sqrt().round().clamp(1, W)
    top = (draw[2] * (H - height + 1)).floor()
    left = (draw[3] * (W - width + 1)).floor()
    inside = _boxes(top, left, top + height, left + width, H, W) & (draw[4] < probability)[:, None, None]
    return images.masked_fill(inside[:, None], 0.0)


def cutmix(images: Tensor, weights: Tensor, probability: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of another image of the batch into each image, on a share of the batches (arXiv 1905.04899).

    Each image draws its share λ ~ Beta(1, 1) and its rectangle, of area 1 - λ before the image's border cuts it;
    labels are mixed by the area that was really pasted. (B, C, H, W), (B, K) -> the same shapes.
    """
    B, _, H, W = images.shape
    device = images.device
    draw = torch.rand(3, B, generator=generator, device=device)
    mixed = torch.rand((), generator=generator, device=device) < probability
    partner = torch.randperm(B, generator=generator, device=device)
    side = (1 - draw[0]).sqrt() * mixed
    centre_y, centre_x = draw[1] * H, draw[2] * W
    top, bottom = ((centre_y + sign * side * H / 2).round().clamp(0, H) for sign in (-1, 1))
    left, right = ((centre_x + sign * side * W / 2).round().clamp(0, W) for sign in (-1, 1))
    inside = _boxes(top, left, bottom, right, H, W)
    share = inside.float().mean(dim=(1, 2))[:, None]
    images = torch.where(inside[:, None], images[partner], images)
    return images, weights * (1 - share) + weights[partner] * share


def _boxes(top: Tensor, left: Tensor, bottom: Tensor, right: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W) bool: the pixels of each image with top ≤ y < bottom and left ≤ x < right, each (B,)."""
    y = torch.arange(height, device=top.device)
    x = torch.arange(width, device=top.device)
    rows = (y >= top[:, None]) & (y < bottom[:, None])
    columns = (x >= left[:, None]) & (x < right[:, None])
    return rows[:, :, None] & columns[:, None, :]
