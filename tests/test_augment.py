from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from swinexp.augment import (
    Augmentation,
    augment,
    cutmix,
    cutout,
    flip,
    jitter,
    mirrored_in_turn,
    mixup,
    normalise,
    random_crop,
    random_erase,
    random_resized_crop,
)
from swinexp.augment.mixing import beta
from swinexp.augment.spatial import reflected
from swinexp.mistake import Mistake
from tests.conftest import small_run

NONE = Augmentation(
    resized_crop=None, policy=None, rand_operations=2, rand_magnitude=9, flip=False, flip_in_turn=False, crop=0, crop_padding="zeros",
    jitter=None, erase=0.0, cutout=0, mix=None, mix_prob=1.0, mix_each=True, mixup_alpha=1.0, cutmix_alpha=1.0, repeats=1,
    normalise=True,
)  # fmt: skip


@pytest.fixture
def generator() -> Generator:
    return Generator().manual_seed(1)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(1, 256, (600, 3, 8, 8), dtype=torch.uint8, generator=Generator().manual_seed(0))


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crop_is_a_window_of_the_padded_image_and_every_offset_is_as_likely(
    mode: str, images: Tensor, generator: Generator
) -> None:
    cropped = random_crop(images, 1, generator, reflect=mode == "reflect")
    padded = F.pad(images.float(), (1, 1, 1, 1), mode=mode).byte()
    seen = torch.zeros(3, 3)
    for image, result in zip(padded, cropped, strict=True):
        places = [(y, x) for y in range(3) for x in range(3) if torch.equal(image[:, y : y + 8, x : x + 8], result)]
        assert len(places) == 1
        seen[places[0]] += 1
    assert seen.min() > 600 / 9 * 0.6
    assert seen.max() < 600 / 9 * 1.4


@pytest.mark.parametrize("padding", [1, 3, 4])
def test_what_lies_within_the_border_is_mirrored_by_it_as_torch_mirrors_floats(padding: int) -> None:
    images = torch.randint(256, (2, 3, 5, 7), dtype=torch.uint8, generator=Generator().manual_seed(0))
    expected = F.pad(images.float(), (padding,) * 4, mode="reflect").byte()
    assert torch.equal(reflected(images, padding), expected)


def test_flip_mirrors_half_of_the_images(images: Tensor, generator: Generator) -> None:
    flipped = augmented(images, generator, flip=True)
    pixels = normalise(images, torch.zeros(3), torch.ones(3))
    mirrored = (flipped == pixels.flip(-1)).flatten(1).all(1)
    unchanged = (flipped == pixels).flatten(1).all(1)
    assert torch.all(mirrored ^ unchanged)
    assert 0.4 < mirrored.float().mean() < 0.6


def test_a_crop_is_of_the_mirror_image_where_that_is_asked(images: Tensor, generator: Generator) -> None:
    mirrored = torch.arange(len(images)) % 3 == 0
    cropped = random_crop(images, 1, generator, mirrored)
    whole = F.pad(flip(images, mirrored), (1, 1, 1, 1))
    for image, result in zip(whole, cropped, strict=True):
        assert any(torch.equal(image[:, y : y + 8, x : x + 8], result) for y in range(3) for x in range(3))


def test_normalise_gives_mean_0_and_std_1(images: Tensor) -> None:
    pixels = images.float() / 255
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3), correction=0)
    result = normalise(images, mean, std)
    torch.testing.assert_close(result, (pixels - mean[:, None, None]) / std[:, None, None], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)


def test_erase_clears_one_rectangle_in_the_given_share_of_images(generator: Generator) -> None:
    ones = torch.ones(4000, 3, 32, 32)
    erased = random_erase(ones, 0.25, generator)
    hole = erased[:, 0] == 0
    assert torch.equal(hole, erased[:, 1] == 0)
    hit = hole.flatten(1).any(1)
    assert 0.22 < hit.float().mean() < 0.28
    area = hole[hit].float().mean(dim=(1, 2))
    assert 0.01 < area.min() < 0.04
    assert 0.28 < area.max() < 0.36
    for mask in hole[hit][:50]:  # a hole is the product of its rows and columns: a rectangle, without gaps
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None, :])
        for line in (rows, columns):
            assert line.int().diff().abs().sum() <= 2


