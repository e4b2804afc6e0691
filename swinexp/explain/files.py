"""A file of conf/ or sweeps/ that somebody wrote, and that Hydra would misread or cannot read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from swinexp.explain.conf import NAMED, file_of, file_shown, is_group, options_of, search_keys, settings
from swinexp.explain.line import ALSO_CALLED, one_value
from swinexp.mistake import Mistake, check, closest, first_line, shown


def check_files(arguments: Sequence[str]) -> None:
    """Raise `Mistake`, or YAML's error, for a sweep's or an experiment's file that Hydra would misread."""
    for argument in arguments:
        group, _, option = argument.lstrip("+").partition("=")
        if group == "sweep":
            one = one_value(argument)
            check(one == argument, "sweep", option, "a sweep at a time", f"{one}, and then the others")
        path = file_of(group, option)
        if group not in NAMED or not path.is_file():
            continue
        OmegaConf.load(path)  # which says more than the other
        content = settings(path)
        named: dict[str, Any] = {}
        others = []
        for each in content.get("defaults", []):
            named |= each if isinstance(each, dict) else {}
            others += [each] if isinstance(each, str) and each != "_self_" else []
        for key, value in named.items():
            of = key.split()[-1].strip("/")
            if key != f"override /{of}" and is_group(of):
                raise Mistake(_not_overridden(path, of, value))
        if group == "sweep" and not others:  # which would bring what this file lacks
            _check_sweep(path, content.get("hydra") or {}, list(named), arguments)


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
    of_search = [f"hydra.sweeper.{key}" for key in sweeper if key in known and key != "params"]
    of_search += [
        f"{key}: {value}" for key, value in (sweeper.get("params") or {}).items() if "interval(" in str(value)
    ]
    of_search += [key.split("/", 1)[1] for key in defaults if key.startswith("override /hydra/sweeper/")]
    ours = "override /hydra/sweeper" in defaults or any(each.startswith("hydra/sweeper=") for each in arguments)
    if of_search and not ours:
        told = f"{of_search[0]} is a search's, and this is none"
        raise Mistake(f"{file_shown(path)}: {told}. Write - override /hydra/sweeper: swinexp_optuna in its defaults")
    if "mode" not in hydra and not any(each.startswith(("-m", "--multirun", "hydra.mode=")) for each in arguments):
        told = "it does not say that it is several runs, and would be one"
        raise Mistake(f"{file_shown(path)}: {told}. Write mode: MULTIRUN below its hydra:, or type hydra.mode=RUN")


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


def being_read(error: Exception) -> Path | None:
    """The file of an option that Hydra was reading."""
    found = re.match(r"In '(\w+)/(\w+)': ", str(error))
    return path if found and (path := file_of(found[1], found[2])).is_file() else None
