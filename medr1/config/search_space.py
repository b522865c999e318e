"""The ranges that a hyperparameter search draws values from, in Hydra's syntax for sweeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Sweep

from medr1.errors import ConfigError

_INTERIOR = 0.618  # a point of an interval that is no round number
_DIGITS = 6  # significant digits of a value that is drawn from an interval


@dataclass(frozen=True, slots=True)
class Choice:
    """Values to choose from: ``choice(A,B)``, ``A,B``, or in order ``range(START,STOP,STEP)``.

    ``text``: as it was typed. ``values``: as in an override.
    """

    text: str
    values: Sequence[str]
    is_ordered: bool = False

    @property
    def size(self) -> float:
        return len(self.values)

    @property
    def probes(self) -> list[str]:
        """The values that are checked before the search."""
        return list(self.values)


@dataclass(frozen=True, slots=True)
class Interval:
    """``interval(LOW,HIGH)`` with both ends, of integers with ``int()``, on a log scale with ``tag(log,...)``."""

    text: str
    low: float
    high: float
    is_log: bool = False
    is_int: bool = False

    @property
    def size(self) -> float:
        return self.high - self.low + 1 if self.is_int else math.inf

    @property
    def probes(self) -> list[str]:
        """Both ends and a point between them, which are checked before the search."""
        inside = self.low + _INTERIOR * (self.high - self.low)
        return list(dict.fromkeys(map(self.to_text, (self.low, self.high, inside))))

    def to_text(self, value: float) -> str:
        """A value of the interval as in an override."""
        if self.is_int:
            return str(int(value))
        return repr(min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high))


Range = Choice | Interval


def range_of(override: Override) -> Range | None:
    """The range that an override gives for its setting; None if it gives one value.

    Raises:
        ConfigError: an interval without values, a scale that it cannot have, a tag that means nothing, or an order.
    """
    sweep, typed = override.value(), str(override.input_line)
    text = typed.partition("=")[2]
    if not override.is_sweep_override():
        return None
    tags = sweep.tags if isinstance(sweep, Sweep) else set()
    if unknown := tags - {"log"}:
        raise ConfigError(f"{typed}: the tag {', '.join(sorted(unknown))} means nothing here; use tag(log,interval())")
    if not isinstance(sweep, IntervalSweep):
        if tags:
            raise ConfigError(f"{typed}: only an interval can have a log scale, such as tag(log,interval(1e-5,1e-3))")
        if getattr(sweep, "shuffle", False):
            raise ConfigError(f"{typed}: a search chooses the order itself; leave out shuffle()")
        values = list(dict.fromkeys(override.sweep_string_iterator()))
        return Choice(text, values, isinstance(sweep, RangeSweep))
    assert sweep.start is not None and sweep.end is not None
    low, high, is_log = sweep.start, sweep.end, "log" in tags
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{typed}: {low} and {high} are no interval; the first number must be less than the second")
    if is_log and low <= 0:
        raise ConfigError(f"{typed}: a log scale has no {low}; the first number must be more than 0")
    return Interval(text, low, high, is_log, isinstance(low, int))


def size(space: Mapping[str, Range]) -> float:
    """The number of different settings; infinite with an interval of real numbers."""
    return math.prod(of.size for of in space.values())
