"""A tiny policy with random weights of each model family, in the transformers classes."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence

# Before a library is loaded that has threads: with two workers they would wait for each other's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from medr1.models.loading import FAMILIES
from medr1.models.policy import Policy
from medr1.models.processor import Processor, Prompt
from medr1.models.tiny import SPECIAL, build_image_processor, build_tokenizer

# Without deadlines, which depend on the load of the machine.
settings.register_profile("medr1", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("medr1")

WORDS = ["Which organ does the image show?", "lung liver heart knee", "A) B) C) D)", "user assistant"]
HIDDEN = 48

Build = Callable[..., tuple[Policy, Processor]]
MakePrompts = Callable[..., list[Prompt]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first (sweeps, then other whole runs), so that no core waits for them at the end."""
    items.sort(key=lambda item: ("integration/test_sweep" not in item.nodeid, "integration/" not in item.nodeid))


@pytest.fixture(scope="session", autouse=True)
def quick_process() -> None:
    """One thread, and fewer garbage collections: they take a quarter of the time that composing a config takes."""
    torch.set_num_threads(1)
    gc.freeze()  # the libraries
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(WORDS * 4, 320)


@pytest.fixture(scope="session")
def build(tokenizer: PreTrainedTokenizerFast) -> Build:
    """(family, seed) -> a new policy, which a test may change."""

    def make(family: str, seed: int = 0) -> tuple[Policy, Processor]:
        ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL}
        text = {
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
            "bos_token_id": ids["<|im_start|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        }
        special = {
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
        }
        image_processor = build_image_processor()
        if family == "qwen2_vl":  # tied, as the 2B checkpoint of the paper is
            vision = {"depth": 2, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2}
            model = Qwen2VLForConditionalGeneration(
                Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **special)
            )
        elif family == "qwen2_5_vl":
            vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
            vision |= {"out_hidden_size": HIDDEN, "window_size": 56, "fullatt_block_indexes": [1]}
            model = Qwen2_5_VLForConditionalGeneration(
                Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **special)
            )
        else:  # as in its checkpoints: head_dim is not hidden_size / heads, and not all layers add DeepStack features
            rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
            rope |= {"mrope_interleaved": True}
            text |= {"num_hidden_layers": 3, "head_dim": 16, "rope_parameters": rope}
            vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": HIDDEN}
            vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
            model = Qwen3VLForConditionalGeneration(
                Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **special)
            )
            half = [0.5, 0.5, 0.5]
            image_processor = Qwen2VLImageProcessorPil(patch_size=16, image_mean=half, image_std=half)
        randomize(model, seed)
        return Policy(model), Processor(tokenizer, image_processor, model.model.get_rope_index)

    return make


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int) -> None:
    """Large weights, so that images, positions and single tokens change the logits clearly."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(0.25 * noise)
        else:  # norms and biases
            parameter.add_(0.1 * noise)


@pytest.fixture(scope="session")
def tiny(build: Build) -> Callable[[str], tuple[Policy, Processor]]:
    """family -> one policy for all tests, which must not change it."""
    made = {family: build(family) for family in FAMILIES}
    return made.__getitem__


@pytest.fixture(scope="session")
def make_prompts() -> MakePrompts:
    """(processor, sizes) -> one prompt for each image size (width, height) in image tokens.

    Without image for None, with several images for a list.
    """

    def make(
        processor: Processor, sizes: Sequence[tuple[int, int] | list[tuple[int, int]] | None], seed: int = 0
    ) -> list[Prompt]:
        rng = np.random.default_rng(seed)
        prompts = []
        for i, size in enumerate(sizes):
            text = "lung knee " * int(rng.integers(1, 6)) + f"number {i}?"
            images, side = [], processor.image_token_size
            for width, height in size if isinstance(size, list) else [size] if size else []:
                pixel_values = rng.integers(0, 256, (height * side, width * side, 3), dtype=np.uint8)
                images.append(Image.fromarray(pixel_values))
            prompts.append(processor.user_prompt(text, images))
        return prompts

    return make
