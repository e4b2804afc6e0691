"""Every test works in a folder of its own, without network, W&B account or the user's cache."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

import swinexp.run  # registers the resolvers that conf/ uses  # noqa: F401
from swinexp import CONF, HERE
from swinexp.config import Run, typed
from swinexp.mistake import too_late
from swinexp.swin import Attention, Block, Model, Patch, Swin, Window
from swinexp.track import ConsoleHandler
from swinexp.train import prepare, train
from tests.wandb_server import Server, serving

# As `settle` has it; torch reads it at the first product of a GPU, which may be a test's that trains nothing.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# A network and a schedule small enough for a test: 200 digits, two stages, a second an epoch at most.
SMALL = (
    "model.dim=16",
    "model.heads=[1,2]",
    "model.depths=[1,2]",
    "data.image_size=16",
    "augmentation.crop=1",
    "trainer.limit_train=200",
    "trainer.batch_size=50",
    "trainer.epochs=3",
    "trainer.device=cpu",
    "schedule.warmup_epochs=1",
)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _isolated(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "SWINEXP_", "HYDRA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SWINEXP_CACHE", str(cache))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent))
    monkeypatch.chdir(tmp_path)
    yield
    too_late.clear()
    for handler in logging.getLogger().handlers[:]:  # what a run within the test has set up
        if isinstance(handler, ConsoleHandler) or type(handler) is logging.FileHandler:
            logging.getLogger().removeHandler(handler)
            handler.close()


@pytest.fixture
def quiet_optuna() -> Iterator[None]:
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A W&B server of the test's own, which has a key configured for it."""
    with serving() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def config(*overrides: str) -> DictConfig:
    """The composed config of a command, outside Hydra's runtime."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["name=test", *overrides])


def small_run(*overrides: str) -> Run:
    return typed(config(*SMALL, "wandb=disabled", *overrides))


def network(image: int | tuple[int, int] = 32, classes: int = 10, **changes: dict[str, Any]) -> Swin:
    """The reference network without drop path, and with changes of its parts: network(window={"size": 2})."""
    parts: dict[str, Any] = {
        "model": Model(96, [2, 6, 4], [3, 6, 12], 2.0, 0.0, 1e-6, "normal", None, []),
        "window": Window(4, True),
        "patch": Patch(2, "linear", False, "normal"),
        "attention": Attention("dot", "table", "normal", False),
        "block": Block("layer", "pre", None, False),
    }
    changed = {name: replace(part, **changes.pop(name, {})) for name, part in parts.items()}
    assert not changes, changes
    return Swin(**changed, image_size=image, classes=classes)


SMALL_NETWORK = {"dim": 16, "depths": [2, 2], "heads": [2, 4]}


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command() -> Command:
    """`python -m swinexp.run …` in a process of its own, as a user starts it."""

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "swinexp.run", *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            **options,  # type: ignore[call-overload]
        )

    return run


STOPPING = """
import os
import swinexp.train.loop as loop
def train_step(run, state, *rest):
    if state.step == {step}:
        os.kill(os.getpid(), {number})
    plain(run, state, *rest)
plain, loop.train_step = loop.train_step, train_step
from swinexp.run import cli
cli()
"""


def stopped(number: int, step: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that gets a signal just before it has done one more than `step` steps.

    It sends it to itself: whoever watches from outside may be late, and on a fast machine the run is over by then.
    """
    done = subprocess.run(
        [sys.executable, "-c", STOPPING.format(number=int(number), step=step), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == (-number if number == signal.SIGKILL else 128 + number), done.stderr
    return done


class Record:
    """What `watch` is told."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.metrics: list[dict[str, float]] = []

    def __call__(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self.epochs.append(epoch)
        self.metrics.append(dict(metrics))


def timeless(figures: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in figures.items() if "seconds" not in key and "per_second" not in key}


def trained(
    checkpoint: Path, *overrides: str, stop_at: int | None = None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Train a small network (stopped by SIGINT after `stop_at` steps); its figures and its weights."""
    run = small_run(*overrides)
    model, dataset = prepare(run)

    def tick(step: int, _: float) -> None:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    figures = train(run, model, dataset, checkpoint, watch=Record(), tick=tick)
    return timeless(figures), {name: p.detach().clone() for name, p in model.named_parameters()}


STRONG = ("augmentation=strong", "augmentation.crop=1", "model.drop_path=0.2")


# The command of a finished run with test figures and averaged weights, whose images may be mirrored.
DONE = (
    *SMALL,
    "wandb=disabled",
    "trainer.epochs=2",
    "test=true",
    "trainer.ema=0.9",
    "data.mirror=true",
    "name=done",
)


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The folder of the run `DONE`; tests work on copies of it."""
    place = tmp_path_factory.mktemp("trained")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "SWINEXP_", "HYDRA_"))}
    subprocess.run(
        [sys.executable, "-m", "swinexp.run", *DONE],
        check=True,
        capture_output=True,
        cwd=place,
        env={**env, "SWINEXP_CACHE": str(cache), "PYTHONPATH": str(HERE.parent)},
    )
    return place / "outputs" / "runs" / "done"


@pytest.fixture
def finished(trained_folder: Path) -> Path:
    """A finished run's folder of a test's own: outputs/runs/done."""
    return Path(shutil.copytree(trained_folder, "outputs/runs/done"))
