"""Several processes that train one network, as torchrun starts them; one that torchrun did not start is alone.

    torchrun --nproc-per-node=4 -m swinexp.run …

Every process augments the whole batch and trains its share of it, so that N processes are one, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from swinexp.ranks import rank, size


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the others while the block lasts."""
    if size() == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def together(model: nn.Module) -> nn.Module:
    """The model, with its gradient averaged over all processes."""
    if size() == 1:
        return model
    # Buffers are indices and masks, the same everywhere.
    return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def unshared(model: nn.Module) -> AbstractContextManager[None]:
    """Gradients stay in this process while the block lasts: for all parts of a batch but the last."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def summed(*tensors: Tensor) -> None:
    """Add up over all processes, in place."""
    if size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def shared(images: int, parts: int) -> list[slice]:
    """The rows of a batch of so many images that this process trains, in so many parts of (nearly) the same size."""
    whole = size() * parts
    edges = [images * i // whole for i in range(whole + 1)]
    mine = range(rank() * parts, (rank() + 1) * parts)
    return [slice(edges[i], edges[i + 1]) for i in mine if edges[i] < edges[i + 1]]
