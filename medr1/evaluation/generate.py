"""Greedy answers of a policy to test records, through the same prompts, rollout and parser as training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.evaluation.image_ablation import ImageAblation, ablated_loader
from medr1.evaluation.predictions import Prediction, prediction
from medr1.generation.engines.local import LocalEngine
from medr1.generation.sampling import Sampling
from medr1.models.policy import Policy
from medr1.models.processor import Processor


def predict(
    policy: Policy,
    processor: Processor,
    records: Sequence[Record],
    mode: ReasoningMode,
    condition: str,
    *,
    load: Callable[[Record], Image.Image],
    batch_size: int,
    max_completion_length: int,
    picture: ImageAblation = ImageAblation.NONE,
    advance: Callable[[int], None] = lambda done: None,
) -> list[Prediction]:
    """One prediction for each record, in their order. ``advance`` is told how many were answered at each step."""
    sampling, engine = Sampling.greedy(max_completion_length, processor), LocalEngine()
    answers: list[Prediction] = []
    show = ablated_loader(records, picture, load)
    policy.eval()
    for start in range(0, len(records), batch_size):
        part = records[start : start + batch_size]
        prompts = processor.encode([processor.prompt(r, mode, show(r)) for r in part])
        done = engine.generate(policy, prompts.to(policy.device), sampling)
        texts = processor.decode(done.ids, done.mask)
        lengths, cut = done.mask.sum(1).tolist(), done.truncated.tolist()
        answers += [
            prediction(r, condition, mode, text, length, truncated)
            for r, text, length, truncated in zip(part, texts, lengths, cut, strict=True)
        ]
        advance(len(part))
    return answers
