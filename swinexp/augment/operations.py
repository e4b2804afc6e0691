"""The fifteen operations that augmentation policies draw from, each on a batch, with a magnitude for every image.

They do to a uint8 image what torchvision's functions of the same names do to it alone. Three of their results are
made in common: geometric operations are one resampling by a matrix, those that look at one value at a time are one
look-up in a table of 256, and the others blend the image with a changed copy.

n images, H × W pixels, uint8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
BY_VALUE = ("brightness", "contrast", "posterize", "solarize", "autocontrast", "equalize", "invert")
BLENDED = ("color", "sharpness")
OPERATIONS = ("identity", *GEOMETRIC, *BY_VALUE, *BLENDED)
CODES = {name: code for code, name in enumerate(OPERATIONS)}


def operate(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Do one operation to each image: (n, 3, H, W) uint8 by `operation` (n,), a code of `CODES`, and `magnitude` (n,).

    The magnitudes are torchvision's: a slope for shears, pixels for translations, degrees for rotate, a factor less 1
    for brightness, contrast, color and sharpness, bits for posterize, a threshold for solarize.

    Both are on the host, whatever device the images are on: images are put in the order of their operations, and each
    is done to its own alone, of which the host knows the number without asking the device.
    """
    device = images.device
    order = operation.argsort(stable=True)
    operation, magnitude = operation[order], magnitude[order].float()
    ends = operation.bincount(minlength=len(OPERATIONS)).cumsum(0).tolist()
    parts = {name: slice(*ends) for name, ends in zip(OPERATIONS, pairwise([0, *ends]), strict=True)}

    def those(names: Sequence[str]) -> slice:
        """The images of operations that stand one after the other."""
        return slice(parts[names[0]].start, parts[names[-1]].stop)

    changed = images.index_select(0, sent(order, device))
    m = sent(magnitude, device)
    moved = those(GEOMETRIC)
    if moved.start < moved.stop:
        to = matrices(operation[moved], magnitude[moved], images.shape[-2], images.shape[-1])
        changed[moved] = resample(changed[moved], sent(to, device))
    valued = those(BY_VALUE)
    tables = [table(name, changed[part], m[part]) for name in BY_VALUE if (part := parts[name]).start < part.stop]
    if tables:
        changed[valued] = look_up(changed[valued], torch.cat(tables))
    for name, change in (("color", _color), ("sharpness", _sharpness)):
        part = parts[name]
        changed[part] = change(changed[part], m[part])
    return changed.index_select(0, sent(order.argsort(), device))


def sent(values: Tensor, device: torch.device) -> Tensor:
    """From the host to the device, for which nothing waits."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def matrices(operation: Tensor, magnitude: Tensor, height: int, width: int) -> Tensor:
    """(n, 2, 3): where the value of a pixel comes from, x and y from the image's centre, in pixels."""
    m = magnitude.float()
    zero = torch.zeros_like(m)

    def by(name: str, values: Tensor) -> Tensor:
        return torch.where(operation == CODES[name], values, zero)

    angle = by("rotate", m * (math.pi / 180))
    shear_x, shear_y = by("shear_x", m), by("shear_y", m)
    # A shear leaves the image's first row or column where it is, a rotation its centre.
    shift_x = shear_x * (height / 2) - by("translate_x", m.trunc())
    shift_y = shear_y * (width / 2) - by("translate_y", m.trunc())
    rows = [angle.cos(), shear_x - angle.sin(), shift_x, shear_y + angle.sin(), angle.cos(), shift_y]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def resample(images: Tensor, matrix: Tensor) -> Tensor:
    """Pixels from where `matrix` (n, 2, 3) says, between four neighbours; black outside. (n, C, H, W) uint8 -> same."""
    H, W = images.shape[-2:]
    y, x = _centres(H, images.device)[:, None], _centres(W, images.device)
    to_x, to_y = matrix[..., None, None].unbind(dim=1)  # each (n, 3, 1, 1)
    # affine_grid would do the same at twice the cost of the sampling; that wants the image to reach from -1 to 1.
    grid = torch.stack(
        [
            (to_x[:, 0] * x + to_x[:, 1] * y + to_x[:, 2]) * (2 / W),
            (to_y[:, 0] * x + to_y[:, 1] * y + to_y[:, 2]) * (2 / H),
        ],
        dim=-1,
    )
    return whole(F.grid_sample(images.float(), grid, align_corners=False).round_())


