from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from swinexp.compare.__main__ import Comparison, Request, compare, main
from swinexp.compare.differences import condition, option, selected, varied
from swinexp.compare.groups import front, grouped
from swinexp.compare.runs import COMPLETE, DAMAGED, FAILED, PRUNED, RUNNING, UNFINISHED, find
from swinexp.compare.statistic import difference, holm
from swinexp.compare.table import as_csv, notes
from swinexp.folder import Folder
from swinexp.mistake import Mistake
from tests.conftest import DONE, Command, config

RUNS = Path("outputs/runs")
EPOCHS = 3


def left(name: str, *overrides: str, accuracy: float = 0.5, summary: Mapping[str, Any] | None = None) -> Path:
    """A folder as a complete run of these overrides leaves it, with a curve that ends in an accuracy."""
    folder = RUNS / name
    folder.mkdir(parents=True)
    whole: Any = OmegaConf.to_container(config(*overrides), resolve=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**whole, "name": name}, sort_keys=False))
    size = whole["model"]["dim"] * sum(whole["model"]["depths"])
    curve = [
        {"epoch": epoch, "val/accuracy": accuracy * epoch / EPOCHS, "val/loss": 1 / epoch, "train/loss": 2 / epoch}
        for epoch in range(1, EPOCHS + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve))
    figures = {
        "val/accuracy": accuracy,
        "val/loss": 1 / EPOCHS,
        "test/accuracy": accuracy - 0.01,
        "flops": 1000 * size,
        "train/images_per_second": 1e6 / size,
        "epochs": EPOCHS,
        "state": "complete",
        "git": "a" * 40,
        "device_name": "a CPU",
    }
    (folder / "summary.json").write_text(json.dumps({**figures, **(summary or {})}))
    return folder


def compared(*paths: str, **request: Any) -> Comparison:
    return compare(Request(**request), paths or [str(RUNS)])


# Reading


def test_runs_are_found_below_a_folder_in_the_order_of_their_numbers_and_once() -> None:
    for number in (10, 9, 0):
        left(f"sweep/{number}")
    (RUNS / "sweep" / "workers").mkdir()
    found = find([RUNS, RUNS / "sweep", RUNS / "sweep" / "9"])
    assert [run.path.name for run in found] == ["0", "9", "10"]


