"""Several processes that train one network, as torchrun starts them; one that torchrun did not start is alone.

    torchrun --nproc-per-node=4 -m swinexp.run …

Every process augments the whole batch and trains its share of it, so that N processes are one, to rounding; only a
BatchNorm (patch=p2_conv) normalises each share by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from swinexp.ranks import local_rank, rank, size


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the others while the block lasts."""
    if size() == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield
    dist.destroy_process_group()  # not after an error: NCCL may wait for what the others never join


class Left(Exception):
    """The first process trains no longer, and says why."""


def followed(decide: Callable[[], object]) -> None:
    """Have the first process `decide` whether all go on: what it raises ends the others with `Left`."""
    error: Exception | None = None
    if rank() == 0:
        try:
            decide()
        except Exception as raised:
            error = raised
    if size() > 1:
        device = torch.device("cuda", local_rank()) if dist.get_backend() == "nccl" else torch.device("cpu")
        over = torch.tensor(int(error is not None), device=device)
        dist.broadcast(over, 0)
        if rank() > 0 and over.item():
            raise Left
    if error is not None:
        try:
            raise error
        finally:
            error = None  # else the two hold each other, and all that was trained


def together(model: nn.Module) -> nn.Module:
    """The model, with its gradient averaged over all processes."""
    if size() == 1:
        return model
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    # Not before every step: indices and masks are the same everywhere, and running statistics are evened when they are
    # needed. torch has given the argument another name, and the attribute not.
    parallel.broadcast_buffers = False
    return parallel


def unshared(model: nn.Module) -> AbstractContextManager[None]:
    """Gradients stay in this process while the block lasts: for all parts of a batch but the last."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def summed(*tensors: Tensor) -> None:
    """Add up over all processes, in place."""
    if size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def evened(*tensors: Tensor) -> None:
    """Become their mean over all processes, in place."""
    summed(*tensors)
    for tensor in tensors:
        tensor /= size()


def shared(images: int, parts: int) -> list[slice]:
    """The rows of a batch of so many images that this process trains, in so many parts of (nearly) the same size."""
    whole = size() * parts
    edges = [images * i // whole for i in range(whole + 1)]
    mine = range(rank() * parts, (rank() + 1) * parts)
    return [slice(edges[i], edges[i + 1]) for i in mine if edges[i] < edges[i + 1]]
