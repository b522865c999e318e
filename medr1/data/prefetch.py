"""Prepares what comes next while the caller works. Loads no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def prefetch(make: Callable[[A], B], items: Iterable[A], num_workers: int) -> Iterator[B]:
    """``make(item)`` for each item, in order. ``num_workers`` threads make the next results in advance.

    As many results as there are threads are ready or in the making while the caller uses one. 0: each is made when it
    is asked for. An error of ``make`` is raised, unchanged, where its result would come.

    Threads suffice where processes are usual: Pillow, numpy, torch and the tokenizers release the GIL. They share the
    cache of images, and nothing is copied between processes.
    """
    if not num_workers:
        yield from map(make, items)
        return
    waiting: deque[Future[B]] = deque()
    pool = ThreadPoolExecutor(num_workers, "prefetch")
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
