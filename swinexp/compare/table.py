"""A comparison as rows of text: for the terminal, for CSV and for the page."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from swinexp.compare.differences import is_number, value
from swinexp.compare.groups import Group
from swinexp.compare.runs import COMPLETE, STATES, Found
from swinexp.compare.statistic import FEW, LEVEL
from swinexp.mistake import shown

# Figures that stand beside the one that is compared, where runs have them, with their headings.
BESIDE = {
    "val/accuracy": "val/accuracy",
    "test/accuracy": "test/accuracy",
    "flops": "FLOPs",
    "train/images_per_second": "images/s",
    "parameters": "parameters",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Cell:
    """What stands in a table, and the figure that it sorts by, if it is one."""

    text: str
    figure: float | None = None


def number(figure: float, metric: str = "") -> str:
    """Four places for shares, four digits for the rest, with a prefix for what is large (2.35 M, 243 M)."""
    if not math.isfinite(figure):
        return "not finite"
    if metric.endswith(("accuracy", "top5")):
        return f"{figure:.4f}"
    for limit, sign in ((1e9, "G"), (1e6, "M")):
        if abs(figure) >= limit:
            return f"{figure / limit:.4g} {sign}"
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.4g}"


def with_spread(figures: Sequence[float], metric: str) -> str:
    """The mean, and the standard deviation where there are several."""
    if not figures:
        return ""
    mean = number(statistics.fmean(figures), metric)
    if len(figures) == 1:
        return mean
    deviation = statistics.stdev(figures)
    return f"{mean} ± {number(deviation, metric) if deviation else '0'}"


def compared(group: Group, metric: str) -> tuple[Cell, Cell]:
    """(the difference with its interval, p) of a group; what stands in the table for them."""
    found = group.against
    if group.is_base:
        return Cell("base"), Cell("")
    if found is None:
        return Cell(""), Cell("")
    mean = _signed(found.mean, metric)
    if math.isnan(found.p):
        return Cell(f"{mean} each time", found.mean), Cell("")
    interval = f"[{_signed(found.low, metric)}, {_signed(found.high, metric)}]"
    p = "<0.001" if found.p < 0.001 else f"{found.p:.3f}"
    return Cell(f"{mean} {interval}", found.mean), Cell(f"{p}{'?' if found.few else ''}", found.p)


def _signed(figure: float, metric: str) -> str:
    return f"{'−' if figure < 0 else '+'}{number(abs(figure), metric)}"


def beside(groups: Sequence[Group], metric: str) -> list[str]:
    """The other figures that are worth a column."""
    return [key for key in BESIDE if key != metric and any(group.of(key) for group in groups)]


def tested(groups: Sequence[Group]) -> bool:
    """Whether any two groups could be tested against each other."""
    return any(group.against is not None for group in groups)


def columns(groups: Sequence[Group], metric: str) -> dict[str, list[Cell]]:
    """{heading: a cell for each group}, the groups in their order and what one can do without at the end."""
    found: dict[str, list[Cell]] = {}
    for key in groups[0].settings:
        found[key] = [_setting(group.settings[key]) for group in groups]
    found[metric] = [Cell(with_spread([*group.figures.values()], metric), group.mean) for group in groups]
    found["n"] = [Cell(str(len(group.figures)), len(group.figures)) for group in groups]
    if tested(groups):
        differences, ps = zip(*(compared(group, metric) for group in groups), strict=True)
        found |= {"difference": [*differences], "p": [*ps]}
    for key in beside(groups, metric):
        found[BESIDE[key]] = [_figure(group.of(key), key) for group in groups]
    return found


def _setting(text: str) -> Cell:
    try:
        return Cell(text, float(text))
    except ValueError:
        return Cell(text)


def _figure(figures: Sequence[float], key: str) -> Cell:
    if not figures:
        return Cell("")
    mean = statistics.fmean(figures)
    return Cell(with_spread(figures, key) if key.endswith("accuracy") else number(mean, key), mean)


def left_out(runs: Sequence[Found], metric: str) -> list[Found]:
    """The runs that no mean holds, by their state."""
    kept = [run for run in runs if run.state != COMPLETE or run.summary.get(metric) is None]
    return sorted(kept, key=lambda run: STATES.index(run.state))


def why(run: Found, metric: str) -> str:
    """What a run that is left out has come to."""
    told = [run.trouble] if run.trouble else []
    if run.state == COMPLETE and run.summary.get(metric) is None:
        told.append(f"its {metric} is not finite" if metric in run.summary else f"has no {metric}")
    elif run.history and run.state != COMPLETE:
        wanted = run.config.get("trainer.epochs")
        _, values = run.curve(metric)
        reached = f", {metric} {number(values[-1], metric)}" if values else ""
        told.append(f"epoch {run.epochs}{f' of {wanted}' if wanted else ''}{reached}")
    return "; ".join(told)


def tally(runs: Sequence[Found]) -> str:
    """How many runs are in which state."""
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def notes(groups: Sequence[Group]) -> list[str]:
    """What has to be known beside the table to read it rightly."""
    told = []
    judged = [run for group in groups for run in group.runs]
    base = next((group for group in groups if group.is_base), None)
    if base is not None and tested(groups):
        name = "the first row, picked as the best after the fact" if base is groups[0] else base.label
        pairs = any(group.against is not None and group.against.pairs for group in groups)
        welch = any(group.against is not None and not group.against.pairs for group in groups)
        ways = " and ".join(way for way, used in (("in pairs of a seed", pairs), ("Welch's", welch)) if used)
        several = sum(group.against is not None for group in groups) > 1
        corrected = ", p corrected for their number (Holm)" if several else ""
        told.append(f"difference: to {name}, with its {LEVEL:.0%} interval; t test {ways}{corrected}")
    few = [group for group in groups if len(group.figures) < FEW]
    if len(groups) > 1 and all(len(group.figures) == 1 for group in groups):
        told.append(
            "one run each: whether a difference is real cannot be said. Type -m seed=0,1,2 for three, "
            "or hydra.sweeper.seeds=3 in a search"
        )
    elif len(groups) > 1 and few:
        told.append(f"? {len(few)} of {len(groups)} rows have fewer than {FEW} runs: of chance they say little")
    if unsteady := sum(group.unsteady for group in groups):
        seeds = "one seed has" if unsteady == 1 else f"{unsteady} seeds have"
        told.append(f"{seeds} several runs of one config and different figures, of which the mean counts once")
    alike = {"git": "revisions of the code", "device_name": "devices, whose images/s and seconds do not compare"}
    for key, what in alike.items():
        if len(kinds := {str(run.summary.get(key)) for run in judged}) > 1:
            told.append(f"the runs are of {len(kinds)} {what}")
    return told


def as_csv(runs: Sequence[Found], metric: str, keys: Sequence[str]) -> str:
    """A line for each run, whatever its state: where it is, what differs, and every figure of its summary."""
    figures = dict.fromkeys(key for run in runs for key, each in run.summary.items() if is_number(each))
    names = [metric, *(key for key in figures if key not in (metric, "seed", *keys))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "state", *keys, "seed", *names, "epochs trained", "wandb", "trouble"])
    for run in runs:
        told = [*(value(run, key) for key in keys), run.seed, *(run.summary.get(name) for name in names)]
        cells = ["" if each is None else shown(each) for each in told]
        writer.writerow([run.path, run.state, *cells, run.epochs, run.wandb or "", run.trouble])
    return text.getvalue()
