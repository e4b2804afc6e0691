"""The ways of a GPU: attention by kernels that read tokens where they lie, and tokens in bf16.

The kernels are Triton's, in `kernels`; to torch they are operators of their own, which `torch.compile` and CUDA graphs
take as any others. `on_gpu` is the one place that decides; what it leaves takes the plain code. What each of these
brings is in docs/performance.md.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swinexp.mistake import first_line

log = logging.getLogger(__name__)

TILE = 64  # tokens that a program works on at a time: several windows, or the most that a window may have
PROGRAMS = 1056  # of a launch: eight for each multiprocessor of an H100
HEAD_DIMS = (16, 32, 64)
CLOSE = 1e-2  # relative to the largest value: tf32's products are 1e-3 apart
CONVOLVED = {"LINES": 4, "ROWS": 16, "CHANNELS": 32}  # of a map, that a program convolves at a time
TRITON = importlib.util.find_spec("triton") is not None


def on_gpu(x: Tensor) -> bool:
    """Whether to take the ways of this module."""
    return x.is_cuda and x.dtype != torch.float64 and _has_kernels(x.device.index)


@torch.compiler.assume_constant_result
def _has_kernels(index: int) -> bool:
    return kernels_run(index)


@cache
def kernels_run(index: int) -> bool:
    """Whether a GPU runs the kernels: it has to know bf16, and Triton builds them with a C compiler. Tried once, and
    what they give is compared with the plain code: how Triton compiles depends on its version and on the GPU.

    Where that fails, a line says why.
    """
    if not TRITON or torch.cuda.get_device_capability(index) < (8, 0):
        return False
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cuda", enabled=False):
            apart = differences_tried(torch.device("cuda", index))
    except Exception as error:  # a compiler's, Triton's or torch's
        log.warning(
            "the kernels cannot be built, so that this GPU takes a way that is slower: %s. "
            "Triton wants a C compiler and Python's headers: apt install gcc python3-dev",
            first_line(error).rstrip("."),
        )
        return False
    if not apart < CLOSE:
        log.warning(
            "the kernels give other values than the plain code (%.1e), so that this GPU takes the latter", apart
        )
        return False
    return True


def differences_tried(device: torch.device) -> float:
    """How far the kernels are from the plain code on the CPU, in outputs and all gradients of small inputs."""

    def wave(*shape: int) -> Tensor:  # nothing is drawn: a run's seeds are its own
        return torch.arange(math.prod(shape), dtype=torch.float32).mul(1.7).sin().view(shape).requires_grad_()

    def plain_attention(qkv: Tensor, bias: Tensor) -> Tensor:
        q, k, v = qkv.view(2, 16, 3, 2, 16).permute(2, 0, 3, 1, 4)
        return ((q @ k.mT / 4 + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def plain_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(F.conv2d(x.mT.unflatten(2, (4, 4)), weight, bias, padding=1, groups=32)).flatten(2).mT

    apart = 0.0
    for ours, plain, inputs in (
        (lambda qkv, bias: attend(qkv, bias, None, 2), plain_attention, (wave(2, 16, 96), wave(2, 16, 16))),
        (
            lambda x, weight, bias: convolve(x, weight, bias, (4, 4), 4),
            plain_convolution,
            (wave(2, 16, 32), wave(32, 1, 3, 3), wave(32)),
        ),
    ):
        there = tuple(each.detach().to(device).requires_grad_() for each in inputs)
        expected, out = plain(*inputs), ours(*there)
        gradients = torch.autograd.grad(expected.square().sum(), inputs)
        theirs = (out, *torch.autograd.grad(out.square().sum(), there))
        for one, other in zip((expected, *gradients), theirs, strict=True):
            apart = max(apart, ((one - other.to(one.device)).abs().max() / one.abs().max()).nan_to_num(math.inf).item())
    return apart


def residual(x: Tensor) -> Tensor:
    """The tokens as blocks add to them: under autocast to bf16 in bf16, for half of the memory's traffic."""
    halved = x.is_cuda and torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
    return x.bfloat16() if halved else x