def test_a_folder_is_told_in_whatever_state_it_is() -> None:
    left("complete")
    left("pruned", summary={"pruned": True, "state": "pruned"})
    (left("unfinished") / "summary.json").unlink()
    (left("diverged") / "summary.json").unlink()
    line = "2026-11-25 02:09:01,761 ERROR   the loss is not finite at step 7"
    (RUNS / "diverged" / "run.log").write_text(f"2026-11-25 02:09:00,000 INFO    training\n{line}\n")
    (left("cut") / "summary.json").unlink()
    with (RUNS / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "val/acc')  # as a kill leaves it
    (left("config") / "config.yaml").write_text("model: [1\n")
    (left("empty") / "config.yaml").write_text("")
    (left("summary") / "summary.json").write_text("{")
    (left("figures") / "summary.json").write_text("[]")
    lines = (left("middle") / "metrics.jsonl").read_text().splitlines()
    (RUNS / "middle" / "metrics.jsonl").write_text("\n".join([lines[0], "\0\0\0", lines[2], ""]))
    (left("short") / "metrics.jsonl").write_text(lines[0] + "\n")
    (RUNS / "never").mkdir()
    (RUNS / "never" / "error.txt").write_text("…")
    (left("running") / "summary.json").unlink()
    with Folder(RUNS / "running"):
        found = {run.path.name: run for run in find([RUNS])}
    assert {name: run.state for name, run in found.items()} == {
        "complete": COMPLETE,
        "pruned": PRUNED,
        "unfinished": UNFINISHED,
        "diverged": UNFINISHED,
        "cut": UNFINISHED,
        "config": DAMAGED,
        "empty": DAMAGED,
        "summary": DAMAGED,
        "figures": DAMAGED,
        "middle": DAMAGED,
        "short": DAMAGED,
        "never": FAILED,
        "running": RUNNING,
    }
    assert found["diverged"].trouble == "the loss is not finite at step 7"
    assert found["cut"].epochs == EPOCHS
    assert found["middle"].trouble == "metrics.jsonl, line 2, cannot be read"
    assert found["middle"].epochs == 1
    assert all(run.trouble for run in found.values() if run.state in (DAMAGED, FAILED))


def test_looking_at_a_folder_turns_no_run_away() -> None:
    left("one")
    for _ in range(50):
        find([RUNS])
        with Folder(RUNS / "one"):
            find([RUNS])


def test_what_is_left_out_is_listed_and_in_no_mean(capsys: pytest.CaptureFixture[str]) -> None:
    left("a", "seed=0", accuracy=0.5)
    left("b", "seed=1", accuracy=0.7)
    (left("c", "seed=2", accuracy=0.9) / "summary.json").unlink()
    (left("d", "seed=3") / "config.yaml").write_text("[")
    left("e", "seed=4", summary={"val/accuracy": None})
    main([str(RUNS)])
    told = capsys.readouterr().out
    assert "5 runs: 3 complete, 1 unfinished, 1 damaged" in told
    assert "0.6000 ± 0.1414  2" in told
    assert re.search(r"unfinished +outputs/runs/c +\(epoch 3 of 30, val/accuracy 0.9000\)", told)
    assert re.search(r"damaged +outputs/runs/d +\(config.yaml cannot be read", told)
    assert re.search(r"complete +outputs/runs/e +\(its val/accuracy is not finite\)", told)


# What differs


def test_what_differs_is_told_by_the_options_of_groups_that_decide_it() -> None:
    left("a", "model=nano", "optimizer=adamw", "optimizer.lr=0.001", "window=w2")
    left("b", "model=tiny", "optimizer=sgd", "optimizer.lr=0.001", "window=w4")
    left("c", "model=tiny", "optimizer=sgd", "optimizer.lr=0.002", "window=w4", "seed=3", "test=true")
    runs = find([RUNS])
    assert varied(runs) == ["model", "window.size", "optimizer", "optimizer.lr"]
    assert [option(run, "model") for run in runs] == ["nano", "tiny", "tiny"]
    assert [option(run, "optimizer") for run in runs] == ["adamw", "sgd", "sgd"]


def test_one_key_of_words_is_told_by_its_options_where_each_value_has_one() -> None:
    left("a", "patch=p2")
    left("b", "patch=p2_conv")
    assert varied(find([RUNS])) == ["patch"]
    left("c", "patch=p2", "patch.embedding=conv")
    assert varied(find([RUNS])) == ["patch"]


def test_a_run_from_before_a_key_is_as_all_were_then() -> None:
    folder = left("a", "patch=p2_conv")
    before = yaml.safe_load((folder / "config.yaml").read_text())
    del before["patch"]["init"]
    (folder / "config.yaml").write_text(yaml.safe_dump(before))
    left("b", "patch=p2_conv")
    runs = find([RUNS])
    assert varied(runs) == []
    assert option(runs[0], "patch") == "p2_conv"
    left("c", "patch=p2_whitened")
    assert varied(find([RUNS])) == ["patch"]


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, name)
        for group in ("model", "window", "patch", "attention", "block", "optimizer", "schedule")
        for name in sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / group).glob("*.yaml"))
    ],
)
def test_every_option_is_known_by_its_values(group: str, name: str) -> None:
    overrides = [f"{group}={name}"]
    left("a", *overrides)
    assert option(find([RUNS])[0], group) == name


@pytest.mark.parametrize("name", ["auto", "basic", "none", "rand", "reference", "strong", "trivial"])
def test_an_augmentation_is_known_by_its_values_with_a_key_of_its_own(name: str) -> None:
    left("a", f"augmentation={name}", "augmentation.erase=0.17", "data.mirror=true")
    assert option(find([RUNS])[0], "augmentation") == name


# Groups


