from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from swinexp.mistake import Mistake
from swinexp.swin import Swin, by_threads
from swinexp.train import derive, evaluate, prepare, summarise, train
from swinexp.train.evaluation import EVALUATION_BATCH
from tests.conftest import STRONG, Record, small_run, trained

STEPS = 4  # of an epoch: 200 images, batches of 50


def test_the_seed_decides_every_bit(tmp_path: Path) -> None:
    first = trained(tmp_path / "1/last.pt", *STRONG)
    torch.rand(3)  # whatever else the process drew
    second = trained(tmp_path / "2/last.pt", *STRONG)
    other = trained(tmp_path / "3/last.pt", *STRONG, "seed=1")
    assert first[0] == second[0]
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert first[0] != other[0]


def test_watch_hears_of_every_epoch_once_and_after_resuming_of_all(tmp_path: Path) -> None:
    run = small_run()
    model, dataset = prepare(run)
    seen = Record()

    def prune(epoch: int, metrics: Mapping[str, float]) -> None:
        seen(epoch, metrics)
        if epoch == 2:
            raise RuntimeError("pruned")

    with pytest.raises(RuntimeError, match="pruned"):
        train(run, model, dataset, tmp_path / "last.pt", watch=prune)
    assert seen.epochs == [1, 2]
    again = Record()
    train(run, *prepare(run), tmp_path / "last.pt", watch=again)
    assert again.epochs == [1, 2, 3]
    assert again.metrics[:2] == seen.metrics
    assert set(seen.metrics[0]) >= {
        "train/loss",
        "train/lr",
        "val/loss",
        "val/accuracy",
        "train/images_per_second",
        "val/images_per_second",
    }


def test_a_finished_run_trains_no_further(tmp_path: Path) -> None:
    first, weights = trained(tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    again, same = trained(tmp_path / "last.pt")
    assert again == first
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_it_learns(tmp_path: Path) -> None:
    figures, _ = trained(
        tmp_path / "last.pt", "model.dim=32", "trainer.epochs=15", "trainer.limit_train=1000", "optimizer.lr=3e-3"
    )
    assert figures["val/accuracy"] > 0.75
    assert figures["epochs"] == 15
    assert figures["best/val/accuracy"] >= figures["val/accuracy"]


def test_the_first_epochs_may_be_of_smaller_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import swinexp.train.step as step

    seen: list[tuple[str, Tensor]] = []

    def record(network: Swin, images: Tensor, *rest: Tensor | None) -> Tensor:
        seen.append((f"{network.image_size}", images))
        return by_threads(network, images, *rest)

    monkeypatch.setattr(step, "by_threads", record)
    small, _ = trained(tmp_path / "small/last.pt", "trainer.small_epochs=2")
    whole, _ = trained(tmp_path / "whole/last.pt")
    assert [network for network, _ in seen] == ["(8, 8)"] * 2 * STEPS + ["(16, 16)"] * 4 * STEPS
    for (_, scaled), (_, images) in zip(seen[:STEPS], seen[3 * STEPS : 4 * STEPS], strict=True):
        torch.testing.assert_close(scaled, images.unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean((3, 5)))
    assert small["train/loss"] != whole["train/loss"]
    assert small["epochs"] == whole["epochs"]


def batches(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[list[list[bytes]], list[Any]]:
    """The images of each step of two epochs as they go into augmentation, and which of them are to be mirrored."""
    import swinexp.train.batches as module

    seen: list[list[bytes]] = []
    mirrored: list[Any] = []

    def record(config: object, images: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        *_, flips, size, _ = rest
        assert isinstance(size, int)
        for batch in images.split(size):
            seen.append([image.numpy().tobytes() for image in batch])
        mirrored.extend([] if flips is None else flips.split(size))  # type: ignore[attr-defined]
        return module_augment(config, images, *rest)  # type: ignore[arg-type]

    module_augment = module.augment
    monkeypatch.setattr(module, "augment", record)
    run = small_run("trainer.epochs=2", *overrides)
    model, dataset = prepare(run)
    train(run, model, dataset, Path("last.pt"), watch=lambda *_: None)
    return seen, mirrored


def test_repeats_put_several_views_of_an_image_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = batches(monkeypatch, "augmentation.repeats=5")
    assert len(seen) == 2 * 4  # as many steps as without
    for batch in seen:
        assert len(batch) == 50
        assert batch[::5] == batch[4::5]
        assert len(set(batch)) == 10
    first, second = ({image for batch in epoch for image in batch} for epoch in (seen[:4], seen[4:]))
    assert len(first) == len(second) == 40
    assert first != second


def test_repeats_need_not_divide_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = batches(monkeypatch, "augmentation.repeats=3", "augmentation.mix=cutmix", "augmentation.erase=0.25")
    for epoch in (seen[:4], seen[4:]):
        views = Counter(image for batch in epoch for image in batch)
        assert sorted(views.values()) == [2, *[3] * 66]
    assert all(len(batch) == 50 for batch in seen)


def test_images_flipped_in_turn_are_mirrored_once_in_two_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, mirrored = batches(monkeypatch, "augmentation.flip=true", "augmentation.flip_in_turn=true")
    flags: dict[bytes, list[bool]] = {}
    for batch, flipped in zip(seen, mirrored, strict=True):
        for image, flag in zip(batch, flipped.tolist(), strict=True):
            flags.setdefault(image, []).append(flag)
    assert all(sorted(each) == [False, True] for each in flags.values())


def test_without_normalisation_training_and_evaluation_see_pixels_from_0_to_1() -> None:
    _, dataset = prepare(small_run("augmentation.normalise=false"))
    assert dataset.mean.tolist() == [0, 0, 0]
    assert dataset.std.tolist() == [1, 1, 1]
    assert prepare(small_run())[1].mean[0] > 0


def test_evaluation_counts_every_image_once_without_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run(*STRONG)
    model, dataset = prepare(run)
    monkeypatch.setitem(EVALUATION_BATCH, "cpu", 100)  # 288 images: the last has 88
    figures = evaluate(run, model, dataset.val, dataset, "val")
    model.eval()
    pixels = (dataset.val.images.float() / 255 - dataset.mean[:, None, None]) / dataset.std[:, None, None]
    with torch.no_grad():
        logits = model(pixels)
    loss = torch.nn.functional.cross_entropy(logits, dataset.val.labels).item()
    assert figures["val/loss"] == pytest.approx(loss, rel=1e-5)
    assert figures["val/accuracy"] == (logits.argmax(1) == dataset.val.labels).double().mean().item()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "trainer.batch_size=500",
            "trainer.batch_size=500: there are only 200 training images. Type trainer.batch_size=128",
        ),
        (
            "trainer.small_epochs=3",
            "trainer.small_epochs=3: 0 to 2, for the last of trainer.epochs=3 is of whole images. Type trainer.small_epochs=1",
        ),
        (
            "trainer.small_size=8",
            r"trainer.small_size=8: no epoch is of smaller images \(trainer.small_epochs=0\). Type trainer.small_epochs=1",
        ),
        ("trainer.small_epochs=1 trainer.small_size=9", "trainer.small_size=9: patches and stages fit smaller images of 8 pixels. Type trainer.small_size=8"),
        ("trainer.small_epochs=1 data.image_size=24 window.size=3", "trainer.small_size=null: half of 24 pixels, and patches and stages fit smaller images of 8, 16 pixels. Type trainer.small_size=8"),
        ("trainer.small_epochs=1 patch.size=8 window.size=1", "trainer.small_epochs=1: no image of less than 16 pixels fits the network's patches and stages. Type trainer.small_epochs=0"),
        ("trainer.small_epochs=1 patch.absolute_position=true", r"trainer.small_epochs=1: learnt absolute positions are of one size \(patch.absolute_position=true\). Type patch.absolute_position=false"),
        ("trainer.device=tpu", "trainer.device=tpu: one of auto, cpu, cuda, cuda:N"),
        ("trainer.device=cuda:77", r"trainer.device=cuda:77: this machine has \d+ CUDA GPUs"),
    ],
)  # fmt: skip
def test_mistakes(overrides: str, message: str) -> None:
    with pytest.raises(Mistake, match=message):
        prepare(small_run(*overrides.split()))


