"""Image ablations: the model is evaluated with a blank image or with another record's image. Loads no torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import StrEnum

from PIL import Image

from medr1.data.image_loader import ImageLoader
from medr1.domain.records import Record

MID_GREY = (128, 128, 128)


class ImageAblation(StrEnum):
    """The image that the model sees: the record's own, a blank one, or that of another record."""

    NONE = "none"
    BLANK = "blank"
    SHUFFLED = "shuffled"


def ablated_loader(records: Sequence[Record], ablation: ImageAblation, load: ImageLoader) -> ImageLoader:
    """A loader that returns the ablated image of each of the ``records``."""
    if ablation is ImageAblation.SHUFFLED:
        donors = {record.id: donor for record, donor in zip(records, shuffled_images(records), strict=True)}
        return lambda record: load(donors[record.id])
    if ablation is ImageAblation.BLANK:
        return lambda record: Image.new("RGB", load(record).size, MID_GREY)
    return load


def shuffled_images(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """For each record, a record with another image of the same modality.

    The images of a modality are permuted in one random cycle, so that their distribution stays the same. The only
    image of a modality keeps its place.
    """
    by_modality: dict[str, dict[str, Record]] = {}  # a record for each image
    for record in records:
        by_modality.setdefault(record.modality, {}).setdefault(record.image_key, record)
    donors: dict[tuple[str, str], Record] = {}
    for modality, of_image in by_modality.items():
        order = sorted(of_image)
        random.Random(f"{seed} {modality}").shuffle(order)
        for key, donor in zip(order, order[1:] + order[:1], strict=True):
            donors[modality, key] = of_image[donor]
    return [donors[record.modality, record.image_key] for record in records]
