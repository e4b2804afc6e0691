"""A step's gradients as one CUDA graph: the device gets hundreds of kernels by one launch, so that it never waits for
Python, however small the batch. As in pytorch.org/docs/stable/notes/cuda.html#cuda-graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Gradients = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]

WARM_UP = 2  # calls before the capture, in which libraries choose and allocate what they need


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
        stream, current = torch.cuda.Stream(images.device), torch.cuda.current_stream(images.device)
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
