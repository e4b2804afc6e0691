"""What a report of a sweep says and draws."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from swinexp.sweep import plots, report
from swinexp.sweep.study import Study
from swinexp.sweep.trials import WHEN
from tests.sweeping import study_of

LONG = "trainer.a_key_of_many_characters"
SPACE = ("optimizer=adamw,sgd", f"{LONG}=tag(log,interval(1e-3,1))")
CONDITIONAL = (
    "hydra.sweeper.conditional=[{when: {optimizer: sgd}, params: {optimizer.lr: 'interval(0.1,0.2)'}},"
    "{when: {optimizer: adamw}, params: {optimizer.lr: 'interval(0.01,0.02)'}}]"
)

pytestmark = pytest.mark.usefixtures("quiet_optuna")


def end(study: Study, *values: float | None, seeds: list[float] | None = None) -> None:
    """Complete the next trials; None: it is pruned."""
    for value in values:
        trial = study.claim()
        trial.report(0.5, 1)
        trial.report(0.75, 2)
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        study.tell(trial, state, value if value is None else [value], {} if seeds is None else {"seeds": seeds})


def body(study: Study) -> str:
    """The report without plotly's program."""
    return (study.folder / "report.html").read_text().rpartition("<h1>")[2]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A report's pictures, of matplotlib and, as `html/…`, of plotly; trials 1, 3 and 4 of 5 are complete."""
    from plotly.graph_objects import Figure

    study = study_of(
        CONDITIONAL,
        space=SPACE,
    )
    for point in ("sgd", "sgd", "adamw", "sgd", "adamw"):
        study.optuna.enqueue_trial({"optimizer": point})
    end(study, None, 0.5, None, 0.25, 0.75)
    found: dict[str, Any] = {}
    of_plotly: list[Any] = []

    def keep(path: Path, write: partial[Any]) -> None:
        found[path.stem] = getattr(write.func, "__self__")  # noqa: B009

    monkeypatch.setattr(plots, "write_atomically", keep)
    monkeypatch.setattr(Figure, "to_html", lambda figure, **_: of_plotly.append(figure) or "")
    report.write_report(study, None, ["val/loss"])
    heads = re.findall("<h2>(.*?)</h2>", body(study))
    found |= {f"html/{head.partition(' ')[0].lower()}": each for head, each in zip(heads[1:], of_plotly, strict=False)}
    for picture in ("slices", "history", "curves", "parallel_coordinates"):
        found[picture].draw_without_rendering()
    return found


def words(labels: list[Any]) -> list[str]:
    return [label.get_text() for label in labels]


def ticks(axes: Any) -> list[str]:
    """What the x axis says where it is seen."""
    low, high = axes.get_xlim()
    return [
        said for tick, said in zip(axes.get_xticks(), words(axes.get_xticklabels()), strict=True) if low <= tick <= high
    ]


def test_slices_have_the_numbers_of_trials_on_one_scale(drawn: dict[str, Any]) -> None:
    *parts, bar = drawn["slices"].axes
    for part in parts:
        dots = part.collections[0]
        assert {*dots.get_array().tolist()} <= {1, 3, 4}
        assert dots.get_clim() == (1, 4)
    assert {*parts[0].collections[0].get_array().tolist()} == {1, 3, 4}
    assert words(bar.get_yticklabels()) == ["1", "2", "3", "4"]
    for trace in drawn["html/slices"].data:
        assert {*trace.marker.color} <= {1, 3, 4}
        assert (trace.marker.cmin, trace.marker.cmax, trace.marker.colorbar.dtick) == (1, 4, 1)


def test_choices_are_shown_as_they_are_typed(drawn: dict[str, Any]) -> None:
    axes = next(part for part in drawn["slices"].axes if part.get_xlabel() == "optimizer")
    assert words(axes.get_xticklabels()) == ["adamw", "sgd"]
    axis = next(axis for axis in drawn["html/slices"].select_xaxes() if axis.title.text == "optimizer")
    assert dict(zip(axis.tickvals, axis.ticktext, strict=True)) == {"'adamw'": "adamw", "'sgd'": "sgd"}


@pytest.mark.parametrize(("picture", "numbers"), [("curves", ["1", "2"]), ("history", ["1", "2", "3", "4"])])
def test_epochs_and_trials_are_whole_numbers(drawn: dict[str, Any], picture: str, numbers: list[str]) -> None:
    assert ticks(drawn[picture].axes[0]) == numbers
    assert drawn[f"html/{picture}"].layout.xaxis.dtick == 1


