"""The kernels as operators of torch, which autograd, `torch.compile` and CUDA graphs take as any others.

Launched here, written in `kernels`. Where a compiler asks what comes of an operator, Triton begins to compile its
kernels in other threads, so that they are ready by the time the network is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

TILE = 64  # tokens that a program works on at a time: several windows, or the most that a window may have
# Whether several threads may parse Python at a time, as Triton does: github.com/python/cpython/issues/106905.
THREADS = sys.version_info >= (3, 12, 2) or (3, 11, 8) <= sys.version_info < (3, 12)
PROGRAMS = 1056  # of a launch: eight for each multiprocessor of an H100
SUMMING = 792  # of one that sums up as it goes: six for each, of which three have room at a time
CONVOLVED = {"LINES": 4, "ROWS": 16, "CHANNELS": 32}  # of a map, that a program convolves at a time


@dataclass
class _Launch:
    """A kernel, of how many programs, and what it is given; tensors without values will do to compile it."""

    kernel: Any
    grid: tuple[int, int]
    arguments: tuple[Any, ...]  # the first one is a tensor
    constants: dict[str, Any]

    def __call__(self) -> None:
        if _being_compiled and (future := _being_compiled.pop(self._kind(), None)):
            wait([future])  # should it have failed, it fails here again
        with torch.cuda.device_of(self.arguments[0]):  # Triton launches on the current one
            self.kernel[self.grid](*self.arguments, **self.constants)

    def ahead(self) -> None:
        """Begin to compile it."""
        kind = self._kind()
        if kind not in _being_compiled:
            _being_compiled[kind] = _compilers().submit(self._compile, self.arguments[0].device, kind[1])

    def _kind(self) -> tuple[Any, ...]:
        """What it is compiled for: types in place of tensors."""
        given = tuple(each.dtype if isinstance(each, Tensor) else each for each in self.arguments)
        return self.kernel.__name__, given, tuple(self.constants.items())

    def _compile(self, device: torch.device, given: tuple[Any, ...]) -> None:
        with torch.cuda.device(device):
            self.kernel.warmup(*given, grid=self.grid, **self.constants)


_being_compiled: dict[tuple[Any, ...], Future[None]] = {}


@cache
def _compilers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="triton")


def _ahead(launches: Callable[..., tuple[Any, ...]], *inputs: Any) -> None:
    """Begin to compile what comes last of `launches`, where there is a GPU and a batch's size is known."""
    tensors = [each for each in inputs if isinstance(each, Tensor)]
    if THREADS and tensors[0].is_cuda and all(type(size) is int for each in tensors for size in each.shape):
        launches(*inputs)[-1].ahead()


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


def _side(tokens: int, each: int) -> int:
    """Rows of a tile that attend to each other: the fewest that a product may have, where no window overhangs them."""
    return 16 if 16 % tokens == 0 else _rows(tokens, each)


def _stages(values: Tensor, channels: int) -> int:
    """Tiles on their way to a multiprocessor at a time: one of wide heads or in fp32, since a small GPU has 99 KB."""
    return 3 if values.element_size() * channels <= 64 else 1


def _precision() -> str:
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _attention(qkv: Tensor, bias: Tensor, order: Tensor | None, heads: int) -> tuple[Tensor, _Launch]:
    from swinexp.swin import kernels

    B, P, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    out = qkv.new_empty(B, P, C)
    tiling = _tiling(B, P, bias.shape[-1], heads)
    return out, _attending(kernels.attention, tiling, qkv, bias, order, heads, out)


def _attention_backward(
    gradient: Tensor, qkv: Tensor, bias: Tensor, order: Tensor | None, heads: int
) -> tuple[Tensor, Tensor, _Launch]:
    from swinexp.swin import kernels

    B, P, _ = gradient.shape
    T = bias.shape[-1]
    each, period, _, programs = tiling = _tiling(B, P, T, heads)
    to_qkv = torch.empty_like(qkv)
    parts = bias.new_empty(programs // period, period, heads, each, T, T, dtype=torch.float32)
    launch = _attending(kernels.attention_backward, tiling, qkv, bias, order, heads, gradient, to_qkv, parts)
    return to_qkv, parts, launch


def _attending(
    kernel: Any,
    tiling: tuple[int, int, int, int],
    qkv: Tensor,
    bias: Tensor,
    order: Tensor | None,
    heads: int,
    *others: Tensor,
) -> _Launch:
    """One of the two kernels, which differ in what `others` it is given."""
    each, period, loops, programs = tiling
    B, P, T, D = qkv.shape[0], qkv.shape[1], bias.shape[-1], qkv.shape[2] // (3 * heads)
    G = P // T
    arguments = (qkv, bias, bias if order is None else order, *others, B * G, loops, period, D**-0.5, G, P)
    constants = {
        "N": heads, "D": D, "T": T, "W": each, "ROWS": _rows(T, each), "SIDE": _side(T, each),
        "MOVED": order is not None, "SHIFTED": len(bias) > 1,
        "PRECISION": _precision(), "num_stages": _stages(qkv, D),
    }  # fmt: skip
    return _Launch(kernel, (programs, heads), arguments, constants)


@torch.library.custom_op("swinexp::attend", mutates_args=())
def _attend(qkv: Tensor, bias: Tensor, order: Tensor | None, heads: int) -> Tensor:
    out, launch = _attention(qkv.contiguous(), bias.contiguous(), order, heads)
    launch()
    return out


@_attend.register_fake
def _(*inputs: Any) -> Tensor:
    _ahead(_attention, *inputs)
    qkv = inputs[0]
    return qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3)


