"""Whether one set of figures is higher than another by more than chance: Student's t, paired or Welch's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95  # of the interval
FEW = 3  # figures on each side below which an interval says little


@dataclass(frozen=True)
class Difference:
    """The mean of one side less that of the other, with its interval of confidence and two-sided p.

    `pairs` is how many figures were compared in pairs, 0 for Welch's test. p is nan where nothing spreads.
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int
    least: int  # figures on the smaller side

    @property
    def few(self) -> bool:
        return self.least < FEW


def difference(one: Mapping[Hashable, float], other: Mapping[Hashable, float]) -> Difference | None:
    """Of figures by what they were repeated over (the seed): in pairs where all of a side have one, else Welch's test.

    None where there are not two of each, with which nothing can be said.
    """
    least = min(len(one), len(other))
    if least < 2:
        return None
    common = one.keys() & other.keys()
    if len(common) == least:
        gaps = [one[key] - other[key] for key in common]
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        return _judged(statistics.fmean(gaps), error, len(gaps) - 1, len(gaps), least)
    sides = [[*one.values()], [*other.values()]]
    parts = [statistics.variance(side) / len(side) for side in sides]
    spread = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    freedom = sum(parts) ** 2 / spread if spread else math.inf  # Welch (1947), Satterthwaite (1946)
    return _judged(statistics.fmean(sides[0]) - statistics.fmean(sides[1]), math.sqrt(sum(parts)), freedom, 0, least)


def _judged(mean: float, error: float, freedom: float, pairs: int, least: int) -> Difference:
    from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]

    if error < 1e-12 * abs(mean) or error == 0:
        return Difference(mean, mean, mean, math.nan, pairs, least)
    reach = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Difference(mean, mean - reach, mean + reach, 2 * float(stdtr(freedom, -abs(mean) / error)), pairs, least)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for there being several of them (Holm, 1979); nan stays, and does not count."""
    corrected = [*values]
    order = sorted((index for index, p in enumerate(values) if not math.isnan(p)), key=values.__getitem__)
    reached = 0.0
    for rank, index in enumerate(order):
        reached = max(reached, min(1.0, (len(order) - rank) * values[index]))
        corrected[index] = reached
    return corrected
