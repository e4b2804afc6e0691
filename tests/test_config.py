from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import open_dict

from swinexp import CONF, SWEEPS
from swinexp.config import typed
from swinexp.folder import LATER
from swinexp.mistake import Mistake
from tests.conftest import config, small_run

OPTIONS = [
    (path.parent.name, path.stem)
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name not in ("hydra", "experiment", "storage")
]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_into_a_checked_run(group: str, option: str) -> None:
    extra = ["data.root=images"] if option == "image_folder" else []
    if group in ("model", "window"):  # three stages and windows of 8 want a grid of 16
        extra = ["patch=p2"]
    if option == "w7" or option.startswith("swin_"):
        extra = ["patch=p4", "window=w7", "data.image_size=224"]
    if option == "schedule_free":
        extra = ["schedule=constant"]
    run = typed(config(f"{group}={option}", *extra))
    assert getattr(run, group) is not None


@pytest.mark.parametrize("path", [*CONF.glob("*/*.yaml"), *SWEEPS.glob("*.yaml")], ids=lambda path: path.stem)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# ")
    assert lines[0].rstrip().endswith((".", ":", "?", "left to right, for half of the images"))


def test_the_groups_are_those_that_are_promised() -> None:
    options: dict[str, set[str]] = {}
    for group, option in [*OPTIONS, *(("experiment", path.stem) for path in (CONF / "experiment").glob("*.yaml"))]:
        options.setdefault(group, set()).add(option)
    assert options["model"] >= {"nano", "tiny", "small", "base", "cifar", "swin_t", "swin_s", "swin_b"}
    assert options["window"] >= {"w2", "w4", "w8", "w2_noshift", "w4_noshift", "w8_noshift"}
    assert options["patch"] >= {"p1", "p2", "p4", "p2_spt", "p2_conv", "p2_whitened", "p4_conv", "p2_absolute"}
    assert options["attention"] >= {"swin", "no_bias", "continuous_bias", "cosine", "swinv2", "qk_norm", "lsa"}
    assert options["block"] >= {"swin", "swinv2", "layer_scale", "rms_norm", "depthwise_conv"}
    assert options["augmentation"] == {
        "none",
        "basic",
        "trivial",
        "rand",
        "auto",
        "reference",
        "strong",
        "digits",
        "speedrun",
    }
    assert options["optimizer"] == {
        "adamw",
        "adam",
        "sgd",
        "lion",
        "muon",
        "schedule_free",
        "lamb",
        "reference",
        "speedrun",
    }
    schedules = {"cosine", "linear", "constant", "wsd", "one_cycle", "step", "restarts", "reference"}
    assert options["schedule"] == schedules
    assert options["data"] >= {"digits", "cifar10", "cifar100", "svhn", "cinic10", "tiny_imagenet", "image_folder"}
    assert options["wandb"] >= {"auto", "online", "offline", "disabled"}
    assert options["experiment"] >= {"quickstart", "cifar10"}


@pytest.mark.parametrize("experiment", [path.stem for path in (CONF / "experiment").glob("*.yaml")])
def test_every_experiment_composes_and_reads_test_at_its_end(experiment: str) -> None:
    assert typed(config(f"experiment={experiment}")).test


def test_test_is_not_read_unless_asked() -> None:
    assert not typed(config()).test


def test_yaml_holds_every_value_and_the_dataclasses_none() -> None:
    from dataclasses import MISSING, fields, is_dataclass

    from swinexp.config import KINDS, Run

    kinds = [Run, *(kind for options in KINDS.values() for kind in options.values())]
    kinds += [field.type for field in fields(typed(config())) if is_dataclass(field.type)]
    for kind in kinds:
        for field in fields(kind):
            assert field.default is MISSING, f"{kind.__name__}.{field.name}"
            assert field.default_factory is MISSING, f"{kind.__name__}.{field.name}"


