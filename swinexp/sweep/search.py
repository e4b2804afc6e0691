"""What proposes points and what ends trials early: Optuna's samplers and pruners, by the names of our config groups."""

from __future__ import annotations

import hashlib
import inspect
import random
import re
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution

from swinexp.explain import file_of, settings
from swinexp.mistake import Mistake, check, closest, first_line, nearest, one_of, shown
from swinexp.sweep.options import WHERE, Options
from swinexp.sweep.space import Point, Space

SAMPLERS = {
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "cmaes": "CmaEsSampler",
    "nsgaii": "NSGAIISampler",
    "nsgaiii": "NSGAIIISampler",
    "qmc": "QMCSampler",
    "random": "RandomSampler",
}
EVERY_POINT = ("grid", "brute_force", "ablation")  # which need no sampler: their points wait in the study's queue
PRUNERS = {
    "none": "NopPruner",
    "asha": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "patient": "PatientPruner",
    "threshold": "ThresholdPruner",
    "wilcoxon": "WilcoxonPruner",
}
PLAIN = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a word"}
SAMPLER, PRUNER = "hydra/sweeper/sampler", "hydra/sweeper/pruner"


def build_sampler(options: Options, space: Space, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """The sampler that proposes trial `number`.

    Each trial has one with a seed of its own, so that it proposes the same whichever worker asks, but for a
    quasi-random sequence, which is one sequence.
    """
    given = {key: value for key, value in options.sampler.items() if value is not None}
    name, base = given.pop("name"), given.pop("seed", seed)
    right = type(base) is int and base >= 0
    check(right, f"{WHERE}.sampler.seed", base, "a whole number, at least 0", f"{WHERE}.sampler.seed=0")
    if name in EVERY_POINT:
        return optuna.samplers.RandomSampler(base)
    if name == "tpe" and space.conditional and given.setdefault("multivariate", True):
        given.setdefault("group", True)
    if name == "qmc":
        given["warn_asynchronous_seeding"] = False
    if name in ("qmc", "cmaes", "gp"):
        given["warn_independent_sampling"] = False
    given["seed"] = base if name == "qmc" else _derived(base, number)
    return _built(SAMPLER, "samplers", SAMPLERS, name, given)


def build_pruner(options: Options) -> optuna.pruners.BasePruner:
    """The pruner of a study."""
    given = {key: value for key, value in options.pruner.items() if value is not None}
    name = given.pop("name")
    if name == "patient":
        wrapped = given.pop("wrapped", None)
        given["wrapped_pruner"] = None if wrapped is None else _wrapped(wrapped)
    bound = name != "threshold" or not {"lower", "upper"}.isdisjoint(given)
    check(bound, PRUNER, name, "it needs a bound, lower or upper or both", f"{WHERE}.pruner.lower=0.25 beside it")
    return _built(PRUNER, "pruners", PRUNERS, name, given)


def _wrapped(name: object) -> optuna.pruners.BasePruner:
    """The pruner of this name with what its own file has."""
    key = f"{WHERE}.pruner.wrapped"
    one_of(key, shown(name), list(PRUNERS))
    check(name != "threshold", key, name, "it has no bounds of its own, and here none can be given", f"{key}=median")
    own = {key: value for key, value in settings(file_of(PRUNER, str(name))).items() if value is not None}
    del own["name"]
    if name == "patient":
        own["wrapped_pruner"] = None
    return _built(PRUNER, "pruners", PRUNERS, str(name), own)


def _built(group: str, module: str, names: Mapping[str, str], name: str, given: dict[str, Any]) -> Any:
    where, kind = group.replace("/", "."), getattr(getattr(optuna, module), names[name])
    parameters = inspect.signature(kind).parameters
    known = list(parameters)

    def instead(key: str) -> str:
        """Optuna's default to type, or where it has none, what the option's own file has."""
        needed = parameters[key].default is inspect.Parameter.empty
        own = shown(settings(file_of(group, name)).get(key)) if needed else "null for Optuna's default"
        return f"{where}.{key}={own}"

    for key, parameter in parameters.items():
        lacking = parameter.default is inspect.Parameter.empty and key not in given
        check(not lacking, f"{where}.{key}", None, "Optuna has no default for it", instead(key))
    for key in given.keys() - known:
        best = closest(key, known)
        better = f"Remove {where}.{key}" if best is None else f"Type {where}.{best}={shown(given[key])}"
        raise Mistake(f"{where}.{key}={shown(given[key])}: {group}={name} has no such key. {better}")
    for key, value in given.items():
        written = parameters[key].annotation
        kinds = (written if isinstance(written, str) else getattr(written, "__name__", "")).split(" | ")
        plain = [each for each in PLAIN if each in kinds]
        fits = type(value).__name__ in plain or (type(value) is int and "float" in plain)
        check(
            not plain or fits,
            f"{where}.{key}",
            value,
            f"{group}={name} takes {' or '.join(PLAIN[each] for each in plain)}",
            instead(key),
        )
        check(type(value) is not int or value >= 0, f"{where}.{key}", value, "at least 0", instead(key))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some of them are experimental
        try:
            return kind(**given)
        except (TypeError, ValueError) as error:
            problem = first_line(error).rstrip(".")
            named = next((key for key in given if re.search(rf"\b{key}\b", problem)), None)
            if named is not None:
                check(False, f"{where}.{named}", given[named], problem, instead(named))
            line = f"{group}={name}: {problem}. Type other values for {where}.*"
            raise Mistake(line) from None


def _derived(seed: int, number: int) -> int:
    digest = hashlib.blake2b(repr((seed, number)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def every_point(options: Options, space: Space, seed: int) -> list[Point] | None:
    """The points of a sampler that takes all of them, in its order; None for another. Raises `Mistake`."""
    name = options.sampler["name"]
    if name not in EVERY_POINT:
        return None
    check(
        name == "brute_force" or not space.conditional,
        SAMPLER,
        name,
        "it has no conditional parameters",
        f"{SAMPLER}=brute_force",
    )
    points = space.changes() if name == "ablation" else space.points()
    if name == "brute_force":
        given = options.sampler.get("seed")
        random.Random(seed if given is None else given).shuffle(points)
    return points


def check_search(options: Options, space: Space, directions: list[str], curves: bool) -> None:
    """Raise `Mistake` when sampler or pruner cannot do what is asked.

    `curves`: the objective has a value after each epoch.
    """
    name, pruner = options.sampler.get("name"), options.pruner.get("name")
    for group, given, names in ((SAMPLER, name, [*SAMPLERS, *EVERY_POINT]), (PRUNER, pruner, [*PRUNERS])):
        check(given in names, group, given, f"one of {', '.join(names)}", f"{group}={nearest(str(given), names)}")
    several = len(directions) > 1
    numbers = [p for p in space.parameters.values() if not isinstance(p.distribution, CategoricalDistribution)]
    one = f"it takes one objective, not {len(directions)}"
    check(name != "cmaes" or not several, SAMPLER, name, one, f"{SAMPLER}=tpe")
    check(
        name != "cmaes" or len(numbers) > 1,
        SAMPLER,
        name,
        f"it needs two numbers to vary at least, and here there are {len(numbers)}",
        f"{SAMPLER}=tpe",
    )
    check(
        pruner == "none" or not several,
        PRUNER,
        pruner,
        f"nothing is pruned with several objectives ({len(directions)})",
        f"{PRUNER}=none",
    )
    check(
        pruner in ("none", "wilcoxon") or curves,
        PRUNER,
        pruner,
        "the objective has no value before the end of a run, so there is nothing to prune by",
        f"{PRUNER}=none, or objective=val/accuracy",
    )
    check(
        pruner != "wilcoxon" or options.seeds > 2,
        PRUNER,
        pruner,
        f"it compares seeds, and hydra.sweeper.seeds={options.seeds}",
        "hydra.sweeper.seeds=5, or hydra/sweeper/pruner=median",
    )
    check(
        options.terminator is None or not several,
        "hydra.sweeper.terminator",
        options.terminator,
        one,
        "hydra.sweeper.terminator=null",
    )
    check(
        not options.top_k or not several,
        "hydra.sweeper.top_k",
        options.top_k,
        f"there is no single best of {len(directions)} objectives",
        "hydra.sweeper.top_k=0",
    )
    build_sampler(options, space, 0, 0)
    build_pruner(options)
