"""A batch in parts, a thread for each, is the whole batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swinexp.swin import Swin, by_threads
from swinexp.swin.threads import ENOUGH
from tests.conftest import SMALL_NETWORK, network


@pytest.fixture(autouse=True)
def _three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("swinexp.swin.threads.ENOUGH", 8 * small().work)  # eight images for a thread
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def small(**groups: dict[str, Any]) -> Swin:
    torch.manual_seed(0)
    sizes = {**SMALL_NETWORK, "drop_path": 0.4}
    return network(model=sizes | groups.pop("model", {}), **groups).double()


def images(count: int = 26) -> Tensor:
    return torch.randn(count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def parts_seen(model: Swin) -> list[tuple[int, str, int]]:
    """Filled in the course of time: images, thread and cores of it whenever the first block is called."""
    seen: list[tuple[int, str, int]] = []

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append((len(inputs[0]), threading.current_thread().name, torch.get_num_threads()))

    model.layers[0].blocks[0].register_forward_pre_hook(look)  # type: ignore[index, union-attr]
    return seen


def results(model: Swin, whole: bool, factors: Tensor | None) -> list[Tensor | None]:
    """Logits and all gradients."""
    model.zero_grad()
    logits = model(images(), factors) if whole else by_threads(model, images(), factors)
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad for p in model.parameters())]


def assert_same(model: Swin, factors: Tensor | None) -> None:
    for mine, whole in zip(results(model, False, factors), results(model, True, factors), strict=True):
        assert (mine is None) == (whole is None)
        if mine is not None and whole is not None:
            torch.testing.assert_close(mine, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "groups",
    [
        {},
        {"attention": {"similarity": "cosine", "position_bias": "continuous"}, "block": {"placement": "res_post"}},
        {"patch": {"embedding": "conv"}},  # whose statistics are the whole batch's
        {"patch": {"embedding": "spt", "absolute_position": True}},
    ],
)
def test_logits_and_gradients_are_those_of_the_whole_batch(groups: dict[str, dict[str, Any]]) -> None:
    model = small(**groups).train()
    factors = model.draw_drop_path(26, torch.Generator().manual_seed(2))
    assert_same(model, factors)
    assert_same(model.eval(), None)


def test_three_threads_take_a_part_each_with_a_core_each() -> None:
    model = small()
    seen = parts_seen(model)
    by_threads(model, images()).sum().backward()
    assert sorted(count for count, _, _ in seen) == [8, 9, 9]
    assert len({name for _, name, _ in seen}) == 3
    assert {cores for _, _, cores in seen} == {1}
    assert torch.get_num_threads() == 3


def test_few_images_have_fewer_threads_with_more_cores() -> None:
    model = small()
    seen = parts_seen(model)
    torch.set_num_threads(4)
    by_threads(model, images(17))
    assert sorted(count for count, _, _ in seen) == [8, 9]
    assert {cores for _, _, cores in seen} == {2}


@pytest.mark.parametrize("how", ["few images", "one core", "compiled", "not a Swin"])
def test_what_is_not_worth_it_goes_the_plain_way(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small().eval()
    monkeypatch.setattr("swinexp.swin.threads._team", lambda *_: 1 / 0)
    inputs = images(15 if how == "few images" else 26)
    if how == "one core":
        torch.set_num_threads(1)
    if how == "compiled":
        model.compile(backend="eager")
    logits = by_threads(model.forward if how == "not a Swin" else model, inputs)
    torch.testing.assert_close(logits, model.forward(inputs), rtol=1e-12, atol=1e-12)


def test_nothing_is_recorded_without_gradients() -> None:
    model = small().eval()
    with torch.no_grad():
        logits = by_threads(model, images())
    assert not logits.requires_grad
    torch.testing.assert_close(logits, model(images()).detach(), rtol=1e-12, atol=1e-12)


def test_frozen_parameters_get_no_gradient() -> None:
    model = small()
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith(("head", "layers.1")))
    factors = model.draw_drop_path(26, torch.Generator().manual_seed(2))
    assert_same(model.train(), factors)
    for p in model.parameters():
        p.requires_grad_(False)
    assert not by_threads(model, images()).requires_grad


def test_drop_path_draws_once_for_the_whole_batch() -> None:
    model = small().train()
    torch.manual_seed(3)
    first = by_threads(model, images())
    torch.manual_seed(3)
    assert torch.equal(by_threads(model, images()), first)
    torch.manual_seed(3)
    factors = model.draw_drop_path(26, torch.default_generator)
    torch.testing.assert_close(model(images(), factors), first, rtol=1e-12, atol=1e-12)
    assert not torch.equal(by_threads(model, images()), first)


def test_gradients_are_the_same_to_the_last_bit_every_time() -> None:
    model = small().float().eval()
    inputs = images(96).float()
    found = []
    for _ in range(5):
        model.zero_grad()
        by_threads(model, inputs).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert all(torch.equal(gradient, found[0]) for gradient in found)


def test_autocast_reaches_the_threads() -> None:
    model = small().float().eval()
    inputs = images().float()
    with torch.autocast("cpu", torch.bfloat16):
        logits = by_threads(model, inputs)
        logits.float().sum().backward()
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(inputs), rtol=0, atol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_error_in_a_thread_is_raised_here() -> None:
    model = small()

    def fail(*_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("in a thread")

    model.layers[1].register_forward_pre_hook(fail)  # type: ignore[index]
    with pytest.raises(ValueError, match="in a thread"):
        by_threads(model, images())


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    model = small().eval()
    weight = model.head.weight
    (first,) = torch.autograd.grad(by_threads(model, images()).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_thread_has_enough_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swinexp.swin.threads.ENOUGH", ENOUGH)  # as it is
    monkeypatch.setattr("swinexp.swin.threads._team", lambda *_: 1 / 0)
    by_threads(small(), images(128))
    assert network().work == pytest.approx(242_759_424, rel=0.1)  # the reference: fvcore counts as many
    with pytest.raises(ZeroDivisionError):
        by_threads(network(), images(32).float())
