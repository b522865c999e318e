"""Image ablations: the model is evaluated with blank images or with another record's images. Loads no torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import StrEnum

from PIL import Image

from medr1.data.image_loader import ImageLoader
from medr1.domain.records import Record

MID_GREY = (128, 128, 128)


class ImageAblation(StrEnum):
    """The images that the model sees: the record's own, blank ones, or those of another record."""

    NONE = "none"
    BLANK = "blank"
    SHUFFLED = "shuffled"


def ablated_loader(records: Sequence[Record], ablation: ImageAblation, load: ImageLoader) -> ImageLoader:
    """A loader that returns the ablated images of each of the ``records``."""
    if ablation is ImageAblation.SHUFFLED:
        donors = {record.id: donor for record, donor in zip(records, shuffled_images(records), strict=True)}
        return lambda record: load(donors[record.id])
    if ablation is ImageAblation.BLANK:
        return lambda record: tuple(Image.new("RGB", image.size, MID_GREY) for image in load(record))
    return load


def shuffled_images(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """For each record, a record with as many, but other, images, of the same modality if possible.

    The images of a modality and a number are permuted in one random cycle, so that their distribution stays the same.
    The only images of a modality and a number are exchanged for those of another modality. A record keeps its own
    images if no other record has as many.
    """
    groups: dict[tuple[str, int], dict[str, Record]] = {}  # in each group, a record for each choice of images
    for record in records:
        groups.setdefault(_group(record), {}).setdefault(record.image_key, record)
    donors: dict[tuple[tuple[str, int], str], Record] = {}
    for group, of_images in groups.items():
        order, (modality, images) = sorted(of_images), group
        random.Random(f"{seed} {modality}" if images == 1 else f"{seed} {modality} {images}").shuffle(order)
        for key, donor in zip(order, order[1:] + order[:1], strict=True):
            donors[group, key] = of_images[donor]
    candidates: dict[int, list[Record]] = {}  # by the number of images
    for (_, images), of_images in sorted(groups.items()):
        candidates.setdefault(images, []).extend(of_images[key] for key in sorted(of_images))
    for (modality, images), of_images in groups.items():
        if len(of_images) == 1:
            (own,) = of_images
            if others := [record for record in candidates[images] if record.image_key != own]:
                donors[(modality, images), own] = random.Random(f"{seed} {modality} {images}").choice(others)
    return [donors[_group(record), record.image_key] for record in records]


def _group(record: Record) -> tuple[str, int]:
    return record.modality, len(record.images)
