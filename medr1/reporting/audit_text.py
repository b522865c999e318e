"""An audit as a text of at most 100 columns, and as flat metrics for a tracker."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from medr1.data.sources.omnimedvqa.files import SplitAxis
from medr1.evaluation.audit import Audit, Family, Leak
from medr1.reporting.formatting import label

_WIDTH = 100
_ABSENT = "-"
_NO_TRAINING = "no training file"
_AXIS_NAMES = {SplitAxis.MODALITY: "modality", SplitAxis.QUESTION_TYPE: "question type"}
_CUE_NAMES = {
    "lower_case": "exactly one begins in lower case",
    "odd_full_stop": "odd one out of 3 or more by full stop",
    "with_full_stop": "exactly one ends with a full stop",
    "without_full_stop": "exactly one lacks a full stop",
}
_Table = list[list[str]]  # rows of texts, titles first

_RECORDS = (
    "Repeats: records with two options that differ only in case and a final full stop; medr1 refuses them. Readable: "
    "these and all records that medr1 uses. All further counts are over the readable records."
)
_OPTIONS = "Test records by number of options. Chance: mean of 1 / number of options."
_CROSSINGS = (
    "Training questions of one split family that are test questions of the other (same image, question and options)."
)
_OPTION_PRIOR = (
    "Accuracy without image and question. The option prior is fitted to the training records of a row and tested on a "
    "column. It chooses the option text with the highest correct / (offered + 1) in training, without case and final "
    "full stops; ties count as a guess among them."
)
_CUES = (
    "Records of training and test in which the typing of the options points to one of them, and in how many % of these "
    "that option is correct. Two options, one of them with a full stop, count in both of the last two cues."
)
_CUE_ACCURACY = (
    "Accuracy on the test records of the option in lower case, else of the odd one out of three or more by full stop, "
    "else of a guess."
)


def render(audit: Audit) -> str:
    families = audit.families
    split = any(cell.train is not None for family in families for cell in family.cells.values())
    no_split = "" if split else " There is no training file: all records count as test."
    sections = [
        _section(f"Audit of {audit.place}", f"Rates are in %.{no_split}"),
        _section("Records", _RECORDS, _records(audit)),
        _section("Options and chance of the test", _OPTIONS, *map(_options, families)),
    ]
    if leaking := [family for family in families if family.leak]:
        sections.append(_section("Leaks", _leak_note(audit), *map(_leaks, leaking)))
    if audit.crossings:
        sections.append(_section("Leaks between the split families", _CROSSINGS, _crossings(audit)))
    if fitted := [family for family in families if any(family.option_prior.values())]:
        sections.append(_section("Option prior", _OPTION_PRIOR, *map(_option_prior, fitted), after=map(_mean, fitted)))
    sections.append(_section("Surface cues", _CUES, _cues(audit)))
    sections.append(_section("Accuracy of the surface cues", _CUE_ACCURACY, *map(_cue_accuracy, families)))
    bad = _bad(audit)
    note = "Refused by medr1, or without modality or question type." if bad else "None."
    sections.append(_section("Bad records", note, *bad, after=audit.examples))
    return "\n\n".join(sections) + "\n"


def metric_items(audit: Audit) -> Iterator[tuple[str, float]]:
    """Names and values, such as ``audit/leak_by_path/xray``. Rates are fractions; unknown values are left out."""
    for source in audit.sources:
        name = source.name.replace(" ", "_")
        yield f"audit/records/{name}", source.readable
        yield f"audit/repeated_option/{name}", source.repeats
        for cue, count in asdict(source.cues).items():
            yield f"audit/{cue}/{name}", count["n"]
            if count["n"]:
                yield f"audit/{cue}_correct/{name}", count["correct"] / count["n"]
    for family in audit.families:
        for value, cell in family.cells.items():
            for metric in ("chance", "surface_cues", "option_prior"):
                if (number := getattr(cell, metric)) is not None:
                    yield f"audit/{metric}/{value}", number
            yield from _leak_items(value, cell.leak)
        yield from _leak_items(f"all_{family.axis.value}_splits", family.leak)
        if family.off_diagonal is not None:
            yield f"audit/option_prior_off_diagonal/{family.axis.value}", family.off_diagonal
    for crossing in audit.crossings:
        yield f"audit/{crossing.train.value}_train_in_{crossing.test.value}_test", crossing.shared


def _leak_items(name: str, leak: Leak | None) -> Iterator[tuple[str, float]]:
    if leak:
        yield f"audit/leak_by_path/{name}", leak.by_path / leak.images
        if leak.by_content is not None:
            yield f"audit/leak_by_content/{name}", leak.by_content / leak.images


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
        rows.append([label(value), train, _number(cell.test), *of_count, _percent(cell.chance)])
    return rows


def _leak_note(audit: Audit) -> str:
    note = "Test images that are also training images of the same row; in the last row, of the whole family."
    if audit.compared_images is None:
        return f"{note} By path only, because there are no image files: copies under other paths are not found."
    unread = sum(audit.bad_images.values())
    bad = f"; {_number(unread)} cannot be read and are compared by path" if unread else ""
    return f"{note} By content: {_number(audit.compared_images)} images were compared{bad}."


def _leaks(family: Family) -> _Table:
    rows = [[_AXIS_NAMES[family.axis], "test images", "by path", "%", "by content", "%"]]
    for value, cell in family.cells.items():
        reason = _NO_TRAINING if cell.train is None else "no test file"
        rows.append([label(value), *(_leak(cell.leak) if cell.leak else (reason, *[_ABSENT] * 4))])
    return [*rows, ["all", *_leak(family.leak)]] if family.leak else rows


def _leak(leak: Leak) -> Iterator[str]:
    yield _number(leak.images)
    for count in (leak.by_path, leak.by_content):
        yield _number(count)
        yield _ABSENT if count is None else _percent(count / leak.images)


def _crossings(audit: Audit) -> _Table:
    rows = [["", "training records", "also in the test of"]]
    for crossing in audit.crossings:
        shared = f"{_AXIS_NAMES[crossing.test]} splits: {_number(crossing.shared)}"
        rows.append([f"{_AXIS_NAMES[crossing.train]} splits", _number(crossing.train_records), shared])
    return rows


def _option_prior(family: Family) -> _Table:
    tested = [value for value, cell in family.cells.items() if cell.test is not None]
    rows = [[_AXIS_NAMES[family.axis], *map(label, tested)]]
    for value, cell in family.cells.items():
        scores = [_percent(family.option_prior[value][column]) for column in tested] if cell.train is not None else []
        rows.append([label(value), *(scores or [_NO_TRAINING])])
    return rows


def _mean(family: Family) -> str:
    if family.off_diagonal is None:
        return f"By {_AXIS_NAMES[family.axis]} there is no pair of different cells."
    return (
        f"Mean over the {family.pairs} pairs of different cells by {_AXIS_NAMES[family.axis]}: "
        f"{_percent(family.off_diagonal)}, chance {_percent(family.off_diagonal_chance)}."
    )


def _cues(audit: Audit) -> _Table:
    rows = [["", *(source.name for source in audit.sources)]]
    for cue, name in _CUE_NAMES.items():
        counts = [getattr(source.cues, cue) for source in audit.sources]
        rows.append([name, *(_number(c.n) + (f"{_percent(c.correct / c.n):>7}" if c.n else "") for c in counts)])
    return rows


def _cue_accuracy(family: Family) -> _Table:
    rows = [[_AXIS_NAMES[family.axis], "cues", "chance"]]
    return rows + [[label(v), _percent(cell.surface_cues), _percent(cell.chance)] for v, cell in family.cells.items()]


def _bad(audit: Audit) -> list[_Table]:
    counts = [(source.name, source.bad) for source in audit.sources] + [("images", audit.bad_images)]
    rows = [[name, reason.replace("_", " "), _number(n)] for name, bad in counts for reason, n in bad.items()]
    return [[["", "reason", "count"], *rows]] if rows else []


def _section(title: str, note: str, *tables: _Table, after: Iterable[str] = ()) -> str:
    heading = [*textwrap.wrap(title, _WIDTH), "=" * min(len(title), _WIDTH), *textwrap.wrap(note, _WIDTH)]
    blocks = ["\n".join(heading), *map(_aligned, tables)]
    if sentences := [line for text in after for line in textwrap.wrap(text, _WIDTH, subsequent_indent="  ")]:
        blocks.append("\n".join(sentences))
    return "\n\n".join(blocks)


def _aligned(table: _Table) -> str:
    """First column left-aligned, the others right-aligned. The last text of a short row may exceed its column."""
    complete = [row for row in table if len(row) == len(table[0])]
    widths = [max(map(len, column)) for column in zip(*complete, strict=True)]
    widths[0] = max(len(row[0]) for row in table)

    def line(row: Sequence[str]) -> str:
        first, *others = row
        return "  ".join([first.ljust(widths[0]), *(t.rjust(w) for t, w in zip(others, widths[1:], strict=False))])

    return "\n".join(line(row).rstrip() for row in table)


def _number(count: int | None) -> str:
    return _ABSENT if count is None else f"{count:,}"


def _percent(fraction: float | None) -> str:
    return _ABSENT if fraction is None else f"{100 * fraction:.1f}"
