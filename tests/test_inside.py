from __future__ import annotations

import pytest
import torch
from torch import nn

from swinexp.swin import Swin, attention_maps, features, received, rollout
from swinexp.swin.windows import to_windows, window_order
from tests.conftest import SMALL_NETWORK, network

BLOCKS = ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0", "layers.1.blocks.1"]


def small(image: int | tuple[int, int] = 16) -> Swin:
    torch.manual_seed(0)
    model = network(image, model=SMALL_NETWORK, window={"size": 4})
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model.eval()


def test_features_are_maps_of_what_each_block_puts_out() -> None:
    model, images = small(), torch.randn(3, 3, 16, 16)
    found = features(model, images)
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "layers.0.blocks.0": (3, 8, 8, 16),
        "layers.0.blocks.1": (3, 8, 8, 16),
        "layers.1.blocks.0": (3, 4, 4, 32),
        "layers.1.blocks.1": (3, 4, 4, 32),
    }
    pooled = model.norm(found["layers.1.blocks.1"]).mean(dim=(1, 2))
    assert torch.allclose(model.head(pooled), model(images), atol=1e-5)


def test_a_map_lies_as_the_image_does() -> None:
    """Changing one window's pixels changes the first block's map there and nowhere else."""
    model, images = small(), torch.randn(1, 3, 16, 16)
    changed = images.clone()
    changed[:, :, 8:, :8] += 1  # rows 4 to 7 and columns 0 to 3 of the tokens: one whole window
    name = "layers.0.blocks.0"
    before, after = (features(model, each, [name])[name] for each in (images, changed))
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[4:, :4] = True
    assert torch.equal((before != after).any(-1)[0], expected)


@pytest.mark.parametrize("image", [16, (24, 40)], ids=["whole windows", "overhanging windows"])
def test_attention_maps_are_those_of_the_forward_pass(image: int | tuple[int, int]) -> None:
    model = small(image)
    images = torch.randn(2, 3, *model.image_size)
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if name.endswith(".attn"):
            module.register_forward_hook(lambda _, inputs, out, name=name: seen.update({name: (*inputs, out)}))  # type: ignore[misc]
    model(images)
    maps = attention_maps(model, images)
    assert list(maps) == BLOCKS
    for name, weights in maps.items():
        module = model.get_submodule(f"{name}.attn")
        x, *_, out = seen[f"{name}.attn"]
        v = module.qkv_heads(x)[2]  # type: ignore[operator]
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
        assert torch.allclose(module.proj((weights @ v).transpose(2, 3).reshape(x.shape)), out, atol=1e-4), name  # type: ignore[operator]


def test_some_blocks_only_and_unknown_names() -> None:
    model, images = small(), torch.randn(1, 3, 16, 16)
    assert list(attention_maps(model, images, BLOCKS[1:2])) == BLOCKS[1:2]
    assert list(features(model, images, BLOCKS[2:])) == BLOCKS[2:]
    for look in (attention_maps, features):
        with pytest.raises(ValueError, match="no block is named layers.7; there are layers.0.blocks.0, "):
            look(model, images, ["layers.7"])


def test_received_attention_is_put_back_where_the_shift_took_it_from() -> None:
    block = small().layers[0].blocks[1]  # type: ignore[index]
    assert block.shift == (2, 2)
    G, T = 4, 16
    attention = torch.zeros(1, G, 2, T, T)
    attention[:, 0, :, :, 5] = 1  # every token of the first window attends to the one in its row 1, column 1
    shares = received(block, attention)
    assert shares.shape == (1, 8, 8)
    assert shares[0, 3, 3] == T
    assert shares.sum() == T
    even = torch.full((1, G, 2, T, T), 1 / T)
    assert torch.allclose(received(block, even), torch.ones(1, 8, 8))
    token = window_order(8, 8, 4, (2, 2))[5]
    assert divmod(int(token), 8) == (3, 3)
    assert to_windows(torch.arange(64).view(1, 8, 8, 1), 4)[0, 0, 5, 0] == 9


def test_the_rollout_adds_up_to_one_and_is_even_when_all_attention_is() -> None:
    for image in (16, (24, 40)):
        model = small(image)
        shares = rollout(model, torch.randn(2, 3, *model.image_size))
        assert shares.shape == (2, model.image_size[0] // 2, model.image_size[1] // 2)
        assert torch.allclose(shares.sum((1, 2)), torch.ones(2), atol=1e-5)
        assert (shares >= 0).all()
    model = small()
    for name, p in model.named_parameters():
        if "qkv" in name or "table" in name:
            nn.init.zeros_(p)
    model.layers[0].blocks[1].mask = None  # type: ignore[index, union-attr]
    assert torch.allclose(rollout(model, torch.randn(1, 3, 16, 16)), torch.full((1, 8, 8), 1 / 64), atol=1e-6)


def test_the_rollout_follows_the_token_that_is_attended_to() -> None:
    """A token that its whole window attends to has the largest share of all."""
    model = network(16, model={"dim": 16, "depths": [1], "heads": [2]}, window={"size": 4}).eval()
    block = model.layers[0].blocks[0]  # type: ignore[index]
    weights = torch.full((1, 4, 2, 16, 16), 1 / 16)
    weights[:, 3] = 0
    weights[:, 3, :, :, 0] = 1  # the last window's first token: row 4, column 4
    block.attention_weights = lambda _: weights  # type: ignore[assignment, union-attr]
    shares = rollout(model, torch.randn(1, 3, 16, 16))[0]
    assert divmod(int(shares.argmax()), 8) == (4, 4)
    assert shares[4, 4].item() == pytest.approx((1 + 16) / 2 / 64)
    assert shares[0, 0].item() == pytest.approx(1 / 64)
    assert shares[5, 5].item() == pytest.approx(0.5 / 64)
