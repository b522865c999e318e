"""The record: one multiple-choice question about one medical image, validated and typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Protocol

from PIL import Image

from medr1.errors import DataError

LETTERS = tuple("ABCDEFGHIJ")


class Modality(StrEnum):
    """The eight imaging modalities of OmniMedVQA. The values are the options of the config group ``modality``."""

    CT = "ct"
    MRI = "mri"
    XRAY = "xray"
    US = "us"
    DER = "der"
    FP = "fp"
    OCT = "oct"
    MICRO = "micro"


class QuestionType(StrEnum):
    """The five question types of OmniMedVQA. The values are the options of the config group ``question_type``."""

    ANATOMY = "anatomy"
    DISEASE = "disease"
    LESION = "lesion"
    MODALITY = "modality"
    ATTRIBUTES = "attributes"


class ImageSource(Protocol):
    """An image that is decoded or drawn when ``load`` is called. Hashable, so that loaded images can be cached."""

    def __hash__(self) -> int: ...

    @property
    def key(self) -> str:
        """Identifies the content of the image: records with the same key show the same image."""

    def load(self, size: int) -> Image.Image:
        """The image in RGB, ``size`` x ``size`` pixels."""


@dataclass(frozen=True, slots=True)
class Record:
    """One question about one image, whatever data source it comes from.

    ``options`` maps letters to texts in the order in which the prompt lists them; in real data the letters are not
    always in alphabetical order. ``rationale`` is empty if the data has none. ``origin`` names the file and the
    position in it.
    """

    id: str
    image: ImageSource
    modality: Modality
    question_type: QuestionType
    question: str
    options: Mapping[str, str]
    answer: str
    rationale: str = ""
    origin: str = ""

    @property
    def answer_text(self) -> str:
        """The text of the correct option."""
        return self.options[self.answer]

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among the options."""
        return 1.0 / len(self.options)


class Reason(StrEnum):
    """Why a record is rejected."""

    MALFORMED = "malformed"
    NO_IMAGE = "no_image"
    UNDECODABLE_IMAGE = "undecodable_image"
    IMAGE_TOO_LARGE = "image_too_large"
    PATH_LEAVES_ROOT = "path_leaves_root"
    NO_OPTIONS = "no_options"
    DUPLICATE_OPTION = "duplicate_option"
    ANSWER_NOT_AMONG_OPTIONS = "answer_not_among_options"
    UNKNOWN_MODALITY = "unknown_modality"
    UNKNOWN_QUESTION_TYPE = "unknown_question_type"


class BadRecord(DataError):
    """A record that cannot be used. ``file`` and ``record`` are empty until the reader of the file adds them."""

    def __init__(self, reason: Reason, detail: str, file: str = "", record: str = "") -> None:
        self.reason, self.detail, self.file, self.record = reason, detail, file, record
        place = f"{file}, record {record}: " if file else ""
        super().__init__(f"{place}{reason.value}: {detail}")


@cache
def option_meaning(text: str) -> str:
    """The text of an option without case and final full stop: options that differ only in these mean the same."""
    return text.strip().rstrip(".").strip().casefold()


def check_choices(question: str, options: Mapping[str, str], answer: str) -> None:
    """Checks that a question has distinct options and that its answer is one of them.

    Raises:
        BadRecord: no question, fewer than two options, an empty or repeated option, an answer that is no option.
    """
    if not question.strip():
        raise BadRecord(Reason.MALFORMED, "the question is empty")
    if len(options) < 2:
        raise BadRecord(Reason.NO_OPTIONS, f"{len(options)} option(s); a question needs at least two")
    seen: dict[str, str] = {}
    for letter, text in options.items():
        if letter not in LETTERS or not text.strip():
            raise BadRecord(Reason.MALFORMED, f"option {letter!r} is {text!r}")
        if first := seen.get(option_meaning(text)):
            raise BadRecord(Reason.DUPLICATE_OPTION, f"options {first} and {letter} both say {text!r}")
        seen[option_meaning(text)] = letter
    if answer not in options:
        raise BadRecord(Reason.ANSWER_NOT_AMONG_OPTIONS, f"answer {answer!r}, options {', '.join(options)}")
