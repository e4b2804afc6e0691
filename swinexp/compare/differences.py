"""What differs between runs: their keys, the options of groups that these belong to, and filters by both."""

from __future__ import annotations

import functools
import math
import operator
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from swinexp import CONF
from swinexp.compare.runs import Found
from swinexp.explain import settings
from swinexp.folder import incidental
from swinexp.mistake import Mistake, closest, leaves, shown

# What decides no weight: the repetition itself, and what is read or returned in the end.
REPEATED = "seed"
BESIDE = (REPEATED, "objective", "test", "data.root", "trainer.keep")
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}


def value(run: Found, key: str) -> Any:
    """What a run has for a key of its config, for a group (the option's name), or for a figure; None for nothing."""
    if key in run.config:
        return run.config[key]
    if key == "state":
        return run.state
    if _is_group(key):
        return option(run, key) if run.config else None
    return run.summary.get(key)


def as_typed(value: Any) -> str:
    """A value as one types it, the same for 2 and 2.0: W&B does not tell them apart."""
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else shown(value)


def _is_group(key: str) -> bool:
    return key.isidentifier() and (CONF / key).is_dir()


def varied(runs: Sequence[Found]) -> list[str]:
    """The keys by which runs differ, as few as say it: a group stands for those of its keys that its option decides."""
    keys = [
        key
        for key in dict.fromkeys(key for run in runs for key in run.config)
        if key not in BESIDE and not incidental(key) and len({as_typed(run.config.get(key)) for run in runs}) > 1
    ]
    found: list[str] = []
    for group in dict.fromkeys(key.partition(".")[0] for key in keys):
        own = [key for key in keys if key.partition(".")[0] == group]
        if len(own) == 1:
            decided = own if _names(group, own[0], runs) else []
        else:
            decided = [key for key in own if _is_group(group) and decides(group, key, runs)]
        found += [group] if len(decided) > 1 or len(decided) == len(own) else decided
        found += [key for key in own if key not in decided]
    return found


def decides(group: str, key: str, runs: Sequence[Found]) -> bool:
    """Whether runs of the same option have the same value for a key."""
    seen: dict[str, str] = {}
    pairs = ((option(run, group), as_typed(run.config.get(key))) for run in runs)
    return all(seen.setdefault(name, value) == value for name, value in pairs)


def _names(group: str, key: str, runs: Sequence[Found]) -> bool:
    """Whether each value of a key, none of them a number, is what an option of its own is there for."""
    values = {as_typed(run.config.get(key)): option(run, group) for run in runs} if _is_group(group) else {}
    return (
        len(set(values.values())) == len(values) > 1
        and not any(is_number(run.config.get(key)) for run in runs)
        and decides(group, key, runs)
    )


def option(run: Found, group: str) -> str:
    """The option of a group that a run's values are nearest to."""
    own = {key.partition(".")[2]: as_typed(value) for key, value in run.config.items() if key.startswith(f"{group}.")}
    return _nearest(group, tuple(own.items()))


@functools.cache
def _nearest(group: str, own: tuple[tuple[str, str], ...]) -> str:
    has = dict(own)
    options = {path.stem: _content(path) for path in sorted((CONF / group).glob("*.yaml"))}

    def misses(name: str) -> int:
        wanted = {key: as_typed(value) for key, value in options[name].items()}
        given = {key for key, value in wanted.items() if value.startswith("${")}
        return sum(has.get(key) != value for key, value in wanted.items() if key not in given) + len({*has} - {*wanted})

    return min(options, key=misses)


def _content(path: Path) -> dict[str, Any]:
    """The keys of an option's file, with those of the options that it is made from."""
    content = settings(path)
    merged: dict[str, Any] = {}
    for base in content.pop("defaults", []):
        if isinstance(base, str) and base != "_self_":
            merged |= _content(path.with_stem(base))
    return {**merged, **{key: _number(value) for key, value in leaves(content).items()}}


def _number(value: Any) -> Any:
    """A number where YAML 1.1 reads a word, as in 5e-4."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value):
        return float(value)
    return value


def condition(text: str) -> tuple[str, str, Any]:
    """(key, operator, value) of `optimizer.lr<1e-3`. Raises `Mistake`."""
    told = re.fullmatch(r"\s*([^<>=!]+?)\s*(<=|>=|!=|==|<|>|=)\s*(.+?)\s*", text)
    if told is None:
        raise Mistake(f"where={text}: a key, one of < <= > >= = !=, and a value. Type 'where=optimizer.lr<1e-3'")
    return told[1], told[2], _number(_read(told[3]))


def _read(text: str) -> Any:
    """A value as YAML has it, or the words themselves where they are none of its."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def selected(runs: Sequence[Found], conditions: Iterable[str]) -> list[Found]:
    """The runs that keep all conditions; one that lacks the key does not. Raises `Mistake`."""
    kept = list(runs)
    for text in conditions:
        key, sign, wanted = condition(text)
        check_key("where", key, runs, text)

        def keeps(run: Found, key: str = key, sign: str = sign, wanted: Any = wanted, text: str = text) -> bool:
            has = value(run, key)
            if has is None and wanted is not None:
                return False
            try:
                return bool(OPERATORS[sign](has, wanted))
            except TypeError:
                if is_number(has):
                    raise Mistake(f"where={text}: {key} is a number. Type 'where={key}{sign}{shown(has)}'") from None
                told = f"{key} is {shown(has)}, which is not compared so"
                raise Mistake(f"where={text}: {told}. Type 'where={key}={shown(has)}'") from None

        there = dict.fromkeys(shown(value(run, key)) for run in kept)
        kept = [run for run in kept if keeps(run)]
        if not kept:
            values = ", ".join([*there][:8]) + (", …" if len(there) > 8 else "")
            raise Mistake(f"where={text}: no run is left; {key} is {values} in them. Type other conditions, or none")
    return kept


def check_key(option: str, key: str, runs: Sequence[Found], typed: str | None = None) -> None:
    """Raise `Mistake` unless any of the runs has something for a key; `typed` is what it was typed within."""
    if any(value(run, key) is not None or key in run.config for run in runs):
        return
    keys = {key for run in runs for key in (*run.config, *run.summary)} | {"state"}
    known = sorted(keys | {key.partition(".")[0] for key in keys if _is_group(key.partition(".")[0])})
    differing = varied(runs)
    told = f"they differ in {', '.join(differing[:8])}" if differing else "they do not differ"
    if option == "metric":
        known = differing = sorted({key for run in runs for key, has in run.summary.items() if is_number(has)})
        told = f"they have {', '.join(key for key in known if '/' in key)}"
    near = [*differing, *known]
    last = [each for each in near if each.rpartition(".")[2] == key.rpartition(".")[2]]
    best = closest(key, last) or next(iter(last), None) or closest(key, near) or next(iter(differing), "seed")
    whole = typed or key
    instead = shlex.quote(f"{option}={whole.replace(key, best, 1)}")
    raise Mistake(f"{option}={whole}: the runs have no such key; {told}. Type {instead}")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
