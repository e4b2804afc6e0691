"""Compiling: when it is done, what it costs, and that it is done once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from swinexp import HERE
from swinexp.mistake import Mistake
from swinexp.optim import set_lr
from swinexp.optim.muon import MuonAdamW
from swinexp.train import build_model, build_state, compile_model, evaluate, prepare, train
from swinexp.train.devices import COMPILE_PAYS, captures, compiles
from swinexp.train.graph import CapturedUpdate
from tests.conftest import STRONG, small_run, timeless, trained


def test_auto_compiles_what_is_long_and_on_a_gpu() -> None:
    trainer = small_run().trainer
    assert trainer.compile == "auto"
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert compiles(trainer, gpu, COMPILE_PAYS)
    assert not compiles(trainer, gpu, COMPILE_PAYS - 1)
    assert not compiles(trainer, cpu, COMPILE_PAYS)
    assert compiles(small_run("trainer.compile=true").trainer, cpu, 1)
    assert not compiles(small_run("trainer.compile=graphs").trainer, gpu, COMPILE_PAYS)
    assert small_run("trainer.compile=GRAPHS").trainer == small_run("trainer.compile=graphs").trainer
    assert not compiles(small_run("trainer.compile=false").trainer, gpu, COMPILE_PAYS)


def test_a_step_is_a_graph_on_a_gpu_unless_nothing_is_to_be_compiled() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for compile in ("auto", "true", "graphs"):
        trainer = small_run(f"trainer.compile={compile}").trainer
        assert captures(trainer, gpu)
        assert not captures(trainer, cpu)
    assert not captures(small_run("trainer.compile=false").trainer, gpu)
    assert not captures(small_run("trainer.precision=fp16").trainer, gpu)
    assert not captures(small_run("trainer.fit_memory=true").trainer, gpu)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("optimizer", "small"), [("adamw", 0), ("muon", 0), ("sgd", 0), ("adamw", 1), ("muon", 1)])
def test_a_captured_step_is_the_plain_one(
    optimizer: str, small: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = ("model.heads=[1,2]", "patch=p2_conv", "block=depthwise_conv", f"optimizer={optimizer}")
    length = ("trainer.epochs=3", f"trainer.small_epochs={small}")
    overrides = (*STRONG, *kernels, *length, "trainer.device=cuda", "trainer.accumulate=2")
    plain, _ = trained(tmp_path / "plain/last.pt", *overrides, "trainer.compile=false")
    captured, _ = trained(tmp_path / "captured/last.pt", *overrides, "trainer.compile=graphs")
    assert captured.pop("gpu_memory") > 0
    for key, value in captured.items():
        assert value == pytest.approx(plain[key], rel=1e-4), key
    assert "cannot be captured" not in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_recording_an_optimizers_step_leaves_no_trace(name: str) -> None:
    run = small_run(*STRONG, f"optimizer={name}", "trainer.device=cuda")
    model, _ = prepare(run)
    optimizer = build_state(run, model, 4).optimizer
    gradients = [torch.randn_like(p) for p in model.parameters()]
    for begun in (False, True):  # and of a state that was resumed
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            p.grad = gradient.clone()
        if begun:
            optimizer.step()
        before = [value.clone() for value in (*model.parameters(), *tensors(optimizer))]
        update = CapturedUpdate(optimizer)
        after = [*model.parameters(), *tensors(optimizer)]
        before += [torch.zeros_like(value) for value in after[len(before) :]]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
        for scale in (0.5, 0.1):
            set_lr(optimizer, scale)
            update()
        captured = [value.clone() for value in after]
        with torch.no_grad():
            for value, kept in zip(after, before, strict=True):
                value.copy_(kept)
        for scale in (0.5, 0.1):
            set_lr(optimizer, scale)
            optimizer.step()
        for value, other in zip(after, captured, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-7)
    assert all(isinstance(group["lr"], float) for group in optimizer.param_groups)


@pytest.mark.parametrize("begun", [False, True])
def test_an_optimizers_step_that_cannot_be_taken_leaves_no_trace(begun: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def wait_stream(self, _: object) -> None:
            """It has nothing to do."""

    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: Stream())
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    run = small_run(*STRONG, "optimizer=muon", "trainer.device=cpu")
    model, _ = prepare(run)
    optimizer = build_state(run, model, 4).optimizer
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    if begun:
        optimizer.step()
    before = [value.clone() for value in (*model.parameters(), *tensors(optimizer))]
    assert isinstance(optimizer, MuonAdamW)
    assert optimizer.rest is not None

    def full() -> None:
        state = optimizer.state[next(iter(model.patch_embed.parameters()))]
        state.setdefault("step", torch.zeros(())).add_(1)  # and, of a state that was not there yet, no more of it
        raise torch.OutOfMemoryError

    monkeypatch.setattr(optimizer.rest, "step", full)
    with pytest.raises(torch.OutOfMemoryError):
        CapturedUpdate(optimizer)
    after = [*model.parameters(), *tensors(optimizer)]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    monkeypatch.undo()
    optimizer.step()


def tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value for state in optimizer.state.values() for value in state.values()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_that_cannot_be_captured_is_taken_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import swinexp.train.step as step

    plain = step.clip

    def waits(*arguments: Any) -> torch.Tensor:
        norm = plain(*arguments)
        norm.item()
        return norm

    monkeypatch.setattr(step, "clip", waits)
    figures, _ = trained(tmp_path / "last.pt", *STRONG, "trainer.device=cuda", "trainer.compile=graphs")
    assert figures["train/loss"] > 0
    assert "cannot be captured as a CUDA graph" in caplog.text


def test_one_step_that_cannot_be_captured_leaves_no_graph(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of a graph takes memory of cuBLAS's away from those that were recorded before it (torch 2.14)."""
    import swinexp.train.compiling as compiling

    recorded = []

    def captured(*_: Any) -> str:
        recorded.append("a graph")
        if len(recorded) == 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return recorded[-1]

    monkeypatch.setattr(compiling, "captures", lambda *_: True)
    monkeypatch.setattr(compiling, "Captured", captured)
    monkeypatch.setattr(compiling, "CapturedUpdate", lambda _: "a graph")
    run = small_run("trainer.small_epochs=1")
    model, dataset = prepare(run)
    state = build_state(run, model, 4)
    compile_model(run, state, dataset)
    assert "cannot be captured as a CUDA graph" in caplog.text
    assert len(recorded) == 2
    assert all(way.captured is None and way.update is None for way in state.ways.values())


