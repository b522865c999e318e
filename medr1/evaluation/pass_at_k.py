"""pass@k and maj@k: how well k sampled completions of a question do, estimated from n >= k of them.

Legend: n samples of a record, c of them correct, k samples drawn from the n without replacement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from statistics import fmean

import numpy as np
import numpy.typing as npt

from medr1.evaluation.bootstrap import bootstrap_ratio, sums_by_cluster
from medr1.evaluation.predictions import Prediction
from medr1.evaluation.statistics import Estimate


@dataclass(frozen=True, slots=True)
class SampleSummary:
    """Accuracies of ``num_generations`` sampled completions of each of ``n`` records, by k.

    ``pass_at_k``: at least one of k samples is correct. ``maj_at_k``: the majority vote of k samples is correct. Both
    are means over records with a 95 % bootstrap interval over clusters. ``pass_at_k_chance``: pass@k of
    k uniform guesses; maj@k of uniform guesses is the chance of one guess.
    """

    n: int
    images: int
    num_generations: int
    pass_at_k: Mapping[int, Estimate]
    maj_at_k: Mapping[int, Estimate]
    pass_at_k_chance: Mapping[int, float]


def default_ks(num_generations: int) -> list[int]:
    """1, 2, 4, ... up to the number of samples."""
    return [2**i for i in range(num_generations.bit_length())]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples is correct: 1 - C(n - c, k) / C(n, k), which is unbiased.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.

    Raises:
        ValueError: k is not in 1..n.
    """
    _check_k(k, samples)
    return 1 - comb(samples - correct, k) / comb(samples, k)


@lru_cache(maxsize=100_000)
def maj_at_k(correct: int, others: tuple[int, ...], unparsed: int, k: int) -> float:
    """Probability that the majority vote of k samples is correct: the mean over all subsets of k samples, computed
    without listing them.

    Samples without a parsed answer do not vote. A tie counts as the share of the correct option among the options with
    the most votes, which is a random choice among them.

    Args:
        correct: samples that chose the correct option.
        others: samples that chose each other option, in any order.
        unparsed: samples without a parsed answer.

    Raises:
        ValueError: k is not in 1..n.
    """
    samples = correct + sum(others) + unparsed
    _check_k(k, samples)
    total = 0.0
    for votes in range(1, min(correct, k) + 1):
        left = k - votes
        # Number of ways to draw samples of the other options, by [options with as many votes, samples drawn].
        ways = np.zeros((len(others) + 1, left + 1))
        ways[0, 0] = comb(correct, votes)
        for count in others:
            fewer = _combs(count, min(votes - 1, left))
            longer = np.stack([np.convolve(row, fewer)[: left + 1] for row in ways])
            if votes <= min(count, left):
                longer[1:, votes:] += float(comb(count, votes)) * ways[:-1, : left + 1 - votes]
            ways = longer
        total += float((ways @ _combs(unparsed, left)[::-1] / np.arange(1, len(others) + 2)).sum())
    return total / comb(samples, k)


def _combs(n: int, largest: int) -> npt.NDArray[np.float64]:
    """C(n, 0), ..., C(n, largest)."""
    return np.array([float(comb(n, drawn)) for drawn in range(largest + 1)])


def summarise_samples(groups: Sequence[Sequence[Prediction]], ks: Sequence[int]) -> SampleSummary:
    """The summary of the samples of each record, for each k of ``ks``. Several runs may be pooled.

    Raises:
        ValueError: no record, records with different numbers of samples, or a k that is larger than this number.
    """
    counts = {len(group) for group in groups}
    if len(counts) != 1:
        raise ValueError(f"each record needs the same number of samples, got {sorted(counts)}")
    (samples,) = counts
    clusters = [group[0].cluster for group in groups]

    def mean(values: list[float]) -> Estimate:
        return bootstrap_ratio(sums_by_cluster(clusters, values, [1.0] * len(values)))

    values = record_values(groups, ks)
    return SampleSummary(
        n=len(groups),
        images=len({group[0].image for group in groups}),
        num_generations=samples,
        pass_at_k={k: mean(values[f"pass@{k}"]) for k in ks},
        maj_at_k={k: mean(values[f"maj@{k}"]) for k in ks},
        pass_at_k_chance={k: fmean(1 - (1 - 1 / group[0].options) ** k for group in groups) for k in ks},
    )


def record_values(groups: Sequence[Sequence[Prediction]], ks: Sequence[int]) -> dict[str, list[float]]:
    """pass@k and maj@k of each record, by name such as ``pass@4``."""
    votes = [_votes(group) for group in groups]
    passed = {f"pass@{k}": [pass_at_k(c + sum(others) + unparsed, c, k) for c, others, unparsed in votes] for k in ks}
    return passed | {f"maj@{k}": [maj_at_k(*of_record, k) for of_record in votes] for k in ks}


def _votes(group: Sequence[Prediction]) -> tuple[int, tuple[int, ...], int]:
    """The samples of a record: number of correct ones, of those for each other option, of those without an answer."""
    counts = Counter(sample.parsed for sample in group)
    correct, unparsed = counts.pop(group[0].answer, 0), counts.pop(None, 0)
    return correct, tuple(sorted(counts.values())), unparsed


def _check_k(k: int, samples: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k={k} must lie between 1 and the number of samples, {samples}")
