"""What a sweep leaves behind: results.csv, best.yaml, report.html and its pictures."""

from __future__ import annotations

import csv
import html
import io
import json
import logging
import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

from swinexp import CONF
from swinexp.folder import remove_unfinished, write_text
from swinexp.page import page, table
from swinexp.sweep.board import shown_params, shown_tally, shown_time, state
from swinexp.sweep.plots import Plot, drawn, mend_html, plots_of, write_pngs
from swinexp.sweep.ranking import Leader, leaders, number, on_all_seeds
from swinexp.sweep.space import text
from swinexp.sweep.study import Study
from swinexp.sweep.trials import ERROR, FROM, by_key, epochs, error, keys_of, left_out, took
from swinexp.sweep.worker import trial_folder

log = logging.getLogger(__name__)

Spread = tuple[list[str], dict[int, list[float]]]  # columns, and for each trial of several seeds its figures in them


def write_report(study: Study, top: Study | None, objectives: Sequence[str]) -> list[str]:
    """Write what there is to say of a study, and of its best points' further seeds, into its folder.

    Returns the names of the files.
    """
    trials = [trial for trial in study.trials if FROM not in trial.user_attrs]
    for place in (study.folder, study.folder / "plots"):
        remove_unfinished(place, seconds=600)  # other commands may be writing theirs
    files = ["results.csv"]
    best = leaders(study, top)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    spread = _spread(on_all_seeds(study, top, complete), objectives)
    _write_csv(study, trials, objectives, spread)
    if best and _write_best(study, best[0]):
        files.append("best.yaml")
    if complete:
        from optuna import visualization

        plots = plots_of(study, objectives)
        _write_html(study, trials, objectives, best, spread, plots, drawn(visualization, plots))
        files.append("report.html")
        if write_pngs(study, plots, objectives):
            files.append("plots/*.png")
    return files


def _spread(complete: Sequence[Leader], objectives: Sequence[str]) -> Spread:
    """How many seeds, then the mean and standard deviation of each objective; no columns where all have one seed."""
    several = [leader for leader in complete if len(leader.figures) > 1]
    if not several:
        return [], {}
    heads = ["seeds", *(f"{name} {what}" for name in objectives for what in ("mean", "std"))]
    figures = {}
    for leader in several:
        pairs = zip(leader.means, map(statistics.stdev, zip(*leader.figures, strict=True)), strict=True)
        figures[leader.trial.number] = [len(leader.figures), *(figure for pair in pairs for figure in pair)]
    return heads, figures


def _write_csv(study: Study, trials: Sequence[FrozenTrial], objectives: Sequence[str], spread: Spread) -> None:
    keys = keys_of(trials)
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    more, figures = spread
    writer.writerow(["trial", "state", *objectives, *keys, "epochs", "seconds", "folder", "wandb", "error", *more])
    for trial in trials:
        values = trial.values or [""] * len(objectives)
        seconds = "" if (own := took(trial)) is None else f"{own:.1f}"
        point = by_key(trial.params)
        params = [text(point[key]) if key in point else "" for key in keys]
        folder = trial_folder(study.folder, trial.number)
        writer.writerow(
            [
                trial.number,
                state(trial),
                *values,
                *params,
                epochs([trial]),
                seconds,
                folder if folder.is_dir() else "",
                trial.user_attrs.get("wandb", ""),
                error(trial)["line"] if ERROR in trial.user_attrs else left_out(trial) or "",
                *figures.get(trial.number, [""] * len(more)),
            ]
        )
    write_text(study.folder / "results.csv", rows.getvalue())


def _write_best(study: Study, leader: Leader) -> bool:
    """The best trial's whole config, as one that Hydra composes a run from."""
    kept = trial_folder(study.folder, leader.trial.number) / "config.yaml"
    if not kept.exists():  # another application's, or another machine's
        (study.folder / "best.yaml").unlink(missing_ok=True)  # of another trial, then
        return False
    config = yaml.safe_load(kept.read_text())
    config["name"] = f"best-of-{study.name}"[:120]
    ours = yaml.safe_load((CONF / "config.yaml").read_text())
    overrides = [each for each in ours["defaults"] if isinstance(each, dict) and "override" in next(iter(each))]
    config["wandb"].pop("mode")  # so that wandb=disabled may be typed beside it
    whole = {"defaults": [{"wandb": "auto"}, "_self_", *overrides], **config, "hydra": ours["hydra"]}
    alone = ""
    if len(leader.figures) > 1:
        alone = f", with seed {config['seed']} alone ({', '.join(map(number, leader.figures[0]))})"
    head = [
        f"# The best trial of study {study.name}: trial {leader.trial.number}, {leader}. To run it again{alone}:",
        f"#   {again(study.folder, kept.parent)}",
    ]
    write_text(
        study.folder / "best.yaml", "\n".join([*head, yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)])
    )
    return True


