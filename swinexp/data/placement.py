"""A split and where it lies: on the device that trains, or on the host with its batches on the way."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from swinexp.data.splits import Split
from swinexp.mistake import Mistake

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostSplit(Split):
    """A split that stays in the host's memory while its batches come out on `device`.

    On a GPU a batch is gathered into pinned memory and copied on a stream of its own, while the device works on the
    batch before it. Only batches are pinned: the processor gathers them anyway, and the whole split may be a file.
    """

    device: torch.device

    def to(self, device: torch.device) -> HostSplit:
        return replace(self, device=device)

    def each(self, indices: Iterable[Tensor | slice]) -> Iterator[Split]:
        stream = _stream(self.device) if self.device.type == "cuda" else None
        coming: tuple[Split, torch.Event | None] | None = None
        for index in indices:
            batch, coming = coming, self._send(self[index], stream)
            if batch is not None:
                yield self._receive(*batch)
        if coming is not None:
            yield self._receive(*coming)

    def _send(self, batch: Split, stream: torch.cuda.Stream | None) -> tuple[Split, torch.Event | None]:
        """Begin to copy a batch to the device; with the event that says when it is there."""
        if stream is None:
            return batch.to(self.device), None
        with torch.cuda.stream(stream):
            # Pinned memory is given out anew only when its copy is done: torch sees to that.
            parts = (part.pin_memory().to(self.device, non_blocking=True) for part in (batch.images, batch.labels))
            return Split(*parts), stream.record_event()

    def _receive(self, batch: Split, arrival: torch.Event | None) -> Split:
        """Have what the device does from here on wait for the batch, and for no later one."""
        if arrival is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(arrival)
            for part in (batch.images, batch.labels):
                part.record_stream(current)  # its memory belongs to the other stream, and is in use on this one
        return batch


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """For copies; one for good, since freed memory is kept for the stream that it was made for."""
    return torch.cuda.Stream(device)


def place(split: Split, placement: str, device: torch.device) -> Split:
    """The split on `device`, or on the host beside it: `placement` decides, and with auto the memory that is free.

    Raises `Mistake` when it has to be on the device and does not fit.
    """
    beside = HostSplit(split.images, split.labels, device)
    if placement == "host":
        return beside
    if placement == "auto" and device.type == "cuda":
        torch.cuda.empty_cache()  # what earlier runs of this process had is free too
        free, _ = torch.cuda.mem_get_info(device)
        if split.nbytes > free / 2:  # the other half is for the network and what it computes
            log.info(
                "data.placement: %s images (%.1f GB) stay on the host, %s has %.1f GB free",
                f"{len(split):,}",
                split.nbytes / 1e9,
                device,
                free / 1e9,
            )
            return beside
    try:
        return split.to(device)
    except torch.OutOfMemoryError as error:
        raise Mistake(
            f"data.placement={placement}: {len(split):,} images ({split.nbytes / 1e9:.1f} GB) do not fit in the memory "
            f"of {device}. Type data.placement=host"
        ) from error
