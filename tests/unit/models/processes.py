"""Several processes of one test, connected by gloo."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed

_context = multiprocessing.get_context("fork")  # a function of a test need not be importable


def run_together(count: int, place: Path, function: Callable[[int], Any]) -> list[Any]:
    """What ``function(rank)`` returns in each of ``count`` processes."""
    pipes = [_context.Pipe(duplex=False) for _ in range(count)]
    started = [
        _context.Process(target=_one, args=(rank, count, place / "store", function, send))
        for rank, (_, send) in enumerate(pipes)
    ]
    for process in started:
        process.start()
    for _, send in pipes:
        send.close()
    try:
        assert all(receive.poll(60) for receive, _ in pipes), "a process has waited for another for a minute"
        return [receive.recv() for receive, _ in pipes]
    finally:
        for process in started:
            process.kill()
            process.join()


def _one(rank: int, count: int, store: Path, function: Callable[[int], Any], send: Connection) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=count)
    send.send(function(rank))
    distributed.barrier()
