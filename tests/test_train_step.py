"""What a step does: parts of a batch, averages, clipping, precision, what is not finite, what does not fit."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator
from torch.utils._python_dispatch import TorchDispatchMode

from swinexp.mistake import Diverged, OutOfMemory
from swinexp.optim import Ema
from swinexp.train import build_state, derive, prepare, train, train_epoch
from swinexp.train.loop import done
from swinexp.train.step import clip, train_step
from tests.conftest import STRONG, Record, small_run, timeless, trained

STEPS = 4  # of an epoch: 200 images, batches of 50


@pytest.mark.parametrize("parts", [2, 7])
def test_a_batch_in_parts_trains_as_the_whole(tmp_path: Path, parts: int) -> None:
    whole, weights = trained(tmp_path / "whole/last.pt", *STRONG, "trainer.epochs=1")
    apart, others = trained(tmp_path / "apart/last.pt", *STRONG, "trainer.epochs=1", f"trainer.accumulate={parts}")
    assert apart["train/loss"] == pytest.approx(whole["train/loss"], rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=2e-5)


def test_drop_path_draws_the_same_for_a_batch_and_its_parts() -> None:
    model, _ = prepare(small_run("model.drop_path=0.5"))
    factors = model.draw_drop_path(6, Generator().manual_seed(0))
    assert factors is not None
    assert factors.shape == (3, 2, 6, 1, 1)  # three blocks
    assert set(factors[-1].unique().tolist()) <= {0.0, 2.0}
    assert factors[0].eq(1).all()  # the first block drops nothing
    images = torch.randn(6, 3, 16, 16)
    model.train()
    whole = model(images, factors)
    parts = [model(images[part], factors[:, :, part]) for part in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert prepare(small_run("model.drop_path=0"))[0].draw_drop_path(6, Generator()) is None


def test_ema_is_the_warmed_up_average_and_is_evaluated_beside_the_weights(tmp_path: Path) -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    ema = Ema(layer, 0.9)
    average = layer.weight.item()
    for step in range(1, 120):
        with torch.no_grad():
            layer.weight.fill_(float(step))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * step
    assert ema.weights["weight"].item() == pytest.approx(average, rel=1e-5)
    with ema.applied():
        assert layer.weight.item() == pytest.approx(average, rel=1e-5)
    assert layer.weight.item() == 119

    plain, weights = trained(tmp_path / "plain/last.pt")
    averaged, same = trained(tmp_path / "ema/last.pt", "trainer.ema=0.5", "test=true", "objective=ema/val/accuracy")
    assert averaged["val/loss"] == plain["val/loss"]
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert averaged["ema/val/loss"] != averaged["val/loss"]
    assert {"ema/test/accuracy", "ema/val/accuracy"} <= set(averaged)


def test_clipping_is_torchs_over_all_and_for_each() -> None:
    torch.manual_seed(0)
    for each in (False, True):
        ours = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 5)]
        theirs = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 5)]
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine) * len(mine)
            other.grad = mine.grad.clone()
        run = small_run("trainer.clip_norm=3", f"trainer.clip_per_tensor={each}")
        whole = torch.cat([p.grad for p in theirs if p.grad is not None]).norm()
        torch.testing.assert_close(clip(run, ours), whole)
        for group in [[p] for p in theirs] if each else [theirs]:
            torch.nn.utils.clip_grad_norm_(group, 3.0)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.grad, other.grad)


def test_training_ends_when_the_accuracy_no_longer_rises(tmp_path: Path) -> None:
    run = small_run("trainer.patience=2", "trainer.epochs=9")
    history = [{"val/accuracy": accuracy} for accuracy in (0.2, 0.5, 0.5, 0.4)]
    assert [done(run, history[:epochs]) for epochs in range(5)] == [False, False, False, False, True]
    small = small_run("trainer.patience=2", "trainer.epochs=9", "trainer.small_epochs=3")
    assert [done(small, history[:epochs]) for epochs in range(5)] == [False] * 5
    assert done(small, [*history, {"val/accuracy": 0.3}])
    figures, _ = trained(tmp_path / "last.pt", "trainer.patience=2", "trainer.epochs=30", "optimizer.lr=1e-12")
    assert figures["epochs"] == 3  # the first is the best of equals
    again, _ = trained(tmp_path / "last.pt", "trainer.patience=2", "trainer.epochs=30", "optimizer.lr=1e-12")
    assert again == figures


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_fp32(tmp_path: Path, precision: str) -> None:
    fp32, _ = trained(tmp_path / "fp32/last.pt", "trainer.epochs=1")
    half, _ = trained(tmp_path / "half/last.pt", "trainer.epochs=1", f"trainer.precision={precision}")
    assert half["val/loss"] != fp32["val/loss"]
    assert half["val/loss"] == pytest.approx(fp32["val/loss"], rel=0.02)


class Counting(TorchDispatchMode):
    """Counts the operations that make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal"):
            self.waits[name] += 1
        return function(*args, **(kwargs or {}))


