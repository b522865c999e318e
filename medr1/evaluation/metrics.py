"""Metrics of one condition, and the comparison of two: over all records, by modality and by question type."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from statistics import fmean
from typing import Any, TypeVar

from medr1.domain.records import UNSPECIFIED, in_order
from medr1.errors import DataError
from medr1.evaluation.bootstrap import paired_difference
from medr1.evaluation.predictions import Condition, Prediction, cluster_unit
from medr1.evaluation.statistics import Estimate, PairedDifference, effective_n, holm, mcnemar_exact, wilson

T = TypeVar("T")
C = TypeVar("C")
# Without the image: of several files with the same content it has the name of the first one that was loaded.
_QUESTION = attrgetter("modality", "question_type", "answer", "options")


@dataclass(frozen=True, slots=True)
class Cell:
    """Metrics of ``n`` predictions. Rates are fractions of ``n``.

    ``accuracy``: share of records whose strictly parsed answer is correct, even if the format is wrong, with the Wilson
    95 % interval of ``effective_n`` trials. ``lenient_accuracy``: the same with lenient parsing.
    ``chance``: accuracy of a uniform guess among the options. ``mean_length``: mean number of completion tokens.
    ``clipped_ratio``: share of completions without an EOS token within the maximum completion length.
    """

    n: int
    images: int
    accuracy: Estimate
    chance: float
    format_rate: float
    unparsed_rate: float
    lenient_accuracy: float
    mean_length: float
    clipped_ratio: float


@dataclass(frozen=True, slots=True)
class Contrast(PairedDifference):
    """Accuracy of condition b minus that of a on the same ``n`` records, with a 95 % bootstrap interval over clusters
    (``Prediction.cluster``).

    ``only_a`` records are correct only in a, ``only_b`` only in b. ``p_holm`` is corrected over all modalities, or all
    question types.
    """

    n: int
    images: int
    only_a: int
    only_b: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The cells of one condition; keys only for modalities and question types that are present, in the order of
    ``in_order``. No keys for an axis that the data lacks."""

    condition: str
    overall: Cell
    by_modality: dict[str, Cell]
    by_question_type: dict[str, Cell]
    by_benchmark: dict[str, Cell] = field(default_factory=dict)

    @property
    def modality_mean(self) -> float | None:
        """Accuracy averaged over modalities with equal weight, as Med-R1 reports it. None without modalities."""
        return fmean(cell.accuracy.value for cell in self.by_modality.values()) if self.by_modality else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable types only."""
        return {**json.loads(json.dumps(asdict(self))), "modality_mean": self.modality_mean}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Condition ``b`` against condition ``a``, with the layout of ``Summary``.

    ``cluster_unit``: what the intervals resample, "images" or "groups".
    """

    a: str
    b: str
    overall: Contrast
    by_modality: dict[str, Contrast]
    by_question_type: dict[str, Contrast]
    by_benchmark: dict[str, Contrast] = field(default_factory=dict)
    cluster_unit: str = "images"

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable types only."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


def summarise(predictions: Sequence[Prediction]) -> Summary:
    """The metrics of one condition.

    Raises:
        DataError: no predictions, several conditions, or a record that occurs twice.
    """
    condition, _ = _index(predictions)
    return Summary(
        condition=condition,
        overall=_cell(predictions),
        by_modality=_by(predictions, lambda p: p.modality, _cell),
        by_question_type=_by(predictions, lambda p: p.question_type, _cell),
        by_benchmark=_by(predictions, lambda p: p.benchmark, _cell),
    )


