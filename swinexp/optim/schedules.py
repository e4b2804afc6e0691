"""Learning rate schedules: the factor on the peak lr as a pure function of progress."""

from __future__ import annotations

import math
from dataclasses import dataclass

from swinexp.mistake import check, one_of

COOLDOWNS = ("sqrt", "linear")


@dataclass
class Schedule:
    """`warmup_epochs` of linear rise to the peak lr; what comes then is the subclass."""

    name: str
    warmup_epochs: float

    def __post_init__(self) -> None:
        check(
            0 <= self.warmup_epochs < math.inf,
            "schedule.warmup_epochs",
            self.warmup_epochs,
            "it must not be negative",
            "schedule.warmup_epochs=3",
        )

    def scale(self, epoch: float, epochs: float) -> float:
        """As `lr_scale`."""
        return epoch / self.warmup_epochs if epoch < self.warmup_epochs else self.after_warmup(epoch, epochs)

    def after_warmup(self, epoch: float, epochs: float) -> float:
        """As `lr_scale`, from `warmup_epochs` on."""
        raise NotImplementedError


@dataclass
class Constant(Schedule):
    """The peak lr to the end."""

    def after_warmup(self, epoch: float, epochs: float) -> float:  # noqa: ARG002
        """Always 1"""
        return 1.0


@dataclass
class Linear(Schedule):
    """A straight line down to `final` times the peak lr."""

    final: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_final(self.final)

    def after_warmup(self, epoch: float, epochs: float) -> float:
        """1 down to `final`"""
        return between(self.final, 1 - progress(epoch, self.warmup_epochs, epochs))


@dataclass
class Cosine(Schedule):
    """Half a cosine down to `final` times the peak lr (Loshchilov and Hutter, arXiv 1608.03983)."""

    final: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_final(self.final)

    def after_warmup(self, epoch: float, epochs: float) -> float:
        """1 down to `final`"""
        return between(self.final, half_cosine(progress(epoch, self.warmup_epochs, epochs)))


@dataclass
class WSD(Schedule):
    """Warm-up, stable, decay (Hägele et al., arXiv 2405.18392).

    The peak lr until the last share `decay` of the run, then down to `final` times it, by 1 - √progress or along a
    line (`shape`).
    """

    decay: float
    shape: str
    final: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.decay <= 1, "schedule.decay", self.decay, "a share of the run", "schedule.decay=0.2")
        one_of("schedule.shape", self.shape, COOLDOWNS)
        check_final(self.final)

    def after_warmup(self, epoch: float, epochs: float) -> float:
        """1, and at last down to `final`; a warm-up that is still on when the decay should begin delays it."""
        gone = progress(epoch, max((1 - self.decay) * epochs, self.warmup_epochs), epochs)
        return between(self.final, 1 - (math.sqrt(gone) if self.shape == "sqrt" else gone))


@dataclass
class Step(Schedule):
    """`factor` times the lr when each of `milestones`, shares of the run, has passed (He et al., arXiv 1512.03385)."""

    milestones: list[float]
    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            all(0 < share < 1 for share in self.milestones) and self.milestones == sorted(set(self.milestones)),
            "schedule.milestones",
            self.milestones,
            "shares of the run between 0 and 1, each larger than the one before",
            "schedule.milestones=[0.5,0.75]",
        )
        check(0 < self.factor < 1, "schedule.factor", self.factor, "a factor between 0 and 1", "schedule.factor=0.1")

    def after_warmup(self, epoch: float, epochs: float) -> float:
        """A power of `factor`; the step that ends at a milestone still has the lr before it."""
        return self.factor ** sum(epoch > share * epochs for share in self.milestones)


