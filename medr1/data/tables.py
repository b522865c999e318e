"""Reads tables of questions: JSON, JSON Lines, CSV, TSV and Parquet files, and data sets of the Hugging Face hub.

Rows are read one after another. Image bytes in a Parquet file stay on disk: a row has ``EMBEDDED`` in their place, and
``Table.value`` reads them when an image is needed. Nothing in a file is executed, and pickles are never loaded.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from medr1.domain.records import BadRecord, Reason
from medr1.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


class _Embedded:
    """Stands for image bytes that were not read. There is one, ``EMBEDDED``."""

    def __repr__(self) -> str:
        return "image bytes"


EMBEDDED: Final = _Embedded()
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_LIST = ", ".join(SUFFIXES)
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy")
_BATCH = 256  # rows
_MAX_FIELD = 2**31 - 1  # characters of a CSV field: base64 images are long
HUB_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True)
class Row:
    """One row. ``position`` finds it again (``Table.value``); ``number`` counts from 0, for messages."""

    number: int
    position: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table(ABC):
    """Rows in one file. ``name`` is what messages, ids and the image index call it. Hashable, and can be pickled.

    ``has_equal_columns``: whether the first row has the columns of all rows.
    """

    has_equal_columns: ClassVar[bool] = True
    file: Path
    name: str

    @abstractmethod
    def rows(self) -> Iterator[Row | BadRecord]:
        """All rows. A row that cannot be read is a BadRecord.

        Raises:
            DataError: the file cannot be read at all.
        """

    @abstractmethod
    def value(self, position: int, column: str) -> Any:
        """The value in one row, read from the file again."""

    def state(self) -> tuple[int, int]:
        """Size in bytes and modification time in nanoseconds of the file."""
        status = self.file.stat()
        return status.st_size, status.st_mtime_ns

    def bad(self, number: int, detail: str) -> BadRecord:
        return BadRecord(Reason.MALFORMED, detail, self.name, f"#{number}")

    def unreadable(self, error: Exception) -> DataError:
        return DataError(f"{self.file} cannot be read: {error}. Remedy: restore or download the file again")


@dataclass(frozen=True)
class JsonTable(Table):
    """A list of objects in a JSON file. The file is in memory while it is read."""

    has_equal_columns = False

    def rows(self) -> Iterator[Row | BadRecord]:
        for number, record in enumerate(self._records()):
            is_row = isinstance(record, dict)
            yield Row(number, number, record) if is_row else self.bad(number, f"{record!r:.80} is no object")

    def value(self, position: int, column: str) -> Any:
        return self._records()[position][column]

    def _records(self) -> list[Any]:
        try:
            state = self.state()
        except OSError as error:
            raise self.unreadable(error) from error
        return _read_json(self, state)


@lru_cache(maxsize=1)
def _read_json(table: JsonTable, state: tuple[int, int]) -> list[Any]:
    """The list in a file of this state, so that a file that was written again is read again."""
    try:
        content = json.loads(table.file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise table.unreadable(error) from error
    if not isinstance(content, list):
        raise DataError(
            f"{table.file} must hold a list of records, found {type(content).__name__}. Remedy: write it as a list, or "
            "as JSON Lines with the suffix .jsonl"
        )
    return content


@dataclass(frozen=True)
class JsonLinesTable(Table):
    """An object in each line. Positions are the offsets of lines in bytes."""

    has_equal_columns = False

    def rows(self) -> Iterator[Row | BadRecord]:
        try:
            with self.file.open("rb") as file:
                position, number = 0, 0
                for line in file:
                    if line.strip():
                        yield self._row(number, position, line)
                        number += 1
                    position += len(line)
        except OSError as error:
            raise self.unreadable(error) from error

    def _row(self, number: int, position: int, line: bytes) -> Row | BadRecord:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            return self.bad(number, f"the line is not valid JSON: {error}")
        is_row = isinstance(values, dict)
        return Row(number, position, values) if is_row else self.bad(number, f"{values!r:.80} is no object")

    def value(self, position: int, column: str) -> Any:
        with self.file.open("rb") as file:
            file.seek(position)
            return json.loads(file.readline())[column]


@dataclass(frozen=True)
class DelimitedTable(Table):
    """CSV or TSV with a header. Positions are the offsets of records in bytes. Empty fields count as absent.

    A quote that is not closed is an error: read leniently, it would join rows, and an image would get the options of
    another row.
    """

    delimiter: str

    def rows(self) -> Iterator[Row | BadRecord]:
        csv.field_size_limit(_MAX_FIELD)
        number, line = 0, 1
        try:
            with self.file.open("rb") as file:
                lines = _Lines(file, 0)
                reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
                header = next(reader, [])
                if len(set(header)) < len(header):
                    twice = next(name for name in header if header.count(name) > 1)
                    raise DataError(f"{self.file}: column {twice!r} occurs twice. Remedy: rename one of them")
                position, line = lines.position, reader.line_num + 1
                for fields in reader:
                    if column := self._joined(header, fields):
                        raise csv.Error(f"the quote before column {column!r} is closed in another row")
                    if len(fields) > len(header):
                        yield self.bad(number, f"{len(fields)} fields for the {len(header)} columns of the header")
                    elif fields:
                        yield Row(number, position, dict(zip(header, [*fields, *_BLANKS], strict=False)))
                    number += bool(fields)
                    position, line = lines.position, reader.line_num + 1
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(
                f"{self.file} cannot be read from line {line}, record #{number}: {error}. Remedy: save it as UTF-8, "
                f"with fields that contain a double quote, {self.delimiter!r} or a line break in double quotes, and "
                'each double quote in such a field doubled: "the ""halo"" sign"'
            ) from error

    def _joined(self, header: list[str], fields: list[str]) -> str | None:
        """The column whose text is the end of one row and the beginning of another, with an image of one of them.

        The csv module cannot know that of a quote before a field that is closed at the end of a field further down.
        """
        if len(header) < 4:  # a table of questions has four columns
            return None
        for column, (name, text) in enumerate(zip(header, fields, strict=False)):
            lines = text.split("\n")
            whole = [len(header) - 1] * (len(lines) - 2)
            of_two_rows = [len(header) - 1 - column, *whole, column]
            is_joined = len(lines) > 1 and [line.count(self.delimiter) for line in lines] == of_two_rows
            if is_joined and _IMAGE_NAME.search(text):
                return name
        return None

    def value(self, position: int, column: str) -> Any:
        csv.field_size_limit(_MAX_FIELD)
        with self.file.open("rb") as file:
            header = next(csv.reader(_Lines(file, 0), delimiter=self.delimiter, strict=True))
            fields = next(csv.reader(_Lines(file, position), delimiter=self.delimiter, strict=True))
        return fields[header.index(column)]


_BLANKS = [""] * 1000  # for records with fewer fields than the header
_IMAGE_NAME = re.compile(r"\.(?:bmp|dcm|gif|jpe?g|png|tiff?|webp)\s*(?:[,\t\n]|$)", re.IGNORECASE)  # as a whole field


class _Lines:
    """The lines of a file in UTF-8 from a position on, which moves behind each line that was taken."""

    def __init__(self, file: Any, position: int) -> None:
        file.seek(position)
        self.file, self.position = file, position

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line: bytes = self.file.readline()
        if not line:
            raise StopIteration
        start, self.position = self.position, self.position + len(line)
        return line.decode("utf-8" if start else "utf-8-sig")


@dataclass(frozen=True)
class ArrowTable(Table):
    """A table whose copy in Arrow's format is mapped into memory."""

    copy: Path

    def rows(self) -> Iterator[Row | BadRecord]:
        number = 0
        for batch in _map(self.copy).to_batches(max_chunksize=_BATCH):
            for values in zip(*map(_values, batch.columns), strict=True):
                yield Row(number, number, dict(zip(batch.schema.names, values, strict=True)))
                number += 1

    def value(self, position: int, column: str) -> Any:
        return _map(self.copy).column(column)[position].as_py()


