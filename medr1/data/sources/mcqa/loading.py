"""Makes a dataset of tables: converts each row by a layout, and counts what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medr1.config.messages import closest
from medr1.config.override_text import shell_word
from medr1.data.assembly import Draft, assemble, count_reasons, leak_messages, note_messages
from medr1.data.dataset import Dataset, Selection
from medr1.data.image_paths import ImageFiles, respelled_messages
from medr1.data.sources import SOURCES
from medr1.data.sources.mcqa.layout import Cells, LeftOut, LeftOutReason, RawQuestion, below
from medr1.data.sources.mcqa.settings import TableConfig
from medr1.data.splitting import count_leaks
from medr1.data.tables import Table
from medr1.data.value_text import whole_number
from medr1.domain.reasoning import missing_placeholder
from medr1.domain.records import UNSPECIFIED, BadRecord, Reason, Record, check_choices
from medr1.domain.texts import one_line
from medr1.errors import DataError


@dataclass(frozen=True, slots=True)
class Input:
    """A table, the part of its records if the file gives it, and the folder below the root that paths start from."""

    table: Table
    part: str = ""
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Division:
    """How the records are divided: by image content, or by their parts.

    ``all_test``: all are for test. ``test_part_only``: training records are left out.
    """

    image_grouped: bool = False
    all_test: bool = False
    test_part_only: bool = False


def load_tables(
    inputs: Iterable[Input],
    convert: Callable[[Cells], RawQuestion],
    columns: Mapping[str, str],
    root: Path,
    settings: TableConfig,
    selection: Selection,
    division: Division,
    *,
    place: str,
) -> Dataset:
    """Reads all tables. ``columns`` must exist, each with the remedy for one that does not.

    ``facts`` has ``counts`` (``left_out`` and ``bad`` by reason, ``image_notes``; ``images_respelled``: paths that are
    spelled differently from their files), ``leaks`` (see
    ``splitting.count_leaks``), ``bad_records`` and ``image_notes`` (see ``DecodedImage``).

    Raises:
        DataError: a file that cannot be read, a missing column, no usable record, or with ``on_bad_record=error`` any
            bad record; one message then reports all of them.
    """
    drafts, bad = list[Draft](), list[BadRecord]()
    left_out: Counter[LeftOutReason] = Counter()
    other_parts: Counter[str] = Counter()
    files_below = ImageFiles(root, settings.max_image_pixels)
    axes = _Axes(settings)
    files = read = 0
    for item in inputs:
        files += 1
        seen: dict[str, None] = {}
        for row in item.table.rows():
            read += 1
            if isinstance(row, BadRecord):
                bad.append(row)
                continue
            seen.update(dict.fromkeys(row.values))
            position = f"#{row.number}"
            try:
                raw = convert(Cells(item.table, row, settings.max_image_pixels))
                position += f" ({one_line(raw.id)})" if raw.id else ""
                part = _part(raw.part or item.part, settings, division)
                if part is None:
                    other_parts[raw.part or item.part] += 1
                    raise LeftOut(LeftOutReason.OTHER_PART)
                record = _record(raw, item, position, files_below, axes)
            except LeftOut as reason:
                left_out[reason.reason] += 1
            except BadRecord as fault:
                bad.append(BadRecord(fault.reason, fault.detail, str(item.table.file), position))
            else:
                drafts.append(Draft(record, part, str(item.table.file), position))
        _check_columns(item.table, seen, columns)
    axes.check()
    if not drafts and not bad and left_out:
        raise DataError(
            f"{place}: all {read} records are left out: {_listing(left_out)}{_part_remedy(other_parts, 'test_part')}"
        )
    data = assemble(
        _with_equal_groups(drafts),
        bad,
        root,
        settings,
        place=place,
        remedy="correct the path or the columns of the data",
        control_tokens=selection.control_tokens,
        image_grouped=division.image_grouped,
    )
    train, test = data.of_part("train"), data.of_part("test")
    leaks = count_leaks(train, test)
    facts = {
        "counts": {
            "files": files,
            "questions_read": read,
            "questions_used": len(data.records),
            "images_used": data.paths,
            "image_contents_used": data.contents,
            "left_out": {reason.value: count for reason, count in sorted(left_out.items())},
            "bad": count_reasons(data.bad),
            "image_notes": len(data.notes),
            "images_respelled": len(files_below.respelled),
        },
        "leaks": leaks,
        "bad_records": [str(record) for record in data.bad],
        "image_notes": data.notes,
    }
    messages = [
        f"{read} questions read; {len(data.records)} questions on {data.paths} images ({data.contents} different ones) "
        f"used: {len(train)} for training, {len(test)} for test"
    ]
    if left_out:
        remedy = _part_remedy(other_parts, _unused_part_setting(train, test, settings, division))
        messages.append(f"{left_out.total()} questions are left out: {_listing(left_out)}{remedy}")
    remedy = SOURCES[settings.kind].image_grouped(settings)
    messages += [*respelled_messages(files_below.respelled), *leak_messages(leaks, remedy), *note_messages(data.notes)]
    return Dataset(train, test, data.fingerprint, facts, messages, data.of_part("validation"))


def _with_equal_groups(drafts: Sequence[Draft]) -> list[Draft]:
    """The drafts, with those of group ``101.0`` in group ``101`` if there is one: the column of one file has an empty
    cell and that of another has none. Groups that are spelled in one way keep it, and data its fingerprint."""
    groups = {draft.record.group for draft in drafts}
    same = {group: whole_number(group) for group in groups if whole_number(group) in groups - {group}}
    return [
        replace(draft, record=replace(draft.record, group=same[draft.record.group]))
        if draft.record.group in same
        else draft
        for draft in drafts
    ]


def _listing(left_out: Mapping[LeftOutReason, int]) -> str:
    return ", ".join(f"{count} {reason.value}" for reason, count in sorted(left_out.items()))


def _unused_part_setting(
    train: Sequence[Record], test: Sequence[Record], settings: TableConfig, division: Division
) -> str:
    """The setting that can choose a part that is left out; empty if all have their records."""
    if not test:
        return "test_part"
    if division == Division():
        return "train_part" if not train else "" if settings.validation_part else "validation_part"
    return ""


def _part_remedy(parts: Mapping[str, int], key: str) -> str:
    """The parts that are neither for training nor for test, and how the setting chooses one of them."""
    if not parts:
        return ""
    listing = ", ".join(f"{count} in part {part!r}" for part, count in sorted(parts.items()))
    if not key:
        return f" ({listing})"
    # The part of a similar name for training, else a small one.
    is_train = key == "train_part"
    first = min(parts, key=lambda part: (part.casefold().startswith("train") != is_train, parts[part], part))
    return f" ({listing}; {shell_word(f'data.{key}', first)} chooses {first!r})"


def _part(part: str, settings: TableConfig, division: Division) -> str | None:
    """ "train", "test", "" if the data does not say, or None for a part that is neither."""
    if division.all_test:
        return "test"
    if not part:
        return ""
    known = {settings.test_part.casefold(): "test"}
    if not division.test_part_only:
        known = {settings.train_part.casefold(): "train"} | known
    if settings.validation_part is not None and not division.image_grouped and not division.test_part_only:
        known = {settings.validation_part.casefold(): "validation"} | known
    return known.get(part.casefold())


class _Axes:
    """Modality and question type as the settings group them."""

    def __init__(self, settings: TableConfig) -> None:
        self.maps = {"modality": settings.modality_map, "question_type": settings.question_type_map}
        self.check_maps = settings.kind == "mcqa"  # the maps of the benchmarks are for all their parts
        self.seen: dict[str, set[str]] = {axis: set() for axis in self.maps}

    def value(self, axis: str, written: str | None) -> str:
        if written is None:
            return UNSPECIFIED
        value = one_line(written)
        self.seen[axis].add(value)
        return self.maps[axis].get(value, value)

    def check(self) -> None:
        for axis, groups in self.maps.items() if self.check_maps else ():
            if unused := [value for value in groups if value not in self.seen[axis]]:
                values = sorted(self.seen[axis])
                listing = ", ".join(map(repr, values[:20])) + (", …" if len(values) > 20 else "")
                raise DataError(
                    f"data.{axis}_map: no record has the value {unused[0]!r}{_guess(unused[0], values)} "
                    f"The values are {listing or 'absent'}. Remedy: correct it or leave it out"
                )


def _record(raw: RawQuestion, item: Input, position: str, files: ImageFiles, axes: _Axes) -> Record:
    check_choices(raw.question, raw.options, raw.answer)
    if not raw.images:
        raise BadRecord(Reason.NO_IMAGE, "the record names no image")
    present = [image for image in raw.images if image is not None]
    if len(present) < len(raw.images):
        absent = list(raw.images).index(None)
        if placeholder := missing_placeholder((raw.question, *raw.options.values()), absent):
            detail = f"the text has {placeholder}, and image {absent + 1} is absent, so that the others move up"
            raise BadRecord(Reason.NO_IMAGE, f"{detail}. Remedy: number the images that there are")
    images = (files.find(below(item.folder, image)) if isinstance(image, str) else image for image in present)
    return Record(
        id=raw.id or f"{item.table.name}{position}",
        images=tuple(images),
        modality=axes.value("modality", raw.modality),
        question_type=axes.value("question_type", raw.question_type),
        question=raw.question,
        options=raw.options,
        answer=raw.answer,
        rationale=raw.rationale,
        origin=f"{item.table.file} {position}",
        dataset=raw.dataset,
        group=raw.group,
    )


def _check_columns(table: Table, seen: Collection[str], columns: Mapping[str, str]) -> None:
    """Refuses a table without one of the columns. A table without rows has none."""
    for column, remedy in columns.items() if seen else ():
        if column not in seen:
            known = list(seen)
            if len(known) == 1 and (sign := next((sign for sign in ";\t|" if sign in known[0]), None)):
                raise DataError(
                    f"{table.file} has the single column {known[0]!r}, whose parts are divided by {sign!r}; those of a "
                    ".csv file are divided by commas, of a .tsv file by tabs. Remedy: save it as one of these"
                )
            raise DataError(
                f"{table.file} has no column {column!r}{_guess(column, known)} It has {', '.join(map(repr, known))}. "
                f"Remedy: {remedy}"
            )


def _guess(name: str, known: Sequence[str]) -> str:
    """The end of a sentence about a name that is not there, with the one that may be meant."""
    near = closest(name, known, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "."
