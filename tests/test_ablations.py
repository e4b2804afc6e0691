"""The parts that can be varied: what defines each holds, and nothing else changes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import swin_transformer as theirs

from swinexp import CONF
from swinexp.augment import normalise
from swinexp.config import typed
from swinexp.data.splits import mean_std
from swinexp.describe import count
from swinexp.optim import decays
from swinexp.swin import Swin, attention_maps
from swinexp.swin.attention import WindowAttention
from swinexp.swin.embedding import NOISE, shifted_copies, whitening
from swinexp.swin.layers import LayerScale
from swinexp.swin.pretrained import translated
from swinexp.swin.windows import diagonal_mask, inverse, log_spaced_offsets, shift_mask, stage_order
from swinexp.train import build_model, prepare
from tests.conftest import SMALL_NETWORK, config, network, small_run

REFERENCE = ("model=cifar", "window=w4", "patch=p2", "data=digits", "data.image_size=32")
VARIANTS = [
    *(f"attention={path.stem}" for path in sorted((CONF / "attention").glob("*.yaml"))),
    *(f"block={path.stem}" for path in sorted((CONF / "block").glob("*.yaml"))),
    *(f"patch={path.stem}" for path in sorted((CONF / "patch").glob("p2_*.yaml"))),
    "window=w4_noshift",
]


def variant(*overrides: str) -> Swin:
    return build_model(typed(config(*REFERENCE, *overrides)), classes=10)


def small(**changes: dict[str, object]) -> Swin:
    torch.manual_seed(0)
    return network(16, model=SMALL_NETWORK, **changes)


def randomised(model: nn.Module, std: float = 0.3) -> nn.Module:
    """Biases and norms too: at 0 and 1 they would hide a mistake."""
    for p in model.parameters():
        nn.init.normal_(p, std=std)
    return model


@pytest.mark.parametrize("override", VARIANTS)
def test_every_variant_learns_and_all_of_it_does(override: str) -> None:
    """The loss falls in a few steps, and every parameter has a finite gradient; the biases of keys alone have none."""
    torch.manual_seed(0)
    model = variant(override, "model.dim=24", "model.depths=[2,2]", "model.heads=[3,6]")
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().sum() > 0, name


def test_the_defaults_are_the_reference() -> None:
    ours, reference = variant("attention=swin", "block=swin"), variant()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), reference.parameters(), strict=True))
    assert {name.split(".")[-2] for name in ours.state_dict()} == {
        "proj", "norm", "norm1", "qkv", "attn", "norm2", "fc1", "fc2", "reduction", "head",
    }  # fmt: skip
    assert sum(p.numel() for p in ours.parameters()) == 7_048_612


# The parameters of each variant of the reference network: a change of any is a change of what people compare.
@pytest.mark.parametrize(
    ("overrides", "parameters", "flops"),
    [
        (["patch=p2_spt"], None, 282_379_008),
        (["patch=p2_absolute"], 7_073_188, 242_759_424),
        (["window=w4_noshift"], 7_048_612, 242_759_424),
        (["attention=no_bias"], 7_048_612 - 49 * (2 * 3 + 6 * 6 + 4 * 12), 242_759_424),
        (["attention=cosine"], 7_048_612 + (2 * 3 + 6 * 6 + 4 * 12), 242_759_424),
        (["attention=lsa"], 7_048_612 + (2 * 3 + 6 * 6 + 4 * 12), 242_759_424),
        (["attention=qk_norm"], 7_048_612 + 12 * 2 * 32, None),
        (
            ["attention=lepe"],
            7_048_612 + 10 * (2 * 96 + 6 * 192 + 4 * 384),
            242_759_424 + 9 * (2 * 256 * 96 + 6 * 64 * 192 + 4 * 16 * 384),
        ),
        (["block=layer_scale"], 7_048_612 + 2 * (2 * 96 + 6 * 192 + 4 * 384), 242_759_424),
        (["block=rms_norm"], 7_048_612 - (96 + 384 + 768 + 384 + 2 * (2 * 96 + 6 * 192 + 4 * 384)), 242_759_424),
        (["block=depthwise_conv"], 7_048_612 + 10 * 2 * (2 * 96 + 6 * 192 + 4 * 384), None),
    ],
)
def test_what_a_variant_costs(overrides: list[str], parameters: int | None, flops: int | None) -> None:
    cost = count(variant(*overrides), 32)[""]
    assert parameters in (None, cost.parameters)
    assert flops in (None, cost.flops)


@pytest.mark.parametrize("experiment", ["record", "speedrun"])
def test_what_is_to_beat_the_reference_costs_no_more(experiment: str) -> None:
    cost = count(build_model(typed(config(f"experiment={experiment}")), classes=10), 32)[""]
    assert (cost.parameters, cost.flops) == (6_856_174, 239_957_760)
    assert cost.parameters <= 7_048_612
    assert cost.flops <= 242_759_424


@pytest.mark.parametrize(("name", "parameters"), [("t", 28_288_354), ("s", 49_606_258), ("b", 87_768_224)])
def test_the_sizes_of_the_paper(name: str, parameters: int) -> None:
    run = typed(config(f"model=swin_{name}", "window=w7", "patch=p4", "data.image_size=224"))
    with torch.device("meta"):
        peer: nn.Module = getattr(theirs, f"swin_{name}")()
    assert sum(p.numel() for p in peer.parameters()) == parameters
    assert sum(p.numel() for p in build_model(run, classes=1000).parameters()) == parameters


SWINV2 = {
    "attention": {"similarity": "cosine", "position_bias": "continuous"},
    "block": {"placement": "res_post"},
}
LSA = {"attention": {"similarity": "local"}}


class TestSwinV2:
    """Scaled cosine attention, continuous bias and res-post-norm together are Swin V2."""

    @pytest.mark.parametrize(
        ("image", "window", "depths", "through"),
        [
            (32, 4, [2, 6, 4], 0),
            (32, 8, [2, 2], 0),
            ((40, 56), 4, [2, 2, 2], 0),
            (32, 2, [1, 3], 0),
            (32, 2, [2, 2], 1),
        ],
    )
    def test_equals_torchvision_in_value_and_gradient(
        self, image: int | tuple[int, int], window: int, depths: list[int], through: bool
    ) -> None:
        """`through` the mask: a token's score with itself is -100, and more with those that the mask's -100 leaves out."""
        torch.manual_seed(0)
        heads = [3, 6, 12][: len(depths)]
        ours = network(image, model={"depths": depths, "heads": heads}, window={"size": window}, **SWINV2)
        peer = theirs.SwinTransformer(
            [2, 2], 96, depths, heads, [window, window], 2.0, stochastic_depth_prob=0.0, num_classes=10,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), block=theirs.SwinTransformerBlockV2,
            downsample_layer=theirs.PatchMergingV2,
        )  # fmt: skip
        ours, peer = ours.double(), randomised(peer.double(), std=0.1)
        for part in peer.modules() if through else []:
            if isinstance(part, nn.LayerNorm):
                nn.init.zeros_(part.bias)  # or tokens would be alike
            if isinstance(part, theirs.ShiftedWindowAttentionV2):
                q, k, _ = part.qkv.weight.data.chunk(3)
                q.copy_(-k)
                part.qkv.bias.data[: len(q)] = 0
                nn.init.constant_(part.logit_scale, 5.0)
        weights, _ = translated(peer.state_dict())
        ours.load_state_dict(weights)
        height, width = (image, image) if isinstance(image, int) else image
        images = torch.randn(4, 3, height, width, dtype=torch.float64)
        results = []
        for model in (ours, peer):
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, torch.tensor([3, 9, 0, 3]))
            loss.backward()
            named = {name: p.grad for name, p in model.named_parameters()}
            gradients = named if model is ours else translated({k: v for k, v in named.items() if v is not None})[0]
            results.append({"logits": logits, "loss": loss} | gradients)
        mine, expected = results
        assert mine.keys() == expected.keys()
        largest = max(value.abs().max() for name, value in expected.items() if name not in ("logits", "loss"))
        for name, value in expected.items():
            scale = value.abs().max() if name in ("logits", "loss") else largest
            assert (mine[name] - value.view_as(mine[name])).abs().max() <= 1e-12 * scale, name

    def test_a_similarity_is_a_cosine_whatever_the_length_of_queries_and_keys(self) -> None:
        attention = small(attention=SWINV2["attention"]).layers[0].blocks[0].attn  # type: ignore[index, union-attr]
        q, k = torch.randn(2, 1, 1, 2, 16, 8)
        expected = attention.weights(q, k, None)  # type: ignore[operator, union-attr]
        assert torch.allclose(attention.weights(q * 100, k * 0.01, None), expected, atol=1e-6)  # type: ignore[operator, union-attr]

    def test_the_factor_on_the_cosine_is_at_most_100(self) -> None:
        attention = small(attention=SWINV2["attention"]).layers[0].blocks[0].attn  # type: ignore[index, union-attr]
        q, k = torch.randn(2, 1, 1, 2, 16, 8)
        at = {}
        for factor in (10.0, 100.0, 1000.0):
            nn.init.constant_(attention.logit_scale, torch.tensor(factor).log().item())  # type: ignore[arg-type, union-attr]
            at[factor] = attention.weights(q, k, None)  # type: ignore[operator, union-attr]
        assert torch.equal(at[1000.0], at[100.0])
        assert not torch.allclose(at[10.0], at[100.0])

    @pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
    def test_tokens_of_zeros_do_not_have_all_of_the_gradient(self, precision: torch.dtype) -> None:
        model = small(attention=SWINV2["attention"], patch={"size": 2, "embedding": "spt"})
        images = torch.randn(8, 3, 16, 16)
        norms: list[float] = []
        blank = torch.cat([images[..., :8], images[..., 8:] * 0], dim=-1)  # whose even patches are zeros after the norm
        for part in (images, blank):
            model.zero_grad()
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                logits = model(part)
            nn.functional.cross_entropy(logits.float(), torch.arange(8)).backward()
            norms.append(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item())
        assert norms[1] < 2 * norms[0]

    def test_a_query_of_zeros_is_no_division_by_zero_in_fp16(self) -> None:
        attention = small(attention=SWINV2["attention"]).layers[0].blocks[0].attn.half()  # type: ignore[index, union-attr, operator]
        q, k = torch.randn(2, 1, 1, 2, 16, 8).half()
        q[..., 3, :] = 0
        q.requires_grad_()
        weights = attention.weights(q, k, None)
        weights[..., 0].sum().backward()
        assert weights.isfinite().all()
        assert q.grad is not None
        assert q.grad.isfinite().all()

    def test_a_block_begins_as_the_identity(self) -> None:
        block = small(**SWINV2).layers[0].blocks[1]  # type: ignore[index, union-attr]
        x = torch.randn(2, 64, 16)
        assert torch.equal(block(x), x)

    def test_the_offsets_do_not_grow_with_the_window(self) -> None:
        for window in (2, 4, 8):
            offsets = log_spaced_offsets(window)
            assert offsets.shape == ((2 * window - 1) ** 2, 2)
            assert offsets.abs().max().item() == pytest.approx(torch.tensor(9.0).log2().item() / 3)
            assert torch.equal(offsets, -offsets.flip(0))
        assert log_spaced_offsets(1).tolist() == [[0.0, 0.0]]


def test_without_a_position_bias_the_order_within_a_window_does_not_matter() -> None:
    shuffled = torch.randperm(16)
    x = torch.randn(1, 4, 16, 16)
    for bias, same in (("none", True), ("table", False), ("continuous", False)):
        attention = randomised(small(attention={"position_bias": bias})).layers[0].blocks[0].attn  # type: ignore[index, union-attr, operator]
        out = attention(x, None)  # type: ignore[operator, union-attr]
        assert torch.allclose(attention(x[:, :, shuffled], None), out[:, :, shuffled], atol=1e-4) == same, bias  # type: ignore[operator, union-attr]


def test_normalised_queries_and_keys_keep_the_scores_bounded() -> None:
    """No logit can exceed √D, whatever the weights grow to: what the paper puts the norm there for."""
    attention = small(attention={"similarity": "qk_norm", "position_bias": "none"}).layers[0].blocks[0].attn  # type: ignore[index, union-attr]
    q, k = 1e4 * torch.randn(2, 1, 1, 2, 16, 8)
    scores = attention.weights(q, k, None).log()  # type: ignore[operator, union-attr]
    spread = scores.amax(-1) - scores.amin(-1)
    assert spread.max() <= 2 * 8**0.5 + 1e-3
    plain = small(attention={"position_bias": "none"}).layers[0].blocks[0].attn  # type: ignore[index, union-attr]
    assert plain.weights(q, k, None).max() > 0.999  # type: ignore[operator, union-attr]


class TestLocality:
    def test_no_token_attends_to_itself(self) -> None:
        maps = attention_maps(small(**LSA), torch.randn(2, 3, 16, 16))
        for name, weights in maps.items():
            assert weights.diagonal(dim1=-2, dim2=-1).abs().max() == 0, name
            assert torch.allclose(weights.sum(-1), torch.ones(())), name

    def test_a_token_that_is_alone_keeps_itself(self) -> None:
        """Of windows of 2×2 that the shift wraps around, the corner's tokens are from four corners of the map."""
        mask = shift_mask(4, 4, 2, (1, 1))
        local = diagonal_mask(mask)
        assert torch.equal(local[-1].diagonal(), torch.zeros(4))
        assert (local[0].diagonal() == -torch.inf).all()
        model = small(window={"size": 2}, **LSA)
        maps = attention_maps(model, torch.randn(1, 3, 16, 16))
        for name, weights in maps.items():
            assert weights.isfinite().all(), name
        alone = maps["layers.0.blocks.1"][:, -1].diagonal(dim1=-2, dim2=-1)
        assert torch.allclose(alone, torch.ones(()))

    def test_the_temperature_is_learnt_and_begins_at_the_usual_one(self) -> None:
        attention = small(**LSA).layers[0].blocks[0].attn  # type: ignore[index, union-attr]
        assert attention.temperature.flatten().tolist() == pytest.approx([8**-0.5] * 2)  # type: ignore[operator, union-attr]
        q, k = torch.randn(2, 1, 1, 2, 16, 8)
        warm = attention.weights(q, k, None)  # type: ignore[operator, union-attr]
        nn.init.constant_(attention.temperature, 5.0)  # type: ignore[arg-type, union-attr]
        assert attention.weights(q, k, None).max(-1).values.mean() > warm.max(-1).values.mean()  # type: ignore[operator, union-attr]


