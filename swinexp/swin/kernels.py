"""Triton kernels, which `gpu` launches: attention within windows, where the tokens lie.

A module of its own, so that triton is imported where there is a GPU only.
"""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _tile(order, tile, windows, G, P, MOVED: tl.constexpr, T: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr):
    """Of a tile's rows: which rows of the tokens they are, and whether there are such"""
    rows = tl.arange(0, ROWS)
    window = tile * W + rows // T
    inside = (rows < W * T) & (window < windows)
    token = (window % G) * T + rows % T
    if MOVED:
        token = tl.load(order + token, mask=inside, other=0)
    return (window // G).to(tl.int64) * P + token, inside


@triton.jit
def _bias_tile(bias, head, phase, G, N, SHIFTED: tl.constexpr, T: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr):
    """(ROWS, ROWS): the bias of each row's window, and -inf between windows"""
    rows = tl.arange(0, ROWS)
    window = rows // T
    same = window[:, None] == window[None, :]
    at = (head * T + rows % T)[:, None] * T + (rows % T)[None, :]
    if SHIFTED:
        at += (((phase * W + window) % G) * N * T * T)[:, None]
    values = tl.load(bias + at, mask=same & (window < W)[:, None], other=0.0).to(tl.float32)
    return tl.where(same, values, float("-inf"))


@triton.jit
def _weights(q, k, added, scale, PRECISION: tl.constexpr):
    """(ROWS, ROWS): how much each token attends to each"""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + added
    scores = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    return scores / tl.sum(scores, axis=1)[:, None]


@triton.jit
def attention(
    qkv, bias, order, out, windows, loops, period, scale, G, P,
    N: tl.constexpr, D: tl.constexpr, T: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr,
    MOVED: tl.constexpr, SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One head of `loops` tiles of W windows: qkv (B, P, 3, N, D), bias (G or 1, N, T, T) -> out (B, P, N, D)

    Grid (chunks · period, N). The tiles of a program have the same bias.
    """
    phase, chunk, head = tl.program_id(0) % period, tl.program_id(0) // period, tl.program_id(1)
    added = _bias_tile(bias, head, phase, G, N, SHIFTED, T, W, ROWS)
    channel = head * D + tl.arange(0, D)[None, :]
    for i in range(loops):
        tile = (chunk * loops + i) * period + phase
        rows, inside = _tile(order, tile, windows, G, P, MOVED, T, W, ROWS)
        here = qkv + rows[:, None] * (3 * N * D) + channel
        q = tl.load(here, mask=inside[:, None], other=0.0)
        k = tl.load(here + N * D, mask=inside[:, None], other=0.0)
        v = tl.load(here + 2 * N * D, mask=inside[:, None], other=0.0)
        weights = _weights(q, k, added, scale, PRECISION)
        mixed = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        tl.store(out + rows[:, None] * (N * D) + channel, mixed.to(v.dtype), mask=inside[:, None])


@triton.jit
def attention_backward(
    qkv, bias, order, to_out, to_qkv, to_bias, windows, loops, period, scale, G, P,
    N: tl.constexpr, D: tl.constexpr, T: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr,
    MOVED: tl.constexpr, SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of `attention`, which is computed anew; to_bias (chunks · period, N, W, T, T) is to be summed"""
    phase, chunk, head = tl.program_id(0) % period, tl.program_id(0) // period, tl.program_id(1)
    added = _bias_tile(bias, head, phase, G, N, SHIFTED, T, W, ROWS)
    channel = head * D + tl.arange(0, D)[None, :]
    total = tl.zeros((ROWS, ROWS), tl.float32)
    for i in range(loops):
        tile = (chunk * loops + i) * period + phase
        rows, inside = _tile(order, tile, windows, G, P, MOVED, T, W, ROWS)
        here = rows[:, None] * (3 * N * D) + channel
        q = tl.load(qkv + here, mask=inside[:, None], other=0.0)
        k = tl.load(qkv + here + N * D, mask=inside[:, None], other=0.0)
        v = tl.load(qkv + here + 2 * N * D, mask=inside[:, None], other=0.0)
        y = tl.load(to_out + rows[:, None] * (N * D) + channel, mask=inside[:, None], other=0.0)
        weights = _weights(q, k, added, scale, PRECISION)
        to_v = tl.dot(tl.trans(weights.to(y.dtype)), y, input_precision=PRECISION)
        tl.store(to_qkv + here + 2 * N * D, to_v.to(y.dtype), mask=inside[:, None])
        to_weights = tl.dot(y, tl.trans(v), input_precision=PRECISION)
        mean = tl.sum(weights * to_weights, axis=1)
        to_scores = weights * (to_weights - mean[:, None])
        total += to_scores
        scaled = (to_scores * scale).to(q.dtype)
        to_q = tl.dot(scaled, k, input_precision=PRECISION)
        tl.store(to_qkv + here, to_q.to(q.dtype), mask=inside[:, None])
        to_k = tl.dot(tl.trans(scaled), q, input_precision=PRECISION)
        tl.store(to_qkv + here + N * D, to_k.to(q.dtype), mask=inside[:, None])
    row = tl.arange(0, ROWS)
    same = (row // T)[:, None] == (row // T)[None, :]
    at = (tl.program_id(0) * N + head) * W * T * T + (row * T)[:, None] + (row % T)[None, :]
    tl.store(to_bias + at, total, mask=same & (row < W * T)[:, None])
