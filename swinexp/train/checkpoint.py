"""Checkpoints as files: whole or not there, the newest few and the best, checked before they are believed."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from swinexp.folder import TEMPORARY, best, candidates, check_archive, earlier, write_atomically
from swinexp.mistake import Mistake, first_line
from swinexp.ranks import rank

log = logging.getLogger(__name__)

VERSION = 3  # a new one when a checkpoint of before cannot be gone on from


class Saving:
    """Writes checkpoints beside training, one at a time, so that a device need not wait for a disk.

    What goes wrong with a file is raised when the next one is to be written, by `wait`, or at the end of the `with`
    block; where that ends by an error of its own, it is a warning.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._file: Future[None] | None = None

    def __enter__(self) -> Saving:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as problem:
            if error is None:
                raise
            log.warning("%s", problem)
        finally:
            self._thread.shutdown()

    def begin(self, write: Callable[[], None]) -> None:
        """Have a file written, once the one before is. Raises `Mistake` when that one could not be."""
        self.wait()
        self._file = self._thread.submit(write)

    def wait(self) -> None:
        """Until what was begun is on the disk. Raises `Mistake` when it cannot be written."""
        if self._file is not None:
            file, self._file = self._file, None
            file.result()


def copied(value: Any) -> Any:
    """A copy, on the host, of tensors in dicts, lists and tuples, which what is trained meanwhile leaves as it is."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copied(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(copied, value))
    return value


def write(path: Path, saved: Mapping[str, Any], keep: int, is_best: bool = False) -> None:
    """Write the newest checkpoint; those before it move back by one, and the oldest of `keep` goes.

    At every moment a whole one has the name `path`. The best so far is best.pt too. Raises `Mistake` when there is no
    room for it.
    """
    newest = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(newest, lambda file: torch.save({"version": VERSION, **saved}, file))
        for by in range(keep - 1, 1, -1):
            if earlier(path, by - 1).exists():
                os.replace(earlier(path, by - 1), earlier(path, by))
        if keep > 1 and path.exists():
            link(path, earlier(path, 1))
        os.replace(newest, path)
        if is_best:
            link(path, best(path))
    except OSError as error:
        kept = f"{path} holds the run up to the checkpoint before" if path.exists() else "There is none before it"
        raise Mistake(
            f"{path}: a checkpoint cannot be written ({error.strerror}). {kept}; make room, and type the same command"
        ) from error


def link(path: Path, other: Path) -> None:
    """Have `other` be the same file as `path`, all at once; a copy of it where a file cannot have two names."""
    if other.exists() and other.samefile(path):
        return  # the system would then leave both names
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
    """Hand the newest checkpoint that is whole to `into`; it takes the name `path`. Raises `Mistake` when none is."""
    there = candidates(path)
    first: Exception | None = None
    for candidate in there:
        try:
            into(read(candidate, device))
        except Exception as error:  # a damaged file raises almost anything
            first = first or error
            continue
        if candidate != path:
            reason = f"{path} is not there" if first is None else f"{there[0]} is damaged ({first_line(first)})"
            log.warning("%s: going on from the one before, %s", reason, candidate.name)
            if rank() == 0:
                link(candidate, path)  # or the next one to be written would push the damaged one into its place
        return
    assert first is not None
    raise Mistake(
        f"{there[0]} cannot be read ({first_line(first)}). Remove all to train from the start: rm -r '{path.parent}'"
    ) from first
