"""Reads the JSON files of OmniMedVQA, in its release layout and in that of Med-R1's splits, into plain questions.

Release: ``ROOT/QA_information/**/*.json``, lists of records with ``option_A`` … and the text of the right option.
Splits: ``ROOT/Splits/**/*.json``, lists of ``{"image", "problem", "solution"}``. There a file's name gives one axis
("MR (Mag-netic Resonance Imaging)_test.json", "Lesion Grading_train.json") and the part, train or test.

Nothing here looks at a picture.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from medr1.data.sources.omnimedvqa.problem_text import parse_problem, parse_solution
from medr1.domain.records import BadRecord, Modality, QuestionType, Reason, check_choices, option_meaning
from medr1.errors import DataError


class SplitAxis(StrEnum):
    """The two families of splits that Med-R1 released, cut independently of each other."""

    MODALITY = "modality"
    QUESTION_TYPE = "question_type"


@dataclass(frozen=True, slots=True)
class Question:
    """A record as its file gives it; an axis that the file does not give is None, ``named`` keeps what it said."""

    file: str
    position: str
    id: str
    image: str
    question: str
    options: Mapping[str, str]
    answer: str
    modality: Modality | None
    question_type: QuestionType | None
    named: str

    @property
    def content(self) -> tuple[str, str, tuple[str, ...]]:
        """What makes two records one, whatever layout they come in: image, question and the options' texts."""
        return self.image, self.question, tuple(sorted(self.options.values()))


@dataclass(slots=True)
class Reading:
    """What a set of files holds. ``images`` are all paths named, also those of bad records."""

    files: int = 0
    questions: list[Question] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    images: set[str] = field(default_factory=set)


@dataclass(slots=True)
class SplitFile:
    """One file of the split layout: its family, its part and, unless it is called unknown, its value of the axis."""

    path: Path
    axis: SplitAxis
    value: Modality | QuestionType | None
    part: str
    reading: Reading


_Convert = Callable[[str, str, Mapping[str, object]], Question]
"""From file, position and record to a question; BadRecord if the record cannot be used."""

_MODALITY_WORDS = {
    "ct": Modality.CT,
    "mr": Modality.MRI,
    "mri": Modality.MRI,
    "us": Modality.US,
    "oct": Modality.OCT,
    "fp": Modality.FP,
}
_MODALITY_STARTS = {
    "computedtomography": Modality.CT,
    "magneticresonance": Modality.MRI,
    "xray": Modality.XRAY,
    "ultrasound": Modality.US,
    "dermoscop": Modality.DER,
    "fundus": Modality.FP,
    "opticalcoherence": Modality.OCT,
    "microscop": Modality.MICRO,
}
_QUESTION_TYPE_STARTS = {
    "anatomy": QuestionType.ANATOMY,
    "disease": QuestionType.DISEASE,
    "lesion": QuestionType.LESION,
    "modality": QuestionType.MODALITY,
    "otherbiological": QuestionType.ATTRIBUTES,
}


def parse_modality(name: str) -> Modality | None:
    """The modality that a name of the release means, e.g. "OCT (Optical Coherence Tomography"; None if no known one.

    Only the first word, or the letters in a row, decide: "Optical Coherence Tomography" is no CT.
    """
    words = re.findall(r"[a-z]+", name.casefold())
    joined = "".join(words)
    starts = (modality for start, modality in _MODALITY_STARTS.items() if joined.startswith(start))
    return _MODALITY_WORDS.get(words[0] if words else "") or next(starts, None)


def parse_question_type(name: str) -> QuestionType | None:
    """The question type that a name of the release means; None if no known one."""
    joined = "".join(re.findall(r"[a-z]+", name.casefold()))
    return next((kind for start, kind in _QUESTION_TYPE_STARTS.items() if joined.startswith(start)), None)


def read_release(folder: Path) -> Reading:
    """All questions below ``QA_information``.

    Raises:
        DataError: no JSON file, or one that is no list of records.
    """
    result = Reading()
    for path in _json_files(folder):
        _read(path, _release_question, result)
    return result


def read_splits(place: Path) -> list[SplitFile]:
    """All split files below a folder, or the one file.

    Raises:
        DataError: no JSON file, a file name that does not tell its axis and part, or a file that is no list.
    """
    return [_read_split_file(path) for path in _json_files(place)]


def _json_files(place: Path) -> list[Path]:
    files = [place] if place.is_file() else sorted(place.rglob("*.json"))
    if not files:
        raise DataError(f"{place} holds no JSON file. Remedy: unpack the question files there, or correct the path")
    return files


