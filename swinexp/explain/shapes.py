"""What keys of a search take that are no plain values, and what was probably meant by another value."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from swinexp.explain.conf import file_shown
from swinexp.explain.line import in_shell
from swinexp.mistake import closest, leaves, nearest, shown
from swinexp.sweep.trial import FACTS

SWEEPER = "hydra.sweeper"
VARIED = "'optimizer.lr=tag(log,interval(1e-4,1e-2))', or model=nano,tiny"
PARTS = ("when", "params")  # of what is conditional


def misshapen(key: str, value: Any, file: Path | None = None) -> str | None:
    """One line for a value of hydra.sweeper's `key` that is no list or mapping where one is needed; None where it fits.

    `file` is where it stands, if it was not typed.
    """
    if isinstance(value, str) and value.startswith("${"):
        return None
    listed = value if isinstance(value, list) else [value]
    if key == "constraints" and isinstance(value, str):
        return _line(key, value, "a list is needed", [value], file)
    if key == "constraints" and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        return no_constraint(shown(next((each for each in listed if not isinstance(each, str)), value)), file)
    if key == "enqueue" and not (isinstance(value, list) and all(isinstance(each, dict) for each in value)):
        told = "a list of points is needed, [{KEY: VALUE}] with what is varied"
        return _line(key, value, told, [each for each in listed if isinstance(each, dict)], file)
    if key == "conditional" and not (isinstance(value, list) and all(_is_conditional(each) for each in value)):
        told = "a list is needed, [{when: {KEY: VALUE}, params: {KEY: what to try}}]"
        return _line(key, value, told, [each for each in map(_renamed, listed) if _is_conditional(each)], file)
    if key == "direction" and not isinstance(value, list | str | None):
        told = "minimize or maximize, or a list of them for several objectives"
        return _line(key, value, told, "maximize", file)
    if key in ("sampler", "pruner") and not isinstance(value, dict):
        name = value if isinstance(value, str) else {"sampler": "tpe", "pruner": "none"}[key]
        group = f"{SWEEPER.replace('.', '/')}/{key}"
        instead = f"Type {group}={name}" if file is None else f"Write - override /{group}: {name} in its defaults"
        return f"{_place(key, value, file)}: it is a group. {instead}"
    if key == "params" and not isinstance(value, dict | None):
        told = "it is {KEY: what to try}, and each KEY can be typed without it"
        return f"{_place(key, value, file)}: {told}. {'Remove it, and type' if file else 'Type'} {VARIED}"
    if key == "params":
        return _nested(value or {}, file)
    return None


def _nested(params: dict[str, Any], file: Path | None) -> str | None:
    for key, value in params.items():
        if isinstance(value, dict):
            whole, tried = next(iter(leaves({key: value}).items()), (f"{key}.KEY", "a,b"))
            told = f"{whole} is one key here, with its dots"
            instead = f"Write {whole}: {shown(tried)} there" if file else f"Type {in_shell(f'{whole}={shown(tried)}')}"
            return f"{_place('params', params, file)}: {told}. {instead}"
    return None


def no_constraint(typed: str, file: Path | None = None) -> str:
    """One line for a constraint of a sweep that is none."""
    found = re.fullmatch(r"[\[{'\"\s]*(\w+)\s*([<>:])=?\s*([-+.\de_]+)['\"\]}\s]*", typed)
    figure, sign, bound = found.groups() if found else ("", "<", "7.05e6")
    instead = f'["{nearest(figure, FACTS)} {sign.replace(":", "<")}= {bound}"]'
    told = f"FIGURE <= NUMBER or FIGURE >= NUMBER in quotes, with one of {', '.join(FACTS)}"
    if file is not None:
        return f"{file_shown(file)}: {SWEEPER}.constraints: {typed}: {told}. Write constraints: {instead} there"
    return f"{SWEEPER}.constraints={typed}: {told}. Type '{SWEEPER}.constraints={instead}'"


def to_vary(params: Any) -> str:
    """What to type where nothing is varied: a list's values apart, if there is one, for it is one value."""
    lists = {key: each for key, each in (params or {}).items() if isinstance(each, list) and len(each) > 1}
    return next((f"{key}={shown(each)[1:-1]}" for key, each in lists.items()), VARIED)


def _is_conditional(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != set(PARTS):
        return False
    return all(isinstance(each, dict) for each in value.values())


def _renamed(value: Any) -> Any:
    return {closest(str(key), PARTS): each for key, each in value.items()} if isinstance(value, dict) else value


def _line(key: str, value: Any, told: str, better: Any, file: Path | None) -> str:
    typed = in_shell(f"{SWEEPER}.{key}={_typed(better)}")
    instead = f"Type {typed}" if file is None else f"Write {key}: {_written(better)} there"
    return f"{_place(key, value, file)}: {told}. {instead}"


def _place(key: str, value: Any, file: Path | None) -> str:
    if file is None:
        return f"{SWEEPER}.{key}={shown(value)}"
    return f"{file_shown(file)}: {SWEEPER}.{key}: {_written(value)}"


def _written(value: Any) -> str:
    """A value on one line of YAML."""
    return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)).partition("\n")[0]


def _typed(value: Any) -> str:
    """A value as Hydra reads it, with quotes where it has brackets or commas of its own."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_typed(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    plain = not isinstance(value, str) or re.fullmatch(r"[\w./+-]+", value)
    return shown(value) if plain else json.dumps(value)