def test_runs_that_differ_by_seed_alone_are_one_row_and_the_best_is_first() -> None:
    for seed in range(3):
        left(f"a{seed}", f"seed={seed}", "window=w2", accuracy=0.5 + seed / 100)
        left(f"b{seed}", f"seed={seed}", "window=w4", accuracy=0.6 + seed / 100)
    found = compared()
    assert [(group.label, len(group.runs)) for group in found.groups] == [("window.size=4", 3), ("window.size=2", 3)]
    assert found.groups[0].mean == pytest.approx(0.61)
    assert found.groups[0].spread == pytest.approx(0.01)
    assert compared(metric="val/loss").groups[0].mean == pytest.approx(1 / EPOCHS)


def test_a_smaller_loss_is_the_better_one() -> None:
    left("a", "window=w2", summary={"val/loss": 0.3})
    left("b", "window=w4", summary={"val/loss": 0.1})
    assert [group.label for group in compared(metric="val/loss").groups] == ["window.size=4", "window.size=2"]


def test_by_pairs_what_else_differs() -> None:
    gaps = []
    for seed in range(2):
        for lr in (0.1, 0.2):
            gaps.append(0.01 * (seed + 1) + lr / 10)
            base = 0.3 + seed + lr  # far more than what the window makes
            left(f"a{seed}{lr}", f"seed={seed}", f"optimizer.lr={lr}", "window=w2", accuracy=base)
            left(f"b{seed}{lr}", f"seed={seed}", f"optimizer.lr={lr}", "window=w4", accuracy=base + gaps[-1])
    best, other = compared(by="window.size").groups
    assert best.label == "window.size=4"
    assert best.is_base
    assert other.against is not None
    assert other.against.pairs == 4
    assert other.against.mean == pytest.approx(-statistics.fmean(gaps))
    assert other.against.p < 0.05


def test_a_group_in_by_does_not_pair_runs_that_differ_in_what_it_does_not_decide() -> None:
    for lr in (0.001, 0.003, 0.01):
        for seed in range(3):
            left(
                f"a{lr}{seed}",
                f"seed={seed}",
                f"optimizer.lr={lr}",
                "optimizer=adamw",
                accuracy=0.9 - 10 * lr + seed / 50,
            )
            if lr > 0.001:  # what differs is only that the best lr is missing here
                left(
                    f"b{lr}{seed}",
                    f"seed={seed}",
                    f"optimizer.lr={lr}",
                    "optimizer=lion",
                    accuracy=0.9 - 10 * lr + seed / 50,
                )
    one, other = compared(by="optimizer").groups
    assert one.mean > other.mean
    assert other.against is not None
    assert other.against.pairs == 6
    assert other.against.mean == pytest.approx(0)
    (RUNS / "b0.0030" / "summary.json").unlink()
    for lr in (0.002, 0.004):  # of which the others have none
        left(f"c{lr}", "seed=0", f"optimizer.lr={lr}", "optimizer=lion", accuracy=0.3)
    _, other = compared(by="optimizer").groups
    assert other.against is not None
    assert other.against.pairs == 0


def test_the_same_run_again_is_no_repetition() -> None:
    for seed in range(2):
        for again in range(3):
            left(f"a{seed}{again}", f"seed={seed}", "window=w2", accuracy=0.5 + seed / 10)
            left(f"b{seed}{again}", f"seed={seed}", "window=w4", accuracy=0.7 + seed / 10 + again / 1000)
    best, other = compared().groups
    assert [len(group.runs) for group in (best, other)] == [6, 6]
    assert sorted(other.figures.values()) == [0.5, 0.6]
    assert sorted(best.figures.values()) == pytest.approx([0.701, 0.801])  # which a GPU does not give twice
    assert other.against is not None
    assert other.against.pairs == 2
    told = "2 seeds have several runs of one config and different figures, of which the mean counts once"
    assert told in notes([best, other])
    assert not any("several runs" in note for note in notes([other]))
    left("a13", "seed=1", "window=w2", accuracy=0.9)
    _, other = compared().groups
    assert sorted(other.figures.values()) == [0.5, pytest.approx((3 * 0.6 + 0.9) / 4)]


