"""A run as W&B has it, which is never the reason that a run stops."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swinexp.folder import write_text
from swinexp.mistake import one_line
from swinexp.track.files import PLACE, UNSENT, offline_epochs, refusal
from swinexp.track.options import Wandb

if TYPE_CHECKING:
    from swinexp.look import Error

log = logging.getLogger(__name__)

START = 8  # seconds that an unreachable server may take at the start of a run
END = 6  # and at its end
UPLOAD = 300  # or, where checkpoints have to be sent
SYNC = "python -m swinexp.track.sync"
ROOM = 2**16  # bytes that a disk has at least, unless it is full
FIGURES = ("label", "prediction", "confidence", "loss")  # of an error, beside its image


class WandbRun:
    """A run as W&B has it. What W&B raises is told in one line, and the run goes on without it.

    `kept` is the file that holds its id; `about` is what else `wandb.init` takes.
    """

    def __init__(self, options: Wandb, kept: Path, **about: Any) -> None:
        self.options, self.kept, self.about = options, kept, about
        self.run: Any = None
        self.epochs: set[int] = set()  # that W&B had before, as far as its files here say
        self.rest = False  # it is offline, and was online before: a server is to get of it what it lacks

    def __bool__(self) -> bool:
        return self.run is not None

    @property
    def id(self) -> str | None:
        """What W&B calls the run, where it has it."""
        return None if self.run is None else str(self.run.id)

    def start(self, resuming: bool, facts: Mapping[str, Any], history: Sequence[Mapping[str, float]] = ()) -> None:
        """Begin, or go on under the id of before; online where that works, else offline.

        `history` are the epochs of before; what W&B lost of them when the run was killed it gets now.
        """
        mode = {"": "auto", "dryrun": "offline"}.get(self.options.mode, self.options.mode)
        if mode == "disabled":
            return
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # without network, it delays the exit
        if mode != "offline":
            mode = "online" if self._may_be_online(mode) else "offline"
        known = read_id(self.kept) if resuming else None
        before = None if known is None else offline_epochs(known)  # while there is no file of this part
        begun = any(PLACE.glob(f"run-*-{known}"))  # online; what the server has of it is not to be known offline
        if mode == "online":
            self.run = self._init("online", known, "the run is kept offline")
            if self.run is None and not _forgotten():
                known = None
        if self.run is None:
            self.run = self._init("offline", known, "the run goes on without it")
            if self.run is not None and begun and known is not None:
                before, self.rest = set(), True  # this part has all of them
                self._leave_to_sync()
        if self.run is None:
            return
        write_text(self.kept, json.dumps({"id": self.run.id, "project": self.options.project}) + "\n")
        self.tries(lambda run: self._describe(run, facts))
        self.tries(lambda run: self._catch_up(run, history, before if run.id == known else set()))
        if self:
            log.info("W&B: %s", self.where())

    def tries(self, action: Callable[[Any], object]) -> None:
        """Do something with the run, if W&B has it and has not failed yet."""
        if self.run is None:
            return
        try:
            action(self.run)
        except Exception as error:
            log.warning("W&B stopped working (%s): the run goes on without it", one_line(error))
            self.run = None

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """A line of the history, unless W&B has one of that step already."""
        if step not in self.epochs:
            self.tries(lambda run: run.log(dict(row), step=step, commit=True))

    def summary(self, figures: Mapping[str, Any]) -> None:
        self.tries(lambda run: run.summary.update(dict(figures)))

    def show(self, step: int, pictures: Mapping[str, Path], errors: Sequence[Error] = ()) -> None:
        """A line of the history with pictures, and with a table of errors where there are any."""

        def show(run: Any) -> None:
            import wandb

            media: dict[str, Any] = {name: wandb.Image(str(path)) for name, path in pictures.items()}
            if errors:
                rows = [[wandb.Image(each.image), *(getattr(each, figure) for figure in FIGURES)] for each in errors]
                media["errors"] = wandb.Table(columns=["image", *FIGURES], data=rows)
            run.log(media, step=step, commit=True)

        self.tries(show)

    def file(self, name: str, text: str) -> None:
        """A text file of the run."""

        def save(run: Any) -> None:
            path = Path(run.dir) / name
            path.write_text(text)
            run.save(str(path), base_path=run.dir, policy="now", glob=False)

        self.tries(save)

    def checkpoint(self, path: Path, aliases: Sequence[str], about: Mapping[str, Any]) -> None:
        """A version of the run's model; offline, it is sent from where it lies."""

        def keep(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(f"run-{run.id}", "model", metadata=dict(about))
            artifact.add_file(str(path.absolute()), name="checkpoint.pt", policy="immutable")
            run.log_artifact(artifact, aliases=list(aliases))

        self.tries(keep)

    def finish(self, state: str, failed: bool) -> None:
        """The end, with how it came to it."""
        self.summary({"state": state})
        if self.run is None:
            return
        folder = Path(self.run.settings.sync_dir)
        try:
            self.run.finish(exit_code=int(failed))
            refused = None if self.run.offline else refusal(folder)
        except Exception as error:
            refused = one_line(error)
        if refused is not None:
            log.warning("W&B has not got all of the run (%s); to send the rest: %s", refused, SYNC)
            self._leave_to_sync()
        with suppress(OSError):
            if shutil.disk_usage(folder).free < ROOM:
                log.warning("the disk of %s is full: W&B may lack part of the run", os.path.relpath(folder))

    def _leave_to_sync(self) -> None:
        """Have `swinexp.track.sync` send what the server lacks of this part."""
        with suppress(OSError):
            (Path(self.run.settings.sync_dir) / f"run-{self.run.id}.wandb{UNSENT}").touch()

    def where(self) -> str:
        """Where W&B has the run: its page, or its folder and what to do with that."""
        if not self.run.offline:
            return str(self.run.url)
        look = f"{_command()} leet {os.path.relpath(self.run.settings.sync_dir)}"
        return f"offline; to look: {look}; to send: {SYNC if self.rest else self._sync_command()}"

    def _sync_command(self) -> str:
        place = os.path.relpath(self.run.settings.sync_dir)
        every_part = re.sub(r"\d{8}_\d{6}", "*", place)  # a resumed run has a folder for each of its parts
        return f"{_command()} sync {every_part}"

    def _may_be_online(self, mode: str) -> bool:
        """Whether there is a key for W&B's server; says so where one is wanted, since W&B would ask on a terminal."""
        try:
            found = key_is_configured()
        except Exception as error:
            log.warning("W&B's settings do not work (%s), so the run is kept offline", one_line(error))
            return False
        if mode == "online" and not found:
            log.warning("W&B: no API key is configured (type: wandb login), so the run is kept offline")
        return found

    def _init(self, mode: str, known: str | None, instead: str) -> Any:
        try:
            import wandb

            return wandb.init(
                mode=mode,  # type: ignore[arg-type]
                project=self.options.project,
                entity=self.options.entity,
                dir=str(PLACE.parent.absolute()),  # W&B's own process may have begun elsewhere
                id=known or secrets.token_hex(4),
                resume="allow" if known else None,
                reinit="finish_previous",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=START,
                    finish_timeout=END if self.options.checkpoints == "none" else UPLOAD,
                    finish_timeout_raises=True,
                    x_transaction_log_flush_interval=1,  # so that kill -9 loses a second, not a run
                ),
                **self.about,
            )
        except Exception as error:
            reason = one_line(error).partition(" Consider increasing ")[0]  # a setting that is ours
            log.warning("W&B could not start %s (%s), so %s", mode, reason, instead)
            return None

    def _catch_up(self, run: Any, history: Sequence[Mapping[str, float]], before: set[int] | None) -> None:
        """Give W&B the epochs that it lacks; what is offline has those of `before`, or all where that is not known."""
        if before is None and run.offline:
            return
        self.epochs = before or set()
        for row in history:
            if row["epoch"] >= run.step:  # what the server has ends before that
                self.log(row, int(row["epoch"]))

    def _describe(self, run: Any, facts: Mapping[str, Any]) -> None:
        # Summaries are the last values, as in summary.json; the best epoch's stand beside them as best/*.
        run.define_metric("epoch", hidden=True)
        for part in ("train", "val", "ema"):
            run.define_metric(f"{part}/*", step_metric="epoch")
        run.summary.update(dict(facts))


def _forgotten() -> bool:
    """End W&B's own process, in which an id whose start failed stays taken, unless another program began it."""
    import wandb

    with suppress(Exception, SystemExit):  # which it raises where its process ended with an error
        wandb.teardown()
    return "WANDB_SERVICE" not in os.environ


def _command() -> str:
    """How `wandb` is called from here."""
    return "wandb" if shutil.which("wandb") else os.path.relpath(Path(sys.executable).parent / "wandb")


def key_is_configured() -> bool:
    """W&B finds credentials for its server without asking. Raises what it raises over settings that make no sense."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb.login(prompt=False, verify=False)


def read_id(path: Path) -> str | None:
    """The W&B id that a run had before, if its file is whole."""
    try:
        return str(json.loads(path.read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
