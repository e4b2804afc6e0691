"""What was typed, or written in a file, and cannot be read, composed or found: in one line, with what to type instead.

`check_…` look before Hydra does, `explain` is asked for what it then raises. Nothing heavy is imported here either.
"""

from __future__ import annotations

import errno
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from swinexp import CONF, SWEEPS
from swinexp.mistake import Ended, Mistake, check, closest, first_line, flag_meant, leaves, nearest, shown
from swinexp.sweep.trial import FACTS

# What the system says when there is no room: on the disk, in a quota, in a file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)
NO_SUBMITIT = "Hydra's submitit launcher is not installed. Type pip install 'swinexp[slurm]'"
NO_SLURM = (
    "no sbatch and srun are here. Type it on a machine that submits to Slurm (Debian: apt-get install slurm-client)"
)
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
NO = ("none", "null", "no", "off", "false", "disable")
# Hydra's flags that one may look for, and those that are given something, which may stand apart.
FLAGS = ("--help", "--version", "--multirun", "--cfg=job", "--info=all", "--config-dir=FOLDER", "--config-name=best")
TAKING = (
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--package", "-p", "--cfg", "-c", "--experimental-rerun"),
)
PRINTING = ("--cfg", "-c", "--info", "-i")
RUNNING = ("--multirun", "-m", "--run", "-r")
FUNCTIONS = ("interval", "range", "tag", "choice", "log", "shuffle", "sort", "glob", "int", "float", "str", "bool")
# Groups whose option is the name of a whole run or sweep: the name stands for itself, and its file sets keys of others.
NAMED = ("sweep", "experiment")
# Lists that no option has, for want of which null stands there.
LISTS = {"augmentation.jitter": [0.4, 0.4, 0.4, 0.1]}


def check_options(overrides: Sequence[str]) -> None:
    """Raise `Mistake` where an option's name is typed as if it were the option: the rest would stay another's."""
    for override in overrides:
        key, _, name = override.lstrip("+").partition("=")
        group, _, last = key.rpartition(".")
        if last == "name" and (options := _options(group)):
            check(False, key, name, "an option is more than its name", f"{group}={nearest(name, options)}")


def check_files(arguments: Sequence[str]) -> None:
    """Raise `Mistake`, or YAML's error, for a sweep's or an experiment's file that Hydra would misread."""
    for argument in arguments:
        group, _, option = argument.lstrip("+").partition("=")
        path = _file(group, option)
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
            if key != f"override /{of}" and (CONF / of).is_dir():
                raise Mistake(_not_overridden(path, of, value))
        if group == "sweep" and not others:  # which would bring what this file lacks
            _check_sweep(path, content.get("hydra") or {}, list(named), arguments)


def _not_overridden(path: Path, group: str, option: object) -> str:
    told = "the option of another group is overridden"
    return f"{file_shown(path)}: {group}: {option}: {told}. Write - override /{group}: {shown(option)} in its defaults"


def _check_sweep(path: Path, hydra: dict[str, Any], defaults: Sequence[str], arguments: Sequence[str]) -> None:
    sweeper = hydra.get("sweeper") or {}
    known = [*_keys(CONF / "hydra" / "sweeper" / "swinexp_optuna.yaml")[2:], "sampler", "pruner"]
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


def check_flags(arguments: Sequence[str], unknown: Sequence[str], known: Sequence[str] = FLAGS) -> None:
    """Raise `Mistake` for what the parser of flags does not know: flags of others, and what stands before one.

    `known` are the command's own.
    """
    for each in unknown:
        if not each.startswith("-"):
            flags, settings = _parted(arguments)
            whole = shlex.join([*flags, *settings])
            raise Mistake(f"{each}: what begins with - comes before all that is set. Type {whole}")
        flag, _, given = each.partition("=")
        name = flag.lstrip("-").replace("-", "_")
        name = ALSO_CALLED.get(name, name)
        homes = [path.parent.name for path in sorted(CONF.glob("*/*.yaml")) if name in _keys(path)]
        key = name if _options(name) else f"{homes[0]}.{name}" if homes else "KEY"
        after = [*arguments[arguments.index(each) + 1 :], ""][0]
        given = given or (after if "=" not in after and not after.startswith("-") else "")
        meant = None if key != "KEY" else flag_meant(each, known, value=given)
        instead = meant or f"{key}={given or 'VALUE'}, or --help"
        raise Mistake(f"{flag}: there is no such flag; settings are KEY=VALUE. Type {instead}")