def of_one_colour(count: int) -> Tensor:
    """Image i is filled with the value i, so that what is mixed in can be read off the pixels."""
    return torch.arange(count).float()[:, None, None, None].expand(count, 3, 16, 16)


@pytest.mark.parametrize("each", [True, False])
def test_cutmix_weights_are_the_pasted_areas(each: bool, generator: Generator) -> None:
    count = 64
    mixed, weights = cutmix(of_one_colour(count), torch.eye(count), 1.0, each, generator)
    for image, weight in zip(mixed, weights, strict=True):
        expected = torch.bincount(image[0].long().flatten(), minlength=count) / 256
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)
    pasted = (mixed != of_one_colour(count))[:, 0]
    holes = {tuple(hole.flatten().tolist()) for hole in pasted if hole.any()}
    assert len(holes) > count / 2 if each else len(holes) == 1
    for hole in pasted:
        assert torch.equal(hole, hole.any(1)[:, None] & hole.any(0)[None, :])


@pytest.mark.parametrize("each", [True, False])
def test_mixup_mixes_pixels_and_labels_alike(each: bool, generator: Generator) -> None:
    count = 64
    mixed, weights = mixup(of_one_colour(count), torch.eye(count), 0.4, each, generator)
    torch.testing.assert_close(mixed[:, 0, 0, 0], weights @ torch.arange(count).float(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(weights.sum(1), torch.ones(count))
    shares = weights.diagonal()
    assert len(shares.unique()) > count / 2 if each else len(shares[shares < 1].unique()) == 1


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("mix", ["mixup", "cutmix", "switch"])
def test_several_batches_at_once_are_mixed_each_by_itself(mix: str, each: bool, generator: Generator) -> None:
    count, batch = 600, 6
    _, weights = augment(
        replace(NONE, mix=mix, mix_prob=0.5, mix_each=each), of_one_colour(count).to(torch.uint8), torch.arange(count),
        count, torch.zeros(3), torch.ones(3), generator, None, batch,
    )  # fmt: skip
    own = torch.block_diag(*[torch.ones(batch, batch)] * (count // batch)).bool()
    assert weights[~own].eq(0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(count))
    clean = weights.diagonal().view(-1, batch).eq(1).all(dim=1)  # batches that nothing was done to
    assert 0.3 < clean.float().mean() < 0.7
    shares = [set(row[row < 1].tolist()) for row in weights.diagonal().view(-1, batch)]
    if each:
        assert max(map(len, shares)) > 1
    else:
        assert all(len(share) <= 1 for share in shares)
        assert len(set().union(*shares)) > 10  # and another one in every batch


def test_shares_follow_the_beta_distribution(generator: Generator) -> None:
    for alpha in (0.2, 1.0, 3.0):
        draws = beta(alpha, 20_000, 1, torch.device("cpu"), generator)
        assert draws.mean().item() == pytest.approx(0.5, abs=0.01)
        assert draws.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
        assert len(beta(alpha, 100, 100, torch.device("cpu"), generator).unique()) == 1
    assert beta(1e-6, 1000, 1, torch.device("cpu"), generator).isfinite().all()


def augmented(images: Tensor, generator: Generator, mirrored: Tensor | None = None, **changes: Any) -> Tensor:
    """Pixels that nothing but `changes` augments, from 0 to 1, one class an image."""
    labels = torch.arange(len(images))
    pixels, weights = augment(
        replace(NONE, **changes), images, labels, len(images), torch.zeros(3), torch.ones(3), generator, mirrored
    )
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(images)))
    return pixels


def test_mixing_happens_to_its_share_of_the_batches() -> None:
    """Pasted pixels are those of some image, mixed ones lie between two."""
    few = (10 * of_one_colour(8)).to(torch.uint8)
    for mix, kinds in (("cutmix", {"cut"}), ("mixup", {"up"}), ("switch", {"cut", "up"})):
        seen: Counter[str] = Counter()
        for seed in range(200):
            values = augmented(few, Generator().manual_seed(seed), mix=mix, mix_prob=0.4) * 25.5
            pasted = (values - values.round()).abs().max() < 1e-4
            seen["up" if not pasted else "clean" if torch.equal(values.round(), few / 10) else "cut"] += 1
        assert 90 < seen.pop("clean") < 150
        assert set(seen) == kinds
        assert max(seen.values()) < 75 or len(kinds) == 1


def test_images_flipped_in_turn_are_mirrored_in_every_second_epoch(images: Tensor, generator: Generator) -> None:
    epochs = [mirrored_in_turn(600, epoch, Generator().manual_seed(9)) for epoch in range(4)]
    assert 240 < epochs[0].sum() < 360
    assert torch.equal(epochs[1], ~epochs[0])
    assert torch.equal(epochs[2], epochs[0])
    assert torch.equal(epochs[3], epochs[1])
    pixels = augmented(images, generator, epochs[0], flip=True)
    expected = torch.where(epochs[0][:, None, None, None], images.flip(-1), images)
    assert torch.equal(pixels, normalise(expected, torch.zeros(3), torch.ones(3)))


def test_cutout_clears_a_square_that_the_border_may_cut(generator: Generator) -> None:
    hole = cutout(torch.ones(3000, 3, 16, 16), 6, generator)[:, 0] == 0
    area = hole.flatten(1).sum(1)
    assert area.max() == 36
    assert area.min() == 9  # a centre in a corner
    assert hole.float().mean(0).min() > 0.02
    rows, columns = hole.any(2).sum(1), hole.any(1).sum(1)
    assert torch.equal(rows * columns, area)


def test_a_resized_crop_has_its_share_of_the_area(generator: Generator) -> None:
    """On a ramp from left to right, the crop's extent is the range of its values."""
    ramp = torch.linspace(0, 255, 64).to(torch.uint8).expand(2000, 3, 64, 64)
    square = torch.stack([ramp[:, 0], ramp[:, 0].mT, ramp[:, 0]], dim=1)
    cropped = random_resized_crop(square, [0.2, 0.5], generator).float()
    width, height = ((cropped[:, c].amax((1, 2)) - cropped[:, c].amin((1, 2))) / 255 for c in (0, 1))
    area, ratio = width * height, width / height
    assert 0.15 < area.min() < 0.22
    assert 0.46 < area.max() < 0.52
    assert 0.7 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.4
    assert (random_resized_crop(square, [1, 1], generator).int() - square.int()).abs().max() <= 4


def test_jitter_changes_what_it_is_asked_to_and_each_image_in_its_own_way(generator: Generator) -> None:
    grey = torch.full((500, 3, 4, 4), 100, dtype=torch.uint8)
    brighter = jitter(grey, [0.4, 0, 0, 0], generator)[:, 0, 0, 0].float() / 100
    assert 0.59 < brighter.min() < 0.65
    assert 1.35 < brighter.max() < 1.41
    same = jitter(grey, [0, 0.4, 0.4, 0.1], generator).int()  # without contrast or colour, to rounding
    assert (same - grey).abs().max() <= 2
    red = grey.clone()
    red[:, 0] = 200
    turned = jitter(red, [0, 0, 0, 0.5], generator)
    assert len(turned[:, :, 0, 0].unique(dim=0)) > 100
    assert torch.equal(turned.amax((1, 2, 3)), torch.full((500,), 200, dtype=torch.uint8))


EVERYTHING = [
    "augmentation=none", "augmentation=basic", "augmentation=trivial", "augmentation=rand", "augmentation.policy=auto",
    "augmentation=reference", "augmentation=strong", "augmentation.jitter=[0.4,0.4,0.4,0.1]",
    "augmentation.resized_crop=[0.3,1]", "augmentation.cutout=4",
]  # fmt: skip


@pytest.mark.parametrize("override", EVERYTHING)
def test_the_generator_alone_decides(override: str, images: Tensor) -> None:
    """Not the global generator, not the number of threads; and all options give what the network wants."""
    config = small_run(override, "augmentation.crop=1").augmentation
    labels = torch.randint(10, (len(images),))
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)

    def result(seed: int) -> tuple[Tensor, Tensor]:
        return augment(config, images, labels, 10, mean, std, Generator().manual_seed(seed))

    threads = torch.get_num_threads()
    before = torch.get_rng_state()
    pixels, weights = result(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        again, weights_again = result(3)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(pixels, again)
    assert torch.equal(weights, weights_again)
    assert not torch.equal(pixels, result(4)[0])
    assert pixels.shape == images.shape
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(images)))


