"""Predictions of a policy in this process, with the same prompts, rollout and parser as in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import Progress

from medr1.config.settings import SamplingConfig
from medr1.data.image_loader import ImageLoader
from medr1.data.prefetch import prefetch
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.evaluation.calibration import OptionProbabilities, write_option_probabilities
from medr1.evaluation.image_ablation import ImageAblation, ablated_loader
from medr1.evaluation.option_probabilities import option_probabilities
from medr1.evaluation.prediction_store import PredictionStore, Request, sample_seed
from medr1.evaluation.predictions import Measure, Prediction, prediction
from medr1.generation.engines import Engine
from medr1.generation.sampling import Sampling
from medr1.models.policy import Policy
from medr1.models.processor import Processor, Prompt
from medr1.models.tensors import Completions, PromptBatch

T = TypeVar("T")


@dataclass(kw_only=True)
class LocalPredictionStore(PredictionStore):
    """Predictions of a local policy by a rollout engine, ``batch_size`` records at a time.

    ``num_workers``: threads that encode the next batches, see ``prefetch``.
    """

    batch_size: int
    engine: Engine
    num_workers: int = 0

    def generate(
        self, policy: Policy, processor: Processor, condition: str, ablation: ImageAblation = ImageAblation.NONE
    ) -> None:
        """Generates and saves the predictions of one condition, unless its file exists."""
        if self.load_if_exists(condition):
            return
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task(f"generate: {condition.replace('_', ' ')}", total=len(self.records))
            load = ablated_loader(self.records, ablation, self.load)
            predictions: list[Prediction] = []
            for line in self._predict(policy, processor, self.records, condition, load):
                predictions.append(line)
                progress.advance(bar)
        self.save(condition, predictions)

    def answer(self, policy: Policy, processor: Processor, requests: list[Request]) -> Iterator[Prediction]:
        """Generates the completions of samples or of rotations, at most ``batch_size`` at a time."""
        rotations: dict[str, list[Record]] = {}
        samples: dict[str, list[Request]] = {}
        for request in requests:
            if request.sample is None:
                rotations.setdefault(request.condition, []).append(request.record)
            else:
                samples.setdefault(request.record.id, []).append(request)
        size = self.batch_size
        for condition, records in rotations.items():
            yield from self._predict(policy, processor, records, condition, self.load)
        parts = [of[start : start + size] for of in samples.values() for start in range(0, len(of), size)]
        # As many samples of each record of a batch; those that a kill has interrupted have fewer left.
        batches = [
            batch
            for count, group in groupby(sorted(parts, key=len, reverse=True), key=len)
            for batch in _split(list(group), size // count)
        ]

        def encode(batch: Sequence[list[Request]]) -> PromptBatch:
            records = [of_record[0].record for of_record in batch]
            return processor.encode(_prompts(processor, records, self.mode, self.load))

        for batch, prompts in zip(batches, prefetch(encode, batches, self.num_workers), strict=True):
            yield from self._sample(policy, processor, batch, prompts)

    def _predict(
        self,
        policy: Policy,
        processor: Processor,
        records: Sequence[Record],
        condition: str,
        load: ImageLoader,
    ) -> Iterator[Prediction]:
        return predict(
            policy,
            processor,
            records,
            self.mode,
            condition,
            load=load,
            batch_size=self.batch_size,
            max_completion_length=self.max_completion_length,
            engine=self.engine,
            num_workers=self.num_workers,
        )

    @torch.no_grad()
    def _sample(
        self, policy: Policy, processor: Processor, batch: Sequence[list[Request]], prompts: PromptBatch
    ) -> Iterator[Prediction]:
        """Samples G completions of each record of a batch. A sample depends on its seed and its prompt alone."""
        config = SamplingConfig(self.temperature, max_completion_length=self.max_completion_length)
        requests = [request for of_record in batch for request in of_record]
        draws = [_uniforms(self.seed, request, self.max_completion_length) for request in requests]
        completions = self.engine.generate(
            policy,
            prompts.to(policy.device),
            Sampling.from_config(config, processor),
            len(batch[0]),
            torch.from_numpy(np.stack(draws)).to(policy.device),
        )
        sources = [(request.record, request.condition) for request in requests]
        yield from _read(processor, completions, sources, self.mode)

    def score_options(self, policy: Policy, processor: Processor, condition: str) -> None:
        """Saves the probability of each option at the answer of each prediction of ``condition``, unless its file
        exists."""
        file = self.file(Measure.OPTION_PROBABILITIES.file(condition))
        if file.is_file():
            return
        self.engine.sleep()  # this process computes them, with batches as large as those of generation
        texts = {line.record: line.text for line in self.conditions[condition]}
        found: list[OptionProbabilities] = []
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task(f"option probabilities: {condition}", total=len(self.records))
            batches = _split(self.records, self.batch_size)
            make = partial(_prompts, processor, mode=self.mode, load=self.load)
            for batch, prompts in zip(batches, prefetch(make, batches, self.num_workers), strict=True):
                probabilities = option_probabilities(
                    policy,
                    processor,
                    prompts,
                    [texts[record.id] for record in batch],
                    [record.options for record in batch],
                )
                found += [
                    OptionProbabilities(record.id, record.image_key, record.answer, of_record, record.group_key)
                    for record, of_record in zip(batch, probabilities, strict=True)
                ]
                progress.advance(bar, len(batch))
        write_option_probabilities(file, found)


def _uniforms(seed: int, request: Request, max_completion_length: int) -> npt.NDArray[np.float64]:
    """The numbers that determine a sample."""
    assert request.sample is not None
    return np.random.default_rng(sample_seed(seed, request.record.id, request.sample)).random(max_completion_length)


def _split(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in batches of ``size``; the last one may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def _prompts(processor: Processor, records: Sequence[Record], mode: ReasoningMode, load: ImageLoader) -> list[Prompt]:
    return [processor.prompt(record, mode, load(record)) for record in records]


def _read(
    processor: Processor, completions: Completions, sources: Sequence[tuple[Record, str]], mode: ReasoningMode
) -> Iterator[Prediction]:
    """The predictions in a batch of completions, for the record and condition of each."""
    texts = processor.decode(completions.ids, completions.mask)
    lengths, truncated = completions.mask.sum(1).tolist(), completions.truncated.tolist()
    for (record, condition), text, length, cut in zip(sources, texts, lengths, truncated, strict=True):
        yield prediction(record, condition, mode, text, length, cut)


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
    num_workers: int = 0,
) -> Iterator[Prediction]:
    """Generates greedily, one prediction for each record, in order. ``num_workers`` threads encode the next batches."""
    sampling = Sampling.greedy(max_completion_length, processor)
    policy.eval()
    batches = _split(records, batch_size)

    def encode(batch: Sequence[Record]) -> PromptBatch:
        return processor.encode(_prompts(processor, batch, mode, load))

    for batch, prompts in zip(batches, prefetch(encode, batches, num_workers), strict=True):
        completions = engine.generate(policy, prompts.to(policy.device), sampling)
        yield from _read(processor, completions, [(record, condition) for record in batch], mode)
