"""Splits the items of a step into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence


def split_by_tokens(prompts: Sequence[int], completions: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Micro-batches of consecutive items, as lists of indices, with at most ``max_tokens`` tokens each.

    An item has ``prompts[i]`` tokens of a prompt and ``completions[i]`` of all its completions. In a micro-batch both
    are padded to its longest ones, and the padding counts, because it takes as much memory.

    ``max_tokens`` 0: a single micro-batch.

    An item that is larger than ``max_tokens`` has a micro-batch of its own.
    """
    batches: list[list[int]] = []
    widths = 0, 0
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        wider = max(widths[0], prompt), max(widths[1], completion)
        if not batches or (max_tokens and (len(batches[-1]) + 1) * sum(wider) > max_tokens):
            batches.append([])
            wider = prompt, completion
        batches[-1].append(index)
        widths = wider
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
