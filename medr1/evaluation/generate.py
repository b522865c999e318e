"""Greedy answers of a policy to test records, through the same prompts, rollout and parser as training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.evaluation.image_ablation import Picture, shown
from medr1.evaluation.predictions import Prediction, prediction
from medr1.generation.rollout import Sampling, rollout
from medr1.models.policy import Policy
from medr1.models.processor import Encoder


def predict(
    policy: Policy,
    encoder: Encoder,
    records: Sequence[Record],
    mode: ReasoningMode,
    condition: str,
    *,
    load: Callable[[Record], Image.Image],
    batch_size: int,
    max_new_tokens: int,
    picture: Picture = Picture.OWN,
    advance: Callable[[int], None] = lambda done: None,
) -> list[Prediction]:
    """One prediction for each record, in their order. ``advance`` is told how many were answered at each step."""
    sampling = Sampling(max_new_tokens, encoder.end_id, tuple(encoder.banned_ids()), temperature=0.0)
    answers: list[Prediction] = []
    show = shown(records, picture, load)
    policy.eval()
    for start in range(0, len(records), batch_size):
        part = records[start : start + batch_size]
        prompts = encoder.encode([encoder.prompt(r, mode, show(r)) for r in part])
        with torch.no_grad():
            done = rollout(policy, policy.prefill(prompts.to(policy.device)), sampling)
        texts = encoder.decode(done.ids, done.mask)
        lengths, cut = done.mask.sum(1).tolist(), done.truncated.tolist()
        answers += [
            prediction(r, condition, mode, text, length, truncated)
            for r, text, length, truncated in zip(part, texts, lengths, cut, strict=True)
        ]
        advance(len(part))
    return answers
