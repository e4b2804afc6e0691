"""A comparison drawn: how the groups stand, their curves, what they cost, and how a figure follows each key."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swinexp.compare.differences import is_number, value
from swinexp.compare.groups import Group, front, goes_up
from swinexp.compare.runs import Found
from swinexp.compare.table import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STANDING = 25  # groups that are drawn one below the other
COLOURED = 8  # groups whose curves have colours and a name
KEYS = 6  # keys that a figure is drawn over
COSTS = {"flops": "FLOPs an image", "train/images_per_second": "training images/s"}
WIDE = 20  # between the least and the most of a key: more than that is drawn over its logarithm


def draw_standing(groups: Sequence[Group], metric: str) -> Figure:
    """A row for each group, the best first: every repetition as a point, the mean as a line."""
    shown = groups[:STANDING]
    figure = _figure(9, 0.9 + 0.3 * len(shown))
    axes = figure.subplots()
    for row, group in enumerate(shown):
        values = [*group.figures.values()]
        axes.plot(values, [row] * len(values), "o", color="C0", alpha=0.55, markersize=5, markeredgewidth=0)
        axes.plot([group.mean] * 2, [row - 0.32, row + 0.32], color="black", linewidth=1.6)
    axes.set_yticks(range(len(shown)), [_short(group.short, 60) for group in shown], fontsize=8, parse_math=False)
    axes.set(xlabel=metric, ylim=(len(shown) - 0.5, -0.5))
    axes.grid(alpha=0.3, axis="x")
    return figure


def draw_curves(groups: Sequence[Group], keys: Sequence[str]) -> Figure:
    """A key of the history over the epochs: the mean of each group, and a band of a standard deviation around it."""
    figure = _figure(5.2 * len(keys), 4.4)
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for rank, group in reversed([*enumerate(groups)]):  # the best on top
            epochs, means, spreads = _mean_curve(group, key)
            named = rank < COLOURED
            colour = f"C{rank}" if named else "0.8"
            label = f"{_short(group.short, 48)} (n={len(group.runs)})" if named else None
            marker = "o" if len(epochs) == 1 else None
            axes.plot(epochs, means, color=colour, linewidth=1.5 if named else 0.8, label=label, marker=marker)
            if named and any(spreads):
                low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
                high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
                axes.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.set(xlabel="epoch", ylabel=key)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", fontsize=8, ncols=2)
    return figure


def _mean_curve(group: Group, key: str) -> tuple[list[float], list[float], list[float]]:
    """(epochs, means, standard deviations), as far as all runs of the group come."""
    curves = [dict(zip(*run.curve(key), strict=True)) for run in group.runs]
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    columns = [[curve[epoch] for curve in curves] for epoch in epochs]
    spreads = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
    return epochs, [statistics.fmean(column) for column in columns], spreads


def draw_costs(groups: Sequence[Group], metric: str, costs: Sequence[str]) -> Figure:
    """A figure over what it costs; a line through the groups that nothing beats at no higher cost."""
    from matplotlib.patheffects import withStroke

    figure = _figure(5.2 * len(costs), 4.2)
    for axes, cost in zip(figure.subplots(1, len(costs), squeeze=False)[0], costs, strict=True):
        priced = [group for group in groups if group.of(cost)]
        best = front(priced, cost, metric)
        at = {id(group): statistics.fmean(group.of(cost)) for group in priced}
        spreads = [group.spread or 0 for group in priced]
        places = [at[id(group)] for group in priced], [group.mean for group in priced]
        axes.errorbar(*places, yerr=spreads, fmt="o", color="C0", alpha=0.6, markersize=5, elinewidth=0.8)
        axes.plot([at[id(group)] for group in best], [group.mean for group in best], "o-", color="C3", zorder=3)
        for group in best[:COLOURED]:
            right = at[id(group)] > statistics.fmean((min(at.values()), max(at.values())))
            axes.annotate(
                _short(group.short, 44),
                (at[id(group)], group.mean),
                xytext=(-4 if right else 4, 6 if goes_up(metric) else -10),
                textcoords="offset points",
                ha="right" if right else "left",
                fontsize=7,
                parse_math=False,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],  # lines may run behind it
                zorder=4,
            )
        _scale(axes, [*at.values()])
        axes.set(xlabel=COSTS[cost], ylabel=metric)
        axes.margins(x=0.15, y=0.12)
        axes.grid(alpha=0.3)
    return figure


def draw_keys(runs: Sequence[Found], metric: str, keys: Sequence[str]) -> Figure:
    """A figure over each of the keys that were varied: every run as a point, and the mean of those of one value."""
    shown = keys[:KEYS]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = _figure(max(3.6 * columns, 5), 3.1 * lines)
    cells = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, key in zip(cells.flat, shown, strict=False):
        points = [(value(run, key), run.summary[metric]) for run in runs]
        numeric = all(is_number(setting) for setting, _ in points)
        settings = sorted({setting for setting, _ in points}) if numeric else sorted({str(s) for s, _ in points})
        places = {setting: setting if numeric else index for index, setting in enumerate(settings)}
        told = [(places[setting if numeric else str(setting)], figure) for setting, figure in points]
        axes.plot(*zip(*told, strict=True), "o", color="C0", alpha=0.5, markersize=4, markeredgewidth=0)
        if len(settings) < len(points):  # some value has several
            means = [statistics.fmean(f for place, f in told if place == places[setting]) for setting in settings]
            at = [places[setting] for setting in settings]
            axes.plot(at, means, "_-", color="black", markersize=12, linewidth=0.8)
        if numeric:
            _scale(axes, settings)
        else:
            names = [_short(str(setting), 16) for setting in settings]
            turned = 30 if max(map(len, names)) * len(names) > 28 else 0
            axes.set_xticks(range(len(names)), names, rotation=turned, fontsize=8, parse_math=False)
        axes.set(xlabel=key)
        axes.margins(x=0.12)
        axes.grid(alpha=0.3)
    for axes in cells.flat[len(shown) :]:
        axes.set_visible(False)
    for row in cells:
        row[0].set_ylabel(metric)
    return figure


def _scale(axes: Axes, values: Sequence[Any]) -> None:
    from matplotlib.ticker import NullFormatter

    if min(values) > 0 and max(values) / min(values) > WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())  # whose labels would overlap
    elif max(values) >= 1e4:
        axes.xaxis.set_major_formatter(lambda figure, _: number(figure))
        axes.tick_params(axis="x", labelsize=8)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=110)


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def png(figure: Figure) -> bytes:
    """The bytes of a picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
