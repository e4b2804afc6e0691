from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import swin_transformer as torchvision

from swinexp.mistake import Mistake
from swinexp.swin import Swin, freeze, load_pretrained
from swinexp.swin.pretrained import resize_patch, resize_table
from swinexp.train import build_model, prepare
from tests.conftest import SMALL_NETWORK, Command, network, small_run

SIZES: dict[str, Any] = {"model": {"norm_eps": 1e-5, **SMALL_NETWORK}}


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    return model.eval()


def torchvision_model(classes: int = 10, v2: bool = False) -> nn.Module:
    parts: dict[str, Any] = {
        "block": torchvision.SwinTransformerBlockV2,
        "downsample_layer": torchvision.PatchMergingV2,
    }
    return randomised(
        torchvision.SwinTransformer(
            [2, 2], 16, [2, 2], [2, 4], [4, 4], 2.0, num_classes=classes, **(parts if v2 else {})
        )
    )


def timm_model(v2: bool = False, window: int = 4, patch: int = 2, classes: int = 10) -> nn.Module:
    pytest.importorskip("timm")
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    kind = SwinTransformerV2 if v2 else SwinTransformer
    return randomised(
        kind(
            img_size=16, patch_size=patch, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=window,
            mlp_ratio=2.0, num_classes=classes,
        )
    )  # fmt: skip


SWINV2 = {"attention": {"similarity": "cosine", "position_bias": "continuous"}, "block": {"placement": "res_post"}}


def small(classes: int = 10, **changes: Any) -> Swin:
    return network(16, classes, **{**SIZES, **changes}).eval()


