"""Where pixels come from, and which are covered: crops, flips, rectangles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from swinexp.augment.operations import whole

ASPECT = (3 / 4, 4 / 3)  # of a resized crop
ERASED = ((0.02, 0.33), (0.3, 3.3))  # area and aspect ratio of what is erased
TRIALS = 10  # to draw a rectangle that fits


def random_crop(
    images: Tensor, padding: int, generator: Generator, mirrored: Tensor | None = None, reflect: bool = False
) -> Tensor:
    """A window of the original size out of each padded image. (B, C, H, W) -> (B, C, H, W)

    Of its mirror image where `mirrored` (B,) says so. The padding is zeros, or with `reflect` what lies within the
    border, mirrored by it (`padding` is then less than H and W).
    """
    B, _, H, W = images.shape
    top, left = torch.randint(2 * padding + 1, (2, B), generator=generator, device=images.device)
    padded = reflected(images, padding) if reflect else F.pad(images, (padding,) * 4)
    if mirrored is None:
        return windows(padded, (H, W), top, left)
    left = torch.where(mirrored, 2 * padding - left, left)  # the same window, before it is mirrored
    return flip(windows(padded, (H, W), top, left), mirrored, reuse=True)


def reflected(images: Tensor, padding: int) -> Tensor:
    """`F.pad` with mode "reflect", which torch has for floats alone. (B, C, H, W) -> (B, C, H + 2p, W + 2p)"""
    H, W = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    rows = padded[:, :, padding : padding + H]
    rows[..., :padding] = images[..., 1 : padding + 1].flip(-1)
    rows[..., padding + W :] = images[..., W - 1 - padding : W - 1].flip(-1)
    padded[:, :, :padding] = padded[:, :, padding + 1 : 2 * padding + 1].flip(2)
    padded[:, :, padding + H :] = padded[:, :, H - 1 : H - 1 + padding].flip(2)
    return padded


def windows(padded: Tensor, size: Sequence[int], top: Tensor, left: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W): the window of `size` of each image, from its corner on.

    A row of a window is W values from some place in memory on, so that one selection among all such rows gathers them.
    """
    B, C, (H, W) = len(top), padded.shape[1], size
    tall, wide = padded.shape[-2:]
    image = torch.arange(B, device=top.device)
    planes = torch.arange(0, C * tall * wide, tall * wide, device=top.device)[:, None]
    rows = torch.arange(0, H * wide, wide, device=top.device)
    starts = (image * (C * tall * wide) + top * wide + left)[:, None, None] + planes + rows  # (B, C, H)
    return padded.flatten().unfold(0, W, 1).index_select(0, starts.flatten()).view(B, C, H, W)


def random_resized_crop(images: Tensor, scale: Sequence[float], generator: Generator) -> Tensor:
    """A rectangle of each image, of an area within `scale` of the whole, at the image's size (arXiv 1409.4842).

    Aspect ratio 3/4 to 4/3, log-uniform; bilinear, as torchvision's without antialiasing. uint8 (B, C, H, W) -> same
    """
    B, _, H, W = images.shape
    top, left, height, width = _rectangles(B, (H, W), (H, W), (scale[0], scale[1]), ASPECT, generator, images.device)
    fits = height > 0
    height, width = torch.where(fits, height, H), torch.where(fits, width, W)
    return resized_crop(images, top * fits, left * fits, height, width)


