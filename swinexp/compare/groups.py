"""Runs of the same settings as one: their figures over the repetitions, the best first, each against one of them."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from swinexp.compare.differences import REPEATED, as_typed, check_key, decides, is_number, value, varied
from swinexp.compare.runs import COMPLETE, Found
from swinexp.compare.statistic import Difference, difference, holm
from swinexp.mistake import Mistake

HIGHER = ("accuracy", "top5", "images_per_second")  # how figures end that are better when they are higher


def goes_up(metric: str) -> bool:
    """Whether more of a figure is better."""
    return metric.endswith(HIGHER)


@dataclass(frozen=True)
class Group:
    """The complete runs that share `settings`, {key: value}, and a figure for each repetition.

    `against` is its figure less that of the group that all are compared with, None for that one itself, and where
    there is nothing to say; its p is corrected for the number of comparisons.
    """

    settings: Mapping[str, str]
    runs: Sequence[Found]
    figures: Mapping[Hashable, float]
    unsteady: int = 0  # repetitions whose runs differ in nothing but their figures
    against: Difference | None = None
    is_base: bool = False

    @property
    def label(self) -> str:
        """Its settings as one types them, numbers to four digits."""
        return ", ".join(f"{key}={value}" for key, value in self.settings.items()) or "all"

    @property
    def short(self) -> str:
        """Its settings for a picture: keys by their last part where those differ, options of groups by themselves."""
        ends = [key.rpartition(".")[2] for key in self.settings]
        names = ends if len({*ends}) == len(ends) else [*self.settings]
        told = zip(names, self.settings.items(), strict=True)
        return ", ".join(value if key == name else f"{name}={value}" for name, (key, value) in told) or "all"

    @cached_property
    def mean(self) -> float:
        return statistics.fmean(self.figures.values())

    @property
    def spread(self) -> float | None:
        """The standard deviation over the repetitions."""
        return statistics.stdev(self.figures.values()) if len(self.figures) > 1 else None

    def of(self, key: str) -> list[float]:
        """Another figure, of the runs that have it."""
        return [run.summary[key] for run in self.runs if is_number(run.summary.get(key))]


def objective(runs: Sequence[Found]) -> str:
    """What the runs say they are judged by. Raises `Mistake` where they do not agree."""
    named: dict[str, int] = {}
    for run in runs:
        told = run.config.get("objective", "val/accuracy")
        name = str(told[0] if isinstance(told, list) else told)
        named[name] = named.get(name, 0) + 1
    if len(named) > 1:
        each = " and ".join(f"{name} ({count} runs)" for name, count in named.items())
        most = max(named, key=named.__getitem__)
        raise Mistake(f"metric: the runs have different objectives, {each}. Type metric={most}")
    return next(iter(named))


def check_metric(metric: str, runs: Sequence[Found]) -> None:
    """Raise `Mistake` unless some run has the figure."""
    if any(is_number(run.summary.get(metric)) for run in runs):
        return
    check_key("metric", metric, [replace(run, config={}) for run in runs])
    raise Mistake(f"metric={metric}: is no number. Type metric={objective(runs)}")


def grouped(runs: Sequence[Found], metric: str, by: Sequence[str] | None, base: str | None) -> list[Group]:
    """The groups of complete runs by what differs, or by keys, the best first. Raises `Mistake`.

    `base` is the label of the group that the others are compared with; without it, the best one.
    """
    judged = [run for run in runs if run.state == COMPLETE and is_number(run.summary.get(metric))]
    differing = varied(judged)
    for key in by or ():
        check_key("by", key, runs)
    keys = list(differing if by is None else by)
    rest = [key for key in differing if key not in keys and not _stood_for(key, keys, judged)]
    members: dict[tuple[str, ...], list[Found]] = {}
    for run in judged:
        members.setdefault(tuple(as_typed(value(run, key)) for key in keys), []).append(run)
    groups = []
    for its in members.values():
        settings = {key: _brief(value(its[0], key)) for key in keys}
        alike = _repeated(its, metric, rest)
        figures = {repetition: statistics.fmean(same) for repetition, same in alike.items()}
        groups.append(Group(settings, its, figures, sum(len({*same}) > 1 for same in alike.values())))
    sign = -1 if goes_up(metric) else 1
    groups.sort(key=lambda group: sign * group.mean)
    return _compared(groups, _base(groups, base))


def _brief(setting: Any) -> str:
    return f"{setting:.4g}" if isinstance(setting, float) else as_typed(setting)


def _stood_for(key: str, keys: Sequence[str], runs: Sequence[Found]) -> bool:
    """Whether a group is among `keys` whose option decides a key: by=attention is about attention.init too."""
    group = key.partition(".")[0]
    return group in keys and decides(group, key, runs)


def _repeated(runs: Sequence[Found], metric: str, rest: Sequence[str]) -> dict[Hashable, list[float]]:
    """{the seed and whatever else differs within the group: the figures of runs that differ in nothing}"""
    figures: dict[Hashable, list[float]] = {}
    for run in runs:
        repetition = tuple(as_typed(value(run, each)) for each in (REPEATED, *rest))
        figures.setdefault(repetition, []).append(float(run.summary[metric]))
    return figures


def _base(groups: Sequence[Group], base: str | None) -> int:
    if base is None or not groups:
        return 0
    wanted = {part.strip() for part in re.split(r",(?=\s*[\w./]+=)", base)}  # not within a list
    fitting = [index for index, group in enumerate(groups) if wanted <= {f"{k}={v}" for k, v in group.settings.items()}]
    if len(fitting) == 1:
        return fitting[0]
    there = [groups[index] for index in fitting] or groups
    settings, typed = there[0].settings, {part.partition("=")[0] for part in wanted}
    values = {key: list(dict.fromkeys(group.settings[key] for group in there)) for key in settings}
    if fitting:  # which then differ in another key
        key = next(key for key in settings if key not in typed and len(values[key]) > 1)
        which, instead = f"{len(fitting)} groups are called so", f"{base},{key}={settings[key]}"
    else:
        key = next((key for key in settings if key in typed), next(iter(settings)))
        which, instead = "no group is called so", f"{key}={settings[key]}"
    raise Mistake(f"base={base}: {which}; {key} is one of {', '.join(values[key])}. Type 'base={instead}'")


def _compared(groups: Sequence[Group], base: int) -> list[Group]:
    others = [index for index in range(len(groups)) if index != base]
    found = {index: difference(groups[index].figures, groups[base].figures) for index in others}
    told = {index: each for index, each in found.items() if each is not None}
    corrected = dict(zip(told, holm([each.p for each in told.values()]), strict=True))
    judged = {index: replace(each, p=corrected[index]) for index, each in told.items()}
    return [
        replace(group, against=judged.get(index), is_base=index == base and len(groups) > 1)
        for index, group in enumerate(groups)
    ]


def front(groups: Sequence[Group], cost: str, metric: str) -> list[Group]:
    """The groups that no other one is better than in the metric at no higher cost, the cheapest first."""
    priced = [(statistics.fmean(costs), group) for group in groups if (costs := group.of(cost))]
    sign = -1 if goes_up(metric) else 1
    cheap = -1 if goes_up(cost) else 1
    kept: list[Group] = []
    least = math.inf
    for _, group in sorted(priced, key=lambda pair: (cheap * pair[0], sign * pair[1].mean)):
        if sign * group.mean < least:
            least = sign * group.mean
            kept.append(group)
    return kept
