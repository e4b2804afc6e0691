"""What conf/ and sweeps/ offer, read from their files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from swinexp import CONF, SWEEPS

# Groups whose option is the name of a whole run or sweep: the name stands for itself, and its file sets keys of others.
NAMED = ("sweep", "experiment")
# Lists that no option has, for want of which null stands there.
LISTS = {"augmentation.jitter": [0.4, 0.4, 0.4, 0.1]}


def options_of(group: str) -> list[str]:
    return sorted(path.stem for path in file_of(group, "*").parent.glob("*.yaml")) if group.isidentifier() else []


def all_groups() -> list[str]:
    """Those of conf/ and sweep, runs and sweeps with a name first."""
    return list(dict.fromkeys([*reversed(NAMED), *sorted(path.name for path in CONF.iterdir() if path.is_dir())]))


def file_of(group: str, option: str) -> Path:
    return (SWEEPS if group == "sweep" else CONF / group) / f"{option}.yaml"


def file_shown(path: Path) -> str:
    """A file of conf/ or sweeps/ by these names, any other one whole."""
    return str(path.relative_to(CONF.parent) if path.is_relative_to(CONF.parent) else path)


def is_group(name: str) -> bool:
    return (CONF / name).is_dir()


def search_keys() -> list[str]:
    """The keys of hydra.sweeper that a search has."""
    return keys_of(CONF / "hydra" / "sweeper" / "swinexp_optuna.yaml")


def keys_of(path: Path) -> list[str]:
    return list(settings(path))


def settings(path: Path) -> dict[str, Any]:
    """What a file of conf/ or sweeps/ sets; nothing where it cannot be read, for it may be another than is meant."""
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
