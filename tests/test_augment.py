from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from swinexp.augment import Augmentation, augment, cutmix, normalise, random_crop, random_erase, random_flip
from swinexp.mistake import Mistake


@pytest.fixture
def generator() -> Generator:
    return Generator().manual_seed(1)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(1, 256, (600, 3, 8, 8), dtype=torch.uint8, generator=Generator().manual_seed(0))


def test_crop_is_a_window_of_the_padded_image_and_every_offset_is_as_likely(
    images: Tensor, generator: Generator
) -> None:
    cropped = random_crop(images, 1, generator)
    padded = F.pad(images, (1, 1, 1, 1))
    seen = torch.zeros(3, 3)
    for image, result in zip(padded, cropped, strict=True):
        places = [(y, x) for y in range(3) for x in range(3) if torch.equal(image[:, y : y + 8, x : x + 8], result)]
        assert len(places) == 1
        seen[places[0]] += 1
    assert seen.min() > 600 / 9 * 0.6
    assert seen.max() < 600 / 9 * 1.4


def test_flip_mirrors_half_of_the_images(images: Tensor, generator: Generator) -> None:
    flipped = random_flip(images, generator)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    unchanged = (flipped == images).flatten(1).all(1)
    assert torch.all(mirrored ^ unchanged)
    assert 0.4 < mirrored.float().mean() < 0.6


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


def test_cutmix_weights_are_the_pasted_areas(generator: Generator) -> None:
    # Image i is filled with the value i, and has the label i: what is pasted can be read off the pixels.
    count = 64
    images = torch.arange(count).float()[:, None, None, None].expand(count, 3, 16, 16)
    mixed, weights = cutmix(images, torch.eye(count), 1.0, generator)
    for image, weight in zip(mixed, weights, strict=True):
        expected = torch.bincount(image[0].long().flatten(), minlength=count) / 256
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)
    assert (weights.max(dim=1).values < 1).float().mean() > 0.8  # nearly every image got something
    assert 0.3 < weights.diagonal().mean() < 0.8


def test_cutmix_leaves_its_share_of_batches_clean() -> None:
    images = torch.rand(8, 3, 8, 8)
    weights = torch.eye(8)
    clean = 0
    for seed in range(300):
        mixed, mixed_weights = cutmix(images, weights, 0.5, Generator().manual_seed(seed))
        if torch.equal(mixed, images):
            assert torch.equal(mixed_weights, weights)
            clean += 1
    assert 110 < clean < 190


def test_everything_together_depends_on_the_generator_alone(images: Tensor) -> None:
    strong = Augmentation(crop=2, flip=True, erase=0.5, mix="cutmix", mix_prob=1.0)
    labels = torch.randint(10, (len(images),))
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)

    def result(seed: int) -> tuple[Tensor, Tensor]:
        return augment(strong, images, labels, 10, mean, std, Generator().manual_seed(seed))

    before = torch.get_rng_state()
    pixels, weights = result(3)
    torch.rand(5)
    again, weights_again = result(3)
    assert torch.equal(pixels, again)
    assert torch.equal(weights, weights_again)
    assert not torch.equal(pixels, result(4)[0])
    torch.set_rng_state(before)
    result(3)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator was not asked
    assert pixels.shape == images.shape
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(images)))


def test_no_augmentation_changes_no_pixel(images: Tensor, generator: Generator) -> None:
    none = Augmentation(crop=0, flip=False, erase=0.0, mix=None, mix_prob=0.0)
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    pixels, weights = augment(none, images, torch.zeros(600, dtype=torch.long), 2, mean, std, generator)
    assert torch.equal(pixels, normalise(images, mean, std))
    assert torch.equal(weights, torch.tensor([[1.0, 0.0]]).expand(600, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-1, True, 0.0, None, 0.0), "augmentation.crop=-1: .* Type augmentation.crop=4"),
        ((0, True, 1.5, None, 0.0), "augmentation.erase=1.5: a share between 0 and 1"),
        ((0, True, 0.0, "mixdown", 0.5), "augmentation.mix=mixdown: null or cutmix. Type augmentation.mix=cutmix"),
        ((0, True, 0.0, None, 0.5), "augmentation.mix_prob=0.5: it has no effect with augmentation.mix=null"),
        ((0, True, 0.0, "cutmix", 0.0), "augmentation.mix_prob=0.0: it has no effect with augmentation.mix=cutmix"),
    ],
)
def test_mistakes(values: tuple[int, bool, float, str | None, float], message: str) -> None:
    with pytest.raises(Mistake, match=message):
        Augmentation(*values)
