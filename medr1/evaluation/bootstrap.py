"""The bootstrap over clusters, alone (``bootstrap_ratio``) or crossed with seeds (``score``).

A cluster is an image with all its questions, or a group of images, such as those of one patient, where the data names
it (``Prediction.cluster``): answers within one are correlated. ``bootstrap_sums`` is the only resampling loop. It has
two ways to draw, which give the same distribution but different random numbers:

- ``grouped``: draws how often each distinct row occurs. It costs R x distinct rows and suits one comparison, where the
  rows of 80,000 clusters take tens of values. ``paired_difference`` and the rationale rates use it.
- otherwise: draws clusters one by one. It costs R x K and suits sweeps, where a row holds the counts of all runs and
  hardly two rows are equal.

Legend: V vectors of outcomes (one per run and condition), n records, K clusters, C columns, S seeds, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medr1.evaluation.statistics import Estimate, check_level

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]

# Clusters. A smaller stratum hardly varies between resamples, and one of a single cluster not at all.
_SMALL_STRATUM = 10
_BLOCK = 4_000_000  # weights of clusters in memory at once: about 100 MB with their intermediates


def bootstrap_sums(
    values: FloatArray, resamples: int, rng: np.random.Generator, *, grouped: bool = False
) -> FloatArray:
    """Column sums of K rows drawn with replacement from the K rows of ``values`` [K, width], as [R, width]."""
    rows = len(values)
    if grouped:
        distinct, occurrences = np.unique(values, axis=0, return_counts=True)
        weights = rng.multinomial(rows, occurrences / rows, size=resamples)
        return np.asarray(weights @ distinct)
    block = max(1, _BLOCK // rows)
    sums = np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(rows, size=(size, rows), dtype=np.intp)
        drawn += np.arange(size)[:, None] * rows
        weights = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows)
        sums[start : start + size] = weights.astype(np.float64) @ values
    return sums


def percentile_interval(value: float, resampled: FloatArray, level: float = 0.95) -> Estimate:
    """A value with the middle ``level`` of its R resamples, without those that are NaN."""
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high))


def sums_by_cluster(clusters: Sequence[str], *columns: Sequence[float] | FloatArray) -> FloatArray:
    """Sums of the n values of each column, such as numerators and denominators, over each cluster: [K, columns]."""
    _, cluster = np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)  # n -> 0..K-1
    return np.stack([np.bincount(cluster, weights=column) for column in columns], axis=1)


def bootstrap_ratio(sums: FloatArray, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Sum of numerators divided by sum of denominators, the columns of ``sums`` [K, 2], with a percentile bootstrap
    over clusters.

    Every denominator must be positive.
    """
    numerator, denominator = sums.sum(axis=0)
    resampled = bootstrap_sums(sums, resamples, np.random.default_rng(seed), grouped=True)
    return percentile_interval(numerator / denominator, resampled[:, 0] / resampled[:, 1], level)


