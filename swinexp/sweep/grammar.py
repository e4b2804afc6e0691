"""Overrides in Hydra's grammar, read as the space of a sweep."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, Quote, QuotedString, RangeSweep, Sweep
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from swinexp.explain import no_option
from swinexp.mistake import Mistake, check, nearest, shown
from swinexp.sweep.options import WHERE, Conditional
from swinexp.sweep.space import Parameter, Space, condition_of, text

TAGS = ("log", "int")  # of intervals


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
        empty, where = "there is nothing in it", f"{WHERE}.conditional"
        check(bool(each.when), where, "{when: {}}", empty, "for example {when: {optimizer: sgd}}")
        check(bool(each.params), where, "{params: {}}", empty, "for example {params: {optimizer.momentum: 0.8,0.9}}")
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
                where,
                f"{{when: {{{key}: {shown(values)}}}}}",
                f"{key} is not varied before; {', '.join(known) or 'nothing'} is",
                f"{key}=a,b beside it",
            )
            listed = values if isinstance(values, list | tuple) else [values]
            when[key] = [text(value) for value in listed]
            _check_values(known[key], listed)
        space.conditional.append((when, parameters))
    different = {
        one.key for one in space.all() for other in space.all() if one.key == other.key and one != other
    } - space.parameters.keys()
    for when, parameters in space.conditional:
        for key in different & parameters.keys():
            parameters[key] = replace(parameters[key], condition=condition_of(when))
    return space


def _check_values(parameter: Parameter, values: Sequence[Any]) -> None:
    """Raise `Mistake` for the values of a condition, where there are none or one of them is never so."""
    key, possible = parameter.key, parameter.distribution
    first = text(parameter.extremes()[0])

    def told(condition: bool, value: Any, problem: str, instead: str) -> None:
        check(condition, f"{WHERE}.conditional", f"{{when: {{{key}: {text(value)}}}}}", problem, instead)

    told(bool(values), values, "there is no value in it", f"{key}: {first}")
    smooth = isinstance(possible, FloatDistribution) and possible.step is None
    told(not smooth, values[0], "hardly ever so: an interval has no end of values", f"{key}=a,b or range(…) to vary it")
    choices = [*map(text, possible.choices)] if isinstance(possible, CategoricalDistribution) else None
    for value in values:
        there = parameter.has(value) if choices is None else text(value) in choices
        told(there, value, f"never so: {key} is one of {parameter.typed}", f"{key}: {first}")


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
    if low + step > high + 1e-9 * step:
        raise bad(f"its step of {step:g} is longer than the range", f"range({low:g},{high:g},{(high - low) / 4:g})")
    if all(isinstance(number, int) for number in (low, high, step)):
        return IntDistribution(int(low), int(low + (high - low) // step * step), step=int(step))
    last = low + math.floor((high - low) / step + 1e-9) * step
    return FloatDistribution(float(low), float(f"{last:.12g}"), step=float(step))
