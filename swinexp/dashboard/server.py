"""Where W&B keeps workspaces and reports. Saving again updates what there is."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from swinexp.dashboard.panels import library
from swinexp.mistake import Ended, Mistake, one_line
from swinexp.track import key_is_configured

OFFLINE = "offline=true writes the pages into files instead"
PATIENCE = 10  # seconds that a server may take to answer
LET_GO = 1.0  # seconds for W&B's own process to give up a question, see `_answered`

T = TypeVar("T")


def entity_of(given: str | None) -> str:
    """Whose project it is; without a name, that of the one whom the API key belongs to. Raises `Mistake`, `Ended`."""
    import wandb

    if not key_is_configured():
        raise Mistake(f"no API key is configured. Type wandb login; or {OFFLINE}")
    found = given or _answered(lambda: wandb.Api(timeout=PATIENCE).default_entity)
    if not found:
        raise Mistake("entity=null: the API key has no default entity. Type entity=USER_OR_TEAM")
    return str(found)


def save_workspace(made: Any, title: str) -> str:
    """Create a workspace, or change the one that was saved for its title before; returns its address. Raises `Ended`.

    What W&B's table of views calls it is made of the title, so that any machine finds it, whatever it is shown as.
    """
    internal = library("workspaces.internal")
    name = hashlib.blake2b(title.encode(), digest_size=8).hexdigest()[:11]  # as many signs as W&B's own have

    def save() -> str:
        made._internal_name = f"nw-{name}-v"
        with suppress(ValueError):  # there is none yet
            made._internal_id = internal.get_view_dict(made.entity, made.project, name)["id"]
        return str(made.save().url)

    return _answered(save)


def save_report(made: Any) -> str:
    """Create a report, or change the one that has its title; returns its address. Raises `Ended`."""
    import wandb

    def save() -> str:
        there = wandb.Api(timeout=PATIENCE).reports(f"{made.entity}/{made.project}")
        made.id = next((report.id for report in there if report.display_name == made.title), "")
        return str(made.save().url)

    return _answered(save)


def _answered(ask: Callable[[], T]) -> T:
    try:
        return ask()
    except Exception as error:  # W&B's own, requests', and those of what the server did not say
        # A question given up is still acknowledged. Whoever ends before that has W&B's process fail on the closed
        # connection without reading that it shall end, and then waits for it for ever.
        time.sleep(LET_GO)
        raise Ended(
            f"W&B could not be asked ({one_line(error, 160)}); the same command tries again, {OFFLINE}"
        ) from error
