"""Two processes give the same update as one with the same global batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.integration.conftest import only_run, run_command, train_here


@pytest.mark.parametrize("algorithm", ["grpo", "sft"])
def test_two_processes_equal_one(algorithm: str, tmp_path: Path) -> None:
    settings = (
        "debug=quick",
        "reasoning=no_think",
        f"algorithm={algorithm}",
        "trainer.steps=2",
        "evaluation.limit=1",
        "evaluation.blank_image=false",
        "tracking=none",
        "trainer.accelerator=cpu",
    )
    run_command("train.py", *settings, "trainer=ddp", f"output_dir={tmp_path / 'two'}")
    two = load_file(only_run(tmp_path / "two").model / "model.safetensors")
    one = load_file(train_here(tmp_path / "one", *settings).model / "model.safetensors")
    start = load_file(Path(__file__).parents[2] / "medr1" / "policy" / "tiny_base" / "model.safetensors")
    # As a whole, not weight by weight: Adam turns a gradient that is rounding noise into a step of full size.
    moved = sum(float((one[k] - start[k]).square().sum()) for k in one) ** 0.5
    apart = sum(float((one[k] - two[k]).square().sum()) for k in one) ** 0.5
    assert moved > 1e-3
    assert apart < 1e-3 * moved
