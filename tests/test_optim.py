from __future__ import annotations

import io
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from swinexp.mistake import Mistake
from swinexp.optim import (
    OPTIMIZERS,
    SGD,
    Adam,
    AdamW,
    Lamb,
    Lion,
    Muon,
    Optimizer,
    ScheduleFree,
    averaged,
    build_optimizer,
    is_recordable,
    reading_lr,
    set_lr,
)
from swinexp.optim.muon import orthogonal, side_by_side
from tests.conftest import network

LR, DECAY, BETAS, EPS = 0.01, 0.1, (0.9, 0.99), 1e-8
COMMON = (LR, DECAY, "matrices", 1.0)
OPTIONS: dict[str, Optimizer] = {
    "adamw": AdamW("adamw", *COMMON, BETAS, EPS),
    "adam": Adam("adam", *COMMON, BETAS, EPS),
    "sgd": SGD("sgd", *COMMON, 0.9, True),
    "lion": Lion("lion", *COMMON, BETAS),
    "muon": Muon("muon", *COMMON, BETAS, EPS, 0.95, True, 0.003),
    "schedule_free": ScheduleFree("schedule_free", *COMMON, BETAS, EPS),
    "lamb": Lamb("lamb", *COMMON, BETAS, EPS),
}


def small() -> nn.Module:
    torch.manual_seed(0)
    return network(16, 3, model={"dim": 16, "depths": [1, 1], "heads": [1, 2]}, window={"size": 2}, patch={"size": 4})


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps whose data and lr their number alone decides."""
    for step in steps:
        torch.manual_seed(step)
        set_lr(optimizer, min(1.0, (step + 1) / 5))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()


def test_fp16_that_overflows_in_the_first_step_leaves_no_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    model, plain = small(), small()
    optimizer, unbroken = build_optimizer(OPTIONS["sgd"], model), build_optimizer(OPTIONS["sgd"], plain)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    try:
        for p in model.parameters():
            p.grad = torch.full_like(p, math.inf)
        scaler.step(optimizer)
        scaler.update()
        assert all((state["momentum_buffer"] == 0).all() for state in optimizer.state.values())
    finally:
        torch.use_deterministic_algorithms(False)
    train(model, optimizer, range(3))
    train(plain, unbroken, range(3))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))


def test_every_option_is_tested() -> None:
    assert OPTIONS.keys() == OPTIMIZERS.keys()


# The papers' algorithms, one tensor at a time: (weight, decay, lr) -> a function (t, gradient) that gives the next
# weight that the model holds. The decay of a bias is 0.
Update = Callable[[int, Tensor], Tensor]


def adamw(weight: Tensor, decay: float, lr: Callable[[int], float], coupled: bool = False) -> Update:
    """arXiv 1711.05101, algorithm 2; coupled, arXiv 1412.6980 with an L2 penalty"""
    w, m, v = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)

    def update(t: int, gradient: Tensor) -> Tensor:
        g = gradient + decay * w if coupled else gradient
        m.copy_(0.9 * m + 0.1 * g)
        v.copy_(0.99 * v + 0.01 * g**2)
        move = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + EPS)
        w.copy_(w - lr(t) * (move + (0 if coupled else decay) * w))
        return w

    return update


def sgd(weight: Tensor, decay: float, lr: Callable[[int], float]) -> Update:
    """Nesterov's momentum as torch writes it"""
    w, m = weight.clone(), torch.zeros_like(weight)

    def update(t: int, gradient: Tensor) -> Tensor:
        g = gradient + decay * w
        m.copy_(g if t == 1 else 0.9 * m + g)
        w.copy_(w - lr(t) * (g + 0.9 * m))
        return w

    return update


def lion(weight: Tensor, decay: float, lr: Callable[[int], float]) -> Update:
    """arXiv 2302.06675, algorithm 2"""
    w, m = weight.clone(), torch.zeros_like(weight)

    def update(t: int, g: Tensor) -> Tensor:
        c = 0.9 * m + 0.1 * g
        w.copy_(w - lr(t) * (c.sign() + decay * w))
        m.copy_(0.99 * m + 0.01 * g)
        return w

    return update


