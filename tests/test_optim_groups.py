"""Which parameters get which learning rate and weight decay."""

from __future__ import annotations

import pytest
from torch import nn

from swinexp.optim import AdamW, Muon, build_optimizer, decays, layer, parameter_groups
from tests.conftest import network


def adamw(decay: str = "matrices", layer_decay: float = 1.0) -> AdamW:
    return AdamW("adamw", 1e-3, 0.05, decay, layer_decay, (0.9, 0.99), 1e-8)


def muon(layer_decay: float = 1.0) -> Muon:
    return Muon("muon", 2e-3, 0.05, "matrices", layer_decay, (0.9, 0.99), 1e-8, 0.95, True, 1e-3)


SWIN = network(
    16,
    3,
    model={"dim": 16, "depths": [2, 1], "heads": [1, 2]},
    window={"size": 2},
    patch={"size": 4, "absolute_position": True},
    block={"layer_scale": 0.1, "depthwise_conv": True},
)


@pytest.mark.parametrize("config", [adamw(), adamw("all_2d"), adamw(layer_decay=0.5), muon(), muon(0.5)])
def test_every_trainable_parameter_is_in_one_row_and_moves_by_it(config: AdamW | Muon) -> None:
    named = dict(SWIN.named_parameters())
    groups = parameter_groups(config, SWIN)
    names = [name for group in groups for name in group.parameters]
    assert sorted(names) == sorted(named)
    assert len({group.name for group in groups}) == len(groups)
    lrs = {config.lr, config.adamw_lr} if isinstance(config, Muon) else {config.lr}
    assert groups[0].peak_lr in lrs  # which layer decay would have made smaller
    optimizer = build_optimizer(config, SWIN)
    for row, group in zip(groups, optimizer.param_groups, strict=True):
        assert (group["name"], group["algorithm"]) == (row.name, row.algorithm)
        assert (group["peak_lr"], group["lr"]) == (row.peak_lr, row.peak_lr)
        assert group["weight_decay"] == row.weight_decay
        for name, p in zip(row.parameters, group["params"], strict=True):
            assert p is named[name]


def test_weight_decay_is_for_matrices_and_kernels() -> None:
    decay = {name: group.weight_decay for group in parameter_groups(adamw(), SWIN) for name in group.parameters}
    for name in decay:
        plain = name.endswith(("bias", "relative_position_bias_table", "absolute_pos_embed", "gamma")) or "norm" in name
        assert decay[name] == (0.0 if plain else 0.05), name
    assert decay["patch_embed.proj.weight"] == decay["layers.0.blocks.0.mlp.conv.conv.weight"] == 0.05


def test_all_2d_is_the_rule_of_the_reference() -> None:
    decayed, plain = parameter_groups(adamw("all_2d"), SWIN)
    assert (decayed.name, decayed.weight_decay, plain.name, plain.weight_decay) == ("decayed", 0.05, "not decayed", 0)
    named = dict(SWIN.named_parameters())
    assert set(decayed.parameters) == {name for name, p in named.items() if p.ndim >= 2}
    tables = {name for name, p in named.items() if not decays(name, p)} & set(decayed.parameters)
    assert {name.split(".")[-1] for name in tables} == {"relative_position_bias_table", "absolute_pos_embed"}


def test_lr_decays_from_the_head_to_the_patch_embedding() -> None:
    """As BEiT's (arXiv 2106.08254), in the way of Swin's fine-tuning (arXiv 2111.09886): three blocks, so four powers."""
    groups = parameter_groups(adamw(layer_decay=0.5), SWIN)
    factor = {name: group.peak_lr / 1e-3 for group in groups for name in group.parameters}
    expected = {
        "head.weight": 1.0,
        "head.bias": 1.0,
        "norm.weight": 1.0,
        "layers.1.blocks.0.attn.qkv.weight": 0.5,
        "layers.0.downsample.reduction.weight": 0.25,
        "layers.0.blocks.1.mlp.fc1.bias": 0.25,
        "layers.0.blocks.0.norm1.weight": 0.125,
        "absolute_pos_embed": 0.0625,
        "patch_embed.proj.weight": 0.0625,
    }
    assert {name: factor[name] for name in expected} == pytest.approx(expected)
    assert [group.name for group in groups][:2] == ["layer 4, decayed", "layer 4, not decayed"]
    reference = [2, 6, 4]
    assert layer("layers.1.blocks.5.norm1.bias", reference) == layer("layers.1.downsample.norm.bias", reference) == 8
    assert layer("layers.2.blocks.0.norm1.bias", reference) == 9
    assert layer("head.bias", reference) == 13


def test_frozen_layers_still_count() -> None:
    model = network(16, 3, model={"dim": 16, "depths": [2], "heads": [1]}, window={"size": 2}, patch={"size": 4})
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith("patch_embed")
    groups = parameter_groups(adamw(layer_decay=0.5), model)
    assert [group.peak_lr for group in groups] == [1e-3 / 8] * 2
    assert sum(len(group.parameters) for group in groups) == 4


def test_muon_leaves_embeddings_head_tables_kernels_and_vectors_to_adamw() -> None:
    groups = {group.name: group for group in parameter_groups(muon(), SWIN)}
    assert [*groups] == ["muon, decayed", "adamw, decayed", "adamw, not decayed"]
    assert [group.peak_lr for group in groups.values()] == [2e-3, 1e-3, 1e-3]
    assert {name.split(".", 4)[-1] for name in groups["muon, decayed"].parameters if "blocks" in name} == {
        "attn.qkv.weight",
        "attn.proj.weight",
        "mlp.fc1.weight",
        "mlp.fc2.weight",
    }
    assert "layers.0.downsample.reduction.weight" in groups["muon, decayed"].parameters
    assert set(groups["adamw, decayed"].parameters) == {
        "patch_embed.proj.weight",
        "head.weight",
        *(f"layers.{i}.blocks.{j}.mlp.conv.conv.weight" for i, j in ((0, 0), (0, 1), (1, 0))),
    }


def test_any_module_has_groups() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    groups = parameter_groups(adamw(layer_decay=0.5), module)
    assert [(group.parameters, group.peak_lr) for group in groups] == [
        (("0.weight",), 1e-3),
        (("0.bias", "1.weight", "1.bias"), 1e-3),
    ]