def resized_crop(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """The rectangle of each image, each (B,), at the image's size. uint8 (B, C, H, W) -> the same"""
    H, W = images.shape[-2:]

    def sources(start: Tensor, length: Tensor, size: int) -> Tensor:
        places = (torch.arange(size, device=images.device) + 0.5) * (length / size)[:, None] - 0.5
        places = torch.minimum(places.clamp(min=0), (length - 1)[:, None]) + start[:, None]
        return (2 * places + 1) / size - 1  # grid_sample wants the image to reach from -1 to 1

    y, x = sources(top, height, H), sources(left, width, W)
    grid = torch.stack([x[:, None].expand(-1, H, W), y[:, :, None].expand(-1, H, W)], dim=-1)
    return whole(F.grid_sample(images.float(), grid, align_corners=False).round_().clamp_(0, 255))


def flip(images: Tensor, mirrored: Tensor, reuse: bool = False) -> Tensor:
    """Mirror the images of which `mirrored` (B,) says so left to right; with `reuse`, written over `images`."""
    return where(mirrored, lambda chosen: chosen.flip(-1), images, reuse=reuse)


def random_erase(images: Tensor, probability: float, generator: Generator, reuse: bool = False) -> Tensor:
    """Set a rectangle to 0 in a share of the images (arXiv 1708.04896). (B, C, H, W) -> (B, C, H, W)

    Area 2 % to 33 % of the image, aspect ratio 0.3 to 3.3, log-uniform. With `reuse`, written over `images`.
    """
    B, _, H, W = images.shape
    top, left, height, width = _rectangles(B, (H, W), (H - 1, W - 1), *ERASED, generator, images.device)
    hit = torch.rand(B, generator=generator, device=images.device) < probability
    return where(hit, blank, images, top, left, top + height, left + width, reuse=reuse)


def cutout(images: Tensor, side: int, generator: Generator) -> Tensor:
    """Set a square around a pixel drawn anywhere to 0; the border cuts it (arXiv 1708.04552)."""
    B, _, H, W = images.shape
    draw = torch.rand(2, B, generator=generator, device=images.device)
    top, left = ((at * size).floor() - side // 2 for at, size in zip(draw, (H, W), strict=True))
    return blank(images, top, left, top + side, left + side)


def blank(images: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """The images with 0 in a box of each. (B, C, H, W) -> (B, C, H, W)"""
    outside = ~boxes(top, left, bottom, right, images.shape[-2], images.shape[-1])
    return images * outside[:, None]  # on a CPU four times as fast as masked_fill


def where(
    chosen: Tensor, change: Callable[..., Tensor], images: Tensor, *arguments: Tensor, reuse: bool = False
) -> Tensor:
    """`change(images, *arguments)` for the chosen images, the others as they are.

    A CPU computes it for the chosen ones alone; a GPU for all, because finding out which they are would wait for it.
    With `reuse`, the result may be written over `images`.
    """
    if images.device.type == "cpu":
        index = chosen.nonzero()[:, 0]
        if len(index) == 0:
            return images
        # index_select copies eight times as fast as images[index]
        changed = change(*(each.index_select(0, index) for each in (images, *arguments)))
        reuse = reuse and images.is_contiguous()
        return _put(images if reuse else images.clone(memory_format=torch.contiguous_format), index, changed)
    return torch.where(chosen.view(-1, *[1] * (images.ndim - 1)), change(images, *arguments), images)


def _put(images: Tensor, index: Tensor, changed: Tensor) -> Tensor:
    """`images.index_copy_(0, index, changed)`, with bytes by eight: it takes as long for one as for eight of them."""
    rows = [images.view(len(images), -1), changed.contiguous().view(len(changed), -1)]
    if images.element_size() == 1 and all(each.shape[1] % 8 == each.storage_offset() % 8 == 0 for each in rows):
        rows = [each.view(torch.int64) for each in rows]
    rows[0].index_copy_(0, index, rows[1])
    return images


def _rectangles(
    count: int,
    size: tuple[int, int],
    largest: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: Generator,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """top, left, height and width, each (count,), of rectangles within images of `size` (rows, columns).

    Area and aspect ratio are drawn until the rectangle is no larger than `largest`, ten times at most; if none was,
    it has no pixels.
    """
    draw = torch.rand(2, TRIALS, count, generator=generator, device=device)
    pixels = size[0] * size[1] * (area[0] + (area[1] - area[0]) * draw[0])
    ratio = torch.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * draw[1])
    tall, wide = (pixels * ratio).sqrt().round(), (pixels / ratio).sqrt().round()
    fits = (tall <= largest[0]) & (wide <= largest[1]) & (tall > 0) & (wide > 0)
    first = (fits.cumsum(dim=0) == 0).sum(dim=0, keepdim=True)  # TRIALS where none fits; argmax takes ten times as long
    tall, wide = (sides.gather(0, first.clamp(max=TRIALS - 1))[0] * (first[0] < TRIALS) for sides in (tall, wide))
    place = torch.rand(2, count, generator=generator, device=device)
    return (place[0] * (size[0] - tall + 1)).floor(), (place[1] * (size[1] - wide + 1)).floor(), tall, wide


def boxes(top: Tensor, left: Tensor, bottom: Tensor, right: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W) bool: the pixels of each image with top ≤ y < bottom and left ≤ x < right, each (B,)."""
    y = torch.arange(height, device=top.device, dtype=top.dtype)
    x = torch.arange(width, device=top.device, dtype=top.dtype)
    rows = (y >= top[:, None]) & (y < bottom[:, None])
    columns = (x >= left[:, None]) & (x < right[:, None])
    return rows[:, :, None] & columns[:, None, :]