def test_no_augmentation_changes_no_pixel(images: Tensor, generator: Generator) -> None:
    assert torch.equal(augmented(images, generator), normalise(images, torch.zeros(3), torch.ones(3)))


def test_the_reference_is_what_its_script_does() -> None:
    reference = small_run("augmentation=reference", "data.mirror=true", "augmentation.crop=4").augmentation
    expected = replace(
        NONE,
        policy="trivial",
        flip=True,
        crop=4,
        erase=0.1,
        mix="cutmix",
        mix_prob=1.0,
        mix_each=False,
        normalise=False,
    )
    assert reference == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("crop=-1", "augmentation.crop=-1: .* Type augmentation.crop=4"),
        ("erase=1.5", "augmentation.erase=1.5: a share between 0 and 1"),
        ("mix=mixdown", "augmentation.mix=mixdown: one of cutmix, mixup, switch. Type augmentation.mix=cutmix"),
        ("mix_prob=2", "augmentation.mix_prob=2.0: a share between 0 and 1"),
        ("cutmix_alpha=0", "augmentation.cutmix_alpha=0.0: at least 0.05"),
        ("policy=trival", "augmentation.policy=trival: one of trivial, rand, auto. Type augmentation.policy=trivial"),
        ("rand_magnitude=31", "augmentation.rand_magnitude=31: 0 to 30"),
        ("rand_operations=0", "augmentation.rand_operations=0: at least 1"),
        ("resized_crop=[0.5,0.2]", r"augmentation.resized_crop=\[0.5,0.2\]: the least and the largest share"),
        (
            "jitter=[1,1]",
            r"augmentation.jitter=\[1.0,1.0\]: strengths of .* Type augmentation.jitter=\[0.4,0.4,0.4,0.1\]",
        ),
        ("jitter=[0,0,0,0.6]", r"augmentation.jitter=.*hue \(0 to 0.5\)"),
        ("repeats=0", "augmentation.repeats=0: at least 1 view"),
        ("flip_in_turn=true", "augmentation.flip_in_turn=true: images are not mirrored"),
        ("crop_padding=mirror", "augmentation.crop_padding=mirror: one of zeros, reflect. Type "),
    ],
)
def test_mistakes(override: str, message: str) -> None:
    with pytest.raises(Mistake, match=message):
        small_run(f"augmentation.{override}")


