"""The reward ``tag_count``: a partial format reward, as in open-r1 (``tag_count_reward``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

from medr1.domain.reasoning import TAGS, ReasoningMode, target_text
from medr1.domain.records import Record
from medr1.rewards import reward_function

_TAG = re.compile("|".join(TAGS))


@reward_function("tag_count", maximum=1.0)
def tag_count(completions: Sequence[str], records: Sequence[Record], *, reasoning: ReasoningMode) -> list[float]:
    """Share of the tags of the reasoning mode that stand exactly once and in order, where ``format`` is all or nothing.

    Of the tags that occur exactly once, the longest sequence counts that has the order of the mode. Text outside of the
    blocks, tags that the mode does not have and the content of the answer block do not matter.

    Range: 0 to 1.
    """
    wanted = _TAG.findall(target_text(reasoning, ""))
    return [_longest_in_order(_TAG.findall(text), wanted) / len(wanted) for text in completions]


def _longest_in_order(found: Sequence[str], wanted: Sequence[str]) -> int:
    order = [wanted.index(tag) for tag in found if tag in wanted and found.count(tag) == 1]
    lengths = range(len(order), 0, -1)
    return next((n for n in lengths for part in combinations(order, n) if list(part) == sorted(part)), 0)
