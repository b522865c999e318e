"""Reads question files in the layout of OmniMedVQA's release and in that of Med-R1's splits. Opens no image.

Release: ``ROOT/QA_information/**/*.json``, lists of records with ``option_A`` ... and the text of the correct option.
Splits: ``ROOT/Splits/**/*.json``, lists of ``{"image", "problem", "solution"}``. The file name gives the part (train or
test) and either the modality ("MR (Mag-netic Resonance Imaging)_test.json") or the question type ("Lesion
Grading_train.json").
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from medr1.data.sources.omnimedvqa.problem_text import parse_problem, parse_solution
from medr1.domain.records import BadRecord, Modality, QuestionType, Reason, check_choices, option_meaning
from medr1.errors import DataError


class SplitAxis(StrEnum):
    """The two families of Med-R1's splits, which were drawn independently of each other."""

    MODALITY = "modality"
    QUESTION_TYPE = "question_type"


@dataclass(frozen=True, slots=True)
class Question:
    """One record of a question file, before its image is checked.

    ``modality`` or ``question_type`` is None if the file does not give it. ``label`` is the modality as written in the
    release, or the name of the split file. ``part`` is "train", "test" or, in the release, empty.
    """

    file: str
    position: str
    id: str
    image: str
    question: str
    options: Mapping[str, str]
    answer: str
    modality: Modality | None
    question_type: QuestionType | None
    label: str
    part: str = ""

    def rejected(self, reason: Reason, detail: str) -> BadRecord:
        """The error that names this question."""
        return BadRecord(reason, detail, self.file, self.position)

    @property
    def content(self) -> tuple[str, str, tuple[str, ...]]:
        """Equal for the same question in both layouts: image path, question and the texts of the options."""
        return self.image, self.question, tuple(sorted(self.options.values()))


@dataclass(slots=True)
class Reading:
    """The contents of question files. ``images`` are all image paths, also those of bad records."""

    files: int = 0
    questions: list[Question] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    images: set[str] = field(default_factory=set)

    @classmethod
    def merge(cls, readings: Iterable[Reading]) -> Reading:
        merged = cls()
        for reading in readings:
            merged.files += reading.files
            merged.questions += reading.questions
            merged.bad += reading.bad
            merged.images |= reading.images
        return merged


@dataclass(slots=True)
class SplitFile:
    """One file of the split layout. ``value`` is its modality or question type, None in a file named unknown."""

    path: Path
    axis: SplitAxis
    value: Modality | QuestionType | None
    part: str
    reading: Reading


# First words and prefixes (letters only) of the names that the release and the split files use.
_MODALITIES = {
    Modality.CT: ({"ct"}, "computedtomography"),
    Modality.MRI: ({"mr", "mri"}, "magneticresonance"),
    Modality.XRAY: (set(), "xray"),
    Modality.US: ({"us"}, "ultrasound"),
    Modality.DER: (set(), "dermoscop"),
    Modality.FP: ({"fp"}, "fundus"),
    Modality.OCT: ({"oct"}, "opticalcoherence"),
    Modality.MICRO: (set(), "microscop"),
}
_QUESTION_TYPES = {
    QuestionType.ANATOMY: "anatomy",
    QuestionType.DISEASE: "disease",
    QuestionType.LESION: "lesion",
    QuestionType.MODALITY: "modality",
    QuestionType.ATTRIBUTES: "otherbiological",
}


def parse_modality(name: str) -> Modality | None:
    """The modality that a name starts with, e.g. "OCT (Optical Coherence Tomography", or None."""
    words = re.findall(r"[a-z]+", name.casefold())
    for modality, (first_words, prefix) in _MODALITIES.items():
        if words and (words[0] in first_words or "".join(words).startswith(prefix)):
            return modality
    return None


def parse_question_type(name: str) -> QuestionType | None:
    """The question type that a name starts with, or None."""
    letters = "".join(re.findall(r"[a-z]+", name.casefold()))
    return next((kind for kind, prefix in _QUESTION_TYPES.items() if letters.startswith(prefix)), None)


def read_release(folder: Path) -> Reading:
    """Reads all files below ``QA_information``.

    Raises:
        DataError: no JSON file, or a file that is not a list of records.
    """
    return Reading.merge(_read(path, _release_question) for path in _json_files(folder))


def read_splits(place: Path) -> list[SplitFile]:
    """Reads all split files below a folder, or one split file.

    Raises:
        DataError: no JSON file, a file name without axis and part, or a file that is not a list of records.
    """
    return [_read_split_file(path) for path in _json_files(place)]


def _json_files(place: Path) -> list[Path]:
    files = [place] if place.is_file() else sorted(place.rglob("*.json"))
    if not files:
        raise DataError(f"{place} has no JSON files. Remedy: unpack the question files there, or correct the path")
    return files


