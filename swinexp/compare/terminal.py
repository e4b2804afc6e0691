"""A comparison on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from swinexp.compare.table import BESIDE, columns, left_out, notes, tally, why

if TYPE_CHECKING:
    from swinexp.compare.__main__ import Comparison

LISTED = 10  # runs that are left out, one by one
GAP = 2  # spaces between two columns


def show(found: Comparison, top: int) -> None:
    """Print the best groups, what must be known of them, and what is left out."""
    console = Console(highlight=False)
    print(f"{len(found.runs)} runs: {tally(found.runs)}")
    cells = {name: [cell.text for cell in each[:top]] for name, each in columns(found.groups, found.metric).items()}
    needed = {name: GAP + max(map(len, (name, *texts))) for name, texts in cells.items()}
    if console.is_terminal:  # which folds what is too wide; a file takes it all
        for name in reversed(BESIDE.values()):
            if sum(needed.values()) - GAP > console.width:
                needed.pop(name, None)
    else:
        console = Console(highlight=False, width=max(80, sum(needed.values())))
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for name in needed:
        table.add_column(name, justify="left" if name in found.groups[0].settings else "right", overflow="fold")
    for index, row in enumerate(zip(*(cells[name] for name in needed), strict=True)):
        table.add_row(*row, style="bold" if index == 0 and len(found.groups) > 1 else None)
    console.print(table)
    if len(found.groups) > top:
        print(f"… and {len(found.groups) - top} more: top={len(found.groups)}, or html=FILE, has all")
    for note in notes(found.groups):
        print(f"- {note}")
    apart = left_out(found.runs, found.metric)
    if apart:
        print("\nnot among them:")
    for run in apart[:LISTED]:
        reason = why(run, found.metric)
        print(f"  {run.state:10}  {run.path}{f'  ({reason})' if reason else ''}")
    if len(apart) > LISTED:
        print(f"  … and {len(apart) - LISTED} more ({tally(apart[LISTED:])}): csv=FILE or html=FILE has all")
