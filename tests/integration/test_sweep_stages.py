"""``experiment=sft_then_grpo`` trains both stages in one command, and ``sweep.select`` chooses by validation."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from medr1.config.settings import TrainConfig
from medr1.evaluation.predictions import read_predictions
from medr1.runs.sweep import State
from tests.integration.conftest import SMALL_RUN, command, run_command
from tests.integration.test_sweep import children, only_sweep, tables

pytestmark = pytest.mark.long

SMALL = (*SMALL_RUN, "evaluation.blank_image=false")


def test_sft_then_grpo_is_killed_and_repeated(tmp_path: Path) -> None:
    tracking = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    words = ("experiment=sft_then_grpo", *SMALL, "model.tuning=lora", tracking, f"output_dir={tmp_path / 'runs'}")
    process = command("train.py", *words)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("runs/*/grpo_*/checkpoints/step=1.ckpt/state.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    run_command("train.py", *words)
    sweep = only_sweep(tmp_path / "runs")
    sft, grpo = sweep.read().wanted
    assert set(sweep.states([sft, grpo]).values()) == {State.FINISHED}
    assert children(sweep) == {sft: "FINISHED", grpo: "FINISHED"}
    assert sweep.run(grpo).stored_config(TrainConfig).model.path == str(sweep.run(sft).path)
    before, after = (
        [line.text for line in read_predictions(sweep.run(name).predictions(condition))]
        for name, condition in ((sft, "trained"), (grpo, "base"))
    )
    assert before == after
    (matrix,) = tables(sweep)["matrices"]
    assert matrix["rows"] == ["sft", "sft_then_grpo"]


def test_a_stage_whose_run_before_fails_is_skipped(tmp_path: Path) -> None:
    words = ("experiment=sft_then_grpo", *SMALL, "tracking=none", f"output_dir={tmp_path}", "model.path=./nowhere")
    printed = run_command("train.py", *words, status=2)
    assert "skipped, because sft_" in printed and "which it continues, has failed" in printed


def test_settings_are_chosen_by_validation(tmp_path: Path) -> None:
    validation = ("data.validation_fraction=0.5", "trainer.eval_steps=1", "sweep.select=validation/accuracy")
    rates = "algorithm.learning_rate=1e-9,1e-2"
    printed = run_command("train.py", "-m", *SMALL, "tracking=none", rates, *validation, f"output_dir={tmp_path}")
    sweep = only_sweep(tmp_path)
    assert len(sweep.read().wanted) == 2
    (matrix,) = tables(sweep)["matrices"]
    (cell,) = [row["all"] for row in matrix["cells"].values()]
    assert len(cell["runs"]) == 1, "the other run has no test number in the tables"
    assert "The settings were chosen by the largest validation/accuracy" in " ".join(printed.split())
    assert "algorithm.learning_rate=1e-" in (sweep.report / "results.md").read_text()
    assert "All settings, by validation/accuracy" in (sweep.report / "report.html").read_text()
