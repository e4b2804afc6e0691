"""What the group wandb decides."""

from __future__ import annotations

import re
from dataclasses import dataclass

from swinexp.mistake import check

WANDB_MODES = ("auto", "online", "offline", "disabled", "", "dryrun")  # the last two for WANDB_MODE


@dataclass
class Wandb:
    """Where W&B keeps the run. Offline runs go to outputs/wandb/; `wandb sync` sends them.

    With `images` it also gets a contact sheet of what the network is trained on.
    """

    mode: str
    project: str
    tags: list[str]
    images: bool

    def __post_init__(self) -> None:
        check(
            self.mode in WANDB_MODES,
            "wandb.mode",
            self.mode,
            f"one of {', '.join(WANDB_MODES[:4])} (with wandb=auto the variable WANDB_MODE sets it)",
            "wandb=offline",
        )
        check(
            bool(re.fullmatch(r"[^/\\#?%:]{1,128}", self.project)),
            "wandb.project",
            self.project,
            "1 to 128 characters without / \\ # ? % :",
            "wandb.project=swinexp",
        )
        check(
            all(1 <= len(tag) <= 64 for tag in self.tags),
            "wandb.tags",
            self.tags,
            "each tag has 1 to 64 characters",
            "wandb.tags=[baseline]",
        )
