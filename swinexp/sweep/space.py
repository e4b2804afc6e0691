"""What a sweep varies, as parameters that Optuna can suggest, some only under a condition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.trial import BaseTrial

from swinexp.mistake import Mistake, check, shown
from swinexp.sweep.options import WHERE
from swinexp.sweep.trials import WHEN, by_key

Point = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """One key and what is tried for it. A value that is no number, word, boolean or null is the text that one types."""

    key: str
    distribution: BaseDistribution
    typed: str  # as it was given
    condition: str = ""  # where the key has other values under another one

    @property
    def name(self) -> str:
        """What the study calls it: Optuna has one distribution under a name, and learns from all of its values."""
        return f"{self.key}{WHEN}{self.condition}" if self.condition else self.key

    def suggest(self, trial: BaseTrial) -> Any:
        """The value of a trial, drawn by the study's sampler where the trial has none yet."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return trial.suggest_categorical(self.name, choices)
            case FloatDistribution() as d:
                return trial.suggest_float(self.name, d.low, d.high, step=d.step, log=d.log)
            case IntDistribution() as d:
                return trial.suggest_int(self.name, d.low, d.high, step=d.step, log=d.log)
        raise AssertionError(self.distribution)

    def values(self) -> list[Any]:
        """All values. Raises `Mistake` for an interval, which has no end of them."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return list(choices)
            case IntDistribution(log=False) as d:
                return list(range(d.low, d.high + 1, d.step))
            case FloatDistribution(step=step) as d if step is not None:
                return _steps(d)
        raise Mistake(
            f"{self.key}={self.typed}: an interval has no grid. Type values ({self.key}=a,b,c), range(low,high,step), "
            f"or {WHERE}/sampler=qmc, which fills intervals evenly".replace("hydra.sweeper/", "hydra/sweeper/")
        )

    def extremes(self) -> list[Any]:
        """The values that show whether the run takes them: all choices, or both ends and, of an interval of any
        numbers, one that is not whole."""
        if isinstance(self.distribution, CategoricalDistribution):
            return list(self.distribution.choices)
        assert isinstance(self.distribution, FloatDistribution | IntDistribution)
        low, high = self.distribution.low, self.distribution.high
        within = isinstance(self.distribution, FloatDistribution) and self.distribution.step is None
        return [low, high, *([low + (high - low) / math.pi] if within else [])]

    def whole(self) -> str:
        """The same interval of whole numbers, as one types it."""
        assert isinstance(self.distribution, FloatDistribution)
        tags = "int,log" if self.distribution.log else "int"
        return f"tag({tags},interval({self.distribution.low:g},{self.distribution.high:g}))"

    def has(self, value: Any) -> bool:
        """Whether it is one of its values."""
        try:
            self.known(value)
        except Mistake:
            return False
        return True

    def known(self, value: Any) -> Any:
        """A value that somebody typed, as this parameter has it. Raises `Mistake` when it is none of its values."""
        if isinstance(self.distribution, CategoricalDistribution):
            for choice in self.distribution.choices:
                if text(choice) == text(value):
                    return choice
        elif isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value) if isinstance(self.distribution, FloatDistribution) else value
            if self.distribution._contains(number):
                return number
        raise Mistake(
            f"{WHERE}.enqueue: {self.key}={shown(value)} is not one of {self.typed}. Type one that is, or widen it"
        )


@dataclass
class Space:
    """`fixed` are the overrides that every job has, `parameters` always there, `conditional` only sometimes."""

    fixed: list[str]
    parameters: dict[str, Parameter]
    conditional: list[tuple[dict[str, list[str]], dict[str, Parameter]]] = field(default_factory=list)
    custom: Callable[[BaseTrial], object] | None = None

    def suggest(self, trial: BaseTrial) -> Point:
        """The point of a trial, with what `custom` suggests beside it."""
        point: Point = {}
        for parameter in self._reached(point):
            point[parameter.key] = parameter.suggest(trial)
        if self.custom is not None:
            self.custom(trial)
        return {**by_key(trial.params), **point}

    def _reached(self, point: Point) -> Iterator[Parameter]:
        """The parameters that there are, each as soon as `point` holds the ones before it."""
        yield from self.parameters.values()
        for when, parameters in self.conditional:
            if _fits(when, point):
                yield from (parameter for parameter in parameters.values() if parameter.key not in point)

    def all(self) -> Iterator[Parameter]:
        """Every parameter, those that are conditional once for each condition."""
        yield from self.parameters.values()
        yield from itertools.chain.from_iterable(parameters.values() for _, parameters in self.conditional)

    def parts(self, point: Mapping[str, Any]) -> list[Parameter]:
        """The parameters that a point has values of; none for what it does not have in this space."""
        found: list[Parameter] = []
        known: Point = {}
        for parameter in self._reached(known):
            if parameter.key in point:
                known[parameter.key] = point[parameter.key]
                found.append(parameter)
        return found

    def possible(self, point: Mapping[str, Any]) -> Iterator[Parameter]:
        """The parameters that a point may have, as far as it says."""
        yield from self.parameters.values()
        for when, parameters in self.conditional:
            if _fits({key: values for key, values in when.items() if key in point}, point):
                yield from (parameter for key, parameter in parameters.items() if key not in self.parameters)

    def named(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """A point as the study has it, {name: value}: under each name that a key may have."""
        there = (each for each in self.possible(point) if each.key in point)
        return {each.name: point[each.key] for each in there if each.has(point[each.key])}

    def points(self) -> list[Point]:
        """Every combination, the last parameter fastest. Raises `Mistake` where there is no end of them."""
        found: list[Point] = []

        def extend(point: Point) -> None:
            following = next((p for p in self._reached(point) if p.key not in point), None)
            if following is None:
                found.append(point)
                return
            for value in following.values():
                extend({**point, following.key: value})

        extend({})
        return found

    @property
    def is_continuous(self) -> bool:
        """Whether every point has a number of an interval, which is hardly drawn twice."""
        every = (each.distribution for each in self.parameters.values())
        return any(isinstance(each, FloatDistribution) and each.step is None for each in every)

    def few_points(self, most: int) -> list[Point] | None:
        """`points`, where there are only choices and numbers with a step, and no more than so many points."""
        return self.points() if math.prod(_values(each.distribution) for each in self.all()) <= most else None

    def changes(self) -> list[Point]:
        """The first value of each parameter together, then every other value alone. Raises `Mistake` as `points`."""
        values = {parameter.key: parameter.values() for parameter in self.parameters.values()}
        base = {key: first for key, (first, *_) in values.items()}
        return [base, *({**base, key: other} for key, (_, *others) in values.items() for other in others)]

    def corners(self) -> Iterator[tuple[Parameter, Point]]:
        """(a parameter, a point that has one of its extremes), for every parameter and every extreme."""
        cases: list[tuple[Point, Parameter]] = [({}, parameter) for parameter in self.parameters.values()]
        for when, parameters in self.conditional:
            known = {parameter.key: parameter for parameter in self.all()}
            there = {key: known[key].known(yaml.safe_load(values[0])) for key, values in when.items()}
            cases += [(there, parameter) for parameter in parameters.values()]
        for there, parameter in cases:
            for value in parameter.extremes():
                point: Point = {}
                fixed = {**there, parameter.key: value}
                for each in self._reached(point):
                    point[each.key] = fixed.get(each.key, each.extremes()[0])
                yield parameter, point

    def overrides(self, point: Point) -> list[str]:
        """The overrides of a job: the fixed ones, then those of its point, or of a trial's parameters."""
        return [*self.fixed, *(f"{key}={text(value)}" for key, value in by_key(point).items())]

    def check(self, point: Mapping[str, Any]) -> Point:
        """A point that somebody typed. Raises `Mistake` when it is not in the space."""
        known: Point = {}
        possible: dict[str, list[Parameter]] = {}
        for parameter in self.possible(point):
            possible.setdefault(parameter.key, []).append(parameter)
        for key, value in point.items():
            check(
                key in possible,
                f"{WHERE}.enqueue",
                key,
                f"not varied; {', '.join(possible)} are",
                f"one of these, or vary {key}",
            )
            known[key] = next((each for each in possible[key] if each.has(value)), possible[key][-1]).known(value)
        return known

    def described(self) -> dict[str, str]:
        """{key: what is tried}, as it was typed, conditions included; what is compared when a study goes on."""
        said = {parameter.key: parameter.typed for parameter in self.parameters.values()}
        for when, parameters in self.conditional:
            said |= {f"{each.key}{WHEN}{condition_of(when)}": each.typed for each in parameters.values()}
        return said


