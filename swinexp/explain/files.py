"""A file of conf/, sweeps/ or --config-dir that somebody wrote, and that Hydra would misread or cannot read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from swinexp.explain.conf import (
    NAMED,
    all_groups,
    file_of,
    file_shown,
    is_global,
    is_group,
    list_of,
    look_in,
    options_of,
    search_keys,
    settings,
)
from swinexp.explain.line import ALSO_CALLED, one_value
from swinexp.explain.shapes import misshapen
from swinexp.mistake import Mistake, check, closest, first_line, nearest, shown

OF_HYDRA = ("run", "sweep", "job", "sweeper", "launcher")  # which have keys of their own


def check_files(arguments: Sequence[str], config_dir: str | None = None) -> None:
    """Raise `Mistake`, or YAML's error, for a sweep's or an experiment's file that Hydra would misread.

    `config_dir` is a folder of the user's own, which is looked into from now on.
    """
    look_in(config_dir)
    for argument in arguments:
        group, _, option = argument.lstrip("+").partition("=")
        if group == "sweep":
            one = one_value(argument)
            check(one == argument, "sweep", option, "a sweep at a time", f"{one}, and then the others")
        if group in NAMED and (path := file_of(group, option)).is_file():
            _check_file(path, group, arguments)
        elif config_dir is not None and is_group(group) and (path := file_of(group, option)).is_file():
            _check_mapping(path)


def _check_mapping(path: Path) -> None:
    if not isinstance(OmegaConf.load(path), DictConfig):
        told = "a list, where KEY: VALUE is needed"
        raise Mistake(f"{file_shown(path)}: {told}. Write KEY: VALUE, or defaults: above what it lists")


def _check_file(path: Path, group: str, arguments: Sequence[str]) -> None:
    _check_mapping(path)  # which says more than what follows
    content = settings(path)
    defaults = content.get("defaults") or []
    if not isinstance(defaults, list):
        raise Mistake(no_defaults(path))
    named: dict[str, Any] = {}
    others = []
    for each in defaults:
        named |= each if isinstance(each, dict) else {}
        others += [each] if isinstance(each, str) and each != "_self_" else []
    for key, value in named.items():
        of = str(key).split()[-1].strip("/")
        if key != f"override /{of}" and is_group(of):
            raise Mistake(_not_overridden(path, of, value))
    if not is_global(path):
        told = f"without a package its keys are those of {group}, and no run's"
        raise Mistake(f"{file_shown(path)}: {told}. Write # @package _global_ as its first line")
    _check_mappings(path, content)
    if group == "sweep" and not others:  # which would bring what this file lacks
        _check_sweep(path, content.get("hydra") or {}, list(named), arguments)
    experiment = named.get("override /experiment")
    if group == "sweep" and isinstance(experiment, str) and (file := file_of("experiment", experiment)).is_file():
        _check_file(file, "experiment", arguments)


def _check_mappings(path: Path, content: dict[str, Any]) -> None:
    """Raise `Mistake` where a group, or a part of Hydra's config, is set as if it were a value."""
    of_hydra = {f"hydra.{key}": value for key, value in _items(content.get("hydra")) if key in OF_HYDRA}
    of_run = {key: value for key, value in content.items() if key == "hydra" or is_group(str(key))}
    for key, value in (of_run | of_hydra).items():
        if isinstance(value, str) and value in options_of(key):
            raise Mistake(_not_overridden(path, key, value))
        if not isinstance(value, dict):
            told = f"{key}: {shown(value)}: it has keys of its own, and is no value"
            raise Mistake(f"{file_shown(path)}: {told}. Write KEY: VALUE below it, or remove it")


def check_best(config_dir: str | None, config_name: str | None) -> None:
    """Raise `Mistake` where a sweep's folder is given and not its best.yaml: the default config would be read."""
    if config_dir is None or config_name is not None:
        return
    if all(Path(config_dir, each).is_file() for each in ("study.json", "best.yaml")):
        told = "the best.yaml there is read where it is named, and else swinexp's own config"
        instead = f"--config-dir={shlex.quote(config_dir)} --config-name=best, or --config-name=config for the latter"
        raise Mistake(f"--config-dir={config_dir}: {told}. Type {instead}")


def _not_overridden(path: Path, group: str, option: object) -> str:
    told = "the option of another group is overridden"
    return f"{file_shown(path)}: {group}: {option}: {told}. Write - override /{group}: {shown(option)} in its defaults"