def again(folder: Path, best: Path) -> str:
    """The command that trains what best.yaml in a sweep's folder has, as the run in the folder `best` was."""
    place = os.path.relpath(folder)
    return with_threads(best) + shlex.join(
        ["python", "-m", "swinexp.run", "--config-dir", place, "--config-name", "best"]
    )


def with_threads(run: Path) -> str:
    """What to type before a command that is to give the figure of a run in a folder: its number of threads of a CPU,
    since another one gives other last bits, and after some epochs another figure."""
    summary = run / "summary.json"
    threads = json.loads(summary.read_text()).get("threads") if summary.exists() else None
    return f"OMP_NUM_THREADS={threads} " if threads else ""


def _write_html(
    study: Study,
    trials: Sequence[FrozenTrial],
    objectives: Sequence[str],
    best: Sequence[Leader],
    spread: Spread,
    plots: Mapping[str, Plot],
    pictures: dict[str, Any],
) -> None:
    from plotly.offline import get_plotlyjs

    say = html.escape
    spent = sum(took(trial) or 0 for trial in trials)
    sections = []
    if best:
        sections.append(f"<h2>{'Best' if len(objectives) == 1 else 'On the front'}</h2>")
        sections += [
            f"<p>Trial {leader.trial.number}: {say(', '.join(objectives))} {say(str(leader))} with "
            f"{say(shown_params(leader.trial.params))}</p>"
            for leader in best[:10]
        ]
        own = trial_folder(study.folder, best[0].trial.number)
        sections.append(f"<pre>{say(again(study.folder, own))}</pre>")
    for title, figure in pictures.items():
        figure.update_layout(title=None, margin={"t": 30, "r": 20}, template="plotly_white")
        mend_html(figure, title, plots[title][1], objectives)
        drawing = figure.to_html(full_html=False, include_plotlyjs=False)
        sections.append(f'<h2>{say(title)}</h2><div class="plot">{drawing}</div>')
    ways = ", ".join(
        f"{way.name.lower()} {name}" for name, way in zip(objectives, study.optuna.directions, strict=True)
    )
    spent_on = f"{epochs(trials)} epochs, {shown_time(spent)} of training in all"
    varied = "\n".join(f"{key}: {value}" for key, value in study.space.described().items())
    note = f"{ways} · {shown_tally(trials)} · {spent_on}"
    sections += [
        "<h2>Trials</h2>" + _table(study, trials, objectives, spread, {each.trial.number for each in best}),
        f"<h2>What was varied</h2><pre>{say(varied)}</pre>",
    ]
    whole = page(study.name, note, sections, f"<script>{get_plotlyjs()}</script>")
    write_text(study.folder / "report.html", whole)


def _table(
    study: Study, trials: Sequence[FrozenTrial], objectives: Sequence[str], spread: Spread, leaders: set[int]
) -> str:
    keys = keys_of(trials)
    say = html.escape
    more, figures = spread
    heads = ["trial", "state", *objectives, *more, *keys, "epochs", "seconds", "run"]
    rows: list[tuple[str, list[str]]] = []
    for trial in trials:
        folder = trial_folder(study.folder, trial.number)
        link = os.path.relpath(folder, study.folder)
        values = [f"{value:.6g}" for value in trial.values or [None] * 0] or [""] * len(objectives)
        seeds = [f"{figure:.4g}" for figure in figures.get(trial.number, [])] or [""] * len(more)
        point = by_key(trial.params)
        params = [_number(point[key]) if key in point else "" for key in keys]
        seconds = "" if (own := took(trial)) is None else f"{own:.1f}"
        cells = [str(trial.number), state(trial), *values, *seeds, *params, str(epochs([trial])), seconds]
        run = f'<a href="{say(link)}/">{say(link)}</a>' if folder.is_dir() else ""
        if ERROR in trial.user_attrs:
            run += f" {say(error(trial)['kind'])}: {say(error(trial)['line'])}"
        kind = "best" if trial.number in leaders else state(trial)
        rows.append((kind, [*map(say, cells), run]))
    return table(heads, rows, left=["run"])


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else text(value)
