"""The ways of a GPU: attention and convolution by kernels that read tokens where they lie, and tokens in bf16.

`operators` has the kernels as torch takes them; here is decided who takes them, and what is left takes the plain code.
What each of these brings is in docs/performance.md.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from swinexp.mistake import first_line
from swinexp.swin import operators
from swinexp.swin.operators import TILE, attend, convolve

log = logging.getLogger(__name__)

HEAD_DIMS = (16, 32, 64)
# How far apart, relative to the largest value, rounding may bring the kernels and the plain code: fp32 also as tf32.
CLOSE = {torch.float32: 1e-2, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TRITON = importlib.util.find_spec("triton") is not None


def on_gpu(x: Tensor) -> bool:
    """Whether to take the ways of this module."""
    if not x.is_cuda or x.dtype == torch.float64:
        return False
    halved = torch.is_autocast_enabled("cuda")
    return _has_kernels(x.device.index, torch.get_autocast_dtype("cuda") if halved else x.dtype)


@torch.compiler.assume_constant_result
def _has_kernels(index: int, dtype: torch.dtype) -> bool:
    return kernels_run(index, dtype)


@cache
def kernels_run(index: int, dtype: torch.dtype) -> bool:
    """Whether a GPU runs the kernels: it has to know bf16, and Triton builds them with a C compiler. Tried once for
    each type of values, and what they give is compared with the plain code: how Triton compiles depends on its version
    and on the GPU.

    Where that fails, a line says why.
    """
    if not TRITON or torch.cuda.get_device_capability(index) < (8, 0):
        return False
    try:
        from triton import knobs

        # Where torch's compiler would otherwise have Triton look elsewhere, from its own first kernel on.
        os.environ.setdefault("TRITON_CACHE_DIR", knobs.cache.dir)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cuda", enabled=False):
            apart = differences_tried(torch.device("cuda", index), dtype)
    except torch.OutOfMemoryError:  # which says nothing of the kernels
        raise
    except Exception as error:  # a compiler's, Triton's or torch's
        log.warning(
            "the kernels cannot be built, so that this GPU takes a way that is slower: %s. "
            "Triton wants a C compiler and Python's headers: apt install gcc python3-dev",
            first_line(error).rstrip("."),
        )
        return False
    if not apart < CLOSE[dtype]:
        log.warning(
            "the kernels give other values than the plain code (%.1e), so that this GPU takes the latter", apart
        )
        return False
    return True


def differences_tried(device: torch.device, dtype: torch.dtype) -> float:
    """How far the kernels are from the plain code on the CPU, in outputs and all gradients of small inputs.

    Attention as a shifted block has it: four windows of 16 tokens that lie apart, each with a bias of its own, and so
    many images that a program has several tiles.
    """

    def wave(*shape: int) -> Tensor:  # nothing is drawn: a run's seeds are its own
        return torch.arange(math.prod(shape), dtype=torch.float32).mul(1.7).sin().view(shape).to(dtype)

    images = operators.PROGRAMS // 2 + 1  # of which each has a tile for each of two heads
    order = torch.arange(64).view(16, 4).T.flatten()  # a window's tokens are four apart

    def plain_attention(qkv: Tensor, bias: Tensor) -> Tensor:
        q, k, v = qkv[:, order].view(images, 4, 16, 3, 2, 16).permute(3, 0, 1, 4, 2, 5)
        mixed = ((q @ k.mT / 4 + bias).softmax(-1) @ v).transpose(2, 3).reshape(images, 64, 32)
        return mixed[:, order.argsort()]

    def plain_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(F.conv2d(x.mT.unflatten(2, (4, 4)), weight, bias, padding=1, groups=32)).flatten(2).mT

    apart = 0.0
    for ours, plain, inputs in (
        (
            lambda qkv, bias: attend(qkv, bias.float(), order.to(device), 2),
            plain_attention,
            (wave(images, 64, 96), wave(4, 2, 16, 16)),
        ),
        (
            lambda x, weight, bias: convolve(x, weight.float(), bias.float(), (4, 4), 4),
            plain_convolution,
            (wave(2, 16, 32), wave(32, 1, 3, 3), wave(32)),
        ),
    ):
        here = tuple(each.float().requires_grad_() for each in inputs)
        there = tuple(each.to(device).requires_grad_() for each in inputs)
        expected, out = plain(*here), ours(*there)
        gradients = torch.autograd.grad(expected.square().sum(), here)
        theirs = (out, *torch.autograd.grad(out.float().square().sum(), there))
        for one, other in zip((expected, *gradients), theirs, strict=True):
            difference = (one - other.to(one.device, one.dtype)).abs().max() / one.abs().max()
            apart = max(apart, difference.nan_to_num(math.inf).item())
    return apart


def residual(x: Tensor) -> Tensor:
    """The tokens as blocks add to them: under autocast to bf16 in bf16, for half of the memory's traffic."""
    halved = x.is_cuda and torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
    return x.bfloat16() if halved else x


def attends(x: Tensor, heads: int, tokens: int, order: Tensor | None) -> bool:
    """Whether `attend` knows windows of so many tokens of x (B, P, C): none larger than a tile, none that overhangs."""
    whole = order is None or len(order) == x.shape[1]
    return on_gpu(x) and x.shape[2] // heads in HEAD_DIMS and tokens <= TILE and whole