def test_mirroring_belongs_to_the_data() -> None:
    assert not typed(config("data=digits", "augmentation=basic")).augmentation.flip
    assert not typed(config("data=svhn", "augmentation=strong")).augmentation.flip
    assert typed(config("data=cifar10", "augmentation=strong")).augmentation.flip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["+optimizer.momentum=0.5"],
            "optimizer.momentum=0.5: no such key; .* Type optimizer=sgd optimizer.momentum=0.5",
        ),
        (["++trainer.epohcs=7"], "trainer.epohcs=7: no such key; trainer has epochs, .* Type trainer.epochs=7"),
        (["trainer.epochs=abc"], "trainer.epochs=abc: a whole number is needed"),
        (["trainer.epochs=1.5"], "trainer.epochs=1.5: a whole number is needed"),
        (["trainer.epochs=0"], "trainer.epochs=0: at least 1. Type trainer.epochs=30"),
        (["optimizer.lr=fast"], "optimizer.lr=fast: a number is needed. Type for example optimizer.lr=0.1"),
        (["model.depths=2"], r"model.depths=2: a list is needed. Type for example model.depths=\[2,6,4\]"),
        (["model.depths=[a,b]"], r"model.depths=a: a whole number is needed in the list"),
        (["test=perhaps"], "test=perhaps: true or false is needed"),
        (["seed=null"], "seed=null: a whole number is needed"),
        (["seed=-1"], "seed=-1: a whole number from 0 to 2⁶³-1. Type seed=0"),
        (["objective=val/acc"], "objective=val/acc: one of val/accuracy, .* Type objective=val/accuracy"),
        (["objective=test/accuracy"], "objective=test/accuracy: the test set is read only with test=true"),
        (["optimizer.name=adagrad"], "optimizer.name=adagrad: one of adamw, adam, sgd, .* Type optimizer=adamw"),
        (["optimizer=schedule_free"], "schedule.name=cosine: .* needs a constant one. Type schedule=constant"),
        (["trainer.precision=fp8"], "trainer.precision=fp8: one of auto, fp32, tf32, bf16, fp16"),
        (["wandb.mode=sometimes"], "wandb.mode=sometimes: one of auto, online, offline, disabled"),
        (["wandb.tags=['']"], r"wandb.tags=\[\]: each tag has 1 to 64 characters"),
        (["wandb.entity=a/b"], "wandb.entity=a/b: a user or a team"),
        (["wandb=disabled", "wandb.images=true"], "wandb.images=true: there is no W&B that gets it"),
        (["wandb.checkpoints=first"], "wandb.checkpoints=first: one of none, last, best, both"),
        (["wandb=disabled", "wandb.notes=why"], "Type wandb.notes=null"),
        (["wandb.project=a/b"], "wandb.project=a/b: 1 to 128 characters without"),
        (["optimizer.lr=inf"], "optimizer.lr=inf: it must be positive"),
        (["model.mlp_ratio=inf"], "model.mlp_ratio=inf: the MLP's width"),
        (["data.split_seed=99999999999999999999999"], "data.split_seed=99999999999999999999999: a whole number"),
        (["optimizer.lr=${nope}"], r"optimizer.lr=.*nope.* not found. Type optimizer.lr=VALUE"),
        (
            ["model.depths=[2,[2]]"],
            r"model.depths=\[2,\[2\]\]: a whole number from 1 for every stage. Type model.depths=\[2,2\]",
        ),
        (["model.heads=[2,null]"], r"model.heads=null: .* Type for example model.heads=\["),
        (["wandb.tags=a"], r"wandb.tags=a: a list is needed. Type for example wandb.tags=\[a\]"),
        (["model.depths=null"], r"model.depths=null: null is not allowed"),
        (["data.placement=gpu"], "data.placement=gpu: one of auto, device, host. Type data.placement=auto"),
        (
            ["data=cinic10", "data.on_error=ignore"],
            "data.on_error=ignore: one of raise, skip. Type data.on_error=raise",
        ),
        (["data=cinic10", "+data.val_fraction=0.1"], "data.val_fraction=0.1: no such key; .* Type data=digits "),
        (["data=image_folder"], r"data.root=\?\?\?: it has no default and must be given. Type data.root=FOLDER"),
        (["~window"], "window=.*it has no default and must be given; there are w2, .* Type window=w2"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_type(overrides: list[str], message: str) -> None:
    with pytest.raises(Mistake, match=message) as mistake:
        typed(config(*overrides))
    assert "\n" not in str(mistake.value)


def test_the_lock_pins_torch() -> None:
    lock = (CONF.parent / "requirements.lock").read_text().splitlines()
    assert {"torch==2.14.1", "torchvision==0.29.1"} <= set(lock)


def test_wandb_mode_comes_from_the_environment_only_with_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert typed(config("wandb=auto")).wandb.mode == "disabled"
    assert typed(config("wandb=offline")).wandb.mode == "offline"


def test_a_composed_config_survives_yaml() -> None:
    from omegaconf import OmegaConf

    cfg = config("experiment=cifar10")
    again = OmegaConf.create(yaml.safe_load(OmegaConf.to_yaml(cfg, resolve=True)))
    assert typed(again) == typed(cfg)
    assert small_run().trainer.epochs == 3


def test_a_file_of_ones_own_from_before_a_key_is_what_it_was() -> None:
    cfg = config("patch=p2")
    for key in LATER:
        group, _, name = key.partition(".")
        with open_dict(cfg):
            del cfg[group][name]
    assert typed(cfg) == typed(config("patch=p2"))