@pytest.mark.parametrize("asked", ["where=name=*lr*", "where=model.depths=[2,2", "where=seed=@1"])
def test_a_value_that_is_no_yaml_is_a_word(asked: str) -> None:
    left("a")
    key, _, wanted = condition(asked.partition("=")[2])
    assert wanted == asked.rpartition("=")[2]
    with pytest.raises(Mistake, match="no run is left"):
        selected(find([RUNS]), [f"{key}={wanted}"])


@pytest.mark.parametrize("key", ["csv", "html"])
def test_a_file_that_cannot_be_written_is_told(
    key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left("a")
    with pytest.raises(SystemExit):
        main([str(RUNS), f"{key}=outputs"])
    told = capsys.readouterr()
    assert told.err == f"swinexp: {key}=outputs: is a folder. Type {key}=outputs/compare.{key}\n"
    assert told.out == ""

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for module in ("__main__", "page"):
        monkeypatch.setattr(f"swinexp.compare.{module}.write_text", read_only)
    with pytest.raises(SystemExit):
        main([str(RUNS), f"{key}=a.{key}"])
    assert (
        f"{key}=a.{key}: cannot be written (Read-only file system). Type {key}=ANOTHER_FILE" in capsys.readouterr().err
    )


def test_a_group_in_by_stands_for_its_keys_so_that_seeds_pair() -> None:
    for seed in range(3):
        for attention, more in (("swin", 0.0), ("mimetic", 0.1)):
            left(
                f"{attention}{seed}",
                f"seed={seed}",
                f"attention={attention}",
                accuracy=0.1 * seed + more + 0.001 * seed,
            )
    best, _ = compared(by="attention", base="attention=swin").groups
    assert best.settings == {"attention": "mimetic"}
    assert best.against is not None
    assert best.against.pairs == 3


def test_the_others_are_compared_with_the_base() -> None:
    for seed in range(3):
        for window, accuracy in (("w2", 0.5), ("w4", 0.6), ("w4_noshift", 0.7)):
            left(f"{window}{seed}", f"seed={seed}", f"window={window}", accuracy=accuracy + seed**2 / 100)
    groups = compared(base="window=w2").groups
    assert [group.is_base for group in groups] == [False, False, True]
    assert groups[0].against is not None
    assert groups[0].against.mean == pytest.approx(0.2)
    assert groups[2].against is None


def test_the_front_has_no_group_that_another_beats_at_no_higher_cost() -> None:
    for model, accuracy in (("nano", 0.5), ("tiny", 0.7), ("small", 0.6), ("base", 0.7)):
        left(model, f"model={model}", accuracy=accuracy)
    runs = find([RUNS])
    groups = grouped(runs, "val/accuracy", None, None)
    assert [group.settings["model"] for group in front(groups, "flops", "val/accuracy")] == ["nano", "tiny"]
    by_speed = front(groups, "train/images_per_second", "val/accuracy")
    assert [group.settings["model"] for group in by_speed] == ["nano", "tiny"]


# Chance


@pytest.mark.parametrize("sizes", [(3, 3), (2, 2), (5, 3), (10, 10)])
def test_differences_are_those_of_scipy(sizes: tuple[int, int]) -> None:
    from scipy import stats  # type: ignore[import-untyped]

    one = {seed: 0.9 + 0.01 * math.sin(seed * 7) for seed in range(sizes[0])}
    other = {seed: 0.88 + 0.02 * math.cos(seed * 5) for seed in range(sizes[1])}
    common = [seed for seed in one if seed in other]
    paired = stats.ttest_rel([one[seed] for seed in common], [other[seed] for seed in common])
    found = difference(one, other)
    assert found is not None
    assert found.pairs == min(sizes)
    interval = paired.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((paired.pvalue, interval.low, interval.high), rel=1e-9)
    strangers = {f"other {seed}": figure for seed, figure in other.items()}
    welch = stats.ttest_ind([*one.values()], [*other.values()], equal_var=False)
    found = difference(one, strangers)
    assert found is not None
    assert found.pairs == 0
    interval = welch.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((welch.pvalue, interval.low, interval.high), rel=1e-9)


def test_of_one_run_nothing_is_said_and_of_what_does_not_spread_no_p() -> None:
    assert difference({0: 0.5}, {0: 0.6, 1: 0.7}) is None
    found = difference({0: 0.5, 1: 0.5}, {0: 0.25, 1: 0.25})
    assert found is not None
    assert found.mean == 0.25
    assert math.isnan(found.p)


def test_the_test_keeps_its_level() -> None:
    """Of two sides that do not differ, one in twenty is told apart."""
    import numpy

    draws = numpy.random.default_rng(0).normal(size=(2000, 2, 5))
    for keys in (range(5), range(5, 10)):  # in pairs, and Welch's
        told = [difference(dict(enumerate(a)), dict(zip(keys, b, strict=True))) for a, b in draws.tolist()]
        share = statistics.fmean(each is not None and each.p < 0.05 for each in told)
        assert 0.03 < share < 0.07


def test_several_p_are_corrected_as_holm_does() -> None:
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_fewer_than_three_runs_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    for window in ("w2", "w4"):
        left(f"{window}0", "seed=0", f"window={window}", accuracy=0.1 * int(window[1]))
    main([str(RUNS)])
    assert "one run each: whether a difference is real cannot be said" in capsys.readouterr().out
    for window in ("w2", "w4"):
        left(f"{window}1", "seed=1", f"window={window}", accuracy=0.11 * int(window[1]))
    main([str(RUNS)])
    told = capsys.readouterr().out
    assert "? 2 of 2 rows have fewer than 3 runs" in told
    assert re.search(r"\d\.\d{3}\?", told)


def test_what_should_not_be_compared_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    left("a", "window=w2", summary={"git": "b" * 40, "device_name": "a GPU"})
    left("b", "window=w4")
    main([str(RUNS)])
    told = capsys.readouterr().out
    assert "of 2 revisions of the code" in told
    assert "of 2 devices, whose images/s and seconds do not compare" in told


# Conditions and mistakes


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("optimizer.lr<1e-3", "a"),
        ("optimizer.lr<=0.001", "ab"),
        ("optimizer.lr>5e-4", "b"),
        ("model=tiny", "b"),
        ("model!=tiny", "a"),
        ("val/accuracy>=0.6", "b"),
        ("state=complete", "ab"),
        ("augmentation.policy=null", "ab"),
        ("model.depths=[2,2]", "a"),
        ("window.shift=true", "ab"),
        ("optimizer.momentum>0", ""),
    ],
)
def test_conditions(text: str, names: str) -> None:
    left("a", "model=nano", "optimizer.lr=0.0005", accuracy=0.5)
    left("b", "model=tiny", "optimizer.lr=0.001", accuracy=0.6)
    left("c", "optimizer=sgd", "model=small", "optimizer.lr=10")
    runs = [run for run in find([RUNS]) if run.path.name != "c" or text == "optimizer.momentum>0"]
    kept = [run.path.name for run in selected(runs, [text])]
    assert "".join(name for name in kept if name != "c") == names


