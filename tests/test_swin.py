from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor
from torchvision.models.swin_transformer import SwinTransformer

from swinexp.mistake import Mistake
from swinexp.swin import Model, Patch, Swin, Window, check_fit
from swinexp.swin.inside import attention_maps
from swinexp.swin.layers import DropPath
from swinexp.swin.windows import (
    from_table,
    from_windows,
    inverse,
    pairs_by_offset,
    relative_position_index,
    shift_mask,
    stage_order,
    to_windows,
)
from tests.conftest import network, small_run


def torchvision_name(name: str) -> str:
    """Our parameter's name in torchvision's SwinTransformer."""
    for ours, theirs in (("patch_embed.proj", "features.0.0"), ("patch_embed.norm", "features.0.2")):
        name = name.replace(ours, theirs)
    parts = name.split(".")
    if parts[0] == "layers":
        stage = int(parts[1])
        name = ".".join(["features", str(2 * stage + (1 if parts[2] == "blocks" else 2)), *parts[3:]])
    return name.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")


def timm_name(name: str) -> str:
    """Our parameter's name in timm's SwinTransformer, which merges at the beginning of a stage."""
    parts = name.split(".")
    if parts[:1] == ["layers"] and parts[2] == "downsample":
        parts[1] = str(int(parts[1]) + 1)
    return ".".join(parts).replace("head.", "head.fc.")


@dataclass
class Case:
    """A network and an image size; `by` names the peers that define it: they part over clipped windows and padding."""

    image: tuple[int, int] = (32, 32)
    patch: int = 2
    window: int = 4
    depths: tuple[int, ...] = (2, 6, 4)
    heads: tuple[int, ...] = (3, 6, 12)
    mlp_ratio: float = 2.0
    by: tuple[str, ...] = ("timm", "torchvision")

    def ours(self) -> Swin:
        sizes = {
            "dim": 32 * self.heads[0],
            "depths": list(self.depths),
            "heads": list(self.heads),
            "mlp_ratio": self.mlp_ratio,
        }
        return network(self.image, model=sizes, window={"size": self.window}, patch={"size": self.patch})

    def theirs(self, peer: str) -> torch.nn.Module:
        norm = partial(torch.nn.LayerNorm, eps=1e-6)
        if peer == "torchvision":
            return SwinTransformer(
                [self.patch] * 2, 32 * self.heads[0], list(self.depths), list(self.heads), [self.window] * 2,
                self.mlp_ratio, stochastic_depth_prob=0.0, num_classes=10, norm_layer=norm,
            )  # fmt: skip
        timm = pytest.importorskip("timm.models.swin_transformer")
        return timm.SwinTransformer(
            img_size=self.image, patch_size=self.patch, embed_dim=32 * self.heads[0], depths=self.depths, num_heads=self.heads,
            window_size=self.window, mlp_ratio=self.mlp_ratio, drop_path_rate=0.0, num_classes=10, norm_layer=norm,
        )  # fmt: skip


CASES = {
    "reference": Case(),
    "window 2": Case(window=2),
    "window 8, cut to the last grid": Case(window=8, by=("timm",)),
    "patch 1": Case(patch=1, depths=(2, 2, 2)),
    "patch 4, odd depths": Case(patch=4, window=2, depths=(1, 3, 1), mlp_ratio=4.0),
    "64 pixels": Case(image=(64, 64), depths=(2, 2, 2)),
    "224 pixels, Swin-T": Case((224, 224), 4, 7, (2, 2, 6, 2), (3, 6, 12, 24), 4.0),
    "not square": Case(image=(32, 64), depths=(2, 2, 2)),
    "windows overhang, odd grids": Case(image=(40, 56), depths=(2, 2, 2), by=("torchvision",)),
    "windows overhang and maps are odd": Case(image=(36, 52), depths=(2, 2, 2), heads=(2, 4, 8), by=("torchvision",)),
}


