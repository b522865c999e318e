"""With FSDP, four processes train and evaluate a model whose gathered weights do not fit into the memory of one.

Linux kills a process that needs more than the limit of its control group.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.workload import Shape, save_checkpoint
from medr1.evaluation.predictions import read_predictions
from medr1.runs.run_directory import RunDirectory
from tests.integration.conftest import SMALL_RUN
from tests.integration.processes import end, start

pytestmark = pytest.mark.long

MIB = 1 << 20
LIMIT = 800 * MIB
SHAPE = Shape(768, 25, 6, 6, 2816, 3, 96, 4)
CONTROL_GROUPS = Path("/sys/fs/cgroup")
SETTINGS = (
    *SMALL_RUN,
    "model.tuning=lora",
    "model.gradient_checkpointing=true",
    "model.recipe.max_completion_length=3",
    "trainer.max_steps=1",
    "model.dtype=float32",
    "trainer=fsdp",
    "trainer.devices=4",
    "trainer.accelerator=cpu",
    "evaluation.max_completion_length=1",
    "evaluation.batch_size=8",  # the keys and values of 32 prompts take 330 MiB
    "evaluation.blank_image=false",
    "tracking=none",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-VL with random weights, larger than ``LIMIT``."""
    folder: Path = tmp_path_factory.mktemp("model")
    save_checkpoint(SHAPE, folder)
    assert (folder / "model.safetensors").stat().st_size > LIMIT
    return folder


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[list[Path]]:
    """Four control groups with ``LIMIT`` bytes of memory each, and no swap."""
    version_1 = (CONTROL_GROUPS / "memory").is_dir()
    parent = CONTROL_GROUPS / "memory" if version_1 else CONTROL_GROUPS
    made = [parent / f"medr1_{tmp_path.name}_{rank}" for rank in range(4)]
    try:
        try:
            for group in made:
                group.mkdir()
                (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(LIMIT))
                # Version 1 limits the sum of memory and swap. Without swap in the kernel there is neither file.
                swap, limit = ("memory.memsw.limit_in_bytes", LIMIT) if version_1 else ("memory.swap.max", 0)
                if (group / swap).exists():
                    (group / swap).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"control groups with a memory limit cannot be made: {error}")
        yield made
    finally:
        for group in filter(Path.exists, made):
            group.rmdir()


def _logs(folder: Path) -> str:
    return "".join(log.read_text() for log in sorted(folder.glob("rank*.log")))


def run(checkpoint: Path, folder: Path, groups: list[Path], *overrides: str) -> list[int | None]:
    """The exit codes. When the first process fails the others are killed, which would wait for it."""
    words = (*SETTINGS, "model=hf", f"model.path={checkpoint}", *overrides)
    processes = start(4, folder, *words, groups=groups)
    deadline = time.monotonic() + 1200
    try:
        while any(p.is_alive() for p in processes) and not any(p.exitcode for p in processes):
            assert time.monotonic() < deadline, _logs(folder)
            time.sleep(0.1)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
        end(processes)


def test_it_is_trained_and_evaluated_in_shards(checkpoint: Path, groups: list[Path], tmp_path: Path) -> None:
    assert run(checkpoint, tmp_path, groups) == [0] * 4, _logs(tmp_path)
    stored = RunDirectory(tmp_path / "run")
    assert stored.finished.exists() and (stored.model / "adapter_model.safetensors").is_file()
    assert all(len(read_predictions(stored.predictions(name))) == 40 for name in ("base", "trained"))


def test_gathered_it_does_not_fit(checkpoint: Path, groups: list[Path], tmp_path: Path) -> None:
    codes = run(checkpoint, tmp_path, groups, "trainer.gather_for_generation=true")
    assert -9 in codes and not RunDirectory(tmp_path / "run").predictions("base").exists()
