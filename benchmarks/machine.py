"""What a benchmark was measured on: its first line, and what its JSON begins with."""

from __future__ import annotations

import platform
from datetime import date

import torch


def machine(device: torch.device, cpu: str | None = None) -> dict[str, str]:
    """The day, the chip and the versions. `cpu` is how a CPU is called, if not by torch's number of threads."""
    threads = torch.get_num_threads()
    chip = cpu or f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return {
        "date": str(date.today()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else chip,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def first_line(about: dict[str, str]) -> str:
    """`machine` as a benchmark begins with it."""
    return f"{about['date']}  {about['device']}  torch {about['torch']}  Python {about['python']}"


def waited(device: torch.device) -> None:
    """What was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
