"""Operations and policies, against torchvision's."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Generator, Tensor
from torchvision.transforms import InterpolationMode, autoaugment
from torchvision.transforms import functional as theirs

from swinexp.augment import augment, policies
from swinexp.augment.colour import turn_hue
from swinexp.augment.operations import CODES, GEOMETRIC, OPERATIONS, blend, operate
from swinexp.augment.policies import DRAWN, SIGNED, auto_augment, rand_augment, trivial_augment
from swinexp.augment.spatial import resized_crop, where
from tests.conftest import small_run

PEER = {
    "identity": "Identity", "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX",
    "translate_y": "TranslateY", "rotate": "Rotate", "brightness": "Brightness", "contrast": "Contrast",
    "posterize": "Posterize", "solarize": "Solarize", "autocontrast": "AutoContrast", "equalize": "Equalize",
    "invert": "Invert", "color": "Color", "sharpness": "Sharpness",
}  # fmt: skip


def pictures(height: int = 32, width: int = 32) -> Tensor:
    """Smooth images, and the ones that operations stumble over: of one colour, noise, two values, one bright pixel."""
    generator = Generator().manual_seed(0)
    coarse = torch.rand(24, 3, 5, 5, generator=generator)
    images = (255 * torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")).to(torch.uint8)
    images[0] = 7
    images[1] = torch.randint(256, (3, height, width), generator=generator)
    images[2, :, :, : width // 2] = 0
    images[2, :, :, width // 2 :] = 255
    images[3] = 0
    images[3, 1, 2, 3] = 200
    return images


@pytest.mark.parametrize("size", [(32, 32), (20, 44)], ids=["square", "not square"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions(name: str, size: tuple[int, int]) -> None:
    """At every magnitude of both spaces and in both directions: geometric ones to 1 of 255, the others exactly."""
    images = pictures(*size)
    magnitudes = torch.cat([policies.wide()[CODES[name]], policies.narrow(*size, 31)[CODES[name]]]).unique()
    for magnitude in [*magnitudes.tolist(), *(-magnitudes if name in SIGNED else magnitudes[:0]).tolist()]:
        operation = torch.full((len(images),), CODES[name])
        mine = operate(images, operation, torch.full((len(images),), magnitude))
        for image, changed in zip(images, mine, strict=True):
            expected = autoaugment._apply_op(image, PEER[name], magnitude, InterpolationMode.BILINEAR, None)
            difference = (changed.int() - expected.int()).abs()
            if name in GEOMETRIC:
                assert (difference <= 1).float().mean() >= 0.999, (name, magnitude)
            else:
                assert difference.max() == 0, (name, magnitude)


def test_every_image_of_a_batch_has_its_own_operation_and_magnitude() -> None:
    images = pictures()[4:5].expand(15, -1, -1, -1)
    operation = torch.arange(15)
    magnitude = torch.tensor([policies.wide()[code, 17].item() for code in range(15)])
    together = operate(images, operation, magnitude)
    for i in range(15):
        assert torch.equal(together[i : i + 1], operate(images[:1], operation[i : i + 1], magnitude[i : i + 1]))
    changed = (together != images).flatten(1).any(1)
    assert changed.tolist() == [name != "identity" for name in OPERATIONS]


@pytest.mark.parametrize("option", ["basic", "trivial", "rand", "auto", "strong"])
def test_nothing_waits_for_the_device(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that holds no values: asking it for one is an error, and so is a tensor of the host among its own."""

    def even(_: float, count: int, __: int, device: torch.device, ___: Generator) -> Tensor:
        return torch.rand(count, device=device)

    monkeypatch.setattr("swinexp.augment.mixing.beta", even)  # torch 2.11 has no gamma variables there
    meta, host = torch.device("meta"), Generator().manual_seed(0)
    images, labels = pictures().to(meta), torch.zeros(24, dtype=torch.long, device=meta)
    config = small_run("data.mirror=true", f"augmentation={option}").augmentation
    mean = std = torch.ones(3, device=meta)
    pixels, weights = augment(config, images, labels, 10, mean, std, host, None, 8, host)
    assert pixels.shape == images.shape
    assert weights.shape == (24, 10)
    assert pixels.device == weights.device == meta


def test_an_operation_may_have_no_images() -> None:
    images = pictures()
    for name in OPERATIONS:
        operation = torch.full((len(images),), CODES[name])
        operation[::2] = CODES["identity"]
        changed = operate(images, operation, torch.full((len(images),), 0.5))
        assert torch.equal(changed[::2], images[::2])


def test_on_a_gpu_a_choice_is_between_what_is_computed_for_all() -> None:
    images = pictures()
    chosen = torch.arange(len(images)) % 3 == 0
    mine = where(chosen, lambda few: few.flip(-1), images)
    assert torch.equal(mine, torch.where(chosen[:, None, None, None], images.flip(-1), images))
    there = where(chosen.to("meta"), lambda every: every.flip(-1), images.to("meta"))
    assert there.shape == images.shape


