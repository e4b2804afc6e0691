"""What Hydra, OmegaConf, torch and the system raise over what a user asked for, in one line."""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    ConfigTypeError,
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from swinexp.explain.conf import file_shown, options_of
from swinexp.explain.files import being_read, no_defaults, no_group_in, no_key_in, no_yaml, unmerged_in
from swinexp.explain.line import PRINTING, as_typed, in_shell, one_command, one_path, one_value, several_of_hydra
from swinexp.explain.override import bad_group_value, no_key, no_option, unmerged, unreadable, wrong_type
from swinexp.mistake import Ended, Mistake, first_line, nearest

# What the system says when there is no room: on the disk, in a quota, in a file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)
NO_SUCH_FOLDER, OF_A_SWEEP = "there is no such folder", "that of a sweep, which has its best.yaml"
NO_SUBMITIT = "Hydra's submitit launcher is not installed. Type pip install 'swinexp[slurm]'"
NO_SLURM = (
    "no sbatch and srun are here. Type it on a machine that submits to Slurm (Debian: apt-get install slurm-client)"
)


def explain(error: Exception, arguments: Sequence[str] = ()) -> str | None:
    """One line for an error that Hydra or OmegaConf raises over what the user typed, else None.

    `arguments` is the command line, where the value that was typed is looked up.
    """
    origin: BaseException | None = error
    while origin is not None:  # a resolver's mistake comes wrapped
        if isinstance(origin, Mistake | Ended):
            return str(origin)
        origin = origin.__cause__ or (origin.__context__ if isinstance(origin, OmegaConfBaseException) else None)
    if "hydra_submitit_launcher" in str(error) and isinstance(error, RuntimeError | ImportError):
        return f"hydra/launcher: {NO_SUBMITIT}"
    if isinstance(error, RuntimeError) and 'Could not detect "srun"' in str(error):
        return f"hydra/launcher=slurm: {NO_SLURM}"
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{error.strerror}: {error.filename or 'the disk'} is full. Make room, and type the same command"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        fits = any("fit_memory=true" in argument.lower() for argument in arguments)
        return f"{first_line(error)} Type a smaller trainer.batch_size{'' if fits else ', or trainer.fit_memory=true'}"
    if isinstance(error, yaml.YAMLError):
        return no_yaml(error)
    if isinstance(error, OSError) and not isinstance(error, MissingConfigException):
        return _no_folder(error, arguments)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if error.options is not None:
            return no_option(group, option, error.options)
        if (within := being_read(error)) and (options := [each for each in options_of(group) if each != within.stem]):
            told = f"no such option; there are {', '.join(options)}"
            return f"{file_shown(within)}: {option}: {told}. Write - {nearest(option, options)} in its defaults"
    if isinstance(error, OverrideParseException):
        return unreadable(error)
    if isinstance(error, ValueError) and "Only one of --run" in str(error):
        return one_command(arguments)
    if isinstance(error, ValueError) and "The --resolve flag" in str(error):
        return f"--resolve: it is about what --cfg prints. Type --cfg job {shlex.join(arguments)}"
    if isinstance(error, ValueError) and "Invalid defaults list" in str(error) and (within := being_read(error)):
        return no_defaults(within)
    if isinstance(error, ValueError) and "Config group override must be" in str(error):
        return bad_group_value(arguments) or first_line(error)
    within = None if "In 'storage/" in str(error) else being_read(error)  # which is told as what it is
    cause = (error.__context__ if within else error.__cause__) if isinstance(error, HydraException) else error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        if within and isinstance(cause.parent_node, DictConfig):
            return no_key_in(within, str(cause.full_key), [str(key) for key in cause.parent_node])
        return no_key(str(cause.full_key), cause.parent_node, error, arguments)
    if within and isinstance(cause, ConfigTypeError):
        return unmerged_in(within)
    if isinstance(cause, InterpolationKeyError | InterpolationResolutionError):
        key = str(cause.full_key)
        asking = [each for each in arguments if "${" in each]  # where the key is one that everything is read for
        if asking and as_typed(key, arguments)[1] == "…":
            return f"{asking[0]}: {first_line(cause)}. Type {asking[0].partition('=')[0]}=VALUE"
        return f"{'='.join(as_typed(key, arguments))}: {first_line(cause)}. Type {key}=VALUE"
    if isinstance(cause, MissingMandatoryValue):
        key = str(cause.full_key)
        if f"~{key}" in arguments:
            return f"~{key}: a group cannot be removed. Type {key}={options_of(key)[0]}, or leave it out"
        options = options_of(key)
        there = f"; there are {', '.join(options)}" if options else ""
        instead = options[0] if options else "FOLDER" if key == "data.root" else "VALUE"
        return f"{key}=???: it has no default and must be given{there}. Type {key}={instead}"
    if isinstance(cause, ValidationError):
        return wrong_type(cause, within)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _composition(error, arguments)
    return None


