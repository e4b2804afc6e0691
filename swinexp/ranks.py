"""Which of several processes this one is, by what torchrun tells it. Nothing heavy is imported here."""

from __future__ import annotations

import os

# What gloo and NCCL say when the process at the other end has gone.
GONE = ("Connection closed by peer", "Connection reset by peer", "ncclRemoteError")
TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _told(name: str, alone: int) -> int:
    return int(os.environ[name]) if all(each in os.environ for each in TOLD) else alone


def rank() -> int:
    """This process among all; 0 is the one that writes and speaks."""
    return _told("RANK", 0)


def local_rank() -> int:
    """This process among those of its machine, and so the GPU that is its."""
    return _told("LOCAL_RANK", 0)


def local_size() -> int:
    """How many processes train on this machine, as far as this one is told."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", local_rank() + 1)) if size() > 1 else 1


def size() -> int:
    """How many processes train together."""
    return _told("WORLD_SIZE", 1)


def lost_another(error: BaseException) -> bool:
    """Whether an error only says that one of the others is gone; that one's own message says why."""
    return size() > 1 and any(text in str(error) for text in GONE)
