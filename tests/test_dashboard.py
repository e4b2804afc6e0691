"""W&B's pages as code: they show what runs have, say what came of a sweep, and are brought up to date in place."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swinexp import HERE
from swinexp.dashboard.__main__ import main
from swinexp.dashboard.panels import library
from swinexp.dashboard.subject import Subject, subject
from swinexp.dashboard.workspace import workspace
from tests.conftest import SMALL
from tests.test_track import inspect
from tests.wandb_server import KEY, Server

STUDY = "lr,model=nano"  # the library would read its = as an operator
SWEEP = (
    *("-m", "hydra/sweeper=swinexp_optuna", *SMALL, "wandb=offline", "trainer.epochs=2"),
    *("optimizer.lr=tag(log,interval(1e-5,1e-2))", "window=w2,w4,w2_noshift", "trainer.label_smoothing=0.0,0.1"),
    *(f"hydra.sweeper.study_name='{STUDY}'", "hydra.sweeper.n_trials=4", "hydra.sweeper.top_k=1"),
    *("hydra.sweeper.top_seeds=2", "hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.lower=0.15"),
    "hydra.sweeper.enqueue=[{optimizer.lr: 2e-3, window: w4, trainer.label_smoothing: 0.0}, "
    "{optimizer.lr: 1e-5, window: w2, trainer.label_smoothing: 0.1}]",
)


def started(module: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=cwd)


def dashboard(*arguments: str) -> subprocess.CompletedProcess[str]:
    return started("swinexp.dashboard", *arguments)


@pytest.fixture(scope="module")
def swept_place(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Where a sweep was, whose best point has a second seed, and of which a trial is pruned."""
    place = tmp_path_factory.mktemp("swept")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "SWINEXP_", "HYDRA_"))}
    env |= {"SWINEXP_CACHE": str(cache), "PYTHONPATH": str(HERE.parent), "HOME": str(place)}
    command = [sys.executable, "-m", "swinexp.run", *SWEEP]
    subprocess.run(command, check=True, capture_output=True, cwd=place, env=env, timeout=300)
    return place


@pytest.fixture
def swept(swept_place: Path, tmp_path: Path) -> Path:
    """Its folder, in a test's own copy of all that it left."""
    shutil.copytree(swept_place / "outputs", tmp_path / "outputs", symlinks=True)
    return Path("outputs", "sweeps", STUDY)


def parts(spec: Any) -> Iterator[dict[str, Any]]:
    """Every mapping within a spec."""
    if isinstance(spec, dict):
        yield spec
    for each in spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ():
        yield from parts(each)


def addressed(spec: Any) -> dict[str, set[str]]:
    """{history, summary, config: the keys that a spec's panels, groups and columns address}."""
    found: dict[str, set[str]] = {"history": set(), "summary": set(), "config": set(), "run": set()}

    def accessor(text: str) -> None:
        section, _, name = text.partition(":")
        found[section].add(name)

    for part in parts(spec):
        kind, config = part.get("viewType"), part.get("config", {})
        if kind == "Run History Line Plot":
            found["history"] |= {config["xAxis"], *config["metrics"]}
            found["config"] |= {config["groupBy"]} if "groupBy" in config else set()
        elif kind == "Scatter Plot":
            accessor(config["xAxis"])
            accessor(config["yAxis"])
        elif kind == "Parallel Coordinates Plot":
            for column in config["columns"]:
                accessor(column["accessor"])
        elif kind == "Parameter Importance":
            found["summary"].add(config["targetKey"])
        elif kind == "Bar Chart":
            found["summary"] |= set(config["metrics"])
        for key in part.get("grouping", []):
            found[key["section"]].add(key["name"])
        for key in part.get("sort", {}).get("keys", []):
            found[key["key"]["section"]].add(key["key"]["name"])
        for column in part.get("columnOrder", []):
            accessor(column)
    return found