@pytest.mark.parametrize(("name", "peer"), [(name, peer) for name, case in CASES.items() for peer in case.by])
def test_equals_its_peers_in_value_and_gradient(name: str, peer: str) -> None:
    """Logits, loss and every gradient, in float64, to 1e-12 of the largest value."""
    torch.manual_seed(0)
    case = CASES[name]
    ours, theirs = case.ours().double(), case.theirs(peer).double()
    rename = timm_name if peer == "timm" else torchvision_name
    for p in theirs.parameters():  # biases and norms too: at 0 and 1 they would hide a mistake
        torch.nn.init.normal_(p, std=0.05)
    weights = dict(theirs.named_parameters())
    assert {rename(key) for key, _ in ours.named_parameters()} == set(weights)
    with torch.no_grad():
        for key, p in ours.named_parameters():
            p.copy_(weights[rename(key)].view_as(p))
    images = torch.randn(2, 3, *case.image, dtype=torch.float64)
    logits = [model(images) for model in (ours, theirs)]
    losses = [torch.nn.functional.cross_entropy(each, torch.tensor([3, 9])) for each in logits]
    for loss in losses:
        loss.backward()
    compared = {"logits": logits, "loss": losses} | {
        key: [p.grad, weights[rename(key)].grad.view_as(p)]  # type: ignore[union-attr, list-item]
        for key, p in ours.named_parameters()
    }
    largest = max(weights[rename(key)].grad.abs().max().item() for key, _ in ours.named_parameters())  # type: ignore[union-attr]
    for key, (mine, expected) in compared.items():
        scale = expected.abs().max().item() if key in ("logits", "loss") else largest
        assert (mine - expected).abs().max().item() <= 1e-12 * scale, key


