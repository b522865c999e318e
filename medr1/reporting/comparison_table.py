"""The table of two runs on the same records: a row for each modality and question type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from medr1.evaluation.metrics import Cell, Comparison, Contrast, Summary
from medr1.evaluation.predictions import Condition
from medr1.reporting.formatting import p_value, percent, value_labels
from medr1.reporting.result_table import ABSENT, GROUPS_NOTE, SECTIONS, SHORT, ResultTable, compact_interval


def render_comparison(
    summaries: tuple[Summary, Summary],
    controls: Sequence[Mapping[Condition, Summary]],
    comparison: Comparison,
    left_out: Sequence[int],
    same_data: bool,
) -> ResultTable:
    """Both runs side by side with their controls, at most 100 columns wide.

    Args:
        summaries: of run A and run B, on the records that both have.
        controls: of each run, as far as it has them.
        comparison: B against A. Its names are those of the runs.
        left_out: the number of records of each run that the other one does not have.
        same_data: whether both runs have the same data fingerprint, which covers the images.
    """
    titles = ("", "n", "chance", "option\nprior", "blank\nA", "blank\nB", "A\n[95 %]", "B\n[95 %]")
    prior = next((of_run[Condition.OPTION_PRIOR] for of_run in controls if Condition.OPTION_PRIOR in of_run), None)
    blind = (prior, *(of_run.get(Condition.BLANK_IMAGE) for of_run in controls))
    rows: list[tuple[str, ...]] = []

    def add(name: str, contrast: Contrast, cell_of: Callable[[Summary], Cell | None]) -> None:
        a, b = map(cell_of, summaries)
        assert a is not None and b is not None
        rows.append(
            (
                name,
                str(a.n),
                percent(a.chance),
                *(_accuracy(None if summary is None else cell_of(summary)) for summary in blind),
                compact_interval(a.accuracy),
                compact_interval(b.accuracy),
                compact_interval(contrast.difference, "+"),
                p_value(contrast.p) + ("*" if contrast.p_holm < 0.05 else " "),
            )
        )

    for title, axis in SECTIONS:
        family: Mapping[str, Contrast] = getattr(comparison, axis)
        if family:
            rows.append((title,))
        for value, name in value_labels(family).items():
            short = SHORT.get(value, name)
            add(short, family[value], lambda summary, axis=axis, value=value: getattr(summary, axis).get(value))  # type: ignore[misc]
    rows.append(("Overall",))
    add("All questions", comparison.overall, lambda summary: summary.overall)
    notes = (*_notes(comparison, left_out, same_data), *_prior_note(controls))
    return ResultTable((*titles, "B \N{MINUS SIGN} A\n[95 %]", "p"), tuple(rows), notes)


def _accuracy(cell: Cell | None) -> str:
    return ABSENT if cell is None else percent(cell.accuracy.value)


def _prior_note(controls: Sequence[Mapping[Condition, Summary]]) -> list[str]:
    """Whose option prior is shown: it is fitted to the training records of a run, which the two may not share."""
    having = [name for name, of_run in zip("AB", controls, strict=True) if Condition.OPTION_PRIOR in of_run]
    return [f"Option prior: of the training records of {having[0]}."] if having else []


def _notes(comparison: Comparison, left_out: Sequence[int], same_data: bool) -> Iterator[str]:
    yield f"In %. A: {comparison.a}. B: {comparison.b}."
    yield f"n: records that both runs answered; left out: {left_out[0]} of A and {left_out[1]} of B."
    if not same_data:
        yield "The data fingerprints of A and B differ, which other training records suffice for. The records have"
        yield "the same correct letters and numbers of options; their texts and images were not compared."
    yield f"B \N{MINUS SIGN} A: cluster bootstrap over {comparison.cluster_unit}; p: exact McNemar test;"
    yield "*: below .05 after Holm's correction over the rows of its section."
    if comparison.cluster_unit == "groups":
        yield GROUPS_NOTE