def compare(
    a: Sequence[Prediction], b: Sequence[Prediction], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Condition ``b`` against condition ``a``, paired by record.

    Raises:
        DataError: the two have different records, or a record's question differs between them.
    """
    (name_a, by_record_a), (name_b, by_record_b) = _index(a), _index(b)
    check_same_questions(by_record_a, by_record_b, f"condition {name_a}", f"condition {name_b}")

    def contrast(pairs: Sequence[tuple[Prediction, Prediction]]) -> Contrast:
        correct_a, correct_b = [of_a.correct for of_a, _ in pairs], [of_b.correct for _, of_b in pairs]
        only_a = sum(x and not y for x, y in zip(correct_a, correct_b, strict=True))
        only_b = sum(y and not x for x, y in zip(correct_a, correct_b, strict=True))
        p = mcnemar_exact(only_a, only_b)
        return Contrast(
            difference=paired_difference(
                correct_a, correct_b, [of_b.group or of_a.cluster for of_a, of_b in pairs], level, resamples, seed
            ),
            p=p,
            p_holm=p,
            n=len(pairs),
            images=len({of_a.image for of_a, _ in pairs}),
            only_a=only_a,
            only_b=only_b,
        )

    pairs = [(by_record_a[record], by_record_b[record]) for record in by_record_a]
    return Comparison(
        a=name_a,
        b=name_b,
        overall=contrast(pairs),
        by_modality=_with_holm(_by(pairs, lambda pair: pair[0].modality, contrast)),
        by_question_type=_with_holm(_by(pairs, lambda pair: pair[0].question_type, contrast)),
        by_benchmark=_with_holm(_by(pairs, lambda pair: pair[0].benchmark, contrast)),
        cluster_unit=cluster_unit([*a, *b]),  # one may be older than groups
    )


def check_same_questions(a: Mapping[str, Prediction], b: Mapping[str, Prediction], name_a: str, name_b: str) -> None:
    """Raises DataError unless both have the same records (keys), with the same options and answer."""
    for name, missing in ((name_b, a.keys() - b.keys()), (name_a, b.keys() - a.keys())):
        if missing:
            raise DataError(
                f"{name_a} and {name_b} have different records: {name} lacks {len(missing)}, such as {min(missing)}; "
                "evaluate both on the same test records"
            )
    for record in a:
        if _QUESTION(a[record]) != _QUESTION(b[record]):
            raise DataError(
                f"record {record} is not the same question in {name_a} {_QUESTION(a[record])} and in {name_b} "
                f"{_QUESTION(b[record])}; evaluate both on the same data"
            )


def metric_items(summaries: Mapping[str, Summary], comparison: Comparison | None) -> Iterator[tuple[str, float]]:
    """Names and values of the final metrics of a run for a tracker, such as ``test_accuracy``.

    They are few, so that they can be compared between runs; the cells and the other conditions are in summary.json.
    """
    evaluated = summaries.get(Condition.TRAINED) or summaries[Condition.BASE]
    cell = evaluated.overall
    yield "test_accuracy", cell.accuracy.value
    yield "test_chance", cell.chance
    yield "test_completion_length", cell.mean_length
    yield "test_format_rate", cell.format_rate
    yield "test_lenient_accuracy", cell.lenient_accuracy
    yield "test_unparsed_rate", cell.unparsed_rate
    if evaluated.modality_mean is not None:
        yield "test_modality_mean", evaluated.modality_mean
    for condition in (Condition.BASE, Condition.BLANK_IMAGE):
        if condition in summaries and summaries[condition] is not evaluated:
            yield f"test_{condition}_accuracy", summaries[condition].overall.accuracy.value
    if comparison is not None:
        yield "test_difference", comparison.overall.difference.value


def _by(items: Sequence[T], value_of: Callable[[T], str], metric: Callable[[list[T]], C]) -> dict[str, C]:
    """Groups items by their value on an axis and applies ``metric`` to each group. Empty if the data lacks the axis."""
    groups: dict[str, list[T]] = defaultdict(list)
    for item in items:
        groups[value_of(item)].append(item)
    return {} if groups.keys() == {UNSPECIFIED} else {value: metric(groups[value]) for value in in_order(groups)}


def _cell(part: Sequence[Prediction]) -> Cell:
    n, correct = len(part), [p.correct for p in part]
    return Cell(
        n=n,
        images=len({p.image for p in part}),
        accuracy=wilson(fmean(correct), effective_n(correct, [p.cluster for p in part])),
        chance=fmean(1 / p.options for p in part),
        format_rate=sum(p.format for p in part) / n,
        unparsed_rate=sum(p.parsed is None for p in part) / n,
        lenient_accuracy=sum(p.lenient == p.answer for p in part) / n,
        mean_length=fmean(p.length for p in part),
        clipped_ratio=sum(p.truncated for p in part) / n,
    )


def _index(predictions: Iterable[Prediction]) -> tuple[str, dict[str, Prediction]]:
    """The condition of these predictions, and the predictions by record id."""
    index: dict[str, Prediction] = {}
    conditions: set[str] = set()
    for line in predictions:
        if line.record in index and index[line.record].condition == line.condition:
            raise DataError(f"record {line.record} occurs twice in condition {line.condition}")
        index[line.record] = line
        conditions.add(line.condition)
    if len(conditions) != 1:
        found = ", ".join(sorted(conditions)) or "no predictions"
        raise DataError(f"expected the predictions of one condition, found: {found}")
    return conditions.pop(), index


def _with_holm(family: dict[str, Contrast]) -> dict[str, Contrast]:
    adjusted = holm([contrast.p for contrast in family.values()])
    return {key: replace(contrast, p_holm=p) for (key, contrast), p in zip(family.items(), adjusted, strict=True)}
