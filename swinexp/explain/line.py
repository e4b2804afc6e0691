"""A command line, before Hydra reads it: its flags, and options and values that are typed as something else."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException

from swinexp import CONF
from swinexp.explain.conf import keys_of, options_of
from swinexp.mistake import Mistake, check, flag_meant, nearest

# What other tools call keys of ours.
ALSO_CALLED = {
    "learning_rate": "lr",
    "base_lr": "lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "dir": "root",
    "path": "root",
}
# Hydra's flags that one may look for, and those that are given something, which may stand apart.
FLAGS = ("--help", "--version", "--multirun", "--cfg=job", "--info=all", "--config-dir=FOLDER", "--config-name=best")
TAKING = (
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--package", "-p", "--cfg", "-c", "--experimental-rerun"),
)
PRINTING = ("--cfg", "-c", "--info", "-i")
PARAMS = "hydra.sweeper.params."
RUNNING = ("--multirun", "-m", "--run", "-r")


def check_options(overrides: Sequence[str]) -> None:
    """Raise `Mistake` where an option's name is typed as if it were the option: the rest would stay another's."""
    for override in overrides:
        key, _, name = override.lstrip("+").partition("=")
        group, _, last = key.rpartition(".")
        if last == "name" and (options := options_of(group)):
            check(False, key, name, "an option is more than its name", f"{group}={nearest(name, options)}")


def check_flags(arguments: Sequence[str], unknown: Sequence[str], known: Sequence[str] = FLAGS) -> None:
    """Raise `Mistake` for what the parser of flags does not know: flags of others, and what stands before one.

    `known` are the command's own.
    """
    for each in unknown:
        if not each.startswith("-"):
            flags, settings = parted(arguments)
            whole = shlex.join([*flags, *settings])
            raise Mistake(f"{each}: what begins with - comes before all that is set. Type {whole}")
        flag, _, given = each.partition("=")
        name = flag.lstrip("-").replace("-", "_")
        name = ALSO_CALLED.get(name, name)
        homes = [path.parent.name for path in sorted(CONF.glob("*/*.yaml")) if name in keys_of(path)]
        key = name if options_of(name) else f"{homes[0]}.{name}" if homes else "KEY"
        after = [*arguments[arguments.index(each) + 1 :], ""][0]
        given = given or (after if "=" not in after and not after.startswith("-") else "")
        meant = None if key != "KEY" else flag_meant(each, known, value=given)
        instead = meant or f"{key}={given or 'VALUE'}, or --help"
        raise Mistake(f"{flag}: there is no such flag; settings are KEY=VALUE. Type {instead}")


def check_single(overrides: Sequence[str]) -> None:
    """Raise `Mistake` for several values, where a command composes one config."""
    for override in overrides:
        one = one_value(override)
        check(one == override, *override.partition("=")[::2], "one value is wanted here", in_shell(one))


def one_command(arguments: Sequence[str]) -> str:
    """For flags of which one is possible at a time."""
    flags, settings = parted(arguments)
    several = [each for each in flags if each in RUNNING]
    if several and {each.partition("=")[0] for each in flags} & set(PRINTING):
        rest = [each for each in flags if each not in RUNNING]
        one = " ".join(in_shell(each) for each in (*rest, *map(one_value, settings)))
        return f"{several[0]}: only one config is printed. Type {one}, or hydra.sweeper.dry_run=5 for those of a search"
    return f"{shlex.join(flags)}: only one of these goes at a time. Type one of them, or --help"


def parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags, each followed by what it is given; settings) of a command line."""
    flags: list[str] = []
    settings: list[str] = []
    for argument in arguments:
        given = bool(flags) and flags[-1] in TAKING
        (flags if given or argument.startswith("-") else settings).append(argument)
    return flags, settings


def one_value(override: str) -> str:
    """An override of several values with the first of them, and any other as it is."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return override
    if not parsed.is_sweep_override():
        return override
    listed = parsed.is_discrete_sweep() and not isinstance(parsed.value(), Glob)
    first = next(parsed.sweep_string_iterator()) if listed else "VALUE"
    return one_path(override) or f"{override.partition('=')[0]}={first}"


def one_path(override: str) -> str | None:
    """A path with commas in Hydra's quotes; None where several values, and no path, were probably meant."""
    key, _, value = override.partition("=")
    return f"{key}='{value}'" if "/" in value and not set(value) & set("'\"()[]{}") else None


def several_of_hydra(argument: str, arguments: Sequence[str]) -> str:
    """For several values of a key of Hydra's own, of which only those of a run are varied."""
    key = argument.lstrip("+")
    if not key.startswith(PARAMS):
        told = "one value is wanted here; only a run's own keys are varied"
        return f"{argument}: {told}. Type {in_shell(one_value(argument))}"
    apart = key.removeprefix(PARAMS)
    whole = [apart if each == argument else each for each in arguments]
    instead = in_shell(apart) if {"-m", "--multirun"} & set(arguments) else f"-m {shlex.join(whole)}"
    return f"{argument}: what is varied is typed without {PARAMS.rstrip('.')}. Type {instead}"


def in_shell(argument: str) -> str:
    return f'"{argument}"' if "'" in argument and '"' not in argument else shlex.quote(argument)


def as_typed(key: str, arguments: Sequence[str]) -> tuple[str, str]:
    """(the key, the value) as typed on the command line for `key` or for a key below it."""
    for argument in arguments:
        name, equals, value = argument.lstrip("+~").partition("=")
        if equals and (name == key or name.startswith(f"{key}.")):
            return name, value
    return key, "…"
