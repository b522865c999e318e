"""The size of images: that of the families' own processors, and how records are loaded in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from medr1.config.enums import Resize
from medr1.data.image_loader import cached_image_loader
from medr1.data.image_size import MAX_ASPECT_RATIO, ImageSize
from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.records import BadRecord, Reason

RECORD = make_records(World.TEST, 0, 1)[0]
SQUARE = ImageSize(Resize.square, 84, 3136, 200704, 28)
NATIVE = replace(SQUARE, resize=Resize.native)
# A pixel, a needle, a strip, half sizes that round to even, the limits of the range, scans.
SIZES = [(1, 1), (1, 200), (200, 1), (3, 599), (14, 14), (42, 70), (56, 56), (448, 448), (449, 448), (27, 29), (700, 4)]
SIZES += [(512, 512), (640, 480), (1024, 768), (2000, 10), (10, 2000), (3000, 2400), (299, 301), (28, 5600)]
RANGES = [(3136, 200704), (784, 7056), (1, 10**8), (200704, 200704), (784, 784), (65536, 16777216)]


@dataclass(frozen=True)
class Noise:
    """Noise of a given size; ``loads`` counts how often it is drawn."""

    key: str
    size: tuple[int, int]
    count: Callable[[str], None] = lambda key: None

    def load(self, side: int) -> Image.Image:
        self.count(self.key)
        pixels = np.random.default_rng(len(self.key)).integers(0, 256, (self.size[1], self.size[0], 3), dtype=np.uint8)
        return Image.fromarray(pixels)


@pytest.mark.parametrize(("least", "most"), RANGES)
@pytest.mark.parametrize("token", [28, 32])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_native_is_smart_resize(width: int, height: int, token: int, least: int, most: int) -> None:
    size = ImageSize(Resize.native, 84, least, most, token)
    assert size.of(width, height)[::-1] == smart_resize(height, width, token, least, most)


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([28, 32]), st.sampled_from(RANGES))
def test_native_is_smart_resize_for_any_size(width: int, height: int, token: int, limits: tuple[int, int]) -> None:
    size = ImageSize(Resize.native, 84, *limits, token)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        with pytest.raises(ValueError):
            smart_resize(height, width, token, *limits)
        with pytest.raises(BadRecord) as caught:
            size.of(width, height)
        assert caught.value.reason is Reason.ASPECT_RATIO
        return
    found = size.of(width, height)
    assert found[::-1] == smart_resize(height, width, token, *limits)
    assert found[0] * found[1] <= size.largest[0] * size.largest[1], "the memory plan relies on it"


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize(("width", "height"), [size for size in SIZES if max(size) < 2500])
def test_pixels_are_those_of_transformers_own_resizing(width: int, height: int, patch: int) -> None:
    processor = Qwen2VLImageProcessorPil(patch_size=patch)
    image = Noise(f"{width}", (width, height)).load(0)
    limits = {"shortest_edge": NATIVE.min_pixels, "longest_edge": NATIVE.max_pixels}
    theirs = processor(images=[image], size=limits, return_tensors="np")
    resized = replace(NATIVE, image_token_size=2 * patch).apply(image)
    ours = processor(images=[resized], do_resize=False, return_tensors="np")
    assert np.array_equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert np.array_equal(ours["pixel_values"], theirs["pixel_values"])
    # A server's own processor, with limits that include ours, leaves it as it is.
    again = processor(images=[resized], size={"shortest_edge": 1, "longest_edge": 10**9}, return_tensors="np")
    assert np.array_equal(again["pixel_values"], theirs["pixel_values"])


def test_square_ignores_the_aspect_ratio_and_phantoms_are_drawn_in_it() -> None:
    assert SQUARE.of(1, 5000) == SQUARE.largest == (84, 84)
    (image,) = cached_image_loader(SQUARE)(RECORD)
    assert np.array_equal(np.asarray(image), np.asarray(RECORD.images[0].load(84)))


def test_phantoms_are_drawn_as_large_as_native_allows() -> None:
    (image,) = cached_image_loader(replace(NATIVE, max_pixels=84 * 84))(RECORD)
    assert np.array_equal(np.asarray(image), np.asarray(RECORD.images[0].load(84)))
    assert cached_image_loader(NATIVE)(RECORD)[0].size == (448, 448)


def test_all_images_of_a_record_are_loaded_in_order_and_once() -> None:
    loaded: list[str] = []
    images = tuple(Noise(f"{i}", size, loaded.append) for i, size in enumerate([(60, 30), (200, 100), (30, 60)]))
    load = cached_image_loader(replace(NATIVE, min_pixels=784))
    record = replace(RECORD, images=images)
    assert [image.size for image in load(record)] == [(56, 28), (196, 112), (28, 56)]
    assert load(record)[1] is load(replace(record, images=images[1:2]))[0]
    assert loaded == ["0", "1", "2"]


def test_an_image_that_cannot_be_resized_is_named_with_its_record() -> None:
    record = replace(RECORD, images=(RECORD.images[0], Noise("strip.png", (1000, 4))), origin="questions.json #3")
    with pytest.raises(BadRecord, match=r"strip\.png: has 1000 x 4 pixels.*up to 200") as caught:
        cached_image_loader(NATIVE)(record)
    assert (caught.value.file, caught.value.record) == ("questions.json #3", record.id)
    assert len(cached_image_loader(SQUARE)(record)) == 2
