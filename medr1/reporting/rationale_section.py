"""The chapter on rationales: how many of their claims are false, how often they contradict the answer, and examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.evaluation.predictions import Condition, Prediction
from medr1.evaluation.rationales import RationaleRates, Reading, gallery, rationale_rates
from medr1.evaluation.tables import Estimate, SweepRun
from medr1.reporting.figures import interval, label, percent, rates
from medr1.reporting.report import GalleryItem, Piece, Section, SectionFigure, Verdict
from medr1.reporting.tables import ResultTable

_WHAT = (
    "The truth about every made picture is known, so every claim of a rationale (technique, anatomy, grade, finding, "
    "place, modality) can be checked. False: the share of all claims that are not true of the picture. Any false: the "
    "share of rationales with at least one. Contradicts: of the rationales that name what the question asks about, "
    "the share that names another value than the one answered. Right, wrong reason: of the right answers, the share "
    "whose rationale names a wrong value; wrong, right reason: of the wrong answers, the share whose rationale names "
    "the right one. Intervals: bootstrap over pictures; seeds are pooled."
)
_CONTROLS = {Condition.BLANK_IMAGE: "empty picture"}
_TITLES = ("", "", "n", "accuracy", "false", "any false", "contradicts", "right,\nwrong reason", "wrong,\nright reason")
_EXAMPLES = 12


def rationale_section(
    runs: Sequence[SweepRun], records: Mapping[str, Record], size: int, row_axis: str
) -> Section | None:
    """For each row of the sweep the base, each method, and the last method without its picture.

    Args:
        records: the test records by id, on phantoms.
        size: pixels of a side of the gallery's pictures.

    Returns:
        None where nobody was asked to think.
    """
    spoken = {key: lines for key, lines in _groups(runs, row_axis) if lines[0].reasoning != ReasoningMode.NO_THINK}
    if not spoken:
        return None
    found = {key: rationale_rates(lines, records) for key, lines in spoken.items()}
    rows = [(label(row), label(method), *_numbers(rate)) for (row, method), rate in found.items()]
    shown = {key: lines for key, lines in spoken.items() if key[1] not in ("base", *_CONTROLS.values())}
    each = max(1, _EXAMPLES // max(1, len(shown)))
    chosen = list(shown.items())[:: max(1, len(shown) // _EXAMPLES)]
    return Section(
        title="Rationales",
        paragraphs=(_WHAT,),
        figures=(
            SectionFigure(
                "rationales_false",
                rates(_series(found, lambda rate: rate.false_share), row_axis, "False claims"),
                "Share of the claims in rationales that are not true of the picture.",
            ),
            SectionFigure(
                "rationales_contradict",
                rates(_series(found, lambda rate: rate.contradiction), row_axis, "Rationales that contradict"),
                "Share of rationales that name another value than the one answered.",
            ),
        ),
        tables=[("What the rationales are worth, in %", ResultTable(_TITLES, tuple(rows), ()))],
        gallery=[
            _item(reading, f"{label(row)}, {label(method)}", size)
            for (row, method), lines in chosen
            for reading in gallery(_one_seed(lines), records, n=each)
        ],
    )


def _groups(runs: Sequence[SweepRun], row_axis: str) -> Iterator[tuple[tuple[str, str], list[Prediction]]]:
    """(row, method) with the predictions of all seeds; the base once a row, since seeds do not change it."""
    trained: dict[tuple[str, str], list[Prediction]] = {}
    other: dict[tuple[str, str], list[Prediction]] = {}
    for run in runs:
        row = run.axes.get(row_axis, "all")
        method = " ".join(value for axis, value in run.axes.items() if axis not in (row_axis, "seed")) or "trained"
        if Condition.BASE in run.predictions:
            other.setdefault((row, "base"), run.predictions[Condition.BASE])
        if Condition.TRAINED in run.predictions:
            trained.setdefault((row, method), []).extend(run.predictions[Condition.TRAINED])
        for condition, name in _CONTROLS.items():
            if condition in run.predictions:
                other[row, name] = run.predictions[condition]
    for row in dict.fromkeys(row for row, _ in (*trained, *other)):
        yield from ((key, lines) for key, lines in other.items() if key == (row, "base"))
        yield from ((key, lines) for key, lines in trained.items() if key[0] == row)
        yield from ((key, lines) for key, lines in other.items() if key[0] == row and key[1] != "base")


def _one_seed(lines: Sequence[Prediction]) -> list[Prediction]:
    """The first run's answers of several pooled ones."""
    return list({line.record: line for line in reversed(lines)}.values())


def _series(
    found: Mapping[tuple[str, str], RationaleRates], pick: Callable[[RationaleRates], Estimate | None]
) -> dict[str, list[tuple[str | float, Estimate]]]:
    series: dict[str, list[tuple[str | float, Estimate]]] = {}
    for (row, method), rate in found.items():
        if (estimate := pick(rate)) is not None:
            series.setdefault(method, []).append((row, estimate))
    return series


def _numbers(rate: RationaleRates) -> Iterator[str]:
    yield f"{rate.with_rationale:,}"
    for estimate in (
        rate.accuracy,
        rate.false_share,
        rate.any_false,
        rate.contradiction,
        rate.right_but_wrong_reason,
        rate.wrong_but_right_reason,
    ):
        yield f"{percent(estimate.value)} {interval(estimate)}" if estimate else ""


def _item(reading: Reading, who: str, size: int) -> GalleryItem:
    pieces, end = [], 0
    for claim in reading.claims:
        pieces.append(Piece(reading.rationale[end : claim.start]))
        verdict = Verdict.RIGHT if claim.true else Verdict.WRONG
        pieces.append(Piece(reading.rationale[claim.start : claim.end], verdict))
        end = claim.end
    pieces.append(Piece(reading.rationale[end:]))
    record, answered = reading.record, reading.answered or "nothing readable"
    judged = "right" if reading.prediction.correct else f"wrong, it is {record.answer_text}"
    return GalleryItem(record.image.load(size), pieces, f"{who}. {record.question} Answer: {answered} ({judged}).")