def _centres(size: int, device: torch.device) -> Tensor:
    """(size,): the centres of pixels, counted from the image's centre."""
    return torch.arange(size, device=device) - (size - 1) / 2


def whole(values: Tensor) -> Tensor:
    """Floats of 0 to 255 cut to whole numbers, as uint8; on a CPU by way of int32, which is five times as fast."""
    return values.to(torch.int32).to(torch.uint8)


def look_up(images: Tensor, table: Tensor) -> Tensor:
    """Each value by the table of its image and channel: (n, 3, H, W) uint8, (n, 3, 256) uint8 -> (n, 3, H, W)"""
    return table.gather(2, images.flatten(2).long()).view_as(images)


def table(name: str, images: Tensor, magnitude: Tensor) -> Tensor:
    """(n, 3, 256) uint8: what each value of each channel becomes under an operation of `BY_VALUE`."""
    values = torch.arange(256, device=images.device, dtype=torch.uint8).expand(len(images), 3, 256)
    m = magnitude.view(-1, 1, 1)
    match name:
        case "brightness":
            return blend(values, torch.zeros_like(values), magnitude)
        case "contrast":
            return blend(values, grey(images).float().mean((1, 2, 3)).view(-1, 1, 1), magnitude)
        case "posterize":
            return values & (256 - 2 ** (8 - m.long())).to(torch.uint8)
        case "solarize":
            return torch.where(values >= m, 255 - values, values)
        case "autocontrast":
            return _stretched(values, images)
        case "equalize":
            return _equalized(values, images)
        case _:  # invert
            return 255 - values


def _stretched(values: Tensor, images: Tensor) -> Tensor:
    """From the darkest to the brightest value of each channel: 0 to 255."""
    low = images.amin(dim=(2, 3)).float()[..., None]
    high = images.amax(dim=(2, 3)).float()[..., None]
    flat = high == low
    scale = torch.where(flat, 1.0, 255 / (high - low))
    return whole(((values.float() - torch.where(flat, 0.0, low)) * scale).clamp_(0, 255))


def _equalized(values: Tensor, images: Tensor) -> Tensor:
    """As many pixels in every part of the scale, as Pillow's equalize does it."""
    n, C, H, W = images.shape
    flat = images.reshape(n * C, H * W).long()
    counts = torch.zeros(n * C, 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    brightest = counts.gather(1, flat.amax(dim=1, keepdim=True))
    step = (H * W - brightest) // 255
    before = counts.cumsum(dim=1) - counts  # pixels that are darker
    table = ((before + step // 2) // step.clamp(min=1)).clamp(0, 255).to(torch.uint8)
    return torch.where(step == 0, values.reshape(n * C, 256), table).view(n, C, 256)


def _color(images: Tensor, magnitude: Tensor) -> Tensor:
    return blend(images, grey(images), magnitude)


def _sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with the mean of the 3×3 pixels around each, the middle one five times; the border stays."""
    H, W = images.shape[-2:]
    if H <= 2 or W <= 2:
        return images
    wide = images.to(torch.int16)
    inner = wide[..., 1:-1, 1:-1]
    columns = wide[..., :, :-2] + wide[..., :, 1:-1] + wide[..., :, 2:]
    total = columns[..., :-2, :] + columns[..., 1:-1, :] + columns[..., 2:, :] + 4 * inner
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = ((2 * total + 13) // 26).to(torch.uint8)  # to the nearest thirteenth part
    return blend(images, smooth, magnitude)


def grey(images: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 -> (n, 1, H, W) uint8, by the weights of ITU-R 601-2, cut to whole numbers."""
    red, green, blue = images.unbind(dim=1)
    return whole(0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def blend(images: Tensor, others: Tensor, magnitude: Tensor) -> Tensor:
    """(1 + m) · images - m · others, with m for each image, cut to 0 … 255 and to whole numbers."""
    m = magnitude.double().view(-1, *[1] * (images.ndim - 1))
    return whole(((1 + m).float() * images + (-m).float() * others).clamp_(0, 255))