def _read_split_file(path: Path) -> SplitFile:
    name, _, part = path.stem.rpartition("_")
    if part not in ("train", "test"):
        name, part = path.stem, path.parent.name
    modality, question_type = parse_modality(name), parse_question_type(name)
    value = modality or question_type
    folders = [folder for folder in (path.parent.name, path.parent.parent.name) if folder in set(SplitAxis)]
    if value is not None:
        axis = SplitAxis.MODALITY if modality is not None else SplitAxis.QUESTION_TYPE
    elif name == "unknown" and folders:
        axis = SplitAxis(folders[0])
    else:
        axis = None
    if axis is None or part not in ("train", "test"):
        raise DataError(
            f"{path}: the file name does not say modality or question type, and train or test. "
            "Remedy: a name like 'Dermoscopy_train.json' or 'Lesion Grading_test.json'"
        )

    def question(file: str, position: str, record: Mapping[str, object]) -> Question:
        return _split_question(file, position, record, name, modality, question_type)

    reading = Reading()
    _read(path, question, reading)
    return SplitFile(path, axis, value, part, reading)


def _read(path: Path, convert: _Convert, result: Reading) -> None:
    """Adds the records of one file to ``result``, good and bad."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Remedy: check the file and its permissions") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}. Remedy: restore or download the file again") from error
    if not isinstance(content, list):
        raise DataError(f"{path} must hold a list of records, found {type(content).__name__}. Remedy: restore the file")
    result.files += 1
    for number, record in enumerate(content):
        position = f"#{number}"
        try:
            if not isinstance(record, dict):
                raise BadRecord(
                    str(path), position, Reason.MALFORMED, f"found {type(record).__name__}, expected an object"
                )
            result.images |= {
                image for key in ("image", "image_path") if isinstance(image := record.get(key), str) and image
            }
            result.questions.append(convert(str(path), position, record))
        except BadRecord as bad:
            result.bad.append(bad)


def _text(file: str, position: str, record: Mapping[str, object], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        what = f"key {key!r} is missing" if key not in record else f"key {key!r} is {value!r}, expected a text"
        raise BadRecord(file, position, Reason.MALFORMED, what)
    return value


def _release_question(file: str, position: str, record: Mapping[str, object]) -> Question:
    identity = _text(file, position, record, "question_id")
    position = f"{position} ({identity})"
    image, question, right, kind = (
        _text(file, position, record, key) for key in ("image_path", "question", "gt_answer", "question_type")
    )
    named = record.get("modality_type")
    if named is not None and not isinstance(named, str):
        raise BadRecord(file, position, Reason.MALFORMED, f"key 'modality_type' is {named!r}, expected a text")
    options: dict[str, str] = {}
    for key, value in record.items():
        match = re.fullmatch(r"option_([A-Z])", key)
        # Absent where a question has fewer options; some exports write null instead.
        if match and value is not None:
            options[match[1]] = _text(file, position, record, key).strip()
    matches = [letter for letter, text in options.items() if option_meaning(text) == option_meaning(right)]
    # Without a match any letter serves to have the options checked first: their faults explain the missing match.
    check_choices(file, position, question, options, matches[0] if matches else next(iter(options), ""))
    if not matches:  # several would have been options that mean the same
        raise BadRecord(
            file, position, Reason.ANSWER_NOT_AMONG_OPTIONS, f"gt_answer {right!r}, options {list(options.values())}"
        )
    modality, question_type = parse_modality(named or ""), parse_question_type(kind)
    if question_type is None:
        raise BadRecord(file, position, Reason.UNKNOWN_QUESTION_TYPE, f"question_type {kind!r}")
    return Question(
        file, position, identity, image, question.strip(), options, matches[0], modality, question_type, repr(named)
    )


def _split_question(
    file: str,
    position: str,
    record: Mapping[str, object],
    name: str,
    modality: Modality | None,
    question_type: QuestionType | None,
) -> Question:
    image, text, solution = (_text(file, position, record, key) for key in ("image", "problem", "solution"))
    try:
        answer = parse_solution(solution)
    except ValueError as error:
        raise BadRecord(file, position, Reason.MALFORMED, str(error)) from error
    try:
        problem = parse_problem(text)
    except ValueError as error:
        raise BadRecord(file, position, Reason.NO_OPTIONS, str(error)) from error
    check_choices(file, position, problem.question, problem.options, answer)
    # From the content, so that a record has one id in both families of splits.
    digest = hashlib.sha256(f"{image}\n{text}".encode()).hexdigest()[:12]
    folder = image.split("/")[1] if image.count("/") > 1 else "question"
    return Question(
        file,
        position,
        f"{folder}_{digest}",
        image,
        problem.question,
        problem.options,
        answer,
        modality,
        question_type,
        repr(name),
    )
