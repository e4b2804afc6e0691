"""The Triton kernels beside the plain code: on a GPU, or interpreted on a CPU (`TRITON_INTERPRET=1 python -m tests.kernels`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from swinexp.swin import gpu, operators
from swinexp.swin.layers import DepthwiseConv
from swinexp.swin.windows import gather, inverse, placed, shift_mask, stage_order, window_order

# height, width, window, images, heads, channels of a head
WINDOWS = [
    (16, 16, 4, 3, 3, 32),  # several tiles to an image
    (4, 4, 4, 7, 2, 16),  # several images to a tile, the last one not full
    (12, 12, 4, 2, 2, 16),  # 9 windows: 3 to a tile
    (8, 8, 8, 2, 2, 64),  # a window to a tile
    (14, 14, 7, 2, 2, 16),  # a window of fewer tokens than a tile
    (4, 2, 2, 9, 1, 16),
    (6, 6, 3, 4, 2, 16),  # windows that do not fill 16 rows
]


def plain_attention(qkv: Tensor, bias: Tensor, order: Tensor, heads: int) -> Tensor:
    """As the plain code does it: tokens into windows, attention, and back"""
    B, P, C = *qkv.shape[:2], qkv.shape[2] // 3
    T, back = bias.shape[-1], inverse(order.cpu(), P).to(order.device)
    windows = gather(qkv, order, back).view(B, P // T, T, 3, heads, C // heads)
    q, k, v = windows.permute(3, 0, 1, 4, 2, 5).unbind(0)
    weights = (q * (C // heads) ** -0.5 @ k.mT + bias).softmax(-1)
    return gather((weights @ v).transpose(2, 3).reshape(B, P, C), back, order)


# height, width, window, images, channels
MAPS = [
    (16, 16, 4, 3, 64),
    (8, 8, 4, 3, 32),  # two images side by side, the last one alone
    (4, 4, 4, 7, 40),  # channels that do not fill a tile
    (14, 14, 7, 2, 16),
    (6, 20, 4, 2, 32),  # row by row, and wider than a tile
]


def _apart(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """The largest difference, relative to each tensor's largest value; nan is infinitely far"""
    most = max(
        ((a.double() - b.double()).abs().max() / b.double().abs().max()).nan_to_num(nan=torch.inf).item()
        for a, b in zip(ours, theirs, strict=True)
    )
    return most if all(a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True)) else torch.inf