@lru_cache(maxsize=64)
def _map(file: Path) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()


def _values(column: pa.Array) -> list[Any]:
    """The values of a column, with ``EMBEDDED`` in place of bytes, also of those in structs and lists."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [EMBEDDED if there else None for there in column.is_valid().to_pylist()]
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        fields = zip(*(_values(column.field(i)) for i in range(kind.num_fields)), strict=True)
        valid = column.is_valid().to_pylist()
        return [dict(zip(names, f, strict=True)) if there else None for f, there in zip(fields, valid, strict=True)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        values = iter(_values(column.flatten()))
        lengths = column.value_lengths().to_pylist()
        return [None if length is None else list(islice(values, length)) for length in lengths]
    values_: list[Any] = column.to_pylist()
    return values_


def open_file(file: Path, name: str, cache_dir: Path) -> Table:
    """The table in a file, by its suffix. Parquet is written as Arrow into ``cache_dir`` when it is first read.

    Raises:
        DataError: another suffix, or a Parquet file that cannot be read.
    """
    match file.suffix.lower():
        case ".json":
            return JsonTable(file, name)
        case ".jsonl":
            return JsonLinesTable(file, name)
        case ".csv":
            return DelimitedTable(file, name, ",")
        case ".tsv":
            return DelimitedTable(file, name, "\t")
        case ".parquet":
            return ArrowTable(file, name, _to_arrow(file, cache_dir))
    raise DataError(refusal(file))


def refusal(file: Path) -> str:
    """Why a file is not read, if its suffix is none of ``SUFFIXES``."""
    pickled = file.suffix.lower() in _PICKLES
    why = "pickles are never loaded, because they can run any code" if pickled else f"has no suffix of {_LIST}"
    return f"{file}: {why}. Remedy: save it as one of {_LIST}"


def pickles(folder: Path) -> list[Path]:
    """The pickles below a folder, for messages."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICKLES)


