"""The panels of a dashboard, for a workspace and for a report. Each answers one question."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from swinexp.dashboard.subject import Subject, Varied
from swinexp.mistake import Mistake

BEST = "best/val/accuracy"
CURVES = ("val/accuracy", "val/loss", "train/loss", "train/lr")
HEALTH = ("train/grad_norm", "train/images_per_second", "val/images_per_second")
MEMORY = "gpu_memory"  # which only runs on a GPU have


def library(part: str) -> Any:
    """A module of wandb_workspaces: `workspaces` or `reports.v2`. Raises `Mistake` when it is not installed."""
    if find_spec("wandb_workspaces") is None:
        raise Mistake("wandb-workspaces is not installed. Type pip install 'swinexp[dashboard]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its pydantic is of an older style
        return import_module(f"wandb_workspaces.{part}")


def outcome(subject: Subject) -> list[Any]:
    """What came of it: accuracy against what it costs, and which parameters it follows."""
    wr = library("reports.v2")
    best = wr.SummaryMetric(BEST)
    columns = [
        wr.ParallelCoordinatesPlotColumn(wr.Config(varied.path), display_name=varied.key, log=varied.log or None)
        for varied in subject.varied
    ]
    columns += [wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(key)) for key in subject.objectives]
    return [
        wr.ScatterPlot(title=f"{BEST} against FLOPs", x=wr.SummaryMetric("flops"), y=best, log_x=True),
        wr.ScatterPlot(title=f"{BEST} against images/s", x=wr.SummaryMetric("train/images_per_second"), y=best),
        wr.ParallelCoordinatesPlot(title="Which values lead where", columns=columns),
        *(wr.ParameterImportancePlot(with_respect_to=key) for key in subject.objectives),
    ]


def curves(subject: Subject) -> list[Any]:
    """How it went: every run, or every point with the spread of its seeds; then grouped by each parameter."""
    over = ", mean ± standard deviation of the seeds" if subject.repeated else ""
    several = [varied for varied in subject.varied if varied.few]
    plain = [_curve(key, f"{key}{over}") for key in CURVES]
    return [*plain, *(_curve(key, f"{key} by {each.key}", each) for each in several for key in CURVES[:2])]


def health(subject: Subject) -> list[Any]:
    """Whether the runs were well, and how fast."""
    wr = library("reports.v2")
    has_memory = subject.sweep is None or MEMORY in subject.sweep.figures
    memory = [wr.BarPlot(title="GPU memory at most, bytes", metrics=[MEMORY])] if has_memory else []
    return [*(_curve(key, key) for key in HEALTH), *memory]


def compare() -> list[Any]:
    """How runs differ, side by side."""
    return [library("reports.v2").RunComparer(diff_only="split")]


def _curve(key: str, title: str, by: Varied | None = None) -> Any:
    """A figure over the epochs. Runs that are grouped, by `by` or by the runs' table, are their mean with a band."""
    wr = library("reports.v2")
    return wr.LinePlot(
        title=title,
        x="epoch",
        y=[key],
        groupby=None if by is None else wr.Config(by.path),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_runs_to_show=100,
    )


def only_of(subject: Subject, runs: Any) -> None:
    """Have a workspace, or a report's set of runs, show those of the subject alone.

    The library takes filters as text, in which `=` within a name is read as an operator. What it keeps of a filter
    that it has loaded goes out as it is.
    """
    if subject.sweep is not None:
        group = {"section": "run", "name": "group"}
        leaf = {"key": group, "op": "=", "value": subject.sweep.name, "disabled": False}
        runs._stashed_filters_v2 = {"filterFormat": "filterV2", "filters": [leaf]}
        runs._stashed_filter_string = ""
