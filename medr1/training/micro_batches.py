"""Splits the items of a step into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence


def split_by_tokens(sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Micro-batches, as lists of indices: consecutive items whose sizes sum to at most ``max_tokens`` tokens.

    ``max_tokens`` 0: a single micro-batch.

    An item that is larger than ``max_tokens`` has a micro-batch of its own.
    """
    batches: list[list[int]] = []
    free = 0
    for index, size in enumerate(sizes):
        if not batches or (max_tokens and size > free):
            batches.append([])
            free = max_tokens
        batches[-1].append(index)
        free -= size
    return batches


def split_to_count(sizes: Sequence[int], count: int) -> list[list[list[int]]]:
    """Halves the largest micro-batch, again and again, until there are ``count``.

    ``sizes``: number of rows of each given micro-batch. Returns, for each of them, the rows of the new micro-batches
    made from it. ``count`` is at least the number of ``sizes`` and at most their sum.
    """
    split = [[list(range(size))] for size in sizes]
    for _ in range(count - len(sizes)):
        largest = max((rows for parts in split for rows in parts), key=len)
        parts = next(parts for parts in split if largest in parts)
        at, half = parts.index(largest), len(largest) // 2
        parts[at : at + 1] = [largest[:half], largest[half:]]
    return split
