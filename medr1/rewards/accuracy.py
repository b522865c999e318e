"""The reward ``accuracy`` of Med-R1 (arXiv 2503.13939, section on rewards)."""

from __future__ import annotations

from collections.abc import Sequence

from medr1.domain.reasoning import ReasoningMode, parse
from medr1.domain.records import Record
from medr1.rewards import reward_function


@reward_function("accuracy", maximum=1.0)
def accuracy(completions: Sequence[str], records: Sequence[Record], *, reasoning: ReasoningMode) -> list[float]:
    """1 if the only answer block of a completion holds the letter of the correct option, else 0.

    Lenient parsing earns nothing.

    Range: 0 or 1.
    """
    return [
        float(parse(text, reasoning, record.options).answer == record.answer)
        for text, record in zip(completions, records, strict=True)
    ]