def value_at(config: dict[str, Any], path: str) -> Any:
    """As W&B keeps a config: what is in `a.value.b` was logged as {"a": {"b": …}}."""
    first, _, rest = path.partition(".value")
    found = config[first]
    for name in filter(None, rest.split(".")):
        found = found[name]
    return found


@pytest.mark.slow
def test_every_panel_shows_what_the_runs_have(swept: Path) -> None:
    done = dashboard(f"study={STUDY}", "--offline")
    assert (done.returncode, done.stderr) == (0, "")
    files = [swept / "dashboard" / name for name in ("workspace.json", "report.json", "report.md")]
    assert done.stdout.splitlines() == [str(file) for file in files]
    runs = sorted(Path("outputs/wandb").glob("offline-run-*"))
    assert len(runs) == 5  # four trials, and one on a second seed
    seen, history = inspect(runs[0])
    for file in files[:2]:
        keys = addressed(json.loads(file.read_text()))
        assert keys["history"] <= {*history[-1]}
        assert {"val/accuracy", "val/loss", "train/loss", "train/lr"} <= keys["history"]
        assert keys["summary"] <= {*seen["summary"]}
        assert {"best/val/accuracy", "flops", "train/images_per_second", "val/accuracy"} <= keys["summary"]
        paths = {"options.value.window", "optimizer.value.lr", "trainer.value.label_smoothing"}
        assert paths <= keys["config"]
        for path in keys["config"]:
            assert value_at(seen["config"], path) is not None