def differences(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """Of outputs and all gradients; plain code in fp32 is what both are compared with."""
    yield from attention_differences(device, dtype)
    yield from convolution_differences(device, dtype)
    yield "what is tried before training", gpu.differences_tried(device, dtype)


def attention_differences(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """Of `attend`."""
    draw = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=draw)

    for height, width, window, images, heads, channels in WINDOWS:
        stage, size, T = stage_order(height, width, window), height * width, window**2
        for shift in ((0, 0), (window // 2, window // 2)):
            order = placed(window_order(height, width, window, shift), stage).to(device)
            mask = shift_mask(height, width, window, shift).to(device)
            qkv = normal(images, size, 3 * heads * channels).to(dtype).requires_grad_()
            table = normal(heads, T, T).requires_grad_()
            y = normal(images, size, heads * channels).to(dtype)
            results = []
            for kernel in (True, False):
                bias = table + mask[:, None] if mask.any() else table
                if kernel:
                    out = operators.attend(qkv, bias, order if mask.any() else None, heads)
                else:
                    out = plain_attention(qkv.float(), bias, order, heads).to(dtype)
                results.append((out, *torch.autograd.grad(out, (qkv, table), y)))
            yield f"attention, {height}×{width}, window {window}, shift {shift[0]}", _apart(*results)


def convolution_differences(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """Of `convolve`, beside the plain code of DepthwiseConv."""
    draw = torch.Generator(device).manual_seed(0)
    for (height, width, window, images, channels), gelu in product(MAPS, (True, False)):
        layer = DepthwiseConv(channels, (height, width), window, gelu).to(device)
        x = torch.randn(images, height * width, channels, device=device, generator=draw).to(dtype).requires_grad_()
        y = torch.randn(x.shape, device=device, generator=draw).to(dtype)
        inputs = x, layer.conv.weight, layer.conv.bias
        results = []
        for kernel in (True, False):
            if kernel:
                out = operators.convolve(*inputs, layer.grid, layer.window, gelu)
            else:
                rows = gather(x.float(), layer.back, layer.order).unflatten(1, layer.grid).permute(0, 3, 1, 2)
                rows = layer.conv(rows).permute(0, 2, 3, 1).flatten(1, 2)
                rows = F.gelu(rows) if gelu else rows
                out = gather(rows, layer.order, layer.back).to(dtype)
            results.append((out, *torch.autograd.grad(out, inputs, y)))
        yield f"convolution{' and GELU' * gelu}, {height}×{width}, {channels} channels", _apart(*results)


def compile_kernels(capability: int) -> list[str]:
    """For a GPU that need not be there: what Triton's interpreter bears and its compiler does not. Returns their names."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from swinexp.swin import kernels

    tiles = {"N": 3, "D": 32, "T": 16, "W": 4, "ROWS": 64, "SIDE": 16}
    tiles |= {"MOVED": True, "SHIFTED": True, "PRECISION": "ieee"}
    large = tiles | {"T": 49, "W": 1, "SIDE": 64}
    maps = {"H": 14, "W": 14, "S": 7, "C": 96, "WIDTH": 16, **operators.CONVOLVED}
    numbers = dict.fromkeys(("windows", "loops", "period", "G", "P", "images"), "i32") | {"scale": "fp32"}
    others = {"weight": "*fp32", "bias": "*fp32", "to_bias": "*fp32", "sums": "*fp32", "order": "*i64"}
    done = []
    for kernel, constants in (
        (kernels.attention, tiles),
        (kernels.attention_backward, tiles),
        (kernels.attention, large),
        (kernels.attention_backward, large),
        (kernels.convolution, maps | {"GELU": True, "FLIPPED": False}),
        (kernels.convolution, maps | {"GELU": False, "FLIPPED": False}),
        (kernels.convolution, maps | {"GELU": False, "FLIPPED": True}),
        (kernels.convolution_backward, maps | {"GELU": True}),
        (kernels.convolution_backward, maps | {"GELU": False}),
    ):
        known = dict.fromkeys(constants, "constexpr") | numbers | others
        signature = {name: known.get(name, "*bf16") for name in kernel.arg_names}
        compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
        done.append(kernel.__name__)
    return done


def check_operators(device: torch.device) -> None:
    """What compiling takes for granted of the operators: their outputs' shapes and strides, and their gradients."""
    qkv, order = torch.randn(3, 16, 96, device=device, requires_grad=True), torch.randperm(16, device=device)
    for windows in (1, 4):
        bias = torch.randn(2, 4, 4, windows, device=device).permute(3, 0, 1, 2).requires_grad_()
        for where in (None, order):
            torch.library.opcheck(torch.ops.swinexp.attend.default, (qkv, bias, where, 2))
            gradient = torch.randn(3, 16, 32, device=device)
            inputs = (gradient, qkv.detach(), bias.detach(), where, 2)
            torch.library.opcheck(torch.ops.swinexp.attend_backward.default, inputs)
    x = torch.randn(3, 16, 24, device=device, requires_grad=True)
    weight = torch.randn(24, 9, device=device).t().requires_grad_()
    bias = torch.randn(24, device=device, requires_grad=True)
    gradient = torch.randn(3, 24, 16, device=device).mT
    for gelu in (True, False):
        torch.library.opcheck(torch.ops.swinexp.convolve.default, (x, weight, bias, 4, 4, 2, gelu))
        inputs = (gradient, x.detach(), weight.detach(), bias.detach(), 4, 4, 2, gelu)
        torch.library.opcheck(torch.ops.swinexp.convolve_backward.default, inputs)


if __name__ == "__main__":
    operators.PROGRAMS = operators.SUMMING = 4  # of which each so has several tiles, as with a batch of training
    check_operators(torch.device("cpu"))
    print(json.dumps(dict(differences(torch.device("cpu"), torch.float32))))
