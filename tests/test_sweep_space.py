"""What is typed for a key is what is tried for it, and what is tried is typed back as it was meant."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from swinexp.mistake import Mistake
from swinexp.sweep.grammar import build_space
from swinexp.sweep.options import Conditional
from swinexp.sweep.plan import _asked
from swinexp.sweep.space import Space, text
from swinexp.sweep.trials import as_key, by_key
from tests.conftest import config
from tests.sweeping import GROUPS, space_of, sweeper_options


def distribution(typed: str) -> BaseDistribution:
    """Of the only parameter."""
    (parameter,) = space_of(typed).parameters.values()
    return parameter.distribution


def conditional(*conditions: tuple[dict[str, Any], dict[str, Any]], typed: Sequence[str] = ()) -> Space:
    each = [Conditional(when, params) for when, params in conditions]
    return build_space(None, typed, each, lambda group: GROUPS.get(group, []))


SGD = (
    ({"optimizer": "sgd"}, {"optimizer.momentum": "0.8,0.9"}),
    ({"optimizer": ["adamw", "lamb"]}, {"optimizer.eps": "tag(log,interval(1e-9,1e-6))"}),
)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("x=1,2,3", CategoricalDistribution([1, 2, 3])),
        ("x=a,b", CategoricalDistribution(["a", "b"])),
        ("x=choice(a,b)", CategoricalDistribution(["a", "b"])),
        ("x=sort(3,1,2)", CategoricalDistribution([1, 2, 3])),
        ("x=null,true,false,0.5", CategoricalDistribution([None, True, False, 0.5])),
        ("x='a,b',\"c d\",''", CategoricalDistribution(["'a,b'", '"c d"', "''"])),
        ("x='true',true", CategoricalDistribution(["'true'", True])),
        ("x=str(1),1", CategoricalDistribution(["'1'", 1])),
        (r"x=a\,b,c", CategoricalDistribution(["'a,b'", "c"])),
        ("x=[1,2],[3,4]", CategoricalDistribution(["[1,2]", "[3,4]"])),
        ("x={a:1},{a:2}", CategoricalDistribution(["{a:1}", "{a:2}"])),
        ("x=1,1.0,true", CategoricalDistribution([1, "1.0", "true"])),  # one value to Optuna, three to OmegaConf
        ("x=interval(1,2)", FloatDistribution(1, 2)),
        ("x=interval(1e-5,1e-2)", FloatDistribution(1e-5, 1e-2)),
        ("x=tag(log,interval(1e-5,1e-2))", FloatDistribution(1e-5, 1e-2, log=True)),
        ("x=tag(int,interval(1,8))", IntDistribution(1, 8)),
        ("x=tag(int,interval(0.5,3.7))", IntDistribution(1, 3)),
        ("x=int(interval(1,8))", IntDistribution(1, 8)),
        ("x=tag(int,log,interval(1,64))", IntDistribution(1, 64, log=True)),
        ("x=tag(log,int,interval(0.5,64))", IntDistribution(1, 64, log=True)),
        ("x=range(1,5)", IntDistribution(1, 5)),
        ("x=range(0,6,2)", IntDistribution(0, 6, step=2)),
        ("x=range(1,10,4)", IntDistribution(1, 9, step=4)),
        ("x=range(0,1,0.1)", FloatDistribution(0, 1, step=0.1)),
        ("x=range(0,1,0.3)", FloatDistribution(0, 0.9, step=0.3)),
        ("x=range(0.5,2.5,1)", FloatDistribution(0.5, 2.5, step=1)),
        ("model=nano,tiny", CategoricalDistribution(["nano", "tiny"])),
        ("model=glob(*)", CategoricalDistribution(["nano", "small", "tiny"])),
        ("model=glob(*, exclude=[t*])", CategoricalDistribution(["nano", "small"])),
    ],
)
def test_a_sweep_is_a_distribution(typed: str, expected: BaseDistribution) -> None:
    assert repr(distribution(typed)) == repr(expected)


def test_both_ends_of_a_range_are_tried() -> None:
    ends = {"x=range(1,5)": [1, 2, 3, 4, 5], "x=range(0,1,0.25)": [0, 0.25, 0.5, 0.75, 1], "x=range(0,5,2)": [0, 2, 4]}
    for typed, values in ends.items():
        space = space_of(typed)
        assert [point["x"] for point in space.points()] == values
        assert space.parameters["x"].extremes() == [values[0], values[-1]]


@pytest.mark.parametrize("typed", ["x=shuffle(range(1,9))", "x=shuffle(a,b,c,d,e,f,g,h)", "x=shuffle([1],[2],[3])"])
def test_what_is_shuffled_has_one_order_for_every_worker(typed: str) -> None:
    orders = set()
    for seed in range(10):
        random.seed(seed)
        found = distribution(typed)
        assert isinstance(found, CategoricalDistribution)
        orders.add(found.choices)
    (order,) = orders
    plain = distribution(typed.replace("shuffle(", "choice(").replace("choice(range(1,9))", "1,2,3,4,5,6,7,8"))
    assert isinstance(plain, CategoricalDistribution)
    assert sorted(map(text, order)) == sorted(map(text, plain.choices))
    if len(order) > 3:
        assert order != plain.choices


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("x=null,true,false,1,0.5,1e-5,-3,word", [None, True, False, 1, 0.5, 1e-5, -3, "word"]),
        ("x='null','true','1','a,b','[1]',''", ["null", "true", "1", "a,b", "[1]", ""]),
        (r"x=a\,b,str(2),a b", ["a,b", "2", "a b"]),
        ("x=[1,2],[a,null],[[1],'b c']", [[1, 2], ["a", None], [[1], "b c"]]),
        ("x={a:1,b:[2]},{a:null}", [{"a": 1, "b": [2]}, {"a": None}]),
        ("x=1,1.0,true", [1, 1.0, True]),
        ("x=${y},2", ["${y}", 2]),
        ("x=range(0,1,0.1)", [round(0.1 * i, 1) for i in range(11)]),
        ("model=nano,tiny", ["nano", "tiny"]),
    ],
)
def test_overrides_say_to_hydra_what_was_meant(typed: str, values: list[object]) -> None:
    space = space_of(typed)
    key = typed.partition("=")[0]
    read = []
    for point in space.points():
        (override,) = OverridesParser.create().parse_overrides(space.overrides(point))
        assert override.get_key_element() == key
        read.append(override.value())
    plain = [_plain(value) for value in read]
    assert plain == values
    assert [type(value) for value in plain] == [type(value) for value in values]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value.text if type(value).__name__ == "QuotedString" else value


@pytest.mark.parametrize("value", [1e-5, 3e-4, 0.1 + 0.2, 123456789.125, 1e16, -0.0625, 1e-300])
def test_a_drawn_number_is_typed_to_twelve_digits(value: float) -> None:
    space = space_of("x=interval(-1e17,1e17)")
    (override,) = OverridesParser.create().parse_overrides(space.overrides({"x": value}))
    assert isinstance(override.value(), float)
    assert override.value() == pytest.approx(value, rel=1e-11)
    assert text(0.1 + 0.2) == "0.3"


def test_the_command_line_comes_before_params() -> None:
    space = build_space({"x": "1,2", "y": "interval(0,1)", "z": 3}, ["x=5", "y=7,8", "w=a"], [], lambda _: [])
    assert space.fixed == ["x=5", "z=3", "w=a"]
    assert space.described() == {"y": "7,8"}
    assert space.overrides({"y": 8}) == ["x=5", "z=3", "w=a", "y=8"]


def test_of_one_key_the_last_override_holds() -> None:
    space = space_of("x=1,2", "x=3,4", "y=1,2", "y=3")
    assert space.described() == {"x": "3,4"}
    assert space.fixed == ["y=3"]


def test_params_may_be_values_lists_and_nulls() -> None:
    space = build_space({"a": None, "b": [1, 2], "c": True, "d": "choice(1,2)"}, [], [], lambda _: [])
    assert space.fixed == ["a=null", "b=[1,2]", "c=true"]
    assert list(space.parameters) == ["d"]


def test_conditional_parameters_are_only_where_they_hold() -> None:
    space = conditional(*SGD, typed=["optimizer=adamw,lamb,sgd"])
    for name, others in {"sgd": {"optimizer.momentum"}, "adamw": {"optimizer.eps"}, "lamb": {"optimizer.eps"}}.items():
        drawn = space.suggest(FixedTrial({"optimizer": name, "optimizer.momentum": 0.9, "optimizer.eps": 1e-8}))
        assert set(drawn) == {"optimizer"} | others


def test_a_condition_may_name_what_is_conditional_itself() -> None:
    space = conditional(
        ({"optimizer": "sgd"}, {"nesterov": "true,false"}),
        ({"nesterov": True}, {"damping": "0,1"}),
        ({"optimizer": "sgd", "nesterov": False}, {"dampening": "2,3"}),
        typed=["optimizer=adamw,sgd"],
    )
    assert space.points() == [
        {"optimizer": "adamw"},
        {"optimizer": "sgd", "nesterov": True, "damping": 0},
        {"optimizer": "sgd", "nesterov": True, "damping": 1},
        {"optimizer": "sgd", "nesterov": False, "dampening": 2},
        {"optimizer": "sgd", "nesterov": False, "dampening": 3},
    ]


def test_one_key_may_have_a_range_for_each_condition() -> None:
    space = conditional(
        ({"optimizer": "sgd"}, {"lr": "range(1,2)"}),
        ({"optimizer": "adamw"}, {"lr": "range(3,4)"}),
        typed=["optimizer=adamw,sgd"],
    )
    assert space.points() == [
        {"optimizer": "adamw", "lr": 3},
        {"optimizer": "adamw", "lr": 4},
        {"optimizer": "sgd", "lr": 1},
        {"optimizer": "sgd", "lr": 2},
    ]
    assert space.check({"lr": 2}) == {"lr": 2}
    assert space.check({"lr": 4}) == {"lr": 4}
    with pytest.raises(Mistake, match=r"lr=5 is not one of range\(3,4\)"):
        space.check({"lr": 5})
    with pytest.raises(Mistake, match=r"lr=4 is not one of range\(1,2\)"):  # which is the other optimizer's
        space.check({"optimizer": "sgd", "lr": 4})
    assert [part.distribution for part in space.parts({"optimizer": "sgd", "lr": 1})[1:]] == [IntDistribution(1, 2)]
    assert space.parts({"lr": 1}) == []


@pytest.mark.parametrize(
    ("one", "other"), [("1,2", "3,4"), ("1,2", "interval(1,2)"), ("interval(1,2)", "tag(log,interval(1,2))")]
)
def test_a_study_has_a_name_for_each_condition_under_which_a_key_has_other_values(one: str, other: str) -> None:
    space = conditional(
        ({"optimizer": "sgd"}, {"lr": one}),
        ({"optimizer": ["adamw", "lamb"]}, {"lr": other}),
        typed=["optimizer=adamw,lamb,sgd"],
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    names = {"sgd": "lr when optimizer=sgd"} | dict.fromkeys(("adamw", "lamb"), "lr when optimizer=adamw|lamb")
    drawn = set()
    for _ in range(20):
        trial = study.ask()
        point = space.suggest(trial)
        drawn.add(point["optimizer"])
        assert list(point) == ["optimizer", "lr"]
        assert trial.params == {"optimizer": point["optimizer"], names[point["optimizer"]]: point["lr"]}
        assert space.overrides(trial.params) == space.overrides(point) == [f"{k}={text(v)}" for k, v in point.items()]
        assert space.named(point) == trial.params
        assert space.check(by_key(trial.params)) == point
        assert as_key(trial.params) == as_key(point)
    assert drawn == set(names)


def test_the_same_values_under_several_conditions_are_one_parameter() -> None:
    space = conditional(
        ({"optimizer": "sgd"}, {"lr": "interval(1,2)"}),
        ({"optimizer": "adamw"}, {"lr": "interval(1,2)"}),
        typed=["optimizer=adamw,sgd"],
    )
    assert {parameter.name for parameter in space.all()} == {"optimizer", "lr"}


def test_what_is_queued_has_every_name_that_a_key_may_have() -> None:
    space = conditional(
        ({"optimizer": "sgd"}, {"lr": "interval(1,3)"}),
        ({"optimizer": "adamw"}, {"lr": "interval(2,9)"}),
        typed=["optimizer=adamw,sgd"],
    )
    sgd, adamw = "lr when optimizer=sgd", "lr when optimizer=adamw"
    assert space.named({"lr": 2.5}) == {sgd: 2.5, adamw: 2.5}
    assert space.named({"lr": 8.0}) == {adamw: 8.0}
    assert space.named({"lr": 2.5, "optimizer": "sgd"}) == {"optimizer": "sgd", sgd: 2.5}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(8):
        study.enqueue_trial(space.named({"lr": 2.5}))
    assert {space.suggest(study.ask())["lr"] for _ in range(8)} == {2.5}


def test_a_grid_has_every_combination_the_last_parameter_fastest() -> None:
    space = space_of("x=1,2", "y=range(0,1,0.5)", "model=tiny,nano")
    points = space.points()
    assert len(points) == 12
    assert points[:3] == [
        {"x": 1, "y": 0.0, "model": "tiny"},
        {"x": 1, "y": 0.0, "model": "nano"},
        {"x": 1, "y": 0.5, "model": "tiny"},
    ]
    assert len({tuple(point.items()) for point in points}) == 12


def test_an_interval_has_no_grid() -> None:
    with pytest.raises(Mistake) as told:
        space_of("x=interval(0,1)").points()
    assert str(told.value) == (
        "x=interval(0,1): an interval has no grid. Type values (x=a,b,c), range(low,high,step), "
        "or hydra/sweeper/sampler=qmc, which fills intervals evenly"
    )
    with pytest.raises(Mistake, match="no grid"):
        space_of("x=tag(int,log,interval(1,8))").points()


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("x=interval(1,1)", "x=interval(1,1): an interval goes from a number up to a larger one. Type x=interval(0.1,1)"),
        ("x=interval(2,1)", "x=interval(2,1): an interval goes from a number up to a larger one. Type x=interval(0.1,1)"),
        ("x=interval(0,inf)", "x=interval(0,inf): an interval goes from a number up to a larger one. Type x=interval(0.1,1)"),
        ("x=tag(log,interval(0,10))", "x=tag(log,interval(0,10)): a logarithmic interval begins above 0. Type x=tag(log,interval(0.01,10))"),
        ("x=tag(log,interval(-3,-1))", "x=tag(log,interval(-3,-1)): a logarithmic interval begins above 0. Type x=tag(log,interval(0.001,1))"),
        ("x=tag(int,interval(0.2,0.8))", "x=tag(int,interval(0.2,0.8)): fewer than two whole numbers are in it. Type x=tag(int,interval(1,11))"),
        ("x=range(5,1)", "x=range(5,1): a range goes up, in steps above 0. Type x=range(1,5)"),
        ("x=range(1,5,-1)", "x=range(1,5,-1): a range goes up, in steps above 0. Type x=range(1,5)"),
        ("x=tag(log,range(1,100))", "x=tag(log,range(1,100)): a range has even steps; log is for intervals. Type x=tag(log,interval(1,100))"),
        ("x=tag(lg,interval(1,9))", "x=tag(lg,interval(1,9)): tag lg: one of log, int. Type x=tag(log,interval(1,9))"),
        ("x=tag(Integer,range(1,9))", "x=tag(Integer,range(1,9)): tag Integer: one of log, int. Type x=tag(int,range(1,9))"),
        ("x=a,b,a", "x=a,b,a: a is there twice. Type x=a,b"),
        ("model=nano,tinny", "model=tinny: no such option; there are nano, small, tiny. Type model=tiny"),
        ("model=glob(z*)", "model=glob(z*): there is nothing to choose from. Type model=a,b,c"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_be_is_told_with_what_to_type(typed: str, line: str) -> None:
    with pytest.raises(Mistake) as told:
        space_of(typed)
    assert str(told.value) == line


@pytest.mark.parametrize(
    "typed",
    [
        "x=interval(0.1,1)",
        "x=tag(log,interval(0.01,10))",
        "x=tag(log,interval(0.001,1))",
        "x=tag(int,interval(1,11))",
        "x=tag(log,interval(1,100))",
        "x=range(1,5)",
        "model=tiny,nano",
    ],
)
def test_what_a_message_says_to_type_works(typed: str) -> None:
    assert space_of(typed).parameters


@pytest.mark.parametrize(
    ("when", "params", "line"),
    [
        ({"optimizr": "sgd"}, {"m": "1,2"}, "hydra.sweeper.conditional={when: {optimizr: sgd}}: optimizr is not varied before; optimizer is. Type optimizr=a,b beside it"),
        ({"optimizer": "lion"}, {"m": "1,2"}, "hydra.sweeper.conditional={when: {optimizer: lion}}: never so: optimizer is one of adamw,sgd. Type optimizer: adamw"),
        ({"optimizer": "sgd"}, {"m": 0.9}, "m=0.9: one value varies nothing. Type m=a,b"),
        ({"optimizer": "sgd"}, {"m": "interval(1,0)"}, "m=interval(1,0): an interval goes from a number up to a larger one. Type m=interval(0.1,1)"),
    ],
)  # fmt: skip
def test_a_condition_that_cannot_be_is_told(when: dict[str, Any], params: dict[str, Any], line: str) -> None:
    with pytest.raises(Mistake) as told:
        conditional((when, params), typed=["optimizer=adamw,sgd"])
    assert str(told.value) == line


def test_what_is_enqueued_is_in_the_space() -> None:
    space = conditional(*SGD, typed=["optimizer=adamw,lamb,sgd", "lr=tag(log,interval(1e-5,1e-1))", "n=range(0,6,2)", "b=null,true,'x y'"])  # fmt: skip
    point = space.check({"optimizer": "sgd", "optimizer.momentum": 0.9, "lr": 1e-5, "n": 6, "b": None})
    assert point == {"optimizer": "sgd", "optimizer.momentum": 0.9, "lr": 1e-5, "n": 6, "b": None}
    assert space.check({"lr": 1e-1}) == {"lr": 0.1}
    assert space.check({"b": True}) == {"b": True}
    assert space.check({"b": "'x y'"}) == {"b": "'x y'"}


@pytest.mark.parametrize(
    ("point", "line"),
    [
        ({"lrr": 1}, "hydra.sweeper.enqueue=lrr: not varied; model, lr, n are. Type one of these, or vary lrr"),
        (
            {"model": "small"},
            "hydra.sweeper.enqueue: model=small is not one of nano,tiny. Type one that is, or widen it",
        ),
        ({"lr": 2}, "hydra.sweeper.enqueue: lr=2 is not one of interval(0,1). Type one that is, or widen it"),
        ({"lr": "high"}, "hydra.sweeper.enqueue: lr=high is not one of interval(0,1). Type one that is, or widen it"),
        ({"lr": True}, "hydra.sweeper.enqueue: lr=true is not one of interval(0,1). Type one that is, or widen it"),
        ({"n": 3}, "hydra.sweeper.enqueue: n=3 is not one of range(0,6,2). Type one that is, or widen it"),
        ({"n": 2.5}, "hydra.sweeper.enqueue: n=2.5 is not one of range(0,6,2). Type one that is, or widen it"),
    ],
)
def test_what_cannot_be_enqueued_is_told(point: dict[str, Any], line: str) -> None:
    with pytest.raises(Mistake) as told:
        space_of("model=nano,tiny", "lr=interval(0,1)", "n=range(0,6,2)").check(point)
    assert str(told.value) == line


def test_a_whole_number_is_a_float_where_floats_are() -> None:
    known = space_of("lr=interval(0,2)").check({"lr": 1})
    assert known == {"lr": 1.0}
    assert type(known["lr"]) is float


def test_described_is_what_was_typed() -> None:
    space = conditional(*SGD, typed=["optimizer=adamw,lamb,sgd", "lr=tag(log, interval(1e-5, 1))"])
    assert space.described() == {
        "optimizer": "adamw,lamb,sgd",
        "lr": "tag(log, interval(1e-5, 1))",
        "optimizer.momentum when optimizer=sgd": "0.8,0.9",
        "optimizer.eps when optimizer=adamw|lamb": "tag(log,interval(1e-9,1e-6))",
    }


def test_corners_have_each_extreme_of_each_parameter() -> None:
    space = conditional(*SGD, typed=["optimizer=adamw,lamb,sgd", "lr=interval(1,2)", "n=range(1,4)"])
    corners = list(space.corners())
    tried: dict[str, set[Any]] = {}
    for parameter, point in corners:
        tried.setdefault(parameter.key, set()).add(point[parameter.key])
        assert ("optimizer.momentum" in point) == (point["optimizer"] == "sgd")
        assert {"optimizer", "lr", "n"} <= set(point)
    assert tried == {
        "optimizer": {"adamw", "lamb", "sgd"},
        "lr": {1.0, 2.0, 1 + 1 / math.pi},
        "n": {1, 4},
        "optimizer.momentum": {0.8, 0.9},
        "optimizer.eps": {1e-9, 1e-6, 1e-9 + (1e-6 - 1e-9) / math.pi},
    }


def test_suggestions_are_in_the_space_and_every_value_comes() -> None:
    space = conditional(*SGD, typed=["optimizer=adamw,lamb,sgd", "n=tag(int,log,interval(1,8))", "b=null,'1',1"])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    points = [space.suggest(study.ask()) for _ in range(80)]
    assert {point["n"] for point in points} == set(range(1, 9))
    assert {point["b"] for point in points} == {None, "'1'", 1}
    for point in points:
        assert space.check(point) == point
        assert math.isfinite(point.get("optimizer.eps", 0))


def test_what_python_suggests_is_added() -> None:
    space = space_of("x=1,2")
    space.custom = lambda trial: trial.suggest_int("y", 0, 3)
    point = space.suggest(FixedTrial({"x": 2, "y": 3}))
    assert point == {"x": 2, "y": 3}
    assert space.overrides(point) == ["x=2", "y=3"]


@pytest.mark.parametrize(("data", "told"), [("image_folder", True), ("cifar10", False)])
def test_where_images_of_ones_own_lie_is_part_of_a_sweep(data: str, told: bool) -> None:
    whole = config(f"data={data}", "data.root=A", "model=nano")
    asked = _asked(whole, space_of("optimizer.lr=interval(0,1)"), ["val/loss"], sweeper_options())
    assert ("data.root" in asked["config"]) == told
