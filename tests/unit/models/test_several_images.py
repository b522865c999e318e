"""Prompts with several images: tokens, patches, grids and positions of transformers' own processors, to the bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLProcessor, Qwen2VLProcessor, Qwen3VLProcessor

from medr1.config.enums import Resize
from medr1.data.image_size import ImageSize
from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.reasoning import ReasoningMode, content_parts, missing_placeholder, question_text
from medr1.errors import DataError
from medr1.models.processor import IMAGE_TOKEN, Processor, Prompt
from tests.conftest import FAMILIES

RECORD = make_records(World.TEST, 0, 1)[0]
THEIRS = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}
LIMITS = {"shortest_edge": 3136, "longest_edge": 30000}
SIZES = [(90, 60), (31, 200), (500, 300), (64, 64)]


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def their_processor(family: str, processor: Processor) -> Any:
    """The processor of transformers without videos, which need torchvision."""

    class WithoutVideos(THEIRS[family]):  # type: ignore[misc]
        def check_argument_for_proper_class(self, name: str, argument: Any) -> None:
            pass

    WithoutVideos.__name__ = THEIRS[family].__name__
    tokenizer = processor.tokenizer
    parts = {"image_processor": processor.image_processor, "tokenizer": tokenizer, "video_processor": None}
    return WithoutVideos(**parts, chat_template=tokenizer.chat_template)


def fitted(processor: Processor, images: list[Image.Image]) -> list[Image.Image]:
    limits = LIMITS["shortest_edge"], LIMITS["longest_edge"]
    size = ImageSize(Resize.native, 0, *limits, processor.image_token_size)
    return [size.apply(image) for image in images]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_prompt_with_images_is_that_of_transformers(family: str, count: int, tiny) -> None:
    policy, processor = tiny(family)
    images = [noise(*size) for size in SIZES[:count]]
    text = question_text(RECORD.question, RECORD.options, ReasoningMode.NO_THINK)
    theirs = their_processor(family, processor)
    turn = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    chat = theirs.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)
    expected = theirs(text=[chat], images=images, size=LIMITS, add_special_tokens=False, return_tensors="pt")
    batch = processor.encode([processor.prompt(RECORD, ReasoningMode.NO_THINK, fitted(processor, images))])
    assert torch.equal(batch.ids, expected["input_ids"])
    assert torch.equal(batch.pixel_values, expected["pixel_values"])
    assert torch.equal(batch.image_grid_thw, expected["image_grid_thw"])
    assert len({tuple(grid) for grid in batch.image_grid_thw.tolist()}) == count, "the images have different sizes"
    types = expected["mm_token_type_ids"].int()
    grids = expected["image_grid_thw"]
    positions, _ = policy.core.model.get_rope_index(expected["input_ids"], types, image_grid_thw=grids)
    assert torch.equal(batch.positions, positions)


@pytest.mark.parametrize(
    ("text", "images", "expected"),
    [
        ("What?", 0, ["What?"]),
        ("What?", 1, [0, "What?"]),
        ("What?", 3, [0, 1, 2, "What?"]),
        ("In <image 1>?", 1, ["In ", 0, "?"]),
        ("<image 2> or <image 1>?", 2, [1, " or ", 0, "?"]),
        ("Like <image 2>?", 3, [0, 2, "Like ", 1, "?"]),
        ("<image 1> and <image 1>", 1, [0, " and <image 1>"]),
        ("<image 3>, <image 0>", 2, [0, 1, "<image 3>, <image 0>"]),
        ("<image>", 1, [0, "<image>"]),
    ],
)
def test_images_stand_at_their_placeholders_or_before_the_text(text: str, images: int, expected: list[Any]) -> None:
    assert content_parts(text, images) == expected


def test_a_placeholder_without_image_is_found() -> None:
    assert missing_placeholder(["<image 1>", "or <image 3>"], 2) == "<image 3>"
    assert missing_placeholder(["<image 0>"], 2) == "<image 0>"
    assert missing_placeholder(["<image 1> <image 2>", "<image>"], 2) is None


def test_images_are_encoded_in_the_order_of_their_placeholders(tiny) -> None:
    _, processor = tiny("qwen2_5_vl")
    first, second, third = fitted(processor, [noise(*size) for size in SIZES[:3]])
    options = {"A": "as in <image 3>", "B": "neither"}
    record = replace(RECORD, question="Is <image 2> healthy?", options=options)
    prompt = processor.prompt(record, ReasoningMode.NO_THINK, [first, second, third])
    assert [id(image) for image in prompt.images] == [id(first), id(second), id(third)]
    image = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"
    assert f"{image}Is {image} healthy?\nA) as in {image}\nB) neither" in prompt.text
    swapped = replace(record, question="<image 3> or <image 2>?", options={"A": "x", "B": "y"})
    swapped_prompt = processor.prompt(swapped, ReasoningMode.NO_THINK, [first, second, third])
    assert [id(image) for image in swapped_prompt.images] == [id(first), id(third), id(second)]
    grids = processor.encode([swapped_prompt]).image_grid_thw
    side = processor.image_processor.patch_size
    sizes = [(image.height // side, image.width // side) for image in (first, third, second)]
    assert [tuple(grid[1:]) for grid in grids.tolist()] == sizes


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_as_many_image_tokens_as_images(tokens: int, tiny) -> None:
    _, processor = tiny("qwen2_vl")
    images = tuple(fitted(processor, [noise(*size) for size in SIZES[:2]]))
    with pytest.raises(DataError, match=rf"2 image\(s\) has {tokens} times"):
        processor.encode([Prompt(f"What? {IMAGE_TOKEN * tokens}", images)])