OPTIMIZERS = ["adamw", "adam", "sgd", "lion", "muon", "schedule_free", "lamb"]


def named(optimizer: str) -> tuple[str, str]:
    """The overrides for an optimizer, and for a schedule that it takes."""
    return f"optimizer={optimizer}", f"schedule={'constant' if optimizer == 'schedule_free' else 'cosine'}"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_never_waits_for_the_device(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_a_gpu(chosen: torch.Tensor, change: Any, images: torch.Tensor, *arguments: Any, **_: Any) -> torch.Tensor:
        return torch.where(chosen.view(-1, *[1] * (images.ndim - 1)), change(images, *arguments), images)

    monkeypatch.setattr("swinexp.augment.spatial.where", as_a_gpu)
    monkeypatch.setattr("swinexp.swin.layers.by_hand", lambda _: False)
    run = small_run(*STRONG, *named(optimizer), "trainer.ema=0.9", "trainer.accumulate=2")
    model, dataset = prepare(run)
    state = build_state(run, model, STEPS)
    train_epoch(run, state, dataset)  # the first step makes the optimizer's state
    state.step = 0
    with Counting() as counting:
        train_epoch(run, state, dataset)
    assert not counting.waits
    with Counting() as counting:  # it does count
        state.losses.sum().item()
    assert counting.waits["_local_scalar_dense"] == 1


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_never_waits_for_the_gpu(optimizer: str) -> None:
    run = small_run(*STRONG, "trainer.device=cuda", *named(optimizer), "trainer.ema=0.9", "trainer.accumulate=2")
    model, dataset = prepare(run)
    state = build_state(run, model, STEPS)
    train_epoch(run, state, dataset)
    state.step = 0
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        train_epoch(run, state, dataset)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def broken_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The loss is nan in these steps, and through its gradient all of the weights would be."""
    import swinexp.train.step as step

    plain, count = step._gradients, 0

    def broken(run: Any, state: Any, *arguments: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        loss = plain(run, state, *arguments)
        if count in steps:
            for p in state.model.parameters():
                p.grad.fill_(math.nan)
            loss = loss * math.nan
        return loss

    monkeypatch.setattr(step, "_gradients", broken)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_at(monkeypatch, STEPS + 3)
    run = small_run()
    record = Record()
    with pytest.raises(Diverged) as diverged:
        train(run, *prepare(run), tmp_path / "last.pt", watch=record)
    first = record.metrics[0]
    assert record.epochs == [1]
    message = str(diverged.value)
    assert message.startswith(f"the loss is not finite at step {STEPS + 3} (epoch 2, lr ")
    assert f"gradient norm nan); epoch 1 had train/loss {first['train/loss']:.4g}, val/loss" in message
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert saved["step"] == STEPS
    assert all(weight.isfinite().all() for weight in saved["model"].values())


def test_steps_that_are_not_finite_can_be_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_at(monkeypatch, 2)
    run = small_run("trainer.on_nan=skip")
    record = Record()
    figures = train(run, *prepare(run), tmp_path / "last.pt", watch=record)
    assert [metrics["train/skipped_steps"] for metrics in record.metrics] == [1, 0, 0]
    assert math.isfinite(figures["train/loss"])
    assert math.isfinite(record.metrics[0]["train/loss"])


@pytest.mark.parametrize("chosen", ["stop", "skip"])
def test_advice_that_was_already_followed_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    broken_at(monkeypatch, *range(1, STEPS + 1))
    run = small_run(f"trainer.on_nan={chosen}")
    with pytest.raises(Diverged, match="the loss is not finite at step 1 ") as diverged:
        train(run, *prepare(run), tmp_path / "last.pt", watch=Record())
    assert ("trainer.on_nan=skip" in str(diverged.value)) is (chosen == "stop")


def test_a_validation_loss_that_is_not_finite_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from swinexp.train import evaluation

    monkeypatch.setattr(evaluation, "evaluate", lambda *_: {"val/loss": math.inf, "val/accuracy": 0.1})
    run = small_run()
    with pytest.raises(Diverged) as diverged:
        train(run, *prepare(run), tmp_path / "last.pt", watch=Record())
    message = str(diverged.value)
    assert message.startswith("the validation loss is not finite after epoch 1 (lr 0.001); it is the first epoch. ")
    assert "step" not in message


def test_a_skipped_step_leaves_no_trace_in_running_statistics() -> None:
    run = small_run("trainer.on_nan=skip", "patch=p2_conv")
    model, _ = prepare(run)
    state = build_state(run, model, STEPS)
    before = {name: value.clone() for name, value in state.running.items()}
    assert len(before) == 4  # mean and variance of two layers
    images = torch.full((8, 3, 16, 16), math.nan)
    train_step(run, state, images, torch.full((8, 10), 0.1), None, 0)
    assert all(torch.equal(value, before[name]) for name, value in state.running.items())
    train_step(run, state, images.nan_to_num(1.0), torch.full((8, 10), 0.1), None, 1)
    assert not any(torch.equal(value, before[name]) for name, value in state.running.items())


def little_memory(monkeypatch: pytest.MonkeyPatch, most: int, where: str = "forward") -> None:
    """A memory that is full when a method of the network is called with more images."""
    from swinexp.swin import Swin

    plain = getattr(Swin, where)

    def method(self: Swin, images: torch.Tensor, *arguments: Any) -> Any:
        if self.training and len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, images, *arguments)

    monkeypatch.setattr(Swin, where, method)


def test_what_does_not_fit_the_memory_is_trained_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, _ = trained(tmp_path / "whole/last.pt", *STRONG, "trainer.accumulate=4")
    little_memory(monkeypatch, 13)
    run = small_run(*STRONG, "trainer.fit_memory=true")  # a CPU may only go on with it
    parts = train(run, *prepare(run, resuming=True), tmp_path / "parts/last.pt", watch=Record())
    assert timeless(parts) == whole
    assert "50 images at once are too many for the memory: going on with 25" in caplog.text
    assert "25 images at once are too many for the memory: going on with 13" in caplog.text
    with pytest.raises(OutOfMemory, match=r"not enough memory for 50 images of trainer.batch_size=50 at once. Type tr"):
        trained(tmp_path / "stopped/last.pt", *STRONG)


def test_a_try_that_does_not_fit_leaves_no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for override, most in (("trainer.accumulate=2", 50), ("trainer.fit_memory=true", 25)):
        run = small_run("patch=p2_conv", "data.image_size=16", override)
        model, _ = prepare(run, resuming=True)
        state = build_state(run, model, 1)
        images, labels = (
            torch.randn(50, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
            torch.full((50, 10), 0.1),
        )
        with monkeypatch.context() as patch:
            little_memory(patch, most, "logits")  # full when the patch embedding has counted its images
            train_step(run, state, images, labels, None, 0)
        found.append(state.running)
    one, other = found
    assert one.keys() == other.keys() != set()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_steps_of_a_seed_are_its_own() -> None:
    assert derive(0, "drop path", 1) != derive(0, "augmentation", 1)


FAULTS = """
import resource
from tests.conftest import small_run
from swinexp.train import build_state, prepare, train_epoch
large = ("model.dim=64", "model.heads=[2,4]", "data.image_size=32", "patch=p2", "trainer.batch_size=200")
run = small_run(*large)
model, dataset = prepare(run)
state = build_state(run, model, 1)
def epoch():
    state.step = 0
    train_epoch(run, state, dataset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = [epoch() for _ in range(8)]
print(sorted(after - before for before, after in zip(counts, counts[1:]))[3])  # the median
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_step_on_the_cpu_asks_for_no_fresh_memory() -> None:
    """Without `keep_memory` this one has some 20,000 to 30,000 page faults, of 4 KiB each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8_000
