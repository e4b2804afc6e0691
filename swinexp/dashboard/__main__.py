"""W&B's pages for a sweep or a project, made or brought up to date.

    python -m swinexp.dashboard study=lr_wd
    python -m swinexp.dashboard project=swinexp
    python -m swinexp.dashboard study=lr_wd --offline
    python -m swinexp.dashboard export=wandb_sweep sweep=lr_wd data=cifar100 > lr_wd.yaml

study      a sweep by its name or its folder: a workspace of its runs, and a report of what came of it; without it, a
           workspace of all runs of the project
project    without it, that of the sweep's runs, or WANDB_PROJECT, or swinexp
entity     whose project that is; without it, that of the sweep's runs, or whoever the API key belongs to
--offline  (or offline=true) write the pages into dashboard/ in the sweep's folder, or into outputs/dashboard/, with no
           server and no key: workspace.json and report.json, as W&B would get them, and report.md
export     wandb_sweep: the sweep that the overrides beside it describe, as `wandb sweep FILE` takes it
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swinexp.archive import requested
from swinexp.folder import write_text
from swinexp.mistake import Mistake, flag_meant, one_of
from swinexp.run import reported
from swinexp.track.options import check_place

if TYPE_CHECKING:
    from swinexp.dashboard.subject import Subject

EXPORTS = ("wandb_sweep",)
EXPORT = "export="
FLAGS = ("--offline", "--help")
MULTIRUN = ("-m", "--multirun")  # which a sweep's command may have


@dataclass
class Request:
    """What the command asks for."""

    study: str | None = None
    project: str | None = None
    entity: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        check_place("", self.project, self.entity)


def keep(subject: Subject) -> None:
    """Write the pages into files, and say where. Raises `Mistake`."""
    from swinexp.dashboard.report import markdown, report
    from swinexp.dashboard.workspace import workspace

    files = {"workspace.json": _spec(workspace(subject))}
    if subject.sweep is not None:
        files |= {"report.json": _spec(report(subject)), "report.md": markdown(subject)}
    subject.folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_text(subject.folder / name, content)
        print(subject.folder / name)


def _spec(page: Any) -> str:
    """As W&B gets it."""
    return str(page._to_model().spec.model_dump_json(by_alias=True, exclude_none=True, indent=2)) + "\n"


def send(subject: Subject) -> None:
    """Save the pages in W&B, and say where. Raises `Mistake`, `Ended`."""
    from swinexp.dashboard.report import report
    from swinexp.dashboard.server import entity_of, save_report, save_workspace
    from swinexp.dashboard.workspace import workspace

    entity = entity_of(subject.entity)
    print(f"workspace {subject.title}: {save_workspace(workspace(subject, entity), subject.title)}")
    if subject.sweep is not None:
        print(f"report {subject.title}: {save_report(report(subject, entity))}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        print(__doc__)
        return
    exports = [argument.removeprefix(EXPORT) for argument in given if argument.startswith(EXPORT)]
    options = ["offline=true" if argument == "--offline" else argument for argument in given]
    with reported(options):
        if exports:
            from swinexp.dashboard.wandb_sweep import converted

            one_of("export", exports[-1], EXPORTS)
            overrides = [each for each in given if not each.startswith(EXPORT) and each not in MULTIRUN]
            print(converted(overrides), end="")
            return
        for option in options:
            if option.startswith("-"):
                instead = flag_meant(option, FLAGS, [*Request.__dataclass_fields__]) or "--help"
                raise Mistake(f"{option}: there are no options but {' and '.join(FLAGS)}. Type {instead}")
        request = requested(Request, options)
        from swinexp.dashboard.panels import library
        from swinexp.dashboard.subject import subject

        library("workspaces")
        found = subject(request.study, request.project, request.entity)
        (keep if request.offline else send)(found)


if __name__ == "__main__":
    main()
