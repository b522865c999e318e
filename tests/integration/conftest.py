"""How the integration tests run medr1: as its user does, or in this process through the same composed config."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medr1.config.paths import CONF
from medr1.runs.run_directory import RunDirectory
from medr1.training.batches import RolloutBatch
from medr1.training.grpo import GRPOModule
from medr1.workflows.train import train
from tests.composing import composed

ROOT = CONF.parent
MINI = ROOT.parent / "shared" / "data" / "omnimedvqa-mini"

# Synthetic images of each modality, enough for a few small steps. The default number takes seconds to make.
FEW_IMAGES = ("data.train_images_per_modality=8", "data.test_images_per_modality=1")

# Two of each modality, for what compares an image with another one.
TWO_IMAGES = (*FEW_IMAGES, "data.test_images_per_modality=2")

# Overrides of a run that takes seconds. Tests add their own; of a setting that is given twice the last value counts.
SMALL_RUN = (
    "debug=quick",
    "modality=ct",
    "reasoning=no_think",
    "data.train_images_per_modality=8",
    "data.test_images_per_modality=1",
    "evaluation.limit=1",
    "evaluation.shuffled_image=false",
    "trainer.max_steps=2",
    "trainer.save_steps=1",
)

needs_mini = pytest.mark.skipif(not MINI.is_dir(), reason="the real images (../shared/data/omnimedvqa-mini) are absent")


def train_here(run_dir: Path, *overrides: str) -> RunDirectory:
    """Trains in this process, seconds faster than a new one."""
    train(composed("train", f"output_dir={run_dir.parent}", *overrides), run_dir, list(overrides))
    return RunDirectory(run_dir)


def train_interrupted(run_dir: Path, step: int, *overrides: str) -> RunDirectory:
    """Trains with GRPO in this process until ``step`` fails; the run, to be resumed."""
    whole = GRPOModule.step

    def interrupted(module: GRPOModule, batch: RolloutBatch) -> Any:
        if batch.step == step:
            raise OSError("no power")
        return whole(module, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOModule, "step", interrupted)
        with pytest.raises(OSError, match="no power"):
            train_here(run_dir, *overrides)
    return RunDirectory(run_dir)


def command(script: str, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """Starts train.py or evaluate.py in a process group of its own, from another directory than the project's."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *overrides],
        cwd=ROOT.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_command(script: str, *overrides: str, status: int = 0) -> str:
    """Runs a command to its end; its output."""
    process = command(script, *overrides)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == status, output
    return output


def only_run(output_dir: Path) -> RunDirectory:
    """The one run below an output directory."""
    (config,) = output_dir.glob("*/config.yaml")
    return RunDirectory(config.parent)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunDirectory, str]]:
    """One run of the command line, tracked in MLflow, and what it printed."""
    output_dir = tmp_path_factory.mktemp("finished")
    printed = run_command(
        "train.py", "debug=quick", *TWO_IMAGES, "modality=mri", "reasoning=think_after", f"output_dir={output_dir}"
    )
    yield only_run(output_dir), printed