def _no_folder(error: OSError, arguments: Sequence[str]) -> str | None:
    """For a folder of a run or a sweep, or an `outputs`, that cannot be made or written."""
    if error.filename is None:
        return None
    there = Path(str(error.filename)).absolute()
    reason = "it is a file" if error.errno == errno.EEXIST else error.strerror
    for key in ("hydra.run.dir", "hydra.sweep.dir"):
        name, value = as_typed(key, arguments)
        folder = Path(value.strip("'\"")).absolute()
        related = name == key and value != "…" and (there.is_relative_to(folder) or folder.is_relative_to(there))
        if related and (error.errno in UNWRITABLE or not folder.exists()):
            return f"{key}={value}: cannot be written ({reason}). Type {key}=FOLDER, one that can be"
    if "outputs" not in there.parts:
        return None
    return f"{error.filename}: cannot be written ({error.strerror}). Run from another directory, or make room there"


def _composition(error: Exception, arguments: Sequence[str]) -> str:
    message = first_line(error)
    if found := re.search(r"Additional config directory '(.*)' not found", message):
        return f"--config-dir={found[1]}: {NO_SUCH_FOLDER}. Type {OF_A_SWEEP}"
    if "Primary config directory not found" in message or "Primary config module" in message:
        return "--config-path: it is where the files of swinexp are. Type --config-dir=FOLDER for files beside them"
    if found := re.search(r"Cannot find primary config '(.*?)'", message):
        if found[1] and Path(found[1]).with_suffix(".yaml").is_file():
            flags = f"--config-dir {Path(found[1]).parent} --config-name {Path(found[1]).stem}"
            return f"--config-name={found[1]}: this folder is not looked into. Type {flags}"
        return f"--config-name={found[1]}: there is no {found[1]}.yaml. Type --config-name best, or leave it out"
    several = re.search(r"Ambiguous value for argument '(.+)'|Sweep parameters '(.+)' requires", message)
    if several:
        argument = several.group(1) or several.group(2)
        if argument.lstrip("+").startswith("hydra"):
            return several_of_hydra(argument, arguments)
        if {each.partition("=")[0] for each in arguments} & set(PRINTING):
            return f"{argument}: only one config is printed. Type {in_shell(one_value(argument))}"
        if path := one_path(argument):
            return f"{argument}: a comma parts values. Type {in_shell(path)} for one path, or -m for several"
        return f"{argument}: several values are a multirun. Type -m {shlex.join(arguments) if arguments else argument}"
    if "does not support sweep type : INTERVAL" in message:
        return f"hydra/sweeper=basic: an interval is a search's. Type {_as_search(arguments)}"
    if found := re.search(r"Sweeping over Hydra's configuration is not supported : '(.+)'", message):
        return several_of_hydra(found[1], arguments)
    if found := re.search(r"Error merging override (.+)", message):
        return unmerged(found[1])
    mappings = [each for each in arguments if re.match(r"[\w.+]+=\{", each)]
    if mappings and "Cannot merge DictConfig with ListConfig" in message:  # by our own types, which name no key
        return unmerged(mappings[-1])
    if found := re.search(r"Could not load '(\w[\w/]*)/([^'/]+)'", message):  # one of several
        return no_option(found[1], found[2], options_of(found[1]))
    lacking = re.search(r"Could not override '([^']+)'", message)
    if lacking and (within := being_read(error)):
        return no_group_in(within, lacking[1])
    if lacking and (told := _no_group(lacking[1], arguments)):
        return told
    twice = re.search(r"Multiple values for (\w+)|force-add of config groups", message)
    for argument in arguments if twice else ():
        group, _, option = argument.lstrip("+").partition("=")
        if argument.startswith("+") and options_of(group):
            return f"{argument}: the group is there already. Type {group}={option}"
    kept = re.search(r"In 'storage/(\w+)': ConfigKeyError", message)
    if kept:
        instead = f"sweep=NAME storage={kept[1]}, or -m hydra/sweeper=swinexp_optuna storage={kept[1]}"
        return f"storage={kept[1]}: only a sweep of ours keeps a study. Type {instead}"
    there = re.search(r"An item is already at '([^']+)'", message)
    if there:
        key, value = as_typed(there.group(1), arguments)
        return f"+{key}={value}: the key is there already. Type {key}={value}"
    return f"{message}. See --help"


def _as_search(arguments: Sequence[str]) -> str:
    """The same command with a sweeper that searches."""
    rest = shlex.join(each for each in arguments if each not in ("-m", "--multirun"))
    return f"-m {rest} hydra/sweeper=swinexp_optuna"


def _no_group(lacking: str, arguments: Sequence[str]) -> str | None:
    """For a group that the config's list of defaults does not have."""
    group = lacking.partition("@")[0]
    options = options_of(group)
    argument = next((each for each in arguments if each.partition("=")[0] == lacking), None)
    if not options or argument is None:
        return None
    option = argument.partition("=")[2]
    if group.startswith("hydra/sweeper/"):
        return f"{argument}: a search's, and this is none. Type {_as_search(arguments)}"
    if option not in options:
        return no_option(group, option, options)
    if lacking != group:
        return f"{argument}: {group} has one place in the config. Type {group}={option}"
    return f"{argument}: the config that --config-name names has values, and no {group} to exchange. Type +{argument}"
