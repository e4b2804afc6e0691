"""The fifteen operations that augmentation policies draw from, each on a batch, with a magnitude for every image.

They do to a uint8 image what torchvision's functions of the same names do to it alone. Three of their results are
made in common: geometric operations are one resampling by a matrix, those that look at one value at a time are one
look-up in a table of 256, and the others blend the image with a changed copy.

n images, H × W pixels, uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

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
    """
    images = where(is_any(operation, GEOMETRIC), _geometric, images, operation, magnitude)
    images = where(is_any(operation, BY_VALUE), _by_value, images, operation, magnitude)
    images = where(operation == CODES["color"], _color, images, magnitude)
    return where(operation == CODES["sharpness"], _sharpness, images, magnitude)


def operate_compiled(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """`operate` in some fourteen kernels where it takes nearly two hundred: compiled once for all numbers of images,
    and anew for another size of them. A geometric operation, and on a GPU any that rounds, may differ by 1 of 255."""
    for each in (images, operation, magnitude):
        torch._dynamo.maybe_mark_dynamic(each, 0)
    changed: Tensor = _compiled()(images, operation, magnitude)
    return changed


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(operate, fullgraph=True)


def is_any(operation: Tensor, names: tuple[str, ...]) -> Tensor:
    """(n,) bool: the operations that are among `names`, which stand one after the other in `OPERATIONS`."""
    return (operation >= CODES[names[0]]) & (operation <= CODES[names[-1]])


def where(
    chosen: Tensor, change: Callable[..., Tensor], images: Tensor, *arguments: Tensor, reuse: bool = False
) -> Tensor:
    """`change(images, *arguments)` for the chosen images, the others as they are.

    A CPU computes it for the chosen ones alone; a GPU for all, because finding out which they are would wait for it,
    and compiled code too, which then is one graph. With `reuse`, the result may be written over `images`.
    """
    if images.device.type == "cpu" and not torch.compiler.is_compiling():
        index = chosen.nonzero()[:, 0]
        if len(index) == 0:
            return images
        # index_select copies eight times as fast as images[index]
        changed = change(*(each.index_select(0, index) for each in (images, *arguments)))
        return images.index_copy_(0, index, changed) if reuse else images.index_copy(0, index, changed)
    return torch.where(chosen.view(-1, *[1] * (images.ndim - 1)), change(images, *arguments), images)


def _geometric(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    return resample(images, matrices(operation, magnitude, images.shape[-2], images.shape[-1]))


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


def _by_value(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    return look_up(images, tables(images, operation, magnitude))


def look_up(images: Tensor, table: Tensor) -> Tensor:
    """Each value by the table of its image and channel: (n, 3, H, W) uint8, (n, 3, 256) uint8 -> (n, 3, H, W)"""
    return table.gather(2, images.flatten(2).long()).view_as(images)


def tables(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """(n, 3, 256) uint8: what each value of each channel becomes under an operation of `BY_VALUE`."""
    values = torch.arange(256, device=images.device, dtype=torch.uint8).expand(len(images), 3, 256)
    made = {
        "brightness": lambda table, m, _: blend(table, torch.zeros_like(table), m),
        "contrast": lambda table, m, images: blend(table, grey(images).float().mean((1, 2, 3)).view(-1, 1, 1), m),
        "posterize": lambda table, m, _: table & (256 - 2 ** (8 - m.long())).to(torch.uint8).view(-1, 1, 1),
        "solarize": lambda table, m, _: torch.where(table >= m.view(-1, 1, 1), 255 - table, table),
        "autocontrast": lambda table, _, images: _stretched(table, images),
        "equalize": lambda table, _, images: _equalized(table, images),
        "invert": lambda table, *_: 255 - table,
    }
    table = values
    for name, make in made.items():
        table = where(operation == CODES[name], make, table, magnitude, images)
    return table


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