def bootstrap_statistic(
    sums: FloatArray,
    statistic: Callable[[FloatArray], FloatArray],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A statistic of the column sums, with a percentile bootstrap over the clusters of ``sums`` [K, columns].

    ``statistic`` maps sums [..., columns] to values [...].
    """
    resampled = bootstrap_sums(sums, resamples, np.random.default_rng(seed))
    return percentile_interval(float(statistic(sums.sum(axis=0))), statistic(resampled), level)


def paired_difference(
    correct_a: Sequence[bool],
    correct_b: Sequence[bool],
    clusters: Sequence[str],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Accuracy of b minus accuracy of a on the same n records, with a percentile bootstrap over clusters.

    If no record differs between the conditions, the interval is the point [0, 0]. If all clusters have the same
    difference d otherwise, no resample differs. The interval then is that of a share: at least q = 0.025^(1 / K) of all
    clusters (Clopper and Pearson) have d, and the rest anything from -1 to 1. It contains zero for up to five clusters.

    Args:
        correct_a, correct_b: n outcomes, in the same order of records.
        clusters: n keys.

    Raises:
        ValueError: lengths that differ, no records, level outside (0, 1), or fewer than one resample.
    """
    check_level(level)
    if not len(correct_a) == len(correct_b) == len(clusters):
        raise ValueError(f"lengths differ: {len(correct_a)} and {len(correct_b)} outcomes, {len(clusters)} clusters")
    if not len(clusters) or resamples < 1:
        raise ValueError(f"needs records and resamples, got {len(clusters)} and {resamples}")
    differences = np.asarray(correct_b, dtype=np.float64) - np.asarray(correct_a, dtype=np.float64)  # n, in {-1, 0, 1}
    sums = sums_by_cluster(clusters, differences.tolist(), [1.0] * len(clusters))
    found = bootstrap_ratio(sums, level, resamples, seed)
    per_cluster = sums[:, 0] / sums[:, 1]
    if found.value and (per_cluster == per_cluster[0]).all():
        q = ((1 - level) / 2) ** (1 / len(sums))
        return Estimate(found.value, q * found.value - (1 - q), q * found.value + (1 - q))
    return found


@dataclass(frozen=True, slots=True)
class Scores:
    """Accuracies, or differences of accuracies, with their R resamples.

    ``value``: [V, C + 1], ``resampled``: [V, C + 1, R]. The last column pools all records. All vectors use the same
    resampled clusters, so that sums and differences of scores keep their correlation.
    """

    value: FloatArray
    resampled: FloatArray

    def select(self, vectors: Sequence[int]) -> Scores:
        return Scores(self.value[list(vectors)], self.resampled[list(vectors)])

    def __sub__(self, other: Scores) -> Scores:
        return Scores(self.value - other.value, self.resampled - other.resampled)

    def over_seeds(self, rng: np.random.Generator) -> Scores:
        """The mean over the vectors, which are the seeds of one cell: ``value`` [C + 1], ``resampled`` [C + 1, R].

        Seeds are drawn independently of the clusters, and again in each call, because two trainings on different rows
        share only the number of their seed. Source: the pigeonhole bootstrap of Owen 2007, which is conservative.
        """
        weights = seed_weights(len(self.value), self.resampled.shape[-1], rng)
        return Scores(self.value.mean(axis=0), np.einsum("sr,scr->cr", weights, self.resampled))

    def estimate(self, column: int) -> Estimate:
        """The estimate of one column of scores without the axis V."""
        return estimate(float(self.value[column]), self.resampled[column])


def score(correct: BoolArray, column: IntArray, cluster: IntArray, resamples: int, rng: np.random.Generator) -> Scores:
    """Accuracy of every vector in every column, and under resampled clusters.

    Clusters are drawn with all their records, stratified by the columns in which they have records, because the number
    of clusters per column is part of the test set's design. Strata of few clusters with records in several columns, as
    of patients with images of many combinations of modalities, are one stratum. A column that it leaves empty in a
    resample is NaN there.

    Args:
        correct: [V, n] outcomes.
        column, cluster: [n], numbers from 0; every column below the largest occurs.
    """
    columns = int(column.max()) + 1
    sums = np.zeros((resamples, columns, len(correct) + 1))  # correct predictions by vector, then number of records
    has = np.zeros((int(cluster.max()) + 1, columns), dtype=np.bool_)
    has[cluster, column] = True
    signatures, stratum, counts = np.unique(has, axis=0, return_inverse=True, return_counts=True)
    strata = stratum.reshape(-1)
    if len(small := np.flatnonzero((counts < _SMALL_STRATUM) & (signatures.sum(axis=1) > 1))) > 1:
        strata = np.where(np.isin(strata, small), small[0], strata)
        signatures[small[0]] = signatures[small].any(axis=0)
    of_record = strata[cluster]
    for number in np.unique(strata):
        signature = signatures[number]
        records = np.flatnonzero(of_record == number)
        _, local = np.unique(cluster[records], return_inverse=True)
        width = int(signature.sum())
        place = local * width + (np.cumsum(signature) - 1)[column[records]]
        size = (int(local.max()) + 1) * width
        correct_here = [np.bincount(place, weights=outcomes[records], minlength=size) for outcomes in correct]
        both = [*correct_here, np.bincount(place, minlength=size)]
        by_cluster = np.stack(both, axis=-1).astype(np.float64).reshape(size // width, width * len(both))
        sums[:, signature] += bootstrap_sums(by_cluster, resamples, rng).reshape(resamples, width, len(both))
    sums = np.concatenate([sums, sums.sum(axis=1, keepdims=True)], axis=1)
    with np.errstate(invalid="ignore"):
        accuracy = sums[..., :-1] / sums[..., -1:]  # R, C + 1, V
    return Scores(column_means(correct, column), np.ascontiguousarray(accuracy.transpose(2, 1, 0)))


def column_means(values: BoolArray | FloatArray, column: IntArray) -> FloatArray:
    """Means of ``values`` [V, n] by column, as [V, C + 1]; the last one is the mean of all records."""
    sizes = np.bincount(column)
    means = [[*(np.bincount(column, weights=row) / sizes), row.mean()] for row in values]
    return np.asarray(means, dtype=np.float64)


def seed_weights(seeds: int, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Weight of each seed in each resample, [S, R]; the weights of a resample add up to one.

    S - 1 of the S seeds are drawn with replacement, so that the variance of the mean is s^2 / S with the unbiased s.
    Drawing all S would understate it by 1 / S. A single seed has weight 1.
    Source: Rao and Wu 1988, "Resampling inference with complex survey data".

    Simulated 95 % intervals of three seeds cover the truth in 86 % of cases where seeds matter more than images (82 %
    if all three are drawn), those of eight seeds in 94 %.
    """
    if seeds == 1:
        return np.ones((1, resamples))
    drawn = rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples)
    return np.ascontiguousarray(drawn.T / (seeds - 1))


def estimate(value: float, resampled: FloatArray) -> Estimate:
    """The 95 % percentile interval of a mean over seeds or cells, rounded to 12 digits.

    Without rounding, floating-point noise could decide whether an interval contains zero.
    """
    found = percentile_interval(value, resampled)
    return Estimate(*(round(number, 12) + 0.0 for number in (found.value, found.low, found.high)))
