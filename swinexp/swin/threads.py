"""Threads of a CPU that each take some images of a batch through the network.

torch has all threads share every operation, and wait for each other at its end: some hundred times for images that pass
through in milliseconds. Here they meet once on the way forward and once on the way back, and each works on what is
in its core's cache. What that brings is in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinexp.swin.network import Swin

ENOUGH = 2**31  # multiply-adds of a thread; with less, threads wait for each other to run Python (docs/performance.md)


def by_threads(network: Callable[..., Tensor], images: Tensor, factors: Tensor | None = None) -> Tensor:
    """`network(images, factors)`; a `Swin` on a CPU, unless it is compiled, in a part of the batch for each thread
    that then has enough to do.

    (B, 3, height, width), and (blocks, 2, B, 1, 1) of drop path -> (B, classes). The values are the same to rounding,
    and to the last bit for the same `torch.get_num_threads()`. Hooks on modules see a part at a time, from several
    threads; those on the network itself see nothing. The graph is gone after one `backward`.
    """
    if images.device.type != "cpu" or not isinstance(network, Swin) or network.compiled:
        return network(images, factors)
    cores = torch.get_num_threads()
    threads = min(cores, len(images) * network.work // ENOUGH)
    if threads < 2:
        return network(images, factors)
    if factors is None and network.training:  # here, for threads would draw in any order
        factors = network.draw_drop_path(len(images), torch.default_generator)
    x = network.tokens(images)
    weights = [p for p in network.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
    logits: Tensor = _InParts.apply(network, _team(threads, cores), threads, x, factors, *weights)
    return logits


class _InParts(torch.autograd.Function):
    """From tokens to logits. Each part has a graph of its own, and their gradients are added in order."""

    @staticmethod
    def forward(
        ctx: Any,
        network: Swin,
        team: ThreadPoolExecutor,
        threads: int,
        x: Tensor,
        factors: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        size = -(-len(x) // threads)
        needed = any(ctx.needs_input_grad)
        parts = [part.requires_grad_(x.requires_grad) for part in x.detach().split(size)]
        drawn = [None] * len(parts) if factors is None else factors.split(size, dim=2)
        dtype, halved = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")

        def through(part: Tensor, factors: Tensor | None) -> Tensor:
            with torch.set_grad_enabled(needed), torch.autocast("cpu", dtype, halved, cache_enabled=False):
                return network.logits(part, factors)

        logits = list(team.map(through, parts, drawn))
        ctx.team, ctx.size, ctx.parts, ctx.logits, ctx.weights = team, size, parts, logits, weights
        return torch.cat([part.detach() for part in logits])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        def back(part: Tensor, logits: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
            inputs = [part, *ctx.weights] if part.requires_grad else ctx.weights
            found = torch.autograd.grad(logits, inputs, gradient, allow_unused=True)
            return found if part.requires_grad else (None, *found)

        found = list(ctx.team.map(back, ctx.parts, ctx.logits, gradients[0].split(ctx.size)))
        to_x = torch.cat([part for part, *_ in found if part is not None]) if ctx.parts[0].requires_grad else None
        to_weights = []
        for first, *others in zip(*(weights for _, *weights in found), strict=True):
            for other in others:
                first = first if other is None else other if first is None else first + other
            to_weights.append(first)
        return None, None, None, to_x, None, *to_weights


@cache
def _team(threads: int, cores: int) -> ThreadPoolExecutor:
    """Threads with their share of the cores each."""
    here = Barrier(threads + 1)

    def begin() -> None:
        torch.set_num_threads(cores // threads)  # of this thread, and what torch tells each thread when it first asks
        torch.get_num_threads()
        here.wait()

    team = ThreadPoolExecutor(threads, "swin", begin)
    for _ in range(threads):
        team.submit(int)
    here.wait()
    torch.set_num_threads(cores)
    return team
