"""Micro-batches hold every item once, in order, and as many as fit."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from medr1.training.micro_batches import split_by_tokens, split_to_count


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(0, 120))
def test_micro_batches_hold_every_item_once_in_order_and_fit(sizes: list[int], max_tokens: int) -> None:
    batches = split_by_tokens(sizes, max_tokens)
    assert [index for batch in batches for index in batch] == list(range(len(sizes)))
    if not max_tokens:
        assert len(batches) <= 1
        return
    assert all(len(batch) == 1 or sum(sizes[i] for i in batch) <= max_tokens for batch in batches)
    for batch, following in pairwise(batches):  # none could have been added to the one before
        assert sum(sizes[i] for i in batch) + sizes[following[0]] > max_tokens


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 40))
def test_micro_batches_are_split_into_the_given_number(sizes: list[int], more: int) -> None:
    count = min(len(sizes) + more, sum(sizes))
    split = split_to_count(sizes, count)
    assert sum(map(len, split)) == count
    for size, parts in zip(sizes, split, strict=True):
        assert [row for rows in parts for row in rows] == list(range(size)) and all(parts)
    if more == 0:
        assert all(len(parts) == 1 for parts in split)
