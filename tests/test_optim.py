from __future__ import annotations

import math

import pytest
import torch

from swinexp.mistake import Mistake
from swinexp.optim import SGD, AdamW, Constant, Cosine, build_optimizer, lr_scale
from tests.conftest import network

SWIN = network(16, 3, model={"dim": 16, "depths": [2], "heads": [1]}, window={"size": 2}, patch={"size": 4})


def test_weight_decay_is_for_matrices_and_kernels() -> None:
    optimizer = build_optimizer(AdamW("adamw", 1e-3, 0.05, (0.9, 0.99), 1e-8), SWIN)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in SWIN.named_parameters():
        plain = name.endswith(("bias", "relative_position_bias_table")) or "norm" in name
        assert decay.pop(id(p)) == (0.0 if plain else 0.05), name
    assert not decay


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_twenty_steps_follow_the_papers(name: str) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3).double()
    lr, decay = 0.01, 0.1
    if name == "adamw":
        optimizer = build_optimizer(AdamW("adamw", lr, decay, (0.9, 0.99), 1e-8), layer)
    else:
        optimizer = build_optimizer(SGD("sgd", lr, decay, 0.9, True), layer)
    weight = layer.weight.detach().clone()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 21):
        x = torch.randn(5, 4, dtype=torch.float64)
        optimizer.zero_grad()
        layer(x).pow(2).sum().backward()
        assert layer.weight.grad is not None
        gradient = layer.weight.grad.clone()
        optimizer.step()
        if name == "adamw":  # arXiv 1711.05101, algorithm 2
            first = 0.9 * first + 0.1 * gradient
            second = 0.99 * second + 0.01 * gradient**2
            update = (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-8)
            weight = weight * (1 - lr * decay) - lr * update
        else:
            gradient = gradient + decay * weight
            first = gradient if step == 1 else 0.9 * first + gradient
            weight = weight - lr * (gradient + 0.9 * first)
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-10, atol=1e-12)


def test_cosine_warms_up_peaks_and_ends_at_its_final_share() -> None:
    schedule = Cosine("cosine", 5, 0.01)
    assert lr_scale(schedule, 0.5, 25) == pytest.approx(0.1)
    assert lr_scale(schedule, 5, 25) == 1
    assert lr_scale(schedule, 15, 25) == pytest.approx(0.01 + 0.99 * 0.5)
    assert lr_scale(schedule, 10, 25) == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi / 4)) / 2)
    assert lr_scale(schedule, 25, 25) == pytest.approx(0.01)


def test_constant_stays_at_the_peak_after_warming_up() -> None:
    schedule = Constant("constant", 2)
    assert [lr_scale(schedule, epoch, 10) for epoch in (1, 2, 5, 10)] == [0.5, 1, 1, 1]
    assert lr_scale(Constant("constant", 0), 0.01, 10) == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdamW("adamw", 0.0, 0.05, (0.9, 0.99), 1e-8), "optimizer.lr=0.0: it must be positive"),
        (lambda: AdamW("adamw", math.nan, 0.05, (0.9, 0.99), 1e-8), "optimizer.lr=nan: it must be positive"),
        (lambda: AdamW("adamw", 1e-3, -1, (0.9, 0.99), 1e-8), "optimizer.weight_decay=-1"),
        (lambda: AdamW("adamw", 1e-3, 0.05, (0.9,), 1e-8), r"optimizer.betas=\[0.9\]: two numbers"),  # type: ignore[arg-type]
        (lambda: SGD("sgd", 0.1, 0.0, 1.0, False), "optimizer.momentum=1.0"),
        (lambda: SGD("sgd", 0.1, 0.0, 0.0, True), "optimizer.nesterov=true: .* Type optimizer.nesterov=false"),
        (lambda: Cosine("cosine", -1, 0.0), "schedule.warmup_epochs=-1"),
        (lambda: Cosine("cosine", 1, 2.0), "schedule.final=2.0"),
    ],
)
def test_mistakes(build: object, message: str) -> None:
    with pytest.raises(Mistake, match=message):
        build()  # type: ignore[operator]
