"""A step's gradients, and what the optimizer makes of them, as CUDA graphs: the device gets hundreds of kernels by one
launch, so that it never waits for Python, however small the batch. As in
pytorch.org/docs/stable/notes/cuda.html#cuda-graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        stream, current = _beside(images.device), torch.cuda.current_stream(images.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # autograd has to know the parameters by this stream alone
            for _ in range(WARM_UP):
                gradients(*self.inputs)
        current.wait_stream(stream)
        try:
            with torch.cuda.graph(self.graph, stream=stream):
                self.outputs = gradients(*self.inputs)
        finally:
            torch.cuda.set_stream(current)  # which torch leaves changed where recording fails
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
        before = [(each, each.detach().clone()) for each in (*parameters, *self._state())]
        begun = set(optimizer.state)
        self.graph = torch.cuda.CUDAGraph()
        stream, current = _beside(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream), reading_lr(optimizer, self.lrs):
                optimizer.step()
        except BaseException:
            for p in {*optimizer.state} - begun:  # whose state may be half made
                del optimizer.state[p]
            raise
        finally:
            current.wait_stream(stream)
            with torch.no_grad():
                for p in {*optimizer.state} - begun:
                    for each in optimizer.state[p].values():
                        each.zero_()
                for each, value in before:
                    each.copy_(value)
        try:
            with torch.cuda.graph(self.graph, stream=stream), reading_lr(optimizer, self.lrs):
                optimizer.step()
        finally:
            torch.cuda.set_stream(current)  # which torch leaves changed where recording fails

    def _state(self) -> list[Tensor]:
        values = (value for state in self.optimizer.state.values() for value in state.values())
        return [value for value in values if isinstance(value, Tensor)]

    def __call__(self) -> None:
        """Move every parameter."""
        for lr, group in zip(self.lrs, self.optimizer.param_groups, strict=True):
            lr.fill_(group["lr"])
        self.graph.replay()
