"""The record: one multiple-choice question about medical images, validated and typed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from PIL import Image

from medr1.domain.texts import CONTROL_TOKEN, UNENCODABLE, is_blank, option_meaning
from medr1.errors import DataError

LETTERS = tuple("ABCDEFGHIJ")
AXES = ("modality", "question_type")  # the fields of a record that split a data set, each with values of the data
_LONGEST_VALUE = 100
UNSPECIFIED = "unspecified"  # the value of an axis that the data does not have


class Modality(StrEnum):
    """The eight imaging modalities of OmniMedVQA and of the phantoms. Other data have values of their own."""

    CT = "ct"
    MRI = "mri"
    XRAY = "xray"
    US = "us"
    DER = "der"
    FP = "fp"
    OCT = "oct"
    MICRO = "micro"


class QuestionType(StrEnum):
    """The five question types of OmniMedVQA and of the phantoms. Other data have values of their own."""

    ANATOMY = "anatomy"
    DISEASE = "disease"
    LESION = "lesion"
    MODALITY = "modality"
    ATTRIBUTES = "attributes"


_PLACES = {str(value): place for place, value in enumerate((*Modality, *QuestionType))}


def axis_problem(value: str) -> str:
    """Why a text cannot be a value of an axis, empty if it can: values are shown in tables and typed in commands."""
    if is_blank(value) or value != value.strip():
        return "a value must not be blank, and must not begin or end with a blank"
    if not value.isprintable() or len(value) > _LONGEST_VALUE:
        return f"a value has at most {_LONGEST_VALUE} characters, all of them printable"
    return ""


def in_order(values: Iterable[str]) -> list[str]:
    """The different values of an axis as tables list them: those of OmniMedVQA in its order, then all others sorted."""
    return sorted(set(values), key=lambda value: (_PLACES.get(value, len(_PLACES)), value.casefold(), value))


class ImageSource(Protocol):
    """An image that is decoded or drawn when ``load`` is called. Hashable, so that loaded images can be cached."""

    def __hash__(self) -> int: ...

    @property
    def key(self) -> str:
        """Identifies the content of the image: records with the same key show the same image."""

    def load(self, side: int) -> Image.Image:
        """The image in RGB and its own size. A source that draws its images draws ``side`` x ``side`` pixels.

        ``medr1.data.image_loader`` resizes it afterwards.
        """


@dataclass(frozen=True, slots=True)
class Record:
    """One question about one or more images, whatever data source it comes from.

    ``images`` are in the order in which the prompt shows them, or in which the question numbers them.
    ``options`` maps letters to texts in the order in which the prompt lists them; in real data the letters are not
    always in alphabetical order. ``rationale`` is empty if the data has none. ``origin`` names the file and the
    position in it, ``dataset`` the data set that the record was collected from, empty if there is only one.
    ``modality`` and ``question_type`` have the values of the data, or are ``UNSPECIFIED``. ``benchmark`` is the set of
    ``data=benchmarks``. ``group``: records of one patient or study share it; "" if the data does not say.
    """

    id: str
    images: tuple[ImageSource, ...]
    modality: str
    question_type: str
    question: str
    options: Mapping[str, str]
    answer: str
    rationale: str = ""
    origin: str = ""
    dataset: str = field(default="", repr=False)  # fingerprints are made of repr
    benchmark: str = field(default=UNSPECIFIED, repr=False)
    group: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not self.images:
            raise BadRecord(Reason.NO_IMAGE, "has no image", self.origin, self.id)

    @property
    def image_key(self) -> str:
        """Identifies the images: records with the same key show the same images. That of the only image is its own."""
        keys = sorted(image.key for image in self.images)
        return keys[0] if len(keys) == 1 else json.dumps(keys)

    @property
    def group_key(self) -> str:
        """Identifies the group among those of all benchmarks and is the key of no image. "" without a group."""
        return json.dumps(["group", self.benchmark, self.group]) if self.group else ""

    @property
    def content_key(self) -> str:
        """The same for records with images of the same keys, the same question and options, whatever their ids."""
        content = [[image.key for image in self.images], self.question, sorted(self.options.values())]
        return hashlib.sha256(json.dumps(content).encode(errors="surrogatepass")).hexdigest()[:16]

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
    AMBIGUOUS_IMAGE = "ambiguous_image"
    UNDECODABLE_IMAGE = "undecodable_image"
    IMAGE_TOO_LARGE = "image_too_large"
    ASPECT_RATIO = "aspect_ratio"
    TOO_MANY_IMAGES = "too_many_images"
    PATH_LEAVES_ROOT = "path_leaves_root"
    NO_OPTIONS = "no_options"
    TOO_MANY_OPTIONS = "too_many_options"
    DUPLICATE_OPTION = "duplicate_option"
    ANSWER_NOT_AMONG_OPTIONS = "answer_not_among_options"
    AMBIGUOUS_ANSWER = "ambiguous_answer"
    CONTROL_TOKEN = "control_token"
    UNENCODABLE_TEXT = "unencodable_text"
    UNKNOWN_MODALITY = "unknown_modality"
    UNKNOWN_QUESTION_TYPE = "unknown_question_type"


class BadRecord(DataError):
    """A record that cannot be used. ``file`` and ``record`` are empty until the reader of the file adds them."""

    def __init__(self, reason: Reason, detail: str, file: str = "", record: str = "") -> None:
        self.reason, self.detail, self.file, self.record = reason, detail, file, record
        place = f"{file}, record {record}: " if file else ""
        super().__init__(f"{place}{reason.value}: {detail}")


def check_text(texts: Iterable[str], control_tokens: Collection[str] = ()) -> None:
    """Checks that a tokenizer takes each text as text.

    A control token in a question would end the user's turn, or ask for a second image. ``control_tokens`` are those of
    the model's tokenizer. Tokens of the form ``<|name|>`` are always refused.

    Raises:
        BadRecord: a control token, a half surrogate pair or a null character.
    """
    for text in texts:
        if found := UNENCODABLE.search(text):
            raise BadRecord(Reason.UNENCODABLE_TEXT, f"the character {found[0]!r} in {text!r}")
        pattern = CONTROL_TOKEN.search(text)
        token = pattern[0] if pattern else next((token for token in control_tokens if token in text), None)
        if token is not None:
            raise BadRecord(Reason.CONTROL_TOKEN, f"the control token {token} of a tokenizer in {text!r}")


def check_choices(question: str, options: Mapping[str, str], answer: str) -> None:
    """Checks that a question has distinct options, that its answer is one of them, and its texts by ``check_text``.

    Raises:
        BadRecord: no question, fewer than two options, an empty or repeated option, an answer that is no option, a text
            that is no text for a tokenizer.
    """
    if is_blank(question):
        raise BadRecord(Reason.MALFORMED, "the question is empty")
    if len(options) < 2:
        raise BadRecord(Reason.NO_OPTIONS, f"{len(options)} option(s); a question needs at least two")
    check_text((question, *options.values()))
    seen: dict[str, str] = {}
    for letter, text in options.items():
        if letter not in LETTERS or is_blank(text):
            raise BadRecord(Reason.MALFORMED, f"option {letter!r} is {text!r}")
        if first := seen.get(option_meaning(text)):
            raise BadRecord(Reason.DUPLICATE_OPTION, f"options {first} and {letter} both say {text!r}")
        seen[option_meaning(text)] = letter
    if answer not in options:
        raise BadRecord(Reason.ANSWER_NOT_AMONG_OPTIONS, f"answer {answer!r}, options {', '.join(options)}")
