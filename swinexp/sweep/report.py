"""What a sweep leaves behind: results.csv, best.yaml, report.html and its pictures."""

from __future__ import annotations

import csv
import html
import io
import json
import logging
import os
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from swinexp import CONF
from swinexp.folder import remove_unfinished, write_atomically, write_text
from swinexp.mistake import first_line
from swinexp.page import page, table
from swinexp.sweep.board import shown_params, shown_tally, shown_time, state
from swinexp.sweep.ranking import Leader, leaders, number
from swinexp.sweep.space import text
from swinexp.sweep.study import Study
from swinexp.sweep.trials import ERROR, FORBIDDEN, FROM, WHEN, by_key, epochs, error, keys_of
from swinexp.sweep.worker import trial_folder

log = logging.getLogger(__name__)


def write_report(study: Study, top: Study | None, objectives: Sequence[str]) -> list[str]:
    """Write what there is to say of a study, and of its best points' further seeds, into its folder.

    Returns the names of the files.
    """
    trials = [trial for trial in study.trials if FROM not in trial.user_attrs]
    for place in (study.folder, study.folder / "plots"):
        remove_unfinished(place, seconds=600)  # other commands may be writing theirs
    files = ["results.csv"]
    _write_csv(study, trials, objectives)
    best = leaders(study, top)
    if best and _write_best(study, best[0]):
        files.append("best.yaml")
    if any(trial.state == TrialState.COMPLETE for trial in trials):
        from optuna import visualization

        plots = _plots(study, objectives)
        _write_html(study, trials, objectives, best, _drawn(visualization, plots))
        files.append("report.html")
        if _write_pngs(study, plots, objectives):
            files.append("plots/*.png")
    return files


def _write_csv(study: Study, trials: Sequence[FrozenTrial], objectives: Sequence[str]) -> None:
    keys = keys_of(trials)
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["trial", "state", *objectives, *keys, "epochs", "seconds", "folder", "wandb", "error"])
    for trial in trials:
        values = trial.values or [""] * len(objectives)
        seconds = "" if trial.duration is None else f"{trial.duration.total_seconds():.1f}"
        point = by_key(trial.params)
        params = [text(point[key]) if key in point else "" for key in keys]
        folder = trial_folder(study.folder, trial.number, study.options.seeds)
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
                error(trial)["line"] if ERROR in trial.user_attrs else trial.user_attrs.get(FORBIDDEN, ""),
            ]
        )
    write_text(study.folder / "results.csv", rows.getvalue())


def _write_best(study: Study, leader: Leader) -> bool:
    """The best trial's whole config, as one that Hydra composes a run from."""
    kept = trial_folder(study.folder, leader.trial.number, study.options.seeds) / "config.yaml"
    if not kept.exists():  # another application's
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
    """The command that trains what best.yaml in a sweep's folder has; with as many threads of a CPU as the run in the
    folder `best` had, since others give other last bits, and after some epochs another figure."""
    summary = best / "summary.json"
    threads = json.loads(summary.read_text()).get("threads") if summary.exists() else None
    place = os.path.relpath(folder)
    command = shlex.join(["python", "-m", "swinexp.run", "--config-dir", place, "--config-name", "best"])
    return f"OMP_NUM_THREADS={threads} {command}" if threads else command


def _plots(study: Study, objectives: Sequence[str]) -> dict[str, tuple[str, optuna.Study, Any]]:
    """{title: (the name of Optuna's function, a study, further arguments)}, as far as there are enough trials."""
    whole = study.optuna
    complete = whole.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    wanted: dict[str, tuple[str, optuna.Study, Any]] = {}
    if len(objectives) in (2, 3):
        wanted["Pareto front"] = ("plot_pareto_front", whole, {"target_names": list(objectives)})
    elif len(objectives) == 1:
        wanted["History"] = ("plot_optimization_history", whole, {"target_name": objectives[0]})
        if any(trial.intermediate_values for trial in whole.get_trials(deepcopy=False)):
            wanted["Curves"] = ("plot_intermediate_values", whole, {})
    for index, objective in enumerate(objectives if len(complete) > 1 else []):
        of = f" for {objective}" if len(objectives) > 1 else ""
        one, name = of_one(whole, index), {"target_name": objective}
        wanted[f"Importance{of} ({len(complete)} complete trials)"] = ("plot_param_importances", one, name)
        if not of:
            wanted["Slices"] = ("plot_slice", one, name)
        wanted[f"Parallel coordinates{of}"] = ("plot_parallel_coordinate", one, name)
    return wanted


def of_one(study: optuna.Study, index: int) -> optuna.Study:
    """The complete trials of a study as those of one objective; Optuna's importances take others to be minimized."""
    one = optuna.create_study(direction=study.directions[index])
    for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        own = optuna.trial.create_trial(
            params=trial.params, distributions=trial.distributions, value=trial.values[index], state=trial.state
        )
        one.add_trial(own)
    return one


