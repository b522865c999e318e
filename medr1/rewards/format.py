"""The reward ``format`` of Med-R1 (arXiv 2503.13939, section on rewards)."""

from __future__ import annotations

from collections.abc import Sequence

from medr1.domain.reasoning import ReasoningMode, parse
from medr1.domain.records import Record
from medr1.rewards import reward_function


@reward_function("format", maximum=1.0)
def format_(completions: Sequence[str], records: Sequence[Record], *, reasoning: ReasoningMode) -> list[float]:
    """1 if the whole completion follows the format of the reasoning mode, else 0.

    Range: 0 or 1.
    """
    return [
        float(parse(text, reasoning, record.options).format) for text, record in zip(completions, records, strict=True)
    ]
