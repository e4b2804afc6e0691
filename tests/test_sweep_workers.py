"""Several workers have their share of the machine each, are started again when killed, and are told when to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swinexp.mistake import Ended, Mistake
from swinexp.sweep import workers as module
from swinexp.sweep.liveness import birth
from swinexp.sweep.workers import WORKER, Processes, gpus, is_worker, orphaned, shares


def test_workers_take_the_gpus_in_turn() -> None:
    found = shares(4, 2, ["0", "1"], 16, {})
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["0", "1", "0", "1"]
    assert shares(2, 1, ["GPU-a", "GPU-b"], 16, {}) == [
        {"CUDA_VISIBLE_DEVICES": "GPU-a"},
        {"CUDA_VISIBLE_DEVICES": "GPU-b"},
    ]


@pytest.mark.parametrize(
    ("jobs", "per_gpu", "devices", "line"),
    [
        (3, 1, ["0", "1"], "hydra.sweeper.n_jobs=3: there are 2 GPUs, and hydra.sweeper.per_gpu=1. Type hydra.sweeper.n_jobs=2, or hydra.sweeper.per_gpu=2"),
        (7, 3, ["0", "1"], "hydra.sweeper.n_jobs=7: there are 2 GPUs, and hydra.sweeper.per_gpu=3. Type hydra.sweeper.n_jobs=6, or hydra.sweeper.per_gpu=4"),
    ],
)  # fmt: skip
def test_more_workers_than_the_gpus_take_are_a_mistake(jobs: int, per_gpu: int, devices: list[str], line: str) -> None:
    with pytest.raises(Mistake) as told:
        shares(jobs, per_gpu, devices, 16, {})
    assert str(told.value) == line


def test_what_that_message_says_to_type_works() -> None:
    assert len(shares(6, 3, ["0", "1"], 16, {})) == 6
    assert len(shares(7, 4, ["0", "1"], 16, {})) == 7


@pytest.mark.parametrize(("jobs", "cores", "threads"), [(4, 16, "4"), (3, 16, "5"), (8, 2, "1"), (1, 2, "2")])
def test_without_gpus_workers_share_the_cores(jobs: int, cores: int, threads: str) -> None:
    assert shares(jobs, 1, [], cores, {}) == [{"OMP_NUM_THREADS": threads}] * jobs


def test_a_number_of_threads_that_is_given_holds() -> None:
    assert shares(2, 1, [], 16, {"OMP_NUM_THREADS": "3"}) == [{"OMP_NUM_THREADS": "3"}] * 2


@pytest.mark.parametrize(("visible", "found"), [("0,2", ["0", "2"]), ("", []), ("-1", []), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])])  # fmt: skip
def test_the_gpus_are_those_that_are_visible(visible: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == found


def test_birth_tells_the_living_from_the_dead() -> None:
    born = birth(os.getpid())
    assert isinstance(born, int)
    assert birth(os.getpid()) == born
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    first = birth(process.pid)
    assert first is not None
    assert first >= born
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not waited for
    assert birth(process.pid) is None
    process.communicate()
    assert birth(process.pid) is None


def test_a_name_with_brackets_and_spaces_is_no_trouble(tmp_path: Path) -> None:
    odd = tmp_path / "a) b (c"
    odd.symlink_to("/bin/cat")
    process = subprocess.Popen([odd], stdin=subprocess.PIPE)
    assert isinstance(birth(process.pid), int)
    process.communicate()


def test_a_worker_whose_parent_is_another_process_is_orphaned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_worker()
    assert not orphaned()
    monkeypatch.setenv(WORKER, str(os.getppid()))
    assert is_worker()
    assert not orphaned()
    monkeypatch.setenv(WORKER, str(os.getpid()))
    assert orphaned()


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Processes]:
    """Workers that run a piece of Python, in which `say` counts how often it was started."""

    def make(code: str, count: int = 1) -> Processes:
        head = "import os, sys, time, pathlib\nstarts = pathlib.Path('starts')\nstarts.open('a').write('x')\nn = len(starts.read_text())\n"
        monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", head + code])
        monkeypatch.setattr(module, "gpus", list)
        return Processes(count, 1, tmp_path / "workers", 12.5)

    return make


def nothing() -> None:
    pass


def test_workers_know_whose_they_are_and_when_it_began(start: Callable[..., Processes], tmp_path: Path) -> None:
    looks = []
    start("print(os.environ['SWINEXP_WORKER'], os.environ['SWINEXP_BEGAN'], os.environ['OMP_NUM_THREADS'])", 2).run(
        lambda: looks.append(1)
    )
    for index in range(2):
        words = (tmp_path / "workers" / f"worker{index}.log").read_text().split()
        assert words[:2] == [str(os.getpid()), "12.5"]
        assert int(words[2]) >= 1
    assert looks


def test_a_killed_worker_is_started_again(start: Callable[..., Processes], tmp_path: Path) -> None:
    start("if n < 3: os.kill(os.getpid(), 9)").run(nothing)
    assert (tmp_path / "starts").read_text() == "xxx"


def test_a_worker_that_is_killed_again_and_again_ends_the_command(
    start: Callable[..., Processes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_KILLS", 2)
    with pytest.raises(Ended, match="worker0 ended without a word"):
        start("os.kill(os.getpid(), 9)").run(nothing)
    assert (tmp_path / "starts").read_text() == "xxx"


@pytest.mark.parametrize(("code", "kind"), [(2, Mistake), (1, Ended)])
def test_what_a_worker_said_last_is_what_the_command_says(
    code: int, kind: type[Exception], start: Callable[..., Processes], tmp_path: Path
) -> None:
    workers = start(f"print('first'); print('swinexp: x=1: it is wrong', file=sys.stderr); sys.exit({code})")
    with pytest.raises(kind) as told:
        workers.run(nothing)
    assert str(told.value) == "x=1: it is wrong"
    assert (tmp_path / "starts").read_text() == "x"  # it is not tried again


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_passed_on_and_waited_for(
    number: signal.Signals, code: int, start: Callable[..., Processes], tmp_path: Path
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    workers = start(
        "import signal\n"
        "def stop(*_):\n    time.sleep(0.3); pathlib.Path('ended').touch(); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path('ready').touch()\nwhile True: time.sleep(0.05)"
    )

    def send() -> None:
        if (tmp_path / "ready").exists() and not workers.asked:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt, match=f"stopped by {number.name}") as told:
        workers.run(send)
    assert told.value.exit_code == code  # type: ignore[attr-defined]
    assert (tmp_path / "ended").exists()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_while_they_are_being_started_reaches_all(
    start: Callable[..., Processes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = start("time.sleep(60)", 3)
    begin = subprocess.Popen

    def begun(*arguments: Any, **more: Any) -> subprocess.Popen[bytes]:
        process = begin(*arguments, **more)
        os.kill(os.getpid(), signal.SIGINT)  # before it is known
        return process

    monkeypatch.setattr(module.subprocess, "Popen", begun)
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        found.run(nothing)
    assert time.monotonic() - before < 30
    assert [path.name for path in (tmp_path / "workers").iterdir()] == ["worker0.log"]


def test_a_second_signal_ends_them_at_once(start: Callable[..., Processes], tmp_path: Path) -> None:
    workers = start(
        "import signal\n"
        "signal.signal(signal.SIGINT, lambda *_: pathlib.Path('asked').touch())\n"
        "pathlib.Path('ready').touch()\nwhile True: time.sleep(0.05)"
    )

    def send() -> None:
        if not workers.asked:
            wanted = "ready"
        elif len(workers.asked) == 1:
            wanted = "asked"
        else:
            return
        if (tmp_path / wanted).exists():
            os.kill(os.getpid(), signal.SIGINT)

    guard = threading.Timer(60, lambda: [process.kill() for process in workers.running.values()])
    guard.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        workers.run(send)
    guard.cancel()
    assert time.monotonic() - began < 60
    assert len(workers.asked) == 2
    assert (tmp_path / "starts").read_text() == "x"


IN_A_DESTRUCTOR = """
import signal
import time
from swinexp.sweep.jobs import heed_sigterm

class Object:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

heed_sigterm()
try:
    Object()
    time.sleep(10)
except KeyboardInterrupt as stopped:
    print(stopped.exit_code)
"""


def test_a_job_is_stopped_by_a_sigterm_that_came_in_a_destructor() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_DESTRUCTOR], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(128 + signal.SIGTERM)
    assert done.stderr == ""
