"""The memory that ``plan=true`` predicts, compared with training: ``python -m benchmarks.plan_against_measured``.

Each setting is trained for two steps in a new process, from a checkpoint with random weights. Measured are the peak of
the bytes of all tensors, counted at every operation, and the peak of resident memory above that after all imports,
which includes the memory of libraries. On a GPU the second figure is torch's peak of allocated memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

from benchmarks.workload import SHAPES, checkpoint_of
from medr1.config.settings import TrainConfig
from medr1.planning.memory_ledger import MemoryLedger, peak_bytes
from medr1.workflows.components import checked
from medr1.workflows.compose import train_config

SETTINGS = {
    "grpo, full": ["algorithm=grpo"],
    "grpo, lora, checkpointing": ["algorithm=grpo", "model.tuning=lora", "model.gradient_checkpointing=true"],
    "grpo, full, bfloat16": ["algorithm=grpo", "model.dtype=bfloat16"],
    "grpo, full, max_tokens_per_device": ["algorithm=grpo", "trainer.max_tokens_per_device=1200"],
    "sft, full": ["algorithm=sft"],
    "sft, lora, vision frozen": ["algorithm=sft", "model.tuning=lora", "model.freeze_vision_tower=true"],
}
MIB = 2**20


class Measurement(MemoryLedger):
    """A ledger of real tensors. Weights, which no operation creates, are entered when they are first used."""

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for tensor in tree_iter((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.enter(tensor)
        return func(*args, **kwargs)


def overrides(checkpoint: Path, image: int, accelerator: str, setting: list[str]) -> list[str]:
    """Overrides of ``python train.py``: two steps, few test records."""
    return [
        "model=hf",
        f"model.path={checkpoint}",
        f"data.image_size={image}",
        f"trainer.accelerator={accelerator}",
        *("model.dtype=float32", "model.gradient_checkpointing=false", "model.recipe.max_completion_length=32"),
        *("trainer.max_steps=2", "trainer.train_batch_size=4", "model.recipe.num_generations=4", "tracking=none"),
        *("data.train_images_per_modality=1", "data.test_images_per_modality=1"),
        *("evaluation.limit=1", "evaluation.batch_size=4", "evaluation.max_completion_length=4"),
        *("evaluation.blank_image=false", "evaluation.shuffled_image=false", *setting),
    ]


def measure(given: list[str]) -> None:
    """Trains in this process and prints the two peaks as JSON."""
    from medr1.workflows.train import train

    cfg = checked(train_config(given), TrainConfig)
    ledger = Measurement()
    with tempfile.TemporaryDirectory() as scratch:
        before = _resident("VmRSS")
        with ledger:
            train(cfg, Path(scratch) / "run", given)
    resident = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM") - before
    print(json.dumps({"tensors": peak_bytes(ledger.peaks), "resident": resident}))


def _resident(field: str) -> int:
    """Bytes of this process; 0 without /proc."""
    status = Path("/proc/self/status")
    return int(status.read_text().split(f"{field}:")[1].split()[0]) * 1024 if status.exists() else 0


def measured(given: list[str]) -> dict[str, int]:
    """The two peaks of a training in a new process, because the peak of a process never decreases."""
    command = [sys.executable, "-m", "benchmarks.plan_against_measured", "--measure", json.dumps(given)]
    # Otherwise the allocator of the C library keeps the memory of small tensors.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    from medr1.workflows.forecast import forecast_memory

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="reference")
    parser.add_argument("--image-size", type=int, default=392, help="side in pixels")
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="default: all")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(json.loads(given.measure))
        return
    print(f"{given.shape}, images of {given.image_size} pixels, float32 unless named, {given.device}; MiB")
    print(f"{'setting':>28} {'plan':>8} {'tensors':>8} {'ratio':>6} {'process':>8} {'ratio':>6}   highest in the plan")
    with checkpoint_of(given.shape, None) as checkpoint:
        for name in given.setting or SETTINGS:
            wanted = overrides(checkpoint, given.image_size, given.device, SETTINGS[name])
            forecast = forecast_memory(checked(train_config(wanted), TrainConfig))
            real = measured(wanted)
            tensors, resident = (forecast.peak / real[key] for key in ("tensors", "resident"))
            print(
                f"{name:>28} {forecast.peak / MIB:8.0f} {real['tensors'] / MIB:8.0f} {tensors:6.2f} "
                f"{real['resident'] / MIB:8.0f} {resident:6.2f}   {forecast.highest_phase}",
                flush=True,
            )


if __name__ == "__main__":
    main()