def test_the_best_is_drawn_as_steps(drawn: dict[str, Any]) -> None:
    assert [line.get_drawstyle() for line in drawn["history"].axes[0].lines] == ["steps-post"]
    shapes = {trace.mode: trace.line.shape for trace in drawn["html/history"].data}
    assert shapes == {"markers": None, "lines": "hv"}


def test_a_single_epoch_is_a_whole_number(monkeypatch: pytest.MonkeyPatch) -> None:
    axes: list[Any] = []
    monkeypatch.setattr(plots, "write_atomically", lambda _, write: axes.append(write.func.__self__.axes[0]))
    study = study_of()
    for loss in (0.5, 0.75):
        trial = study.claim()
        trial.report(loss, 1)
        study.tell(trial, TrialState.COMPLETE, [loss])
    plots.write_pngs(study, {"Curves": ("plot_intermediate_values", study.optuna, {})}, ["val/loss"])
    axes[0].figure.draw_without_rendering()
    assert ticks(axes[0]) == ["1"]


def test_parallel_coordinates_have_names_in_full_and_labels_that_can_be_read(drawn: dict[str, Any]) -> None:
    lr = f"optimizer.lr{WHEN}optimizer="
    names = ["val/loss", "optimizer", f"{lr}adamw", f"{lr}sgd", LONG]
    first, *others = drawn["parallel_coordinates"].axes
    assert words(first.get_xticklabels()) == names
    behind = [[label.get_bbox_patch() is not None for label in part.get_yticklabels()] for part in others]
    assert sum(map(all, behind)) == 4
    figure = drawn["html/parallel"]
    assert [name.replace("<br>", " ") for name in figure.layout.xaxis.ticktext] == names
    assert all(each.bgcolor for each in figure.layout.annotations)


def test_no_trial_is_drawn_white_on_white(drawn: dict[str, Any]) -> None:
    from plotly.colors import unlabel_rgb

    colours = [trace.marker.colorscale[0][1] for trace in drawn["html/slices"].data]
    lines = {trace.y[0]: trace.line.color for trace in drawn["html/parallel"].data if trace.line.color is not None}
    for colour in [*colours, *lines.values()]:
        assert min(unlabel_rgb(colour)) < 160
    (bar,) = (trace.marker for trace in drawn["html/parallel"].data if trace.marker.colorscale is not None)
    assert bar.reversescale  # of a loss: the smallest is the darkest
    assert (lines[0], lines[1]) == (bar.colorscale[-1][1], bar.colorscale[0][1])
    for picture in ("slices", "parallel_coordinates"):
        for coloured in drawn[picture].axes[0].collections:
            assert coloured.get_cmap()([0.0, 1.0])[:, :3].min(axis=1).max() < 160 / 255


def rows_of(study: Study) -> list[dict[str, str]]:
    with (study.folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def heads_of(study: Study) -> list[str]:
    return re.findall('<th class=".*?">(.*?)</th>', body(study))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Callable[..., dict[str, Any]] = lambda *_: {}  # noqa: E731
    monkeypatch.setattr(report, "plots_of", nothing)


@pytest.mark.usefixtures("no_pictures")
def test_a_trial_of_one_seed_has_no_spread() -> None:
    study = study_of()
    end(study, 0.5)
    report.write_report(study, None, ["val/loss"])
    assert [*rows_of(study)[0]][-1] == "error"
    assert "seeds" not in heads_of(study)


@pytest.mark.usefixtures("no_pictures")
def test_several_seeds_have_their_number_mean_and_spread() -> None:
    study = study_of("hydra.sweeper.seeds=2")
    end(study, 0.5, seeds=[0.25, 0.75])
    end(study, 0.75, seeds=[0.5, 1.0])
    end(study, None)
    top = study_of(space=["x=interval(0,1)", "seed=range(2,9)"], folder=Path("top"))
    top.optuna.enqueue_trial({**study.trials[0].params, "seed": 2})
    end(top, 0.0)
    report.write_report(study, top, ["val/loss"])
    heads, first = [*rows_of(study)[0]], rows_of(study)[0]
    assert heads[-4:] == ["error", "seeds", "val/loss mean", "val/loss std"]
    assert first["val/loss"] == "0.5"
    figures = [tuple(row[head] for head in heads[-3:]) for row in rows_of(study)]
    assert figures[0][0] == "3"
    assert float(figures[0][1]) == pytest.approx(1 / 3)
    assert float(figures[0][2]) == pytest.approx(statistics.stdev([0.25, 0.75, 0.0]))
    assert figures[1][:2] == ("2", "0.75")
    assert figures[2] == ("", "", "")
    assert heads_of(study)[2:6] == ["val/loss", "seeds", "val/loss mean", "val/loss std"]
