"""Training and evaluation on questions about two images of different sizes, in their own aspect ratio."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import MISSING
from PIL import Image
from safetensors.torch import load_file

from medr1.config.settings import DataConfig
from medr1.data.dataset import Dataset, Selection
from medr1.data.images import FileImage
from medr1.data.sources import SOURCES
from medr1.data.sources.phantoms.records import World, make_records
from medr1.data.sources.source import Source
from medr1.domain.records import Record
from medr1.evaluation.predictions import read_predictions
from medr1.models.export import save_policy
from medr1.rewards import REWARDS, RewardFunction
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.forecast import forecast_memory
from medr1.workflows.plugin_sources import PLUGINS_VARIABLE
from tests.composing import composed
from tests.integration.conftest import train_here

SETTINGS = ("debug=quick", "data=pairs", "reasoning=no_think", "trainer.max_steps=1", "trainer.accelerator=cpu")
SETTINGS += ("tracking=none", "model=hf", "model.dtype=float32", "model.gradient_checkpointing=false")
SETTINGS += (
    "data.resize=native",
    "data.min_pixels=784",
    "data.max_pixels=7056",
    "model.recipe.max_completion_length=6",
)


@dataclass
class PairsConfig(DataConfig):
    """Pairs of phantoms on disk."""

    kind: str = "pairs"
    root: str = MISSING
    """Folder of the images."""


class Pairs(Source[PairsConfig]):
    """Questions about pairs of images of different sizes; every second one has placeholders."""

    kind = "pairs"
    settings = PairsConfig

    def load(self, settings: PairsConfig, selection: Selection) -> Dataset:
        parts = [
            [self._pair(Path(settings.root), record, number) for number, record in enumerate(make_records(world, 0, 1))]
            for world in (World.TRAIN, World.TEST)
        ]
        return Dataset(*parts, "pairs", {}, [])

    @staticmethod
    def _pair(root: Path, record: Record, number: int) -> Record:
        question = f"<image 2> and <image 1>: {record.question}" if number % 2 else record.question
        images = tuple(FileImage(root, f"{(number + other) % 4}.png") for other in (0, 1))
        return Record(record.id, images, record.modality, record.question_type, question, record.options, record.answer)


@pytest.fixture
def pairs(tmp_path: Path, build, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """The overrides of a tiny Qwen2.5-VL and of the data."""
    folder = tmp_path / "plugins" / "data"
    folder.mkdir(parents=True)
    folder.joinpath("pairs.yaml").write_text(
        "defaults: [pairs_schema]\nname: pairs\nimage_size: ${model.image_size}\nroot: ???\n"
    )
    for i, size in enumerate([(60, 30), (28, 80), (300, 100), (57, 57)]):
        pixels = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    save_policy(*build("qwen2_5_vl"), tmp_path / "base")
    monkeypatch.setenv(PLUGINS_VARIABLE, str(folder.parent))
    SOURCES.register(Pairs())
    yield (*SETTINGS, f"data.root={tmp_path}", f"model.path={tmp_path / 'base'}")
    del SOURCES._components["pairs"]


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    return load_file(run.model / "model.safetensors")


def test_a_step_of_grpo_and_its_evaluation_see_both_images(
    pairs: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vowels(completions, records):  # differs between the completions of a model with random weights
        return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]

    monkeypatch.setitem(REWARDS, "vowels", RewardFunction(vowels, None))
    rewarded = ("+reward.functions.vowels.weight=1", "algorithm.learning_rate=1e-3")
    whole = train_here(tmp_path / "whole", *pairs, *rewarded)
    split = train_here(tmp_path / "split", *pairs, *rewarded, "trainer.max_tokens_per_device=1")
    start, one, other = load_file(tmp_path / "base" / "model.safetensors"), weights(whole), weights(split)
    assert all(torch.isfinite(weight).all() for weight in one.values())
    apart = sum(float((one[k] - other[k]).square().sum()) for k in one) ** 0.5
    moved = sum(float((one[k] - start[k]).square().sum()) for k in one) ** 0.5
    assert moved > 1e-3 and apart <= 1e-3 * moved
    conditions = {name: read_predictions(whole.predictions(name)) for name in ("base", "blank_image", "shuffled_image")}
    assert {tuple(json.loads(line.image)) for line in conditions["base"]} <= {
        tuple(sorted((f"{i}.png", f"{(i + 1) % 4}.png"))) for i in range(4)
    }
    texts = [[line.text for line in lines] for lines in conditions.values()]
    assert texts[0] != texts[1] and texts[0] != texts[2]


def test_the_plan_covers_the_images_of_the_data(pairs: tuple[str, ...]) -> None:
    forecast = forecast_memory(composed("train", *pairs))
    grid = forecast.run.work.lengths.image_grid
    assert forecast.run.work.lengths.images == 2 and "2 images" in forecast.lengths
    assert 14**2 * grid[0] * grid[1] >= 7056
    assert forecast.peak > forecast_memory(composed("train", *pairs, "data.max_pixels=1568")).peak
