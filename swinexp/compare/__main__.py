"""Compare runs: what differs between them, what came of it, and whether it is more than chance.

    python -m swinexp.compare outputs/sweeps/lr_wd
    python -m swinexp.compare outputs/sweeps/* outputs/runs/* by=window.size 'where=optimizer.lr<1e-3'
    python -m swinexp.compare outputs/wandb html=compare.html csv=compare.csv

Takes folders of runs, of sweeps, and W&B's offline ones, and everything below them. Runs that differ in nothing but the
seed are one row, with mean ± standard deviation; what is not complete is listed apart and is in no mean.

by       the keys (model, window.size, …), separated by commas, that make a row; without it, all that differ
where    only runs with, for example, optimizer.lr<1e-3, model=tiny, val/accuracy>=0.9, seed<5; may be repeated
metric   the figure that is compared; without it, the objective of the runs
base     the row that the others are compared with, such as window.size=4; without it, the best one
top      rows on the terminal (20)
csv      a file for all runs, with every figure of theirs
html     a file for a page with tables and pictures, which needs nothing beside it
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from swinexp.archive import requested
from swinexp.compare.differences import selected, varied
from swinexp.compare.groups import Group, check_metric, grouped, objective
from swinexp.compare.runs import COMPLETE, Found, find
from swinexp.folder import write_text
from swinexp.mistake import Mistake, check, flag_meant
from swinexp.run import reported


@dataclass
class Request:
    """What the command asks for, beside the folders."""

    by: str | None = None
    where: list[str] = field(default_factory=list)
    metric: str | None = None
    base: str | None = None
    top: int = 20
    csv: str | None = None
    html: str | None = None

    def __post_init__(self) -> None:
        check(self.top >= 1, "top", self.top, "at least 1 row", "top=20")
        for key, path in (("csv", self.csv), ("html", self.html)):
            if path is not None:
                there = Path(path).parent
                check(there.is_dir(), key, path, f"there is no folder {there}", f"{key}=compare.{key}")
                check(not Path(path).is_dir(), key, path, "is a folder", f"{key}={Path(path, f'compare.{key}')}")


@dataclass(frozen=True)
class Comparison:
    """What was compared, and how it came out."""

    runs: Sequence[Found]
    groups: Sequence[Group]
    metric: str
    keys: Sequence[str]  # that differ between the runs


def compare(request: Request, paths: Sequence[str]) -> Comparison:
    """The runs in folders, as asked for. Raises `Mistake`."""
    runs = selected(find(paths), request.where)
    complete = [run for run in runs if run.state == COMPLETE]
    if not complete:
        states = Counter(run.state for run in runs)
        counted = ", ".join(f"{count} {state}" for state, count in states.items())
        trouble = next((f"; {run.path}: {run.trouble}" for run in runs if run.trouble), "")
        raise Mistake(f"no run here is complete ({counted}{trouble}). Type the folder of one that is")
    metric = request.metric or objective(complete)
    check_metric(metric, complete)
    by = None if request.by is None else [key.strip() for key in request.by.split(",")]
    groups = grouped(runs, metric, by, request.base)
    return Comparison(runs, groups, metric, list(dict.fromkeys([*(by or ()), *varied(complete)])))


def sorted_out(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """(KEY=VALUE, conditions, paths) of a command line. Raises `Mistake`."""
    options, conditions, paths = [], [], []
    for argument in arguments:
        if argument.startswith("-"):
            instead = flag_meant(argument, ["--help"], [*Request.__dataclass_fields__])
            instead = instead or "for example html=compare.html"
            raise Mistake(f"{argument}: there are no options but KEY=VALUE. Type {instead}")
        if argument.startswith("where="):
            conditions.append(argument.removeprefix("where="))
        elif re.match(r"[A-Za-z_]\w*=", argument) and not Path(argument).is_dir():
            options.append(argument)
        else:
            paths.append(argument)
    return options, conditions, paths


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        print(__doc__)
        return
    with reported(given):
        options, conditions, paths = sorted_out(given)
        request = requested(Request, options)
        request.where = conditions
        if not paths:
            raise Mistake("no folder is named. Type python -m swinexp.compare outputs/sweeps/NAME, or outputs/runs/*")
        found = compare(request, paths)
        from swinexp.compare.terminal import show

        show(found, request.top)
        if request.csv is not None:
            from swinexp.compare.table import as_csv

            with _written("csv", request.csv):
                every = varied([run for run in found.runs if run.config])  # those that are not complete too
                keys = list(dict.fromkeys([*found.keys, *every]))
                write_text(Path(request.csv), as_csv(found.runs, found.metric, keys))
            print(f"{request.csv}: {len(found.runs)} runs")
        if request.html is not None:
            from swinexp.compare.page import write_page

            with _written("html", request.html):
                write_page(found, Path(request.html))
            print(f"{request.html}: tables and pictures")


@contextmanager
def _written(key: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Mistake(f"{key}={path}: cannot be written ({error.strerror}). Type {key}=ANOTHER_FILE") from error


if __name__ == "__main__":
    main()
