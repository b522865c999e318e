"""Decoded pictures: each is made once and kept, within a bound of memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from PIL import Image

from medr1.domain.records import ImageSource, Record

ImageLoader = Callable[[Record], Image.Image]

_BYTES = 256 * 2**20


def cached_image_loader(size: int) -> ImageLoader:
    """Loads the picture of a record at ``size`` x ``size`` pixels; the latest 256 MiB of them are kept."""

    @lru_cache(maxsize=max(16, _BYTES // (3 * size * size)))
    def load(image: ImageSource) -> Image.Image:
        return image.load(size)

    return lambda record: load(record.image)
