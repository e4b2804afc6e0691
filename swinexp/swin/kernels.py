"""Triton kernels, which `operators` launches: attention and convolution of tokens that stay where they lie.

A module of its own, so that triton is imported where there is a GPU only.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005  # Triton knows no (*values, value)

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)  # exp2 is one instruction, exp five


@triton.jit
def _rows(ROWS: tl.constexpr, SIDE: tl.constexpr):
    """(ROWS,), or (ROWS // SIDE, SIDE) where only tokens of the same SIDE rows attend to each other"""
    if SIDE == ROWS:
        rows = tl.arange(0, ROWS)
    else:
        rows = tl.arange(0, ROWS // SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    return rows


@triton.jit
def _transposed(x):
    """(…, A, B) -> (…, B, A)"""
    return tl.trans(x) if len(x.shape) == 2 else tl.permute(x, (0, 2, 1))


@triton.jit
def _column(x):
    """(…, A) -> (…, A, 1)"""
    return tl.expand_dims(x, len(x.shape))


@triton.jit
def _tile(order, tile, windows, G, P, rows, MOVED: tl.constexpr, T: tl.constexpr, W: tl.constexpr):
    """Of a tile's rows: which rows of the tokens they are, and whether there are such"""
    window = tile * W + rows // T
    inside = (rows < W * T) & (window < windows)
    token = (window % G) * T + rows % T
    if MOVED:
        token = tl.load(order + token, mask=inside, other=0)
    return _column((window // G).to(tl.int64) * P + token), _column(inside)


@triton.jit
def _same_window(T: tl.constexpr, SIDE: tl.constexpr):
    window = tl.arange(0, SIDE) // T
    return window[:, None] == window[None, :]


@triton.jit
def _bias_tile(
    bias, head, phase, G, N, rows, SHIFTED: tl.constexpr, T: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr
):
    """(…, SIDE, SIDE): the bias of each row's window, as a binary logarithm, and -inf between windows"""
    window = rows // T
    same = _same_window(T, SIDE)
    at = _column((head * T + rows % T) * T) + tl.arange(0, SIDE) % T
    if SHIFTED:
        at += _column(((phase * W + window) % G) * N * T * T)
    values = tl.load(bias + at, mask=same & _column(window < W), other=0.0).to(tl.float32)
    return tl.where(same, values * LOG2_E, float("-inf"))


@triton.jit
def _exponentials(q, k, added, scale, PRECISION: tl.constexpr):
    """(…, SIDE, SIDE), (…, SIDE, 1): how much each token attends to each, but for a factor of its own"""
    scores = tl.dot(q, _transposed(k), input_precision=PRECISION) * (scale * LOG2_E) + added
    scores = tl.exp2(scores - _column(tl.max(scores, axis=len(scores.shape) - 1)))
    return scores, _column(1.0 / tl.sum(scores, axis=len(scores.shape) - 1))


# Or an epoch's last batch would be compiled for.
@triton.jit(do_not_specialize=["windows"], do_not_specialize_on_alignment=["loops"])
def attention(
    qkv, bias, order, out, windows, loops, period, scale, G, P,
    N: tl.constexpr, D: tl.constexpr, T: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, SIDE: tl.constexpr,
    MOVED: tl.constexpr, SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One head of `loops` tiles of W windows: qkv (B, P, 3, N, D), bias (G or 1, N, T, T) -> out (B, P, N, D)

    Grid (chunks · period, N). The tiles of a program have the same bias. Of a tile's ROWS tokens, those attend to each
    other that are in the same SIDE rows, and there in the same window.
    """
    phase, chunk, head = tl.program_id(0) % period, tl.program_id(0) // period, tl.program_id(1)
    rows = _rows(ROWS, SIDE)
    added = _bias_tile(bias, head, phase, G, N, rows, SHIFTED, T, W, SIDE)
    channel = head * D + tl.arange(0, D)
    for i in range(loops):
        token, inside = _tile(order, (chunk * loops + i) * period + phase, windows, G, P, rows, MOVED, T, W)
        here = qkv + token * (3 * N * D) + channel
        q = tl.load(here, mask=inside, other=0.0)
        k = tl.load(here + N * D, mask=inside, other=0.0)
        v = tl.load(here + 2 * N * D, mask=inside, other=0.0)
        weights, factor = _exponentials(q, k, added, scale, PRECISION)
        mixed = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION) * factor
        tl.store(out + token * (N * D) + channel, mixed.to(v.dtype), mask=inside)


@triton.jit(do_not_specialize=["windows"], do_not_specialize_on_alignment=["loops"])
def attention_backward(
    qkv, bias, order, to_out, to_qkv, to_bias, windows, loops, period, scale, G, P,
    N: tl.constexpr, D: tl.constexpr, T: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, SIDE: tl.constexpr,
    MOVED: tl.constexpr, SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of `attention`, which is computed anew; to_bias (chunks · period, N, W, T, T) is to be summed"""
    phase, chunk, head = tl.program_id(0) % period, tl.program_id(0) // period, tl.program_id(1)
    rows = _rows(ROWS, SIDE)
    added = _bias_tile(bias, head, phase, G, N, rows, SHIFTED, T, W, SIDE)
    channel = head * D + tl.arange(0, D)
    total = tl.zeros_like(added)
    for i in range(loops):
        token, inside = _tile(order, (chunk * loops + i) * period + phase, windows, G, P, rows, MOVED, T, W)
        here = token * (3 * N * D) + channel
        q = tl.load(qkv + here, mask=inside, other=0.0)
        k = tl.load(qkv + here + N * D, mask=inside, other=0.0)
        v = tl.load(qkv + here + 2 * N * D, mask=inside, other=0.0)
        y = tl.load(to_out + token * (N * D) + channel, mask=inside, other=0.0)
        weights, factor = _exponentials(q, k, added, scale, PRECISION)
        weights *= factor
        to_v = tl.dot(_transposed(weights.to(y.dtype)), y, input_precision=PRECISION)
        tl.store(to_qkv + here + 2 * N * D, to_v.to(y.dtype), mask=inside)
        to_weights = tl.dot(y, _transposed(v), input_precision=PRECISION)
        mean = tl.sum(weights * to_weights, axis=len(weights.shape) - 1)
        to_scores = weights * (to_weights - _column(mean))
        total += to_scores
        scaled = (to_scores * scale).to(q.dtype)
        to_q = tl.dot(scaled, k, input_precision=PRECISION)
        tl.store(to_qkv + here, to_q.to(q.dtype), mask=inside)
        to_k = tl.dot(_transposed(scaled), q, input_precision=PRECISION)
        tl.store(to_qkv + here + N * D, to_k.to(q.dtype), mask=inside)
    at = (tl.program_id(0) * N + head) * W * T * T + _column(rows * T) + tl.arange(0, SIDE) % T
    tl.store(to_bias + at, total, mask=_same_window(T, SIDE) & _column(rows < W * T))


@triton.jit
def _here(y, image, column, channel, inside, H: tl.constexpr, W: tl.constexpr, S: tl.constexpr, C: tl.constexpr):
    """Of maps that lie window by window, S by S: where row y of each is, at a column, and whether there is such; the
    line for itself, which is one number"""
    line = (y // S * (W * S) + y % S * S) * C
    at = (image + column // S * (S * S) + column % S)[:, None] * C + channel[None, :]
    return line, at, inside & ((column >= 0) & (column < W))[:, None] & ((y >= 0) & (y < H))


@triton.jit
def _pixels(x, y, image, column, channel, inside, H: tl.constexpr, W: tl.constexpr, S: tl.constexpr, C: tl.constexpr):
    line, at, there = _here(y, image, column, channel, inside, H, W, S, C)
    return tl.load(x + line + at, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _channels(vector, channel, C: tl.constexpr):
    return tl.load(vector + channel, mask=channel < C, other=0.0)[None, :]


@triton.jit
def _convolved(
    x, weight, y, image, column, channel, inside,
    H: tl.constexpr, W: tl.constexpr, S: tl.constexpr, C: tl.constexpr, FLIPPED: tl.constexpr,
):  # fmt: skip
    """(ROWS, CHANNELS): row y of maps, convolved"""
    total = tl.zeros((column.shape[0], channel.shape[0]), tl.float32)
    for tap in tl.static_range(9):
        value = _pixels(x, y + tap // 3 - 1, image, column + tap % 3 - 1, channel, inside, H, W, S, C)
        total += value * _channels(weight + (8 - tap if FLIPPED else tap) * C, channel, C)
    return total


@triton.jit
def _normal(x):
    """The normal distribution's share below x, and its density there: erf by formula 7.1.26 of Abramowitz and Stegun"""
    bell = tl.exp2(-0.7213475204444817 * x * x)
    root = tl.rsqrt(1.0 + 0.23164190 * tl.abs(x))  # Triton divides in eight instructions, and takes such a root in one
    t = root * root
    tail = ((((0.5307027145 * t - 0.7265760135) * t + 0.7107068705) * t - 0.142248368) * t + 0.127414796) * t * bell
    return tl.where(x < 0, tail, 1.0 - tail), bell * 0.3989422804014327


@triton.jit
def _place(
    group, images, channel,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, LINES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Of a group of rows: where its first map begins, the first row's line, and of each row where its map begins from
    there on, its column, and whether there are such a map and channel"""
    lines = (H + LINES - 1) // LINES
    columns = (W + WIDTH - 1) // WIDTH
    lane = tl.arange(0, ROWS)
    first, image = group // (lines * columns) * (ROWS // WIDTH), lane // WIDTH
    begin = first.to(tl.int64) * (H * W * C)
    line, column = group // columns % lines * LINES, group % columns * WIDTH + lane % WIDTH
    return begin, line, image * (H * W), column, (first + image < images)[:, None] & (channel < C)[None, :]


@triton.jit(do_not_specialize=["images"])
def convolution(
    x, weight, bias, out, images, GELU: tl.constexpr, FLIPPED: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
    LINES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of ROWS // WIDTH maps LINES rows: x (B, H·W, C), weight (9, C), bias (C,) -> the convolution (B, H·W, C), or its
    GELU

    FLIPPED: the gradient of a convolution by that of what came of it, without bias. Grid (groups of rows, tiles of
    channels).
    """
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    begin, first, image, column, inside = _place(tl.program_id(0), images, channel, H, W, C, LINES, WIDTH, ROWS)
    values = ()
    for line in tl.static_range(LINES):
        value = _convolved(x + begin, weight, first + line, image, column, channel, inside, H, W, S, C, FLIPPED)
        if not FLIPPED:
            value += _channels(bias, channel, C)
        if GELU:
            value *= _normal(value)[0]
        values = values + (value,)
    for line in tl.static_range(LINES):
        row, at, there = _here(first + line, image, column, channel, inside, H, W, S, C)
        tl.store(out + begin + row + at, values[line].to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["images", "loops"])
def convolution_backward(
    x, weight, bias, to_out, before, sums, images, loops, GELU: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
    LINES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums (chunks, 10, C) for the gradients of weight and bias, and through GELU those before it (B, H·W, C)

    Grid (chunks of `loops` groups of rows, tiles of channels). What was before GELU is computed anew.
    """
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    none = tl.zeros((ROWS, CHANNELS), tl.float32)
    totals = (none, none, none, none, none, none, none, none, none, none)  # of each tap and the bias
    for loop in range(loops):
        group = tl.program_id(0) * loops + loop
        begin, first, image, column, inside = _place(group, images, channel, H, W, C, LINES, WIDTH, ROWS)
        values = ()
        for line in tl.static_range(LINES):
            value = _pixels(to_out + begin, first + line, image, column, channel, inside, H, W, S, C)
            if GELU:
                z = _convolved(x + begin, weight, first + line, image, column, channel, inside, H, W, S, C, False)
                z += _channels(bias, channel, C)
                share, density = _normal(z)
                value *= share + z * density
            values = values + (value,)
            added = ()
            for tap in tl.static_range(9):
                pixel = _pixels(
                    x + begin, first + line + tap // 3 - 1, image, column + tap % 3 - 1, channel, inside, H, W, S, C
                )
                added = added + (totals[tap] + value * pixel,)
            totals = added + (totals[9] + value,)
        for line in tl.static_range(LINES if GELU else 0):
            row, at, there = _here(first + line, image, column, channel, inside, H, W, S, C)
            tl.store(before + begin + row + at, values[line].to(before.dtype.element_ty), mask=there)
    for tap in tl.static_range(10):
        tl.store(sums + (tl.program_id(0) * 10 + tap) * C + channel, tl.sum(totals[tap], axis=0), mask=channel < C)
