"""Estimates with confidence intervals, paired tests, and corrections for several tests.

Legend: n records, K images, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, norm


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


def wilson(share: float, n: float, level: float = 0.95) -> Estimate:
    """A share of n independent trials with its Wilson score interval. ``effective_n`` is the n of correlated trials.

    Raises:
        ValueError: n <= 0, share outside 0..1, or level outside (0, 1).
    """
    check_level(level)
    if not n > 0 or not 0 <= share <= 1:
        raise ValueError(f"{share} in {n} trials is not a proportion")
    z = float(norm.ppf((1 + level) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z**2 / n)
    return Estimate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def effective_n(successes: npt.ArrayLike, clusters: npt.ArrayLike) -> float:
    """The number of independent trials whose share is as uncertain as that of n correlated ones, at most n.

    It is n / deff with the design effect deff of the share under sampling of whole clusters. Where all trials have the
    same outcome, how correlated they are cannot be seen, and each cluster counts as one trial.

    Source: Korn and Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data", without their correction for few clusters.

    Args:
        successes: [n] outcomes, 0 or 1.
        clusters: [n] keys.

    Raises:
        ValueError: no trials.
    """
    outcomes = np.asarray(successes, dtype=np.float64)
    n, (keys, cluster) = len(outcomes), np.unique(np.asarray(clusters), return_inverse=True)
    if not n:
        raise ValueError("needs at least one trial")
    share = float(outcomes.mean())
    variance = share * (1 - share) / n
    if len(keys) == n or len(keys) == 1 or not variance:
        return float(len(keys))
    residuals = np.bincount(cluster, weights=outcomes - share)
    of_clusters = float((residuals**2).sum()) * len(keys) / (len(keys) - 1) / n**2
    return n / max(1.0, of_clusters / variance)


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
