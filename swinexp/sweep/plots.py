"""The pictures of a study: Optuna's own, with plotly for a page and with matplotlib as files, and what they lack."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from swinexp.folder import write_atomically
from swinexp.mistake import first_line
from swinexp.sweep.importance import Forest, out_of
from swinexp.sweep.space import text
from swinexp.sweep.study import Study
from swinexp.sweep.trials import WHEN

log = logging.getLogger(__name__)

SEEN = [0.45 + 0.55 * step / 8 for step in range(9)]  # of a scale of colours that begins with white

Plot = tuple[str, optuna.Study, Any]  # the name of Optuna's function, a study, further arguments


def plots_of(study: Study, objectives: Sequence[str]) -> dict[str, Plot]:
    """{title: what is to be drawn}, as far as there are enough trials."""
    whole = study.optuna
    complete = whole.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    wanted: dict[str, Plot] = {}
    if len(objectives) in (2, 3):
        wanted["Pareto front"] = ("plot_pareto_front", whole, {"target_names": list(objectives)})
    elif len(objectives) == 1:
        wanted["History"] = ("plot_optimization_history", whole, {"target_name": objectives[0]})
        if any(trial.intermediate_values for trial in whole.get_trials(deepcopy=False)):
            wanted["Curves"] = ("plot_intermediate_values", whole, {})
    for index, objective in enumerate(objectives if len(complete) > 1 else []):
        of = f" for {objective}" if len(objectives) > 1 else ""
        one, name = of_one(whole, index), {"target_name": objective}
        if len({trial.values[index] for trial in complete}) > 1:
            title = f"Importance{of} ({out_of(len(complete))})"
            wanted[title] = ("plot_param_importances", one, name | {"evaluator": Forest()})
        if not of:
            wanted["Slices"] = ("plot_slice", one, name)
        wanted[f"Parallel coordinates{of}"] = ("plot_parallel_coordinate", one, name)
    return wanted


def of_one(study: optuna.Study, index: int) -> optuna.Study:
    """The complete trials of a study as those of one objective, which Optuna's pictures of one want.

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


def drawn(library: Any, plots: Mapping[str, Plot]) -> dict[str, Any]:
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


def mend_html(figure: Any, title: str, study: optuna.Study, objectives: Sequence[str]) -> None:
    """Whole numbers for trials and epochs, choices as they are typed, names in full, and no white on white.

    Optuna has none of these.
    """
    from plotly.colors import sample_colorscale

    def whole(numbers: Sequence[int]) -> int | None:
        return 1 if max(numbers) - min(numbers) <= 10 else None  # of more, plotly names no halves

    scaled = [trace.marker for trace in figure.data if trace.marker.colorscale is not None]
    for marker in scaled:
        marker.colorscale = sample_colorscale([colour for _, colour in marker.colorscale], SEEN)
    trials = study.get_trials(deepcopy=False)
    if title == "Curves":
        epochs = [epoch for trial in trials for epoch in trial.intermediate_values]
        figure.update_layout(showlegend=False, yaxis_title=objectives[0], xaxis_title="epoch")
        figure.update_xaxes(dtick=whole(epochs))
    elif title == "History":
        figure.update_xaxes(dtick=whole([trial.number for trial in trials]))
        figure.update_traces(line_shape="hv", selector={"mode": "lines"})  # the best stays so until a better one
    elif title == "Slices":
        numbers = _numbers(study)
        scale = {"cmin": min(numbers), "cmax": max(numbers), "colorbar": {"dtick": whole(numbers)}}
        figure.update_traces(marker=scale)  # one for all
        known = _choices(study)
        for axis in figure.select_xaxes():
            if choices := known.get(axis.title.text):
                axis.update(tickvals=[*choices], ticktext=[*choices.values()])
            axis.title.text = _in_two_lines(axis.title.text)
    elif title.startswith("Parallel"):
        names = [_in_two_lines(name) for name in _names(study)]
        figure.update_xaxes(ticktext=[figure.layout.xaxis.ticktext[0], *names], automargin=True)
        figure.update_annotations(bgcolor="rgba(255,255,255,0.8)")
        colours = [colour for _, colour in scaled[0].colorscale]
        best = 1 if study.direction == StudyDirection.MAXIMIZE else 0
        for line in figure.select_traces(lambda trace: trace.line.color is not None):  # one for each trial
            share = 1 - abs(best - line.y[0])  # of the way to the best; the objective is the first, from 0 to 1
            line.update(line_color=sample_colorscale(colours, [share])[0], opacity=0.8)


def _mend_png(figure: Any, title: str, study: optuna.Study, objectives: Sequence[str]) -> None:
    """The same for one of matplotlib's."""
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator, NullFormatter

    first, last = figure.axes[0], figure.axes[-1]
    for coloured in (each for part in figure.axes for each in part.collections):
        if coloured.get_array() is None or isinstance(coloured, QuadMesh):  # a colour bar, which follows what it tells
            continue
        scale = coloured.get_cmap()
        seen = [1 - share for share in reversed(SEEN)] if scale.name.endswith("_r") else SEEN
        coloured.set_cmap(LinearSegmentedColormap.from_list(scale.name, scale(seen)))
    if title == "Curves":
        first.set(ylabel=objectives[0], xlabel="epoch", title="")
        if (legend := first.get_legend()) is not None:
            legend.remove()
    if title in ("Curves", "History"):
        first.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if title == "History":
        for line in first.lines:  # the best, which stays so until a better one
            line.set_drawstyle("steps-post")
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


def _in_two_lines(name: str) -> str:
    """A parameter's name, its condition below, as plotly wants it."""
    return name.replace(WHEN, f"<br>{WHEN.lstrip()}")


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


def write_pngs(study: Study, plots: Mapping[str, Plot], objectives: Sequence[str]) -> list[Path]:
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
    for title, axes in drawn(library, plots).items():
        figure = (axes if hasattr(axes, "figure") else axes.flat[0]).figure
        _mend_png(figure, title, plots[title][1], objectives)
        name = "_".join(re.findall(r"[a-z]+", title.partition(" (")[0].lower()))
        path = study.folder / "plots" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, partial(figure.savefig, format="png", dpi=120, bbox_inches="tight"))
        written.append(path)
        pyplot.close(figure)
    return written
