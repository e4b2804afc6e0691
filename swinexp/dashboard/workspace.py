"""A workspace: the panels of a subject in sections, on its runs alone."""

from __future__ import annotations

import unicodedata
from typing import Any

from swinexp.dashboard.panels import BEST, compare, curves, health, library, only_of, outcome
from swinexp.dashboard.subject import Subject


def workspace(subject: Subject, entity: str = "") -> Any:
    """The workspace of a subject, for a project of `entity`, which its spec does not depend on. Raises `Mistake`."""
    ws = library("workspaces")
    sections = {
        "Outcome": outcome(subject),
        "Curves": curves(subject),
        "Compare": compare(),
        "Health": health(subject),
    }
    # The runs of a point are a group; panels that have no groups of their own take these.
    groups = [ws.Config(varied.path) for varied in subject.varied] if subject.repeated else []
    figures = [*dict.fromkeys([BEST, *subject.objectives])]
    made = ws.Workspace(
        entity=entity,
        project=subject.project,
        name=_without_symbols(subject.title),
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=ws.RunsetSettings(
            groupby=groups,
            order=[ws.Ordering(ws.Summary(BEST), ascending=False)],
            pinned_columns=["summary:state", *(f"summary:{key}" for key in figures)],
        ),
    )
    only_of(subject, made)
    return made


def _without_symbols(title: str) -> str:
    """The library takes `=` and `+` for emojis, which a workspace's name may not have."""
    return "".join(":" if unicodedata.category(sign).startswith("S") else sign for sign in title)
