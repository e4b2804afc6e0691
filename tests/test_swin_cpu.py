"""The ways of an eager CPU give what the plain code gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from swinexp.swin import cpu
from tests.conftest import network


def plain_attention(qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind(0)
    return ((q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v).transpose(2, 3).flatten(3)


def close_gradients(
    by_hand: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: tuple[Tensor, ...], within: float
) -> None:
    """Equal values and gradients, whichever of the inputs need one."""
    for needing in [range(len(inputs)), *([i] for i in range(len(inputs)))]:
        results = []
        for function in (by_hand, plain):
            leaves = [x.clone().requires_grad_(i in needing) for i, x in enumerate(inputs)]
            out = function(*leaves)
            out.square().sum().backward()
            results.append([out, *(x.grad for x in leaves)])
        for mine, expected in zip(*results, strict=True):
            assert (mine is None) == (expected is None)
            assert mine is None or torch.allclose(mine, expected, rtol=within, atol=within)


@pytest.mark.parametrize("shape", [(3, 4, 4), (5, 3, 4, 4)])
def test_attention_by_hand_is_attention(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    qkv, bias = torch.randn(2, 5, 4, 3 * 6).double(), torch.randn(shape).double()
    close_gradients(partial(cpu.attend, heads=3), partial(plain_attention, heads=3), (qkv, bias), 1e-12)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    inputs = torch.randn(2, 5, 4, 18, requires_grad=True), torch.randn(3, 4, 4, requires_grad=True)
    first, _ = torch.autograd.grad(cpu.attend(*inputs, 3).square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_an_image_that_drops_a_branch_is_left_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = network(model={"drop_path": 0.6, "depths": [2, 2], "heads": [3, 6]}).double().train()
    images = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    factors = model.draw_drop_path(5, torch.Generator().manual_seed(2))
    assert factors is not None
    factors[2, 0] = 0  # a branch that all leave out
    kept = factors.ne(0).sum(2).flatten().tolist()
    seen: list[int] = []
    for block in (block for stage in model.stages() for block in stage.blocks):
        for layer in (block.norm1, block.norm2):
            layer.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))  # type: ignore[union-attr]
    results = []
    for by_hand in (True, False):
        if not by_hand:
            monkeypatch.setattr("swinexp.swin.layers.by_hand", lambda _: False)
        model.zero_grad()
        out = model(images, factors)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in model.parameters())])
    assert seen == [count or 5 for count in kept] + [5] * 8
    assert len(set(seen[:8])) > 2
    for mine, plain in zip(*results, strict=True):
        assert mine is not None
        assert plain is not None
        torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-12)


def test_compiled_and_autocast_models_take_torchs_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
    monkeypatch.setattr(cpu._Attention, "forward", lambda *_: 1 / 0)
    with torch.no_grad():
        graph = torch.compile(model, fullgraph=True, backend="eager")(images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(images)
        rounded.float().sum().backward()
    assert torch.allclose(graph, expected, atol=1e-5)
    assert torch.allclose(rounded.float(), expected, atol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
