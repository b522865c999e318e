"""Makes the batch of a step: for GRPO, for SFT, and for the tiny base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from medr1.data.sources.phantoms.base_mixture import BaseMixture
from medr1.domain.reasoning import ReasoningMode, target_text
from medr1.domain.records import LETTERS, Record
from medr1.models.processor import IMAGE_TOKEN, Processor, Prompt
from medr1.models.tensors import PromptBatch, Targets
from medr1.training.grpo import RolloutBatch
from medr1.training.order import share, step_indices
from medr1.training.sft import SupervisedBatch


@dataclass(frozen=True, slots=True)
class RecordBatches:
    """The records of each step, the same for GRPO and SFT: same prompts, same order, same budget.

    Each process makes its own share. ``rationale``: SFT imitates the data's rationale too, where there is one.
    """

    records: Sequence[Record]
    processor: Processor
    mode: ReasoningMode
    load: Callable[[Record], Image.Image]
    train_batch_size: int
    seed: int
    rationale: bool = False

    def _part(self, step: int, rank: int, world_size: int) -> tuple[list[Record], int, PromptBatch]:
        order = step_indices(len(self.records), self.train_batch_size, self.seed, step)
        mine, first = share(order, rank, world_size)
        records = [self.records[i] for i in mine]
        return records, first, self._encode(records)

    def _encode(self, records: Sequence[Record]) -> PromptBatch:
        return self.processor.encode([self.processor.prompt(r, self.mode, self.load(r)) for r in records])

    def rollout(self, step: int, rank: int, world_size: int) -> RolloutBatch:
        records, first, prompts = self._part(step, rank, world_size)

        def resample(turn: int, prompt_indices: list[int]) -> RolloutBatch:
            """Other records, drawn at random for each place: a matter of seed, step, turn and place alone."""
            draws = [np.random.default_rng((self.seed, step, turn, place, 1)) for place in prompt_indices]
            drawn = [self.records[int(rng.integers(len(self.records)))] for rng in draws]
            return RolloutBatch(step, prompt_indices, drawn, self._encode(drawn))

        return RolloutBatch(step, list(range(first, first + len(records))), records, prompts, resample)

    def supervised(self, step: int, rank: int, world_size: int) -> SupervisedBatch:
        records, _, prompts = self._part(step, rank, world_size)
        texts = [target_text(self.mode, r.answer, r.rationale if self.rationale else "") for r in records]
        ids, mask = self.processor.completion_ids(texts)
        return SupervisedBatch(step, prompts, Targets(ids, mask, mask.float()))


@dataclass(frozen=True, slots=True)
class BaseBatches:
    """The examples of the tiny base model; the letter of the answer weighs ``letter_weight`` times another token.

    Made by one process: every rank would draw the same batch.
    """

    mixture: BaseMixture
    processor: Processor
    load: Callable[[Record], Image.Image]
    letter_weight: float

    def supervised(self, step: int, rank: int, world_size: int) -> SupervisedBatch:
        examples = self.mixture.batch(step)
        prompts = []
        for example in examples:
            text = self.processor.chat(example.content)
            if example.words is None:
                prompts.append(Prompt(text, self.load(example.record)))
            else:
                prompts.append(Prompt(text.replace(IMAGE_TOKEN, example.words), None))
        ids, mask = self.processor.completion_ids([example.target for example in examples])
        letters = torch.tensor(self.processor.tokenizer.convert_tokens_to_ids(list(LETTERS)))
        weights = 1 + (self.letter_weight - 1) * torch.isin(ids, letters)
        return SupervisedBatch(step, self.processor.encode(prompts), Targets(ids, mask, weights.float()))
