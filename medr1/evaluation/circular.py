"""Circular evaluation: each question is asked once for each cyclic rotation of its options.

A model that knows the answer finds it wherever it stands. Source: CircularEval of MMBench, arXiv 2307.06281. Legend: N
options of a record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medr1.domain.records import LETTERS, Record
from medr1.evaluation.bootstrap import FloatArray, bootstrap_ratio, bootstrap_statistic, sums_by_cluster
from medr1.evaluation.predictions import Prediction
from medr1.evaluation.statistics import Estimate


@dataclass(frozen=True, slots=True)
class CircularSummary:
    """Metrics of ``n`` records, each asked in all N rotations, with 95 % bootstrap intervals over clusters.

    ``circular_accuracy``: share of records that are correct in all rotations. ``mean_accuracy``: mean over the
    rotations of a record, then over records. ``consistency``: share of records for which the same option text is chosen
    in all rotations, correct or not. ``letters``: share of each letter among the parsed answers, empty without any.

    ``letter_bias``: distance of the chosen letters from a uniform choice, 0 to 1. Each text stands at each letter once,
    so that a model that reads the texts chooses all letters equally often, whatever it knows. It is the total variation
    distance between chosen and expected letters, divided by that of a model that always chooses one letter:
    1/2 sum_L |o_L - e_L| / sum_i (1 - 1/N_i), with o_L the number of parsed answers L, e_L the sum of 1/N_i over the
    parsed answers to questions that have a letter L, and i over all parsed answers. None without parsed answers. It is
    above 0 by chance alone if there are few answers.
    """

    n: int
    images: int
    circular_accuracy: Estimate
    mean_accuracy: Estimate
    consistency: Estimate
    letter_bias: Estimate | None
    letters: Mapping[str, float]


def rotate(record: Record, places: int) -> Record:
    """The record with each option text ``places`` letters further up; the first ones go to the end. The letters stay in
    their order."""
    letters, texts = list(record.options), list(record.options.values())
    answer = letters[(letters.index(record.answer) - places) % len(letters)]
    return replace(record, options=dict(zip(letters, texts[places:] + texts[:places], strict=True)), answer=answer)


def summarise_circular(groups: Sequence[Sequence[Prediction]]) -> CircularSummary:
    """The summary of records, each with its predictions for the rotations by 0, 1, ..., N - 1 places in order. Several
    runs may be pooled.

    Raises:
        ValueError: a record without all its rotations.
    """
    for group in groups:
        if not len({line.answer for line in group}) == len(group) == group[0].options:
            raise ValueError(f"record {group[0].record} has {len(group)} of its {group[0].options} rotations")
    clusters = [group[0].cluster for group in groups]

    def share(values: Sequence[float]) -> Estimate:
        return bootstrap_ratio(sums_by_cluster(clusters, values, [1.0] * len(values)))

    chosen = Counter(line.parsed for group in groups for line in group if line.parsed is not None)
    offered = sorted({line.answer for group in groups for line in group})
    rows = np.array([_letter_counts(group) for group in groups])
    return CircularSummary(
        n=len(groups),
        images=len({group[0].image for group in groups}),
        **{name: share(values) for name, values in record_values(groups).items()},
        letter_bias=bootstrap_statistic(sums_by_cluster(clusters, *rows.T), _letter_bias) if chosen else None,
        letters={letter: chosen[letter] / chosen.total() for letter in offered} if chosen else {},
    )


def record_values(groups: Sequence[Sequence[Prediction]]) -> dict[str, list[float]]:
    """The values of each record whose means the summary has, by name."""
    return {
        "circular_accuracy": [float(all(line.correct for line in group)) for group in groups],
        "mean_accuracy": [sum(line.correct for line in group) / len(group) for group in groups],
        "consistency": [float(_is_consistent(group)) for group in groups],
    }


def _is_consistent(group: Sequence[Prediction]) -> bool:
    # The rotation in which the correct text has a letter, by letter. In rotation r, letter L has the text that stands
    # r - rotation_of[L] options after the correct one.
    rotation_of = {line.answer: rotation for rotation, line in enumerate(group)}
    texts = {
        None if line.parsed is None else (rotation - rotation_of[line.parsed]) % len(group)
        for rotation, line in enumerate(group)
    }
    return len(texts) == 1 and None not in texts


def _letter_counts(group: Sequence[Prediction]) -> list[float]:
    """For each of ``LETTERS``: chosen minus expected times; last, the sum of 1 - 1/N. Over parsed answers."""
    chosen = Counter(line.parsed for line in group if line.parsed is not None)
    offered, expected = {line.answer for line in group}, chosen.total() / len(group)
    differences = [chosen[letter] - expected * (letter in offered) for letter in LETTERS]
    return [*differences, chosen.total() - expected]


def _letter_bias(sums: FloatArray) -> FloatArray:
    """The letter bias [...] from sums [..., letters + 1] of ``_letter_counts``; 0 without parsed answers."""
    largest = np.maximum(sums[..., -1], np.finfo(np.float64).tiny)
    return np.asarray(np.abs(sums[..., :-1]).sum(-1) / 2 / largest)
