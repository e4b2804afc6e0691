"""A step's gradients, and what the optimizer makes of them, as CUDA graphs: the device gets hundreds of kernels by one
launch, so that it never waits for Python, however small the batch. As in
pytorch.org/docs/stable/notes/cuda.html#cuda-graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from swinexp.optim import reading_lr

Gradients = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]

WARM_UP = 2  # calls before the capture, in which libraries choose and allocate what they need


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """The stream that is recorded on: one, for cuBLAS keeps memory of its own for each."""
    return torch.cuda.Stream(device)


@contextmanager
def _warming_up(device: torch.device) -> Iterator[None]:
    """While the block lasts, work goes to the stream that is recorded on, after what was asked for before."""
    stream, current = _beside(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        current.wait_stream(stream)


@contextmanager
def _recording(graph: torch.cuda.CUDAGraph, device: torch.device) -> Iterator[None]:
    """While the block lasts, work is recorded rather than done."""
    current = torch.cuda.current_stream(device)
    try:
        with torch.cuda.graph(graph, stream=_beside(device)):
            yield
    finally:
        torch.cuda.set_stream(current)  # which torch leaves changed where recording fails


class Captured:
    """`gradients`, recorded for batches like the given one and replayed for others.

    It takes images (B, 3, H, W), label weights (B, K) and drop path's factors, leaves gradients in the parameters, and
    returns two values, which are the same tensors in each call. What it reads besides (weights, running statistics)
    it reads where it was when it was recorded. Raises what `gradients` raises, and `RuntimeError` when it cannot be
    recorded, as when it waits for the device.
    """

    def __init__(
        self,
        gradients: Gradients,
        parameters: Sequence[nn.Parameter],
        images: Tensor,
        labels: Tensor,
        factors: Tensor | None,
    ) -> None:
        self.inputs = (images.clone(), labels.clone(), None if factors is None else factors.clone())
        self.graph = torch.cuda.CUDAGraph()
        with _warming_up(images.device):  # autograd has to know the parameters by this stream alone
            for _ in range(WARM_UP):
                gradients(*self.inputs)
        with _recording(self.graph, images.device):
            self.outputs = gradients(*self.inputs)
        self.gradients = [(p, p.grad) for p in parameters]

    def __call__(self, images: Tensor, labels: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor]:
        """The gradients of a batch."""
        for mine, theirs in zip(self.inputs, (images, labels, factors), strict=True):
            if mine is not None and theirs is not None:
                mine.copy_(theirs)
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return self.outputs


class CapturedUpdate:
    """An optimizer's step, recorded for the gradients that its parameters have, and replayed for others there.

    Each replay takes the lr that the groups have then. Recording leaves parameters and state as they were; a state
    that was not yet there begins as zeros. Raises `RuntimeError` when the step cannot be recorded.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        device = parameters[0].device
        self.lrs = [torch.tensor(group["lr"], dtype=torch.float32, device=device) for group in optimizer.param_groups]
        state = [value for values in optimizer.state.values() for value in values.values()]
        before = [(each, each.detach().clone()) for each in (*parameters, *state)]
        begun = set(optimizer.state)
        self.graph = torch.cuda.CUDAGraph()
        try:
            with _warming_up(device), reading_lr(optimizer, self.lrs):
                optimizer.step()
        except BaseException:
            for p in {*optimizer.state} - begun:  # whose state may be half made
                del optimizer.state[p]
            raise
        finally:
            with torch.no_grad():
                for p in {*optimizer.state} - begun:
                    for each in optimizer.state[p].values():
                        each.zero_()
                for each, value in before:
                    each.copy_(value)
        with _recording(self.graph, device), reading_lr(optimizer, self.lrs):
            optimizer.step()

    def __call__(self) -> None:
        """Move every parameter."""
        for lr, group in zip(self.lrs, self.optimizer.param_groups, strict=True):
            lr.fill_(group["lr"])
        self.graph.replay()
