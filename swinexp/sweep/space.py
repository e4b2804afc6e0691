"""What a sweep varies: overrides as Hydra's grammar has them, as parameters that Optuna can suggest."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, Quote, QuotedString, RangeSweep, Sweep
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.trial import BaseTrial

from swinexp.explain import no_option
from swinexp.mistake import Mistake, check, nearest, shown
from swinexp.sweep.options import WHERE, Conditional
from swinexp.sweep.trials import WHEN, by_key

Point = dict[str, Any]
TAGS = ("log", "int")  # of intervals


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
                return [d.low + i * step for i in range(math.floor((d.high - d.low) / step + 1e-9) + 1)]
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
        """`points`, where there are only choices and whole numbers, and no more than so many points."""
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
            said |= {f"{each.key}{WHEN}{_condition(when)}": each.typed for each in parameters.values()}
        return said


def _values(distribution: BaseDistribution) -> float:
    """How many values it has, if they are choices or evenly spaced whole numbers."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return len(choices)
        case IntDistribution(log=False) as d:
            return len(range(d.low, d.high + 1, d.step))
    return math.inf


def compatible(one: BaseDistribution, other: BaseDistribution) -> bool:
    """Whether Optuna can have both under one name in a study."""
    try:
        check_distribution_compatibility(one, other)
    except ValueError:
        return False
    return True


def _condition(when: Mapping[str, Sequence[str]]) -> str:
    return ",".join(f"{key}={'|'.join(values)}" for key, values in when.items())


def _fits(when: Mapping[str, Sequence[str]], point: Mapping[str, Any]) -> bool:
    return all(key in point and text(point[key]) in values for key, values in when.items())


def text(value: Any) -> str:
    """A value as one types it in an override."""
    if isinstance(value, float):
        return repr(float(f"{value:.12g}"))  # 0.3, not 0.30000000000000004
    return shown(value)


def build_space(
    params: Mapping[str, Any] | None,
    arguments: Sequence[str],
    conditional: Iterable[Conditional],
    options: Callable[[str], Sequence[str]],
) -> Space:
    """The space of `hydra.sweeper.params`, of the command line, which comes first, and of `hydra.sweeper.conditional`.

    `options` are the options of a config group. Raises `Mistake`, and Hydra's errors for what is no override.
    """
    parser = OverridesParser.create()
    typed = [f"{key}={text(value)}" for key, value in (params or {}).items()]
    overrides = {o.get_key_element(): o for o in parser.parse_overrides([*typed, *arguments])}  # the last one holds
    space = Space(fixed=[], parameters={})
    for key, override in overrides.items():
        if override.is_sweep_override():
            space.parameters[key] = _parameter(key, override, options)
        else:
            space.fixed.append(override.input_line or f"{key}={override.get_value_element_as_str()}")
    for each in conditional:
        parameters = {}
        for override in parser.parse_overrides([f"{key}={text(value)}" for key, value in each.params.items()]):
            key = override.get_key_element()
            check(override.is_sweep_override(), key, text(each.params[key]), "one value varies nothing", f"{key}=a,b")
            parameters[key] = _parameter(key, override, options)
        known = {parameter.key: parameter for parameter in space.all()}
        when = {}
        for key, values in each.when.items():
            check(
                key in known,
                f"{WHERE}.conditional",
                f"{{when: {{{key}: {shown(values)}}}}}",
                f"{key} is not varied before; {', '.join(known) or 'nothing'} is",
                f"{key}=a,b beside it",
            )
            when[key] = [text(value) for value in (values if isinstance(values, list | tuple) else [values])]
            for value in when[key]:
                possible = known[key].distribution
                check(
                    not isinstance(possible, CategoricalDistribution) or value in map(text, possible.choices),
                    f"{WHERE}.conditional",
                    f"{{when: {{{key}: {value}}}}}",
                    f"never so: {key} is one of {known[key].typed}",
                    f"{key}: {text(known[key].extremes()[0])}",
                )
        space.conditional.append((when, parameters))
    different = {
        one.key for one in space.all() for other in space.all() if one.key == other.key and one != other
    } - space.parameters.keys()
    for when, parameters in space.conditional:
        for key in different & parameters.keys():
            parameters[key] = replace(parameters[key], condition=_condition(when))
    return space


