"""Loads the images of records through a bounded cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from PIL import Image

from medr1.data.image_size import ImageSize
from medr1.domain.records import BadRecord, ImageSource, Record

ImageLoader = Callable[[Record], tuple[Image.Image, ...]]

_CACHE_BYTES = 256 * 2**20


def cached_image_loader(size: ImageSize) -> ImageLoader:
    """Returns a function that loads the images of a record in their size for the model.

    The most recently used images are cached, up to 256 MiB. The function raises BadRecord for an image that cannot be
    read or resized.
    """
    width, height = size.largest

    @lru_cache(maxsize=max(16, _CACHE_BYTES // (3 * width * height)))
    def load(image: ImageSource) -> Image.Image:
        return size.apply(image.load(size.drawn_side))

    def load_all(record: Record) -> tuple[Image.Image, ...]:
        images = []
        for image in record.images:
            try:
                images.append(load(image))
            except BadRecord as bad:
                raise BadRecord(bad.reason, f"image {image.key}: {bad.detail}", record.origin, record.id) from bad
        return tuple(images)

    return load_all
