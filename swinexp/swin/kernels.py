"""Triton kernels, which `operators` launches: attention and convolution of tokens that stay where they lie.

A module of its own, so that triton is imported where there is a GPU only.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005  # Triton knows no (*values, value)

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


@triton.jit
def _here(image, y, column, channel, inside, H: tl.constexpr, W: tl.constexpr, S: tl.constexpr, C: tl.constexpr):
    """Of maps that lie window by window, S by S: where row y of each is, at a column, and whether there is such"""
    token = y // S * (W * S) + y % S * S + column // S * (S * S) + column % S
    there = (y >= 0) & (y < H) & (column >= 0) & (column < W)
    return (image * (H * W) + token)[:, None] * C + channel[None, :], inside & there[:, None]


@triton.jit
def _pixels(x, image, y, column, channel, inside, H: tl.constexpr, W: tl.constexpr, S: tl.constexpr, C: tl.constexpr):
    at, there = _here(image, y, column, channel, inside, H, W, S, C)
    return tl.load(x + at, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _channels(vector, channel, C: tl.constexpr):
    return tl.load(vector + channel, mask=channel < C, other=0.0)[None, :]


@triton.jit
def _convolved(
    x, weight, image, y, column, channel, inside,
    H: tl.constexpr, W: tl.constexpr, S: tl.constexpr, C: tl.constexpr, FLIPPED: tl.constexpr,
):  # fmt: skip
    """(ROWS, CHANNELS): row y of maps, convolved"""
    total = tl.zeros((column.shape[0], channel.shape[0]), tl.float32)
    for tap in tl.static_range(9):
        value = _pixels(x, image, y + tap // 3 - 1, column + tap % 3 - 1, channel, inside, H, W, S, C)
        total += value * _channels(weight + (8 - tap if FLIPPED else tap) * C, channel, C)
    return total


@triton.jit
def _normal(x):
    """The normal distribution's share below x, and its density there: erf by formula 7.1.26 of Abramowitz and Stegun"""
    bell = tl.exp2(-0.7213475204444817 * x * x)
    t = 1.0 / (1.0 + 0.23164190 * tl.abs(x))
    tail = ((((0.5307027145 * t - 0.7265760135) * t + 0.7107068705) * t - 0.142248368) * t + 0.127414796) * t * bell
    return tl.where(x < 0, tail, 1.0 - tail), bell * 0.3989422804014327


@triton.jit
def _place(group, H: tl.constexpr, W: tl.constexpr, LINES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Of a group of rows: the image of each, the first row's line, and the column of each"""
    lines = (H + LINES - 1) // LINES
    columns = (W + WIDTH - 1) // WIDTH
    lane = tl.arange(0, ROWS)
    image = (group // (lines * columns)).to(tl.int64) * (ROWS // WIDTH) + lane // WIDTH
    return image, group // columns % lines * LINES, group % columns * WIDTH + lane % WIDTH


@triton.jit(do_not_specialize=["images"])  # or an epoch's last batch would be compiled for
def convolution(
    x, weight, bias, out, images, GELU: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
    LINES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of ROWS // WIDTH maps LINES rows: x (B, H·W, C), weight (9, C), bias (C,) -> GELU of the convolution (B, H·W, C)

    Without GELU: the gradient of a convolution by that of what came of it, without bias. Grid (groups of rows, tiles of
    channels).
    """
    image, first, column = _place(tl.program_id(0), H, W, LINES, WIDTH, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (image < images)[:, None] & (channel < C)[None, :]
    values = ()
    for line in tl.static_range(LINES):
        value = _convolved(x, weight, image, first + line, column, channel, inside, H, W, S, C, not GELU)
        if GELU:
            value += _channels(bias, channel, C)
            value *= _normal(value)[0]
        values = values + (value,)
    for line in tl.static_range(LINES):
        at, there = _here(image, first + line, column, channel, inside, H, W, S, C)
        tl.store(out + at, values[line].to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["images", "loops"])
def convolution_backward(
    x, weight, bias, to_out, before, sums, images, loops,
    H: tl.constexpr, W: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
    LINES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Through GELU: the gradients before it (B, H·W, C), and sums (chunks, 10, C) for those of weight and bias

    Grid (chunks of `loops` groups of rows, tiles of channels). What was before GELU is computed anew.
    """
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    none = tl.zeros((ROWS, CHANNELS), tl.float32)
    totals = (none, none, none, none, none, none, none, none, none, none)  # of each tap and the bias
    for loop in range(loops):
        image, first, column = _place(tl.program_id(0) * loops + loop, H, W, LINES, WIDTH, ROWS)
        inside = (image < images)[:, None] & (channel < C)[None, :]
        values = ()
        for line in tl.static_range(LINES):
            value = _convolved(x, weight, image, first + line, column, channel, inside, H, W, S, C, False)
            value += _channels(bias, channel, C)
            share, density = _normal(value)
            y = _pixels(to_out, image, first + line, column, channel, inside, H, W, S, C)
            value = y * (share + value * density)
            values = values + (value,)
            added = ()
            for tap in tl.static_range(9):
                pixel = _pixels(
                    x, image, first + line + tap // 3 - 1, column + tap % 3 - 1, channel, inside, H, W, S, C
                )
                added = added + (totals[tap] + value * pixel,)
            totals = added + (totals[9] + value,)
        for line in tl.static_range(LINES):
            at, there = _here(image, first + line, column, channel, inside, H, W, S, C)
            tl.store(before + at, values[line].to(before.dtype.element_ty), mask=there)
    for tap in tl.static_range(10):
        tl.store(sums + (tl.program_id(0) * 10 + tap) * C + channel, tl.sum(totals[tap], axis=0), mask=channel < C)
