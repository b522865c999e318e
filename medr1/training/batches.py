"""The batches of GRPO and SFT. Both train on the same records in the same order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from PIL import Image

from medr1.config.settings import TrainConfig
from medr1.data.dataset import Dataset
from medr1.data.image_loader import ImageLoader, cached_image_loader
from medr1.data.image_size import ImageSize
from medr1.domain.reasoning import ReasoningMode, target_text
from medr1.domain.records import Record
from medr1.models.processor import Processor
from medr1.models.tensors import PromptBatch, Targets
from medr1.training.steps import local_share, step_indices

# (image, step, random numbers) -> an image of the same size
Distortion = Callable[[Image.Image, int, np.random.Generator], Image.Image]


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """The prompts of one step in one process.

    ``prompt_indices``: the position of each prompt in the global batch. ``resample(attempt, prompt_indices)``: a batch
    of randomly drawn training records for these positions. ``distorted``: the same prompts with distorted images, for
    an algorithm that needs them.
    """

    step: int
    prompt_indices: list[int]
    records: list[Record]
    prompts: PromptBatch
    resample: Callable[[int, list[int]], RolloutBatch] | None = None
    distorted: PromptBatch | None = None

    def to(self, device: torch.device) -> Self:
        distorted = None if self.distorted is None else self.distorted.to(device)
        return replace(self, prompts=self.prompts.to(device), distorted=distorted)


@dataclass(frozen=True, slots=True)
class SupervisedBatch:
    """The prompts of one step in one process, and their target completions."""

    step: int
    prompts: PromptBatch
    targets: Targets

    def to(self, device: torch.device) -> Self:
        return replace(self, prompts=self.prompts.to(device), targets=self.targets.to(device))


@dataclass(frozen=True, slots=True)
class RecordBatches:
    """Makes the batches of a step from training records. Each process makes its own part.

    ``rationale``: SFT targets include the rationale of records that have one. ``distort``: makes the images of
    ``RolloutBatch.distorted``. ``pass_rates`` of the records: each epoch goes from easy to hard, see ``step_indices``.
    """

    records: Sequence[Record]
    processor: Processor
    mode: ReasoningMode
    load: ImageLoader
    train_batch_size: int
    seed: int
    rationale: bool = False
    distort: Distortion | None = None
    pass_rates: Sequence[float] = ()

    @classmethod
    def from_config(
        cls,
        cfg: TrainConfig,
        data: Dataset,
        processor: Processor,
        *,
        rationale: bool = False,
        distort: Distortion | None = None,
    ) -> RecordBatches:
        mode, load = ReasoningMode(cfg.reasoning.mode), cached_image_loader(ImageSize.from_config(cfg.data, cfg.model))
        size, rates = cfg.trainer.train_batch_size, data.pass_rates
        return cls(data.train, processor, mode, load, size, cfg.seed, rationale, distort, rates)

    def rollout(self, step: int, rank: int, world_size: int) -> RolloutBatch:
        """The batch of GRPO."""
        records, prompt_indices = self._records(step, rank, world_size)

        def resample(attempt: int, prompt_indices: list[int]) -> RolloutBatch:
            # Each record depends only on seed, step, attempt and position.
            rngs = [np.random.default_rng((self.seed, step, attempt, index, 1)) for index in prompt_indices]
            others = [self.records[int(rng.integers(len(self.records)))] for rng in rngs]
            distorted = self._encode_distorted(others, step, attempt, prompt_indices)
            return RolloutBatch(step, prompt_indices, others, self._encode(others), distorted=distorted)

        distorted = self._encode_distorted(records, step, 0, prompt_indices)
        return RolloutBatch(step, prompt_indices, records, self._encode(records), resample, distorted)

    def supervised(self, step: int, rank: int, world_size: int) -> SupervisedBatch:
        """The batch of SFT."""
        records, _ = self._records(step, rank, world_size)
        texts = [target_text(self.mode, r.answer, r.rationale if self.rationale else "") for r in records]
        ids, mask = self.processor.completion_ids(texts)
        return SupervisedBatch(step, self._encode(records), Targets(ids, mask, mask.float()))

    def _records(self, step: int, rank: int, world_size: int) -> tuple[list[Record], list[int]]:
        order = step_indices(len(self.records), self.train_batch_size, self.seed, step, self.pass_rates)
        indices, first = local_share(order, rank, world_size)
        return [self.records[i] for i in indices], list(range(first, first + len(indices)))

    def _encode(self, records: Sequence[Record]) -> PromptBatch:
        return self.processor.encode([self.processor.prompt(r, self.mode, self.load(r)) for r in records])

    def _encode_distorted(
        self, records: Sequence[Record], step: int, attempt: int, prompt_indices: Sequence[int]
    ) -> PromptBatch | None:
        """The prompts with distorted images, which depend only on seed, step, attempt and position."""
        if self.distort is None:
            return None
        prompts = []
        for record, index in zip(records, prompt_indices, strict=True):
            rng = np.random.default_rng((self.seed, step, attempt, index, 2))
            images = [self.distort(image, step, rng) for image in self.load(record)]
            prompts.append(self.processor.prompt(record, self.mode, images))
        return self.processor.encode(prompts)