def seen_pixels(model: Swin, row: int, column: int) -> Tensor:
    """(height, width) bool: the pixels that the token of one patch depends on."""
    images = torch.randn(1, 3, 16, 16, requires_grad=True)
    tokens = model.eval().tokens(images)
    place = inverse(stage_order(8, 8, 4), 64)[8 * row + column]
    tokens[0, place].square().sum().backward()
    assert images.grad is not None
    return images.grad[0].abs().sum(0) > 0


class TestPatches:
    def test_a_linear_patch_sees_its_own_pixels(self) -> None:
        seen = torch.zeros(16, 16, dtype=torch.bool)
        seen[6:8, 10:12] = True
        assert torch.equal(seen_pixels(small(), 3, 5), seen)

    def test_a_shifted_patch_sees_half_a_patch_further(self) -> None:
        seen = torch.zeros(16, 16, dtype=torch.bool)
        seen[5:9, 9:13] = True
        assert torch.equal(seen_pixels(small(patch={"embedding": "spt"}), 3, 5), seen)

    def test_convolutional_patches_overlap(self) -> None:
        """A convolution of stride 1 and one of stride 2, both 3×3, see 5×5 pixels."""
        seen = torch.zeros(16, 16, dtype=torch.bool)
        seen[4:9, 8:13] = True
        found = seen_pixels(small(patch={"embedding": "conv"}), 3, 5)
        assert not found[~seen].any()
        assert found.sum() > 4

    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_a_convolutional_stem_halves_as_often_as_its_patch_asks(self, size: int) -> None:
        model = network(32, model=SMALL_NETWORK, patch={"size": size, "embedding": "conv"})
        assert model.tokens(torch.randn(2, 3, 32, 32)).shape == (2, (32 // size) ** 2, 16)
        strides = [m.stride[0] for m in model.patch_embed.modules() if isinstance(m, nn.Conv2d)]
        assert torch.tensor(strides).prod() == size

    def test_shifted_copies_are_the_image_moved_along_the_diagonals(self) -> None:
        image = torch.arange(1.0, 17).view(1, 1, 4, 4).expand(1, 3, 4, 4)
        copies = shifted_copies(image, 1)[0, ::3]
        assert torch.equal(copies[0], image[0, 0])
        for copy, (y, x) in zip(copies[1:], ((-1, -1), (-1, 1), (1, -1), (1, 1)), strict=True):
            for row in range(4):
                for column in range(4):
                    inside = 0 <= row + y < 4 and 0 <= column + x < 4
                    assert copy[row, column] == (image[0, 0, row + y, column + x] if inside else 0)

    def test_a_shifted_merge_sees_one_token_further(self) -> None:
        model = small(patch={"embedding": "spt"}).eval()
        order, next_order = stage_order(8, 8, 4), stage_order(4, 4, 4)
        x = torch.randn(1, 64, 16, requires_grad=True)
        merged = model.layers[0].downsample(x)  # type: ignore[operator, union-attr]
        merged[0, inverse(next_order, 16)[4 * 1 + 2]].square().sum().backward()
        assert x.grad is not None
        seen = (x.grad[0].abs().sum(-1) > 0)[inverse(order, 64)].view(8, 8)
        expected = torch.zeros(8, 8, dtype=torch.bool)
        expected[1:5, 3:7] = True
        assert torch.equal(seen, expected)

    def test_absolute_positions_are_added_row_by_row(self) -> None:
        model = small(patch={"absolute_position": True}).eval()
        assert model.absolute_pos_embed is not None
        images = torch.randn(1, 3, 16, 16)
        with_positions = model.tokens(images)
        positions = model.absolute_pos_embed.detach().clone()
        nn.init.zeros_(model.absolute_pos_embed)
        difference = (with_positions - model.tokens(images))[:, inverse(stage_order(8, 8, 4), 64)]
        assert torch.allclose(difference, positions, atol=1e-6)


class TestLepe:
    @pytest.mark.parametrize("image", [16, 12])  # the smaller one's windows overhang
    @pytest.mark.parametrize("bias", ["table", "none"])  # by the ways of an eager CPU, and plainly
    @pytest.mark.parametrize("shifted", [0, 1])
    def test_the_values_are_convolved_on_the_map_and_added(self, image: int, bias: str, shifted: int) -> None:
        torch.manual_seed(0)
        attention = {"lepe": True, "position_bias": bias}
        model = network(image, model=SMALL_NETWORK, attention=attention)
        block = model.layers[0].blocks[shifted]  # type: ignore[index, union-attr]
        randomised(block)  # type: ignore[arg-type]
        attn, side = block.attn, image // 2  # type: ignore[union-attr]
        x = torch.randn(2, side**2, 16)
        with_values = block.attention(x)  # type: ignore[operator, union-attr]
        lepe, attn.lepe = attn.lepe, None  # type: ignore[union-attr, assignment]
        order = stage_order(side, side, 4)
        values = torch.nn.functional.linear(x, attn.qkv.weight[32:], attn.qkv.bias[32:])  # type: ignore[union-attr, index]
        rows = values[:, inverse(order, side**2)].mT.unflatten(2, (side, side))
        expected = lepe.conv(rows).flatten(2).mT[:, order] @ attn.proj.weight.T  # type: ignore[union-attr, operator]
        added = with_values - block.attention(x)  # type: ignore[operator, union-attr]
        torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-4)


class TestBlocks:
    def test_a_depthwise_convolution_sees_across_the_windows(self) -> None:
        for conv, border in ((False, 0), (True, 1)):
            block = small(block={"depthwise_conv": conv}).layers[0].blocks[0]  # type: ignore[index, union-attr]
            x = torch.randn(1, 64, 16, requires_grad=True)
            places = inverse(stage_order(8, 8, 4), 64)
            block.mlp(x)[0, places[8 * 3 + 4]].square().sum().backward()  # type: ignore[operator, union-attr]
            assert x.grad is not None
            seen = (x.grad[0].abs().sum(-1) > 0)[places].view(8, 8)
            expected = torch.zeros(8, 8, dtype=torch.bool)
            expected[3 - border : 4 + border, 4 - border : 5 + border] = True
            assert torch.equal(seen, expected)

    def test_layer_scale_begins_at_its_value_on_every_branch(self) -> None:
        model = small(block={"layer_scale": 0.25})
        scales = [m for m in model.modules() if isinstance(m, LayerScale)]
        assert len(scales) == 2 * 4
        assert all(torch.equal(m.gamma, torch.full_like(m.gamma, 0.25)) for m in scales)
        block = model.layers[0].blocks[0].eval()  # type: ignore[index, union-attr]
        x = torch.randn(1, 64, 16)
        for scale in (block.ls1, block.ls2):  # type: ignore[union-attr]
            nn.init.zeros_(scale.gamma)  # type: ignore[arg-type, union-attr]
        assert torch.equal(block(x), x)

    def test_rms_norm_keeps_the_mean_and_there_is_no_other_norm(self) -> None:
        model = small(block={"norm": "rms"})
        assert not any(isinstance(m, nn.LayerNorm) for m in model.modules())
        x = torch.randn(5, 16) + 3
        assert torch.allclose(model.layers[0].blocks[0].norm1(x), x / x.square().mean(-1, keepdim=True).sqrt())  # type: ignore[index, union-attr, operator]

    def test_weight_decay_spares_factors_positions_and_their_network(self) -> None:
        model = small(
            attention={"similarity": "cosine", "position_bias": "continuous"},
            patch={"absolute_position": True},
            block={"layer_scale": 0.1},
        )
        spared = {name.split(".")[-1] for name, p in model.named_parameters() if not decays(name, p)}
        assert spared >= {"logit_scale", "absolute_pos_embed", "gamma", "bias"}
        assert not any(decays(name, p) for name, p in model.named_parameters() if "cpb_mlp" in name)
        assert decays("layers.0.blocks.0.attn.qkv.weight", model.layers[0].blocks[0].attn.qkv.weight)  # type: ignore[index, union-attr, arg-type]


@pytest.mark.parametrize(
    "override",
    ["attention=swin", "attention=swinv2", "attention=lsa", "attention=lepe", "patch=p2_spt", "block=depthwise_conv"],
)
def test_compiles_without_graph_breaks_to_the_same_values(override: str) -> None:
    """As one graph, forward and backward; what then becomes of the graph is torch's affair, and is not waited for."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = variant(override, "model.dim=24", "model.depths=[2,2]", "model.heads=[3,6]", "model.drop_path=0")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 32, 32)
    gradients = []
    for forward in (model, compiled):
        model.zero_grad()
        forward(images).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    eager, ours = gradients
    for name, gradient in eager.items():
        assert torch.allclose(ours[name], gradient, atol=1e-5, rtol=1e-3), name


class TestMimetic:
    """attention=mimetic begins with products near the identity, of each head's rank, and only attention's matrices differ."""

    def test_its_products(self) -> None:
        torch.manual_seed(0)
        attn = network(attention={"init": "mimetic"}).get_submodule("layers.1.blocks.0.attn")
        assert isinstance(attn, WindowAttention)
        C, heads = 192, 6
        q, k, v = attn.qkv.weight.detach().double().view(3, heads, C // heads, C)
        for head in range(heads):
            product = q[head].T @ k[head]
            # The largest of 192 singular values, so more than the whole identity's share of a rank of 32 would be.
            assert product.trace() / C > 0.7 * (C // heads) / C
            assert torch.linalg.matrix_rank(product, rtol=1e-4) == C // heads
        product = attn.proj.weight.detach().double() @ v.reshape(C, C)
        assert product.trace() / C == pytest.approx(-0.4, abs=0.01)
        assert (product + 0.4 * torch.eye(C)).std() * C**0.5 == pytest.approx(0.4, abs=0.01)

    def test_all_else_begins_as_ever(self) -> None:
        torch.manual_seed(0)
        mimetic = network(attention={"init": "mimetic"}).state_dict()
        torch.manual_seed(0)
        differ = {name for name, value in network().state_dict().items() if not torch.equal(value, mimetic[name])}
        assert {name.split("attn.")[-1] for name in differ} == {"qkv.weight", "proj.weight"}


class TestFanIn:
    """model.init=fan_in begins with MLPs and merges that keep the size of what goes through, and all else as ever."""

    def test_its_weights(self) -> None:
        torch.manual_seed(0)
        model = network(model={"init": "fan_in"})
        torch.manual_seed(0)
        ours, normal = model.state_dict(), network().state_dict()
        differ = {name for name in ours if not torch.equal(ours[name], normal[name])}
        assert {name.split(".")[-2] for name in differ} == {"fc1", "fc2", "reduction"}
        assert len(differ) == 2 * 12 + 2  # of twelve blocks and two merges
        for name in differ:
            assert ours[name].std() * ours[name].shape[1] ** 0.5 == pytest.approx(1, abs=0.03), name
        tokens = torch.randn(4, 64, 96)
        assert model.get_submodule("layers.0.blocks.0.mlp.fc1")(tokens).std().item() == pytest.approx(1, abs=0.05)


class TestWhitened:
    """patch=p2_whitened begins with filters whose outputs do not vary together, and only the first convolution differs."""

    @pytest.fixture
    def images(self) -> Tensor:
        """Smooth ones, whose pixels follow from their neighbours, and with noise so that all directions vary."""
        rough = torch.rand(64, 3, 6, 6, generator=torch.Generator().manual_seed(0))
        smooth = nn.functional.interpolate(rough, size=20, mode="bilinear")
        noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(1))
        return ((smooth + 0.1 * noise).clamp(0, 1) * 255).to(torch.uint8)

    def test_its_filters_are_the_directions_in_which_squares_vary(self, images: Tensor) -> None:
        mean, std = mean_std(images)
        filters = whitening(images, std, 3)
        assert filters.shape == (27, 3, 3, 3)
        outputs = nn.functional.conv2d(normalise(images, mean, std).double(), filters)
        variances = (1 / filters.flatten(1).square().sum(1)).numpy() - NOISE
        # Of numpy, from the squares themselves.
        squares = np.lib.stride_tricks.sliding_window_view(
            normalise(images, mean, std).double().numpy(), (3, 3), (2, 3)
        )
        expected = np.linalg.eigvalsh(np.cov(np.moveaxis(squares, 1, 3).reshape(-1, 27).T))[::-1]
        assert variances == pytest.approx(expected, rel=1e-3)
        covariance = outputs.transpose(0, 1).flatten(1).cov()
        assert torch.allclose(covariance, torch.diag(torch.from_numpy(expected / (expected + NOISE))), atol=1e-3)

    def test_directions_without_variance_have_none(self, images: Tensor) -> None:
        """Grey images vary in nine of the 27 directions; those of one colour in none."""
        grey = images[:, :1].expand(-1, 3, -1, -1)
        assert len(whitening(grey, torch.ones(3) / 4, 3)) == 9
        assert len(whitening(torch.full_like(images, 7), torch.ones(3), 3)) == 0

    def test_the_filters_do_not_hang_on_the_scale_of_pixels(self, images: Tensor) -> None:
        """augmentation.normalise=false divides by 1: outputs then vary by as much."""
        plain = whitening(images, torch.ones(3), 3)
        outputs = nn.functional.conv2d(images.double() / 255, plain)
        assert outputs.transpose(0, 1).flatten(1).var(1) == pytest.approx(torch.ones(27), abs=0.05)

    def test_of_large_images_squares_apart_are_looked_at(self, images: Tensor) -> None:
        """As many of 100 pixels a side as of 32: every third."""
        large = images.repeat(1, 1, 5, 5)
        squares = np.lib.stride_tricks.sliding_window_view(large.double().numpy() / 255, (3, 3), (2, 3))[:, :, ::3, ::3]
        largest = np.linalg.eigvalsh(np.cov(np.moveaxis(squares, 1, 3).reshape(-1, 27).T))[-1]
        first = whitening(large, torch.ones(3), 3)[0]
        assert 1 / first.square().sum().item() == pytest.approx(largest, rel=1e-3)

    def test_the_first_convolution_has_each_and_its_negative_and_all_else_is_as_ever(self) -> None:
        run, plain = small_run("patch=p2_whitened", "model.dim=40"), small_run("patch=p2_conv", "model.dim=40")
        whitened, dataset = prepare(run)
        ours, theirs = whitened.state_dict(), prepare(plain)[0].state_dict()
        assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == {"patch_embed.proj.0.weight"}
        first, before = ours["patch_embed.proj.0.weight"], theirs["patch_embed.proj.0.weight"]
        filters = whitening(dataset.train.images, dataset.std, 3)
        count = len(filters)
        assert 0 < count < 10  # digits are grey, and the convolution has 20 channels
        assert torch.equal(first[:count], filters.float())
        assert torch.equal(first[count : 2 * count], -filters.float())
        assert torch.equal(first[2 * count :], before[2 * count :])

    def test_a_narrow_stem_takes_the_first(self) -> None:
        model, dataset = prepare(small_run("patch=p2_whitened"))  # 8 channels
        first = model.patch_embed.proj[0].weight  # type: ignore[index]
        filters = whitening(dataset.train.images, dataset.std, 3)[:4].float()
        assert torch.equal(first, torch.cat([filters, -filters]))

    def test_weights_from_elsewhere_stay(self, tmp_path: Path) -> None:
        source = build_model(small_run("patch=p2_conv", "seed=7"), classes=10)
        torch.save(source.state_dict(), tmp_path / "weights.pt")
        pretrained = small_run("patch=p2_whitened", f"model.pretrained={tmp_path}/weights.pt")
        resumed = small_run("patch=p2_whitened", "seed=7")
        for model in (prepare(pretrained)[0], prepare(resumed, resuming=True)[0]):
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))
