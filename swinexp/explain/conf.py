"""What conf/, sweeps/ and a folder of the user's own offer, read from their files alone."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from swinexp import CONF, SWEEPS

# Groups whose option is the name of a whole run or sweep: the name stands for itself, and its file sets keys of others.
NAMED = ("sweep", "experiment")
# Lists that no option has, for want of which null stands there.
LISTS = {"augmentation.jitter": [0.4, 0.4, 0.4, 0.1]}
_own: list[Path] = []  # the folder of --config-dir, if there is one


def look_in(config_dir: str | None) -> None:
    """Have the options of this folder be found beside those of conf/ and sweeps/, as Hydra does with --config-dir."""
    _own[:] = [] if config_dir is None else [Path(config_dir)]


def _homes(group: str) -> list[Path]:
    """The folders of a group's options, in the order in which Hydra looks into them."""
    own = [place / group for place in _own]
    return [*own, SWEEPS] if group == "sweep" else [CONF / group, *own]


def options_of(group: str) -> list[str]:
    if not all(part.isidentifier() for part in group.split("/")):
        return []
    return sorted({path.stem for home in _homes(group) for path in home.glob("*.yaml")})


def all_groups() -> list[str]:
    """Those of conf/ and sweep, runs and sweeps with a name first."""
    there = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
    return list(dict.fromkeys([*reversed(NAMED), *there]))


def file_of(group: str, option: str) -> Path:
    """The file of an option; where there is none, it may not exist."""
    files = [home / f"{option}.yaml" for home in _homes(group)]
    return next((file for file in files if file.is_file()), files[-1])


def is_global(path: Path) -> bool:
    """Whether a file's keys are the run's and not its group's. Those of sweeps/ need not say it."""
    head = takewhile(lambda line: line.startswith("#") or not line.strip(), path.read_text().splitlines())
    return path.parent == SWEEPS or any(re.match(r"#\s*@package\s+_global_", line) for line in head)


def file_shown(path: Path) -> str:
    """A file of conf/ or sweeps/ by these names, any other one as it was given."""
    return str(path.relative_to(CONF.parent) if path.is_relative_to(CONF.parent) else path)


def is_group(name: str) -> bool:
    return (CONF / name).is_dir()


def search_keys() -> list[str]:
    """The keys of hydra.sweeper that a search has."""
    return keys_of(CONF / "hydra" / "sweeper" / "swinexp_optuna.yaml")


def keys_of(path: Path) -> list[str]:
    return list(settings(path))


def settings(path: Path) -> dict[str, Any]:
    """What the file of an option sets; nothing where it cannot be read, for it may be another than is meant."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {content: None} if isinstance(content, str) else {}


def list_of(key: str) -> list[Any] | None:
    """A list that an option has for a key."""
    group, _, last = key.rpartition(".")
    contents = (settings(CONF / group / f"{option}.yaml") for option in options_of(group))
    return next((content[last] for content in contents if isinstance(content.get(last), list)), LISTS.get(key))
