"""What has been decoded is kept: one file a split, whole or not there, checked before it is believed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from swinexp.data.splits import Split
from swinexp.folder import TEMPORARY, check_archive, write_atomically
from swinexp.mistake import first_line

log = logging.getLogger(__name__)

CACHE_VERSION = 3  # a new one when decoding changes what the pixels are, or what is kept


@dataclass(frozen=True)
class Decoded:
    """A split as its files say it; `remarks` are about those files, one line each, and are told in every run.

    What is not `lasting` is not kept.
    """

    classes: list[str]
    split: Split
    remarks: list[str]
    lasting: bool = True


def cached(folder: str, key: list[object], decode: Callable[[], Decoded]) -> tuple[list[str], Split]:
    """What `decode` returns, kept in `folder` under the hash of `key` and memory-mapped from there the next time.

    The file appears whole or not at all, so that a killed run leaves no damaged one; of several processes that want
    it at once one decodes. A file that is damaged all the same is made anew, and a disk that is full costs only time.
    """
    digest = hashlib.sha256(json.dumps([CACHE_VERSION, *key]).encode()).hexdigest()[:24]
    path = Path(folder).expanduser() / f"{key[0]}-{key[1]}-{digest}.pt"
    with ExitStack() as stack:
        with suppress(OSError):  # in a folder that cannot be written, two processes only do the same work
            stack.enter_context(alone(path))
        decoded = _read(path)
        if decoded is None:
            decoded = decode()
            if decoded.lasting:
                _keep(path, decoded)
    for remark in decoded.remarks:
        log.info(remark)
    return decoded.classes, decoded.split


def _read(path: Path) -> Decoded | None:
    """What a file holds; None when there is none or it is damaged."""
    if not path.exists():
        return None
    try:
        check_archive(path)
        saved = torch.load(path, mmap=True, weights_only=True)
        return Decoded(saved["classes"], Split(saved["images"], saved["labels"]), saved["remarks"])
    except Exception as error:  # a damaged file raises almost anything
        log.warning("%s is damaged (%s): decoding again", path, first_line(error))
        return None


def _keep(path: Path, decoded: Decoded) -> None:
    saved = {"classes": decoded.classes, "remarks": decoded.remarks, **vars(decoded.split)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".*{TEMPORARY}"):  # of a process that was killed while it wrote
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > 3600:
                    leftover.unlink()
        write_atomically(path, lambda file: torch.save(saved, file))
    except OSError as error:
        log.warning(
            "the decoded images could not be kept in %s (%s): they are decoded again next time",
            path.parent,
            first_line(error),
        )


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in here for the same `path`. Raises OSError where nothing can be locked.

    The lock is a file beside `path`. The system lets go of it even after kill -9.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("waiting for another process that is making %s", path)
                fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is(handle, lock):
                continue  # whoever had it has removed it: only the file that is there locks
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return
        finally:
            os.close(handle)


def _is(handle: int, path: Path) -> bool:
    """Whether an open file is the one that is at `path` now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