def lamb(weight: Tensor, decay: float, lr: Callable[[int], float]) -> Update:
    """arXiv 1904.00962, algorithm 2, with the norm itself for φ; biases without it"""
    w, m, v = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)

    def update(t: int, g: Tensor) -> Tensor:
        m.copy_(0.9 * m + 0.1 * g)
        v.copy_(0.99 * v + 0.01 * g**2)
        r = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + EPS) + decay * w
        w.copy_(w - lr(t) * (w.norm() / r.norm() if w.ndim == 2 else 1) * r)
        return w

    return update


class FreeOfSchedule:
    """arXiv 2405.15682, algorithm 1"""

    def __init__(self, weight: Tensor, decay: float, lr: Callable[[int], float]) -> None:
        self.z, self.x, self.y = weight.clone(), weight.clone(), weight.clone()
        self.v, self.decay, self.lr = torch.zeros_like(weight), decay, lr

    def __call__(self, t: int, g: Tensor) -> Tensor:
        self.v = 0.99 * self.v + 0.01 * g**2
        denominator = (self.v / (1 - 0.99**t)).sqrt() + EPS
        self.z = self.z - self.lr(t) * g / denominator - self.lr(t) * self.decay * self.y
        c = self.lr(t) ** 2 / sum(self.lr(i) ** 2 for i in range(1, t + 1))
        self.x = (1 - c) * self.x + c * self.z
        self.y = 0.1 * self.z + 0.9 * self.x
        return self.y


PAPERS: dict[str, Callable[..., Update]] = {
    "adamw": adamw,
    "adam": lambda *of: adamw(*of, coupled=True),
    "sgd": sgd,
    "lion": lion,
    "lamb": lamb,
    "schedule_free": FreeOfSchedule,
}


def warming(t: int) -> float:
    return LR * min(1.0, t / 5)


@pytest.mark.parametrize("name", PAPERS)
def test_twenty_steps_follow_the_papers(name: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double()
    layer.register_parameter("unused", nn.Parameter(torch.ones(2, 2, dtype=torch.float64)))
    optimizer = build_optimizer(OPTIONS[name], layer)
    weight = PAPERS[name](layer.weight.detach(), DECAY, warming)
    bias = PAPERS[name](layer.bias.detach(), 0.0, warming)
    for t in range(1, 21):
        set_lr(optimizer, min(1.0, t / 5))
        optimizer.zero_grad()
        layer(torch.randn(5, 4, dtype=torch.float64)).pow(2).sum().backward()
        assert layer.weight.grad is not None
        assert layer.bias.grad is not None
        gradients = layer.weight.grad.clone(), layer.bias.grad.clone()
        optimizer.step()
        for parameter, update, gradient in zip((layer.weight, layer.bias), (weight, bias), gradients, strict=True):
            torch.testing.assert_close(parameter.detach(), update(t, gradient), rtol=1e-10, atol=1e-12)
    if isinstance(weight, FreeOfSchedule):
        before = layer.weight.detach().clone()
        with averaged(optimizer):
            torch.testing.assert_close(layer.weight.detach(), weight.x, rtol=1e-10, atol=1e-12)
            assert not torch.equal(layer.weight, before)
        assert torch.equal(layer.weight, before)
    assert torch.equal(layer.unused, torch.ones(2, 2))  # type: ignore[arg-type]


def test_lamb_moves_what_is_zero() -> None:
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    optimizer = build_optimizer(OPTIONS["lamb"], layer)
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert torch.allclose(layer.weight, torch.full((3, 4), -LR))
    layer.weight.grad = torch.zeros(3, 4)
    optimizer.state.clear()
    with torch.no_grad():
        layer.weight.zero_()
    optimizer.step()
    assert torch.equal(layer.weight, torch.zeros(3, 4))


def orthogonalised(g: Tensor) -> Tensor:
    """Five Newton-Schulz steps, as published with their coefficients (kellerjordan.github.io/posts/muon)"""
    x = g / g.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def test_muon_moves_hidden_matrices_and_adamw_the_rest() -> None:
    model = small().double()
    optimizer = build_optimizer(OPTIONS["muon"], model)
    moved = {p: group for group in optimizer.param_groups for p in group["params"]}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    momenta = {name: torch.zeros_like(p) for name, p in before.items()}
    rest = {
        name: adamw(p, 0.0 if p.ndim < 2 or "table" in name else DECAY, lambda _: 0.003) for name, p in before.items()
    }
    matrices = 0
    for t in (1, 2, 3):
        for p in model.parameters():
            # Of full rank: five rounds multiply what is nearly 0 by up to 500, and its rounding with it.
            p.grad = torch.randn_like(p)
        optimizer.step()
        for name, p in model.named_parameters():
            assert p.grad is not None
            if name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight", "reduction.weight")) and (
                "patch_embed" not in name
            ):
                matrices += 1
                assert moved[p]["algorithm"] == "muon", name
                momenta[name] = 0.95 * momenta[name] + 0.05 * p.grad
                step = 0.95 * momenta[name] + 0.05 * p.grad
                step = orthogonalised(step) if len(step) <= step.shape[1] else orthogonalised(step.T).T
                step = 0.2 * math.sqrt(max(step.shape)) * step
                expected = before[name] * (1 - LR * DECAY) - LR * step
                torch.testing.assert_close(p.detach(), expected, rtol=1e-9, atol=1e-12)
                before[name] = p.detach().clone()
            else:
                assert moved[p]["algorithm"] == "adamw", name
                torch.testing.assert_close(p.detach(), rest[name](t, p.grad), rtol=1e-10, atol=1e-12)
    assert matrices == 3 * (4 + 4 + 1)


