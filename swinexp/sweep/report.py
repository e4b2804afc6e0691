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
import statistics
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from swinexp import CONF
from swinexp.folder import remove_unfinished, write_atomically, write_text
from swinexp.mistake import first_line
from swinexp.page import page, table
from swinexp.sweep.board import shown_params, shown_tally, shown_time, state
from swinexp.sweep.ranking import Leader, leaders, number, on_seeds
from swinexp.sweep.space import text
from swinexp.sweep.study import Study
from swinexp.sweep.trials import ERROR, FORBIDDEN, FROM, WHEN, by_key, epochs, error, keys_of
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
    spread = _spread(trials, objectives, best)
    _write_csv(study, trials, objectives, spread)
    if best and _write_best(study, best[0]):
        files.append("best.yaml")
    if any(trial.state == TrialState.COMPLETE for trial in trials):
        from optuna import visualization

        plots = _plots(study, objectives)
        _write_html(study, trials, objectives, best, spread, plots, _drawn(visualization, plots))
        files.append("report.html")
        if _write_pngs(study, plots, objectives):
            files.append("plots/*.png")
    return files


def _spread(trials: Sequence[FrozenTrial], objectives: Sequence[str], best: Sequence[Leader]) -> Spread:
    """How many seeds, then the mean and standard deviation of each objective; no columns where all have one seed."""
    complete = (trial for trial in trials if trial.state == TrialState.COMPLETE)
    known = {trial.number: Leader(trial, on_seeds(trial)) for trial in complete}
    known |= {leader.trial.number: leader for leader in best}  # with the further seeds
    several = {trial: leader for trial, leader in known.items() if len(leader.figures) > 1}
    if not several:
        return [], {}
    heads = ["seeds", *(f"{name} {what}" for name in objectives for what in ("mean", "std"))]
    figures = {}
    for trial, leader in several.items():
        pairs = zip(leader.means, map(statistics.stdev, zip(*leader.figures, strict=True)), strict=True)
        figures[trial] = [len(leader.figures), *(figure for pair in pairs for figure in pair)]
    return heads, figures


def _write_csv(study: Study, trials: Sequence[FrozenTrial], objectives: Sequence[str], spread: Spread) -> None:
    keys = keys_of(trials)
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    more, figures = spread
    writer.writerow(["trial", "state", *objectives, *keys, "epochs", "seconds", "folder", "wandb", "error", *more])
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
                *figures.get(trial.number, [""] * len(more)),
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
    """The complete trials of a study as those of one objective; Optuna's importances take others to be minimized.

    The others are there as failed ones, which are not drawn, for numbers are given in turn.
    """
    one = optuna.create_study(direction=study.directions[index])
    for trial in study.get_trials(deepcopy=False):
        own = optuna.trial.create_trial(state=TrialState.FAIL)
        if trial.state == TrialState.COMPLETE:
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
    spread: Spread,
    plots: Mapping[str, tuple[str, optuna.Study, Any]],
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
        _mend_html(figure, title, plots[title][1], objectives)
        sections.append(f"<h2>{say(title)}</h2>" + figure.to_html(full_html=False, include_plotlyjs=False))
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


def _mend_html(figure: Any, title: str, study: optuna.Study, objectives: Sequence[str]) -> None:
    """Whole numbers for trials and epochs, choices as they are typed, and names in full, which Optuna does not have."""

    def whole(numbers: Sequence[int]) -> int | None:
        return 1 if max(numbers) - min(numbers) <= 10 else None  # of more, plotly names no halves

    trials = study.get_trials(deepcopy=False)
    if title == "Curves":
        epochs = [epoch for trial in trials for epoch in trial.intermediate_values]
        figure.update_layout(showlegend=False, yaxis_title=objectives[0], xaxis_title="epoch")
        figure.update_xaxes(dtick=whole(epochs))
    elif title == "History":
        figure.update_xaxes(dtick=whole([trial.number for trial in trials]))
    elif title == "Slices":
        numbers = _numbers(study)
        scale = {"cmin": min(numbers), "cmax": max(numbers), "colorbar": {"dtick": whole(numbers)}}
        figure.update_traces(marker=scale)  # one for all
        known = _choices(study)
        for axis in figure.select_xaxes():
            if choices := known.get(axis.title.text):
                axis.update(tickvals=[*choices], ticktext=[*choices.values()])
    elif title.startswith("Parallel"):
        names = [name.replace(WHEN, f"<br>{WHEN.lstrip()}") for name in _names(study)]
        figure.update_xaxes(ticktext=[figure.layout.xaxis.ticktext[0], *names], automargin=True)
        figure.update_annotations(bgcolor="rgba(255,255,255,0.8)")


