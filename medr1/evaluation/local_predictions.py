"""Predictions of a policy in this process, with the same prompts, rollout and parser as in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from medr1.data.image_loader import ImageLoader
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.evaluation.image_ablation import ImageAblation, ablated_loader
from medr1.evaluation.prediction_store import PredictionStore
from medr1.evaluation.predictions import Prediction, prediction, read_predictions, write_predictions
from medr1.generation.engines import Engine
from medr1.generation.sampling import Sampling
from medr1.models.policy import Policy
from medr1.models.processor import Processor


@dataclass(kw_only=True)
class LocalPredictionStore(PredictionStore):
    """Predictions of a local policy by a rollout engine, ``batch_size`` records at a time."""

    batch_size: int
    engine: Engine

    def generate(
        self, policy: Policy, processor: Processor, condition: str, ablation: ImageAblation = ImageAblation.NONE
    ) -> None:
        """Generates and saves the predictions of one condition, unless its file exists."""
        if self.load_if_exists(condition):
            return
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task(f"generate: {condition.replace('_', ' ')}", total=len(self.records))
            predictions = predict(
                policy,
                processor,
                self.records,
                self.mode,
                condition,
                load=ablated_loader(self.records, ablation, self.load),
                batch_size=self.batch_size,
                max_completion_length=self.max_completion_length,
                engine=self.engine,
                advance=lambda done: progress.advance(bar, done),
            )
        self.save(condition, predictions)

    def generate_or_reuse(self, shared: Path, policy: Policy, processor: Processor, condition: str) -> None:
        """As ``generate``, but reads the file ``shared`` if another run has written it, and writes it otherwise."""
        if not self.file(condition).is_file() and shared.is_file():
            self.save(condition, read_predictions(shared))
        self.generate(policy, processor, condition)
        if not shared.is_file():
            write_predictions(shared, self.conditions[condition])


@torch.no_grad()
def predict(
    policy: Policy,
    processor: Processor,
    records: Sequence[Record],
    mode: ReasoningMode,
    condition: str,
    *,
    load: ImageLoader,
    batch_size: int,
    max_completion_length: int,
    engine: Engine,
    advance: Callable[[int], None] = lambda done: None,
) -> list[Prediction]:
    """Generates greedily, one prediction for each record, in order.

    ``advance`` is called after each batch with the number of its records.
    """
    sampling = Sampling.greedy(max_completion_length, processor)
    predictions: list[Prediction] = []
    policy.eval()
    for start in range(0, len(records), batch_size):
        batch = records[start : start + batch_size]
        prompts = processor.encode([processor.prompt(r, mode, load(r)) for r in batch])
        completions = engine.generate(policy, prompts.to(policy.device), sampling)
        texts = processor.decode(completions.ids, completions.mask)
        lengths, truncated = completions.mask.sum(1).tolist(), completions.truncated.tolist()
        predictions += [
            prediction(record, condition, mode, text, length, cut)
            for record, text, length, cut in zip(batch, texts, lengths, truncated, strict=True)
        ]
        advance(len(batch))
    return predictions
