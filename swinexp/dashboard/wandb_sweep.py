"""Our sweeps as W&B's own: what `wandb sweep FILE` takes, whose agents start `swinexp.run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from swinexp import CONF
from swinexp.explain import check_files, check_options
from swinexp.mistake import Mistake, check, shown
from swinexp.sweep.options import WHERE
from swinexp.sweep.plan import Plan, plan, rehearse
from swinexp.sweep.space import Parameter

OURS = ("hydra/sweeper=swinexp_optuna", "hydra/sweeper/sampler=grid")  # Hydra's basic sweeper tries every combination
METHODS = {"grid": "grid", "brute_force": "grid", "random": "random", "qmc": "random"}  # all others learn: bayes
NEAR = {"brute_force": "a shuffled grid", "qmc": "a quasi-random sequence"}
OF_THE_SWEEPER = ("hydra.sweeper.", "hydra/sweeper", "hydra.mode=", "storage=")  # which its runs do not have
# What decides how long W&B's sweep takes and where it begins, not what is asked: left out, and said.
LEFT_OUT = ("enqueue", "warm_start", "timeout", "max_epochs_total", "terminator", "top_k")


def converted(arguments: Sequence[str]) -> str:
    """The YAML of the sweep that a command of swinexp.run describes, with what is left out on top. Raises `Mistake`."""
    known = OverridesParser.create().parse_overrides(list(arguments))
    swept = [str(override.input_line) for override in known if override.is_sweep_override()]
    fixed = [str(override.input_line) for override in known if not override.is_sweep_override()]
    check_options(fixed)
    check_files([*fixed, "hydra.mode=MULTIRUN"])
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        found, config = _planned(fixed, swept)
    whole, notes = _whole(found, config, fixed)
    head = [
        f"# {' '.join(arguments)}, for W&B's own sweeps. To create one, and to run an agent where outputs/ is to be:",
        "#   wandb sweep FILE",
        "#   wandb agent ENTITY/PROJECT/ID",
        *(f"# Left out: {note}." for note in notes),
    ]
    return "\n".join(head) + "\n" + yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)


def _planned(fixed: list[str], swept: list[str]) -> tuple[Plan, DictConfig]:
    """What the sweep is to do, checked against our runs and W&B's sweeps, and its config. Raises `Mistake`."""
    config = hydra.compose("config", [*fixed, "hydra.mode=MULTIRUN"], return_hydra_config=True)
    if "sampler" not in config.hydra.sweeper:  # Hydra's basic one
        params = config.hydra.sweeper.params
        config = hydra.compose("config", [*fixed, "hydra.mode=MULTIRUN", *OURS], return_hydra_config=True)
        config.hydra.sweeper.params = params
    loader = GlobalHydra.instance().config_loader()
    context = HydraContext(config_loader=loader, callbacks=None)  # type: ignore[arg-type]
    given = {str(key): value for key, value in config.hydra.sweeper.items() if key != "_target_"}
    found = plan(given, config, context, [*config.hydra.overrides.task, *swept])
    expressible(found)
    rehearse(found.space, config, context)
    return found, config


def expressible(found: Plan) -> None:
    """Raise `Mistake` where W&B would answer another question than the one that is asked."""
    options, space = found.options, found.space

    def only(condition: bool, key: str, value: object, problem: str, instead: str) -> None:
        check(condition, key, value, f"W&B's sweeps have {problem}", instead)

    objectives = [*found.objectives]
    only(len(objectives) == 1, "objective", objectives, "one objective", f"objective={objectives[0]}")
    limits = list(options.constraints)
    only(not limits, f"{WHERE}.constraints", limits, "no constraints", f"{WHERE}.constraints=[]")
    sampler = options.sampler["name"]
    only(sampler != "ablation", "hydra/sweeper/sampler", sampler, "no single changes", "hydra/sweeper/sampler=grid")
    depends = list(dict.fromkeys(key for when, _ in space.conditional for key in when))
    plain = f"{WHERE}.conditional=[], and what is to be varied in any case"
    only(not depends, f"{WHERE}.conditional", depends, "no parameters that depend on others", plain)
    function = options.custom_search_space
    plain = f"{WHERE}.custom_search_space=null, and what it varies as KEY=VALUES"
    only(function is None, f"{WHERE}.custom_search_space", function, "no functions of ours", plain)
    alone = options.seeds == 1 or _method(found) == "grid"
    plain = f"{WHERE}.seeds=1, or hydra/sweeper/sampler=grid, which tries every seed"
    only(alone, f"{WHERE}.seeds", options.seeds, "one run for each point", plain)


