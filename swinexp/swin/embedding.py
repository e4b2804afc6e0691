"""From pixels to tokens, and from 2×2 tokens to one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinexp.swin.layers import build_norm
from swinexp.swin.options import Block, Patch
from swinexp.swin.windows import gather, inverse, merge_order, placed, take

# Where shifted patch tokenization looks besides the patch itself: half a patch along each diagonal.
DIAGONALS = ((-1, -1), (-1, 1), (1, -1), (1, 1))

IMAGES = 4096  # that whitening looks at
# The variance, with that of an image's values as 1, below which a direction is noise; it is also added to each one's.
NOISE = 5e-4


class PatchEmbedding(nn.Module):
    """Each patch of pixels to a token.

    linear  one linear map of its pixels (arXiv 2103.14030)
    conv    overlapping 3×3 convolutions, one of stride 2 for each halving (arXiv 2106.14881)
    spt     one linear map of its pixels and of those half a patch further on each diagonal, all normalised together:
            shifted patch tokenization (arXiv 2112.13492)
    """

    order: Tensor
    back: Tensor

    def __init__(self, patch: Patch, dim: int, order: Tensor, norm: str, norm_eps: float) -> None:
        super().__init__()
        self.patch = patch.size
        self.shifted = patch.embedding == "spt"
        pixels = 15 * patch.size**2
        if self.shifted:
            self.proj: nn.Module = nn.Linear(pixels, dim)
        elif patch.embedding == "conv":
            self.proj = conv_stem(patch.size, dim)
        else:
            self.proj = nn.Conv2d(3, dim, kernel_size=patch.size, stride=patch.size)
        self.norm = build_norm(norm, pixels if self.shifted else dim, norm_eps)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", inverse(order, len(order)), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> (B, P, C), in the first stage's order"""
        if self.shifted:
            pixels = F.pixel_unshuffle(shifted_copies(images, self.patch // 2), self.patch)
            x = self.proj(self.norm(pixels.flatten(2).transpose(1, 2)))
        else:
            if images.is_cuda:  # so that a convolution's output is tokens as they lie
                images = images.contiguous(memory_format=torch.channels_last)
            x = self.norm(self.proj(images).flatten(2).transpose(1, 2))
        return gather(x, self.order, self.back)

    @torch.no_grad()
    def begin_whitened(self, images: Tensor, std: Tensor) -> None:
        """Have a convolutional stem begin with what differs between the images it will see (arXiv 2404.00498).

        Its first convolution gets `whitening` filters, and the negative of each, for the ReLU behind it cuts one half
        off; channels for which there is none stay as they began. `images` (N, 3, H, W) uint8, and the `std` (3,) that
        their values in [0, 1] will be divided by.
        """
        first = next(module for module in self.modules() if isinstance(module, nn.Conv2d))
        filters = whitening(images, std, first.kernel_size[0])[: len(first.weight) // 2].to(first.weight)
        first.weight[: 2 * len(filters)] = torch.cat([filters, -filters])


def whitening(images: Tensor, std: Tensor, side: int) -> Tensor:
    """(N, 3, H, W) uint8, (3,) -> (filters, 3, side, side) float64: the directions in which squares of pixels vary.

    Those of the most variance come first, each divided by the root of its variance, so that their outputs vary by 1 and
    none follows from another: the eigenvectors of the squares' covariance. The same on every device to rounding.
    """
    some = min(len(images), IMAGES)
    apart = max(1, min(images.shape[2:]) // 32)  # pixels between squares: of a large image no more than of a small one
    total = torch.zeros(3 * side**2, dtype=torch.float64, device=images.device)
    products = torch.outer(total, total)
    places = 0
    for part in images[torch.arange(some, device=images.device) * len(images) // some].split(128):
        squares = F.unfold(part.double(), side, stride=apart).transpose(0, 1).flatten(1)
        total += squares.sum(1)  # of whole numbers, and so exact
        products += squares @ squares.T
        places += squares.shape[1]
    mean = total / places
    scale = (std.double().to(mean.device) * 255).repeat_interleave(side**2)
    covariance = (products / places - torch.outer(mean, mean)) / torch.outer(scale, scale)
    variances, directions = torch.linalg.eigh(covariance.cpu())
    noise = NOISE * variances.mean()
    directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    filters = (directions / (variances.clamp(min=0) + noise).sqrt()).T.flip(0)
    return filters[: int((variances > noise).sum())].view(-1, 3, side, side)


def conv_stem(patch: int, dim: int) -> nn.Sequential:
    """3×3 convolutions, the first at the images' resolution, each further one halving it and doubling the channels."""
    halvings = patch.bit_length() - 1
    widths = [max(1, dim >> left) for left in range(halvings, -1, -1)]
    layers: list[nn.Module] = []
    for i, (here, there) in enumerate(zip([3, *widths], widths, strict=False)):
        layers += [
            nn.Conv2d(here, there, kernel_size=3, stride=2 if i else 1, padding=1, bias=False),
            nn.BatchNorm2d(there),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Conv2d(dim, dim, kernel_size=1))


def shifted_copies(images: Tensor, shift: int) -> Tensor:
    """(B, 3, height, width) -> (B, 15, height, width): the images, and what is `shift` pixels off on each diagonal."""
    _, _, height, width = images.shape
    padded = F.pad(images, (shift, shift, shift, shift))
    tops_lefts = [((1 + y) * shift, (1 + x) * shift) for y, x in DIAGONALS]
    return torch.cat([images, *(padded[:, :, y : y + height, x : x + width] for y, x in tops_lefts)], dim=1)


class PatchMerging(nn.Module):
    """Every 2×2 tokens become one of twice the channels, in the next stage's order.

    With shifted patch tokenization, they and the 2×2 that lie one token further on each diagonal.
    """

    index: Tensor
    back: Tensor | None

    def __init__(
        self, dim: int, here: Tensor, there: Tensor, grid: tuple[int, int], shifted: bool, block: Block, norm_eps: float
    ) -> None:
        super().__init__()
        shifts = ((0, 0), *DIAGONALS) if shifted else ((0, 0),)
        self.merged = 4 * len(shifts) * dim
        self.normed_last = block.placement == "res_post"
        self.reduction = nn.Linear(self.merged, 2 * dim, bias=False)
        self.norm = build_norm(block.norm, 2 * dim if self.normed_last else self.merged, norm_eps)
        tokens = torch.cat([merge_order(*grid, shift) for shift in shifts], dim=1)
        index = placed(tokens[there].flatten(), here)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("back", None if shifted else inverse(index, len(here)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, C) -> (B, ⌈H/2⌉·⌈W/2⌉, 2C)"""
        x = take(x, self.index) if self.back is None else gather(x, self.index, self.back)
        x = x.view(len(x), -1, self.merged)
        return self.norm(self.reduction(x)) if self.normed_last else self.reduction(self.norm(x))