def compatible(one: BaseDistribution, other: BaseDistribution) -> bool:
    """Whether Optuna can have both under one name in a study."""
    try:
        check_distribution_compatibility(one, other)
    except ValueError:
        return False
    return True


def condition_of(when: Mapping[str, Sequence[str]]) -> str:
    return ",".join(f"{key}={'|'.join(values)}" for key, values in when.items())


def text(value: Any) -> str:
    """A value as one types it in an override."""
    if isinstance(value, float):
        return repr(float(f"{value:.12g}"))  # 0.3, not 0.30000000000000004
    return shown(value)


def _fits(when: Mapping[str, Sequence[str]], point: Mapping[str, Any]) -> bool:
    return all(key in point and text(point[key]) in values for key, values in when.items())


def _values(distribution: BaseDistribution) -> float:
    """How many values it has, if they are choices or evenly spaced numbers."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return len(choices)
        case IntDistribution(log=False) as d:
            return len(range(d.low, d.high + 1, d.step))
        case FloatDistribution(step=step) as d if step is not None:
            return len(_steps(d))
    return math.inf


def _steps(distribution: FloatDistribution) -> list[float]:
    """The evenly spaced numbers of one that has a step."""
    low, step = distribution.low, distribution.step
    assert step is not None
    return [low + i * step for i in range(math.floor((distribution.high - low) / step + 1e-9) + 1)]