def _whole(found: Plan, config: DictConfig, fixed: list[str]) -> tuple[dict[str, Any], list[str]]:
    """(the sweep as W&B has it, what is left out of it)."""
    options, method = found.options, _method(found)
    notes = [
        f"{WHERE}.{key}={shown(_plain(value))}"
        for key in LEFT_OUT
        if (value := getattr(options, key)) not in (None, [], 0)
    ]
    sampler = options.sampler["name"]
    if sampler in NEAR:
        notes.append(f"{NEAR[sampler]} (hydra/sweeper/sampler={sampler}); this is method {method}")
    parameters = {each.key.lstrip("+"): _parameter(each, method) for each in found.space.parameters.values()}
    if options.seeds > 1:
        parameters["seed"] = {"values": [found.seed + index for index in range(options.seeds)]}
    early = _early(options.pruner, found.curve)
    if early is None and options.pruner["name"] != "none":
        notes.append(f"hydra/sweeper/pruner={options.pruner['name']}, which W&B cannot do with {found.objectives[0]}")
    mode = ["hydra.mode=RUN"]  # sweep=NAME alone would begin a sweep of ours
    ours = [
        each for each in fixed if not each.lstrip("+").startswith(("hydra.sweeper.", "hydra/sweeper", "hydra.mode"))
    ]
    optional: dict[str, Any] = {
        "entity": config.wandb.entity,
        "run_cap": options.n_trials,
        "early_terminate": early,
    }
    whole = {
        "name": found.folder.name,
        "project": config.wandb.project,
        "program": "swinexp.run",
        "command": ["${env}", "${interpreter}", "-m", "${program}", *ours, *mode, "${args_no_hyphens}"],
        "method": method,
        "metric": {"name": found.objectives[0], "goal": found.directions[0]},
        **{key: value for key, value in optional.items() if value is not None},
        "parameters": parameters,
    }
    return whole, notes


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _method(found: Plan) -> str:
    return METHODS.get(found.options.sampler["name"], "bayes")


def _parameter(parameter: Parameter, method: str) -> dict[str, Any]:
    """What is tried for a key, as W&B has it. Raises `Mistake`."""
    distribution = parameter.distribution
    if method == "grid" or isinstance(distribution, CategoricalDistribution):
        return {"values": [_value(value) for value in parameter.values()]}
    match distribution:
        case FloatDistribution(step=None) as d:
            return {"distribution": "log_uniform_values" if d.log else "uniform", "min": d.low, "max": d.high}
        case IntDistribution(step=1, log=False) as d:
            return {"distribution": "int_uniform", "min": d.low, "max": d.high}
        case IntDistribution(log=True) as d:
            raise Mistake(
                f"{parameter.key}={parameter.typed}: W&B's sweeps have no whole numbers on a logarithmic scale. "
                f"Type {parameter.key}={d.low},…,{d.high}, or tag(int,interval({d.low},{d.high}))"
            )
    return {"values": [_value(value) for value in parameter.values()]}  # even steps, whose ends W&B would move


def _value(value: Any) -> Any:
    """As its agent has to type it, which would write null as None: to Hydra, a word."""
    return "null" if value is None else value


def _early(pruner: Mapping[str, Any], curve: str | None) -> dict[str, Any] | None:
    """The pruner as W&B's own, which looks at the history that a run has; None where it cannot be."""
    if pruner["name"] not in ("asha", "hyperband") or curve is None or curve.startswith("best/"):
        return None
    first, factor = pruner.get("min_resource") or 1, pruner.get("reduction_factor") or 3
    if not isinstance(first, int):
        return None
    return {"type": "hyperband", "min_iter": first, "eta": factor}
