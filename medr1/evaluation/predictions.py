"""The predictions file: the contract between training and everything that is shown.

One JSON line for each record and condition. Every number of a table or figure can be recomputed from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from types import NoneType

from medr1.atomic_write import atomic_write
from medr1.domain.reasoning import ReasoningMode, parse
from medr1.domain.records import Modality, QuestionType, Record
from medr1.errors import DataError


class Condition(StrEnum):
    """The conditions that tables know by name."""

    BASE = "base"
    TRAINED = "trained"
    BLANK_IMAGE = "blank_image"
    SHUFFLED_IMAGE = "shuffled_image"
    OPTION_PRIOR = "option_prior"
    SURFACE_CUES = "surface_cues"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer to one record under one condition.

    ``record`` and ``image`` are the keys of record and picture; ``answer`` is the expected letter, ``parsed`` the one
    read from ``text`` by the grammar, ``lenient`` the one a last-resort reading finds (both None where there is none);
    ``format`` says whether the whole text obeys the grammar of ``reasoning``; ``length`` counts completion tokens;
    ``truncated`` says whether the token limit cut the completion; ``options`` is the number of options.

    Raises:
        DataError: fields that contradict each other, so that no file can claim a right answer it does not contain.
    """

    record: str
    image: str
    modality: Modality
    question_type: QuestionType
    condition: str
    reasoning: ReasoningMode
    text: str
    answer: str
    parsed: str | None
    lenient: str | None
    correct: bool
    format: bool
    length: int
    truncated: bool
    options: int

    def __post_init__(self) -> None:
        if not self.record or not self.condition:
            raise DataError(f"record {self.record!r}, condition {self.condition!r}: neither may be empty")
        if self.correct != (self.parsed == self.answer):
            raise DataError(
                f"record {self.record}: right is {self.correct}, but parsed is {self.parsed!r} and answer {self.answer!r}"
            )
        if self.options < 2 or self.length < 0:
            raise DataError(f"record {self.record}: {self.options} option(s), length {self.length}")


def prediction(
    record: Record, condition: str, reasoning: ReasoningMode, text: str, length: int, truncated: bool
) -> Prediction:
    """The line for one completion ``text`` (without special tokens) of ``length`` tokens."""
    read = parse(text, reasoning, record.options)
    return Prediction(
        record=record.id,
        image=record.image.key,
        modality=record.modality,
        question_type=record.question_type,
        condition=str(condition),
        reasoning=reasoning,
        text=text,
        answer=record.answer,
        parsed=read.answer,
        lenient=read.lenient,
        correct=read.answer == record.answer,
        format=read.format,
        length=length,
        truncated=truncated,
        options=len(record.options),
    )


def by_condition(predictions: Iterable[Prediction]) -> dict[str, list[Prediction]]:
    """The predictions of each condition, in the order given."""
    groups: dict[str, list[Prediction]] = {}
    for line in predictions:
        groups.setdefault(line.condition, []).append(line)
    return groups


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Writes the file in one step: a reader sees the old file or the whole new one, never a part.

    Raises:
        DataError: a record that occurs twice in one condition; nothing is written then.
    """
    seen: set[tuple[str, str]] = set()
    with atomic_write(path) as file:
        for line in predictions:
            _check_new(seen, line)
            # ASCII escapes: whatever a model emits, lone surrogates included, comes back as it was.
            file.write(json.dumps(asdict(line)).encode() + b"\n")


def read_predictions(path: Path) -> list[Prediction]:
    """All predictions of the file, in its order.

    Raises:
        DataError: names file and line: no file, no UTF-8, broken JSON, a field that is missing, unknown or of the
            wrong type or value, a record that occurs twice in one condition.
    """
    return list(_lines(path))


def _lines(path: Path) -> Iterator[Prediction]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such predictions file; evaluate the run first") from error
    seen: set[tuple[str, str]] = set()
    for number, line in enumerate(raw.removesuffix(b"\n").split(b"\n") if raw else [], start=1):
        try:
            parsed = _from_json(line.decode("utf-8"))
            _check_new(seen, parsed)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number}: not UTF-8: {error}") from error
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: broken JSON: {error}; was the file cut off?") from error
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        yield parsed


_TYPES: dict[str, tuple[type, ...]] = {
    **{field.name: (str,) for field in fields(Prediction)},
    **dict.fromkeys(("parsed", "lenient"), (str, NoneType)),
    **dict.fromkeys(("correct", "format", "truncated"), (bool,)),
    **dict.fromkeys(("length", "options"), (int,)),
}


def _from_json(line: str) -> Prediction:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise DataError(f"expected an object, got {type(value).__name__}")
    if missing := _TYPES.keys() - value.keys():
        raise DataError(f"missing field(s): {', '.join(sorted(missing))}")
    if unknown := value.keys() - _TYPES.keys():
        raise DataError(f"unknown field(s): {', '.join(sorted(unknown))}")
    for name, types in _TYPES.items():
        # type(), not isinstance: to Python True is an int, and a length of True is a mistake.
        if type(value[name]) not in types:
            raise DataError(f"field {name}: {value[name]!r} is not {' or '.join(kind.__name__ for kind in types)}")
    enums = {"modality": Modality, "question_type": QuestionType, "reasoning": ReasoningMode}
    for name, enum in enums.items():
        if value[name] not in list(enum):
            raise DataError(f"field {name}: {value[name]!r} is none of {', '.join(enum)}")
        value[name] = enum(value[name])
    return Prediction(**value)


def _check_new(seen: set[tuple[str, str]], line: Prediction) -> None:
    key = (line.condition, line.record)
    if key in seen:
        raise DataError(f"record {line.record} occurs twice in condition {line.condition}")
    seen.add(key)
