"""The ways of a GPU give what the plain code gives."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from swinexp.config import typed
from swinexp.swin import gpu, operators
from swinexp.train import build_model
from tests.conftest import config, network
from tests.kernels import MAPS, WINDOWS, check_operators, compile_kernels, differences

CASES = 2 * len(WINDOWS) + 2 * len(MAPS) + 1
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_triton = pytest.mark.skipif(not gpu.TRITON, reason="needs triton")


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs them")
def test_the_kernels_compute_what_the_plain_code_does() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "tests.kernels"],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    apart = json.loads(told.stdout)
    assert len(apart) == CASES
    assert all(most < 2e-6 for most in apart.values()), apart


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_without_a_gpu(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert len(compile_kernels(capability)) == 9


@needs_gpu
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_the_kernels_compute_it_on_a_gpu(dtype: torch.dtype, most: float) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    apart = dict(differences(torch.device("cuda"), dtype))
    assert len(apart) == CASES
    assert all(value < most for value in apart.values()), apart


@pytest.mark.parametrize("changes", [[], ["layer_scale"], ["swinv2"], ["rms_norm"], ["depthwise_conv"]])
def test_tokens_stay_in_bf16(changes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "kernels_run", lambda *_: False)
    model = build_model(typed(config("model=nano", *(f"block={each}" for each in changes))), classes=10)
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)  # torch.autocast does not where no GPU is
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    kinds = []
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):  # tensors of a GPU without values
            model._apply(lambda tensor: torch.empty_like(tensor, device="cuda"))
            for stage in model.stages():
                for block in stage.blocks:
                    block.register_forward_hook(lambda _, given, put: kinds.extend([given[0].dtype, put.dtype]))
            model(torch.empty(4, 3, 32, 32, device="cuda"))
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
    assert kinds
    assert set(kinds) == {torch.bfloat16}


class Recorder:
    """In a kernel's place: what it is compiled for, and launched with."""

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self.compiled: list[object] = []
        self.launched: list[object] = []

    def warmup(self, *given: object, grid: tuple[int, int], **constants: object) -> None:
        self.compiled.append((given, grid, constants))

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        def launch(*arguments: object, **constants: object) -> None:
            given = tuple(each.dtype if isinstance(each, torch.Tensor) else each for each in arguments)
            self.launched.append((given, grid, constants))

        return launch


@needs_triton
def test_kernels_are_compiled_while_a_network_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from swinexp.swin import kernels

    recorders = {
        name: Recorder(name) for name in ("attention", "attention_backward", "convolution", "convolution_backward")
    }
    for name, recorder in recorders.items():
        monkeypatch.setattr(kernels, name, recorder)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(operators, "_being_compiled", {})

    def calls(device: str) -> None:
        def bf16(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.bfloat16, device=device)

        bias, order = torch.zeros(16, 3, 16, 16, device=device), torch.arange(256, device=device)
        weight = torch.zeros(9, 192, device=device)
        torch.ops.swinexp.attend(bf16(5, 256, 288), bias, order, 3)
        torch.ops.swinexp.attend_backward(bf16(5, 256, 96), bf16(5, 256, 288), bias, order, 3)
        inputs = (bf16(5, 256, 192), weight, weight[0], 16, 16, 4, True)
        torch.ops.swinexp.convolve(*inputs)
        torch.ops.swinexp.convolve_backward(bf16(5, 256, 192), *inputs)

    for usable in (False, True):
        monkeypatch.setattr(operators, "THREADS", usable)
        for _ in range(2):  # a compiler asks more than once
            with FakeTensorMode():
                calls("cuda")
        assert len(operators._being_compiled) == (5 if usable else 0)
    calls("cpu")
    assert not operators._being_compiled
    for recorder in recorders.values():
        assert recorder.launched
        assert all(each in recorder.compiled for each in recorder.launched)
    assert sum(len(recorder.compiled) for recorder in recorders.values()) == 5


