"""From predictions to numbers: a cell for all records, one for each modality and one for each question type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, TypeVar

from medr1.domain.records import Modality, QuestionType
from medr1.errors import DataError
from medr1.evaluation.predictions import Prediction
from medr1.evaluation.statistics import holm, mcnemar_exact, paired_difference, wilson

K = TypeVar("K", Modality, QuestionType)


@dataclass(frozen=True, slots=True)
class Cell:
    """What one set of predictions amounts to. Rates are fractions of ``n``; ``low``/``high`` is Wilson's 95 % interval.

    ``accuracy`` counts answers read by the grammar; ``lenient_accuracy`` those a last-resort reading finds as well.
    ``chance`` is what a uniform guess among the options would score; ``length`` the mean number of completion tokens.
    """

    n: int
    images: int
    accuracy: float
    low: float
    high: float
    chance: float
    format_rate: float
    unparsed_rate: float
    lenient_accuracy: float
    length: float
    truncated_rate: float


@dataclass(frozen=True, slots=True)
class Contrast:
    """Condition b against condition a on the same records.

    ``difference`` is accuracy of b minus accuracy of a, ``low``/``high`` its 95 % bootstrap interval over images.
    ``b`` records are right only in a, ``c`` only in b (McNemar's names); ``p`` is the exact two-sided McNemar value,
    ``p_holm`` the same adjusted for all cells of its family (all modalities, or all question types).
    """

    n: int
    images: int
    difference: float
    low: float
    high: float
    b: int
    c: int
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The cells of one condition; only modalities and question types that occur, in the order of their enums."""

    condition: str
    overall: Cell
    by_modality: dict[Modality, Cell]
    by_question_type: dict[QuestionType, Cell]

    @property
    def modality_mean(self) -> float:
        """Accuracy averaged over modalities with equal weight: the paper's headline, which is not ``overall``."""
        return fmean(cell.accuracy for cell in self.by_modality.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        return {**_plain(self), "modality_mean": self.modality_mean}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Condition ``b`` against condition ``a``, with the layout of ``Summary``."""

    a: str
    b: str
    overall: Contrast
    by_modality: dict[Modality, Contrast]
    by_question_type: dict[QuestionType, Contrast]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        return _plain(self)


def summarise(predictions: Sequence[Prediction]) -> Summary:
    """The numbers of one condition.

    Raises:
        DataError: no predictions, several conditions, or a record that occurs twice.
    """
    condition = _index(predictions)[0]
    return Summary(
        condition=condition,
        overall=_cell(predictions),
        by_modality={m: _cell(part) for m in Modality if (part := [p for p in predictions if p.modality == m])},
        by_question_type={
            t: _cell(part) for t in QuestionType if (part := [p for p in predictions if p.question_type == t])
        },
    )


def compare(
    a: Sequence[Prediction], b: Sequence[Prediction], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Condition ``b`` against condition ``a``, record by record.

    Raises:
        DataError: the two do not hold the same records, or a record's question differs between them.
    """
    name_a, of_a = _index(a)
    name_b, of_b = _index(b)
    for name, missing in ((name_b, of_a.keys() - of_b.keys()), (name_a, of_b.keys() - of_a.keys())):
        if missing:
            raise DataError(
                f"condition {name} lacks {len(missing)} record(s) that the other one has, such as {min(missing)}; "
                "evaluate both on the same test records"
            )
    pairs = [(of_a[record], of_b[record]) for record in of_a]
    for left, correct in pairs:
        if _question(left) != _question(correct):
            raise DataError(
                f"record {left.record} is not the same question in {name_a} {_question(left)} and {name_b} "
                f"{_question(correct)}; evaluate both on the same data"
            )

    def contrast(part: list[tuple[Prediction, Prediction]]) -> Contrast:
        right_a, right_b = [left.correct for left, _ in part], [correct.correct for _, correct in part]
        images = [left.image for left, _ in part]
        difference = paired_difference(right_a, right_b, images, level, resamples, seed)
        only_a = sum(x and not y for x, y in zip(right_a, right_b, strict=True))
        only_b = sum(y and not x for x, y in zip(right_a, right_b, strict=True))
        p = mcnemar_exact(only_a, only_b)
        return Contrast(len(part), len(set(images)), *difference, b=only_a, c=only_b, p=p, p_holm=p)

    return Comparison(
        a=name_a,
        b=name_b,
        overall=contrast(pairs),
        by_modality=_with_holm(
            {m: contrast(part) for m in Modality if (part := [p for p in pairs if p[0].modality == m])}
        ),
        by_question_type=_with_holm(
            {t: contrast(part) for t in QuestionType if (part := [p for p in pairs if p[0].question_type == t])}
        ),
    )


def metric_items(prefix: str, summary: Summary) -> Iterator[tuple[str, float]]:
    """Flat names and values for a tracker, such as ``test/accuracy/modality/ct``."""
    cell = summary.overall
    yield f"{prefix}/accuracy", cell.accuracy
    for modality, part in summary.by_modality.items():
        yield f"{prefix}/accuracy/modality/{modality.value}", part.accuracy
    for question_type, part in summary.by_question_type.items():
        yield f"{prefix}/accuracy/question_type/{question_type.value}", part.accuracy
    yield f"{prefix}/format_rate", cell.format_rate
    yield f"{prefix}/unparsed_rate", cell.unparsed_rate
    yield f"{prefix}/completion_length", cell.length
    yield f"{prefix}/chance", cell.chance
    yield f"{prefix}/lenient_accuracy", cell.lenient_accuracy


def _cell(part: Sequence[Prediction]) -> Cell:
    n, correct = len(part), sum(p.correct for p in part)
    interval = wilson(correct, n)
    return Cell(
        n=n,
        images=len({p.image for p in part}),
        accuracy=correct / n,
        low=interval.low,
        high=interval.high,
        chance=fmean(1 / p.options for p in part),
        format_rate=sum(p.format for p in part) / n,
        unparsed_rate=sum(p.parsed is None for p in part) / n,
        lenient_accuracy=sum(p.lenient == p.answer for p in part) / n,
        length=fmean(p.length for p in part),
        truncated_rate=sum(p.truncated for p in part) / n,
    )


def _index(predictions: Iterable[Prediction]) -> tuple[str, dict[str, Prediction]]:
    """The one condition of these predictions, and the predictions by record id."""
    index: dict[str, Prediction] = {}
    conditions: set[str] = set()
    for line in predictions:
        if line.record in index and index[line.record].condition == line.condition:
            raise DataError(f"record {line.record} occurs twice in condition {line.condition}")
        index[line.record] = line
        conditions.add(line.condition)
    if len(conditions) != 1:
        found = ", ".join(sorted(conditions)) or "no prediction at all"
        raise DataError(f"expected the predictions of one condition, found: {found}")
    return conditions.pop(), index


def _question(line: Prediction) -> tuple[str, str, str, str, int]:
    """What must agree between two conditions for a paired comparison to mean anything."""
    return line.image, line.modality.value, line.question_type.value, line.answer, line.options


def _with_holm(family: dict[K, Contrast]) -> dict[K, Contrast]:
    adjusted = holm([contrast.p for contrast in family.values()])
    return {key: replace(contrast, p_holm=p) for (key, contrast), p in zip(family.items(), adjusted, strict=True)}


def _plain(numbers: Summary | Comparison) -> dict[str, Any]:
    values = asdict(numbers)
    for family in ("by_modality", "by_question_type"):
        values[family] = {key.value: cell for key, cell in values[family].items()}
    return values
