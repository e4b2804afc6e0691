"""Mixing each image with another of its batch, and their labels with them."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from swinexp.augment.spatial import boxes


def mixup(
    images: Tensor,
    weights: Tensor,
    alpha: float,
    each: bool,
    generator: Generator,
    happens: Tensor | bool = True,
    reuse: bool = False,
    batch: int | None = None,
) -> tuple[Tensor, Tensor]:
    """λ · image + (1 - λ) · another, labels in the same way, with λ ~ Beta(α, α) (arXiv 1710.09412).

    λ is drawn for each image, or once for each `batch` of them, and is 1 where it does not `happen` (B bools, on the
    device). With `reuse`, written over `images`. (B, C, H, W), (B, K) -> the same shapes
    """
    batch = batch or len(images)
    share = (1 - beta(alpha, len(images), 1 if each else batch, images.device, generator)) * happens
    return _with_partners(images, weights, share.view(-1, 1, 1, 1), share, batch, generator, reuse)


def cutmix(
    images: Tensor,
    weights: Tensor,
    alpha: float,
    each: bool,
    generator: Generator,
    happens: Tensor | bool = True,
    reuse: bool = False,
    batch: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of another image into each, labels by the area that was really pasted (arXiv 1905.04899).

    Its area is 1 - λ of the image, λ ~ Beta(α, α), before the border cuts it, and 0 where it does not `happen` (B
    bools, on the device); its centre is anywhere. Drawn for each image, or once for each `batch` of them.
    With `reuse`, written over `images`. (B, C, H, W), (B, K) -> the same shapes
    """
    B, _, H, W = images.shape
    batch = batch or B
    alike = 1 if each else batch
    side = (1 - beta(alpha, B, alike, images.device, generator)).sqrt() * happens
    centre = torch.rand(2, B // alike, generator=generator, device=images.device).repeat_interleave(alike, dim=1)
    edges = []
    for size, at in ((H, centre[0]), (W, centre[1])):
        half = (size * side).floor() // 2
        middle = (size * at).floor()
        edges.append(((middle - half).clamp(min=0), (middle + half).clamp(max=size)))
    (top, bottom), (left, right) = edges
    # Between 0 and 1, which are exact, a weighted mean is a choice, and on a CPU six times as fast as one.
    inside = boxes(top, left, bottom, right, H, W)[:, None]
    share = (bottom - top) * (right - left) / (H * W)
    return _with_partners(images, weights, inside, share, batch, generator, reuse)


def _with_partners(
    images: Tensor, weights: Tensor, inside: Tensor, share: Tensor, batch: int, generator: Generator, reuse: bool
) -> tuple[Tensor, Tensor]:
    """Means with another image of the batch, weighted by `inside` (B, 1, …) for pixels, `share` (B,) for labels."""
    keys = torch.rand(len(images) // batch, batch, generator=generator, device=images.device)
    first = torch.arange(0, len(images), batch, device=images.device)[:, None]  # of each batch
    partner = (keys.argsort(dim=1) + first).flatten()
    others, inside = images.index_select(0, partner), inside.to(images.dtype)
    mixed = images.lerp_(others, inside) if reuse else images.lerp(others, inside)
    return mixed, weights.lerp(weights[partner], share[:, None])


def beta(alpha: float, count: int, alike: int, device: torch.device, generator: Generator) -> Tensor:
    """(count,) draws of Beta(α, α), so many in a row alike."""
    rate = torch.full((2, count // alike), alpha, device=device)
    one, other = torch._standard_gamma(rate, generator=generator)
    return (one / (one + other)).nan_to_num(0.5).repeat_interleave(alike)  # both underflow to 0 for a tiny α
