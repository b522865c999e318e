"""A page with questions, their images and the completions of the model, in one HTML file without references.

MLflow shows it beside the list of artifacts. Its table of completions is too narrow there for a question, a completion
and its rewards.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from PIL import Image

_PREVIEW_PIXELS = 256  # the size of MLflow's own previews


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion. ``facts`` are shown beneath it by name; ``is_correct`` is None where that is not known."""

    label: str
    text: str
    facts: Mapping[str, str] = field(default_factory=dict)
    is_correct: bool | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """A question with its images, its correct answer and the completions for it."""

    record: str
    question: str
    answer: str
    images: Sequence[Image.Image]
    completions: Sequence[Answer]


def gallery(title: str, note: str, cards: Sequence[Card]) -> str:
    """The page as HTML. ``note``: what the page shows, in a sentence."""
    environment = Environment(
        loader=PackageLoader("medr1.tracking", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["address"] = _address
    return environment.get_template("gallery.html").render(title=title, note=note, cards=cards)


def preview(image: Image.Image) -> Image.Image:
    """A copy of the image, at most 256 pixels wide and high."""
    small = image.convert("RGB")
    small.thumbnail((_PREVIEW_PIXELS, _PREVIEW_PIXELS))
    return small


def _address(image: Image.Image) -> str:
    """The preview of the image as an address that holds it."""
    file = io.BytesIO()
    preview(image).save(file, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
