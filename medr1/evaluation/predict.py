"""Greedy answers of a policy to test records, through the same prompts, rollout and parser as training."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from enum import StrEnum

import torch
from PIL import Image

from medr1.evaluation.predictions import Prediction, prediction
from medr1.policy.encoding import Encoder
from medr1.policy.policy import Policy
from medr1.reasoning import ReasoningMode
from medr1.records import Record
from medr1.rl.rollout import Sampling, rollout

BLANK = (128, 128, 128)  # mid grey: an image, with nothing in it


class Picture(StrEnum):
    """What the policy is shown in place of the record's picture."""

    OWN = "own"
    BLANK = "blank"
    OTHER = "other"


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
    shown = others(records) if picture is Picture.OTHER else records
    policy.eval()
    for start in range(0, len(records), batch_size):
        part = records[start : start + batch_size]
        images = [load(r) for r in shown[start : start + batch_size]]
        if picture is Picture.BLANK:
            images = [Image.new("RGB", images[0].size, BLANK)] * len(images)
        prompts = encoder.encode([encoder.prompt(r, mode, i) for r, i in zip(part, images, strict=True)])
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


def others(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """For each record one whose picture is shown instead: another picture of the same modality.

    The pictures of a modality change places in a circle drawn by ``seed``, so that what the policy can know of the
    pictures as a whole stays as it was. A modality with a single picture keeps it: there is no other.
    """
    first: dict[str, dict[str, Record]] = {}  # by modality: a record for each picture
    for record in records:
        first.setdefault(record.modality, {}).setdefault(record.image.key, record)
    instead: dict[tuple[str, str], Record] = {}
    for modality, pictures in first.items():
        order = sorted(pictures)
        random.Random(f"{seed} {modality}").shuffle(order)
        for key, other in zip(order, order[1:] + order[:1], strict=True):
            instead[modality, key] = pictures[other]
    return [instead[record.modality, record.image.key] for record in records]
