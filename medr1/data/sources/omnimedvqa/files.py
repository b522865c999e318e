"""Reads question files in the layout of OmniMedVQA's release and in that of Med-R1's splits. Opens no image.

Release: ``ROOT/QA_information/**/*.json``, lists of records with ``option_A`` ... and the text of the correct option.
Splits: ``ROOT/Splits/**/*.json``, lists of ``{"image", "problem", "solution"}``. The file name gives the part (train or
test) and either the modality ("MR (Mag-netic Resonance Imaging)_test.json") or the question type ("Lesion
Grading_train.json").

Links are followed. Files below a name that begins with a full stop, or that is __MACOSX, are no question files. In a
record null, NaN and texts without a visible character count as absent, and a number counts as its text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from medr1.data.data_files import walk
from medr1.data.image_paths import ImagePaths
from medr1.data.sources.omnimedvqa.problem_text import parse_problem, parse_solution
from medr1.data.value_text import value_as_text
from medr1.domain.records import BadRecord, Modality, QuestionType, Reason, check_choices, check_text
from medr1.domain.texts import is_blank, one_line, option_meaning
from medr1.errors import DataError

_SUFFIXES = (".json",)


class SplitAxis(StrEnum):
    """The two families of Med-R1's splits, which were drawn independently of each other."""

    MODALITY = "modality"
    QUESTION_TYPE = "question_type"


@dataclass(frozen=True, slots=True)
class Question:
    """One record of a question file, before its image is checked.

    ``modality`` or ``question_type`` is None if the file does not give it. ``label`` is the modality as written in the
    release, or the name of the split file. ``dataset`` is the data set that the question was collected from: as the
    record gives it, or the folder of the image. ``part`` is "train", "test" or, in the release, empty. ``answer`` is
    empty if none of the options is correct.
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
    dataset: str
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
    """The contents of question files.

    ``images`` are all image paths, also those of bad records. ``repeated`` are the questions among the bad records that
    are refused only because they repeat an option.
    """

    files: int = 0
    questions: list[Question] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    repeated: list[Question] = field(default_factory=list)
    images: set[str] = field(default_factory=set)

    @classmethod
    def merge(cls, readings: Iterable[Reading]) -> Reading:
        merged = cls()
        for reading in readings:
            merged.files += reading.files
            merged.questions += reading.questions
            merged.bad += reading.bad
            merged.repeated += reading.repeated
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


def skipped_files(places: Iterable[Path]) -> list[Path]:
    """The JSON files below ``places`` that are skipped because they are not part of the data."""
    return [path for place in places for path, is_data in walk(place, _SUFFIXES) if not is_data]


def respell_images(readings: Sequence[Reading], root: Path) -> dict[str, str]:
    """Replaces image paths that are spelled differently from their files, and returns the files by such paths.

    Afterwards questions about the same file have the same path. Paths without a file stay as they are.
    """
    places = ImagePaths(root)
    for path in sorted(set[str]().union(*(reading.images for reading in readings))):
        try:
            places.find(path)
        except BadRecord:  # the record is reported where its image is checked
            continue
    files = places.respelled
    for reading in readings if files else ():
        reading.images = {files.get(path, path) for path in reading.images}
        for questions in (reading.questions, reading.repeated):
            questions[:] = [dataclasses.replace(q, image=files[q.image]) if q.image in files else q for q in questions]
    return files


def _json_files(place: Path) -> list[Path]:
    files = [path for path, is_data in walk(place, _SUFFIXES) if is_data]
    if not files:
        skipped = len(skipped_files([place]))
        but = f" but {skipped} that do not belong to the data (hidden, or below __MACOSX)" if skipped else ""
        raise DataError(f"{place} has no JSON files{but}. Remedy: unpack the question files there, or correct the path")
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
    for questions in (reading.questions, reading.repeated):
        questions[:] = [
            dataclasses.replace(q, modality=modality, question_type=question_type, label=repr(name), part=part)
            for q in questions
        ]
    return SplitFile(path, axis, modality or question_type, part, reading)


def _read(path: Path, convert: Callable[[str, str, Mapping[str, object]], Question]) -> Reading:
    """Reads one file. ``convert`` makes a question from file, position and record, or raises BadRecord."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Remedy: check the file and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}. Remedy: restore or download the file again") from error
    if not isinstance(content, list):
        raise DataError(f"{path} must hold a list of records, found {type(content).__name__}. Remedy: restore the file")
    reading = Reading(files=1)
    for number, record in enumerate(content):
        position = f"#{number}"
        try:
            if not isinstance(record, dict):
                raise BadRecord(Reason.MALFORMED, f"found {type(record).__name__}, expected an object")
            image = record.get("image_path", record.get("image"))
            if isinstance(image, str) and not is_blank(image):
                reading.images.add(image)
            identity = _text_or_none(record, "question_id")
            position = f"#{number} ({one_line(identity)})" if identity else position
            question = convert(str(path), position, record)
            try:
                # Faulty options explain why no option is the answer, so they are checked first, with any letter.
                check_choices(question.question, question.options, question.answer or next(iter(question.options), ""))
            except BadRecord as bad:
                if bad.reason is Reason.DUPLICATE_OPTION and question.answer in question.options:
                    reading.repeated.append(question)
                raise
            if not question.answer:
                detail = f"gt_answer {record['gt_answer']!r}, options {list(question.options.values())}"
                raise BadRecord(Reason.ANSWER_NOT_AMONG_OPTIONS, detail)
            reading.questions.append(question)
        except BadRecord as bad:
            reading.bad.append(BadRecord(bad.reason, bad.detail, str(path), position))
    return reading


