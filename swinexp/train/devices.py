"""The device that trains, how exactly it computes, and the seeds of what is drawn on it."""

from __future__ import annotations

import ctypes
import hashlib
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import GradScaler

from swinexp.mistake import check
from swinexp.ranks import local_rank, local_size, size
from swinexp.swin.gpu import kernels_run
from swinexp.train.options import Trainer

# glibc's mallopt: never a mapping of its own for a large block, never give back the heap's end, grow it by 64 MiB.
KEEPS_MEMORY = ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20))
# Images that a run must train on for compiling to pay: some 46 s against 24 µs an image (H100, docs/performance.md).
COMPILE_PAYS = 2_000_000


def derive(seed: int, *path: object) -> int:
    """A seed for one purpose out of the run's: the same for the same arguments, unrelated for others."""
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # generators take 63 bits


def pick_device(trainer: Trainer) -> torch.device:
    """The device that `trainer.device` names; auto is the GPU where there is one, each process's own.

    Raises `Mistake`.
    """
    count = torch.cuda.device_count()
    if trainer.device == "auto" and not count:
        return torch.device("cpu")
    try:
        device = torch.device("cuda" if trainer.device == "auto" else trainer.device)
    except RuntimeError:
        device = torch.device("meta")  # which nobody trains on
    check(
        device.type == "cuda" or str(device) == "cpu",
        "trainer.device",
        trainer.device,
        "one of auto, cpu, cuda, cuda:N",
        "trainer.device=auto",
    )
    if device.type == "cpu":
        return device
    if trainer.device in ("auto", "cuda"):
        device = torch.device("cuda", local_rank())
        check(  # by every process, for only the first one speaks
            size() == 1 or local_size() <= count,
            "trainer.device" if trainer.gpus == 1 else "trainer.gpus",
            trainer.device if trainer.gpus == 1 else trainer.gpus,
            f"this machine has {count} CUDA GPUs for {local_size()} processes",
            f"{'--nproc-per-node' if trainer.gpus == 1 else 'trainer.gpus'}={count}" if count else "trainer.device=cpu",
        )
    check(
        (device.index or 0) < count,
        "trainer.device",
        trainer.device,
        f"this machine has {count} CUDA GPUs",
        "trainer.device=auto" if count else "trainer.device=cpu",
    )
    return device


def keep_memory() -> None:
    """Have this process reuse what it frees, as torch does on a GPU, where the C library is glibc.

    It would return large blocks to the system at once and have their pages cleared at the next step: up to half of
    the time of a small network.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in KEEPS_MEMORY:
            mallopt(option, value)


def _precision(trainer: Trainer, device: torch.device) -> str:
    if trainer.precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return trainer.precision


def _dtype(trainer: Trainer, device: torch.device) -> torch.dtype:
    """Of what matrix products are given."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(_precision(trainer, device), torch.float32)


def autocast(trainer: Trainer, device: torch.device) -> AbstractContextManager[Any]:
    """Run matrix products in `trainer.precision`; auto is bf16 on a GPU and fp32 on a CPU."""
    dtype = _dtype(trainer, device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def build_scaler(trainer: Trainer, device: torch.device) -> GradScaler | None:
    """What keeps gradients in the range of fp16 (Micikevicius et al., arXiv 1710.03740); the others need none."""
    return GradScaler(device.type) if _precision(trainer, device) == "fp16" else None


def compiles(trainer: Trainer, device: torch.device, images: int) -> bool:
    """Whether the network is compiled, for a run over so many images in all its epochs."""
    if trainer.compile == "auto":
        return device.type == "cuda" and images >= COMPILE_PAYS
    return trainer.compile == "true"


def captures(trainer: Trainer, device: torch.device) -> bool:
    """Whether a step is captured as a CUDA graph: by one process, not with fp16, which has its scale beside it, and not
    where memory is to fit, of which a graph keeps its own."""
    alone = device.type == "cuda" and size() == 1 and not trainer.fit_memory
    return alone and trainer.compile != "false" and _precision(trainer, device) != "fp16"


def settle(trainer: Trainer, device: torch.device) -> None:
    """Have every operation give the same bits each time, products of fp32 in full or as tf32; keep the CPU's memory."""
    if device.type == "cpu":
        keep_memory()
    else:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(device.index or 0)
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = trainer.precision == "tf32"
        kernels_run(device.index or 0, _dtype(trainer, device))  # what it has to say, before training
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it only costs time
