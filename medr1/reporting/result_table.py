"""The result table: one row for each modality and question type, with its controls and error bars, in 100 columns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from medr1.domain.records import Modality, QuestionType
from medr1.evaluation.metrics import Cell, Comparison, Contrast, Summary
from medr1.evaluation.predictions import Condition

MODALITY_NAMES = {
    Modality.CT: "CT",
    Modality.MRI: "MRI",
    Modality.XRAY: "X-Ray",
    Modality.US: "Ultrasound",
    Modality.DER: "Dermoscopy",
    Modality.FP: "Fundus",
    Modality.OCT: "OCT",
    Modality.MICRO: "Microscopy",
}
QUESTION_TYPE_NAMES = {
    QuestionType.ANATOMY: "Anatomy",
    QuestionType.DISEASE: "Disease",
    QuestionType.LESION: "Lesion grading",
    QuestionType.MODALITY: "Modality",
    QuestionType.ATTRIBUTES: "Attributes",
}
TRAINED_MARK = "\N{DAGGER}"
_ABSENT = "-"
# Conditions in the order of their columns. A title is as narrow as its numbers allow. Another's
# picture and surface cues have no column: 100 are full. They stand in summary.json and in sweeps.
_CONDITIONS = {
    Condition.OPTION_PRIOR: "prior",
    Condition.BLANK_IMAGE: "blank",
    Condition.BASE: "base",
    Condition.TRAINED: "trained",
}


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Titles and rows as text. A row of one text is the title of a section."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def __rich__(self) -> RenderableType:
        """For a terminal, at most 100 columns wide. ``rich`` calls this on ``console.print(table)``."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False)
        for position, title in enumerate(self.titles):
            table.add_column(Text(title), justify="right" if position else "left", no_wrap=True)
        for position, row in enumerate(self.rows):
            if len(row) == 1 and position:
                table.add_section()
            table.add_row(*(Text(value, style="bold" if len(row) == 1 else "") for value in row))
        return Group(table, *(Text(note, style="dim") for note in self.notes))

    def to_markdown(self) -> str:
        """The same titles, rows and notes as a Markdown table."""
        lines = [self.titles, ("---", *["---:"] * (len(self.titles) - 1))]
        for row in self.rows:
            lines.append((f"**{row[0]}**", *[""] * (len(self.titles) - 1)) if len(row) == 1 else row)
        table = "\n".join(
            "| " + " | ".join(value.replace("\n", " ").strip() for value in line) + " |" for line in lines
        )
        return "\n\n".join([table, *self.notes]) + "\n"


def render_results(
    summaries: Mapping[str, Summary],
    comparison: Comparison | None = None,
    trained_modalities: Collection[Modality] = (),
    trained_question_types: Collection[QuestionType] = (),
) -> ResultTable:
    """All conditions side by side.

    Args:
        summaries: by condition; a condition that is absent leaves its column out.
        comparison: adds the columns difference and p; normally trained against base.
        trained_modalities, trained_question_types: rows to mark as seen in training.

    Raises:
        ValueError: no condition the table knows, or one it does not know.
    """
    if not summaries or summaries.keys() - {c.value for c in Condition}:
        raise ValueError(f"the table knows {', '.join(_CONDITIONS)}; got {', '.join(summaries) or 'nothing'}")
    present = [c for c in _CONDITIONS if c in summaries]
    # The condition the table is about: the one whose interval, chance and format rates are shown.
    subject = present[-1]
    titles = ["", "n", "chance"]
    for condition in present:
        titles.append(f"{_CONDITIONS[condition]}\n[95 %]" if condition is subject else _CONDITIONS[condition])
    titles += ["difference\n[95 %]", "p"] if comparison else []
    titles += ["fmt", "not\nread"]

    rows: list[tuple[str, ...]] = []
    for section, name, of_summary, of_contrast in _rows(
        summaries, comparison, set(trained_modalities), set(trained_question_types)
    ):
        if section:
            rows.append((section,))
        rows.append((name, *_numbers(present, of_summary, comparison is not None, of_contrast)))
    return ResultTable(tuple(titles), tuple(rows), tuple(_notes(summaries, present, comparison, rows)))


