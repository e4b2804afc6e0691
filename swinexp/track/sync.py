"""Send what W&B's server lacks of the runs in outputs/wandb, each once: what is offline, or was not taken in time.

    python -m swinexp.track.sync

W&B marks which offline runs it has sent. Of a run whose server failed, the steps after the server's last are sent.
What a run is still writing to waits for the next time. Nothing can be set; W&B's own log of it is in
outputs/wandb/logs/.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

from swinexp.mistake import Ended, Mistake, one_line
from swinexp.run import reported
from swinexp.track.files import PLACE, UNSENT, records
from swinexp.track.wandb import START, UPLOAD, key_is_configured

SYNCED = ".synced"  # how W&B calls a file beside an offline run that is sent


def unsent(place: Path) -> list[Path]:
    """The files that W&B has not marked as sent, the oldest first; a resumed run has one for each part."""
    found = sorted(place.glob("offline-run-*/run-*.wandb"))
    return [path for path in found if not any(path.with_name(path.name + end).exists() for end in (SYNCED, UNSENT))]


def late(place: Path) -> list[Path]:
    """The files of runs that were online, of which their server lacks something: their end, or what went on offline."""
    return [mark.with_suffix("") for mark in sorted(place.glob(f"*run-*/run-*.wandb{UNSENT}"))]


def being_written(paths: Iterable[Path]) -> set[Path]:
    """Those that a process of this machine has open, where the system tells."""
    opened = set()
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # the process has ended, or is another user's
            opened.add(os.readlink(handle))
    return {path for path in paths if str(path.resolve()) in opened}


def silence(server: str, seconds: float = 10) -> str | None:
    """Why a server is not there, if it is not: whatever it answers will do."""
    try:
        with suppress(urllib.error.HTTPError, HTTPException):
            urllib.request.urlopen(server, timeout=seconds).close()
    except (OSError, ValueError) as error:
        return one_line(error)
    return None


def runs(paths: Iterable[Path]) -> str:
    count = len({path.name for path in paths})  # run-<id>.wandb
    return f"{count} {'run' if count == 1 else 'runs'}"


def sync(place: Path, command: Sequence[str]) -> None:
    """Have `command` send what is there, and say how many that were. Raises `Mistake`, and `Ended` where some stay."""
    waiting = unsent(place) + late(place)
    busy = being_written(waiting)
    ready = [path for path in waiting if path not in busy]
    if busy:
        print(f"{runs(busy)} still being written: left for the next time")
    if not ready:
        print(f"nothing to send in {place}")
        return
    if not key_is_configured():
        raise Mistake(f"{runs(ready)} to send, and no API key is configured. Type wandb login")
    import wandb

    server = str(wandb.setup().settings.base_url)
    if (reason := silence(server)) is not None:
        print(f"{server} does not answer ({reason}): W&B goes on trying, ctrl-C ends it", file=sys.stderr)
    begun = [path for path in late(place) if path in ready]
    whole = [path for path in ready if path not in begun]
    if whole:
        env = {**os.environ, "WANDB_DIR": str(place.parent)}  # below which it logs
        subprocess.run([*command, *map(str, whole)], check=False, stdin=subprocess.DEVNULL, env=env)
    for path in begun:
        try:
            send_rest(path.parent)
        except Exception as error:  # W&B's, of whatever kind
            print(f"{path.parent}: {one_line(error)}", file=sys.stderr)
        else:
            path.with_name(path.name + UNSENT).unlink()
            if path.parent.name.startswith("offline-"):
                path.with_name(path.name + SYNCED).touch()
    left = [path for path in unsent(place) + late(place) if path in ready]
    print(f"{runs(set(ready) - set(left))} sent")
    if left:
        raise Ended(f"{runs(left)} could not be sent; the same command tries again")


def main() -> None:
    """The command."""
    given = sys.argv[1:]
    if {"-h", "--help"} & set(given):
        print(__doc__)
        return
    with reported(given):
        if given:
            raise Mistake(f"{given[0]}: nothing can be set, all is sent. Type python -m swinexp.track.sync, or --help")
        try:
            sync(PLACE, [sys.executable, "-m", "wandb", "sync"])
        except KeyboardInterrupt as stop:
            stop.args = ("stopped; the same command sends the rest",)
            raise


def send_rest(place: Path) -> None:
    """Send what a server lacks of the run in an online folder of W&B's: the steps after its last, and the summary.

    `wandb sync` sends all of it again, behind what is there. Pictures and checkpoints of the missing part stay here.
    Raises what W&B raises.
    """
    import wandb

    run: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    rows: dict[int, dict[str, Any]] = {}
    for record in records(place):
        run |= record.get("run", {})
        summary |= record.get("summary", {}).get("update", {})
        if "history" in record:
            rows[int(record["history"]["step"]["num"])] = _figures(record["history"]["item"])
    settings = wandb.Settings(
        silent=True, console="off", init_timeout=START, finish_timeout=UPLOAD, finish_timeout_raises=True
    )
    names = {"name": "display_name", "group": "run_group", "job_type": "job_type", "entity": "entity"}
    about: dict[str, Any] = {own: run.get(theirs) for own, theirs in names.items()}
    sent = wandb.init(
        id=run["run_id"],
        project=run["project"],
        config={key: each for key, each in run.get("config", {}).get("update", {}).items() if key != "_wandb"},
        mode="online",
        resume="allow",
        reinit="finish_previous",
        dir=tempfile.mkdtemp(),
        settings=settings,
        **about,
    )
    for step in sorted(rows):
        if step >= sent.step:
            sent.log(rows[step], step=step, commit=True)
    sent.summary.update(_figures(summary))
    sent.finish(exit_code=int(summary.get("state") in ("failed", "interrupted")))


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is no picture, and not W&B's own."""
    return {key: each for key, each in row.items() if not key.startswith("_") and not isinstance(each, dict)}


if __name__ == "__main__":
    main()
