"""What a search is given in another shape than it takes is told with its whole key, and with something that it takes."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from swinexp.mistake import Mistake
from swinexp.sweep.options import options
from tests.sweeping import sweeper_options

POINTS = "a list of points is needed, [{KEY: VALUE}] with what is varied"
CONDITIONS = "a list is needed, [{when: {KEY: VALUE}, params: {KEY: what to try}}]"
BOUNDS = "FIGURE <= NUMBER or FIGURE >= NUMBER in quotes, with one of parameters, flops, activations"
BETTER = "minimize or maximize, or a list of them for several objectives"
PARAMS = "it is {KEY: what to try}, and each KEY can be typed without it"


@pytest.mark.parametrize(
    ("typed", "allowed", "instead"),
    [
        ("enqueue={x:1}", POINTS, "enqueue=[{x:1}]"),
        ("enqueue=[1]", POINTS, "enqueue=[]"),
        ("enqueue=[null]", POINTS, "enqueue=[]"),
        ("enqueue=null", POINTS, "enqueue=[]"),
        ("enqueue=[{x:1},y]", POINTS, "enqueue=[{x:1}]"),
        ("conditional={when:{x:1},params:{m:'interval(0,1)'}}", CONDITIONS, 'conditional=[{when:{x:1},params:{m:"interval(0,1)"}}]'),
        ("conditional=[5]", CONDITIONS, "conditional=[]"),
        ("conditional=null", CONDITIONS, "conditional=[]"),
        ("conditional=[{when:x,params:{m:1}}]", CONDITIONS, "conditional=[]"),
        ("conditional=[{when:{x:1}}]", CONDITIONS, "conditional=[]"),
        ("conditional=[{when:{x:1},param:{m:1}}]", CONDITIONS, "conditional=[{when:{x:1},params:{m:1}}]"),
        ("constraints=[null]", BOUNDS, 'constraints=["parameters <= 7.05e6"]'),
        ("constraints=[[1]]", BOUNDS, 'constraints=["parameters <= 7.05e6"]'),
        ("constraints='flops < 3'", "a list is needed", 'constraints=["flops < 3"]'),
        ("constraints=null", BOUNDS, 'constraints=["parameters <= 7.05e6"]'),
        ("constraints={flops:1000}", BOUNDS, 'constraints=["flops <= 1000"]'),
        ("direction=5", BETTER, "direction=maximize"),
        ("direction={a:1}", BETTER, "direction=maximize"),
        ("params=[]", PARAMS, None),
        ("params=[x]", PARAMS, None),
        ("params={optimizer:{lr:1}}", "optimizer.lr is one key here, with its dots", None),
        ("sampler=null", "it is a group", "/sampler=tpe"),
        ("pruner=null", "it is a group", "/pruner=none"),
        ("pruner=5", "it is a group", "/pruner=none"),
    ],
)  # fmt: skip
def test_a_list_or_mapping_of_another_shape_is_told_with_what_is_taken(
    typed: str, allowed: str, instead: str | None
) -> None:
    key, _, value = typed.partition("=")
    with pytest.raises(Mistake) as told:
        options({key: OverridesParser.create().parse_override(f"{key}={value}").value()})
    line, _, typed_instead = str(told.value).rpartition(". Type ")
    assert line.startswith(f"hydra.sweeper.{key}=")
    assert line.endswith(f": {allowed}")
    if instead is not None:
        (override,) = shlex.split(typed_instead)
        assert override == (f"hydra/sweeper{instead}" if instead[0] == "/" else f"hydra.sweeper.{instead}")
        sweeper_options(override)  # which is accepted
