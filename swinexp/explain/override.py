"""An override whose key, option or value there is not: what was probably meant."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ValidationError

from swinexp.explain.conf import NAMED, all_groups, file_of, file_shown, keys_of, list_of, options_of, search_keys
from swinexp.explain.line import ALSO_CALLED, as_typed
from swinexp.explain.shapes import SWEEPER, misshapen, no_constraint
from swinexp.mistake import closest, first_line, leaves, nearest, shown

NO = ("none", "null", "no", "off", "false", "disable")
FUNCTIONS = ("interval", "range", "tag", "choice", "log", "shuffle", "sort", "glob", "int", "float", "str", "bool")


def no_option(group: str, option: str, options: Sequence[str]) -> str:
    """One line for an option that a group does not have."""
    told = f"{group}={option}: no such option; there are {', '.join(options) or 'none'}"
    if "*" in option and fnmatch.filter(options, option):
        return f"{told}. Type -m '{group}=glob({option})' for each of them"
    nothing = [each for each in ("disabled", "none") if option.lower() in NO and each in options]
    return f"{told}. Type {group}={[*nothing, nearest(option, options)][0]}"


def bad_group_value(arguments: Sequence[str]) -> str | None:
    """For null, a number or the like in an option's place."""
    for argument in arguments:
        group, _, value = argument.partition("=")
        options = options_of(group)
        if group in (*NAMED, "storage") and value == "null":
            return f"{argument}: there is none unless one is typed. Type the command without it"
        if options and value not in options and not isinstance(_read(argument), str | list):
            return no_option(group, value, options)
    return None


def no_key(unknown: str, parent: Any, error: Exception, arguments: Sequence[str]) -> str:
    quoted = re.search(r"Could not override '([^']+)'", str(error))
    key, value = as_typed(quoted.group(1) if quoted else unknown, arguments)
    if unknown.startswith(f"{key}."):  # within a mapping
        key, value = unknown, shown(leaves({key: _read(f"{key}={value}")}).get(unknown))
    path, _, last = key.rpartition(".")
    tree: Any = OmegaConf.to_container(parent._get_root(), resolve=False) if isinstance(parent, DictConfig) else {}
    if not key.startswith("hydra."):
        tree.pop("hydra", None)
    home: Any = tree
    for part in filter(None, path.split(".")):
        home = home.get(part) if isinstance(home, dict) else None
    siblings = [str(name) for name in (home if isinstance(home, dict) else tree)]
    boolean = value.lower() in ("true", "false")
    others = [leaf for leaf, has in leaves(tree).items() if leaf != key and (boolean or not isinstance(has, bool))]
    if not path and "trainer" in tree:
        siblings += ["experiment", "sweep", "storage"]  # which compose a run or a sweep, and are no keys of it
    options = options_of(path) if "trainer" in tree else []  # of a run's config
    by_option = {option: keys_of(file_of(path, option)) for option in options}
    last = last if key.startswith("hydra.") else ALSO_CALLED.get(last, last)
    namesakes = [leaf for leaf in others if leaf.rpartition(".")[2] == last]
    elsewhere = [name for names in by_option.values() for name in names if name not in siblings]
    meant = closest(last, [*siblings, *elsewhere]) if isinstance(home, dict) else None
    similar = closest(key, others)
    search = search_keys()

    def another(word: str) -> str:
        """What to type for a key that other options of the same group have."""
        having = [option for option, names in by_option.items() if word in names]
        plainest = min(having, key=lambda option: ("defaults" in by_option[option], len(by_option[option])))
        return f"Type {path}={plainest} {path}.{word}={value}"

    if home == {}:  # a value, which OmegaConf has already made room in
        return f"{key}={value}: no such key; {path} is a value. Type {path}={value}"
    if path == "hydra.sweeper" and "storage" not in siblings and (known := closest(last, search)):
        return f"{key}={value}: a search's, and this is none. Type sweep=NAME {path}.{known}={value}"
    if last in elsewhere:
        instead = another(last)
    elif not path and last in search:  # of a search
        instead = f"Type hydra.sweeper.{last}={value}"
    elif not path and last in ("sampler", "pruner"):
        instead = f"Type hydra/sweeper/{last}={value}"
    elif last == "name" and options_of(path):
        instead = f"Type {path}={nearest(value, options_of(path))}"
    elif namesakes:
        instead = f"Type {namesakes[0]}={value}"
    elif meant in siblings:
        instead = f"Type {path}.{meant}={value}" if path else f"Type {meant}={value}"
    elif meant:
        instead = another(meant)
    elif similar and not key.startswith("hydra.") and not (path and isinstance(home, dict)):
        instead = f"Type {similar}={value}"
    else:
        instead = f"Remove {key}"
    where = f"{path} has" if isinstance(home, dict) and path else "there are"
    return f"{key}={value}: no such key; {where} {', '.join(siblings)}. {instead}"