def _to_arrow(file: Path, cache_dir: Path) -> Path:
    """The Arrow copy of a Parquet file, which unlike Parquet gives one row without its neighbours."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    status = file.stat()
    digest = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    copy = cache_dir / f"table-{digest}.arrow"
    if copy.is_file():
        return copy
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir) as folder, ParquetFile(file, memory_map=True) as parquet:
            part = Path(folder) / copy.name
            with pa.ipc.new_stream(str(part), parquet.schema_arrow) as stream:
                for batch in parquet.iter_batches(_BATCH):
                    stream.write_batch(batch)
            os.replace(part, copy)  # whole, or not at all
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read: {error}. Remedy: restore or download the file again") from error
    return copy


def open_hub(identity: str) -> dict[str, list[Table]]:
    """The tables of a data set of the Hugging Face hub, by its splits.

    Raises:
        DataError: ``datasets`` is not installed, the hub cannot be reached, or it has no such data set.
    """
    if find_spec("datasets") is None:
        raise DataError(f'data.path={identity} is read with datasets. Remedy: pip install "medr1[data]"')
    import datasets
    from huggingface_hub import HfApi, constants

    try:
        if not constants.HF_HUB_OFFLINE:  # one request; datasets itself repeats a failed one for half a minute
            HfApi().dataset_info(identity, timeout=HUB_TIMEOUT)
        loaded = datasets.load_dataset(identity, keep_in_memory=False)
    # Network, repository and format errors of several libraries, with no class in common.
    except Exception as error:
        raise DataError(
            f"data.path={identity} is no file or folder here, and cannot be read from the hub: {error}\n"
            "Remedy: correct the id or the path, or download the data set and give its folder. HF_HUB_OFFLINE=1 reads "
            "what an earlier run has downloaded"
        ) from error
    files = {str(name): [Path(entry["filename"]) for entry in split.cache_files] for name, split in loaded.items()}
    return {
        name: [ArrowTable(file, f"{identity}/{name}" + (f"-{i}" if i else ""), file) for i, file in enumerate(of_split)]
        for name, of_split in files.items()
    }
