from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swinexp.data import Dataset, HostSplit, Split, place
from swinexp.mistake import Mistake
from swinexp.train import prepare, train
from tests.conftest import small_run
from tests.published import option

CPU = torch.device("cpu")


@pytest.fixture
def split() -> Split:
    return Split(torch.randint(256, (17, 3, 4, 4), dtype=torch.uint8), torch.arange(17))


def test_a_split_yields_every_image_once(split: Split) -> None:
    batches = list(split.batches(5))
    assert [len(batch) for batch in batches] == [5, 5, 5, 2]
    assert torch.equal(torch.cat([batch.images for batch in batches]), split.images)


def test_batches_from_the_host_are_those_of_the_device(split: Split) -> None:
    host, device = place(split, "host", CPU), place(split, "device", CPU)
    assert isinstance(host, HostSplit)
    assert not isinstance(device, HostSplit)
    orders = [torch.randperm(17).split(4), torch.randperm(17).split(1), (), (torch.arange(3),)]
    for order in orders:
        pairs = list(zip(host.each(order), device.each(order), strict=True))
        assert len(pairs) == len(order)
        for here, there in pairs:
            assert torch.equal(here.images, there.images)
            assert torch.equal(here.labels, there.labels)
    for here, there in zip(host.batches(5), device.batches(5), strict=True):
        assert torch.equal(here.images, there.images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
def test_batches_from_the_host_are_those_of_a_gpu() -> None:
    gpu = torch.device("cuda", 0)
    images = torch.randint(256, (4096, 3, 64, 64), dtype=torch.uint8)
    split = Split(images, torch.arange(4096))
    order = torch.randperm(4096).split(256)
    for batch, index in zip(HostSplit(images, split.labels, gpu).each(order), order, strict=True):
        torch.cuda._sleep(5_000_000)  # the device falls behind the host, which must not overwrite what it waits for
        images_sum = batch.images.long().sum(dim=(1, 2, 3))
        assert batch.images.device == gpu
        assert torch.equal(batch.labels.cpu(), index)
        assert torch.equal(images_sum.cpu(), images[index].long().sum(dim=(1, 2, 3)))
    host = list(HostSplit(images, split.labels, gpu).each(order))  # all at once, none waited for
    device = list(split.to(gpu).each([index.to(gpu) for index in order]))
    assert all(torch.equal(here.images, there.images) for here, there in zip(host, device, strict=True))


def test_the_host_is_one_batch_ahead(split: Split) -> None:
    sent = []

    def order() -> object:
        for k in range(4):
            sent.append(k)
            yield torch.tensor([k])

    batches = HostSplit(split.images, split.labels, CPU).each(order())  # type: ignore[arg-type]
    for k in range(4):
        assert next(batches).labels.tolist() == [k]
        assert sent == list(range(min(k + 2, 4)))
    assert next(batches, None) is None


def test_auto_on_a_cpu_is_the_memory_that_it_has(split: Split) -> None:
    assert not isinstance(place(split, "auto", CPU), HostSplit)


def test_auto_on_a_gpu_takes_half_of_what_is_free(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    size = split.nbytes
    assert size == 17 * (48 + 8)
    there = []
    monkeypatch.setattr(Split, "to", lambda _, device: there.append(device))
    gpu = torch.device("cuda", 0)
    for free, stays in ((2 * size, False), (2 * size - 1, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10 * free))
        assert isinstance(place(split, "auto", gpu), HostSplit) == stays
    assert there == [gpu]


def test_what_does_not_fit_is_a_mistake(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Split, "to", full)
    with pytest.raises(Mistake, match=r"data.placement=device: 17 images \(0.0 GB\) do not fit .* data.placement=host"):
        place(split, "device", torch.device("cuda", 0))


def test_the_test_split_stays_on_the_host(split: Split) -> None:
    dataset = Dataset(["a"], split, split, split, torch.zeros(3), torch.ones(3)).to(CPU, "device")
    assert isinstance(dataset.test, HostSplit)
    assert isinstance(dataset.test.to(CPU), HostSplit)
    assert torch.equal(torch.cat([batch.labels for batch in dataset.test.batches(4)]), split.labels)


def test_a_run_is_the_same_run_wherever_its_images_lie(tmp_path: Path) -> None:
    figures = []
    for placement in ("device", "host"):
        run = small_run(f"data.placement={placement}", "trainer.epochs=1", "trainer.limit_train=100", "test=true")
        model, dataset = prepare(run)
        assert isinstance(dataset.train, HostSplit) == (placement == "host")
        result = train(run, model, dataset, tmp_path / placement / "last.pt", lambda *_: None)
        figures.append({key: value for key, value in result.items() if "second" not in key})
    assert figures[0] == figures[1]


def test_placement_is_one_of_three(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="data.placement=gpu: one of auto, device, host. Type data.placement=auto"):
        option("digits", tmp_path, placement="gpu")
