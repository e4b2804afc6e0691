"""The samplers and pruners that conf/ offers are Optuna's, with its defaults where a key is null."""

from __future__ import annotations

import ast
import inspect
import math
import re
import statistics
import warnings
from typing import Any

import optuna
import pytest
import yaml

from swinexp import CONF
from swinexp.mistake import Mistake
from swinexp.sweep.options import Options
from swinexp.sweep.search import (
    EVERY_POINT,
    PRUNERS,
    SAMPLERS,
    build_pruner,
    build_sampler,
    check_search,
    every_point,
)
from swinexp.sweep.space import Space
from tests.sweeping import space_of, sweeper_options

HOME = CONF / "hydra" / "sweeper"
SAMPLER_FILES = sorted(path.stem for path in (HOME / "sampler").glob("*.yaml"))
PRUNER_FILES = sorted(path.stem for path in (HOME / "pruner").glob("*.yaml"))
NUMBERS = ("x=interval(0,1)", "y=tag(log,interval(1e-3,1))")


def sampler_options(name: str, *overrides: str) -> Options:
    return sweeper_options(f"hydra/sweeper/sampler={name}", *overrides)


def pruner_options(name: str, *overrides: str) -> Options:
    return sweeper_options(f"hydra/sweeper/pruner={name}", *overrides)


def content(group: str, name: str) -> dict[str, Any]:
    found = yaml.safe_load((HOME / group / f"{name}.yaml").read_text())
    assert isinstance(found, dict)
    return found


def comment_of(group: str, name: str, key: str) -> str:
    """What a key's comment says, as far as it is a value."""
    found = re.search(
        rf"^{key}: null # (true|false|auto|[\d.]+)\b", (HOME / group / f"{name}.yaml").read_text(), re.MULTILINE
    )
    return found[1] if found else ""


