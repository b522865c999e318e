"""Several processes that train one run together, as torchrun or SLURM start them, without importing torch for each."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.integration.conftest"])


class Watched(NamedTuple):
    """What a run computed at each step: its curves, and the texts and rewards of its completions by record."""

    curves: list[dict[str, float]]
    completions: list[list[tuple[str, str, float]]]


def start(count: int, run_dir: Path, *overrides: str, resume: bool = False) -> list[BaseProcess]:
    """Starts ``count`` processes that train in ``run_dir``, or go on there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_dir.mkdir(parents=True, exist_ok=True)
    together = []
    for rank in range(count):
        process = _context.Process(target=_one, args=(rank, count, port, run_dir, overrides, resume))
        process.start()
        together.append(process)
    return together


def end(together: list[BaseProcess]) -> list[int | None]:
    """Waits for all; their exit codes."""
    for process in together:
        process.join(120)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in together]


def train_together(count: int, run_dir: Path, *overrides: str, resume: bool = False) -> Watched:
    """Trains to the end, and reads what was watched."""
    codes = end(start(count, run_dir, *overrides, resume=resume))
    assert codes == [0] * count, "".join(log.read_text() for log in sorted(run_dir.glob("rank*.log")))
    curves = [json.loads(line) for line in (run_dir / "curves.jsonl").read_text().splitlines()]
    ranks = [[json.loads(line) for line in file.read_text().splitlines()] for file in run_dir.glob("sampled*.jsonl")]
    return Watched(curves, [sorted(tuple(c) for rank in step for c in rank) for step in zip(*ranks, strict=True)])


def _one(rank: int, count: int, port: int, run_dir: Path, overrides: tuple[str, ...], resume: bool) -> None:
    with (run_dir / f"rank{rank}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        if count > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "GROUP_RANK": "0",
                "LOCAL_WORLD_SIZE": str(count),
            }
            os.environ |= {"TORCHELASTIC_RUN_ID": "test"}
        try:
            _train(rank, run_dir, overrides, resume)
        except BaseException:
            traceback.print_exc()
            log.flush()
            os._exit(1)  # as a process that dies: without waiting for anybody
        sys.stdout.flush()


def _train(rank: int, run_dir: Path, overrides: tuple[str, ...], resume: bool) -> None:
    import torch
    from pytorch_lightning.utilities import rank_zero_only

    from medr1 import pipeline
    from medr1.tracking import NullTracker
    from medr1.training.grpo import GRPOModule
    from tests.integration.conftest import composed

    torch.set_num_threads(1)
    rank_zero_only.rank = rank  # pytorch_lightning reads it when it is imported, which was before this process

    def sampled(module: GRPOModule, *rest: Any) -> None:
        s = module.sampled
        assert s is not None
        each = [record.id for record in s.records for _ in range(module.settings.group_size)]
        _append(run_dir / f"sampled{rank}.jsonl", list(zip(each, s.texts, s.rewards.total, strict=True)))

    GRPOModule.on_train_batch_end = sampled  # type: ignore[method-assign,assignment]
    NullTracker.metrics = lambda _, values, step: _append(run_dir / "curves.jsonl", values)  # type: ignore[method-assign,misc]
    given = (f"resume={run_dir / 'run'}",) if resume else overrides
    pipeline.train(composed("train", *given), run_dir / "run", list(given))


def _append(path: Path, value: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")