def attends(x: Tensor, heads: int, tokens: int, order: Tensor | None) -> bool:
    """Whether `attend` knows windows of so many tokens of x (B, P, C): none larger than a tile, none that overhangs."""
    whole = order is None or len(order) == x.shape[1]
    return on_gpu(x) and x.shape[2] // heads in HEAD_DIMS and tokens <= TILE and whole


def _tiling(images: int, places: int, tokens: int, heads: int) -> tuple[int, int, int, int]:
    """Windows of a tile, tiles until the same windows of an image come again, tiles of a program, and programs.

    A tile's windows are some of an image's, or those of several images.
    """
    G = places // tokens
    each = next(n for n in range(TILE // tokens, 0, -1) if G % n == 0 or n % G == 0)
    period = max(1, G // each)
    tiles = -(-images * G // (each * period))
    loops = max(1, -(-tiles * period * heads // PROGRAMS))
    return each, period, loops, -(-tiles // loops) * period


def _rows(tokens: int, each: int) -> int:
    return max(16, 1 << (tokens * each - 1).bit_length())


def _stages(values: Tensor, channels: int) -> int:
    """Tiles on their way to a multiprocessor at a time: one of wide heads or in fp32, since a small GPU has 99 KB."""
    return 3 if values.element_size() * channels <= 64 else 1


def _precision() -> str:
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


@torch.library.custom_op("swinexp::attend", mutates_args=())
def _attend(qkv: Tensor, bias: Tensor, order: Tensor | None, heads: int) -> Tensor:
    from swinexp.swin import kernels

    qkv, bias = qkv.contiguous(), bias.contiguous()
    B, P, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    T = bias.shape[-1]
    out = qkv.new_empty(B, P, C)
    each, period, loops, programs = _tiling(B, P, T, heads)
    with torch.cuda.device_of(qkv):  # Triton launches on the current one
        kernels.attention[programs, heads](
            qkv, bias, bias if order is None else order, out, B * (P // T), loops, period,
            (C // heads) ** -0.5, P // T, P,
            N=heads, D=C // heads, T=T, W=each, ROWS=_rows(T, each), MOVED=order is not None,
            SHIFTED=len(bias) > 1, PRECISION=_precision(), num_stages=_stages(qkv, C // heads),
        )  # fmt: skip
    return out


@_attend.register_fake
def _(qkv: Tensor, bias: Tensor, order: Tensor | None, heads: int) -> Tensor:  # noqa: ARG001
    return qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3)


@torch.library.custom_op("swinexp::attend_backward", mutates_args=())
def _attend_backward(
    gradient: Tensor, qkv: Tensor, bias: Tensor, order: Tensor | None, heads: int
) -> tuple[Tensor, Tensor]:
    from swinexp.swin import kernels

    gradient, qkv, bias = gradient.contiguous(), qkv.contiguous(), bias.contiguous()
    B, P, C = gradient.shape
    T = bias.shape[-1]
    G = P // T
    each, period, loops, programs = _tiling(B, P, T, heads)
    to_qkv = torch.empty_like(qkv)
    parts = bias.new_empty(programs // period, period, heads, each, T, T)
    with torch.cuda.device_of(qkv):  # Triton launches on the current one
        kernels.attention_backward[programs, heads](
            qkv, bias, bias if order is None else order, gradient, to_qkv, parts, B * G, loops, period,
            (C // heads) ** -0.5, G, P,
            N=heads, D=C // heads, T=T, W=each, ROWS=_rows(T, each), MOVED=order is not None,
            SHIFTED=len(bias) > 1, PRECISION=_precision(), num_stages=_stages(qkv, C // heads),
        )  # fmt: skip
    to_bias = parts.sum(0).transpose(1, 2)  # (period, each, heads, T, T)
    return to_qkv, to_bias.reshape(-1, len(bias), heads, T, T).sum(0).contiguous()


@_attend_backward.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    _, qkv, bias, _, _ = inputs
    return qkv.new_empty(qkv.shape), bias.new_empty(bias.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    qkv, bias, order, ctx.heads = inputs
    ctx.save_for_backward(qkv, bias, order)


def _attend_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
    to_qkv, to_bias = _attend_backward(gradient, *ctx.saved_tensors, ctx.heads)
    return to_qkv, to_bias, None, None


_attend.register_autograd(_attend_gradients, setup_context=_keep)


def attend(qkv: Tensor, bias: Tensor, order: Tensor | None, heads: int) -> Tensor:
    """Scaled dot-product attention within windows, whose tokens stay where they are.

    (B, P, 3C), (N, T, T) or (G, N, T, T) added to the scores, and where each window's tokens are (P,) unless they
    follow one another -> (B, P, C). What is needed of softmax for the gradients is computed again.
    """
    out: Tensor = _attend(qkv, bias if bias.dim() == 4 else bias[None], order, heads)
    return out


def _groups(B: int, height: int, width: int) -> tuple[dict[str, int], int]:
    """How a program sees maps: ROWS tokens of a line, which are WIDTH of each of some images, and LINES lines; and how
    many such groups there are."""
    across = min(CONVOLVED["ROWS"], 1 << (width - 1).bit_length())
    images = CONVOLVED["ROWS"] // across
    lines = -(-height // CONVOLVED["LINES"])
    return {**CONVOLVED, "WIDTH": across}, -(-B // images) * lines * -(-width // across)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int, window: int) -> Tensor:
    from swinexp.swin import kernels

    B, _, C = x.shape
    out = torch.empty_like(x)
    tile, groups = _groups(B, height, width)
    with torch.cuda.device_of(x):
        kernels.convolution[groups, -(-C // tile["CHANNELS"])](
            x, weight, weight if bias is None else bias, out, B,
            GELU=bias is not None, H=height, W=width, S=window, C=C, **tile,
        )  # fmt: skip
    return out


@torch.library.custom_op("swinexp::convolve", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, window: int) -> Tensor:
    return _convolution(x.contiguous(), weight.contiguous(), bias.contiguous(), height, width, window)


@_convolve.register_fake
def _(*inputs: Any) -> Tensor:
    return inputs[0].new_empty(inputs[0].shape)


@torch.library.custom_op("swinexp::convolve_backward", mutates_args=())
def _convolve_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, window: int
) -> tuple[Tensor, Tensor]:
    from swinexp.swin import kernels

    gradient, x, weight, bias = gradient.contiguous(), x.contiguous(), weight.contiguous(), bias.contiguous()
    B, _, C = x.shape
    before = torch.empty_like(x)
    tile, groups = _groups(B, height, width)
    columns = -(-C // tile["CHANNELS"])
    loops = -(-groups * columns // (2 * PROGRAMS))
    chunks = -(-groups // loops)
    sums = torch.empty(chunks, 10, C, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        kernels.convolution_backward[chunks, columns](
            x, weight, bias, gradient, before, sums, B, loops, H=height, W=width, S=window, C=C, **tile
        )
    return _convolution(before, weight, None, height, width, window), sums.sum(0)


@_convolve_backward.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    x = inputs[1]
    return x.new_empty(x.shape), x.new_empty(10, x.shape[2], dtype=torch.float32)


def _keep_convolved(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:3])
    ctx.map = inputs[3:]


def _convolve_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    to_x, sums = _convolve_backward(gradient, *ctx.saved_tensors, *ctx.map)
    sums = sums.to(ctx.saved_tensors[1].dtype)
    return to_x, sums[:9], sums[9], None, None, None


_convolve.register_autograd(_convolve_gradients, setup_context=_keep_convolved)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """GELU of a 3×3 convolution of each channel, of tokens that stay where they are.

    (B, P, C), (C, 1, 3, 3), (C,), and the map whose tokens lie window by window (row by row: a window as wide as the
    map) -> (B, P, C). What was before GELU is computed again for the gradients.
    """
    out: Tensor = _convolve(x, weight.flatten(1).t(), bias, *grid, window)
    return out
