"""What the group wandb decides."""

from __future__ import annotations

import re
from dataclasses import dataclass

from swinexp.mistake import check, one_of, shown

WANDB_MODES = ("auto", "online", "offline", "disabled", "", "dryrun")  # the last two for WANDB_MODE
CHECKPOINTS = ("none", "last", "best", "both")


def check_place(prefix: str, project: str | None, entity: str | None) -> None:
    """Raise `Mistake` unless W&B can have a project of that name, of that user or team; `prefix` begins their keys."""
    check(
        project is None or bool(re.fullmatch(r"[^/\\#?%:]{1,128}", project)),
        f"{prefix}project",
        project,
        "1 to 128 characters without / \\ # ? % :",
        f"{prefix}project=swinexp",
    )
    check(
        entity is None or bool(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", entity)),
        f"{prefix}entity",
        entity,
        "a user or a team: 1 to 64 letters, digits, - and _",
        f"{prefix}entity=null",
    )


@dataclass
class Wandb:
    """Where W&B keeps the run, and what beside its figures. Offline runs go to outputs/wandb/; `make sync` sends them.

    `entity`       who owns the project; null: whoever the API key belongs to
    `tags`         beside those that name the data and the model where the command does
    `notes`        what a reader should know of the run
    `norms`        train/weight_norm after each epoch, beside train/grad_norm, which is always there
    `images`       also a contact sheet of what training sees; in the end the worst errors, whom the network takes for
                   whom, and where it looks
    `checkpoints`  one of `CHECKPOINTS`, which the artifact run-<id> gets in the end
    """

    mode: str
    project: str
    entity: str | None
    tags: list[str]
    notes: str | None
    norms: bool
    images: bool
    checkpoints: str

    def __post_init__(self) -> None:
        check(
            self.mode in WANDB_MODES,
            "wandb.mode",
            self.mode,
            f"one of {', '.join(WANDB_MODES[:4])} (with wandb=auto the variable WANDB_MODE sets it)",
            "wandb=offline",
        )
        check_place("wandb.", self.project, self.entity)
        check(
            all(1 <= len(tag) <= 64 for tag in self.tags),
            "wandb.tags",
            self.tags,
            "each tag has 1 to 64 characters",
            "wandb.tags=[baseline]",
        )
        one_of("wandb.checkpoints", self.checkpoints, CHECKPOINTS)
        for key, off in (("checkpoints", "none"), ("tags", []), ("notes", None), ("images", False)):
            value = getattr(self, key)
            check(
                self.mode != "disabled" or value == off,
                f"wandb.{key}",
                value,
                "there is no W&B that gets it (wandb.mode=disabled)",
                f"wandb.{key}={shown(off)}",
            )
