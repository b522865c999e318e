"""Several processes that train one run together, as torchrun starts them, without importing torch for each."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from medr1.generation.child_process import free_port

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.integration.conftest"])


class Watched(NamedTuple):
    """What a run computed.

    completions: for each step, the record, text and reward of each completion, sorted. local_share: for each rank, the
    share of the weights that it held. is_split: for each rank, whether it ever had fewer micro-batches than another.
    """

    curves: list[dict[str, float]]
    completions: list[list[list[Any]]]
    local_share: list[float]
    is_split: list[bool]


def start(
    count: int,
    run_dir: Path,
    *overrides: str,
    resume: bool = False,
    fail: int | None = None,
    groups: Sequence[Path] | None = None,
) -> list[BaseProcess]:
    """Starts ``count`` processes that train in ``run_dir``, or go on there; rank ``fail`` fails in its first step.

    ``groups``: for each process the control group (cgroup) that it joins.
    """
    port = free_port()
    run_dir.mkdir(parents=True, exist_ok=True)
    for left in run_dir.glob("*.jsonl"):  # by processes that were killed
        left.unlink()
    together: list[BaseProcess] = []
    for rank in range(count):
        group = groups[rank] if groups else None
        process = _context.Process(
            target=_one, args=(rank, count, port, run_dir, overrides, resume, rank == fail, group)
        )
        process.start()
        together.append(process)
    return together


def end(together: list[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Waits for all, for each at most ``seconds``; their exit codes."""
    for process in together:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in together]


def train_together(count: int, run_dir: Path, *overrides: str, resume: bool = False, seconds: float = 120) -> Watched:
    """Trains to the end, and reads what was watched."""
    codes = end(start(count, run_dir, *overrides, resume=resume), seconds)
    assert codes == [0] * count, "".join(log.read_text() for log in sorted(run_dir.glob("rank*.log")))
    ranks = [_lines(run_dir / f"rank{rank}.jsonl") for rank in range(count)]
    together = [sorted(c for part in step for c in part["completions"]) for step in zip(*ranks, strict=True)]
    return Watched(
        [values for values in _lines(run_dir / "curves.jsonl") if "grad_norm" in values],
        together,
        [steps[-1]["local_share"] for steps in ranks],
        [any(step["is_split"] for step in steps) for steps in ranks],
    )


def _one(
    rank: int,
    count: int,
    port: int,
    run_dir: Path,
    overrides: tuple[str, ...],
    resume: bool,
    fail: bool,
    group: Path | None,
) -> None:
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    with (run_dir / f"rank{rank}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        if count > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
            os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        try:
            _train(rank, run_dir, overrides, resume, fail)
        except BaseException:
            traceback.print_exc()
            log.flush()
            os._exit(1)  # as a process that dies: without waiting for anybody
        sys.stdout.flush()


def _train(rank: int, run_dir: Path, overrides: tuple[str, ...], resume: bool, fail: bool) -> None:
    import torch
    from pytorch_lightning.utilities import rank_zero_only
    from torch.distributed.tensor import DTensor

    from medr1.tracking.tracker import NullTracker
    from medr1.training import module as training_module
    from medr1.workflows.train import train
    from tests.composing import composed

    torch.set_num_threads(1)
    rank_zero_only.rank = rank  # pytorch_lightning reads it when it is imported, which was before this process
    splits: list[bool] = []
    split_to_count = training_module.split_to_count

    def watched_split(sizes: list[int], count: int) -> list[list[list[int]]]:
        splits.append(len(sizes) < count)
        return split_to_count(sizes, count)

    def after_a_step(module: Any, *_: Any) -> None:
        completions, log = [], getattr(module, "rollout_log", None)
        if log is not None:
            ids = [record.id for record in log.records for _ in range(module.settings.num_generations)]
            completions = list(zip(ids, log.texts, log.rewards.total, strict=True))
        weights = [p for policy in module.policies for p in policy.parameters()]
        local = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in weights)
        local_share = local / sum(p.numel() for p in weights)
        seen = {"completions": completions, "local_share": local_share, "is_split": splits == [True]}
        splits.clear()
        _append(run_dir / f"rank{rank}.jsonl", seen)
        if fail:
            raise OSError("the network is gone")

    training_module.split_to_count = watched_split  # type: ignore[attr-defined]
    training_module.PolicyModule.on_train_batch_end = after_a_step  # type: ignore[method-assign,assignment]
    NullTracker.log_metrics = lambda _, values, step: _append(run_dir / "curves.jsonl", dict(values))  # type: ignore[method-assign]
    given = (f"resume={run_dir / 'run'}",) if resume else overrides
    # As medr1.config.naming.run_directory: only the first process knows the directory of a new run.
    own = run_dir / ("run" if resume or rank == 0 else ".processes")
    train(composed("train", *given), own, list(given))


def _append(path: Path, value: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]