def _parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags, each followed by what it is given; settings) of a command line."""
    flags: list[str] = []
    settings: list[str] = []
    for argument in arguments:
        given = bool(flags) and flags[-1] in TAKING
        (flags if given or argument.startswith("-") else settings).append(argument)
    return flags, settings


def check_single(overrides: Sequence[str]) -> None:
    """Raise `Mistake` for several values, where a command composes one config."""
    for override in overrides:
        one = _one_value(override)
        check(one == override, *override.partition("=")[::2], "one value is wanted here", _in_shell(one))


def _one_value(override: str) -> str:
    """An override of several values with the first of them, and any other as it is."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return override
    if not parsed.is_sweep_override():
        return override
    first = next(parsed.sweep_string_iterator()) if parsed.is_discrete_sweep() else "VALUE"
    return _one_path(override) or f"{override.partition('=')[0]}={first}"


def _one_path(override: str) -> str | None:
    """A path with commas in Hydra's quotes; None where several values, and no path, were probably meant."""
    key, _, value = override.partition("=")
    return f"{key}='{value}'" if "/" in value and not set(value) & set("'\"()[]{}") else None


def _in_shell(argument: str) -> str:
    return f'"{argument}"' if "'" in argument and '"' not in argument else shlex.quote(argument)


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
        return _no_yaml(error)
    if isinstance(error, OSError) and not isinstance(error, MissingConfigException):
        return _no_folder(error, arguments)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if error.options is not None:
            return no_option(group, option, error.options)
        if (within := _within(error)) and (options := [each for each in _options(group) if each != within.stem]):
            told = f"no such option; there are {', '.join(options)}"
            return f"{file_shown(within)}: {option}: {told}. Write - {nearest(option, options)} in its defaults"
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, ValueError) and "Only one of --run" in str(error):
        return _one_command(arguments)
    if isinstance(error, ValueError) and "The --resolve flag" in str(error):
        return f"--resolve: it is about what --cfg prints. Type --cfg job {shlex.join(arguments)}"
    if isinstance(error, ValueError) and "Config group override must be" in str(error):
        return _bad_group_value(arguments) or first_line(error)
    within = None if "In 'storage/" in str(error) else _within(error)  # which is told as what it is
    cause = (error.__context__ if within else error.__cause__) if isinstance(error, HydraException) else error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        if within and isinstance(cause.parent_node, DictConfig):
            return no_key_in(within, str(cause.full_key), [str(key) for key in cause.parent_node])
        return _no_key(str(cause.full_key), cause.parent_node, error, arguments)
    if isinstance(cause, InterpolationKeyError | InterpolationResolutionError):
        key = str(cause.full_key)
        return f"{'='.join(_typed(key, arguments))}: {first_line(cause)}. Type {key}=VALUE"
    if isinstance(cause, MissingMandatoryValue):
        key = str(cause.full_key)
        if f"~{key}" in arguments:
            return f"~{key}: a group cannot be removed. Type {key}={_options(key)[0]}, or leave it out"
        options = _options(key)
        there = f"; there are {', '.join(options)}" if options else ""
        instead = options[0] if options else "FOLDER" if key == "data.root" else "VALUE"
        return f"{key}=???: it has no default and must be given{there}. Type {key}={instead}"
    if isinstance(cause, ValidationError):
        return _wrong_type(cause)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _composition(error, arguments)
    return None


def _one_command(arguments: Sequence[str]) -> str:
    """For flags of which one is possible at a time."""
    flags, settings = _parted(arguments)
    several = [each for each in flags if each in RUNNING]
    if several and {each.partition("=")[0] for each in flags} & set(PRINTING):
        rest = [each for each in flags if each not in RUNNING]
        one = " ".join(_in_shell(each) for each in (*rest, *map(_one_value, settings)))
        return f"{several[0]}: only one config is printed. Type {one}, or hydra.sweeper.dry_run=5 for those of a search"
    return f"{shlex.join(flags)}: only one of these goes at a time. Type one of them, or --help"


def _no_yaml(error: yaml.YAMLError) -> str | None:
    """For a file that somebody wrote, with the line of the slip."""
    mark, context = getattr(error, "problem_mark", None), str(getattr(error, "context", None))
    if "flow" in context or "scanning a" in context:  # which began before it was found to have no end
        mark = getattr(error, "context_mark", mark)
    if mark is None or not Path(mark.name).is_file():
        return None
    problem = str(getattr(error, "problem", None) or first_line(error))
    instead = "it once" if "duplicate" in problem else "KEY: VALUE, indented with spaces as the lines beside it"
    return f"{file_shown(Path(mark.name))}, line {mark.line + 1}: not YAML ({problem}). Write {instead}"


def _within(error: Exception) -> Path | None:
    """The file of an option that Hydra was reading."""
    found = re.match(r"In '(\w+)/(\w+)': ", str(error))
    return path if found and (path := _file(found[1], found[2])).is_file() else None