@pytest.mark.parametrize(("height", "width", "window"), [(16, 16, 4), (8, 16, 4), (6, 9, 3), (4, 4, 4)])
def test_windows_round_trip(height: int, width: int, window: int) -> None:
    x = torch.randn(2, height, width, 5)
    windows = to_windows(x, window)
    assert windows.shape == (2, height * width // window**2, window**2, 5)
    assert torch.equal(from_windows(windows, window, height), x)
    assert torch.equal(windows[0, 0], x[0, :window, :window].reshape(-1, 5))


@pytest.mark.parametrize(("window", "of"), [(1, 1), (2, 2), (7, 7), (2, 4), (3, 7), (1, 2)])
def test_a_bias_tables_gradient_is_autograds(window: int, of: int) -> None:
    index, pairs = relative_position_index(window, of), pairs_by_offset(window, of)
    table = torch.randn((2 * of - 1) ** 2, 3, dtype=torch.double, requires_grad=True)
    inner = slice(of - window, of + window - 1)  # offsets of less than `window`
    small = table.view(2 * of - 1, 2 * of - 1, 3)[inner, inner].flatten(0, 1)
    assert torch.equal(small[relative_position_index(window, window)], table[index])
    plain, ours = table[index].permute(2, 0, 1), from_table(table, index, pairs)
    assert torch.equal(ours, plain)
    y = torch.randn_like(plain)
    torch.testing.assert_close(torch.autograd.grad(ours, table, y), torch.autograd.grad(plain, table, y))


THREE_STAGES = {
    "model": {"dim": 16, "heads": [1, 2, 4], "depths": [2, 2, 2]},
    "patch": {"embedding": "conv"},
    "block": {"depthwise_conv": True},
    "attention": {"lepe": True},
}


@pytest.mark.parametrize(
    "side", [24, 16, 8]
)  # with windows of 4 tokens in the first stage, and of 3, 2 and 1 in the last
def test_a_resized_network_is_that_of_the_other_size_with_the_same_weights(side: int) -> None:
    whole = network(**THREE_STAGES)
    before = torch.get_rng_state()
    small = whole.resized(side)
    assert torch.equal(torch.get_rng_state(), before)
    assert whole.resized(side) is small
    other = network(side, **THREE_STAGES)
    kept = whole.state_dict()
    for name, value in other.state_dict().items():
        if kept[name].shape != value.shape:  # of a smaller window: the inner part of the table
            longest, inner = math.isqrt(len(kept[name])), math.isqrt(len(value))
            cut = slice((longest - inner) // 2, (longest + inner) // 2)
            kept[name] = kept[name].view(longest, longest, -1)[cut, cut].flatten(0, 1)
    other.load_state_dict(kept)
    images = torch.randn(4, 3, side, side)
    for each in (small, other):
        each.train()
        each(images).square().sum().backward()
    assert torch.equal(small(images), other(images))
    theirs = dict(other.named_parameters())
    for name, mine in whole.named_parameters():
        if mine.shape == theirs[name].shape:
            assert torch.equal(mine.grad, theirs[name].grad), name  # type: ignore[arg-type]
    statistics = "patch_embed.proj.1.running_mean"
    assert torch.equal(whole.state_dict()[statistics], other.state_dict()[statistics])


@pytest.mark.parametrize("position", ["table", "continuous"])
def test_a_resized_network_adds_for_an_offset_what_the_whole_one_adds(position: str) -> None:
    whole = network(**THREE_STAGES | {"attention": {"position_bias": position}})
    cut = 0
    for mine, theirs in zip(whole.stages(), whole.resized(16).stages(), strict=True):
        window, smaller = mine.blocks[0].window, theirs.blocks[0].window
        places = torch.arange(window**2).view(window, window)[:smaller, :smaller].flatten()
        bias, of_smaller = mine.blocks[0].attn.position_bias(), theirs.blocks[0].attn.position_bias()
        assert torch.equal(bias[:, places][:, :, places], of_smaller)
        cut += smaller < window
    assert cut == 1


def test_a_network_with_learnt_positions_or_for_smaller_images_cannot_be_resized() -> None:
    for one, side in ((network(patch={"absolute_position": True}), 16), (network(16), 32)):
        with pytest.raises(ValueError, match=f"has no positions for images of {side}×{side}"):
            one.resized(side)


def test_shift_mask_keeps_apart_what_the_shift_brought_together() -> None:
    height, width, window, shift = 8, 12, 4, (2, 1)
    position = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1)
    shifted = to_windows(position.roll((-shift[0], -shift[1]), dims=(0, 1))[None], window)[
        0
    ]  # (G, T, 2): where tokens are from
    near = (shifted[:, :, None] - shifted[:, None, :]).abs().amax(
        -1
    ) < window  # neighbours on the map, without wrapping
    mask = shift_mask(height, width, window, shift)
    assert torch.equal(mask == 0, near)
    assert (mask[~near] == -torch.inf).all()


def test_no_weight_is_subnormal() -> None:
    """Some CPUs take thirty times as long for a product with one; -100 in the mask would leave e^-100."""
    for name, weights in attention_maps(network(), torch.randn(2, 3, 32, 32)).items():
        assert (weights[weights > 0] >= torch.finfo(torch.float32).tiny).all(), name


def touched(model: Swin, block: int, row: int, column: int) -> Tensor:
    """(H, W) bool: the tokens that a block's output at one token depends on."""
    order = stage_order(16, 16, 4)  # which token, row by row, each place has
    places = inverse(order, 256)
    x = torch.randn(1, 256, 96, requires_grad=True)
    model.layers[0].blocks[block](x)[0, places[16 * row + column]].sum().backward()  # type: ignore[index, operator]
    assert x.grad is not None
    return (x.grad[0].abs().sum(-1) > 0)[places].view(16, 16)


def test_a_block_sees_its_window_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = network().eval()
    window = torch.zeros(16, 16, dtype=torch.bool)
    window[4:8, 8:12] = True
    assert torch.equal(touched(model, 0, 5, 9), window)
    shifted = torch.zeros(16, 16, dtype=torch.bool)
    shifted[2:6, 6:10] = True
    assert torch.equal(touched(model, 1, 5, 9), shifted)
    corner = torch.zeros(16, 16, dtype=torch.bool)
    corner[:2, :2] = True  # what the shift wrapped around is masked
    assert torch.equal(touched(model, 1, 0, 0), corner)
    assert torch.equal(touched(network(window={"shift": False}).eval(), 1, 5, 9), window)


def test_grids_that_windows_do_not_divide_are_padded() -> None:
    model = network((20, 28), 7, model={"dim": 32, "depths": [2, 2], "heads": [1, 2]})
    assert model(torch.randn(2, 3, 20, 28)).shape == (2, 7)


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x, branch = torch.full((20_000, 1, 2), 5.0), torch.ones(20_000, 1, 2)
    kept = drop(x, branch) - x
    assert torch.equal(kept[..., 0], kept[..., 1])
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert kept.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(drop.eval()(x, branch), x + branch)


def test_drop_path_grows_linearly_over_the_blocks() -> None:
    rates = [m.rate for m in network(model={"drop_path": 0.1}).modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["window.size=3"], r"window\.size=3: .*4×4, 2×2 tokens; \[1, 2, 4\] do\. Type window\.size="),
        (
            ["patch.init=whitened"],
            r"patch\.init=whitened: it is how a .* patch\.embedding=linear has none\. Type patch\.emb",
        ),
        (["model.init=lecun"], r"model\.init=lecun: one of normal, fan_in"),
        (["patch.init=mimetic"], r"patch\.init=mimetic: one of normal, whitened"),
        (
            ["patch=p2_whitened", "data.image_size=2", "model.depths=[1]", "model.heads=[1]", "window.size=1"],
            r"patch\.init=whitened: its filters are of 3×3 pixels, and images of 2×2 .* Type patch\.init=normal",
        ),
        (["patch.size=3"], r"patch\.size=3: it does not divide the image of 16×16 .* Type patch\.size=2"),
        (
            ["model.heads=[3,2]"],
            r"model\.heads=\[3,2\]: 3 heads do not divide the width of stage 1, 16 .* Type model.heads=\[2,2\]",
        ),
        (["model.heads=[3,5]"], r"model\.heads=\[3,5\]: 3 heads do not divide .* Type model.heads=\[2,4\]"),
        (["model.heads=[1]"], r"model\.heads=\[1\]: one number of heads for each of the 2 stages"),
        (
            ["model.depths=[1,1,1,1]", "model.heads=[1,1,1,1]"],
            r"model\.depths=\[1,1,1,1\]: 4 stages halve the grid 3 times",
        ),
        (["model.depths=[]", "model.heads=[]"], r"model\.depths=\[\]: a whole number from 1 for every stage"),
        (["model.drop_path=1"], r"model\.drop_path=1\.0: a rate in \[0, 1\)"),
    ],
)
def test_sizes_that_do_not_fit_are_told(overrides: list[str], message: str) -> None:
    with pytest.raises(Mistake, match=message):
        small_run(*overrides)


