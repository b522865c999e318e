"""Loads ``data=mcqa``: finds the files and how they divide the records, and reads the columns of the user."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from medr1.data.data_files import walk
from medr1.data.dataset import Dataset, Selection
from medr1.data.sources.mcqa.choices import parse_answer, parse_options
from medr1.data.sources.mcqa.layout import Cells, RawQuestion
from medr1.data.sources.mcqa.loading import Division, Input, load_tables
from medr1.data.sources.mcqa.settings import ColumnsConfig, McqaConfig, OwnSplit
from medr1.data.tables import SUFFIXES, Row, open_file, open_hub, pickles
from medr1.domain.records import LETTERS, check_choices
from medr1.domain.texts import one_line
from medr1.errors import DataError

_OTHER_PARTS = {"val", "valid", "validation", "dev"}
_QUESTION_COLUMNS = ("image", "question", "options", "answer")
_FURTHER_COLUMNS = ("id", "modality", "question_type", "rationale", "dataset", "group")
_OTHER_DIVISIONS = (
    "the column of a split, data.columns.split=NAME, or divide all records anew: data.split=image_grouped"
)


def load_own(settings: McqaConfig, selection: Selection) -> Dataset:
    """Loads the questions at ``settings.path``.

    Raises:
        DataError: files, columns or records that cannot be used.
    """
    path = Path(settings.path)
    folder = path if path.is_dir() else path.parent
    if settings.files.validation:
        settings = dataclasses.replace(settings, validation_part="validation")
    inputs = _inputs(settings, path, folder)
    columns = settings.columns
    if settings.split is not OwnSplit.auto or (columns.split is not None and not settings.files.test):
        # These go before the names of files.
        inputs = [Input(item.table, "", item.folder) for item in inputs]
    by_file = any(item.part for item in inputs)
    split = None if by_file or settings.split is not OwnSplit.auto else _split_column(inputs, columns)
    if settings.split is OwnSplit.auto and not by_file and split is None and path.is_dir():
        _check_names(path, [item.table.file for item in inputs], settings)
    division = Division(
        image_grouped=not by_file and split is None and settings.split is not OwnSplit.test_only,
        all_test=settings.split is OwnSplit.test_only,
    )
    dataset = load_tables(
        inputs,
        lambda cells: _question(cells, settings, split),
        _needed(columns, split),
        Path(settings.root) if settings.root is not None else folder if path.exists() else Path(settings.cache_dir),
        settings,
        selection,
        division,
        place=settings.path,
    )
    content = "by image content" + (f" and column {columns.group!r}" if columns.group else "")
    how = "by files" if by_file else f"by column {split!r}" if split else content
    skipped = [] if any(settings.files.train) or any(settings.files.test) else _skipped(path)
    dataset.facts["counts"]["files_skipped"] = len(skipped)
    if skipped:
        dataset.messages.append(f"{len(skipped)} files are skipped, because they are hidden or below __MACOSX")
    if not division.all_test:
        dataset.messages.append(f"training and test are divided {how}")
    return dataset


def _inputs(settings: McqaConfig, path: Path, folder: Path) -> list[Input]:
    is_open = settings.split is OwnSplit.auto and settings.columns.split is None  # the names decide what divides
    if not path.exists():
        tables = open_hub(settings.path)
        by_part = settings.test_part in tables
        if is_open and len(tables) > 1 and not by_part:
            raise DataError(
                f"data.path={settings.path} has the splits {', '.join(tables)}, and none of them is "
                f"data.test_part={settings.test_part}; use one of them, such as data.test_part={list(tables)[-1]}, "
                f"{_OTHER_DIVISIONS}"
            )
        return [Input(table, part if by_part else "") for part, of_part in tables.items() for table in of_part]
    chosen = [
        *((settings.train_part, path / name) for name in settings.files.train),
        *(("validation", path / name) for name in settings.files.validation),
        *((settings.test_part, path / name) for name in settings.files.test),
    ]
    if not chosen:
        files = [file for file, is_data in walk(path, SUFFIXES) if is_data]
        if not files:
            pickled = "; pickles are never loaded, because they can run any code" if pickles(path) else ""
            skipped = len(_skipped(path))
            but = f" but {skipped} that do not belong to the data (hidden, or below __MACOSX)" if skipped else ""
            raise DataError(
                f"data.path={path} has no file with one of the suffixes {', '.join(SUFFIXES)}{but}{pickled}"
            )
        parts = [_part_of(file, settings) for file in files]
        odd = [file.relative_to(path).as_posix() for file, part in zip(files, parts, strict=True) if not part]
        if is_open and odd and {settings.train_part, settings.test_part} <= set(parts):
            raise DataError(
                f"data.path={path} has files of the parts {settings.train_part} and {settings.test_part}, and others: "
                f"{', '.join(odd[:5])}; choose files with data.files.train=[...] data.files.test=[...], "
                f"{_OTHER_DIVISIONS}"
            )
        named = len(files) > 1 and not odd and settings.test_part in parts
        chosen = [(part if named else "", file) for part, file in zip(parts, files, strict=True)]
    return [
        Input(
            open_file(file, file.relative_to(folder).as_posix(), Path(settings.cache_dir)),
            part,
            "" if settings.root is not None else _folder(file, folder),
        )
        for part, file in chosen
    ]


def _skipped(path: Path) -> list[Path]:
    """The files below the path that are skipped because they are not part of the data."""
    return [file for file, is_data in walk(path, SUFFIXES) if not is_data]


def _folder(file: Path, folder: Path) -> str:
    below = os.path.relpath(file.parent, folder)
    return "" if below == "." else below


def _part_of(file: Path, settings: McqaConfig) -> str:
    """The part that a file name begins with, as "test" in test-00000-of-00001.parquet; empty if it is none."""
    first = re.split(r"[-_. ]", file.stem.casefold())[0]
    parts = (settings.train_part, settings.validation_part, settings.test_part)
    known = {part.casefold(): part for part in parts if part is not None}
    return known.get(first, first if first in _OTHER_PARTS else "")


def _check_names(folder: Path, files: Iterable[Path], settings: McqaConfig) -> None:
    """Refuses files that are named as parts and would be divided anew: a model could be trained on its test questions.

    Raises:
        DataError: files of a part beside others but none for test, or names such as train1 and testing.
    """
    names = [file.relative_to(folder) for file in files]
    parts = [_part_of(name, settings) for name in names]
    meant = [part or _resembled_part(name, settings) for name, part in zip(names, parts, strict=True)]
    is_beside_others = any(parts) and len(set(parts)) > 1
    if not is_beside_others and not (settings.train_part in meant and len({*meant} - {""}) > 1):
        return
    others = [part for part in dict.fromkeys(parts) if part not in (settings.train_part, settings.validation_part)]
    if others and all(parts):
        raise DataError(
            f"data.path={folder} has files of the parts {', '.join(dict.fromkeys(parts))}, and none of them is "
            f"data.test_part={settings.test_part}; use one of them, such as data.test_part={others[-1]}, "
            f"{_OTHER_DIVISIONS}"
        )
    train, test = (
        _as_typed([name.as_posix() for name, its in zip(names, meant, strict=True) if its == part])
        for part in (settings.train_part, settings.test_part)
    )
    raise DataError(
        f"data.path={folder} has files that are named as parts, {', '.join(map(str, names[:5]))}, but only the words "
        f"{settings.train_part} and {settings.test_part} at the beginning of all names divide them; choose files with "
        f"data.files.train={train} data.files.test={test}, {_OTHER_DIVISIONS}"
    )


def _resembled_part(name: Path, settings: McqaConfig) -> str:
    """The part whose name a folder or a file name begins with, without regard to what follows; empty if it is none."""
    parts = (settings.train_part, settings.test_part, *sorted(_OTHER_PARTS))
    texts = [text.casefold() for text in (*name.parts[:-1], name.stem)]
    return next((part for text in texts for part in parts if text.startswith(part.casefold())), "")


def _as_typed(names: Sequence[str]) -> str:
    """A list of files as it is typed, if it is short and needs no quotes."""
    return (
        f"[{','.join(names)}]" if 0 < len(names) < 5 and all(re.fullmatch(r"[\w./-]+", n) for n in names) else "[...]"
    )


def _split_column(inputs: list[Input], columns: ColumnsConfig) -> str | None:
    """The column that divides the records: the chosen one, else ``split`` if any row has it."""
    if columns.split is not None:
        return columns.split
    for item in inputs:
        rows = (row for row in item.table.rows() if isinstance(row, Row))
        if any("split" in row.values for row in islice(rows, 1 if item.table.has_equal_columns else None)):
            return "split"
    return None


def _needed(columns: ColumnsConfig, split: str | None) -> dict[str, str]:
    """The columns that must exist, each with the remedy if it does not."""
    needed: dict[str, str] = {}
    for key, name in _named(columns):
        remedy = f"data.columns.{key}=NAME"
        needed[name] = remedy + (", or data.columns.options=[A,B,C,D] for options in columns" * (key == "options"))
    return needed | ({split: "data.columns.split=NAME"} if split else {})


def _named(columns: ColumnsConfig) -> Iterator[tuple[str, str]]:
    for key in (*_QUESTION_COLUMNS, *_FURTHER_COLUMNS):
        value = getattr(columns, key)
        for name in value if isinstance(value, list) else [value]:
            if name is not None:
                yield key, name


def _question(cells: Cells, settings: McqaConfig, split: str | None) -> RawQuestion:
    columns = settings.columns
    question = cells.text(columns.question)
    if isinstance(columns.options, list):
        texts = dict(zip(LETTERS, map(cells.text_or_none, columns.options), strict=False))
        options = {letter: one_line(text) for letter, text in texts.items() if text is not None}
    else:
        options = parse_options(cells.value(columns.options))
    # Faulty options explain why no option is the answer, so they are checked first, with any letter.
    check_choices(question, options, next(iter(options), ""))
    return RawQuestion(
        question=question,
        options=options,
        answer=parse_answer(cells.value(columns.answer), options, settings.answer_format),
        images=cells.images(*(columns.image if isinstance(columns.image, list) else [columns.image])),
        id=cells.text_or_none(columns.id or "id") or "",
        modality=cells.text_or_none(columns.modality or "modality"),
        question_type=cells.text_or_none(columns.question_type or "question_type"),
        dataset=cells.text_or_none(columns.dataset or "dataset") or "",
        rationale=cells.text_or_none(columns.rationale or "rationale") or "",
        part=(cells.text(split) if split else ""),
        group=(cells.text(columns.group) if columns.group else ""),
    )
