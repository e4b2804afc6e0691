"""What a user sees who mistypes: the command's own words, exit code 2, and nothing left on the disk."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swinexp import CONF, SWEEPS, run
from swinexp.explain import check_files, explain
from tests.conftest import SMALL, Command


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The one line that a command is refused with."""
    monkeypatch.setattr(sys, "argv", ["swinexp", *arguments])
    with pytest.raises(SystemExit) as stop:
        run.cli()
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("swinexp: ")
    assert len(lines) == 1, lines
    return lines[-1].removeprefix("swinexp: ")


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("trainer.epohcs=3", "trainer.epohcs=3: no such key; trainer has epochs, batch_size, accumulate, label_smoothing, clip_norm, clip_per_tensor, ema, patience, keep, device, gpus, precision, compile, on_nan, fit_memory, small_epochs, small_size, limit_train. Type trainer.epochs=3"),
        ("model=tinny", "model=tinny: no such option; there are base, cifar, nano, record, small, swin_b, swin_s, swin_t, tiny. Type model=tiny"),
        ("experiment=quickstrat", "experiment=quickstrat: no such option; there are cifar10, quickstart, record, reference, speedrun. Type experiment=quickstart"),
        (
            "sweep=size",
            "sweep=size: no such option; there are augmentation, grid, levers, lr_wd, optimizers, pareto, quickstart, record, sizes, speedrun, window_patch. Type sweep=sizes",
        ),
        ("data.root=images", "data.root=images: no such key; data has name, image_size, mirror, val_fraction, split_seed, placement, cache. Type data=cifar10 data.root=images"),
        ("optimizer.momentum=0.9", "optimizer.momentum=0.9: no such key; optimizer has name, lr, weight_decay, decay, layer_decay, betas, eps. Type optimizer=sgd optimizer.momentum=0.9"),
        ("trainer.limit_train=100", "trainer.batch_size=128: there are only 100 training images. Type trainer.batch_size=64"),
        ("model=tyni", "model=tyni: no such option; there are base, cifar, nano, record, small, swin_b, swin_s, swin_t, tiny. Type model=tiny"),
        ("model=[nano,tny]", "model=tny: no such option; there are base, cifar, nano, record, small, swin_b, swin_s, swin_t, tiny. Type model=tiny"),
        ("augmentation.jitter={hue:1}", "augmentation.jitter={hue:1}: a list is needed. Type for example augmentation.jitter=[0.4,0.4,0.4,0.1]"),
        ("trainer=3", "trainer=3: no such option; there are default. Type trainer=default"),
        ("model=nano,tiny", "model=nano,tiny: several values are a multirun. Type -m model=nano,tiny"),
        ("optimizer.lr=range(1,3)", "optimizer.lr=range(1,3): several values are a multirun. Type -m 'optimizer.lr=range(1,3)'"),
        ("+trainer.epochs=3", "+trainer.epochs=3: the key is there already. Type trainer.epochs=3"),
        ("trainer.epochs=many", "trainer.epochs=many: a whole number is needed. Type for example trainer.epochs=1"),
        ("trainer.batch_size=1e2", "trainer.batch_size=100.0: a whole number is needed. Type trainer.batch_size=100"),
        ("trainer.batch_size='3.0'", "trainer.batch_size=3.0: a whole number is needed. Type trainer.batch_size=3"),
        ("optimizer.betas=0.9", "optimizer.betas=0.9: a list is needed. Type for example optimizer.betas=[0.9,0.99]"),
        ("model.freeze=head", "model.freeze=head: a list is needed. Type for example model.freeze=[head]"),
        ("optimizer.name=sgd", "optimizer.name=sgd: an option is more than its name. Type optimizer=sgd"),
        ("schedule.name=linear", "schedule.name=linear: an option is more than its name. Type schedule=linear"),
        ("data.name=cifar10", "data.name=cifar10: an option is more than its name. Type data=cifar10"),
        ("name=../x", "name=../x: 1 to 120 characters without a slash, the first a letter or digit. Type name=ANOTHER_NAME"),
        ("window.size=5", "window.size=5: windows must tile the grid of every stage, here 8×8, 4×4 tokens; [1, 2, 4, 8] do. Type window.size=4"),
        ("data.image_size=33", "patch.size=4: it does not divide the image of 33×33 pixels (data.image_size). Type data.image_size=32"),
        ("patch.size=3", "patch.size=3: it does not divide the image of 32×32 pixels (data.image_size); [1, 2, 4, 8, 16] do, in a grid of 2 stages. Type patch.size=2, or data.image_size=30"),
        ("optimizer.lr=intervall(0,1)", "optimizer.lr=intervall(0,1): what is searched is interval(a,b), range(a,b,step), tag(log,interval(a,b)) or a,b,c. Type 'optimizer.lr=interval(0,1)'"),
        (
            "hydra.sweeper.constraints=[params<=1e6]",
            "hydra.sweeper.constraints=[params<=1e6]: FIGURE <= NUMBER or FIGURE >= NUMBER in quotes, with one of parameters, flops, activations. Type 'hydra.sweeper.constraints=[\"parameters <= 1e6\"]'",
        ),
        ("data.root=/my images, 2", "data.root=/my images, 2: a comma parts values. Type \"data.root='/my images, 2'\" for one path, or -m for several"),
        ("quickstart", "quickstart: what it is an option of is missing. Type experiment=quickstart"),
        ("name=7", "name=7: a word is needed, and this is read as none; in quotes of Hydra's own it is one. Type \"name='7'\""),
        ("experiment=null", "experiment=null: there is none unless one is typed. Type the command without it"),
        ("model={dimm:32}", "model.dimm=32: no such key; model has dim, depths, heads, mlp_ratio, drop_path, norm_eps, init, pretrained, freeze. Type model.dim=32"),
        ("model=t*", "model=t*: no such option; there are base, cifar, nano, record, small, swin_b, swin_s, swin_t, tiny. Type -m 'model=glob(t*)' for each of them"),
        ("hydra.sweeper.n_jobs=1,2", "hydra.sweeper.n_jobs=1,2: one value is wanted here; only a run's own keys are varied. Type hydra.sweeper.n_jobs=1"),
        ("hydra.sweeper.params.optimizer.lr=1,2", "hydra.sweeper.params.optimizer.lr=1,2: what is varied is typed without hydra.sweeper.params. Type -m optimizer.lr=1,2"),
        ("hydra/sweeper/sampler=random", "hydra/sweeper/sampler=random: a search's, and this is none. Type -m hydra/sweeper/sampler=random hydra/sweeper=swinexp_optuna"),
        ("data=image_folder", "data.root=???: it has no default and must be given. Type data.root=FOLDER"),
    ],
)  # fmt: skip
def test_the_whole_line(
    argument: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert refused([argument], capsys, monkeypatch) == line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "instead"),
    [
        ("modle=tiny", "model=tiny"),
        ("tiny", "model=tiny"),
        ("lr_wd", "sweep=lr_wd"),
        ("name=null", "\"name='null'\""),
        ("name=true", "\"name='true'\""),
        ("name=1e3", "\"name='1000.0'\""),
        ("name=nan", "\"name='nan'\""),
        ("--hepl", "--help"),
        ("--mutlirun", "--multirun"),
        ("--resolve", "--cfg job --resolve"),
        ("n_trials=6", "hydra.sweeper.n_trials=6"),
        ("sampler=random", "hydra/sweeper/sampler=random"),
        ("expriment=quickstart", "experiment=quickstart"),
        ("swep=quickstart", "sweep=quickstart"),
        ("sweeps=quickstart", "sweep=quickstart"),
        ("stroage=journal", "storage=journal"),
        ("epochs=3", "trainer.epochs=3"),
        ("model.name=tiny", "model=tiny"),
        ("optimizer.name=sdg", "optimizer=sgd"),
        ("lr=0.1", "optimizer.lr=0.1"),
        ("trainer.lr=0.1", "optimizer.lr=0.1"),
        ("optimzer.lr=3", "optimizer.lr=3"),
        ("+modle=tiny", "model=tiny"),
        ("+modle.dim=32", "model.dim=32"),
        ("model=t?ny", "model=tiny"),
        ("augmentation=null", "augmentation=none"),
        ("hydra.mode=MULTRUN", "for example hydra.mode=MULTIRUN"),
        ("model.heads={1:2}", "for example model.heads=[4,8,16]"),
        ("++augmentation.flp=true", "augmentation.flip=true"),
        ("hydra.rum.dir=x", "hydra.run.dir=x"),
        (
            "trainer.epochs=[1",
            "KEY=VALUE, or \"KEY='VALUE'\" where the value has spaces, commas or brackets of its own",
        ),
        ("+experiment=quickstart", "experiment=quickstart"),
        ("++experiment=quickstart", "experiment=quickstart"),
        ("trainer.epochs.x=3", "trainer.epochs=3"),
        ("--learning-rate=1e-3", "optimizer.lr=1e-3, or --help"),
        ("--model=tinny", "model=tinny, or --help"),
        ("--foo", "KEY=VALUE, or --help"),
        ("--config-name=bst", "--config-name best, or leave it out"),
        ("--config-name=", "--config-name best, or leave it out"),
        ("--config-path=/nowhere", "--config-dir=FOLDER for files beside them"),
        ("optimizer@foo=sgd", "optimizer=sgd"),
        ("trainer.patience=${nope.x}", "trainer.patience=VALUE"),
        ("--config-dir=nowhere", "that of a sweep, which has its best.yaml"),
        ("optimizer.learning_rate=0.1", "optimizer.lr=0.1"),
        ("trainer.max_epochs=3", "trainer.epochs=3"),
        ("bs=32", "trainer.batch_size=32"),
        ("data.rooot=images", "data=cifar10 data.root=images"),
        ("data.batch_size=3", "trainer.batch_size=3"),
        ("optimizer=AdamW", "optimizer=adamw"),
        ("trainer.precision=BF16", "trainer.precision=bf16"),
        ("wandb=none", "wandb=disabled"),
        ("hydra.sweeper.n_trial=3", "sweep=NAME hydra.sweeper.n_trials=3"),
        ("optimizer.lr=tag(log,interval(1e-4))", "'optimizer.lr=tag(log,interval(1e-4,HIGH))'"),
        ("optimizer.lr=tga(log,interval(1e-4,1e-2))", "'optimizer.lr=tag(log,interval(1e-4,1e-2))'"),
        ("optimizer.lr=loguniform(1e-4,1e-2)", "'optimizer.lr=tag(log,interval(1e-4,1e-2))'"),
        ("augmentation.jitter=0.4", "for example augmentation.jitter=[0.4,0.4,0.4,0.1]"),
        ("augmentation.jitter=[a,b]", "for example augmentation.jitter=[0.4,0.4,0.4,0.1]"),
    ],
)
def test_did_you_mean(
    argument: str, instead: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused([argument], capsys, monkeypatch).endswith(f". Type {instead}")


@pytest.mark.parametrize("argument", ["++trainer.foo=1", "images=4"])
def test_what_is_like_nothing_is_to_be_removed(
    argument: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = argument.lstrip("+").partition("=")[0]
    assert refused([argument], capsys, monkeypatch).endswith(f". Remove {key}")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with conf/ and sweeps/ of the user's own."""
    place = tmp_path / "own"
    shutil.copytree(CONF, place / "conf")
    (place / "sweeps").mkdir()
    monkeypatch.setattr("swinexp.explain.conf.CONF", place / "conf")
    monkeypatch.setattr("swinexp.explain.conf.SWEEPS", place / "sweeps")
    return place


def test_a_config_of_values_is_told_from_one_of_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("defaults: [_self_]\nseed: 1\n")
    assert refused(["--config-name=mine"], capsys, monkeypatch).endswith("Type --config-dir . --config-name mine")
    for argument, instead in (
        ("model=tiny", "+model=tiny"),
        ("model=tinny", "model=tiny"),
        ("sweep=grid", "+sweep=grid"),
    ):
        line = refused(["--config-dir=.", "--config-name=mine", argument], capsys, monkeypatch)
        assert line.startswith(f"{argument}: ")
        assert line.endswith(f". Type {instead}")


def test_a_folders_best_config_is_not_left_aside_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a sweep").mkdir()
    Path("a sweep/best.yaml").write_text("defaults: [config, _self_]\n")
    Path("a sweep/study.json").write_text("{}")
    for flags in (["--config-dir=a sweep"], ["--config-dir", "a sweep"], ["-cd", "a sweep"]):
        line = refused([*flags, "model=nano"], capsys, monkeypatch)
        assert line.startswith("--config-dir=a sweep: the best.yaml there is read where it is named")
        assert "Type --config-dir='a sweep' --config-name=best, or --config-name=config" in line


INDENTED = "Write KEY: VALUE, indented with spaces as the lines beside it"


@pytest.mark.parametrize(
    ("option", "content", "line"),
    [
        ("model", "dim: 16\n  heads: [1,2]\n", f"model/own.yaml, line 2: not YAML (mapping values are not allowed here). {INDENTED}"),
        ("model", "heads: [1,2\ndim: 16\n", f"model/own.yaml, line 1: not YAML (expected ',' or ']', but got ':'). {INDENTED}"),
        ("model", "dim: 16\ndim: 17\n", "model/own.yaml, line 2: not YAML (found duplicate key dim). Write it once"),
        ("model", "dim: 16\nhead: [1,2]\n", "model/own.yaml: head: no such key; model has dim, depths, heads, mlp_ratio, drop_path, norm_eps, init, pretrained, freeze. Write heads there"),
        (
            "model",
            "dim:16\n",
            "model/own.yaml: dim:16: no such key; model has dim, depths, heads, mlp_ratio, drop_path, norm_eps, init, pretrained, freeze. Write KEY: VALUE, with a space behind the colon",
        ),
        ("optimizer", "defaults: [sgd, _self_]\nmomentm: 1\n", "optimizer/own.yaml: momentm: no such key; optimizer has name, lr, weight_decay, decay, layer_decay, momentum, nesterov. Write momentum there"),
        (
            "augmentation",
            "defaults: [bsaic, _self_]\n",
            "augmentation/own.yaml: bsaic: no such option; there are auto, basic, digits, none, rand, reference, speedrun, strong, trivial. Write - basic in its defaults",
        ),
        (
            "experiment",
            "# @package _global_\ndefaults: [{override /model: tiny}]\nmodel:\n  hed: 1\n",
            "experiment/own.yaml: hed: no such key; model has dim, depths, heads, mlp_ratio, drop_path, norm_eps, init, pretrained, freeze. Write heads there",
        ),
        ("experiment", "defaults: [{model: tiny}]\n", "experiment/own.yaml: model: tiny: the option of another group is overridden. Write - override /model: tiny in its defaults"),
    ],
)  # fmt: skip
def test_a_slip_in_a_file_of_conf_is_told_with_the_file(
    option: str, content: str, line: str, own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / "conf" / option / "own.yaml").write_text(content)
    assert refused([f"--config-dir={own / 'conf'}", f"{option}=own"], capsys, monkeypatch) == f"conf/{line}"


OURS = "override /hydra/sweeper: swinexp_optuna"


@pytest.mark.parametrize(
    ("defaults", "hydra", "line"),
    [
        (f"[{{{OURS}}}]", "{sweeper: {n_trials: 2}}", "it does not say that it is several runs, and would be one. Write mode: MULTIRUN below its hydra:, or type hydra.mode=RUN"),
        ("[]", "{mode: MULTIRUN, sweeper: {n_trials: 2}}", f"hydra.sweeper.n_trials is a search's, and this is none. Write - {OURS} in its defaults"),
        ("[]", "{mode: MULTIRUN, sweeper: {params: {seed: 'interval(0,1)'}}}", f"seed: interval(0,1) is a search's, and this is none. Write - {OURS} in its defaults"),
        ("[{override /hydra/sweeper/sampler: grid}]", "{mode: MULTIRUN}", f"hydra/sweeper/sampler is a search's, and this is none. Write - {OURS} in its defaults"),
        (f"[{{model: micro}}, {{{OURS}}}]", "{mode: MULTIRUN}", "model: micro: the option of another group is overridden. Write - override /model: micro in its defaults"),
    ],
)  # fmt: skip
def test_a_sweeps_file_that_lacks_a_line_is_told_which(
    defaults: str, hydra: str, line: str, own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / "sweeps" / "own.yaml").write_text(f"defaults: {defaults}\nhydra: {hydra}\n")
    assert refused(["sweep=own"], capsys, monkeypatch) == f"sweeps/own.yaml: {line}"


def test_a_misspelt_key_of_a_sweeps_file_is_told(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"defaults: [{{{OURS}}}]\nhydra: {{mode: MULTIRUN, sweeper: {{n_trial: 2}}}}\n"
    (own / "sweeps" / "own.yaml").write_text(text)
    line = refused(["sweep=own"], capsys, monkeypatch)
    assert line.startswith("sweeps/own.yaml: n_trial: no such key; hydra.sweeper has params, conditional, ")
    assert line.endswith(". Write n_trials there")


GLOBAL = "# @package _global_\n"
SEARCH = f"defaults: [{{{OURS}}}]\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    "
PACKAGE = "Write # @package _global_ as its first line"


@pytest.mark.parametrize(
    ("group", "content", "line"),
    [
        ("sweep", f"{GLOBAL}hydra: {{mode: MULTIRUN, sweepr: {{n_trials: 2}}}}\n", r"sweepr: no such key; hydra has .*\. Write sweeper there"),
        ("sweep", f"{GLOBAL}hydra: {{mode: MULTIRUN, sweeper: {{n_trials: 2}}}}\n", f"hydra.sweeper.n_trials is a search's, and this is none. Write - {OURS} in its defaults"),
        ("sweep", f"{GLOBAL}hydra: {{mode: MULTIRUN, sweeper: []}}\n", r"hydra.sweeper: \[\]: it has keys of its own, and is no value. .*"),
        ("sweep", f"{GLOBAL}hydra: {{mode: MULTRUN}}\n", "hydra.mode: MULTRUN: one of RUN, MULTIRUN. Write for example mode: MULTIRUN there"),
        ("sweep", f"{GLOBAL}{SEARCH}enqueue: {{seed: 1}}\n", r"hydra.sweeper.enqueue: {seed: 1}: a list of points is needed, .*\. Write enqueue: \[{seed: 1}\] there"),
        ("sweep", f"{GLOBAL}{SEARCH}conditional: {{when: {{model: nano}}, param: {{seed: '1,2'}}}}\n", r"hydra.sweeper.conditional: .* Write conditional: \[{when: {model: nano}, params: {seed: '1,2'}}\] there"),
        ("sweep", f"{GLOBAL}{SEARCH}constraints: {{flops: 1e9}}\n", r"hydra.sweeper.constraints: {flops:1e9}: .*\. Write constraints: \[\"flops <= 1e9\"\] there"),
        ("sweep", f"{GLOBAL}{SEARCH}sampler: random\n", "hydra.sweeper.sampler: random: it is a group. Write - override /hydra/sweeper/sampler: random in its defaults"),
        ("sweep", f"{GLOBAL}{SEARCH}params: {{optimizer: {{lr: '1,2'}}}}\n", "hydra.sweeper.params: {optimizer: {lr: '1,2'}}: optimizer.lr is one key here, with its dots. Write optimizer.lr: 1,2 there"),
        ("sweep", f"{GLOBAL}{SEARCH}params: [optimizer.lr]\n", r"hydra.sweeper.params: \[optimizer.lr\]: it is {KEY: what to try}, .* Remove it, and type .*"),
        ("sweep", f"defaults: [{{{OURS}}}]\n", f"without a package its keys are those of sweep, and no run's. {PACKAGE}"),
        ("sweep", f"{GLOBAL}defaults: [{{experiment: quickstart}}]\n", "experiment: quickstart: the option of another group is overridden. Write - override /experiment: quickstart in its defaults"),
        ("sweep", f"{GLOBAL}defaults: [{{override /hydra/sweeper/sampler: grid}}]\nhydra: {{mode: MULTIRUN}}\n", f"hydra/sweeper/sampler is a search's, and this is none. Write - {OURS} in its defaults"),
        ("experiment", f"{GLOBAL}hydra: {{run: {{dirr: x}}}}\n", "dirr: no such key; hydra.run has dir. Write dir there"),
        ("experiment", f"{GLOBAL}trainer: []\n", r"trainer: \[\]: it has keys of its own, and is no value. Write KEY: VALUE below it, or remove it"),
        ("experiment", f"{GLOBAL}trainer:\n", "trainer: null: it has keys of its own, and is no value. .*"),
        ("experiment", f"{GLOBAL}model: tiny\n", "model: tiny: the option of another group is overridden. Write - override /model: tiny in its defaults"),
        ("experiment", f"{GLOBAL}model: {{heads: {{a: 1}}}}\n", r"model.heads: {a:1}: a list is needed. Write for example heads: \[4,8,16\] there"),
        ("experiment", "- trainer\n", "a list, where KEY: VALUE is needed. Write KEY: VALUE, or defaults: above what it lists"),
        ("experiment", f"{GLOBAL}defaults: [override /modl: tiny]\n", "modl: no such group; there are experiment, sweep, .*, window. Write - override /model: tiny in its defaults"),
        ("experiment", f"{GLOBAL}defaults: [override model: tiny]\n", "model: tiny: the option of another group is overridden. Write - override /model: tiny in its defaults"),
        ("experiment", f"{GLOBAL}defaults: [model: tiny]\n", "model: tiny: the option of another group is overridden. Write - override /model: tiny in its defaults"),
        ("experiment", f"{GLOBAL}defaults: [override /hydra/sweeper/sampler: grid]\n", f"hydra/sweeper/sampler is a search's, and this is none. Write - {OURS} in its defaults"),
        ("experiment", f"{GLOBAL}defaults:\n  override /model: tiny\n", "defaults: it is a list. Write - before each line of it, as in - override /model: tiny"),
        ("experiment", "trainer: {epochs: 3}\n", f"without a package its keys are those of experiment, and no run's. {PACKAGE}"),
        ("experiment", f"{GLOBAL}trainr: {{epochs: 3}}\n", "trainr: no such key; there are name, .*, wandb. Write trainer there"),
        ("experiment", f"{GLOBAL}trainer: {{epohcs: 3}}\n", "epohcs: no such key; trainer has epochs, .* Write epochs there"),
        ("model", "defaults: [tiny, override /window: w4]\n", "window: an option of model decides nothing of other groups. Remove it there, and write it in the file of an experiment"),
        ("model", "- dim\n", "a list, where KEY: VALUE is needed. Write KEY: VALUE, or defaults: above what it lists"),
        ("model", "defaults: {tiny: 1}\n", "defaults: it is a list. Write - before each line of it, as in - override /model: tiny"),
    ],
)  # fmt: skip
def test_a_slip_in_a_file_of_ones_own_folder_is_told_with_the_file(
    group: str, content: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path("own", group, "my-own.yaml")
    file.parent.mkdir(parents=True)
    file.write_text(content)
    told = refused(["--config-dir=own", f"{group}=my-own"], capsys, monkeypatch)
    assert re.fullmatch(rf"{file}: {line}", told), told


def test_the_experiment_of_a_sweep_is_looked_at_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for group, content in (
        ("experiment", "trainer: {epochs: 3}\n"),
        ("sweep", f"{GLOBAL}defaults: [{{override /experiment: mine}}]\nhydra: {{mode: MULTIRUN}}\n"),
    ):
        Path("own", group).mkdir(parents=True)
        Path("own", group, "mine.yaml").write_text(content)
    line = refused(["--config-dir", "own", "sweep=mine"], capsys, monkeypatch)
    assert line.startswith("own/experiment/mine.yaml: without a package ")


def test_the_options_of_ones_own_folder_are_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own/model").mkdir(parents=True)
    Path("own/model/minute.yaml").write_text("defaults: [nano, _self_]\n")
    assert refused(["--config-dir=own", "model=minut"], capsys, monkeypatch).endswith(". Type model=minute")
    assert "minute" not in refused(["model=minut"], capsys, monkeypatch).partition(": ")[2]  # it is not looked into


def test_another_command_tells_of_a_file_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/mine.yaml").write_text(f"{GLOBAL}defaults:\n  override /model: tiny\n")
    with pytest.raises(SystemExit), run.reported([]):
        run.compose(["--config-dir=own", "experiment=mine"])
    assert capsys.readouterr().err.startswith("swinexp: own/experiment/mine.yaml: defaults: it is a list. ")


def test_files_of_sweeps_are_whole() -> None:
    for path in SWEEPS.glob("*.yaml"):
        check_files([f"sweep={path.stem}"])
    check_files(["sweep=nowhere", "model=nano"])


def test_a_broken_file_of_sweeps_stops_its_own_sweep_alone(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / "sweeps" / "own.yaml").write_text("hydra:\n\tmode: MULTIRUN\n")
    assert refused(["sweep=own"], capsys, monkeypatch).startswith(
        "sweeps/own.yaml, line 2: not YAML (found character '\\t'"
    )
    start = "import pathlib, swinexp; swinexp.SWEEPS = pathlib.Path('own/sweeps'); import swinexp.run"
    subprocess.run([sys.executable, "-c", start], check=True)


@pytest.mark.parametrize(
    ("key", "arguments"),
    [("hydra.run.dir", []), ("hydra.sweep.dir", ["sweep=quickstart"]), ("hydra.sweep.dir", ["-m"])],
)
def test_a_folder_that_cannot_be_made_is_told(
    key: str,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("a file")
    for place, reason in (("file", "it is a file"), ("file/x", "Not a directory")):
        line = refused([*arguments, f"{key}={place}"], capsys, monkeypatch)
        assert line == f"{key}={place}: cannot be written ({reason}). Type {key}=FOLDER, one that can be"


@pytest.mark.parametrize(
    ("argument", "instead"),
    [
        ("hydra.sweeper.constraints=['params<1e6']", "'hydra.sweeper.constraints=[\"parameters <= 1e6\"]'"),
        ("hydra.sweeper.constraints=[few]", "'hydra.sweeper.constraints=[\"parameters <= 7.05e6\"]'"),
        ("hydra.sweeper.params=optimizer.lr", "'optimizer.lr=tag(log,interval(1e-4,1e-2))', or model=nano,tiny"),
        ("hydra.sweeper.direction=max", "hydra.sweeper.direction=maximize"),
        ("hydra.sweeper.enqueue={trainer.epochs:3}", "'hydra.sweeper.enqueue=[{trainer.epochs:3}]'"),
        ("hydra.sweeper.constraints={flops:10}", "'hydra.sweeper.constraints=[\"flops <= 10\"]'"),
        ("hydra/sweeper/pruner=null", "hydra/sweeper/pruner=none"),
        ("hydra/sweeper/pruner=asha,none", "hydra/sweeper/pruner=asha"),
        ("+hydra.sweeper.params.seed=1,2", "-m sweep=quickstart seed=1,2"),
        ("+hydra.sweeper.params.optimizer.eps=1e-6", "optimizer.eps=1e-06"),
        ("hydra.sweeper.sampler=random", "hydra/sweeper/sampler=random"),
        ("hydra.sweeper.study_name=a/b", "hydra.sweeper.study_name=ANOTHER_NAME"),
        ("batch_size=interval(16,64)", "trainer.batch_size=interval(16,64)"),
        ("trainer.batch_size=interval(16,64)", "'trainer.batch_size=tag(int,interval(16,64))'"),
        ("trainer.batch_size=tag(log,interval(16,64))", "'trainer.batch_size=tag(int,log,interval(16,64))'"),
    ],
)
def test_did_you_mean_in_a_sweep(
    argument: str, instead: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert refused(["sweep=quickstart", argument], capsys, monkeypatch).endswith(f". Type {instead}")
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_only_on_the_disk_leaves_nothing_either(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = refused(["data=image_folder", "data.root=nowhere"], capsys, monkeypatch)
    assert line.startswith("data.root=nowhere: there is no folder nowhere. Type data.root=FOLDER")
    assert "trainer.batch_size=5000" in refused(["trainer.batch_size=5000"], capsys, monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_flags_come_first_and_are_hydras(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    line = refused(["experiment=quickstart", "--epochs", "3"], capsys, monkeypatch)
    assert line == "--epochs: there is no such flag; settings are KEY=VALUE. Type trainer.epochs=3, or --help"
    line = refused(["experiment=quickstart", "-m", "seed=0,1"], capsys, monkeypatch)
    assert line == "seed=0,1: what begins with - comes before all that is set. Type -m experiment=quickstart seed=0,1"
    line = refused(["experiment=quickstart", "seed=0,1"], capsys, monkeypatch)
    assert line == "seed=0,1: several values are a multirun. Type -m experiment=quickstart seed=0,1"


@pytest.mark.parametrize(
    "flag", ["--config-dir my", "-cd my", "--config-dir=my", "-cn best", "-p _global_", "--cfg job"]
)
def test_a_flag_that_comes_late_keeps_what_it_is_given(
    flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused(["experiment=quickstart", *flag.split(), "model=nano"], capsys, monkeypatch)
    assert line.endswith(f". Type {flag} experiment=quickstart model=nano")


def test_one_config_is_printed_at_a_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["experiment=cifar10", "attention=swin,cosine", "--cfg", "job"]
    line = refused(["-m", *given], capsys, monkeypatch)
    instead = "--cfg job experiment=cifar10 attention=swin, or hydra.sweeper.dry_run=5 for those of a search"
    assert line == f"-m: only one config is printed. Type {instead}"
    line = refused(given, capsys, monkeypatch)
    assert line == "attention=swin,cosine: only one config is printed. Type attention=swin"
    line = refused(["--cfg", "job", "--run", "--info"], capsys, monkeypatch)
    assert (
        line
        == "--run: only one config is printed. Type --cfg job --info, or hydra.sweeper.dry_run=5 for those of a search"
    )
    line = refused(["-m", "--run"], capsys, monkeypatch)
    assert line == "-m --run: only one of these goes at a time. Type one of them, or --help"


@pytest.mark.parametrize("name", ["", ".", "..", "../..", "a/b", "-rf", ".hidden", "x" * 200])
def test_a_name_stays_within_its_folder(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "run.log").write_text("the user's own")
    for multirun in ([], ["-m"]):
        line = refused([*multirun, f"name={name}", "trainer.epochs=1"], capsys, monkeypatch)
        assert "1 to 120 characters without a slash" in line
    assert [path.name for path in tmp_path.rglob("*")] == ["run.log"]


def test_an_outputs_that_cannot_be_written_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "outputs").write_text("a file")
    line = refused([*SMALL, "wandb=disabled"], capsys, monkeypatch)
    assert "outputs" in line
    assert line.endswith("cannot be written (Not a directory). Run from another directory, or make room there")


def test_a_multirun_with_a_misspelt_option_starts_no_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert refused(["-m", "model=nano,tinny"], capsys, monkeypatch).endswith("Type model=tiny")
    assert list(tmp_path.iterdir()) == []


def test_an_interval_in_a_plain_multirun_is_answered_with_the_search(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = refused(["-m", "optimizer.lr=interval(1e-4,1e-2)"], capsys, monkeypatch)
    instead = "-m 'optimizer.lr=interval(1e-4,1e-2)' hydra/sweeper=swinexp_optuna"
    assert line == f"hydra/sweeper=basic: an interval is a search's. Type {instead}"
    assert list(tmp_path.iterdir()) == []


def test_a_multirun_with_a_mistaken_job_starts_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = refused(["-m", "window.size=2,3", *SMALL, "wandb=disabled"], capsys, monkeypatch)
    assert line.startswith("window.size=3: windows must tile the grid")
    assert not list(tmp_path.glob("outputs/sweeps/*"))


def test_a_job_that_cannot_begin_does_not_stop_the_others_and_is_told_once(tmp_path: Path, command: Command) -> None:
    done = command("-m", "model.pretrained=none.pt,null", *SMALL, "wandb=disabled")
    assert done.returncode == 2
    mine, hydras = done.stderr.splitlines()
    assert mine.startswith("swinexp: model.pretrained=none.pt: ")
    assert hydras.startswith("Error executing job with overrides: ['model.pretrained=none.pt'")
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert (sweep / "1" / "summary.json").exists()


DIVERGING = [*SMALL, "wandb=disabled", "optimizer=sgd", "trainer.clip_norm=0", "trainer.epochs=1"]


def test_a_run_that_diverges_says_so_once_and_in_its_log(tmp_path: Path, command: Command) -> None:
    done = command(*DIVERGING, "optimizer.lr=1e30", "name=far")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("swinexp: the loss is not finite at step 2 ")
    assert "not finite" not in done.stdout
    log = (tmp_path / "outputs" / "runs" / "far" / "run.log").read_text().splitlines()
    assert log[-1].endswith(f" ERROR   {line.removeprefix('swinexp: ')}")


def test_jobs_that_diverge_each_say_so_and_do_not_stop_the_others(tmp_path: Path, command: Command) -> None:
    done = command("-m", *DIVERGING, "optimizer.lr=1e30,1e-3,1e31")
    assert done.returncode == 1
    assert [f"lr {lr}," in done.stderr for lr in ("5e+29", "5e+30")] == [True, True]
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert [(sweep / job / "summary.json").exists() for job in "012"] == [False, True, False]
    assert all("ERROR   the loss is not finite" in (sweep / job / "run.log").read_text() for job in "02")


def test_another_runs_folder_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = [*SMALL, "wandb=disabled", "trainer.epochs=1", "name=mine"]
    monkeypatch.setattr(sys, "argv", ["swinexp", *small])
    run.cli()
    before = {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()}
    capsys.readouterr()
    line = refused([*small, "seed=5"], capsys, monkeypatch)
    assert "outputs/runs/mine holds a run with another config (seed is 0 there and 5 now)" in line
    assert {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()} == before


def test_hydra_full_error_shows_everything(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    done = command("window.size=5")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "Mistake: window.size=5" in done.stderr


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(run, "_run", bug)
    monkeypatch.setattr(sys, "argv", ["swinexp"])
    with pytest.raises(ZeroDivisionError):
        run.cli()


def test_full_memory_is_not_answered_with_what_was_typed_already() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory.")
    assert (explain(error) or "").endswith("Type a smaller trainer.batch_size, or trainer.fit_memory=true")
    assert (explain(error, ["trainer.fit_memory=True"]) or "").endswith("Type a smaller trainer.batch_size")