def _read(argument: str) -> Any:
    """The value of an override; its text where it is none."""
    try:
        return OverridesParser.create().parse_override(argument).value()
    except HydraException:
        return argument


def unmerged(override: str) -> str:
    """For an override that has a list where there is a mapping, or the other way round."""
    key, value = override.lstrip("+").partition("=")[0], _read(override)
    of_search = key.startswith(f"{SWEEPER}.")
    if of_search and (line := misshapen(key.removeprefix(f"{SWEEPER}."), value)) is not None:
        return line
    if isinstance(value, dict):
        return f"{key}={shown(value)}: a list is needed. Type for example {key}={_quoted(list_of(key) or ['VALUE'])}"
    return f"{key}={shown(value)}: it has keys of its own, and is no value. Type {key}.KEY=VALUE"


def wrong_type(error: ValidationError, within: Path | None = None) -> str:
    """One line for a value of another type than is needed; `within` is the file where it stands, if it is known."""
    message, key, value = first_line(error), re.sub(r"\[\d+\]$", "", str(error.full_key)), error.value
    if str(value).endswith(".0") and "to Integer" in message and key == error.full_key:
        return f"{key}={value}: a whole number is needed. Type {key}={str(value).removesuffix('.0')}"
    kinds = {
        "to Integer": ("a whole number is needed", "1"),
        "to Float": ("a number is needed", "0.1"),
        "valid bool": ("true or false is needed", "true"),
        "ListConfig, list": ("a list is needed", _quoted(list_of(key) or [value])),
        "is not Optional": ("null is not allowed", "VALUE"),
        "NoneType": ("null is not allowed", "1"),
        "to string": ("a word is needed", "WORD"),
        "type 'int'": ("a whole number is needed", "1"),
        "type 'float'": ("a number is needed", "0.1"),
        "type 'bool'": ("true or false is needed", "true"),
    }
    if one := re.search(r"expected one of \[(.+)\]", message):
        kinds = {message: (f"one of {one[1]}", nearest(str(value), one[1].split(", ")))}
    problem, example = next((kind for text, kind in kinds.items() if text in message), (message, "VALUE"))
    if key != error.full_key:
        problem, example = f"{problem} in the list", _quoted(list_of(key) or [example, example])
    if within is not None and key:
        last = key.rpartition(".")[2]
        return f"{file_shown(within)}: {key}: {shown(value)}: {problem}. Write for example {last}: {example} there"
    return f"{key}={shown(value)}: {problem}. Type for example {key}={example}"


def _quoted(values: Sequence[Any]) -> str:
    """A list as one types it in a shell."""
    plain = all(re.fullmatch(r"[\w.+-]*", shown(value)) for value in values)
    return shown(values) if plain else shlex.quote(f"[{','.join(json.dumps(shown(value)) for value in values)}]")


def unreadable(error: OverrideParseException) -> str:
    """For what does not even read as an override."""
    typed = str(error.override)
    key, _, value = typed.partition("=")
    if re.fullmatch(r"choice\(\s*\)", value):
        return f"{typed}: there is nothing to choose from. Type {key}=a,b"
    if key == "hydra.sweeper.constraints":
        return no_constraint(value)
    if (searched := _searched(value)) is not None:
        told = "what is searched is interval(a,b), range(a,b,step), tag(log,interval(a,b)) or a,b,c"
        return f"{typed}: {told}. Type '{key}={searched}'"
    if "=" not in typed and (groups := [group for group in all_groups() if typed in options_of(group)]):
        return f"{typed}: what it is an option of is missing. Type {groups[0]}={typed}"
    reason = first_line(error).partition(" See ")[0]
    instead = "KEY=VALUE, or \"KEY='VALUE'\" where the value has spaces, commas or brackets of its own"
    return f"{typed}: cannot be read as an override ({reason}). Type {instead}"


def _searched(value: str) -> str | None:
    """What was probably meant by a value that reads as one of Hydra's functions, but is none."""
    if not (call := re.match(r"(\w+)\s*\(", value)) or not (closest(call[1], FUNCTIONS) or "uniform" in call[1]):
        return None
    mended = re.sub(r"\w+(?=\s*\()", lambda name: closest(name[0], FUNCTIONS) or name[0], value)
    try:
        OverridesParser.create().parse_override(f"key={mended}")
    except HydraException:
        numbers = re.findall(r"(?<![\w.])[-+]?[\d.]+(?:e[-+]?\d+)?", value)
        ends = ",".join([*numbers, *["LOW", "HIGH"][len(numbers) :]][:2])
        if "log" in value:
            return f"tag(log,interval({ends}))"
        return f"range({ends})" if mended.startswith("range") else f"interval({ends})"
    return mended