def _drawn(library: Any, plots: Mapping[str, tuple[str, optuna.Study, Any]]) -> dict[str, Any]:
    """{title: what one of Optuna's two libraries of plots draws}."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for title, (function, study, arguments) in plots.items():
            try:
                found[title] = getattr(library, function)(study, **arguments)
            except Exception as problem:  # too few trials, or all the same
                log.info("no picture '%s': %s", title, first_line(problem))
    return found


def _write_html(
    study: Study,
    trials: Sequence[FrozenTrial],
    objectives: Sequence[str],
    best: Sequence[Leader],
    pictures: dict[str, Any],
) -> None:
    from plotly.offline import get_plotlyjs

    say = html.escape
    spent = sum(trial.duration.total_seconds() for trial in trials if trial.duration is not None)
    sections = []
    if best:
        sections.append(f"<h2>{'Best' if len(objectives) == 1 else 'On the front'}</h2>")
        sections += [
            f"<p>Trial {leader.trial.number}: {say(', '.join(objectives))} {say(str(leader))} with "
            f"{say(shown_params(leader.trial.params))}</p>"
            for leader in best[:10]
        ]
        own = trial_folder(study.folder, best[0].trial.number, study.options.seeds)
        sections.append(f"<pre>{say(again(study.folder, own))}</pre>")
    for title, figure in pictures.items():
        figure.update_layout(title=None, margin={"t": 30, "r": 20}, template="plotly_white")
        if title == "Curves":
            figure.update_layout(showlegend=False, yaxis_title=objectives[0], xaxis_title="epoch")
        sections.append(f"<h2>{say(title)}</h2>" + figure.to_html(full_html=False, include_plotlyjs=False))
    ways = ", ".join(
        f"{way.name.lower()} {name}" for name, way in zip(objectives, study.optuna.directions, strict=True)
    )
    spent_on = f"{epochs(trials)} epochs, {shown_time(spent)} of training in all"
    varied = "\n".join(f"{key}: {value}" for key, value in study.space.described().items())
    note = f"{ways} · {shown_tally(trials)} · {spent_on}"
    sections += [
        "<h2>Trials</h2>" + _table(study, trials, objectives, {each.trial.number for each in best}),
        f"<h2>What was varied</h2><pre>{say(varied)}</pre>",
    ]
    whole = page(study.name, note, sections, f"<script>{get_plotlyjs()}</script>")
    write_text(study.folder / "report.html", whole)


def _table(study: Study, trials: Sequence[FrozenTrial], objectives: Sequence[str], leaders: set[int]) -> str:
    keys = keys_of(trials)
    say = html.escape
    heads = ["trial", "state", *objectives, *keys, "epochs", "seconds", "run"]
    rows: list[tuple[str, list[str]]] = []
    for trial in trials:
        folder = trial_folder(study.folder, trial.number, study.options.seeds)
        link = os.path.relpath(folder, study.folder)
        values = [f"{value:.6g}" for value in trial.values or [None] * 0] or [""] * len(objectives)
        point = by_key(trial.params)
        params = [_number(point[key]) if key in point else "" for key in keys]
        seconds = "" if trial.duration is None else f"{trial.duration.total_seconds():.1f}"
        cells = [str(trial.number), state(trial), *values, *params, str(epochs([trial])), seconds]
        run = f'<a href="{say(link)}/">{say(link)}</a>' if folder.is_dir() else ""
        if ERROR in trial.user_attrs:
            run += f" {say(error(trial)['kind'])}: {say(error(trial)['line'])}"
        kind = "best" if trial.number in leaders else state(trial)
        rows.append((kind, [*map(say, cells), run]))
    return table(heads, rows, left=["run"])


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else text(value)


def _write_pngs(
    study: Study, plots: Mapping[str, tuple[str, optuna.Study, Any]], objectives: Sequence[str]
) -> list[Path]:
    """The same pictures for slides and papers; matplotlib is an extra, and without it there are none."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    logging.getLogger("matplotlib.category").setLevel(logging.WARNING)  # it wonders about choices that are numbers
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter
    from optuna.visualization import matplotlib as library

    written = []
    for title, axes in _drawn(library, plots).items():
        figure = (axes if hasattr(axes, "figure") else axes.flat[0]).figure
        if title == "Curves":
            figure.axes[0].set(ylabel=objectives[0], xlabel="epoch", title="")
            if (legend := figure.axes[0].get_legend()) is not None:
                legend.remove()
        for part in figure.axes:
            part.xaxis.set_minor_formatter(NullFormatter())  # of a logarithm, which would overlap
            part.set_xlabel(part.get_xlabel().replace(WHEN, f"\n{WHEN.lstrip()}"))
        name = "_".join(re.findall(r"[a-z]+", title.partition(" (")[0].lower()))
        path = study.folder / "plots" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, partial(figure.savefig, format="png", dpi=120, bbox_inches="tight"))
        written.append(path)
        pyplot.close(figure)
    return written
