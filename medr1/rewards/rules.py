"""Rewards by rule: text in, named parts out; the weights live in the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medr1.domain.reasoning import Parsed, ReasoningMode, parse
from medr1.domain.records import Record


@dataclass(frozen=True, slots=True)
class Rewards:
    """Of n completions: the parts by name, their weighted sum, and what was read."""

    parts: Mapping[str, list[float]]
    total: list[float]
    parsed: list[Parsed]


def score_completions(
    texts: Sequence[str], records: Sequence[Record], mode: ReasoningMode, weights: Mapping[str, float]
) -> Rewards:
    """Rewards of completions, each with its own record.

    accuracy: 1 if the letter of the one answer block is right. format: 1 if the whole completion obeys the grammar of
    the mode (Med-R1, section on rewards). A lenient reading is never rewarded.
    """
    parsed = [parse(text, mode, record.options) for text, record in zip(texts, records, strict=True)]
    parts = {
        "accuracy": [float(p.answer == r.answer) for p, r in zip(parsed, records, strict=True)],
        "format": [float(p.format) for p in parsed],
    }
    total = [sum(weights[name] * values[i] for name, values in parts.items()) for i in range(len(parsed))]
    return Rewards(parts, total, parsed)
