"""Checkpoints as files: whole or not there, the newest few and the best, checked before they are believed."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from swinexp.folder import TEMPORARY, check_archive, write_atomically
from swinexp.mistake import Mistake, first_line
from swinexp.train.options import MOST

log = logging.getLogger(__name__)

VERSION = 3  # a new one when a checkpoint of before cannot be gone on from


def earlier(path: Path, by: int) -> Path:
    """last.pt, last-1.pt, last-2.pt …: the checkpoint so many before the newest."""
    return path.with_stem(f"{path.stem}-{by}") if by else path


def best(path: Path) -> Path:
    """Where the checkpoint of the best epoch lies."""
    return path.with_stem("best")


def write(path: Path, saved: Mapping[str, Any], keep: int) -> None:
    """Write the newest checkpoint; those before it move back by one, and the oldest of `keep` goes.

    At every moment a whole one has the name `path`. Raises `Mistake` when there is no room for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    newest = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        write_atomically(newest, lambda file: torch.save({"version": VERSION, **saved}, file))
    except OSError as error:
        kept = f"{path} holds the run up to the checkpoint before" if path.exists() else "There is none before it"
        raise Mistake(
            f"{path}: a checkpoint cannot be written ({error.strerror}). {kept}; make room, and type the same command"
        ) from error
    for by in range(keep - 1, 1, -1):
        if earlier(path, by - 1).exists():
            os.replace(earlier(path, by - 1), earlier(path, by))
    if keep > 1 and path.exists():
        link(path, earlier(path, 1))
    os.replace(newest, path)


def link(path: Path, other: Path) -> None:
    """Have `other` be the same file as `path`, all at once; a copy of it where a file cannot have two names."""
    temporary = other.with_name(f".{other.name}{TEMPORARY}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, other)


def read(path: Path, device: torch.device) -> dict[str, Any]:
    """What a checkpoint holds. Raises almost anything for a damaged file, and ValueError for another version's."""
    check_archive(path)
    saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    if saved["version"] != VERSION:
        raise ValueError(f"its version is {saved['version']}, this is {VERSION}")
    return saved


def restore(path: Path, device: torch.device, into: Callable[[dict[str, Any]], None]) -> None:
    """Hand the newest checkpoint that is whole to `into`. Raises `Mistake` when none is."""
    first: Exception | None = None
    for candidate in (path, *filter(Path.exists, (earlier(path, by) for by in range(1, MOST)))):
        try:
            into(read(candidate, device))
        except Exception as error:  # a damaged file raises almost anything
            first = first or error
            continue
        if first is not None:
            log.warning("%s is damaged (%s): going on from the one before, %s", path, first_line(first), candidate.name)
        return
    assert first is not None
    raise Mistake(
        f"{path} cannot be read ({first_line(first)}). Remove it to train from the start: rm '{path}'"
    ) from first
