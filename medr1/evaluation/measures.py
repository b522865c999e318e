"""The further measures of the base and the trained model: samples, rotations and probabilities of the options.

answers = read_measured(run.predictions, "trained")
summarise_measures(answers).circular.consistency  # value and 95 % interval
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medr1.errors import DataError
from medr1.evaluation import circular, pass_at_k
from medr1.evaluation.bootstrap import bootstrap_ratio, sums_by_cluster
from medr1.evaluation.calibration import Calibration, OptionProbabilities, calibrate, read_option_probabilities
from medr1.evaluation.circular import CircularSummary, summarise_circular
from medr1.evaluation.pass_at_k import SampleSummary, default_ks, summarise_samples
from medr1.evaluation.predictions import Condition, Measure, Prediction, read_predictions
from medr1.evaluation.statistics import Estimate

Groups = Sequence[Sequence[Prediction]]  # the predictions of each record


@dataclass(slots=True)
class Measured:
    """The stored answers of one condition, as far as it was asked for them; those of several runs if they are pooled.

    ``samples`` and ``rotations``: those of each record, rotations with the question itself first. Empty if there is no
    such file. ``ks``: the k of pass@k and maj@k, None for 1, 2, 4, ...
    """

    samples: list[list[Prediction]] = field(default_factory=list)
    rotations: list[list[Prediction]] = field(default_factory=list)
    option_probabilities: list[OptionProbabilities] = field(default_factory=list)
    ks: Sequence[int] | None = None

    def __add__(self, other: Measured) -> Measured:
        """The answers of both, with the ``ks`` of the first that has any."""
        return Measured(
            self.samples + other.samples,
            self.rotations + other.rotations,
            self.option_probabilities + other.option_probabilities,
            self.ks or other.ks,
        )


@dataclass(frozen=True, slots=True)
class Measures:
    """The measures of one condition, None for those that it was not asked for. ``calibration`` is also None if no
    record has probabilities."""

    samples: SampleSummary | None
    circular: CircularSummary | None
    calibration: Calibration | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable types only."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


def read_measured(file: Callable[[str], Path], condition: str, ks: Sequence[int] | None = None) -> Measured:
    """The stored answers of a condition. ``file``: the path of a file of predictions by its name.

    Raises:
        DataError: a file is damaged, or the rotations have other records than the condition.
    """
    found = Measured(ks=ks)
    if (samples := file(Measure.SAMPLES.file(condition))).is_file():
        found.samples = _by_record(read_predictions(samples))
    if (rotations := file(Measure.ROTATIONS.file(condition))).is_file():
        rotated = read_predictions(rotations)
        itself = read_predictions(file(condition))
        if {line.record for line in itself} != {line.record for line in rotated}:
            raise DataError(f"{rotations} and {file(condition)} have different records; remove the first, then resume")
        found.rotations = _by_record([*itself, *rotated])
    if (probabilities := file(Measure.OPTION_PROBABILITIES.file(condition))).is_file():
        found.option_probabilities = read_option_probabilities(probabilities)
    return found


def _by_record(lines: Iterable[Prediction]) -> list[list[Prediction]]:
    groups: dict[str, list[Prediction]] = {}
    for line in lines:
        groups.setdefault(line.record, []).append(line)
    return list(groups.values())


def summarise_measures(measured: Measured) -> Measures | None:
    """The measures of a condition, None if it was asked for none."""
    if not (measured.samples or measured.rotations or measured.option_probabilities):
        return None
    samples = None
    if measured.samples:
        samples = summarise_samples(measured.samples, measured.ks or default_ks(len(measured.samples[0])))
    return Measures(
        samples=samples,
        circular=summarise_circular(measured.rotations) if measured.rotations else None,
        calibration=calibrate(measured.option_probabilities),
    )


def compare_measures(a: Measured, b: Measured) -> dict[str, Estimate]:
    """The measures of ``b`` minus those of ``a``, paired by record, as far as both have them and they are means over
    records. With 95 % bootstrap intervals over clusters (``Prediction.cluster``).

    Raises:
        DataError: the two have different records.
    """
    found: dict[str, Estimate] = {}
    if a.samples and b.samples:
        ks = a.ks or default_ks(min(len(side.samples[0]) for side in (a, b)))
        found |= _differences(a.samples, b.samples, partial(pass_at_k.record_values, ks=ks))
    if a.rotations and b.rotations:
        found |= _differences(a.rotations, b.rotations, circular.record_values)
    return found


def _differences(
    a: Groups, b: Groups, values_of: Callable[[Groups], Mapping[str, Sequence[float]]]
) -> dict[str, Estimate]:
    of_record = {group[0].record: group for group in b}
    if of_record.keys() != {group[0].record for group in a}:
        raise DataError("the samples or rotations of the two models have different records; evaluate both on the same")
    values_a, values_b = values_of(a), values_of([of_record[group[0].record] for group in a])
    clusters = [group[0].cluster for group in a]
    return {
        name: bootstrap_ratio(sums_by_cluster(clusters, np.subtract(values_b[name], values_a[name]), np.ones(len(a))))
        for name in values_a
    }


def measure_items(measures: Mapping[str, Measures]) -> Iterator[tuple[str, float]]:
    """Names and values for a tracker: those of the evaluated model, pass@k and maj@k for the largest k."""
    evaluated = measures.get(Condition.TRAINED) or measures[Condition.BASE]
    if samples := evaluated.samples:
        k = max(samples.pass_at_k)
        yield "test_pass_at_k", samples.pass_at_k[k].value
        yield "test_maj_at_k", samples.maj_at_k[k].value
    if rotations := evaluated.circular:
        yield "test_circular_accuracy", rotations.circular_accuracy.value
        if rotations.letter_bias:
            yield "test_letter_bias", rotations.letter_bias.value
    if calibration := evaluated.calibration:
        yield "test_calibration_error", calibration.expected_calibration_error.value