@needs_gpu
def test_the_operators_are_what_compiling_takes_them_for() -> None:
    check_operators(torch.device("cuda"))


@needs_gpu
def test_gradients_are_the_same_bits_each_time() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(64, 256, 288, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    bias = torch.randn(3, 16, 16, device="cuda", requires_grad=True)
    first, second = (
        torch.autograd.grad(operators.attend(qkv, bias, None, 3).square().sum(), (qkv, bias)) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_gpu
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"block": {"depthwise_conv": True}, "patch": {"embedding": "conv"}, "attention": {"lepe": True}},
        {"window": {"size": 8}},
    ],
)
def test_a_network_on_a_gpu_is_that_of_the_cpu(changes: dict[str, dict[str, object]]) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = network(**changes)
    images = torch.randn(8, 3, 32, 32)
    outcomes = []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        model.zero_grad()
        logits = model(images.to(device))
        logits.square().sum().backward()
        outcomes.append([value.detach().cpu() for value in (logits, *(p.grad for p in model.parameters()))])
    for here, there in zip(*outcomes, strict=True):
        assert (here - there).abs().max() <= 1e-3 * here.abs().max()


def test_what_the_kernels_do_not_know_takes_the_plain_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "on_gpu", lambda _: True)
    x = torch.zeros(2, 256, 96)
    assert gpu.attends(x, 3, 16, None)
    assert gpu.attends(x, 3, 64, torch.arange(256))
    assert not gpu.attends(x, 3, 256, None)  # a window larger than a tile
    assert not gpu.attends(x, 3, 16, torch.arange(400))  # windows that overhang
    assert not gpu.attends(x, 12, 16, None)  # heads of 8 channels


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No GPU was asked yet, and none will have been."""
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    gpu.kernels_run.cache_clear()
    yield
    gpu.kernels_run.cache_clear()


@needs_triton
@pytest.mark.usefixtures("untried")
def test_kernels_that_cannot_be_built_are_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(gpu, "differences_tried", fails)
    assert not gpu.kernels_run(0, torch.bfloat16)
    assert not gpu.kernels_run(0, torch.bfloat16)
    assert [record.getMessage() for record in caplog.records] == [
        "the kernels cannot be built, so that this GPU takes a way that is slower: Failed to find C compiler. "
        "Triton wants a C compiler and Python's headers: apt install gcc python3-dev"
    ]


@needs_triton
@pytest.mark.usefixtures("untried")
def test_a_gpu_without_memory_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(gpu, "differences_tried", full)
    with pytest.raises(torch.OutOfMemoryError):
        gpu.kernels_run(0, torch.bfloat16)
    monkeypatch.setattr(gpu, "differences_tried", lambda *_: 0.0)
    assert gpu.kernels_run(0, torch.bfloat16)


@needs_triton
@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("apart", [0.1, math.inf, math.nan])
def test_kernels_that_give_other_values_are_not_taken(
    apart: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(gpu, "differences_tried", lambda *_: apart)
    assert not gpu.kernels_run(0, torch.bfloat16)
    assert "give other values than the plain code" in caplog.text


@needs_triton
@pytest.mark.usefixtures("untried")
def test_triton_keeps_all_kernels_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    usual = knobs.cache.dir
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(gpu, "differences_tried", lambda *_: 0.0)
    assert gpu.kernels_run(0, torch.bfloat16)
    assert os.environ["TRITON_CACHE_DIR"] == usual
    gpu.kernels_run.cache_clear()
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    assert gpu.kernels_run(0, torch.bfloat16)
    assert os.environ["TRITON_CACHE_DIR"] == "mine"


@pytest.mark.usefixtures("untried")
def test_an_old_gpu_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not gpu.kernels_run(0, torch.bfloat16)


def test_a_cpu_has_no_kernels() -> None:
    assert not gpu.on_gpu(torch.zeros(1))