def test_a_suggested_window_fits() -> None:
    for image_size, patch, size in [(32, 2, 5), (32, 1, 3), (48, 2, 7), (16, 4, 8)]:
        model = Model(96, [2, 2], [3, 6], 2.0, 0.0, 1e-6, "normal", None, [])
        pixels = Patch(patch, "linear", False, "normal")
        with pytest.raises(Mistake) as mistake:
            check_fit(model, Window(size, True), pixels, image_size)
        suggested = int(str(mistake.value).rpartition("=")[2])
        check_fit(model, Window(suggested, True), pixels, image_size)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 32, 32), "images must be B × 3 × 32 × 32, and these are 2 × 1 × 32 × 32"),
        ((2, 4, 32, 32), "and these are 2 × 4 × 32 × 32"),
        ((2, 3, 32, 28), "and these are 2 × 3 × 32 × 28"),
        ((3, 32, 32), "and these are 3 × 32 × 32"),
    ],
)
def test_images_of_another_shape_are_told(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network()(torch.randn(shape))


@pytest.mark.parametrize(("image", "patch"), [((2, 2), 4), ((32, 30), 4), (9, 2)])
def test_images_that_patches_do_not_divide_are_told(image: int | tuple[int, int], patch: int) -> None:
    with pytest.raises(ValueError, match=rf"images of .* pixels cannot be cut into patches of {patch}×{patch}"):
        network(image, patch={"size": patch})
