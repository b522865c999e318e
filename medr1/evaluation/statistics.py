"""Estimates with confidence intervals, paired tests, and corrections for several tests.

Legend: n records, K images, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with the ends of its confidence interval, 95 % unless stated otherwise."""

    value: float
    low: float
    high: float

    @property
    def is_inconclusive(self) -> bool:
        """Of a difference: the interval contains zero, or is a point, as a bootstrap over too few images gives it."""
        return self.low <= 0 <= self.high or self.low == self.high


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Accuracy of side b minus accuracy of side a on the same records.

    ``p`` is the exact McNemar p-value; with several seeds, ``rueger`` of their values. ``p_holm`` is the same after
    Holm's correction over the table.
    """

    difference: Estimate
    p: float
    p_holm: float


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """A proportion with its Wilson score interval.

    The n trials count as independent. Several questions on one image make the true interval somewhat wider;
    differences between conditions use ``bootstrap.paired_difference`` instead.

    Raises:
        ValueError: n < 1, successes outside 0..n, or level outside (0, 1).
    """
    check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials are not a proportion")
    interval = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar p-value of two conditions on the same records.

    If both accuracies are equal, ``only_a`` is binomial(only_a + only_b, 1/2). Without discordant records p is 1.

    Args:
        only_a: records that only the first condition answers correctly.
        only_b: records that only the second condition answers correctly.

    Raises:
        ValueError: a negative count.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"counts cannot be negative: {only_a} and {only_b}")
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given. They control the family-wise error rate.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    Raises:
        ValueError: a value outside [0, 1], or NaN.
    """
    p = _pvalues(pvalues)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(p[order] * np.arange(len(p), 0, -1), 1.0)
    adjusted = np.empty_like(p)
    # The running maximum: a hypothesis cannot be rejected before one with a smaller p-value is.
    adjusted[order] = np.maximum.accumulate(stepped)
    return [float(value) for value in adjusted]


def rueger(pvalues: Sequence[float]) -> float:
    """One p-value for a hypothesis that was tested several times, such as once per seed: twice the median, at most 1.

    It is valid under any dependence between the tests; seeds share the test records. For an even number of tests the
    median is the mean of the middle two. A single value is returned unchanged.

    Source: Rueger 1978, "Das maximale Signifikanzniveau des Tests ...", Metrika 25.

    Raises:
        ValueError: no value, or one outside [0, 1].
    """
    p = _pvalues(pvalues)
    if not len(p):
        raise ValueError("needs at least one of the p-values")
    return float(p[0]) if len(p) == 1 else min(1.0, 2 * float(np.median(p)))


def check_level(level: float) -> None:
    """Raises ValueError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise ValueError(f"confidence level must be between 0 and 1, got {level}")


def _pvalues(values: Sequence[float]) -> npt.NDArray[np.float64]:
    p = np.asarray(values, dtype=np.float64)
    if not bool(np.all((p >= 0) & (p <= 1))):
        raise ValueError(f"p-values must be in [0, 1], got {list(values)}")
    return p
