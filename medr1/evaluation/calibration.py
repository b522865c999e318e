"""Whether the probabilities of the options are those with which they are correct.

Legend: n records with probabilities; the confidence of a record is the highest probability of its options.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from medr1.atomic_write import atomic_write
from medr1.errors import DataError
from medr1.evaluation.bootstrap import FloatArray, bootstrap_ratio, bootstrap_statistic, sums_by_cluster
from medr1.evaluation.statistics import Estimate

NUM_BINS = 15


@dataclass(frozen=True, slots=True)
class OptionProbabilities:
    """The probability of each option's letter where the model's greedy completion has its answer.

    ``record``, ``image`` and ``group`` ("" without one) are keys, ``answer`` is the correct letter.
    ``probabilities`` add up to one. They are None if the completion has no position for them, see
    ``option_probabilities``.

    Raises:
        DataError: probabilities that are none, or that lack the correct letter.
    """

    record: str
    image: str
    answer: str
    probabilities: dict[str, float] | None
    group: str = ""

    @property
    def cluster(self) -> str:
        """As that of a ``Prediction``."""
        return self.group or self.image

    def __post_init__(self) -> None:
        if self.probabilities is None:
            return
        values = list(self.probabilities.values())
        if not all(isinstance(p, float) and 0 <= p <= 1 for p in values) or abs(sum(values) - 1) > 1e-6:
            raise DataError(f"record {self.record}: {self.probabilities} are no probabilities that add up to one")
        if self.answer not in self.probabilities:
            raise DataError(f"record {self.record}: no probability of the correct option {self.answer}")


@dataclass(frozen=True, slots=True)
class ConfidenceBin:
    """The ``n`` records whose confidence is in (``low``, ``high``]: mean confidence, and accuracy of the most probable
    option. Both are None if ``n`` is 0."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Metrics of the probabilities of ``n`` records, with 95 % bootstrap intervals over clusters.

    ``without``: records without probabilities, which count nowhere else. ``accuracy``: share of records whose most
    probable option is correct. ``confidence``: mean confidence. ``expected_calibration_error``: sum over the bins of
    n_b/n |accuracy_b - confidence_b|, with 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599, equation 3). It
    is above 0 by chance alone if there are few records. ``brier_score``: mean over records of the squared distance
    between the probabilities and the truth, sum_L (p_L - y_L)^2 (Brier 1950), from 0 to 2.
    """

    n: int
    without: int
    images: int
    accuracy: Estimate
    confidence: float
    expected_calibration_error: Estimate
    brier_score: Estimate
    bins: tuple[ConfidenceBin, ...]


def calibrate(lines: Sequence[OptionProbabilities]) -> Calibration | None:
    """The calibration of the records with probabilities, None if there are none. Several runs may be pooled."""
    found = [(line, line.probabilities) for line in lines if line.probabilities is not None]
    if not found:
        return None
    clusters = [line.cluster for line, _ in found]
    confidence = np.array([max(p.values()) for _, p in found])
    correct = np.array([max(p, key=p.__getitem__) == line.answer for line, p in found], dtype=np.float64)
    brier = [sum((value - (letter == line.answer)) ** 2 for letter, value in p.items()) for line, p in found]
    ones = np.ones(len(found))
    place = np.clip(np.ceil(confidence * NUM_BINS).astype(int), 1, NUM_BINS) - 1
    in_bin = np.eye(NUM_BINS)[place]  # n, bins
    gaps = in_bin * (correct - confidence)[:, None]
    return Calibration(
        n=len(found),
        without=len(lines) - len(found),
        images=len({line.image for line, _ in found}),
        accuracy=bootstrap_ratio(sums_by_cluster(clusters, correct, ones)),
        confidence=float(confidence.mean()),
        expected_calibration_error=bootstrap_statistic(sums_by_cluster(clusters, *gaps.T, ones), _calibration_error),
        brier_score=bootstrap_ratio(sums_by_cluster(clusters, brier, ones)),
        bins=tuple(_bin(number, confidence[place == number], correct[place == number]) for number in range(NUM_BINS)),
    )


def _calibration_error(sums: FloatArray) -> FloatArray:
    """The expected calibration error [...] from sums [..., bins + 1] of correct - confidence by bin and of records."""
    return np.asarray(np.abs(sums[..., :-1]).sum(-1) / sums[..., -1])


def _bin(number: int, confidence: FloatArray, correct: FloatArray) -> ConfidenceBin:
    n, ends = len(confidence), (number / NUM_BINS, (number + 1) / NUM_BINS)
    return ConfidenceBin(*ends, n, *((float(confidence.mean()), float(correct.mean())) if n else (None, None)))


def write_option_probabilities(path: Path, lines: Iterable[OptionProbabilities]) -> None:
    """Writes the file atomically, one JSON line for each record."""
    with atomic_write(path) as file:
        for line in lines:
            file.write(json.dumps(asdict(line)).encode() + b"\n")


def read_option_probabilities(path: Path) -> list[OptionProbabilities]:
    """All lines of the file.

    Raises:
        DataError: with file and line: no file, or a line that is none of these.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file of option probabilities; evaluate the run first") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(OptionProbabilities(**json.loads(line)))
        except (ValueError, TypeError, AttributeError, DataError) as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    return found