def _check_sweep(path: Path, hydra: dict[str, Any], defaults: Sequence[str], arguments: Sequence[str]) -> None:
    sweeper = hydra.get("sweeper") or {}
    known = [*search_keys()[2:], "sampler", "pruner"]
    for key in sweeper:
        if key not in (*known, "_target_", "max_batch_size"):
            raise Mistake(no_key_in(path, f"hydra.sweeper.{key}", known))
        if (line := misshapen(key, sweeper[key], path)) is not None:
            raise Mistake(line)
    of_search = [f"hydra.sweeper.{key}" for key in sweeper if key in known and key != "params"]
    of_search += [
        f"{key}: {value}" for key, value in (sweeper.get("params") or {}).items() if "interval(" in str(value)
    ]
    of_search += [key.split("/", 1)[1] for key in defaults if key.startswith("override /hydra/sweeper/")]
    ours = "override /hydra/sweeper" in defaults or any(each.startswith("hydra/sweeper=") for each in arguments)
    if of_search and not ours:
        raise Mistake(_no_search(path, of_search[0]))
    if "mode" not in hydra and not any(each.startswith(("-m", "--multirun", "hydra.mode=")) for each in arguments):
        told = "it does not say that it is several runs, and would be one"
        raise Mistake(f"{file_shown(path)}: {told}. Write mode: MULTIRUN below its hydra:, or type hydra.mode=RUN")


def _no_search(path: Path, what: str) -> str:
    told = f"{what} is a search's, and this is none"
    return f"{file_shown(path)}: {told}. Write - override /hydra/sweeper: swinexp_optuna in its defaults"


def slip(group: str, key: str, known: Sequence[str]) -> str | None:
    """One line for a key that is none of a group's, but set by a file; None where it stands in no file."""
    of_group = [(file_of(group, option), "") for option in options_of(group)]
    of_run = [(file_of(each, option), group) for each in NAMED for option in options_of(each)]
    for file, below in (*of_group, *of_run):
        content = settings(file)
        if key in ((content.get(below) or {}) if below else content):
            return no_key_in(file, f"{group}.{key}".lstrip("."), known)
    return None


def no_key_in(file: Path, key: str, known: Sequence[str]) -> str:
    """One line for a key that a file sets and nothing has; `known` are those that there are in its place."""
    path, _, last = key.rpartition(".")
    meant = closest(ALSO_CALLED.get(last, last), known)
    instead = f"Write {meant} there" if meant else f"Remove {last} there"
    if ":" in last:
        instead = "Write KEY: VALUE, with a space behind the colon"
    where = f"{path} has" if path else "there are"
    return f"{file_shown(file)}: {last}: no such key; {where} {', '.join(known)}. {instead}"


def no_yaml(error: yaml.YAMLError) -> str | None:
    """For a file that somebody wrote, with the line of the slip."""
    mark, context = getattr(error, "problem_mark", None), str(getattr(error, "context", None))
    if "flow" in context or "scanning a" in context:  # which began before it was found to have no end
        mark = getattr(error, "context_mark", mark)
    if mark is None or not Path(mark.name).is_file():
        return None
    problem = str(getattr(error, "problem", None) or first_line(error))
    instead = "it once" if "duplicate" in problem else "KEY: VALUE, indented with spaces as the lines beside it"
    return f"{file_shown(Path(mark.name))}, line {mark.line + 1}: not YAML ({problem}). Write {instead}"


def unmerged_in(path: Path) -> str:
    """For a file that has a list where there is a mapping, or the other way round."""
    keys = (
        (f"{group}.{key}", key, value) for group, content in settings(path).items() for key, value in _items(content)
    )
    for whole, key, value in keys:
        if isinstance(value, dict) and (there := list_of(whole)):
            told = f"{whole}: {shown(value)}: a list is needed"
            return f"{file_shown(path)}: {told}. Write for example {key}: {shown(there)} there"
    told = "a list stands where KEY: VALUE is needed, or the other way round"
    return f"{file_shown(path)}: {told}. Write each key as the files of conf/ have it"


def _items(content: Any) -> list[tuple[str, Any]]:
    return list(content.items()) if isinstance(content, dict) else []


def no_defaults(path: Path) -> str:
    """For a list of defaults that is none."""
    return f"{file_shown(path)}: defaults: it is a list. Write - before each line of it, as in - override /model: tiny"


def no_group_in(path: Path, lacking: str) -> str:
    """For a group that a file overrides, and that Hydra does not find as it is written."""
    group = lacking.partition("@")[0].removeprefix(f"{path.parent.name}/")
    if not is_global(path):
        told = f"{group}: an option of {path.parent.name} decides nothing of other groups"
        return f"{file_shown(path)}: {told}. Remove it there, and write it in the file of an experiment"
    if group.startswith("hydra/sweeper/"):
        return _no_search(path, group)
    lines = [each for each in settings(path).get("defaults") or [] if isinstance(each, dict)]
    option = next((value for each in lines for key, value in each.items() if str(key).endswith(group)), "OPTION")
    if is_group(group):
        return _not_overridden(path, group, option)
    told = f"no such group; there are {', '.join(all_groups())}"
    better = f"override /{nearest(group, all_groups())}: {shown(option)}"
    return f"{file_shown(path)}: {group}: {told}. Write - {better} in its defaults"


def being_read(error: Exception) -> Path | None:
    """The file of an option that Hydra was reading."""
    found = re.search(r"\b[Ii]n '?([\w/]+)/([^/':]+)[':,]", str(error))
    return path if found and (path := file_of(found[1], found[2])).is_file() else None