@torch.library.custom_op("swinexp::attend_backward", mutates_args=())
def _attend_backward(
    gradient: Tensor, qkv: Tensor, bias: Tensor, order: Tensor | None, heads: int
) -> tuple[Tensor, Tensor]:
    inputs = gradient.contiguous(), qkv.contiguous(), bias.contiguous()
    to_qkv, parts, launch = _attention_backward(*inputs, order, heads)
    launch()
    if len(bias) == 1:
        return to_qkv, parts.sum((0, 1, 3)).to(bias.dtype)[None]
    to_bias = parts.sum(0).transpose(1, 2)  # (period, each, heads, T, T)
    return to_qkv, to_bias.reshape(-1, *bias.shape).sum(0).to(bias.dtype).contiguous()


@_attend_backward.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    _ahead(_attention_backward, *inputs)
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


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int, window: int, gelu: bool
) -> tuple[Tensor, _Launch]:
    """Without a bias: the gradient of a convolution by that of what came of it."""
    from swinexp.swin import kernels

    B, _, C = x.shape
    out = torch.empty_like(x)
    tile, groups = _groups(B, height, width)
    arguments = (x, weight, weight if bias is None else bias, out, B)
    constants = {"GELU": gelu, "FLIPPED": bias is None, "H": height, "W": width, "S": window, "C": C, **tile}
    return out, _Launch(kernels.convolution, (groups, -(-C // tile["CHANNELS"])), arguments, constants)


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, window: int, gelu: bool
) -> tuple[Tensor, Tensor, _Launch]:
    from swinexp.swin import kernels

    B, _, C = x.shape
    before = torch.empty_like(x) if gelu else gradient
    tile, groups = _groups(B, height, width)
    columns = -(-C // tile["CHANNELS"])
    loops = -(-groups * columns // SUMMING)
    chunks = -(-groups // loops)
    sums = torch.empty(chunks, 10, C, dtype=torch.float32, device=x.device)
    arguments = (x, weight, bias, gradient, before, sums, B, loops)
    constants = {"GELU": gelu, "H": height, "W": width, "S": window, "C": C, **tile}
    return before, sums, _Launch(kernels.convolution_backward, (chunks, columns), arguments, constants)


@torch.library.custom_op("swinexp::convolve", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, window: int, gelu: bool) -> Tensor:
    out, launch = _convolution(x.contiguous(), weight.contiguous(), bias.contiguous(), height, width, window, gelu)
    launch()
    return out


@_convolve.register_fake
def _(*inputs: Any) -> Tensor:
    _ahead(_convolution, *inputs)
    return inputs[0].new_empty(inputs[0].shape)


@torch.library.custom_op("swinexp::convolve_backward", mutates_args=())
def _convolve_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, window: int, gelu: bool
) -> tuple[Tensor, Tensor]:
    gradient, x, weight, bias = gradient.contiguous(), x.contiguous(), weight.contiguous(), bias.contiguous()
    before, sums, launch = _convolution_backward(gradient, x, weight, bias, height, width, window, gelu)
    launch()
    to_x, launch = _convolution(before, weight, None, height, width, window, gelu=False)
    launch()
    return to_x, sums.sum(0)


@_convolve_backward.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    _, x, weight, _, *where, _ = inputs
    _ahead(_convolution_backward, *inputs)
    _ahead(_convolution, x, weight, None, *where, False)
    return x.new_empty(x.shape), x.new_empty(10, x.shape[2], dtype=torch.float32)


def _keep_convolved(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:3])
    ctx.map = inputs[3:]


def _convolve_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    to_x, sums = _convolve_backward(gradient, *ctx.saved_tensors, *ctx.map)
    sums = sums.to(ctx.saved_tensors[1].dtype)
    return to_x, sums[:9], sums[9], None, None, None, None


_convolve.register_autograd(_convolve_gradients, setup_context=_keep_convolved)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int], window: int, gelu: bool = True) -> Tensor:
    """A 3×3 convolution of each channel, or GELU of it, of tokens that stay where they are.

    (B, P, C), (C, 1, 3, 3), (C,), and the map whose tokens lie window by window (row by row: a window as wide as the
    map) -> (B, P, C). What was before GELU is computed again for the gradients.
    """
    out: Tensor = _convolve(x, weight.flatten(1).t(), bias, *grid, window, gelu)
    return out
