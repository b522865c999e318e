"""The record: one multiple-choice question on one medical image, validated and typed.

Every reader (phantoms, OmniMedVQA) yields these; everything downstream (prompts, rewards, predictions, matrices)
takes only these.
"""

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
    """The eight imaging modalities; the values are the names of the config group's options."""

    CT = "ct"
    MRI = "mri"
    XRAY = "xray"
    US = "us"
    DER = "der"
    FP = "fp"
    OCT = "oct"
    MICRO = "micro"


class QuestionType(StrEnum):
    """The five question types of OmniMedVQA; the values are the names of the config group's options."""

    ANATOMY = "anatomy"
    DISEASE = "disease"
    LESION = "lesion"
    MODALITY = "modality"
    ATTRIBUTES = "attributes"


class ImageSource(Protocol):
    """Where a picture comes from. Decoding is lazy: nothing is read before ``load``. Hashable, so it can be kept."""

    def __hash__(self) -> int: ...

    @property
    def key(self) -> str:
        """Identity of the picture: two records with one key show the same picture."""

    def load(self, size: int) -> Image.Image:
        """The picture as RGB, ``size`` x ``size`` pixels."""


@dataclass(frozen=True, slots=True)
class Record:
    """One question on one image.

    ``options`` keeps the order in which the options are shown; its keys are letters, which real data does not always
    give in alphabetical order. ``rationale`` is empty where the data has none. ``origin`` names file and position.
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
        return self.options[self.answer]

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among the options."""
        return 1.0 / len(self.options)


class Reason(StrEnum):
    """Why a record cannot be used."""

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
    """One record that cannot be used: file, record, reason and the value at fault."""

    def __init__(self, file: str, record: str, reason: Reason, detail: str) -> None:
        self.file, self.record, self.reason, self.detail = file, record, reason, detail
        super().__init__(f"{file}, record {record}: {reason.value}: {detail}")


@cache
def option_meaning(text: str) -> str:
    """What an option says: case and a closing full stop do not make two answers different, only one of them a cue."""
    return text.strip().rstrip(".").strip().casefold()


def check_choices(file: str, record: str, question: str, options: Mapping[str, str], answer: str) -> None:
    """Checks what every record must have, wherever it comes from.

    Raises:
        BadRecord: no question, fewer than two options, an empty or repeated option, an answer that is no option.
    """
    if not question.strip():
        raise BadRecord(file, record, Reason.MALFORMED, "the question is empty")
    if len(options) < 2:
        raise BadRecord(file, record, Reason.NO_OPTIONS, f"{len(options)} option(s); a question needs at least two")
    seen: dict[str, str] = {}
    for letter, text in options.items():
        if letter not in LETTERS or not text.strip():
            raise BadRecord(file, record, Reason.MALFORMED, f"option {letter!r} is {text!r}")
        normal = option_meaning(text)
        if normal in seen:
            raise BadRecord(
                file, record, Reason.DUPLICATE_OPTION, f"options {seen[normal]} and {letter} both say {text!r}"
            )
        seen[normal] = letter
    if answer not in options:
        raise BadRecord(
            file, record, Reason.ANSWER_NOT_AMONG_OPTIONS, f"answer {answer!r}, options {', '.join(options)}"
        )
