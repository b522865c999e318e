"""Loads the images of records through a bounded cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from PIL import Image

from medr1.domain.records import ImageSource, Record

ImageLoader = Callable[[Record], Image.Image]

_CACHE_BYTES = 256 * 2**20


def cached_image_loader(size: int) -> ImageLoader:
    """Returns a function that loads the image of a record in ``size`` x ``size`` pixels.

    The most recently used images are cached, up to 256 MiB.
    """

    @lru_cache(maxsize=max(16, _CACHE_BYTES // (3 * size * size)))
    def load(image: ImageSource) -> Image.Image:
        return resized(image.load(size), size)

    def load_only(record: Record) -> Image.Image:
        (image,) = record.images
        return load(image)

    return load_only


def resized(image: Image.Image, size: int) -> Image.Image:
    """The image in ``size`` x ``size`` pixels, without keeping its aspect ratio."""
    return image.resize((size, size), Image.Resampling.BICUBIC)