def _parameter(key: str, override: Override, options: Callable[[str], Sequence[str]]) -> Parameter:
    value = override.value()
    typed = str(override.input_line).partition("=")[2].strip()
    key = key.lstrip("+") if options(key.lstrip("+")) else key

    def bad(problem: str, instead: str) -> Mistake:
        return Mistake(f"{key}={typed}: {problem}. Type {key}={instead}")

    if isinstance(value, IntervalSweep | RangeSweep):
        for tag in sorted(value.tags - set(TAGS)):
            raise bad(f"tag {tag}: one of {', '.join(TAGS)}", re.sub(rf"\b{tag}\b", nearest(tag, TAGS), typed, count=1))
    if isinstance(value, IntervalSweep):
        return Parameter(key, _interval(value, bad), typed)
    if isinstance(value, RangeSweep) and not value.shuffle:
        return Parameter(key, _range(value, bad), typed)
    known = options(key)
    choices: list[Any] = []
    for each in value.filter(list(known)) if isinstance(value, Glob) else map(_choice, override.sweep_iterator()):
        if text(each) in map(text, choices):
            raise bad(f"{text(each)} is there twice", _once(override))
        choices.append(text(each) if each in choices else each)  # 1, 1.0 and true are one value to Optuna
    if not choices:
        raise bad("there is nothing to choose from", "a,b,c")
    if isinstance(value, Sweep) and getattr(value, "shuffle", False):  # in one order for all that ask
        choices.sort(key=text)
        random.Random(typed).shuffle(choices)
    for choice in choices if known else ():
        if choice is not None and choice not in known:
            raise Mistake(no_option(key, str(choice), known))
    return Parameter(key, CategoricalDistribution(choices), typed)


def _once(override: Override) -> str:
    return ",".join(dict.fromkeys(text(_choice(each)) for each in override.sweep_iterator()))


def _choice(value: Any) -> Any:
    """What Optuna can keep of a choice: plain values as they are, else the text that one types."""
    if isinstance(value, QuotedString):
        return value.with_quotes()
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        try:
            typed = OverridesParser.create().parse_override(f"key={value}").value()
        except HydraException:
            typed = None
        same = isinstance(typed, str) and typed == value
        return value if same else QuotedString(value, Quote.single).with_quotes()  # str(1), a\\,b
    return Override._get_value_element_as_str(value)


def _interval(value: IntervalSweep, bad: Callable[[str, str], Mistake]) -> BaseDistribution:
    low, high = value.start, value.end
    assert low is not None
    assert high is not None
    log, whole = "log" in value.tags, "int" in value.tags or isinstance(low, int)  # tag(int,…), int(…)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise bad("an interval goes from a number up to a larger one", "interval(0.1,1)")
    if log and low <= 0:
        high = high if high > 0 else 1
        raise bad("a logarithmic interval begins above 0", f"tag(log,interval({high / 1000:g},{high:g}))")
    if whole:
        first, last = math.ceil(low), math.floor(high)
        if log and first < 1:
            raise bad("whole numbers on a logarithmic scale begin at 1", f"tag(int,log,interval(1,{max(last, 10)}))")
        if not first < last:
            raise bad("fewer than two whole numbers are in it", f"tag(int,interval({first},{first + 10}))")
        return IntDistribution(first, last, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _range(value: RangeSweep, bad: Callable[[str, str], Mistake]) -> BaseDistribution:
    """Both ends included, as Hydra's own Optuna plugin has it."""
    low, high, step = value.start, value.stop, value.step
    assert low is not None
    assert high is not None
    if "log" in value.tags:
        raise bad("a range has even steps; log is for intervals", f"tag(log,interval({low:g},{high:g}))")
    if not low < high or step <= 0:
        raise bad("a range goes up, in steps above 0", "range(1,5)")
    if all(isinstance(number, int) for number in (low, high, step)):
        return IntDistribution(int(low), int(low + (high - low) // step * step), step=int(step))
    last = low + math.floor((high - low) / step + 1e-9) * step
    return FloatDistribution(float(low), float(f"{last:.12g}"), step=float(step))