def test_muon_is_torchs_but_for_its_rounding() -> None:
    """torch iterates in bf16: up to 2 % of a step. Without Nesterov's momentum it would be 40 %."""
    model, ours = small(), small()
    optimizer = build_optimizer(OPTIONS["muon"], ours)
    groups = [group for group in optimizer.param_groups if group["algorithm"] == "muon"]
    name_of = {p: name for name, p in ours.named_parameters()}
    theirs = dict(model.named_parameters())
    theirs = {name_of[p]: theirs[name_of[p]] for group in groups for p in group["params"]}
    peer = torch.optim.Muon(theirs.values(), LR, DECAY, 0.95, nesterov=True, adjust_lr_fn="match_rms_adamw")
    own = dict(ours.named_parameters())
    begin = {name: p.detach().clone() for name, p in theirs.items()}
    for _ in range(3):
        for name, p in theirs.items():
            own[name].grad = p.grad = torch.randn_like(p)
        peer.step()
        optimizer.step()
    for name, p in theirs.items():
        assert (own[name] - p).norm() < 0.03 * (p - begin[name]).norm(), name


def test_matrices_side_by_side_are_each_made_orthogonal() -> None:
    matrices = [torch.randn(8, columns, dtype=torch.float64) for columns in (8, 24, 16)]
    filled = orthogonal(side_by_side(matrices))
    assert filled.shape == (3, 8, 24)
    for matrix, step in zip(matrices, filled, strict=True):
        torch.testing.assert_close(step[:, : matrix.shape[1]], orthogonalised(matrix), rtol=1e-9, atol=1e-12)
        assert not step[:, matrix.shape[1] :].any()


def test_muon_is_content_without_matrices_and_without_a_rest() -> None:
    for kept in ("head.bias", "layers.0.blocks.0.mlp.fc1.weight"):
        model = small()
        for name, p in model.named_parameters():
            p.requires_grad = name == kept
        optimizer = build_optimizer(OPTIONS["muon"], model)
        before = dict(model.named_parameters())[kept].detach().clone()
        train(model, optimizer, range(1))
        assert not torch.equal(dict(model.named_parameters())[kept], before)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_that_can_be_recorded_reads_its_lr_from_a_tensor(name: str) -> None:
    ours, theirs = small(), small()
    optimizer, peer = build_optimizer(OPTIONS[name], ours), build_optimizer(OPTIONS[name], theirs)
    assert is_recordable(optimizer) == (name in ("adamw", "adam", "muon"))
    if not is_recordable(optimizer):
        return
    lrs = [torch.tensor(0.0) for _ in optimizer.param_groups]
    before = [dict(group) for group in optimizer.param_groups]
    for scale in (0.3, 1.0, 0.1):
        for lr, group in zip(lrs, before, strict=True):
            lr.fill_(scale * group["peak_lr"])
        with reading_lr(optimizer, lrs):
            train(ours, optimizer, range(1))
        set_lr(peer, scale)
        train(theirs, peer, range(1))
    assert [{**group, "params": 0} for group in optimizer.param_groups] == [{**group, "params": 0} for group in before]
    for mine, his in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_restored_state_goes_on_to_the_bit(name: str) -> None:
    model = small()
    optimizer = build_optimizer(OPTIONS[name], model)
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, range(3, 7))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = small()
    restored = build_optimizer(OPTIONS[name], again)
    again.load_state_dict(saved["model"])
    restored.load_state_dict(saved["optimizer"])
    train(again, restored, range(3, 7))
    with averaged(optimizer), averaged(restored):
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert optimizer.state[p].keys() == restored.state[q].keys()
        assert all(torch.equal(value, restored.state[q][key]) for key, value in optimizer.state[p].items())


