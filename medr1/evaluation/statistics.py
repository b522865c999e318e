"""How sure a number is: intervals, the paired test and its correction for several cells. float64 throughout.

Legend: n records, K clusters (images), R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest


class Interval(NamedTuple):
    """A two-sided confidence interval; both ends belong to it."""

    low: float
    high: float


class Difference(NamedTuple):
    """Accuracy of condition b minus accuracy of condition a, with its confidence interval, as fractions."""

    estimate: float
    low: float
    high: float


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion, which stays inside [0, 1] and keeps its coverage in small cells.

    It takes the n questions as independent. Several questions on one image make the truth somewhat wider; differences
    between conditions, where it matters most, go through ``paired_difference`` instead.

    Raises:
        ValueError: n < 1, or successes outside 0..n, or level outside (0, 1).
    """
    _check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials is no proportion")
    interval = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact McNemar p-value of two conditions on the same records.

    Args:
        b: records that only the first condition answers rightly.
        c: records that only the second one answers rightly.

    Under the hypothesis of equal accuracy b is binomial(b + c, 1/2). With no discordant record nothing speaks against
    the hypothesis: 1.

    Raises:
        ValueError: a negative count.
    """
    if b < 0 or c < 0:
        raise ValueError(f"b and c are counts, not {b} and {c}")
    return float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0


def paired_difference(
    right_a: Sequence[bool],
    right_b: Sequence[bool],
    clusters: Sequence[str],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Accuracy of b minus accuracy of a on the same n records, with a percentile bootstrap over images.

    Images are drawn with replacement, each with all its questions, because the questions of one image stand or fall
    together. Where all records agree in both conditions the interval is the point [0, 0]: a bootstrap cannot know
    about what it has never seen.

    Args:
        right_a, right_b: n outcomes, in the same order of records.
        clusters: n image keys.

    Raises:
        ValueError: lengths that differ, no record, level outside (0, 1), fewer than one resample.
    """
    _check_level(level)
    if not len(right_a) == len(right_b) == len(clusters):
        raise ValueError(f"lengths differ: {len(right_a)} and {len(right_b)} outcomes, {len(clusters)} clusters")
    if not len(clusters) or resamples < 1:
        raise ValueError(f"needs records and resamples, not {len(clusters)} and {resamples}")
    gain = np.asarray(right_b, dtype=np.float64) - np.asarray(right_a, dtype=np.float64)  # n, in {-1, 0, 1}
    _, image = np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)  # n -> 0..K-1
    gains = np.bincount(image, weights=gain)  # K, a whole number each
    sizes = np.bincount(image).astype(np.float64)  # K
    # Images with the same gain and size are exchangeable: drawing how often each *kind* occurs has the same
    # distribution as drawing images, at R x kinds (tens) instead of R x K (tens of thousands).
    kinds, occurrences = np.unique(np.stack([gains, sizes], axis=1), axis=0, return_counts=True)
    total = int(occurrences.sum())
    draws = np.random.default_rng(seed).multinomial(total, occurrences / total, size=resamples)  # R x kinds
    differences = (draws @ kinds[:, 0]) / (draws @ kinds[:, 1])
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(gain.mean()), float(low), float(high))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given: controls the chance of any false claim in a family.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    Raises:
        ValueError: a value outside [0, 1], NaN included.
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if not bool(np.all((p >= 0) & (p <= 1))):
        raise ValueError(f"p-values lie in [0, 1]: {list(pvalues)}")
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(p[order] * np.arange(len(p), 0, -1), 1.0)
    adjusted = np.empty_like(p)
    # The running maximum: a hypothesis cannot be rejected before one with a smaller p-value is.
    adjusted[order] = np.maximum.accumulate(stepped)
    return [float(value) for value in adjusted]


def rueger(pvalues: Sequence[float]) -> float:
    """One p-value for a hypothesis tested several times, such as once a seed: twice the median, at most 1.

    Valid however the tests depend on each other, and seeds that answer the same records do. Of an even number the
    median is the mean of the middle two, which is valid a fortiori.
    Source: Rueger 1978, "Das maximale Signifikanzniveau des Tests ...", Metrika 25. One value stays as it is.

    Raises:
        ValueError: no value, or one outside [0, 1].
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if not len(p) or not bool(np.all((p >= 0) & (p <= 1))):
        raise ValueError(f"expected p-values in [0, 1], got {list(pvalues)}")
    return float(p[0]) if len(p) == 1 else min(1.0, 2 * float(np.median(p)))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not at {level}")