def test_padding_that_cannot_be_reflected_is_a_mistake() -> None:
    line = (
        r"augmentation.crop_padding=reflect: there is no padding \(augmentation.crop=0\). Type augmentation.crop=2, or "
    )
    with pytest.raises(Mistake, match=line):
        small_run("augmentation.crop=0", "augmentation.crop_padding=reflect")
    line = r"augmentation.crop=16: images of 16 pixels \(data.image_size\) have not so many .* Type augmentation.crop=1, or"
    with pytest.raises(Mistake, match=line):
        small_run("augmentation.crop=16", "augmentation.crop_padding=reflect")
    assert small_run("augmentation.crop=15", "augmentation.crop_padding=reflect").augmentation.crop == 15


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_of_any_layout_are_mirrored(dtype: torch.dtype, generator: Generator) -> None:
    """Bytes are put back eight by eight where that goes: not in an odd size, nor from an odd place in memory."""
    for shape in ((6, 3, 8, 8), (6, 3, 5, 7)):
        values = torch.randint(256, (7 * math.prod(shape[1:]) + 3,), generator=generator).to(dtype)
        chosen = torch.tensor([True, False, True, True, False, False])
        for images in (
            values[: math.prod(shape)].view(shape),
            values[3 : math.prod(shape) + 3].view(shape),
            values[: math.prod(shape)].view(shape).contiguous(memory_format=torch.channels_last),
            values[: math.prod(shape[1:])].view(1, *shape[1:]).expand(shape),
        ):
            expected = torch.where(chosen[:, None, None, None], images.flip(-1), images)
            before = images.clone()
            assert torch.equal(flip(images, chosen), expected)
            assert torch.equal(images, before)
            assert torch.equal(flip(before, chosen, reuse=True), expected)
