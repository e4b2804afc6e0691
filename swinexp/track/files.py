"""What W&B keeps of runs in its folders here, as its own reader has it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from swinexp.mistake import one_line

log = logging.getLogger(__name__)

PLACE = Path("outputs", "wandb")  # of the runs that are offline
UNSENT = ".unsent"  # how a file is called that lies beside what a server did not take in time


def records(place: Path) -> list[dict[str, Any]]:
    """What W&B's own reader finds in a run's folder of W&B's. Raises OSError, SubprocessError and ValueError."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(place)]
    told = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    return [json.loads(line) for line in told.splitlines()]


def offline_epochs(known: str) -> set[int] | None:
    """The epochs that the offline parts of a run hold, by W&B's own reader; None where there is none, or it cannot.

    Not of those of which a server is to get what it lacks: it lacks less once the run is online again.
    """
    found: set[int] = set()
    parts = [part for part in PLACE.glob(f"offline-run-*-{known}") if not any(part.glob(f"*{UNSENT}"))]
    for part in parts:
        try:
            rows = [record["history"]["item"] for record in records(part) if "history" in record]
        except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
            log.warning("W&B cannot read %s (%s)", part, one_line(error))
            return None
        found |= {int(row["epoch"]) for row in rows if "epoch" in row}
    return found if parts else None


def refusal(place: Path) -> str | None:
    """What a server answered to the figures of a run in W&B's folder of it that has ended, if not that it has them.

    W&B gives up on most answers without an error, and writes them into its own log.
    """
    for path in place.glob("logs/debug-internal.log"):
        for line in path.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                told = json.loads(line)
                if told.get("msg") == "api: HTTP error" and str(told.get("url", "")).endswith("/file_stream"):
                    return f"HTTP {told.get('status')}"
    return None