def _no_folder(error: OSError, arguments: Sequence[str]) -> str | None:
    """For a folder of a run or a sweep, or an `outputs`, that cannot be made or written."""
    if error.filename is None:
        return None
    there = Path(str(error.filename)).absolute()
    reason = "it is a file" if error.errno == errno.EEXIST else error.strerror
    for key in ("hydra.run.dir", "hydra.sweep.dir"):
        name, value = _typed(key, arguments)
        folder = Path(value.strip("'\"")).absolute()
        related = name == key and value != "…" and (there.is_relative_to(folder) or folder.is_relative_to(there))
        if related and (error.errno in UNWRITABLE or not folder.exists()):
            return f"{key}={value}: cannot be written ({reason}). Type {key}=FOLDER, one that can be"
    if "outputs" not in there.parts:
        return None
    return f"{error.filename}: cannot be written ({error.strerror}). Run from another directory, or make room there"


def _unreadable(error: OverrideParseException) -> str:
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
    if "=" not in typed and (groups := [group for group in _groups() if typed in _options(group)]):
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


def slip(group: str, key: str, known: Sequence[str]) -> str | None:
    """One line for a key that is none of a group's, but set by a file; None where it stands in no file."""
    of_group = [(_file(group, option), "") for option in _options(group)]
    of_run = [(_file(each, option), group) for each in NAMED for option in _options(each)]
    for file, below in (*of_group, *of_run):
        content = settings(file)
        if key in ((content.get(below) or {}) if below else content):
            return no_key_in(file, f"{group}.{key}".lstrip("."), known)
    return None


def no_constraint(typed: str) -> str:
    """One line for a constraint of a sweep that is none."""
    found = re.fullmatch(r"[\['\"\s]*(\w+)\s*([<>])=?\s*([-+.\de_]+)['\"\]\s]*", typed)
    figure, sign, bound = found.groups() if found else ("", "<", "7.05e6")
    instead = f"'hydra.sweeper.constraints=[\"{nearest(figure, FACTS)} {sign}= {bound}\"]'"
    told = f"FIGURE <= NUMBER or FIGURE >= NUMBER in quotes, with one of {', '.join(FACTS)}"
    return f"hydra.sweeper.constraints={typed}: {told}. Type {instead}"


def no_key_in(file: Path, key: str, known: Sequence[str]) -> str:
    """One line for a key that a file sets and nothing has; `known` are those that there are in its place."""
    path, _, last = key.rpartition(".")
    meant = closest(ALSO_CALLED.get(last, last), known)
    instead = f"Write {meant} there" if meant else f"Remove {last} there"
    if ":" in last:
        instead = "Write KEY: VALUE, with a space behind the colon"
    where = f"{path} has" if path else "there are"
    return f"{file_shown(file)}: {last}: no such key; {where} {', '.join(known)}. {instead}"


def _typed(key: str, arguments: Sequence[str]) -> tuple[str, str]:
    """(the key, the value) as typed on the command line for `key` or for a key below it."""
    for argument in arguments:
        name, equals, value = argument.lstrip("+~").partition("=")
        if equals and (name == key or name.startswith(f"{key}.")):
            return name, value
    return key, "…"


def no_option(group: str, option: str, options: Sequence[str]) -> str:
    """One line for an option that a group does not have."""
    best = "disabled" if option.lower() in NO and "disabled" in options else nearest(option, options)
    return f"{group}={option}: no such option; there are {', '.join(options) or 'none'}. Type {group}={best}"


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in _file(group, "*").parent.glob("*.yaml")) if group.isidentifier() else []


def _groups() -> list[str]:
    """Those of conf/ and sweep, runs and sweeps with a name first."""
    return list(dict.fromkeys([*reversed(NAMED), *sorted(path.name for path in CONF.iterdir() if path.is_dir())]))


def _file(group: str, option: str) -> Path:
    return (SWEEPS if group == "sweep" else CONF / group) / f"{option}.yaml"


def file_shown(path: Path) -> str:
    """A file of conf/ or sweeps/ by these names, any other one whole."""
    return str(path.relative_to(CONF.parent) if path.is_relative_to(CONF.parent) else path)


def _bad_group_value(arguments: Sequence[str]) -> str | None:
    for argument in arguments:
        group, _, value = argument.partition("=")
        options = _options(group)
        if options and value not in options:
            return no_option(group, value, options)
    return None


def _no_key(unknown: str, parent: Any, error: Exception, arguments: Sequence[str]) -> str:
    quoted = re.search(r"Could not override '([^']+)'", str(error))
    key, value = _typed(quoted.group(1) if quoted else unknown, arguments)
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
    options = _options(path) if "trainer" in tree else []  # of a run's config
    by_option = {option: _keys(CONF / path / f"{option}.yaml") for option in options}
    last = last if key.startswith("hydra.") else ALSO_CALLED.get(last, last)
    namesakes = [leaf for leaf in others if leaf.rpartition(".")[2] == last]
    elsewhere = [name for names in by_option.values() for name in names if name not in siblings]
    meant = closest(last, [*siblings, *elsewhere]) if isinstance(home, dict) else None
    similar = closest(key, others)
    search = _keys(CONF / "hydra" / "sweeper" / "swinexp_optuna.yaml")

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
    elif last == "name" and _options(path):
        instead = f"Type {path}={nearest(value, _options(path))}"
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