def test_conditions_are_read_with_spaces_too() -> None:
    assert condition(" val/accuracy >= 0.9 ") == ("val/accuracy", ">=", 0.9)
    assert condition("optimizer.lr<1e-3") == ("optimizer.lr", "<", 0.001)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["by=window.sise"],
            "by=window.sise: the runs have no such key; they differ in window.size. Type by=window.size",
        ),
        (["by=size"], "by=size: the runs have no such key; they differ in window.size. Type by=window.size"),
        (
            ["by=windw.size"],
            "by=windw.size: the runs have no such key; they differ in window.size. Type by=window.size",
        ),
        (
            ["by=augmentatoin"],
            "by=augmentatoin: the runs have no such key; they differ in window.size. Type by=augmentation\n",
        ),
        (["by=pach.size"], "by=pach.size: the runs have no such key; they differ in window.size. Type by=patch.size"),
        (["metric=val/acuracy"], "metric=val/acuracy: the runs have no such key; they have test/accuracy, "),
        (["metric=state"], "metric=state: is no number. Type metric=val/accuracy"),
        (["where=optimizer.lr"], "where=optimizer.lr: a key, one of < <= > >= = !=, and a value. Type 'where="),
        (
            ["where=optimzer.name=sgd"],
            "where=optimzer.name=sgd: the runs have no such key; they differ in window.size. Type where=optimizer.name=sgd",
        ),
        (["where=optimiser.lr<1"], "where=optimiser.lr<1: the runs have no such key"),
        (["where=seed<abc"], "where=seed<abc: seed is a number. Type 'where=seed<0'"),
        (["where=optimizer.name<3"], "where=optimizer.name<3: optimizer.name is adamw, which is not compared so."),
        (["where=seed>7"], "where=seed>7: no run is left; seed is 0"),
        (["base=window.size=8"], "base=window.size=8: no group is called so; window.size is one of "),
        (["nowhere"], "nowhere: is no folder. Type a run's folder, or one of several: outputs/runs/"),
        (["--csv"], "--csv: there are no options but KEY=VALUE. Type csv=VALUE"),
        (["--hepl"], "--hepl: there are no options but KEY=VALUE. Type --help"),
        (["-x"], "-x: there are no options but KEY=VALUE. Type for example html=compare.html"),
        (["csv=no/where.csv"], "csv=no/where.csv: there is no folder no. Type csv=compare.csv"),
        (["top=0"], "top=0: at least 1 row. Type top=20"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    left("a", "window=w2", "seed=0")
    left("b", "window=w4", "seed=1")
    with pytest.raises(SystemExit) as ended:
        main([str(RUNS), *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"swinexp: {told}")


def test_runs_of_different_objectives_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    left("a", "objective=val/accuracy")
    left("b", "objective=val/loss")
    left("c", "objective=val/loss")
    with pytest.raises(SystemExit) as ended:
        main([str(RUNS)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "swinexp: metric: the runs have different objectives, val/accuracy (1 runs) and val/loss (2 runs). "
        "Type metric=val/loss\n"
    )
    assert compared(metric="val/accuracy").metric == "val/accuracy"


def test_what_has_no_complete_run_says_so() -> None:
    (left("a") / "summary.json").unlink()
    with pytest.raises(Mistake, match=r"no run here is complete \(1 unfinished\)"):
        compared()


# What comes out


def test_a_file_for_tables_holds_every_run() -> None:
    left("a", "window=w2", "seed=1", accuracy=0.25)
    left("b", "window=w4", summary={"pruned": True})
    found = compared()
    rows = [*csv.DictReader(io.StringIO(as_csv(found.runs, found.metric, ["window.size"])))]
    assert [(row["run"], row["state"], row["window.size"], row["val/accuracy"], row["seed"]) for row in rows] == [
        ("outputs/runs/a", "complete", "2", "0.25", "1"),
        ("outputs/runs/b", "pruned", "4", "0.5", "0"),
    ]


def test_it_has_the_keys_by_which_only_other_runs_differ(tmp_path: Path) -> None:
    left("a", "window=w2", accuracy=0.25)
    left("b", "window=w2", accuracy=0.5, summary={"pruned": True})
    left("c", "window=w2", "optimizer=sgd", "optimizer.momentum=0.5", summary={"pruned": True})
    (left("d") / "config.yaml").write_text("[")  # which has none that can be read
    main([str(RUNS), f"csv={tmp_path / 'all.csv'}"])
    with (tmp_path / "all.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert {row["run"]: row["optimizer"] for row in rows if row["optimizer"]} == {
        "outputs/runs/a": "adamw",
        "outputs/runs/b": "adamw",
        "outputs/runs/c": "sgd",
    }
    assert "window" not in rows[0]


def test_a_terminal_gets_the_columns_that_it_has_room_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    for seed in range(2):
        left(f"a{seed}", "model=nano", f"seed={seed}", accuracy=0.5 + seed / 9)
        left(f"b{seed}", "model=tiny", f"seed={seed}", accuracy=0.6 + seed / 7)
    main([str(RUNS)])
    whole = capsys.readouterr().out.splitlines()
    assert whole[1].split()[-1] == "images/s"
    assert len(whole[1]) > 70
    monkeypatch.setenv("FORCE_COLOR", "1")
    main([str(RUNS)])
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[1].split() == ["model", "val/accuracy", "n", "difference", "p"]
    assert max(map(len, lines[1:4])) <= 70


def test_the_page_needs_nothing_beside_it_and_hides_no_run() -> None:
    pytest.importorskip("matplotlib")
    for seed in range(2):
        left(f"a{seed}", "model=nano", f"seed={seed}", accuracy=0.5 + seed / 9)
        left(f"b{seed}", "model=tiny", f"seed={seed}", accuracy=0.6 + seed / 7)
    (left("<script>alert(1)") / "summary.json").write_text("{")
    main([str(RUNS), "html=compare.html"])
    page = Path("compare.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)|@import|url\(""", page)
    assert page.count("data:image/png;base64,") == 4
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    for name in ("a0", "a1", "b0", "b1"):
        assert f"outputs/runs/{name}" in page


def test_without_matplotlib_the_page_has_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    left("a")
    monkeypatch.setattr("swinexp.compare.page.find_spec", lambda _: None)
    main([str(RUNS), "html=compare.html"])
    assert "matplotlib, which draws, is not installed" in Path("compare.html").read_text()


@pytest.mark.slow
def test_a_thousand_runs_of_300_epochs_take_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds of this process, which other work on the machine does not count in."""
    first = left("0")
    text = (first / "config.yaml").read_text()
    row = (first / "metrics.jsonl").read_text().splitlines()[0]
    history = "".join(row.replace('"epoch": 1', f'"epoch": {epoch + 1}') + "\n" for epoch in range(300))
    summary = (first / "summary.json").read_text().replace(f'"epochs": {EPOCHS}', '"epochs": 300')
    for number in range(1000):
        folder = RUNS / str(number)
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(re.sub(r"(?m)^seed: \d+", f"seed: {number}", text))
        (folder / "metrics.jsonl").write_text(history)
        (folder / "summary.json").write_text(summary)
    began = time.process_time()
    main([str(RUNS)])
    assert time.process_time() - began < 5
    assert capsys.readouterr().out.startswith("1000 runs: 1000 complete")


@pytest.mark.slow
def test_what_a_run_leaves_in_its_folder_and_with_wandb_is_the_same(command: Command) -> None:
    arguments = [each for each in DONE if each not in ("wandb=disabled", "name=done")]
    for seed in (0, 1):
        done = command(*arguments, "wandb=offline", f"seed={seed}", f"name=seed{seed}")
        assert done.returncode == 0, done.stderr
    own = find([RUNS])
    offline = find(["outputs/wandb"])
    assert [run.state for run in (*own, *offline)] == [COMPLETE] * 4
    for one, other in zip(own, offline, strict=True):
        assert one.wandb == other.wandb
        assert one.curve("val/accuracy") == other.curve("val/accuracy")
        keys = ("val/accuracy", "test/accuracy", "flops", "train/images_per_second", "git", "device_name")
        assert {key: one.summary[key] for key in keys} == {key: other.summary[key] for key in keys}
        assert dict(one.config) == dict(other.config)
    assert len(find(["outputs"])) == 2  # each once
    assert varied([*own, *offline]) == []
    assert os.listdir("outputs/wandb")


def test_a_folder_without_runs_is_left_out_unless_it_is_all(capsys: pytest.CaptureFixture[str]) -> None:
    left("a", "window=w2", "seed=0")
    Path("outputs/sweeps/bare").mkdir(parents=True)
    main(["outputs/sweeps/bare", str(RUNS)])
    out = capsys.readouterr().out
    assert re.search(r"not among them:\n +failed +outputs/sweeps/bare +\(there is no run in it\)", out)
    with pytest.raises(SystemExit) as ended:
        main(["outputs/sweeps/bare"])
    assert ended.value.code == 2
    line = (
        "swinexp: outputs/sweeps/bare: there is no run in it. Type a run's folder, or one of several: outputs/runs/a\n"
    )
    assert capsys.readouterr().err == line