@dataclass
class OneCycle(Schedule):
    """One rise, one fall, and a tail, in three straight lines (Smith and Topin, arXiv 1708.07120).

    Up from `start` times the peak lr during the warm-up, back down to it, and in the last share `tail` of the run on
    to `final` times the peak. Where the warm-up leaves no room before the tail, the tail falls from the peak.
    """

    start: float
    tail: float
    final: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.start <= 1, "schedule.start", self.start, "a share of the peak lr", "schedule.start=0.1")
        check(0 <= self.tail < 1, "schedule.tail", self.tail, "a share of the run in [0, 1)", "schedule.tail=0.1")
        check_final(self.final)
        check(
            self.final <= self.start,
            "schedule.final",
            self.final,
            f"the lr falls at last, so it is at most schedule.start={self.start}",
            f"schedule.final={self.start / 100:g}",
        )

    def scale(self, epoch: float, epochs: float) -> float:
        """`start` to 1, 1 to `start`, `start` to `final`"""
        if epoch < self.warmup_epochs:
            return between(self.start, epoch / self.warmup_epochs)
        turn = max((1 - self.tail) * epochs, self.warmup_epochs)
        if epoch < turn:
            return between(self.start, 1 - progress(epoch, self.warmup_epochs, turn))
        room = turn - self.warmup_epochs > 1e-9 * epochs  # else the tail is the way down
        top = self.start if room else 1.0
        return self.final + (top - self.final) * (1 - progress(epoch, turn, epochs))


@dataclass
class Restarts(Schedule):
    """Cycles of half a cosine from the peak lr to `final` times it (Loshchilov and Hutter, arXiv 1608.03983).

    The first has `cycle_epochs`, each next one `cycle_factor` times as many; the run's end may cut the last. Each
    begins with its own warm-up, a line from `final`, within its epochs. With `per_epoch`, the lr of a whole epoch is
    the one at its start.
    """

    final: float
    cycle_epochs: float
    cycle_factor: float
    per_epoch: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_final(self.final)
        check(
            max(self.warmup_epochs, 1) <= self.cycle_epochs < math.inf and self.warmup_epochs < self.cycle_epochs,
            "schedule.cycle_epochs",
            self.cycle_epochs,
            f"at least 1 epoch, and longer than the warm-up, schedule.warmup_epochs={self.warmup_epochs:g}",
            f"schedule.cycle_epochs={5 * self.warmup_epochs or 10:g}",
        )
        check(
            1 <= self.cycle_factor < math.inf,
            "schedule.cycle_factor",
            self.cycle_factor,
            "at least 1",
            "schedule.cycle_factor=2",
        )

    def scale(self, epoch: float, epochs: float) -> float:  # noqa: ARG002
        """`final` to 1 and back, again and again"""
        # The end of an epoch's last step is the next epoch's start, and still belongs to the one under way.
        position = float(max(math.ceil(epoch) - 1, 0)) if self.per_epoch else epoch
        length = self.cycle_epochs
        while position > length or (self.per_epoch and position == length):
            position -= length
            length *= self.cycle_factor
        if position < self.warmup_epochs:
            return between(self.final, position / self.warmup_epochs)
        return between(self.final, half_cosine(progress(position, self.warmup_epochs, length)))


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "linear": Linear,
    "wsd": WSD,
    "one_cycle": OneCycle,
    "step": Step,
    "restarts": Restarts,
}


def check_final(final: float) -> None:
    """Raise `Mistake` unless it is a share of the peak lr."""
    check(0 <= final <= 1, "schedule.final", final, "a share of the peak lr", "schedule.final=0.001")


def progress(epoch: float, begin: float, end: float) -> float:
    """How much of the way from `begin` to `end` is done: 0 to 1."""
    return min((epoch - begin) / max(end - begin, 1e-12), 1.0) if epoch > begin else 0.0


def between(low: float, share: float) -> float:
    """`low` at 0, 1 at 1."""
    return low + (1 - low) * share


def half_cosine(done: float) -> float:
    """1 at 0, 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * done))


def lr_scale(schedule: Schedule, epoch: float, epochs: float) -> float:
    """The factor on the peak lr for the step after which `epoch` of `epochs` are trained; both may be fractions."""
    return schedule.scale(epoch, epochs)