@pytest.mark.parametrize(("warmup", "told"), [(4, "to 25 % of its peak"), (1, "to 100 % of its peak"), (0.5, None)])
def test_a_warm_up_that_fills_the_run_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, warmup: float, told: str | None
) -> None:
    trained(tmp_path / "last.pt", "trainer.epochs=1", f"schedule.warmup_epochs={warmup}")
    assert (f"the lr only rises, {told}" if told else "") in caplog.text
    assert ("only rises" in caplog.text) is (told is not None)


def test_a_warm_up_ends_at_what_the_schedule_has_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path / "last.pt", "trainer.epochs=1", "schedule=one_cycle", "schedule.warmup_epochs=2")
    last = torch.load(tmp_path / "last.pt", weights_only=True)["optimizer"]["param_groups"][0]["lr"]
    assert last < 0.9e-3
    assert f"the lr only rises, to {100 * last / 1e-3:.0f} % of its peak" in caplog.text


def test_an_lr_of_0_in_every_step_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    only = ("trainer.epochs=1", "trainer.batch_size=200", "schedule=linear", "schedule.warmup_epochs=0")
    trained(tmp_path / "last.pt", *only)
    assert "the lr is 0 in each of the 1 steps, and nothing is learnt. Type schedule=constant" in caplog.text
    caplog.clear()
    trained(tmp_path / "two.pt", *only[:1], "trainer.batch_size=100", *only[2:])
    assert "nothing is learnt" not in caplog.text


@pytest.mark.parametrize("override", ["trainer.precision=tf32", "trainer.fit_memory=true", "trainer.compile=graphs"])
def test_what_has_no_effect_on_a_cpu_is_refused_there_unless_a_run_goes_on(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(Mistake, match=f"^{override}: .* CPU, where it has no effect. Type {key}="):
        prepare(small_run(override))
    prepare(small_run(override), resuming=True)


def test_derived_seeds_differ_by_every_part() -> None:
    seeds = [
        derive(seed, purpose, step) for seed in (0, 1) for purpose in ("order", "drop path") for step in range(100)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(0, "order", 3) == derive(0, "order", 3)


def test_the_summary_tells_last_from_best_and_leaves_out_the_warming_epoch() -> None:
    row = {"train/loss": 1.0, "train/seconds": 2.0, "val/seconds": 0.5, "val/loss": 1.0}
    history = [
        {**row, "val/accuracy": accuracy, "train/images_per_second": speed, "val/images_per_second": 3 * speed}
        for accuracy, speed in [(0.1, 5.0), (0.9, 100.0), (0.8, 120.0), (0.7, 110.0)]
    ]
    figures = summarise(history)
    assert figures["val/accuracy"] == 0.7
    assert (figures["best/val/accuracy"], figures["best/epoch"]) == (0.9, 2)
    assert figures["train/images_per_second"] == 110
    assert figures["val/images_per_second"] == 330
    assert figures["seconds"] == 10
    assert summarise(history[:1])["train/images_per_second"] == 5
    assert summarise(history, small=3)["train/images_per_second"] == 110
    assert summarise(history[:2], small=3)["train/images_per_second"] == 52.5
