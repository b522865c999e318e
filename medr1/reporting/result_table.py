"""The result table of a run: a row for each modality and question type, a column for each condition."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from medr1.domain.records import QuestionType, in_order
from medr1.evaluation.metrics import Cell, Comparison, Contrast, Summary
from medr1.evaluation.predictions import Condition
from medr1.evaluation.statistics import Estimate
from medr1.reporting.formatting import markdown, p_value, value_labels

# Title and attribute of each section of a summary or a comparison.
SECTIONS = (("By modality", "by_modality"), ("By type", "by_question_type"), ("By benchmark", "by_benchmark"))
TRAINED_MARK = "\N{DAGGER}"
ABSENT = "-"
GROUPS_NOTE = "The test treats records as independent. They are correlated in a group: rely on the interval."
SHORT: dict[str, str] = {QuestionType.LESION: "Lesion"}
# In the order of their columns. Shuffled image and surface cues do not fit into 100 columns; summary.json has them.
_TITLES = {
    Condition.OPTION_PRIOR: "option\nprior",
    Condition.BLANK_IMAGE: "blank\nimage",
    Condition.BASE: "base",
    Condition.TRAINED: "trained",
}
_CONTROL_NOTES = {
    Condition.OPTION_PRIOR: "option prior: the option with the highest correct / (offered + 1) in training.",
    Condition.BLANK_IMAGE: "blank image: the evaluated model with a uniform grey image.",
}


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Titles and rows as text. A row with a single text is the title of a section."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def __rich__(self) -> RenderableType:
        """For a terminal; called by ``console.print(table)``."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False)
        for position, title in enumerate(self.titles):
            # Only the name of a row may take several lines: a value of the data can be long.
            justify: JustifyMethod = "right" if position else "left"
            table.add_column(Text(title), justify=justify, no_wrap=position > 0, overflow="fold")
        for position, row in enumerate(self.rows):
            if len(row) == 1 and position:
                table.add_section()
            table.add_row(*(Text(value, style="bold" if len(row) == 1 else "") for value in row))
        return Group(table, *(Text(note, style="dim") for note in self.notes))

    def to_markdown(self) -> str:
        lines = [tuple(map(markdown, self.titles)), ("---", *["---:"] * (len(self.titles) - 1))]
        for name, *cells in self.rows:
            lines.append((markdown(name), *cells) if cells else (f"**{name}**", *[""] * (len(self.titles) - 1)))
        table = "\n".join(
            "| " + " | ".join(value.replace("\n", " ").strip() for value in line) + " |" for line in lines
        )
        return "\n\n".join([table, *self.notes]) + "\n"


def render_results(
    summaries: Mapping[str, Summary],
    comparison: Comparison | None = None,
    trained_modalities: Collection[str] = (),
    trained_question_types: Collection[str] = (),
    trained_benchmarks: Collection[str] = (),
) -> ResultTable:
    """All conditions side by side, at most 100 columns wide.

    Args:
        summaries: by condition. The last one of the columns is shown with interval, chance and format rates.
        comparison: adds the columns difference and p; normally trained against base.
        trained_modalities, trained_question_types, trained_benchmarks: rows to mark as seen in training.

    Raises:
        ValueError: no condition, or an unknown one.
    """
    if not summaries or summaries.keys() - {c.value for c in Condition}:
        raise ValueError(f"the table shows {', '.join(_TITLES)}; got {', '.join(summaries) or 'nothing'}")
    conditions = [c for c in _TITLES if c in summaries]
    titles = ["", "n", "chance", *(_TITLES[c] for c in conditions)]
    titles[-1] += "\n[95 %]"
    titles += ["difference\n[95 %]", "p"] if comparison else []
    titles += ["fmt", "not\nread"]

    rows: list[tuple[str, ...]] = []

    def add(name: str, cells: Mapping[str, Cell], contrast: Contrast | None) -> None:
        rows.append((name, *_numbers(conditions, cells, comparison is not None, contrast)))

    marked = (trained_modalities, trained_question_types, trained_benchmarks)
    for (title, axis), trained in zip(SECTIONS, marked, strict=True):
        by_value: dict[str, Mapping[str, Cell]] = {c: getattr(s, axis) for c, s in summaries.items()}
        contrasts: Mapping[str, Contrast] = getattr(comparison, axis, {})
        values = in_order(value for cells in by_value.values() for value in cells)
        if values:
            rows.append((title,))
        for value, name in value_labels(values).items():
            of_value = {c: cells[value] for c, cells in by_value.items() if value in cells}
            add(SHORT.get(value, name) + TRAINED_MARK * (value in trained), of_value, contrasts.get(value))
    rows.append(("Overall",))
    add("All questions", {c: s.overall for c, s in summaries.items()}, comparison.overall if comparison else None)
    return ResultTable(tuple(titles), tuple(rows), tuple(_notes(summaries, conditions, comparison, rows)))


def _numbers(
    conditions: list[Condition], cells: Mapping[str, Cell], compared: bool, contrast: Contrast | None
) -> Iterator[str]:
    last = conditions[-1]
    cell = cells.get(last)
    # n and chance are the same in all conditions.
    some = cell or next(iter(cells.values()))
    yield str(some.n)
    yield _percent(some.chance)
    for condition in conditions[:-1]:
        yield _percent(cells[condition].accuracy.value) if condition in cells else ABSENT
    if cell:
        yield compact_interval(cell.accuracy)
    else:
        yield ABSENT
    if compared and contrast:
        yield compact_interval(contrast.difference, "+")
        yield p_value(contrast.p) + ("*" if contrast.p_holm < 0.05 else " ")
    elif compared:
        yield from (ABSENT, ABSENT)
    yield _percent(cell.format_rate) if cell else ABSENT
    yield _percent(cell.unparsed_rate) if cell else ABSENT


def compact_interval(estimate: Estimate, sign: str = "") -> str:
    """The value alone if a bootstrap of too few images gives no interval."""
    if estimate.low == estimate.high:
        return _percent(estimate.value, sign)
    return f"{_percent(estimate.value, sign)} [{_percent(estimate.low, sign)},{_percent(estimate.high, sign)}]"


def _percent(fraction: float, sign: str = "") -> str:
    """In percent with one decimal, but 100 without: at most four characters besides the sign."""
    text = f"{round(100 * fraction, 1) + 0.0:{sign}.1f}"
    return text.removesuffix(".0") if text.endswith("100.0") else text


def _notes(
    summaries: Mapping[str, Summary],
    conditions: list[Condition],
    comparison: Comparison | None,
    rows: list[tuple[str, ...]],
) -> Iterator[str]:
    names = {c: c.value.replace("_", " ") for c in conditions}
    yield f"In %. fmt: {names[conditions[-1]]} completions in the requested format; not read: unparsed completions."
    means = [f"{names[c]} {_percent(m)}" for c in conditions if (m := summaries[c].modality_mean) is not None]
    if means:
        yield f"Mean over modalities (equal weight): {', '.join(means)}."
    yield from (note for condition, note in _CONTROL_NOTES.items() if condition in conditions)
    if comparison:
        bootstrap = f"cluster bootstrap over {comparison.cluster_unit}"
        yield f"difference: {comparison.b} minus {comparison.a}, {bootstrap}; p: exact McNemar test;"
        yield "*: below .05 after Holm's correction over the rows of its section."
        if comparison.cluster_unit == "groups":
            yield GROUPS_NOTE
    if any(row[0].endswith(TRAINED_MARK) for row in rows):
        yield f"{TRAINED_MARK}: seen in training."
