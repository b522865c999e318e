"""Micro-batches hold every item once, in order, and as many as fit."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from medr1.training.micro_batches import split_by_tokens, split_to_count


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=30), st.integers(0, 240))
def test_micro_batches_hold_every_item_once_in_order_and_fit(sizes: list[tuple[int, int]], max_tokens: int) -> None:
    prompts, completions = [p for p, _ in sizes], [c for _, c in sizes]
    batches = split_by_tokens(prompts, completions, max_tokens)
    assert [index for batch in batches for index in batch] == list(range(len(sizes)))
    if not max_tokens:
        assert len(batches) <= 1
        return

    def padded(batch: list[int]) -> int:
        return len(batch) * (max(prompts[i] for i in batch) + max(completions[i] for i in batch))

    assert all(len(batch) == 1 or padded(batch) <= max_tokens for batch in batches)
    for batch, following in pairwise(batches):  # none could have been added to the one before
        assert padded([*batch, following[0]]) > max_tokens


def test_short_prompts_beside_a_long_one_count_as_long_as_it_is() -> None:
    assert list(map(len, split_by_tokens([2000] + [100] * 20, [200] * 21, 4400))) == [2, 14, 5]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 40))
def test_micro_batches_are_split_into_the_given_number(sizes: list[int], more: int) -> None:
    count = min(len(sizes) + more, sum(sizes))
    split = split_to_count(sizes, count)
    assert sum(map(len, split)) == count
    for size, parts in zip(sizes, split, strict=True):
        assert [row for rows in parts for row in rows] == list(range(size)) and all(parts)
    if more == 0:
        assert all(len(parts) == 1 for parts in split)
