"""Colour jitter: brightness, contrast, saturation and hue of each image, drawn one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from swinexp.augment.operations import blend, grey, whole


def jitter(images: Tensor, strengths: Sequence[float], generator: Generator) -> Tensor:
    """Change brightness, contrast, saturation by factors within 1 ± strength, and hue by up to ± strength of a turn.

    In this order, where torchvision's ColorJitter also draws the order. (B, 3, H, W) uint8 -> the same
    """
    draws = 2 * torch.rand(4, len(images), generator=generator, device=images.device) - 1
    brightness, contrast, saturation, hue = (draw * strength for draw, strength in zip(draws, strengths, strict=True))
    if strengths[0]:
        images = blend(images, torch.zeros_like(images), brightness)
    if strengths[1]:
        images = blend(images, grey(images).float().mean((1, 2, 3)).view(-1, 1, 1, 1), contrast)
    if strengths[2]:
        images = blend(images, grey(images), saturation)
    if strengths[3]:
        images = turn_hue(images, hue)
    return images


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Add `turn` (n,), in whole turns of the colour circle, to each pixel's hue. (n, 3, H, W) uint8 -> the same"""
    pixels = images.float() / 255
    high, low = pixels.amax(dim=1), pixels.amin(dim=1)
    span = high - low
    red, green, blue = ((high - channel) / torch.where(span > 0, span, 1) for channel in pixels.unbind(dim=1))
    is_red, is_green = pixels[:, 0] == high, pixels[:, 1] == high
    sixths = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    hue = (sixths / 6 + turn[:, None, None]).remainder(1) * 6
    # Each channel rises and falls along the circle: red is full around 0, green around 2, blue around 4 sixths.
    centres = torch.arange(0, 6, 2, device=images.device).view(1, 3, 1, 1)
    distance = ((hue[:, None] - centres + 3).remainder(6) - 3).abs()
    fullness = (2 - distance).clamp(0, 1)
    turned = high[:, None] - span[:, None] * (1 - fullness)
    return whole(turned * 255.999)
