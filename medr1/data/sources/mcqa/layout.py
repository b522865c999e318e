"""What a layout makes of a row: a question, a record that is left out, or a bad record."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from medr1.data.images import DecodedImage, decode_content
from medr1.data.sources.mcqa.choices import text_or_none
from medr1.data.tables import EMBEDDED, Row, Table
from medr1.data.value_text import parse_value
from medr1.domain.records import BadRecord, Reason

# How base64 of PNG, JPEG, GIF, WebP, TIFF and BMP begins.
_BASE64 = re.compile(r"(?:data:image/[\w.+-]+;base64,|iVBORw0KGgo|/9j/|R0lGOD|UklGR|SUkqA|TU0AK|Qk[0-9A-Za-z+/]{3}AA)")
_BASE64_TEXT = re.compile(r"[A-Za-z0-9+/=\s]+")
_LONGEST_PATH = 4096


class LeftOutReason(StrEnum):
    """Why a record without a fault is left out."""

    OPEN_QUESTION = "open_question"
    CHOICES_NOT_NAMED = "choices_not_named"
    OTHER_LANGUAGE = "other_language"
    OTHER_PART = "other_part"


class LeftOut(Exception):
    """A record that is no multiple-choice question of this data set. It is counted, and it is no bad record."""

    def __init__(self, reason: LeftOutReason) -> None:
        self.reason = reason
        super().__init__(reason.value)


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """An image whose bytes or base64 stand in a table. Read and decoded when it is loaded. A ``StoredImage``.

    ``item``: its position, if the column has a list of images.
    """

    table: Table = field(repr=False)
    position: int = field(repr=False)
    column: str = field(repr=False)
    item: int | None = field(repr=False)
    path: str
    content_id: str = ""
    max_pixels: int = 0
    sha256: str = ""

    @property
    def key(self) -> str:
        """The content id, or the path if the content was not compared."""
        return self.content_id or self.path

    def load(self, side: int) -> Image.Image:
        """The image in RGB and its own size; ``side`` is not needed. Raises BadRecord, see ``images.decode``."""
        return self.decoded().image

    def state(self) -> tuple[int, int]:
        """Size and modification time of the table's file."""
        return self.table.state()

    def content(self) -> bytes:
        """The bytes of the image file. Raises BadRecord for a text that is no base64."""
        value = self.table.value(self.position, self.column)
        if self.item is not None:
            value = value[self.item]
        if isinstance(value, Mapping):
            value = value["bytes"]
        if isinstance(value, str):
            try:
                text = value.partition(",")[2] if value.startswith("data:") else value
                return base64.b64decode("".join(text.split()), validate=True)
            except binascii.Error as error:
                raise BadRecord(Reason.UNDECODABLE_IMAGE, f"image {self.path!r} is no base64: {error}") from error
        return bytes(value)

    def decoded(self) -> DecodedImage:
        """The image in its own size. Raises BadRecord, see ``images.decode``."""
        return decode_content(self.content(), self.path, self.max_pixels)

    def with_content_id(self, content_id: str, sha256: str) -> EmbeddedImage:
        """This image with the id of its content and the hash of its bytes."""
        return dataclasses.replace(self, content_id=content_id, sha256=sha256)


ImageValue = str | EmbeddedImage  # the path of a file, or an image in the table itself


@dataclass(frozen=True, slots=True)
class RawQuestion:
    """A question as its row has it: options by letter, images as paths or places in the table. "" and None: absent.

    An absent image before another one keeps its place, so that ``<image 2>`` stays the second.
    """

    question: str
    options: Mapping[str, str]
    answer: str
    images: Sequence[ImageValue | None]
    id: str = ""
    modality: str | None = None
    question_type: str | None = None
    dataset: str = ""
    rationale: str = ""
    part: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of one row, with the errors that a layout needs."""

    table: Table
    row: Row
    max_pixels: int

    def value(self, column: str) -> Any:
        """The value in a column; None if the row does not have it."""
        return self.row.values.get(column)

    def text_or_none(self, column: str | None) -> str | None:
        """A text or number as text, without blanks around it; None if it is absent. Raises BadRecord for others."""
        return None if column is None else text_or_none(self.value(column), f"column {column!r}")

    def text(self, column: str) -> str:
        """A text that must be there. Raises BadRecord."""
        text = self.text_or_none(column)
        if text is None:
            raise BadRecord(Reason.MALFORMED, f"column {column!r} is empty")
        return text

    def images(self, *columns: str, folder: str = "") -> list[ImageValue | None]:
        """The images in these columns, in order. Each column has one, a list, or none.

        An image is a path (below ``folder``), bytes, base64, or a mapping with ``bytes`` or else ``path``. A list may
        be a text, as in CSV files. None: absent, before another image.

        Raises:
            BadRecord: a value that is none of these.
        """
        found: list[ImageValue | None] = []
        for column in columns:
            value = self.value(column)
            if isinstance(value, str) and (paths := self._listed(value, column)) is not None:
                found += [None if path is None else below(folder, path) for path in paths]
            elif isinstance(value, list):
                found += [self._image(item, column, i, folder) for i, item in enumerate(value)]
            else:
                found.append(self._image(value, column, None, folder))
        while found and found[-1] is None:
            found.pop()
        return found

    def _listed(self, text: str, column: str) -> list[str | None] | None:
        """The paths of a list that is written as a text. None: another text, such as the path ``[CT]0.png``."""
        if not text.lstrip().startswith("["):
            return None
        try:
            value = parse_value(text)
        except ValueError:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str | None) for item in value):
            raise BadRecord(Reason.MALFORMED, f"column {column!r} is {text!r:.80}, no list of paths")
        return value

    def _image(self, value: Any, column: str, item: int | None, folder: str) -> ImageValue | None:
        if isinstance(value, Mapping):
            content, value = value.get("bytes"), value.get("path")
            if content is EMBEDDED or isinstance(content, str):
                value = EMBEDDED
        if value is not EMBEDDED and not (isinstance(value, str) and _is_base64(value)):
            text = text_or_none(value, f"column {column!r}")
            return None if text is None else below(folder, text)
        path = f"{self.table.name}#{self.row.number}.{column}" + ("" if item is None else f"[{item}]")
        return EmbeddedImage(self.table, self.row.position, column, item, path, max_pixels=self.max_pixels)


def _is_base64(text: str) -> bool:
    text = text.lstrip()
    begins = _BASE64.match(text)
    if begins and begins[0].startswith("data:"):
        return True
    return bool(begins or len(text) > _LONGEST_PATH) and _BASE64_TEXT.fullmatch(text) is not None


def below(folder: str, path: str) -> str:
    """The path below a folder."""
    # Not joined if absolute: that would lose the folder, and such paths are refused by name.
    return f"{folder}/{path}" if folder and not PurePosixPath(path).is_absolute() else path