def saved(model: nn.Module, path: Path, wrapping: str | None = None) -> Path:
    weights = model.state_dict()
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({wrapping: weights, "epoch": 3} if wrapping else weights, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("v2", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_logits_are_those_of_the_model_that_was_saved(source: str, v2: bool, suffix: str, tmp_path: Path) -> None:
    theirs = timm_model(v2) if source == "timm" else torchvision_model(v2=v2)
    ours = small(**(SWINV2 if v2 else {}))
    report = load_pretrained(ours, saved(theirs, tmp_path / f"weights{suffix}"))
    assert (report.source, report.resized, report.fresh) == (f"{source}'s names", {}, [])
    assert set(report.loaded) == set(ours.state_dict())
    images = torch.randn(3, 3, 16, 16)
    assert torch.allclose(ours(images), theirs(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("v2", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_a_file_without_a_head_leaves_it_fresh(source: str, v2: bool, tmp_path: Path) -> None:
    theirs = timm_model(v2) if source == "timm" else torchvision_model(v2=v2)
    path = tmp_path / "weights.pth"
    torch.save({name: value for name, value in theirs.state_dict().items() if not name.startswith("head.")}, path)
    report = load_pretrained(small(**(SWINV2 if v2 else {})), path)
    assert (report.source, report.fresh) == (f"{source}'s names", ["head.weight", "head.bias"])


def test_offsets_on_the_scale_of_other_windows_are_refused(tmp_path: Path) -> None:
    """As in Microsoft's Swin V2 that was trained with windows of 12 and then of 16; timm's files do not tell."""
    pytest.importorskip("timm")
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    for before, refused in ((0, False), (2, True)):
        theirs = SwinTransformerV2(
            img_size=16, patch_size=2, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4,
            mlp_ratio=2.0, num_classes=10, pretrained_window_sizes=(before, before),
        )  # fmt: skip
        tables = {k: v for k, v in theirs.named_buffers() if k.endswith("relative_coords_table")}
        assert len(tables) == 4
        path = tmp_path / f"{before}.pth"
        torch.save({**theirs.state_dict(), **tables}, path)
        if refused:
            with pytest.raises(Mistake, match=r"offsets on the scale of other windows, .* Type a file"):
                load_pretrained(small(**SWINV2), path)
        else:
            assert load_pretrained(small(**SWINV2), path).fresh == []


def microsoft(model: Swin) -> dict[str, Tensor]:
    """As its training script saves a network: with the indices and masks that every network computes itself."""
    weights = dict(model.state_dict())
    for name, module in model.named_modules():
        if name.endswith(".attn"):
            weights[f"{name}.relative_position_index"] = module.relative_position_index
        if getattr(module, "mask", None) is not None:
            weights[f"{name}.attn_mask"] = module.mask
    return weights


def test_microsofts_checkpoint_and_our_own(tmp_path: Path) -> None:
    theirs = randomised(small())
    images = torch.randn(3, 3, 16, 16)
    assert isinstance(theirs, Swin)
    torch.save({"model": microsoft(theirs), "optimizer": {"state": {}}, "epoch": 299}, tmp_path / "microsoft.pth")
    torch.save({"version": 1, "model": theirs.state_dict(), "history": [{"a": 1.0}]}, tmp_path / "last.pt")
    torch.save({f"module._orig_mod.{k}": v for k, v in theirs.state_dict().items()}, tmp_path / "wrapped.pt")
    torch.save({f"_orig_mod.module.{k}": v for k, v in theirs.state_dict().items()}, tmp_path / "around.pt")
    for name in ("microsoft.pth", "last.pt", "wrapped.pt", "around.pt"):
        ours = small()
        report = load_pretrained(ours, tmp_path / name)
        assert torch.equal(ours(images), theirs(images)), name
        total = len(ours.state_dict())
        assert str(report) == f"{total} of {total} tensors loaded (Microsoft's names, which are ours)"


@pytest.mark.parametrize("name", ["t", "s", "b"])
@pytest.mark.slow
def test_published_sizes_fit_torchvisions_checkpoints(name: str, tmp_path: Path) -> None:
    theirs = getattr(torchvision, f"swin_{name}")().eval()
    overrides = (f"model=swin_{name}", "window=w7", "patch=p4", "data.image_size=224", "attention=swin")
    ours = build_model(_run(*overrides), classes=1000).eval()
    report = load_pretrained(ours, saved(theirs, tmp_path / "weights.pth"))
    assert not report.resized
    assert not report.fresh
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-4)


def _run(*overrides: str) -> Any:
    from swinexp.config import typed
    from tests.conftest import config

    return typed(config("wandb=disabled", *overrides))


def test_another_window_gets_its_tables_resized_bicubically(tmp_path: Path) -> None:
    theirs = timm_model(window=4)
    ours = small(window={"size": 2})
    report = load_pretrained(ours, saved(theirs, tmp_path / "weights.pth"))
    tables = [name for name in ours.state_dict() if name.endswith("relative_position_bias_table")]
    assert set(report.resized) == set(tables)
    assert "resized: 2 relative_position_bias_tables 49×2 → 9×2, 2 relative_position_bias_tables 49×4 → 9×4" in str(
        report
    )
    table = theirs.get_parameter("layers.0.blocks.1.attn.relative_position_bias_table")
    expected = nn.functional.interpolate(table.T.reshape(1, 2, 7, 7), (3, 3), mode="bicubic").reshape(2, 9).T
    assert torch.equal(ours.get_parameter("layers.0.blocks.1.attn.relative_position_bias_table"), expected)


def test_a_resized_table_keeps_its_shape_over_the_offsets() -> None:
    """A bias that grows with the distance to the right grows so in every window; resizing to the same changes nothing."""
    table = torch.arange(7.0).repeat(7)[:, None].expand(49, 3)
    for size in (3, 5, 15):
        resized = resize_table(table, (size**2, 3))
        assert resized is not None
        grid = resized[:, 0].view(size, size)
        assert (grid.diff(dim=1) > 0).all()
        assert grid.diff(dim=0).abs().max() < 1e-5
    same = resize_table(table, (49, 3))
    assert same is not None
    assert torch.allclose(same, table, atol=1e-5)
    assert resize_table(table, (49, 4)) is None
    assert resize_table(table[:-1], (49, 3)) is None


def test_another_patch_size_gets_the_embedding_resized_as_timm_does(tmp_path: Path) -> None:
    theirs = timm_model(patch=4, window=2)
    ours = small(window={"size": 2})
    report = load_pretrained(ours, saved(theirs, tmp_path / "weights.pth"))
    assert report.resized == {"patch_embed.proj.weight": "16×3×4×4 → 16×3×2×2"}
    from timm.layers import resample_patch_embed

    kernel = theirs.get_parameter("patch_embed.proj.weight").detach()
    for size in (2, 8):
        resized = resize_patch(kernel, (16, 3, size, size))
        assert resized is not None
        assert torch.allclose(resized, resample_patch_embed(kernel, [size, size], verbose=False), atol=1e-5)


def test_a_larger_patch_answers_to_an_enlarged_patch_as_before() -> None:
    kernel, patch = torch.randn(5, 3, 2, 2), torch.randn(1, 3, 2, 2)
    larger = resize_patch(kernel, (5, 3, 4, 4))
    enlarged = nn.functional.interpolate(patch, (4, 4), mode="bicubic", antialias=True)
    assert larger is not None
    assert torch.allclose((larger * enlarged).sum((1, 2, 3)), (kernel * patch).sum((1, 2, 3)), atol=1e-4)


def test_absolute_positions_are_resized_with_the_grid(tmp_path: Path) -> None:
    there = network(32, **SIZES, patch={"absolute_position": True})
    path = saved(there, tmp_path / "weights.pth")
    report = load_pretrained(small(patch={"absolute_position": True}), path)
    assert report.resized == {"absolute_pos_embed": "1×256×16 → 1×64×16"}


def test_a_head_for_other_classes_is_left_fresh(tmp_path: Path) -> None:
    path = saved(torchvision_model(classes=1000), tmp_path / "weights.pth")
    ours = small()
    before = ours.head.weight.clone()
    report = load_pretrained(ours, path)
    assert report.fresh == ["head.weight", "head.bias"]
    assert torch.equal(ours.head.weight, before)
    total = len(ours.state_dict())
    assert (
        str(report)
        == f"{total - 2} of {total} tensors loaded (torchvision's names); left fresh: head.weight, head.bias"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {**SIZES["model"], "depths": [2, 3]}}, r"layers\.1\.blocks\.2\.norm1\.weight, .* is missing"),
        ({"model": {**SIZES["model"], "depths": [2, 1]}}, r"layers\.1\.blocks\.1\.\S+, .* and \d+ more has no place"),
        ({"model": {**SIZES["model"], "dim": 32}}, r"patch_embed\.proj\.weight has another shape \(16×3×2×2 → 32×"),
        ({"block": {"layer_scale": 0.1}}, r"layers\.0\.blocks\.0\.ls1\.gamma, .* is missing"),
        ({"attention": {"position_bias": "none"}}, r"relative_position_bias_table.* has no place"),
        ({"patch": {"embedding": "spt"}}, r"patch_embed\.proj\.weight has another shape \(16×3×2×2 → 16×60\)"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = saved(timm_model(), tmp_path / "weights.pth")
    ours = small(**changes)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(Mistake, match=message) as mistake:
        load_pretrained(ours, path)
    assert str(mistake.value).startswith(
        f"model.pretrained={path}: these weights (timm's names) do not fit this network"
    )
    assert "\n" not in str(mistake.value)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


@pytest.mark.filterwarnings("ignore:Validating sparse tensor", "ignore:Sparse invariant checks")
def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({**small().state_dict(), "head.bias": torch.ones(10).to_sparse()}, tmp_path / "sparse.pth")
    with pytest.raises(
        Mistake, match=r"sparse.pth: head.bias is no dense tensor \(torch.sparse_coo\)\. Type model.pret"
    ):
        load_pretrained(small(), tmp_path / "sparse.pth")


class Trap:
    """What a hostile file holds: loading it would run a command."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return (Path.touch, (self.proof,))


def test_files_that_are_not_weights(tmp_path: Path) -> None:
    whole = saved(small(), tmp_path / "whole.pth").read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    safe = saved(small(), tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "truncated.safetensors").write_bytes(safe[: len(safe) // 2])
    (tmp_path / "huge_header.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "key.pth").write_bytes(b"j" + (174812789).to_bytes(4, "little"))  # reads as a pickle's 174812789th memo
    (tmp_path / "picture.pth").write_bytes(b"\xff\xd8\xff\xe0 JFIF")
    proof = tmp_path / "proof"
    torch.save({"model": small().state_dict(), "trap": Trap(proof)}, tmp_path / "hostile.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Trap(proof)))
    nan = small()
    nn.init.constant_(nan.head.bias, float("nan"))
    saved(nan, tmp_path / "nan.pth")
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    torch.save({**small().state_dict(), table: torch.zeros(7, 7, 2)}, tmp_path / "cube.pth")
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "folder" / "checkpoints").mkdir(parents=True)
    saved(small(), tmp_path / "folder" / "checkpoints" / "last.pt")
    messages = {
        "cube.pth": r"relative_position_bias_table has another shape \(7×7×2 → 49×2\)",
        "truncated.pth": "cannot be read as weights",
        "truncated.safetensors": "cannot be read as weights",
        "huge_header.safetensors": "cannot be read as weights",
        "empty.pth": "cannot be read as weights",
        "text.pth": r"cannot be read as weights \(it is a file of another kind, or damaged\)",
        "key.pth": r"cannot be read as weights \(it is a file of another kind, or damaged\)",
        "picture.pth": r"cannot be read as weights \(it is a file of another kind, or damaged\)",
        "hostile.pth": "it holds Python objects, which are never loaded",
        "pickle.pth": "cannot be read as weights",
        "nan.pth": "head.bias holds values that are not finite",
        "nothing.pth": "there are no weights in it",
        "list.pth": "there are no weights in it",
        "missing.pth": "there is no such file. Type model.pretrained=FILE",
        "folder": f"this is a folder, .* Type model.pretrained={tmp_path}/folder/checkpoints/last.pt",
    }
    for name, message in messages.items():
        ours = small()
        before = {key: value.clone() for key, value in ours.state_dict().items()}
        with pytest.raises(Mistake, match=message) as mistake:
            load_pretrained(ours, tmp_path / name)
        assert f"model.pretrained={tmp_path / name}: " in str(mistake.value)
        assert "\n" not in str(mistake.value)
        assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items()), name
    assert not proof.exists()


class TestFreezing:
    @pytest.mark.parametrize(
        ("patterns", "frozen"),
        [
            (["patch_embed"], {"patch_embed.proj.weight", "patch_embed.proj.bias", "patch_embed.norm.weight", "patch_embed.norm.bias"}),
            (["head.bias", "norm"], {"head.bias", "norm.weight", "norm.bias"}),
            (["layers.*.blocks.1.mlp.fc?.bias"], {f"layers.{i}.blocks.1.mlp.fc{j}.bias" for i in (0, 1) for j in (1, 2)}),
            ([], set()),
        ],
    )  # fmt: skip
    def test_names_modules_and_wildcards(self, patterns: list[str], frozen: set[str]) -> None:
        model = small()
        assert set(freeze(model, patterns)) == frozen
        assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen

    def test_a_name_that_nothing_has(self) -> None:
        for patterns, message in (
            (
                ["layer.0"],
                r"model\.freeze=layer\.0: no parameter has this name; the network has patch_embed, layers, norm",
            ),
            (["patchembed"], r"Type model\.freeze=\[patch_embed\]$"),
            (["head.*", "layrs", "norm.wieght"], r"layrs: .* Type model\.freeze=\[head\.\*,layers,norm\.weight\]$"),
            (["*"], r"model\.freeze=\[\*\]: that leaves nothing to train"),
        ):
            with pytest.raises(Mistake, match=message):
                freeze(small(), patterns)

    def test_what_is_frozen_stays_and_the_rest_is_trained(self, tmp_path: Path) -> None:
        from swinexp.train import train

        run = small_run("model.freeze=[patch_embed,layers.0]", "trainer.epochs=1")
        model, dataset = prepare(run)
        before = {name: p.clone() for name, p in model.named_parameters()}
        train(run, model, dataset, tmp_path / "last.pt", watch=lambda *_: None)
        for name, p in model.named_parameters():
            assert torch.equal(p, before[name]) == name.startswith(("patch_embed", "layers.0")), name


def test_a_run_begins_with_the_weights_and_resumes_without_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = build_model(small_run("seed=7"), classes=10)
    path = saved(source, tmp_path / "weights.safetensors")
    run = small_run(f"model.pretrained={path}")
    with caplog.at_level(logging.INFO):
        model, _ = prepare(run)
    assert torch.equal(model.head.weight, source.head.weight)
    assert "tensors loaded (Microsoft's names, which are ours)" in caplog.text
    path.unlink()
    assert not torch.equal(prepare(run, resuming=True)[0].head.weight, source.head.weight)


def test_a_refused_file_leaves_no_folder(command: Command, tmp_path: Path) -> None:
    done = command("model.pretrained=nowhere.pth", "wandb=disabled", "data.image_size=16")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("swinexp: model.pretrained=nowhere.pth: there is no such file.")
    assert not (tmp_path / "outputs").exists()
