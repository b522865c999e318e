"""The size to which images are resized before a model sees them. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, isqrt, sqrt

from PIL import Image

from medr1.config.enums import Resize
from medr1.config.settings import DataConfig, ModelConfig
from medr1.domain.records import BadRecord, Reason

MAX_ASPECT_RATIO = 200  # of the families' processors


@dataclass(frozen=True, slots=True)
class ImageSize:
    """The settings ``data.resize``, ``image_size``, ``min_pixels``, ``max_pixels`` and the model's image token size."""

    resize: Resize
    image_size: int
    min_pixels: int
    max_pixels: int
    image_token_size: int

    @classmethod
    def from_config(cls, data: DataConfig, model: ModelConfig) -> ImageSize:
        return cls(Resize(data.resize), data.image_size, data.min_pixels, data.max_pixels, model.image_token_size)

    @property
    def drawn_side(self) -> int:
        """Side of the images of sources that draw them."""
        return drawn_side(self.resize, self.image_size, self.max_pixels)

    @property
    def largest(self) -> tuple[int, int]:
        """Width and height of an image with at least as many pixels as any, in whole image tokens."""
        token = self.image_token_size
        if self.resize is Resize.square:
            return self.image_size, self.image_size
        upper, lower = self.max_pixels / token**2, self.min_pixels / token**2  # in image tokens
        # An image that is scaled down has at most ``upper`` tokens, or one token on its short side, which is not scaled
        # below that. One that is scaled up has less than a token more on each side than ``lower`` would give.
        line = sqrt(MAX_ASPECT_RATIO * upper)
        up = (sqrt(lower * MAX_ASPECT_RATIO) + 1) * (sqrt(lower / MAX_ASPECT_RATIO) + 1)
        tokens = floor(max(upper, line, up))
        short = isqrt(tokens)
        return ceil(tokens / short) * token, short * token

    def of(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing.

        ``native`` is ``smart_resize`` of transformers' image processor of the Qwen-VL families: the multiples of the
        image token size nearest to the image's own size, scaled into the range of pixels.

        Raises:
            BadRecord: see ``check_aspect_ratio``.
        """
        if self.resize is Resize.square:
            return self.image_size, self.image_size
        check_aspect_ratio(width, height)
        token = self.image_token_size
        columns, rows = round(width / token), round(height / token)
        if columns * rows * token**2 > self.max_pixels:
            scale = sqrt(height * width / self.max_pixels)
            columns, rows = (max(1, floor(side / scale / token)) for side in (width, height))
        elif columns * rows * token**2 < self.min_pixels:
            scale = sqrt(self.min_pixels / (height * width))
            columns, rows = (ceil(side * scale / token) for side in (width, height))
        return columns * token, rows * token

    def apply(self, image: Image.Image) -> Image.Image:
        """The image in its size for the model, resized as the families' processors do (bicubic).

        Raises:
            BadRecord: see ``of``.
        """
        return image.resize(self.of(image.width, image.height), Image.Resampling.BICUBIC)


def check_aspect_ratio(width: int, height: int) -> None:
    """Checks that an image can keep its aspect ratio.

    Raises:
        BadRecord: an aspect ratio above ``MAX_ASPECT_RATIO``, which the families' processors refuse.
    """
    if max(width, height) / min(width, height) > MAX_ASPECT_RATIO:
        detail = f"has {width} x {height} pixels; data.resize=native takes aspect ratios up to {MAX_ASPECT_RATIO}"
        raise BadRecord(Reason.ASPECT_RATIO, detail)


def drawn_side(resize: Resize, image_size: int, max_pixels: int) -> int:
    """Side in pixels of images that have no size of their own: ``image_size``, or that of the largest square."""
    return image_size if resize is Resize.square else isqrt(max_pixels)
