"""How an audit is shown: as a text of at most 100 columns, and as flat metrics for a tracker."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields

from medr1.data.sources.omnimedvqa.files import SplitAxis
from medr1.domain.records import Modality
from medr1.evaluation.audit import Audit, Family, Leak, Value
from medr1.evaluation.surface_cues import CueCount, CueCounts
from medr1.reporting.tables import MODALITY_NAMES, QUESTION_TYPE_NAMES

_WIDTH = 100
_ABSENT = "-"
_NO_TRAINING = "no training file"
_AXIS_NAMES = {SplitAxis.MODALITY: "modality", SplitAxis.QUESTION_TYPE: "question type"}
_CUE_NAMES = {
    "lower_case": "exactly one begins in lower case",
    "odd_full_stop": "odd one out of 3 or more by full stop",
    "with_full_stop": "exactly one closes with a full stop",
    "without_full_stop": "exactly one lacks a full stop",
}
_Table = list[list[str]]
"""Rows of texts, titles first."""

_RECORDS = (
    "Repeats: records with two options that differ in nothing but case and a closing full stop; medr1 refuses them. "
    "Readable: these and all that medr1 uses; everything below is counted over the readable ones."
)
_OPTIONS = "Test records by number of options. Chance: the mean of 1 / number of options."
_CROSSINGS = "The same question (image, question and options) in training of one family and in the test of the other."
_BLIND = (
    "Accuracy without image and question. Fitted to the training records of a row, tested on a column: the option "
    "whose text has the highest right / (offered + 1) in training, without case and closing full stops; ties count as "
    "a guess among them."
)
_CUES = (
    "Records, training and test, in which the typing of the options points to one of them, and in how many % of these "
    "to the right one. The last two cues also count pairs of two options, each such pair in both."
)
_CUED = (
    "Accuracy of the option in lower case, else of the odd one out of three or more by full stop, else of a guess. "
    "Nothing but typing is looked at."
)


def render(audit: Audit) -> str:
    """The report, section by section."""
    families = audit.families
    split = any(cell.train is not None for family in families for cell in family.cells.values())
    sections = [
        _section(
            f"Audit of {audit.place}",
            "Rates are in %." if split else "Rates are in %. There is no training file: all records count as test.",
        ),
        _section("Records", _RECORDS, _records(audit)),
        _section("Options and chance of the test", _OPTIONS, *map(_options, families)),
    ]
    if any(family.leak for family in families):
        sections.append(_section("Leaks", _leak_note(audit), *(_leaks(family) for family in families if family.leak)))
    if audit.crossings:
        sections.append(_section("Leaks between the families of splits", _CROSSINGS, _crossings(audit)))
    if blind := [family for family in families if any(family.blind.values())]:
        sections.append(_section("Blind scores", _BLIND, *map(_blind, blind), after=map(_across, blind)))
    sections.append(_section("Surface cues", _CUES, _cues(audit)))
    sections.append(_section("Surface cues as answers to the test", _CUED, *map(_cued, families)))
    bad = _bad(audit)
    note = "Refused by medr1, or without modality or question type." if len(bad) > 1 else "None."
    sections.append(_section("Bad records", note, *([bad] if len(bad) > 1 else []), after=audit.examples))
    return "\n\n".join(sections) + "\n"


def metric_items(audit: Audit) -> Iterator[tuple[str, float]]:
    """Flat names and values, such as ``audit/leak_by_path/xray``. Rates are fractions; what is unknown is left out."""
    for source in audit.sources:
        name = source.name.replace(" ", "_")
        yield f"audit/records/{name}", source.readable
        yield f"audit/repeated_option/{name}", source.repeats
        for cue, count in _counts(source.cues):
            yield f"audit/{cue}/{name}", count.n
            if count.n:
                yield f"audit/{cue}_right/{name}", count.correct / count.n
    for family in audit.families:
        for value, cell in family.cells.items():
            for number, known in (("chance", cell.chance), ("surface_cues", cell.cues), ("blind", cell.blind)):
                if known is not None:
                    yield f"audit/{number}/{value.value}", known
            yield from _leak_items(value.value, cell.leak)
        yield from _leak_items(f"all_{family.axis.value}_splits", family.leak)
        if family.across is not None:
            yield f"audit/blind_across/{family.axis.value}", family.across
    for crossing in audit.crossings:
        yield f"audit/{crossing.train.value}_train_in_{crossing.test.value}_test", crossing.shared


def _leak_items(name: str, leak: Leak | None) -> Iterator[tuple[str, float]]:
    if leak:
        yield f"audit/leak_by_path/{name}", leak.by_path / leak.images
        if leak.by_picture is not None:
            yield f"audit/leak_by_picture/{name}", leak.by_picture / leak.images


def _records(audit: Audit) -> _Table:
    counts = sorted({count for source in audit.sources for count in source.options}, reverse=True)
    rows = [["", "files", "records", "readable", *(f"{n} opt." for n in counts), "repeats"]]
    for source in audit.sources:
        numbers = [source.files, source.records, source.readable, *(source.options.get(n, 0) for n in counts)]
        rows.append([source.name, *map(_number, numbers), _number(source.repeats)])
    return rows


def _options(family: Family) -> _Table:
    counts = sorted({count for cell in family.cells.values() for count in cell.options}, reverse=True)
    rows = [[_AXIS_NAMES[family.axis], "training", "test", *(f"{n} opt." for n in counts), "chance"]]
    for value, cell in family.cells.items():
        train = _NO_TRAINING if cell.train is None else _number(cell.train)
        of_count = (_number(cell.options.get(n, 0)) for n in counts)
        rows.append([_name(value), train, _number(cell.test), *of_count, _percent(cell.chance)])
    return rows


def _leak_note(audit: Audit) -> str:
    note = "Test images that training shows as well: training of the same row; for the last row, of the whole family."
    if audit.pictures is None:
        return f"{note} By path only, as no pictures are there: copies under other paths are not found."
    unread = sum(audit.bad_images.values())
    bad = f"; {_number(unread)} cannot be read and are compared by path" if unread else ""
    return f"{note} By picture: {_number(audit.pictures)} images were compared by what they show{bad}."


def _leaks(family: Family) -> _Table:
    rows = [[_AXIS_NAMES[family.axis], "test images", "by path", "%", "by picture", "%"]]
    for value, cell in family.cells.items():
        reason = _NO_TRAINING if cell.train is None else "no test file"
        rows.append([_name(value), *(_leak(cell.leak) if cell.leak else (reason, *[_ABSENT] * 4))])
    return [*rows, ["all", *_leak(family.leak)]] if family.leak else rows


def _leak(leak: Leak) -> Iterator[str]:
    yield _number(leak.images)
    for count in (leak.by_path, leak.by_picture):
        yield _number(count)
        yield _ABSENT if count is None else _percent(count / leak.images)


def _crossings(audit: Audit) -> _Table:
    rows = [["", "training records", "also in the test of"]]
    for crossing in audit.crossings:
        shared = f"{_AXIS_NAMES[crossing.test]} splits: {_number(crossing.shared)}"
        rows.append([f"{_AXIS_NAMES[crossing.train]} splits", _number(crossing.train_records), shared])
    return rows


def _blind(family: Family) -> _Table:
    tested = [value for value, cell in family.cells.items() if cell.test is not None]
    rows = [[_AXIS_NAMES[family.axis], *map(_name, tested)]]
    for value, cell in family.cells.items():
        scores = [_percent(family.blind[value][column]) for column in tested] if cell.train is not None else []
        rows.append([_name(value), *(scores or [_NO_TRAINING])])
    return rows


def _across(family: Family) -> str:
    if family.across is None:
        return f"By {_AXIS_NAMES[family.axis]} there is no pair of different cells."
    return (
        f"Mean over the {family.pairs} pairs of different cells by {_AXIS_NAMES[family.axis]}: "
        f"{_percent(family.across)}, where chance is {_percent(family.across_chance)}."
    )


def _counts(cues: CueCounts) -> Iterator[tuple[str, CueCount]]:
    for field in fields(cues):
        yield field.name, getattr(cues, field.name)


def _cues(audit: Audit) -> _Table:
    columns = [dict(_counts(source.cues)) for source in audit.sources]
    rows = [["", *(source.name for source in audit.sources)]]
    for cue, name in _CUE_NAMES.items():
        rates = (f"{_percent(column[cue].correct / column[cue].n):>7}" if column[cue].n else "" for column in columns)
        rows.append([name, *(_number(column[cue].n) + rate for column, rate in zip(columns, rates, strict=True))])
    return rows


def _cued(family: Family) -> _Table:
    rows = [[_AXIS_NAMES[family.axis], "cues", "chance"]]
    return rows + [[_name(value), _percent(cell.cues), _percent(cell.chance)] for value, cell in family.cells.items()]


def _bad(audit: Audit) -> _Table:
    counts = [(source.name, source.bad) for source in audit.sources] + [("images", audit.bad_images)]
    rows = [[name, reason.replace("_", " "), _number(n)] for name, bad in counts for reason, n in bad.items()]
    return [["", "reason", "count"], *rows]


def _section(title: str, note: str, *tables: _Table, after: Iterable[str] = ()) -> str:
    heading = [*textwrap.wrap(title, _WIDTH), "=" * min(len(title), _WIDTH), *textwrap.wrap(note, _WIDTH)]
    blocks = ["\n".join(heading), *map(_aligned, tables)]
    if sentences := [line for text in after for line in textwrap.wrap(text, _WIDTH, subsequent_indent="  ")]:
        blocks.append("\n".join(sentences))
    return "\n\n".join(blocks)


def _aligned(table: _Table) -> str:
    """First column to the left, the others to the right; a row may be shorter, its last text sets no width."""
    whole = [row for row in table if len(row) == len(table[0])]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    widths[0] = max(len(row[0]) for row in table)

    def line(row: Sequence[str]) -> str:
        first, *others = row
        return "  ".join([first.ljust(widths[0]), *(t.rjust(w) for t, w in zip(others, widths[1:], strict=False))])

    return "\n".join(line(row).rstrip() for row in table)


def _name(value: Value) -> str:
    return MODALITY_NAMES[value] if isinstance(value, Modality) else QUESTION_TYPE_NAMES[value]


def _number(count: int | None) -> str:
    return _ABSENT if count is None else f"{count:,}"


def _percent(fraction: float | None) -> str:
    return _ABSENT if fraction is None else f"{100 * fraction:.1f}"
