"""Distorted images of a batch: the prompts stay, and the images do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medr1.data.distortions import add_gaussian_noise, blacken_patches
from medr1.data.images import FileImage
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Modality, QuestionType, Record
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.training.batches import Distortion, RecordBatches

IMAGE = Image.fromarray(np.random.default_rng(0).integers(1, 256, (56, 56, 3), dtype=np.uint8))
RECORDS = [
    Record(
        id=str(i),
        images=(FileImage(Path(), "not_read.png"),),
        modality=Modality.CT,
        question_type=QuestionType.ANATOMY,
        question="Which organ?" * (i + 1),
        options={"A": "lung", "B": "liver"},
        answer="B",
    )
    for i in range(4)
]


def patches(image: Image.Image, step: int, rng: np.random.Generator) -> Image.Image:
    return blacken_patches(image, rng, 14, 0.6)


def noise(image: Image.Image, step: int, rng: np.random.Generator) -> Image.Image:
    return add_gaussian_noise(image, rng, 500)


@pytest.mark.parametrize("distort", [patches, noise])
def test_distorted_images_belong_to_prompt_step_and_attempt(
    distort: Distortion, tiny: Callable[[str], tuple[Policy, Processor]]
) -> None:
    _, processor = tiny("qwen2_vl")
    make = partial(RecordBatches, RECORDS, processor, ReasoningMode.NO_THINK, lambda record: (IMAGE,), 4, 7)
    assert make().rollout(0, 0, 1).distorted is None
    batches = make(distort=distort)
    whole = batches.rollout(0, 0, 1)
    distorted = whole.distorted
    assert distorted is not None and distorted.pixel_values is not None and whole.prompts.pixel_values is not None
    assert torch.equal(distorted.ids, whole.prompts.ids) and torch.equal(distorted.positions, whole.prompts.positions)
    images = distorted.pixel_values.chunk(4)  # each prompt has its own, though all show one image
    assert len(whole.prompts.pixel_values) * 4 == len(distorted.pixel_values)
    assert len({image.numpy().tobytes() for image in images}) == 4
    parts = [batches.rollout(0, rank, 2).distorted for rank in range(2)]
    assert all(part is not None and part.pixel_values is not None for part in parts)
    assert torch.equal(torch.cat([part.pixel_values for part in parts]), distorted.pixel_values)
    assert whole.resample is not None
    others = [batches.rollout(1, 0, 1), whole.resample(1, [0, 1, 2, 3])]
    for other in others:
        assert other.distorted is not None and other.distorted.pixel_values is not None
        assert not torch.equal(other.distorted.pixel_values, distorted.pixel_values)