def _keys(path: Path) -> list[str]:
    return list(settings(path))


def settings(path: Path) -> dict[str, Any]:
    """What a file of conf/ or sweeps/ sets; nothing where it cannot be read, for it may be another than is meant."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {content: None} if isinstance(content, str) else {}


def _wrong_type(error: ValidationError) -> str:
    message, key, value = first_line(error), re.sub(r"\[\d+\]$", "", str(error.full_key)), error.value
    if str(value).endswith(".0") and "to Integer" in message and key == error.full_key:
        return f"{key}={value}: a whole number is needed. Type {key}={str(value).removesuffix('.0')}"
    kinds = {
        "to Integer": ("a whole number is needed", "1"),
        "to Float": ("a number is needed", "0.1"),
        "valid bool": ("true or false is needed", "true"),
        "ListConfig, list": ("a list is needed", _quoted(_list(key) or [value])),
        "is not Optional": ("null is not allowed", "VALUE"),
        "NoneType": ("null is not allowed", "1"),
        "to string": ("a word is needed", "WORD"),
        "type 'int'": ("a whole number is needed", "1"),
        "type 'float'": ("a number is needed", "0.1"),
        "type 'bool'": ("true or false is needed", "true"),
    }
    problem, example = next((kind for text, kind in kinds.items() if text in message), (message, "VALUE"))
    if key != error.full_key:
        problem, example = f"{problem} in the list", _quoted(_list(key) or [example, example])
    return f"{key}={shown(value)}: {problem}. Type for example {key}={example}"


def _quoted(values: Sequence[Any]) -> str:
    """A list as one types it in a shell."""
    plain = all(re.fullmatch(r"[\w.+-]*", shown(value)) for value in values)
    return shown(values) if plain else shlex.quote(f"[{','.join(json.dumps(shown(value)) for value in values)}]")


def _list(key: str) -> list[Any] | None:
    """A list that an option has for a key."""
    group, _, last = key.rpartition(".")
    contents = (settings(CONF / group / f"{option}.yaml") for option in _options(group))
    return next((content[last] for content in contents if isinstance(content.get(last), list)), LISTS.get(key))


def _composition(error: Exception, arguments: Sequence[str]) -> str:
    message = first_line(error)
    if found := re.search(r"Additional config directory '(.*)' not found", message):
        return f"--config-dir={found[1]}: there is no such folder. Type that of a sweep, which has its best.yaml"
    if found := re.search(r"Cannot find primary config '(.*?)'", message):
        return f"--config-name={found[1]}: there is no {found[1]}.yaml. Type --config-name best, or leave it out"
    several = re.search(r"Ambiguous value for argument '(.+)'|Sweep parameters '(.+)' requires", message)
    if several:
        argument = several.group(1) or several.group(2)
        if {each.partition("=")[0] for each in arguments} & set(PRINTING):
            return f"{argument}: only one config is printed. Type {_in_shell(_one_value(argument))}"
        if path := _one_path(argument):
            return f"{argument}: a comma parts values. Type {_in_shell(path)} for one path, or -m for several"
        return f"{argument}: several values are a multirun. Type -m {shlex.join(arguments) if arguments else argument}"
    if "does not support sweep type : INTERVAL" in message:
        rest = shlex.join(each for each in arguments if each not in ("-m", "--multirun"))
        return f"hydra/sweeper=basic: an interval is a search's. Type -m {rest} hydra/sweeper=swinexp_optuna"
    twice = re.search(r"Multiple values for (\w+)|force-add of config groups", message)
    for argument in arguments if twice else ():
        group, _, option = argument.lstrip("+").partition("=")
        if argument.startswith("+") and _options(group):
            return f"{argument}: the group is there already. Type {group}={option}"
    kept = re.search(r"In 'storage/(\w+)': ConfigKeyError", message)
    if kept:
        instead = f"sweep=NAME storage={kept[1]}, or -m hydra/sweeper=swinexp_optuna storage={kept[1]}"
        return f"storage={kept[1]}: only a sweep of ours keeps a study. Type {instead}"
    there = re.search(r"An item is already at '([^']+)'", message)
    if there:
        key, value = _typed(there.group(1), arguments)
        return f"+{key}={value}: the key is there already. Type {key}={value}"
    return f"{message}. See --help"
