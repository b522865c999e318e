"""A lock of a file that says when it has to wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def waiting_lock(path: Path, say: Callable[[], None]) -> Iterator[None]:
    """Locks ``path`` during the block. Calls ``say`` before it waits for another process that has locked it.

    The operating system releases the lock of a process that is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
