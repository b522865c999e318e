"""The table of two runs on the same records: a row for each modality and question type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from medr1.evaluation.metrics import Cell, Comparison, Contrast, Summary
from medr1.evaluation.predictions import Condition
from medr1.reporting.formatting import interval, label, p_value, percent, with_interval
from medr1.reporting.result_table import ResultTable

_ABSENT = "-"


def render_comparison(
    summaries: tuple[Summary, Summary],
    controls: Sequence[Mapping[Condition, Summary]],
    comparison: Comparison,
    left_out: Sequence[int],
) -> ResultTable:
    """Both runs side by side with their controls, at most 100 columns wide.

    Args:
        summaries: of run A and run B, on the records that both have.
        controls: of each run, as far as it has them.
        comparison: B against A. Its names are those of the runs.
        left_out: the number of records of each run that the other one does not have.
    """
    titles = ("", "n", "chance", "option\nprior", "blank\nA", "blank\nB", "A\n[95 %]", "B\n[95 %]")
    rows: list[tuple[str, ...]] = []

    def add(name: str, kind: str, key: str, contrast: Contrast) -> None:
        a, b = (_cell(summary, kind, key) for summary in summaries)
        assert a is not None and b is not None
        prior = next((of_run[Condition.OPTION_PRIOR] for of_run in controls if Condition.OPTION_PRIOR in of_run), None)
        blank = [of_run.get(Condition.BLANK_IMAGE) for of_run in controls]
        rows.append(
            (
                name,
                str(a.n),
                percent(a.chance),
                *(_accuracy(summary, kind, key) for summary in (prior, *blank)),
                with_interval(a.accuracy),
                with_interval(b.accuracy),
                f"{percent(contrast.difference.value, '+')} {interval(contrast.difference, '+')}",
                p_value(contrast.p) + ("*" if contrast.p_holm < 0.05 else " "),
            )
        )

    for title, kind, family in (
        ("By modality", "by_modality", comparison.by_modality),
        ("By type", "by_question_type", comparison.by_question_type),
        ("By benchmark", "by_benchmark", comparison.by_benchmark),
    ):
        if family:
            rows.append((title,))
        for key, contrast in family.items():
            add(label(key), kind, key, contrast)
    rows.append(("Overall",))
    add("All questions", "overall", "", comparison.overall)
    notes = tuple(_notes(comparison, left_out))
    return ResultTable((*titles, "B \N{MINUS SIGN} A\n[95 %]", "p"), tuple(rows), notes)


def _cell(summary: Summary | None, kind: str, key: str) -> Cell | None:
    if summary is None:
        return None
    found: Cell | None = summary.overall if kind == "overall" else getattr(summary, kind).get(key)
    return found


def _accuracy(summary: Summary | None, kind: str, key: str) -> str:
    cell = _cell(summary, kind, key)
    return _ABSENT if cell is None else percent(cell.accuracy.value)


def _notes(comparison: Comparison, left_out: Sequence[int]) -> Iterator[str]:
    yield f"In %. A: {comparison.a}. B: {comparison.b}."
    yield f"n: records that both runs answered; left out: {left_out[0]} of A and {left_out[1]} of B."
    yield "B \N{MINUS SIGN} A: cluster bootstrap over images; p: exact McNemar test;"
    yield "*: below .05 after Holm's correction over the rows of its section."