def _mend_png(figure: Any, title: str, study: optuna.Study, objectives: Sequence[str]) -> None:
    """The same for one of matplotlib's."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    first, last = figure.axes[0], figure.axes[-1]
    if title == "Curves":
        first.set(ylabel=objectives[0], xlabel="epoch", title="")
        if (legend := first.get_legend()) is not None:
            legend.remove()
    if title in ("Curves", "History"):
        first.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif title == "Slices":
        numbers, known = _numbers(study), _choices(study)
        for part in figure.axes:
            for dots in part.collections:
                dots.set_clim(min(numbers), max(numbers))  # one scale for all
            if choices := known.get(part.get_xlabel()):
                shown = [choices[label.get_text()] for label in part.get_xticklabels()]
                part.set_xticks(part.get_xticks(), shown, rotation=90 if sum(map(len, shown)) > 12 else 0)
        last.yaxis.set_major_locator(MaxNLocator(integer=True))  # the colour bar's
    elif title.startswith("Parallel"):
        names = [first.get_xticklabels()[0].get_text(), *_names(study)]
        figure.set_size_inches(1.5 * len(names) + 2, 4.8)
        first.set_xticks(first.get_xticks(), names, rotation=330, ha="left", rotation_mode="anchor")
        for part in figure.axes:
            part.grid(False)
        for part in figure.axes[1:]:
            for label in part.get_yticklabels(which="both") if part is not last else []:
                label.set_bbox({"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1})
    for part in figure.axes:
        part.xaxis.set_minor_formatter(NullFormatter())  # of a logarithm, which would overlap
        part.set_xlabel(part.get_xlabel().replace(WHEN, f"\n{WHEN.lstrip()}"))


def _numbers(study: optuna.Study) -> list[int]:
    return [trial.number for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])]


def _names(study: optuna.Study) -> list[str]:
    """A study's parameters in the order of Optuna's pictures."""
    return sorted({name for trial in study.get_trials(deepcopy=False) for name in trial.params})


def _choices(study: optuna.Study) -> dict[str, dict[str, str]]:
    """{parameter: {a choice as Optuna shows it: as one types it}}."""
    return {
        name: {repr(choice): text(choice) for choice in distribution.choices}
        for trial in study.get_trials(deepcopy=False)
        for name, distribution in trial.distributions.items()
        if isinstance(distribution, CategoricalDistribution)
    }


def _table(
    study: Study, trials: Sequence[FrozenTrial], objectives: Sequence[str], spread: Spread, leaders: set[int]
) -> str:
    keys = keys_of(trials)
    say = html.escape
    more, figures = spread
    heads = ["trial", "state", *objectives, *more, *keys, "epochs", "seconds", "run"]
    rows: list[tuple[str, list[str]]] = []
    for trial in trials:
        folder = trial_folder(study.folder, trial.number, study.options.seeds)
        link = os.path.relpath(folder, study.folder)
        values = [f"{value:.6g}" for value in trial.values or [None] * 0] or [""] * len(objectives)
        seeds = [f"{figure:.4g}" for figure in figures.get(trial.number, [])] or [""] * len(more)
        point = by_key(trial.params)
        params = [_number(point[key]) if key in point else "" for key in keys]
        seconds = "" if trial.duration is None else f"{trial.duration.total_seconds():.1f}"
        cells = [str(trial.number), state(trial), *values, *seeds, *params, str(epochs([trial])), seconds]
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
    from optuna.visualization import matplotlib as library

    written = []
    for title, axes in _drawn(library, plots).items():
        figure = (axes if hasattr(axes, "figure") else axes.flat[0]).figure
        _mend_png(figure, title, plots[title][1], objectives)
        name = "_".join(re.findall(r"[a-z]+", title.partition(" (")[0].lower()))
        path = study.folder / "plots" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, partial(figure.savefig, format="png", dpi=120, bbox_inches="tight"))
        written.append(path)
        pyplot.close(figure)
    return written
