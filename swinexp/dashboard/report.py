"""A report: what came of a sweep, in words and tables, with the panels beside them."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import TrialState

from swinexp.dashboard.panels import curves, library, only_of, outcome
from swinexp.dashboard.subject import Subject, Sweep
from swinexp.mistake import first_line
from swinexp.sweep.board import failures, shown_params, shown_tally, shown_time
from swinexp.sweep.importance import Forest, out_of
from swinexp.sweep.plots import of_one
from swinexp.sweep.ranking import Leader, leaders, number, on_all_seeds, ranked
from swinexp.sweep.report import again, with_threads
from swinexp.sweep.space import text
from swinexp.sweep.trials import by_key, epochs, keys_of, took
from swinexp.sweep.worker import trial_folder

BEST_TRIALS = 10  # that the table shows


def written(sweep: Sweep) -> dict[str, str]:
    """{heading: Markdown} of what there is to say."""
    found = leaders(sweep, sweep.top)
    known = {leader.trial.number for leader in found}
    rest = (trial for trial in ranked(sweep, sweep.trials) if trial.number not in known)
    others = on_all_seeds(sweep, sweep.top, rest)
    space = [f"- `{key}`: {tried}" for key, tried in sweep.space.items()]
    parts = {
        "Summary": _summary(sweep),
        "Best" if len(sweep.objectives) == 1 else "On the front": _best(sweep, found),
        "The best trials": _table(sweep, [*found, *others][:BEST_TRIALS]),
        "What mattered": _importances(sweep),
        "What was varied": "\n".join(space),
        "What failed": "\n".join(f"- {line}" for line in failures(sweep.trials)),
    }
    return {heading: words for heading, words in parts.items() if words}


def markdown(subject: Subject) -> str:
    """The report as a file."""
    assert subject.sweep is not None
    parts = (f"## {heading}\n\n{words}\n" for heading, words in written(subject.sweep).items())
    return "\n".join([f"# {subject.title}\n", *parts])


def report(subject: Subject, entity: str = "") -> Any:
    """The report of a subject that is a sweep, for a project of `entity`. Raises `Mistake`."""
    wr = library("reports.v2")
    assert subject.sweep is not None
    runs = wr.Runset(name=subject.title)
    only_of(subject, runs)
    words = written(subject.sweep)
    blocks = [block for heading, told in words.items() for block in (wr.H2(heading), wr.MarkdownBlock(told))]
    for heading, panels in {"Outcome": outcome(subject), "Curves": curves(subject)}.items():
        for index, panel in enumerate(panels):  # two in a row; the page is 24 wide
            panel.layout = wr.Layout(x=index % 2 * 12, y=index // 2 * 8, w=12, h=8)
        blocks += [wr.H2(heading), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        project=subject.project,
        entity=entity,
        title=subject.title,
        description=next(iter(words.values())).partition("\n")[0],
        blocks=[wr.TableOfContents(), *blocks],
        width="fluid",
    )


def _summary(sweep: Sweep) -> str:
    ways = ", ".join(
        f"{way.name.lower()} {name}" for name, way in zip(sweep.objectives, sweep.optuna.directions, strict=True)
    )
    spent = sum(took(trial) or 0 for trial in sweep.trials)
    tally = shown_tally(sweep.trials) or "no trials"
    more = f"; {len(sweep.top.trials)} more of the best points, on further seeds" if sweep.top is not None else ""
    return f"{ways}: {tally}; {epochs(sweep.trials)} epochs, {shown_time(spent)} of training in all{more}."


def _best(sweep: Sweep, found: Sequence[Leader]) -> str:
    lines = [
        f"- Trial {leader.trial.number}: {', '.join(sweep.objectives)} {leader} with "
        f"`{shown_params(leader.trial.params)}`"
        for leader in found[:BEST_TRIALS]
    ]
    if not found:
        return "No trial is complete."
    own = trial_folder(sweep.folder, found[0].trial.number)
    if (sweep.folder / "best.yaml").exists():
        lines += ["", "The best one again:", "", f"```\n{again(sweep.folder, own)}\n```"]
    kept = own / "overrides.yaml"
    if kept.exists():
        lines += ["", "and from anywhere:", "", f"```\n{with_threads(own)}{_command(kept)}\n```"]
    return "\n".join(lines)


def _command(kept: Path) -> str:
    """The command that trains a trial as a run of its own."""
    overrides = [str(override) for override in yaml.safe_load(kept.read_text())]
    alone = ["hydra.mode=RUN"] if any(override.startswith("sweep=") for override in overrides) else []
    return shlex.join(["python", "-m", "swinexp.run", *overrides, *alone])


def _table(sweep: Sweep, shown: Sequence[Leader]) -> str:
    """Means with their standard deviations, on as many seeds as each was trained on."""
    keys = keys_of(leader.trial for leader in shown)
    rows = [["trial", *sweep.objectives, "seeds", *keys, "epochs"]]
    rows.append(["---:"] * len(rows[0]))
    for leader in shown:
        figures = []
        for values in zip(*leader.figures, strict=True):
            spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
            figures.append(f"{number(statistics.fmean(values))}{spread}")
        point = by_key(leader.trial.params)
        params = [_cell(point.get(key, "")) for key in keys]
        trained = str(epochs([leader.trial]))
        rows.append([str(leader.trial.number), *figures, str(len(leader.figures)), *params, trained])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) if shown else ""


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else text(value).replace("|", "\\|")


def _importances(sweep: Sweep) -> str:
    """The share of an objective's variance that each parameter explains."""
    complete = sum(trial.state == TrialState.COMPLETE for trial in sweep.trials)
    parts = []
    for index, objective in enumerate(sweep.objectives):
        try:
            shares = Forest().evaluate(of_one(sweep.optuna, index))
        except ValueError as problem:
            parts.append(f"{objective}: nothing can be said ({first_line(problem)}).")
            continue
        rows = [f"| {key} | {share:.0%} |" for key, share in shares.items()]
        head = [f"| {objective} | importance |", "|---|---:|"]
        parts.append("\n".join([*head, *rows, "", f"Of {out_of(complete)}; what was pruned does not count."]))
    return "\n\n".join(parts)
