"""Greedy answers of a policy to test records, through the same prompts, rollout and parser as training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.evaluation.image_ablation import ImageAblation, ablated_loader
from medr1.evaluation.predictions import Prediction, prediction
from medr1.generation.rollout import Sampling, rollout
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
    sampling = Sampling(
        max_completion_length, processor.eos_token_id, tuple(processor.suppressed_token_ids()), temperature=0.0
    )
    answers: list[Prediction] = []
    show = ablated_loader(records, picture, load)
    policy.eval()
    for start in range(0, len(records), batch_size):
        part = records[start : start + batch_size]
        prompts = processor.encode([processor.prompt(r, mode, show(r)) for r in part])
        with torch.no_grad():
            done = rollout(policy, policy.prefill(prompts.to(policy.device)), sampling)
        texts = processor.decode(done.ids, done.mask)
        lengths, cut = done.mask.sum(1).tolist(), done.truncated.tolist()
        answers += [
            prediction(r, condition, mode, text, length, truncated)
            for r, text, length, truncated in zip(part, texts, lengths, cut, strict=True)
        ]
        advance(len(part))
    return answers