def test_there_is_a_file_for_each_and_each_file_is_one() -> None:
    assert sorted([*SAMPLERS, *EVERY_POINT]) == SAMPLER_FILES
    assert sorted(PRUNERS) == PRUNER_FILES
    for group, names in (("sampler", SAMPLER_FILES), ("pruner", PRUNER_FILES)):
        for name in names:
            assert content(group, name)["name"] == name
            assert (HOME / group / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", SAMPLER_FILES)
def test_every_sampler_builds_and_proposes(name: str) -> None:
    options, space = sampler_options(name), space_of(*NUMBERS)
    sampler = build_sampler(options, space, 0, 0)
    assert type(sampler).__name__ == SAMPLERS.get(name, "RandomSampler")
    study = optuna.create_study(sampler=sampler)
    for value in (3.0, 1.0, 2.0):
        trial = study.ask()
        space.suggest(trial)
        study.tell(trial, value)


@pytest.mark.parametrize("name", PRUNER_FILES)
def test_every_pruner_builds(name: str) -> None:
    bounds = ["hydra.sweeper.pruner.lower=0.1"] if name == "threshold" else []
    assert type(build_pruner(pruner_options(name, *bounds))).__name__ == PRUNERS[name]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_keys_of_a_sampler_are_arguments_of_optunas(name: str) -> None:
    there = set(inspect.signature(getattr(optuna.samplers, SAMPLERS[name])).parameters)
    assert set(content("sampler", name)) - {"name"} <= there


@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_the_keys_of_a_pruner_are_arguments_of_optunas(name: str) -> None:
    there = set(inspect.signature(getattr(optuna.pruners, PRUNERS[name])).parameters)
    assert set(content("pruner", name)) - {"name", "wrapped"} <= there


@pytest.mark.parametrize(
    ("group", "name", "key"),
    [
        (group, name, key)
        for group, names in (("sampler", sorted(SAMPLERS)), ("pruner", sorted(PRUNERS)))
        for name in names
        for key, value in content(group, name).items()
        if value is None and comment_of(group, name, key)
    ],
)
def test_the_default_that_stands_beside_null_is_optunas(group: str, name: str, key: str) -> None:
    """As far as a comment says it as a value."""
    said = comment_of(group, name, key)
    library: Any = optuna.samplers if group == "sampler" else optuna.pruners
    there = {**SAMPLERS, **PRUNERS}[name]
    default = inspect.signature(getattr(library, there)).parameters[key].default
    value = said if said == "auto" else ast.literal_eval(said.capitalize())
    assert value == default, f"{key}: {said}, Optuna: {default}"


def drawn(sampler: optuna.samplers.BaseSampler) -> dict[str, Any]:
    return {key: value for key, value in vars(sampler).items() if isinstance(value, bool | int | float | str)}


@pytest.mark.parametrize("name", ["cmaes", "gp", "nsgaii", "nsgaiii", "random", "tpe"])
def test_nulls_are_optunas_defaults(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        plain = getattr(optuna.samplers, SAMPLERS[name])(
            **({"warn_independent_sampling": False} if name in ("cmaes", "gp") else {})
        )
    ours = build_sampler(sampler_options(name), space_of(*NUMBERS), 0, 0)
    assert {k: v for k, v in drawn(ours).items() if "seed" not in k} == {
        k: v for k, v in drawn(plain).items() if "seed" not in k
    }


@pytest.mark.parametrize("name", ["hyperband", "median"])
def test_nulls_of_a_pruner_are_optunas_defaults(name: str) -> None:
    plain = getattr(optuna.pruners, PRUNERS[name])()
    assert vars(build_pruner(pruner_options(name))) == vars(plain)


def test_a_pruners_keys_are_its_own() -> None:
    """So that another pruner can be typed over a sweep's, and a key that it lacks is not silently without effect."""
    with pytest.raises(
        Mistake, match=r"^hydra.sweeper.pruner.min_resource=2: hydra/sweeper/pruner=none has no such key. Remove"
    ):
        build_pruner(pruner_options("none", "+hydra.sweeper.pruner.min_resource=2"))


def test_what_is_given_reaches_optuna() -> None:
    options = sampler_options("tpe", "hydra.sweeper.sampler.n_startup_trials=3", "hydra.sweeper.sampler.multivariate=false")  # fmt: skip
    sampler = build_sampler(options, space_of(*NUMBERS), 0, 0)
    assert (sampler._n_startup_trials, sampler._multivariate) == (3, False)  # type: ignore[attr-defined]
    pruner = build_pruner(pruner_options("median", "hydra.sweeper.pruner.n_warmup_steps=7"))
    assert pruner._n_warmup_steps == 7  # type: ignore[attr-defined]
    patient = build_pruner(pruner_options("patient", "hydra.sweeper.pruner.wrapped=median"))
    assert isinstance(patient._wrapped_pruner, optuna.pruners.MedianPruner)  # type: ignore[attr-defined]


def test_parameters_with_conditions_are_searched_in_groups() -> None:
    space = space_of("optimizer=adamw,sgd", opts=sweeper_options("hydra.sweeper.conditional=[{when: {optimizer: sgd}, params: {m: 'interval(0,1)'}}]"))  # fmt: skip
    assert build_sampler(sampler_options("tpe"), space, 0, 0)._group  # type: ignore[attr-defined]
    for key in ("group", "multivariate"):
        without = sampler_options("tpe", f"hydra.sweeper.sampler.{key}=false")
        assert not build_sampler(without, space, 0, 0)._group  # type: ignore[attr-defined]


def test_an_interval_for_each_condition_is_learnt() -> None:
    """Under one name, Optuna would draw from the interval of any of them, and begin anew where it does not fit."""
    best = {"a": (1e-3, 0.03), "b": (1e-1, 0.05), "c": (2e-4, 0.025), "d": (3e-3, 0.0), "e": (3e-2, 0.04)}
    each = [
        f"{{when: {{kind: {kind}}}, params: {{lr: 'tag(log,interval({lr / 10},{lr * 10}))'}}}}"
        for kind, (lr, _) in best.items()
    ]
    space = space_of("kind=a,b,c,d,e", opts=sweeper_options(f"hydra.sweeper.conditional=[{','.join(each)}]"))

    def regret(opts: Options) -> float:
        """The mean over the later trials of several studies"""
        found = []
        for seed in range(6):
            study = optuna.create_study()
            for number in range(60):
                study.sampler = build_sampler(opts, space, seed, number)
                trial = study.ask()
                drawn = space.suggest(trial)
                lr, offset = best[drawn["kind"]]
                study.tell(trial, offset + 0.1 * math.log10(drawn["lr"] / lr) ** 2)
            found += [trial.value for trial in study.trials[30:]]
        return statistics.mean(found)

    assert regret(sampler_options("tpe")) < 0.7 * regret(sampler_options("random"))


def point(name: str, number: int, *overrides: str, seed: int = 0, space: Space | None = None) -> dict[str, Any]:
    """What trial `number` of a fresh study is, whichever process asks."""
    space = space or space_of(*NUMBERS, "z=a,b,c")
    study = optuna.create_study(sampler=build_sampler(sampler_options(name, *overrides), space, seed, number))
    return space.suggest(study.ask())


@pytest.mark.parametrize("name", ["random", "tpe", "nsgaii", "gp", "cmaes"])
def test_a_trial_of_one_number_is_one_random_point(name: str) -> None:
    assert point(name, 4) == point(name, 4)
    assert point(name, 4) != point(name, 5)
    assert point(name, 4) != point(name, 4, seed=1)
    assert point(name, 4, "hydra.sweeper.sampler.seed=1") == point(name, 4, seed=1)
    assert point(name, 4, "hydra.sweeper.sampler.seed=0", seed=1) == point(name, 4)


def test_a_quasi_random_sequence_is_one_whoever_asks() -> None:
    """Two workers in turn get what one would have."""
    space, options = space_of(*NUMBERS), sampler_options("qmc")

    def points(*workers: int) -> list[dict[str, Any]]:
        study = optuna.create_study()
        samplers = [build_sampler(options, space, 0, 0) for _ in range(2)]
        found = []
        for worker in workers:
            study.sampler = samplers[worker]
            trial = study.ask()
            found.append(space.suggest(trial))
            study.tell(trial, 1.0)
        return found

    assert points(0, 0, 0, 0, 0, 0) == points(0, 1, 1, 0, 1, 0)
    assert len({each["x"] for each in points(0, 1, 0, 1, 0, 1)}) == 6


def test_a_grid_is_every_point_in_order() -> None:
    space = space_of("x=1,2", "y=a,b")
    expected = [{"x": x, "y": y} for x in (1, 2) for y in ("a", "b")]
    assert every_point(sampler_options("grid"), space, 0) == expected
    assert every_point(sampler_options("random"), space, 0) is None


def test_an_ablation_changes_one_thing_at_a_time() -> None:
    space = space_of("x=1,2,3", "y=range(4,6)", "model=tiny,nano")
    base = {"x": 1, "y": 4, "model": "tiny"}
    changes: list[dict[str, object]] = [{}, {"x": 2}, {"x": 3}, {"y": 5}, {"y": 6}, {"model": "nano"}]
    assert every_point(sampler_options("ablation"), space, 0) == [{**base, **change} for change in changes]
    with pytest.raises(Mistake, match=r"z=interval\(0,1\): an interval has no grid"):
        every_point(sampler_options("ablation"), space_of("x=1,2", "z=interval(0,1)"), 0)


def test_brute_force_is_every_point_in_the_order_of_its_seed() -> None:
    conditional = sweeper_options("hydra.sweeper.conditional=[{when: {optimizer: sgd}, params: {m: '1,2,3'}}]")
    space = space_of("optimizer=adamw,sgd", "x=1,2", opts=conditional)
    options = sampler_options("brute_force")
    points = every_point(options, space, 0)
    assert points is not None
    assert points == every_point(options, space, 0)
    assert points != every_point(options, space, 1)
    assert points != every_point(sampler_options("brute_force", "hydra.sweeper.sampler.seed=1"), space, 0)
    assert every_point(sampler_options("brute_force", "hydra.sweeper.sampler.seed=0"), space, 1) == points
    assert len(points) == 2 + 6
    assert sorted(map(str, points)) == sorted(map(str, space.points()))


def test_what_has_no_end_of_points_is_refused() -> None:
    with pytest.raises(Mistake, match=r"x=interval\(0,1\): an interval has no grid"):
        every_point(sampler_options("brute_force"), space_of(*NUMBERS), 0)
    conditional = sweeper_options("hydra.sweeper.conditional=[{when: {optimizer: sgd}, params: {m: '1,2'}}]")
    with pytest.raises(Mistake) as told:
        every_point(sampler_options("grid"), space_of("optimizer=adamw,sgd", opts=conditional), 0)
    assert str(told.value) == (
        "hydra/sweeper/sampler=grid: it has no conditional parameters. Type hydra/sweeper/sampler=brute_force"
    )


@pytest.mark.parametrize(
    ("overrides", "directions", "curves", "line"),
    [
        (["hydra/sweeper/sampler=cmaes"], 2, False, "hydra/sweeper/sampler=cmaes: it takes one objective, not 2. Type hydra/sweeper/sampler=tpe"),
        (["hydra/sweeper/pruner=median"], 2, False, "hydra/sweeper/pruner=median: nothing is pruned with several objectives (2). Type hydra/sweeper/pruner=none"),
        (["hydra/sweeper/pruner=median"], 1, False, "hydra/sweeper/pruner=median: the objective has no value before the end of a run, so there is nothing to prune by. Type hydra/sweeper/pruner=none, or objective=val/accuracy"),
        (["hydra/sweeper/pruner=wilcoxon"], 1, True, "hydra/sweeper/pruner=wilcoxon: it compares seeds, and hydra.sweeper.seeds=1. Type hydra.sweeper.seeds=5, or hydra/sweeper/pruner=median"),
        (["hydra.sweeper.terminator=regret"], 2, False, "hydra.sweeper.terminator=regret: it takes one objective, not 2. Type hydra.sweeper.terminator=null"),
        (["hydra/sweeper/sampler=nsgaii", "hydra.sweeper.sampler.population_size=1"], 1, True, "hydra.sweeper.sampler.population_size=1: `population_size` must be greater than or equal to 2. Type hydra.sweeper.sampler.population_size=null for Optuna's default"),
        (["hydra/sweeper/sampler=qmc", "hydra.sweeper.sampler.qmc_type=sobel"], 1, True, None),
        (["hydra/sweeper/pruner=threshold"], 1, True, "hydra/sweeper/pruner=threshold: it needs a bound, lower or upper or both. Type hydra.sweeper.pruner.lower=0.25 beside it"),
        (["hydra/sweeper/pruner=patient", "hydra.sweeper.pruner.wrapped=mediam"], 1, True, "hydra.sweeper.pruner.wrapped=mediam: one of none, asha, hyperband, median, percentile, patient, threshold, wilcoxon. Type hydra.sweeper.pruner.wrapped=median"),
        (["hydra/sweeper/pruner=patient", "hydra.sweeper.pruner.wrapped=threshold"], 1, True, "hydra.sweeper.pruner.wrapped=threshold: it has no bounds of its own, and here none can be given. Type hydra.sweeper.pruner.wrapped=median"),
        (["hydra/sweeper/pruner=patient", "hydra.sweeper.pruner.wrapped=5"], 1, True, None),
        (["hydra/sweeper/pruner=patient", "hydra.sweeper.pruner.patience=null"], 1, True, "hydra.sweeper.pruner.patience=null: Optuna has no default for it. Type hydra.sweeper.pruner.patience=5"),
        (["hydra/sweeper/pruner=percentile", "hydra.sweeper.pruner.percentile=200"], 1, True, "hydra.sweeper.pruner.percentile=200: Percentile must be between 0 and 100 inclusive, but got percentile=200. Type hydra.sweeper.pruner.percentile=25.0"),
        (["hydra/sweeper/pruner=percentile", "hydra.sweeper.pruner.percentile=null"], 1, True, "hydra.sweeper.pruner.percentile=null: Optuna has no default for it. Type hydra.sweeper.pruner.percentile=25.0"),
        (["hydra/sweeper/pruner=percentile", "hydra.sweeper.pruner.percentile=many"], 1, True, "hydra.sweeper.pruner.percentile=many: hydra/sweeper/pruner=percentile takes a number. Type hydra.sweeper.pruner.percentile=25.0"),
        (["hydra/sweeper/pruner=percentile", "hydra.sweeper.pruner.percentile=-1"], 1, True, "hydra.sweeper.pruner.percentile=-1: at least 0. Type hydra.sweeper.pruner.percentile=25.0"),
        (["hydra/sweeper/pruner=asha", "hydra.sweeper.pruner.reduction_factor=-1"], 1, True, "hydra.sweeper.pruner.reduction_factor=-1: at least 0. Type hydra.sweeper.pruner.reduction_factor=null for Optuna's default"),
        (["hydra.sweeper.sampler.name=foo"], 1, True, "hydra/sweeper/sampler=foo: one of tpe, gp, cmaes, nsgaii, nsgaiii, qmc, random, grid, brute_force, ablation. Type hydra/sweeper/sampler=tpe"),
        (["+hydra.sweeper.sampler.n_startup=3"], 1, True, None),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_is_told(overrides: list[str], directions: int, curves: bool, line: str | None) -> None:
    with pytest.raises(Mistake) as told:
        check_search(sweeper_options(*overrides), space_of(*NUMBERS), ["minimize"] * directions, curves)
    if line is not None:
        assert str(told.value) == line
    assert "\n" not in str(told.value)
    assert re.match(r"hydra[/.]sweeper[/.]\S+=\S+: .+ Type ", str(told.value))


@pytest.mark.parametrize("name", [each for each in PRUNER_FILES if each != "threshold"])
def test_a_wrapped_pruner_is_the_one_of_its_file(name: str) -> None:
    patient = build_pruner(pruner_options("patient", f"hydra.sweeper.pruner.wrapped={name}"))
    wrapped: Any = patient._wrapped_pruner  # type: ignore[attr-defined]
    assert vars(wrapped).keys() == vars(build_pruner(pruner_options(name))).keys()
    assert type(wrapped) is type(build_pruner(pruner_options(name)))
    if name == "asha":
        assert wrapped._min_resource == content("pruner", "asha")["min_resource"]


def test_cmaes_needs_two_numbers() -> None:
    options = sampler_options("cmaes")
    check_search(options, space_of(*NUMBERS), ["minimize"], True)
    with pytest.raises(Mistake, match="it needs two numbers to vary at least, and here there are 1"):
        check_search(options, space_of("x=interval(0,1)", "y=a,b"), ["minimize"], True)


def test_wilcoxon_is_for_seeds_and_needs_no_curve() -> None:
    options = pruner_options("wilcoxon", "hydra.sweeper.seeds=3")
    check_search(options, space_of(*NUMBERS), ["minimize"], False)


def test_every_default_search_is_allowed() -> None:
    for name in SAMPLER_FILES:
        space = space_of("x=1,2") if name in EVERY_POINT else space_of(*NUMBERS)
        check_search(sampler_options(name), space, ["maximize"], True)
