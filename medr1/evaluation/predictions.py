"""The predictions file: one JSON line for each record, in one file for each condition.

Every number of a table or figure can be recomputed from these files:

    from medr1.evaluation.metrics import compare, summarise
    from medr1.evaluation.predictions import read_predictions

    base, trained = (read_predictions(run / "predictions" / f"{name}.jsonl") for name in ("base", "trained"))
    summarise(trained).overall.accuracy  # value and 95 % interval
    compare(base, trained).by_modality["mri"].difference
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Protocol, get_args, get_type_hints

from medr1.atomic_write import atomic_write
from medr1.domain.reasoning import ReasoningMode, parse, target_text
from medr1.domain.records import UNSPECIFIED, Record
from medr1.errors import DataError


class Condition(StrEnum):
    """What a run is evaluated under. Files, metrics and tables use these names.

    ``base`` is the model before training, ``trained`` after. In the others the image is blank or that of another
    record of the same modality, or no model is used at all (``option_prior``, ``surface_cues``).
    """

    BASE = "base"
    TRAINED = "trained"
    BLANK_IMAGE = "blank_image"
    SHUFFLED_IMAGE = "shuffled_image"
    OPTION_PRIOR = "option_prior"
    SURFACE_CUES = "surface_cues"


class Measure(StrEnum):
    """What else ``base`` and ``trained`` can be asked for, in a file of its own beside their predictions.

    ``samples``: several sampled completions of each record. ``rotations``: greedy completions with rotated options.
    ``option_probabilities``: the probability of each option.
    """

    SAMPLES = "samples"
    ROTATIONS = "rotations"
    OPTION_PROBABILITIES = "option_probabilities"

    def file(self, condition: str) -> str:
        """The name of the file, such as ``trained.samples``."""
        return f"{condition}.{self.value}"


class MultipleChoice(Protocol):
    """What baselines without a model read of a question; records and the questions of data files have it."""

    @property
    def options(self) -> Mapping[str, str]: ...

    @property
    def answer(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Prediction:
    """One completion for one record under one condition.

    Conditions of samples and rotations have a number: ``trained.sample_0``, ``trained.rotation_1``.
    ``record`` and ``image`` are keys. ``answer`` is the correct letter, ``parsed`` the one read from ``text`` by the
    grammar, ``lenient`` the one read by the lenient parser (both None if there is none). ``format``: the whole text
    matches the grammar of ``reasoning``. ``length``: number of completion tokens. ``truncated``: the completion reached
    the token limit. ``options``: number of options. ``benchmark``: that of the record. ``group``: the key of the
    record's group, "" without one.

    Raises:
        DataError: fields that contradict each other, such as ``correct`` with a wrong letter.
    """

    record: str
    image: str
    modality: str
    question_type: str
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
    benchmark: str = UNSPECIFIED
    group: str = ""

    @property
    def cluster(self) -> str:
        """Records that share it are correlated, and intervals resample them together."""
        return self.group or self.image

    def __post_init__(self) -> None:
        for name in ("record", "condition", "modality", "question_type"):
            if not getattr(self, name):
                raise DataError(f"record {self.record!r}, condition {self.condition!r}: {name} must not be empty")
        if self.correct != (self.parsed == self.answer):
            raise DataError(
                f"record {self.record}: correct is {self.correct}, parsed {self.parsed!r}, answer {self.answer!r}"
            )
        if self.options < 2 or self.length < 0:
            raise DataError(f"record {self.record}: {self.options} option(s), length {self.length}")


def prediction(
    record: Record, condition: str, reasoning: ReasoningMode, text: str, length: int, truncated: bool
) -> Prediction:
    """Parses one completion ``text`` (without special tokens) of ``length`` tokens."""
    parsed = parse(text, reasoning, record.options)
    return Prediction(
        record=record.id,
        image=record.image_key,
        modality=record.modality,
        question_type=record.question_type,
        condition=str(condition),
        reasoning=reasoning,
        text=text,
        answer=record.answer,
        parsed=parsed.answer,
        lenient=parsed.lenient,
        correct=parsed.answer == record.answer,
        format=parsed.format,
        length=length,
        truncated=truncated,
        options=len(record.options),
        benchmark=record.benchmark,
        group=record.group_key,
    )


def baseline_prediction(record: Record, condition: str, mode: ReasoningMode, letter: str) -> Prediction:
    """The prediction of a baseline without a model: a well-formed completion of no tokens."""
    return prediction(record, condition, mode, target_text(mode, letter), length=0, truncated=False)


def cluster_unit(predictions: Iterable[Prediction]) -> str:
    """What the intervals of these predictions resample, for texts: "groups" if the data names any, else "images"."""
    return "groups" if any(line.group for line in predictions) else "images"


def hash_rank(record: Record, text: str) -> bytes:
    """Breaks ties between option texts: reproducible, independent of their order, and at chance on average."""
    return hashlib.sha256(f"{record.id}\n{text}".encode()).digest()


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Writes the file atomically.

    Raises:
        DataError: a record that occurs twice in one condition; nothing is written.
    """
    seen: set[tuple[str, str]] = set()
    with atomic_write(path) as file:
        for line in predictions:
            _check_new(seen, line)
            # ASCII escapes: any text a model emits, lone surrogates included, survives the round trip.
            file.write(json.dumps(asdict(line)).encode() + b"\n")


def read_predictions(path: Path) -> list[Prediction]:
    """All predictions of the file, in its order.

    Raises:
        DataError: with file and line: no file, not UTF-8, broken JSON, a field that is missing, unknown or of the
            wrong type or value, a record that occurs twice in one condition.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such predictions file; evaluate the run first") from error
    predictions: list[Prediction] = []
    seen: set[tuple[str, str]] = set()
    for number, line in enumerate(raw.removesuffix(b"\n").split(b"\n") if raw else [], start=1):
        try:
            parsed = _from_json(line.decode("utf-8"))
            _check_new(seen, parsed)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{path}, line {number}: not JSON in UTF-8, perhaps incomplete: {error}") from error
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        predictions.append(parsed)
    return predictions


_HINTS = cache(get_type_hints)  # computing them takes longer than reading a line


def _from_json(line: str) -> Prediction:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise DataError(f"expected an object, got {type(value).__name__}")
    hints = _HINTS(Prediction)
    value = {"benchmark": UNSPECIFIED, "group": "", **value}  # older files do not have these
    if missing := hints.keys() - value.keys():
        raise DataError(f"missing field(s): {', '.join(sorted(missing))}")
    if unknown := value.keys() - hints.keys():
        raise DataError(f"unknown field(s): {', '.join(sorted(unknown))}")
    for name, hint in hints.items():
        kinds = get_args(hint) or (hint,)
        if issubclass(hint_class := kinds[0], StrEnum):
            if value[name] not in list(hint_class):
                raise DataError(f"field {name}: {value[name]!r} is none of {', '.join(hint_class)}")
            value[name] = hint_class(value[name])
        # type() instead of isinstance(), because bool is a subclass of int.
        elif type(value[name]) not in kinds:
            raise DataError(f"field {name}: {value[name]!r} is not {' or '.join(kind.__name__ for kind in kinds)}")
    return Prediction(**value)


def _check_new(seen: set[tuple[str, str]], line: Prediction) -> None:
    key = (line.condition, line.record)
    if key in seen:
        raise DataError(f"record {line.record} occurs twice in condition {line.condition}")
    seen.add(key)