def test_nothing_chosen_changes_nothing() -> None:
    images = pictures()
    assert where(torch.zeros(len(images), dtype=torch.bool), lambda _: 1 / 0, images) is images  # type: ignore[arg-type, return-value]


Draws = Counter[tuple[str, float]]


def ours(policy: str, count: int, monkeypatch: pytest.MonkeyPatch) -> Draws:
    """How often each operation was drawn with each magnitude, sign included; images stay as they are."""
    seen: Draws = Counter()

    def record(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
        seen.update(
            (PEER[OPERATIONS[o]], round(m, 4)) for o, m in zip(operation.tolist(), magnitude.tolist(), strict=True)
        )
        return images

    with monkeypatch.context() as patched:
        patched.setattr(policies, "operate", record)
        images, generator = torch.zeros(count, 3, 32, 32, dtype=torch.uint8), Generator().manual_seed(5)
        if policy == "rand":
            rand_augment(images, 2, 9, generator)
        else:
            {"trivial": trivial_augment, "auto": auto_augment}[policy](images, generator)
    return seen


def peers(policy: str, count: int, monkeypatch: pytest.MonkeyPatch) -> Draws:
    seen: Draws = Counter()

    def record(image: Tensor, name: str, magnitude: float, **_: object) -> Tensor:
        seen[name, round(magnitude, 4)] += 1
        return image

    with monkeypatch.context() as patched:
        patched.setattr(autoaugment, "_apply_op", record)
        torch.manual_seed(5)
        policies: dict[str, torch.nn.Module] = {
            "trivial": autoaugment.TrivialAugmentWide(),
            "rand": autoaugment.RandAugment(2, 9),
            "auto": autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy.CIFAR10),
        }
        image = torch.zeros(3, 32, 32, dtype=torch.uint8)
        for _ in range(count):
            policies[policy](image)
    return seen


@pytest.mark.parametrize("policy", ["trivial", "rand", "auto"])
def test_operations_magnitudes_and_signs_are_drawn_as_often_as_torchvision_does(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 4000
    mine, theirs = ours(policy, 4 * count, monkeypatch), peers(policy, count, monkeypatch)
    mine.pop(("Identity", 0.0), None)  # AutoAugment has none, and skips an operation instead
    theirs.pop(("Identity", 0.0), None)
    assert set(mine) >= set(theirs)
    for drawn in mine:
        expected, variance = theirs[drawn], theirs[drawn] + mine[drawn] / 16
        assert abs(mine[drawn] / 4 - expected) <= 5 * math.sqrt(variance + 1), drawn


def test_every_operation_magnitude_and_direction_of_trivial_augment_is_as_likely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = 60_000
    seen = ours("trivial", count, monkeypatch)
    by_name: Counter[str] = Counter()
    for (name, _), times in seen.items():
        by_name[name] += times
    assert len(by_name) == len(DRAWN)
    assert all(abs(times - count / 14) < 5 * math.sqrt(count / 14) for times in by_name.values())
    rotations = {magnitude: times for (name, magnitude), times in seen.items() if name == "Rotate"}
    assert len(rotations) in (61, 62)  # 31 magnitudes in two directions; 0 and -0 are one
    assert all(abs(times - count / 14 / 62) < 6 * math.sqrt(count / 14 / 62) for m, times in rotations.items() if m)


@pytest.mark.parametrize(("turn"), [-0.5, -0.21, 0.0, 0.07, 0.4])
def test_hue_is_turned_as_torchvision_does(turn: float) -> None:
    images = pictures()
    mine = turn_hue(images, torch.full((len(images),), turn))
    assert ((mine.int() - theirs.adjust_hue(images, turn).int()).abs() <= 1).float().mean() > 0.999


def test_blending_is_torchvisions() -> None:
    images = pictures()
    for factor in (0.3, 1.0, 1.7):
        expected = theirs.adjust_brightness(images, factor)
        assert torch.equal(blend(images, torch.zeros_like(images), torch.full((len(images),), factor - 1)), expected)


def test_a_resized_crop_is_torchvisions() -> None:
    images = pictures()
    for top, left, height, width in ((0, 0, 32, 32), (3, 5, 20, 17), (10, 0, 8, 30), (31, 31, 1, 1)):
        corners = [torch.full((len(images),), float(value)) for value in (top, left, height, width)]
        mine = resized_crop(images, *corners)
        expected = theirs.resized_crop(images, top, left, height, width, [32, 32], antialias=False)
        assert ((mine.int() - expected.int()).abs() <= 1).float().mean() > 0.999