class NothingIsRead(TorchDispatchMode):
    """Raises where a tensor's value is wanted in Python, for which a GPU would have to be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        aten = torch.ops.aten
        assert func not in (aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_waits_for_nothing(name: str) -> None:
    model = small()
    optimizer = build_optimizer(OPTIONS[name], model)
    for _ in range(2):
        model(torch.randn(2, 3, 16, 16)).sum().backward()
        with NothingIsRead():
            optimizer.step()
    with pytest.raises(AssertionError), NothingIsRead():
        torch.ones(()).item()


@pytest.mark.parametrize("name", OPTIONS)
def test_set_lr_scales_every_peak_and_nothing_else(name: str) -> None:
    optimizer = build_optimizer(OPTIONS[name], small())
    before = [{**group} for group in optimizer.param_groups]
    set_lr(optimizer, 0.25)
    for group, old in zip(optimizer.param_groups, before, strict=True):
        assert group["lr"] == 0.25 * group["peak_lr"]
        assert all(group[key] is value for key, value in old.items() if key != "lr")


@pytest.mark.parametrize("name", OPTIONS)
def test_only_the_schedule_free_one_averages(name: str) -> None:
    model = small()
    optimizer = build_optimizer(OPTIONS[name], model)
    with averaged(optimizer):  # before the first step there is nothing else to evaluate
        pass
    train(model, optimizer, range(3))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(KeyboardInterrupt), averaged(optimizer):
        same = [torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
        assert all(same) if name != "schedule_free" else not any(same)
        raise KeyboardInterrupt
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_schedule_free_stays_where_it_is_without_lr() -> None:
    model = small()
    optimizer = build_optimizer(OPTIONS["schedule_free"], model)
    before = [p.detach().clone() for p in model.parameters()]
    set_lr(optimizer, 0.0)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    assert all(torch.allclose(p, q, rtol=1e-6) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: AdamW("adamw", 0.0, 0.05, "matrices", 1.0, BETAS, EPS),
            "optimizer.lr=0.0: it must be positive. Type optimizer.lr=1e-3",
        ),
        (lambda: AdamW("adamw", math.nan, 0.05, "matrices", 1.0, BETAS, EPS), "optimizer.lr=nan: it must be positive"),
        (lambda: AdamW("adamw", LR, -1, "matrices", 1.0, BETAS, EPS), "optimizer.weight_decay=-1: it must not be"),
        (
            lambda: AdamW("adamw", LR, 0.05, "all", 1.0, BETAS, EPS),
            "optimizer.decay=all: one of matrices, all_2d. Type optimizer.decay=all_2d",
        ),
        (
            lambda: AdamW("adamw", LR, 0.05, "matrices", 0.0, BETAS, EPS),
            r"optimizer.layer_decay=0.0: a factor in \(0, 1\].* Type optimizer.layer_decay=0.8",
        ),
        (lambda: AdamW("adamw", *COMMON, (0.9,), EPS), r"optimizer.betas=\[0.9\]: two numbers"),  # type: ignore[arg-type]
        (lambda: Lion("lion", *COMMON, (0.9, 1.0)), r"optimizer.betas=\[0.9,1.0\]: two numbers in \[0, 1\)"),
        (lambda: Lamb("lamb", *COMMON, BETAS, 0.0), "optimizer.eps=0.0: it must be positive. Type optimizer.eps=1e-8"),
        (lambda: SGD("sgd", *COMMON, 1.0, False), "optimizer.momentum=1.0"),
        (lambda: SGD("sgd", *COMMON, 0.0, True), "optimizer.nesterov=true: .* Type optimizer.nesterov=false"),
        (lambda: Muon("muon", *COMMON, BETAS, EPS, -0.1, True, LR), "optimizer.momentum=-0.1: in"),
        (lambda: Muon("muon", *COMMON, BETAS, EPS, 0.95, True, 0.0), "optimizer.adamw_lr=0.0: it must be positive"),
    ],
)
def test_mistakes(build: Callable[[], object], message: str) -> None:
    with pytest.raises(Mistake, match=message):
        build()
