"""A comparison as a page of HTML that can be sent to someone: its tables, its pictures, and what is left out."""

from __future__ import annotations

import html
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from swinexp.compare.differences import is_number
from swinexp.compare.runs import COMPLETE, Found
from swinexp.compare.table import columns, left_out, notes, number, tally, why
from swinexp.folder import write_text
from swinexp.page import cell, page, picture, table

if TYPE_CHECKING:
    from swinexp.compare.__main__ import Comparison

CURVES = ("val/accuracy", "val/loss", "train/loss")  # of the history, beside the figure that is compared


def write_page(found: Comparison, path: Path) -> None:
    """All of a comparison. Without matplotlib, which is an extra, there are no pictures, and the page says so."""
    groups, metric = found.groups, found.metric
    cells = columns(groups, metric)
    kinds = ["best" if index == 0 and len(groups) > 1 else "" for index in range(len(groups))]
    rows = [
        (kind, [cell(each.text, each.figure) for each in row])
        for kind, row in zip(kinds, zip(*cells.values(), strict=True), strict=True)
    ]
    remarks = "".join(f"<li>{html.escape(note)}</li>" for note in notes(groups))
    sections = [table([*cells], rows, left=[*groups[0].settings, "difference"]), f"<ul>{remarks}</ul>"]
    sections += _pictures(found) if find_spec("matplotlib") else ["<p>matplotlib, which draws, is not installed.</p>"]
    apart = left_out(found.runs, metric)
    if apart:
        names = ["state", "run", "why"]
        listed = [(run.state, [run.state, cell(str(run.path)), cell(why(run, metric))]) for run in apart]
        sections += ["<h2>Not among them</h2>", table(names, listed, left=names)]
    names = ["state", metric, "epochs", "W&B", "run"]
    listed = [(run.state, _told(run, metric)) for run in found.runs]
    sections += ["<h2>All runs</h2>", table(names, listed, left=["state", "run", "W&B"])]
    write_text(path, page(f"{metric} by {', '.join(groups[0].settings) or 'nothing'}", tally(found.runs), sections))


def _told(run: Found, metric: str) -> list[str]:
    """A run's cells."""
    figure = run.summary.get(metric)
    reached = cell(number(figure, metric), figure) if figure is not None and is_number(figure) else ""
    return [run.state, reached, str(run.epochs), cell(run.wandb or ""), cell(str(run.path))]


def _pictures(found: Comparison) -> list[str]:
    from swinexp.compare.pictures import COSTS, draw_costs, draw_curves, draw_keys, draw_standing, png

    groups, metric = found.groups, found.metric
    judged = [run for run in found.runs if run.state == COMPLETE and is_number(run.summary.get(metric))]
    drawn = {}
    if len(groups) > 1:
        drawn["How they stand"] = draw_standing(groups, metric)
    if any(groups[0].settings) and found.keys:
        drawn["By what was varied"] = draw_keys(judged, metric, found.keys)
    curves = [key for key in dict.fromkeys((metric, *CURVES)) if any(run.curve(key)[0] for run in judged)]
    if curves:
        drawn["Curves"] = draw_curves(groups, curves[:2])
    costs = [key for key in COSTS if key != metric and len({figure for g in groups for figure in g.of(key)}) > 1]
    if costs and len(groups) > 1:
        drawn["What it costs"] = draw_costs(groups, metric, costs)
    return [f"<h2>{title}</h2>{picture(png(figure), title)}" for title, figure in drawn.items()]
