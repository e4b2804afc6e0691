"""What a figure needs beside it to be believed: code, versions, machine."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinexp import HERE, __version__

if TYPE_CHECKING:
    import torch

    from swinexp.config import Run

VERSIONS = ("torch", "torchvision", "hydra-core", "omegaconf", "wandb", "optuna", "numpy")
LONGEST = 2**20  # bytes of a diff


def about(run: Run) -> dict[str, Any]:
    """What a figure needs beside it to be believed: code, versions, machine."""
    import torch

    device = run.trainer.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "name": run.name,
        "seed": run.seed,
        "objective": run.objective,
        "device": device,
        "device_name": chip(torch.device(device)),
        **({"threads": torch.get_num_threads()} if device == "cpu" else {}),  # another number gives other last bits
        "git": git_revision(),
        "versions": {"swinexp": __version__, "python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONS}


def chip(device: torch.device) -> str:
    """The GPU's name; or the CPU's, and how many threads torch uses on it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = models[0] if models else name
    except OSError:
        pass
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def git_revision() -> str | None:
    """The commit of this checkout, with -dirty when files differ from it; None outside a checkout."""
    told = _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return None if told is None else told.decode().strip()


def git_diff() -> str:
    """How the files of this checkout differ from its commit, cut where that is very long; empty where nothing does."""
    told = _git("diff", "HEAD", "--no-color", "--no-ext-diff") or b""
    cut = f"\n… cut at {LONGEST:,} bytes\n" if len(told) > LONGEST else ""
    return told[:LONGEST].decode(errors="replace") + cut


def _git(*arguments: str) -> bytes | None:
    if not (HERE.parent / ".git").exists():
        return None
    command = ["git", "-C", str(HERE.parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