def _text_or_none(record: Mapping[str, object], key: str) -> str | None:
    """The text of a value, or None if it is absent: no key, or see ``value_as_text``."""
    return value_as_text(record.get(key), f"key {key!r}")


def _text(record: Mapping[str, object], key: str) -> str:
    text = _text_or_none(record, key)
    if text is None:
        value = (
            f"key {key!r} is {record[key]!r}, which counts as absent" if key in record else f"key {key!r} is missing"
        )
        raise BadRecord(Reason.MALFORMED, value)
    return text


def _dataset(record: Mapping[str, object], image: str) -> str:
    """The data set that a record names, else the first folder of its image below Images; empty if there is none."""
    named = record.get("dataset")
    if isinstance(named, str) and not is_blank(named):
        return one_line(named)
    folders = [part for part in re.split(r"[/\\]", image)[:-1] if part not in ("", ".")]
    return next((folder for folder in folders if folder.casefold() != "images"), "")


def _release_question(file: str, position: str, record: Mapping[str, object]) -> Question:
    identity, image, question, correct, kind = (
        _text(record, key) for key in ("question_id", "image_path", "question", "gt_answer", "question_type")
    )
    label = _text_or_none(record, "modality_type")
    # Questions with fewer options lack the last keys; some exports have null there.
    texts = {key[-1]: _text_or_none(record, key) for key in record if re.fullmatch(r"option_[A-Z]", key)}
    options = {letter: one_line(text) for letter, text in texts.items() if text is not None}
    answer = next((letter for letter, text in options.items() if option_meaning(text) == option_meaning(correct)), "")
    modality, question_type = parse_modality(label or ""), parse_question_type(kind)
    if question_type is None:
        raise BadRecord(Reason.UNKNOWN_QUESTION_TYPE, f"question_type {kind!r}")
    return Question(
        file=file,
        position=position,
        id=identity,
        image=image,
        question=question.strip(),
        options=options,
        answer=answer,
        modality=modality,
        question_type=question_type,
        label=repr(label),
        dataset=_dataset(record, image),
    )


def _split_question(file: str, position: str, record: Mapping[str, object]) -> Question:
    """A question without modality, question type, label and part: these are in the name of the file."""
    image, text, solution = (_text(record, key) for key in ("image", "problem", "solution"))
    check_text([text])  # a control token is named as such, and not as an option that cannot be read
    try:
        answer = parse_solution(solution)
    except ValueError as error:
        raise BadRecord(Reason.MALFORMED, str(error)) from error
    try:
        question, options = parse_problem(text)
    except ValueError as error:
        raise BadRecord(Reason.NO_OPTIONS, str(error)) from error
    # A hash of the content, so that a record has the same id in both families of splits.
    digest = hashlib.sha256(f"{image}\n{text}".encode()).hexdigest()[:12]
    dataset = _dataset({}, image)
    return Question(
        file=file,
        position=position,
        id=f"{dataset or 'question'}_{digest}",
        image=image,
        question=question,
        options={letter: one_line(option) for letter, option in options.items()},
        answer=answer,
        modality=None,
        question_type=None,
        label="",
        dataset=dataset,
    )