def test_compiling_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)  # it runs, uncompiled
    run = small_run(*STRONG, "patch=p2_conv", "model.depths=[1,1]", "trainer.compile=true")  # with a BatchNorm
    model, dataset = prepare(run)
    state = build_state(run, model, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seconds = compile_model(run, state, dataset)
    assert seconds is not None
    assert seconds > 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in model.parameters())
    assert not state.optimizer.state


def test_auto_trains_on_where_the_network_cannot_be_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import swinexp.train.compiling as compiling

    def broken(*_: Any) -> torch.Tensor:
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nand a long story")

    plain, _ = trained(tmp_path / "plain/last.pt", *STRONG, "patch=p2_conv")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", broken))
    monkeypatch.setattr(compiling, "compiles", lambda *_: True)
    figures, _ = trained(tmp_path / "auto/last.pt", *STRONG, "patch=p2_conv")
    assert "the network cannot be compiled, so that training is slower: no compiler" in caplog.messages
    assert figures == plain
    with pytest.raises(
        Mistake, match=r"^trainer\.compile=true: the network cannot be compiled \(no compiler\)\. Type "
    ):
        trained(tmp_path / "true/last.pt", *STRONG, "trainer.compile=true")


def test_evaluation_is_compiled_where_there_is_enough_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from swinexp.train import evaluation

    def compiled(*_: Any) -> torch.Tensor:
        raise AssertionError

    run = small_run("trainer.compile=true", "trainer.epochs=5", "trainer.ema=0.9")
    model, dataset = prepare(run)
    split = dataset.val[:100]
    plain = evaluate(run, model, split, dataset, "val")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", compiled))
    model.compile()
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", {"cpu": 50})
    batches = 5 * (len(dataset.val) // 50) * 2
    monkeypatch.setattr(evaluation, "COMPILED_FROM", batches + 1)
    assert evaluate(run, model, split, dataset, "val") == pytest.approx(plain)
    monkeypatch.setattr(evaluation, "COMPILED_FROM", batches)
    with pytest.raises(AssertionError):
        evaluate(run, model, split, dataset, "val")


@pytest.mark.slow
def test_a_network_that_was_compiled_before_is_found_again(tmp_path: Path) -> None:
    program = """
from torch._dynamo.utils import counters
from swinexp.swin import operators, windows
from tests.conftest import STRONG, trained
from pathlib import Path
import sys

if sys.argv[1] == "another function":
    take = windows.take
    windows._Gather.backward = staticmethod(lambda ctx, gradient: (2 * take(gradient, ctx.saved_tensors[1]), None, None))
if sys.argv[1] == "other operators":  # in whose place torch knows a name
    Path("operators.py").write_text(Path(operators.__file__).read_text() + "#")
    operators.__file__ = "operators.py"
trained(Path("last.pt"), *STRONG, "model.depths=[1,1]", "trainer.compile=true", "trainer.epochs=1")
print(counters["aot_autograd"]["autograd_cache_hit"], counters["aot_autograd"]["autograd_cache_miss"])
"""
    told = []
    for name in ("plain", "plain", "another function", "other operators"):
        folder = tmp_path / str(len(told))
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", program, name],
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled"), "PYTHONPATH": str(HERE.parent)},
            cwd=folder, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told.append(done.stdout.split()[-2:])
    assert told == [["0", "1"], ["1", "0"], ["0", "1"], ["0", "1"]]


@pytest.mark.slow
def test_without_a_compiler_one_line_says_so(tmp_path: Path) -> None:
    tiny = ["data=digits", "model=nano", "trainer.limit_train=32", "trainer.batch_size=32", "wandb=disabled"]
    tiny.append("trainer.device=cpu")
    done = subprocess.run(
        [sys.executable, "-m", "swinexp.run", *tiny, "trainer.compile=true"],
        env={**{key: value for key, value in os.environ.items() if key not in ("CC", "CXX")}, "PATH": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("swinexp: trainer.compile=true: the network cannot be compiled (InvalidCxxCompiler: ")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("small", [0, 1])
def test_a_compiled_run_follows_the_plain_one_and_compiles_before_its_first_step(tmp_path: Path, small: int) -> None:
    length = ("trainer.epochs=2", f"trainer.small_epochs={small}")
    overrides = (*STRONG, *length, "trainer.accumulate=2", "model.depths=[1,1]")
    plain, _ = trained(tmp_path / "plain/last.pt", *overrides)
    torch._dynamo.reset()
    graphs: list[int] = []

    def tick(*_: object) -> None:
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    run = small_run(*overrides, "trainer.compile=true", "schedule=cosine")  # the lr changes in every step
    compiled = train(run, *prepare(run), tmp_path / "compiled/last.pt", watch=lambda *_: None, tick=tick)
    assert len(graphs) == 2 * 4
    assert set(graphs) == {graphs[0]}
    assert compiled.pop("compile_seconds") > 0
    for key in ("val/loss", "train/loss"):
        assert timeless(compiled)[key] == pytest.approx(plain[key], rel=1e-3)


TWICE = """
import json
import shutil
from pathlib import Path
import torch
from swinexp.train import prepare, train
from tests.conftest import small_run
run = small_run("trainer.compile=true", "trainer.epochs=1", "model.depths=[1,1]")
figures = train(run, *prepare(run), Path("none/last.pt"), watch=lambda *_: None)
shutil.rmtree("none")
counted = torch._dynamo.utils.counters
hits = {name: counted[group][name] for group in counted for name in counted[group] if "cache" in name}
print(json.dumps({"seconds": figures["compile_seconds"], **hits}))
"""


@pytest.mark.slow
def test_a_second_run_finds_what_the_first_compiled(tmp_path: Path) -> None:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    told = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=400, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = told
    assert first.get("fxgraph_cache_hit", 0) == 0, told
    assert second.get("fxgraph_cache_miss", 0) == 0, told
    assert second["seconds"] < first["seconds"] / 2, told


@pytest.mark.slow
def test_runs_of_one_process_share_data_and_compiled_code_where_they_are_alike(tmp_path: Path) -> None:
    torch._dynamo.reset()
    same = ("trainer.compile=true", "trainer.epochs=1", "schedule.warmup_epochs=0", "model.depths=[1,1]")
    first = small_run(*same)
    second = small_run(*same, "seed=1", "optimizer.lr=3e-3", "model.init=fan_in", "attention=mimetic")
    model, dataset = prepare(first)
    train(first, model, dataset, tmp_path / "first/last.pt", watch=lambda *_: None)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    again, same_data = prepare(second)
    assert again is model
    assert same_data is dataset
    fresh = build_model(second, len(dataset.classes)).state_dict()
    for name, value in again.state_dict().items():
        assert torch.equal(value, fresh[name]), name
    train(second, again, same_data, tmp_path / "second/last.pt", watch=lambda *_: None)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled > 0
    other, other_data = prepare(small_run(*same, "model.drop_path=0.1", "trainer.limit_train=250"))
    assert other is not model
    assert other_data is not dataset


@pytest.mark.slow
def test_every_network_of_a_process_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: plain(self, backend="eager"))
    monkeypatch.setattr("swinexp.train.evaluation.COMPILED_FROM", 0)
    torch._dynamo.reset()
    for dim in range(8, 8 * 7, 8):  # more than the compiler keeps versions of one function
        torch._dynamo.utils.counters.clear()
        run = small_run("trainer.compile=true", "trainer.epochs=1", "schedule.warmup_epochs=0", f"model.dim={dim}")
        train(run, *prepare(run), tmp_path / str(dim) / "last.pt", watch=lambda *_: None)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, dim