@pytest.mark.slow
def test_a_workspace_is_of_the_sweeps_runs_alone_and_groups_them_by_what_varied(swept: Path) -> None:
    spec = json.loads(workspace(subject(str(swept), None, None))._to_model().spec.model_dump_json(by_alias=True))
    (runs,) = spec["section"]["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["op"], only["value"]) == ("group", "=", STUDY)
    # The seed is not among them: what was trained on several is one group, a mean with a band.
    grouping = ["optimizer.value.lr", "options.value.window", "trainer.value.label_smoothing"]
    assert [key["name"] for key in runs["grouping"]] == grouping
    sections = {section["name"]: section["panels"] for section in spec["section"]["panelBankConfig"]["sections"]}
    assert [*sections] == ["Outcome", "Curves", "Compare", "Health"]
    grouped = [panel["config"] for panel in sections["Curves"] if panel["config"]["groupBy"]]
    assert {each["groupBy"] for each in grouped} == {"options.value.window", "trainer.value.label_smoothing"}  # not lr
    assert {(each["groupAgg"], each["groupArea"]) for each in grouped} == {("mean", "stddev")}
    (comparer,) = sections["Compare"]
    assert comparer["viewType"] == "Run Comparer"
    assert "gpu_memory" not in json.dumps(sections["Health"])  # no GPU was there


@pytest.mark.slow
def test_the_report_says_what_came_of_it_and_how_to_have_it_again(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dashboard(f"study={swept}", "offline=true").returncode == 0
    text = (swept / "dashboard" / "report.md").read_text()
    headings = ["Summary", "Best", "The best trials", "What mattered", "What was varied"]
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == headings
    assert re.search(r"maximize val/accuracy: \d complete, \d pruned; \d+ epochs", text)
    assert "(mean ± standard deviation of 2 seeds)" in text
    assert re.search(r"^\| 0 \| 0\.\d+ ± [\d.e-]+ \| 2 \| 0\.002 \| w4 \| 0 \| 2 \|$", text, re.MULTILINE)
    assert "val/accuracy: nothing can be said (no two complete trials have different values)." in text  # one is there
    assert "- `optimizer.lr`: tag(log,interval(1e-5,1e-2))" in text
    from_best, anywhere = re.findall(r"^OMP_NUM_THREADS=(\d+) python (.+)$", text, re.MULTILINE)
    expected = json.loads((swept / "0" / "summary.json").read_text())["val/accuracy"]
    for threads, command in (from_best, anywhere):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        done = started(*shlex.split(command)[1:], "wandb=disabled", "name=again")
        assert done.returncode == 0, done.stderr
        assert json.loads(Path("outputs/runs/again/summary.json").read_text())["val/accuracy"] == expected
        shutil.rmtree("outputs/runs/again")
    spec = json.loads((swept / "dashboard" / "report.json").read_text())
    assert text.partition("## Best\n\n")[2].partition("\n\n##")[0].strip() in [
        part["content"].strip() for part in parts(spec) if part.get("type") == "markdown-block"
    ]
    filters = [each["filters"]["filters"][0]["value"] for each in parts(spec) if "runFeed" in each]
    assert filters == [STUDY, STUDY]


@pytest.mark.slow
@pytest.mark.usefixtures("swept")
def test_saving_again_changes_the_same_pages(wandb_server: Server) -> None:
    first = dashboard(f"study={STUDY}")
    assert (first.returncode, first.stderr) == (0, "")
    (view,), (report,) = wandb_server.views.values(), wandb_server.reports.values()
    assert (view["displayName"], view["entityName"], view["projectName"]) == ("Sweep lr,model:nano", "me", "swinexp")
    assert (report["displayName"], report["entityName"], report["projectName"]) == (f"Sweep {STUDY}", "me", "swinexp")
    assert addressed(view["spec"])["summary"] >= {"best/val/accuracy", "flops"}
    addresses = re.findall(rf"{wandb_server.url}/me/swinexp\S+", first.stdout)
    assert [address.partition("?nw=")[1] for address in addresses] == ["?nw=", ""]
    again = dashboard(f"study={STUDY}")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert len(wandb_server.views) == len(wandb_server.reports) == 1
    assert next(iter(wandb_server.views.values()))["id"] == view["id"]
    elsewhere = dashboard("project=other", "entity=team")
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert len(wandb_server.views) == 2
    assert len(wandb_server.reports) == 1  # of a sweep
    assert wandb_server.unknown == []


@pytest.mark.slow
def test_a_server_that_is_away_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    done = dashboard("project=one", "entity=me")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("swinexp: W&B could not be asked (")
    assert line.endswith("the same command tries again, offline=true writes the pages into files instead")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["project=one"],
            "no API key is configured. Type wandb login; or offline=true writes the pages into files instead",
        ),
        (
            ["study=nowhere", "--offline"],
            "study=nowhere: no sweep's folder. Type one that has a study.json, such as outputs/sweeps/NAME",
        ),
        (["study=s1", "--ofline"], "--ofline: there are no options but --offline and --help. Type --offline"),
        (["--hepl"], "--hepl: there are no options but --offline and --help. Type --help"),
        (["--project=one"], "--project=one: there are no options but --offline and --help. Type project=one"),
        (
            ["project=a/b", "--offline"],
            "project=a/b: 1 to 128 characters without / \\ # ? % :. Type project=swinexp",
        ),
        (["export=ray"], "export=ray: one of wandb_sweep. Type export=wandb_sweep"),
        (
            ["stdy=one"],
            "stdy=one: no such key; there are study, project, entity, offline. Type study=one",
        ),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"swinexp: {line}\n"


def test_without_the_library_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swinexp.dashboard.panels.find_spec", lambda _: None)
    with pytest.raises(SystemExit) as stop:
        main(["project=one"])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told == "swinexp: wandb-workspaces is not installed. Type pip install 'swinexp[dashboard]'\n"


def test_a_projects_workspace_has_all_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    main(["--offline"])
    spec = json.loads(Path("outputs/dashboard/ours/workspace.json").read_text())
    (runs,) = spec["section"]["runSets"]
    assert runs["filters"]["filters"] == []
    assert {"options.value.model", "optimizer.value.lr"} <= addressed(spec)["config"]


def test_several_objectives_are_all_there() -> None:
    of = Subject("swinexp", None, ["val/accuracy", "flops"], [])
    kinds = library("reports.v2").ParameterImportancePlot
    outcome = workspace(of).sections[0].panels
    assert [panel.with_respect_to for panel in outcome if isinstance(panel, kinds)] == ["val/accuracy", "flops"]
