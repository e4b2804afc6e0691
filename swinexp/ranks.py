"""Which of several processes this one is, by what torchrun tells it. Nothing heavy is imported here."""

from __future__ import annotations

import os

TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _told(name: str, alone: int) -> int:
    return int(os.environ[name]) if all(each in os.environ for each in TOLD) else alone


def rank() -> int:
    """This process among all; 0 is the one that writes and speaks."""
    return _told("RANK", 0)


def local_rank() -> int:
    """This process among those of its machine, and so the GPU that is its."""
    return _told("LOCAL_RANK", 0)


def size() -> int:
    """How many processes train together."""
    return _told("WORLD_SIZE", 1)


def lost_another(error: BaseException) -> bool:
    """Whether an error only says that one of the others is gone; its own message says why."""
    text = str(error)
    return size() > 1 and any(word in text for word in ("gloo", "NCCL", "by peer", "Connection reset"))
