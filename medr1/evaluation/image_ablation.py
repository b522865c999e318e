"""What a model is shown in place of the record's picture. Loads no torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import StrEnum

from PIL import Image

from medr1.data.image_loader import ImageLoader
from medr1.domain.records import Record

BLANK = (128, 128, 128)  # mid grey: an image, with nothing in it


class ImageAblation(StrEnum):
    """What the policy is shown in place of the record's picture."""

    NONE = "own"
    BLANK = "blank"
    SHUFFLED = "other"


def ablated_loader(records: Sequence[Record], picture: ImageAblation, load: ImageLoader) -> ImageLoader:
    """What gives the picture that is shown with each of the records."""
    if picture is ImageAblation.SHUFFLED:
        instead = {record.id: other for record, other in zip(records, shuffled_images(records), strict=True)}
        return lambda record: load(instead[record.id])
    if picture is ImageAblation.BLANK:
        return lambda record: Image.new("RGB", load(record).size, BLANK)
    return load


def shuffled_images(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """For each record one whose picture is shown instead: another picture of the same modality.

    The pictures of a modality change places in a circle drawn by ``seed``, so that what the policy can know of the
    pictures as a whole stays as it was. A modality with a single picture keeps it: there is no other.
    """
    first: dict[str, dict[str, Record]] = {}  # by modality: a record for each picture
    for record in records:
        first.setdefault(record.modality, {}).setdefault(record.image.key, record)
    instead: dict[tuple[str, str], Record] = {}
    for modality, pictures in first.items():
        order = sorted(pictures)
        random.Random(f"{seed} {modality}").shuffle(order)
        for key, other in zip(order, order[1:] + order[:1], strict=True):
            instead[modality, key] = pictures[other]
    return [instead[record.modality, record.image.key] for record in records]