_Row = tuple[str, str, dict[str, Cell], Contrast | None]


def _rows(
    summaries: Mapping[str, Summary],
    comparison: Comparison | None,
    trained_modalities: Collection[Modality],
    trained_question_types: Collection[QuestionType],
) -> Iterator[_Row]:
    """Section title (first row of a section only), row name, cell of each condition that has one, contrast."""
    title = "By modality"
    for m, name in MODALITY_NAMES.items():
        if cells := {c: s.by_modality[m] for c, s in summaries.items() if m in s.by_modality}:
            mark = TRAINED_MARK if m in trained_modalities else ""
            yield title, name + mark, cells, comparison.by_modality.get(m) if comparison else None
            title = ""
    title = "By type"
    for t, name in QUESTION_TYPE_NAMES.items():
        if cells := {c: s.by_question_type[t] for c, s in summaries.items() if t in s.by_question_type}:
            mark = TRAINED_MARK if t in trained_question_types else ""
            yield title, name + mark, cells, comparison.by_question_type.get(t) if comparison else None
            title = ""
    overall = {c: s.overall for c, s in summaries.items()}
    yield "Overall", "All questions", overall, comparison.overall if comparison else None


def _numbers(
    present: list[Condition], cells: Mapping[str, Cell], compared: bool, contrast: Contrast | None
) -> Iterator[str]:
    subject = present[-1]
    cell = cells.get(subject)
    # n and chance belong to the questions, not to a condition, so another condition may stand in.
    some = cell or next(iter(cells.values()))
    yield str(some.n)
    yield _percent(some.chance)
    for condition in present:
        of_condition = cells.get(condition)
        value = _percent(of_condition.accuracy) if of_condition else _ABSENT
        if of_condition and condition is subject:
            value += f" [{_percent(of_condition.low)},{_percent(of_condition.high)}]"
        yield value
    if compared and contrast:
        low, high = _percent(contrast.low, "+"), _percent(contrast.high, "+")
        yield f"{_percent(contrast.difference, '+')} [{low},{high}]"
        yield _p(contrast.p) + ("*" if contrast.p_holm < 0.05 else " ")
    elif compared:
        yield from (_ABSENT, _ABSENT)
    yield _percent(cell.format_rate) if cell else _ABSENT
    yield _percent(cell.unparsed_rate) if cell else _ABSENT


def _percent(fraction: float, sign: str = "") -> str:
    """A fraction in percent with one decimal, and 100 without: at most four characters besides the sign."""
    # Adding zero turns the -0.0 that rounding can leave into 0.0.
    text = f"{round(100 * fraction, 1) + 0.0:{sign}.1f}"
    return text.removesuffix(".0") if text.endswith("100.0") else text


def _p(p: float) -> str:
    if p < 0.001:
        return "<.001"
    return f"{p:.3f}".removeprefix("0") if p < 0.9995 else "1.00"


def _notes(
    summaries: Mapping[str, Summary],
    present: list[Condition],
    comparison: Comparison | None,
    rows: list[tuple[str, ...]],
) -> Iterator[str]:
    subject = present[-1]
    yield f"In %. fmt: {_CONDITIONS[subject]} completions in the format asked for; not read: those without an answer."
    means = [f"{_CONDITIONS[c]} {_percent(summaries[c].modality_mean)}" for c in present if summaries[c].by_modality]
    if means:
        yield f"Mean over modalities, each with equal weight: {', '.join(means)}."
    if controls := [c for c in present if c in (Condition.OPTION_PRIOR, Condition.BLANK_IMAGE)]:
        meaning = {
            Condition.OPTION_PRIOR: "prior: the option most often right in training.",
            Condition.BLANK_IMAGE: "blank: the model without its picture.",
        }
        yield "Controls. " + " ".join(meaning[c] for c in controls)
    if comparison:
        yield f"difference: {comparison.b} minus {comparison.a}, bootstrap over images; p: exact McNemar test;"
        yield "*: below .05 after Holm's correction for the rows of its section."
    if any(row[0].endswith(TRAINED_MARK) for row in rows):
        yield f"{TRAINED_MARK}: seen in training."