def _read_split_file(path: Path) -> SplitFile:
    name, _, part = path.stem.rpartition("_")
    if part not in ("train", "test"):
        name, part = path.stem, path.parent.name
    modality, question_type = parse_modality(name), parse_question_type(name)
    folders = [folder for folder in (path.parent.name, path.parent.parent.name) if folder in set(SplitAxis)]
    if modality or question_type:
        axis = SplitAxis.MODALITY if modality else SplitAxis.QUESTION_TYPE
    elif name == "unknown" and folders:
        axis = SplitAxis(folders[0])
    else:
        axis = None
    if axis is None or part not in ("train", "test"):
        raise DataError(
            f"{path}: the file name must give modality or question type, and train or test. "
            "Remedy: a name like 'Dermoscopy_train.json' or 'Lesion Grading_test.json'"
        )
    reading = _read(path, _split_question)
    reading.questions = [
        dataclasses.replace(q, modality=modality, question_type=question_type, label=repr(name), part=part)
        for q in reading.questions
    ]
    return SplitFile(path, axis, modality or question_type, part, reading)


def _read(path: Path, convert: Callable[[str, str, Mapping[str, object]], Question]) -> Reading:
    """Reads one file. ``convert`` makes a question from file, position and record, or raises BadRecord."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Remedy: check the file and its permissions") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}. Remedy: restore or download the file again") from error
    if not isinstance(content, list):
        raise DataError(f"{path} must hold a list of records, found {type(content).__name__}. Remedy: restore the file")
    reading = Reading(files=1)
    for number, record in enumerate(content):
        position = f"#{number}"
        try:
            if not isinstance(record, dict):
                raise BadRecord(Reason.MALFORMED, f"found {type(record).__name__}, expected an object")
            if isinstance(identity := record.get("question_id"), str) and identity.strip():
                position = f"#{number} ({identity})"
            image = record.get("image_path", record.get("image"))
            if isinstance(image, str) and image:
                reading.images.add(image)
            reading.questions.append(convert(str(path), position, record))
        except BadRecord as bad:
            reading.bad.append(BadRecord(bad.reason, bad.detail, str(path), position))
    return reading


def _text(record: Mapping[str, object], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        what = f"key {key!r} is missing" if key not in record else f"key {key!r} is {value!r}, expected a text"
        raise BadRecord(Reason.MALFORMED, what)
    return value


def _release_question(file: str, position: str, record: Mapping[str, object]) -> Question:
    identity, image, question, correct, kind = (
        _text(record, key) for key in ("question_id", "image_path", "question", "gt_answer", "question_type")
    )
    label = record.get("modality_type")
    if label is not None and not isinstance(label, str):
        raise BadRecord(Reason.MALFORMED, f"key 'modality_type' is {label!r}, expected a text")
    # Questions with fewer options lack the last keys; some exports have null there.
    keys = [key for key, value in record.items() if re.fullmatch(r"option_[A-Z]", key) and value is not None]
    options = {key[-1]: _text(record, key).strip() for key in keys}
    matches = [letter for letter, text in options.items() if option_meaning(text) == option_meaning(correct)]
    # Faulty options explain why no option matches, so they are checked first, with any letter as the answer.
    check_choices(question, options, matches[0] if matches else next(iter(options), ""))
    if not matches:
        raise BadRecord(Reason.ANSWER_NOT_AMONG_OPTIONS, f"gt_answer {correct!r}, options {list(options.values())}")
    modality, question_type = parse_modality(label or ""), parse_question_type(kind)
    if question_type is None:
        raise BadRecord(Reason.UNKNOWN_QUESTION_TYPE, f"question_type {kind!r}")
    return Question(
        file, position, identity, image, question.strip(), options, matches[0], modality, question_type, repr(label)
    )


def _split_question(file: str, position: str, record: Mapping[str, object]) -> Question:
    """A question without modality, question type, label and part: these are in the name of the file."""
    image, text, solution = (_text(record, key) for key in ("image", "problem", "solution"))
    try:
        answer = parse_solution(solution)
    except ValueError as error:
        raise BadRecord(Reason.MALFORMED, str(error)) from error
    try:
        question, options = parse_problem(text)
    except ValueError as error:
        raise BadRecord(Reason.NO_OPTIONS, str(error)) from error
    check_choices(question, options, answer)
    # A hash of the content, so that a record has the same id in both families of splits.
    digest = hashlib.sha256(f"{image}\n{text}".encode()).hexdigest()[:12]
    folder = image.split("/")[1] if image.count("/") > 1 else "question"
    return Question(file, position, f"{folder}_{digest}", image, question, options, answer, None, None, "")
