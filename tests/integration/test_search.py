"""A search is killed and repeated: no trial is trained twice, and the tables are those of the best one."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from medr1.runs.search import read_trials
from medr1.runs.selection import validation_value
from medr1.runs.sweep import State
from medr1.tracking.address import stored_run
from tests.integration.conftest import SMALL_RUN, command, run_command
from tests.integration.test_sweep import broken_and_fine, children, only_sweep, tables

pytestmark = pytest.mark.long

METRIC = "validation/accuracy"
RATE = "algorithm.learning_rate"
VALIDATED = (*SMALL_RUN, "evaluation.blank_image=false", "data.validation_fraction=0.5", "trainer.eval_steps=1")
SEARCH = ("-m", *VALIDATED, "algorithm=sft", f"sweep.select={METRIC}")
RANGES = (f"{RATE}=tag(log,interval(1e-9,1e-2))", "algorithm.warmup_ratio=choice(0,0.5)")


def test_a_killed_search_goes_on(tmp_path: Path) -> None:
    words = (*SEARCH, *RANGES, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", f"output_dir={tmp_path / 'runs'}")
    process = command("train.py", *words, "sweep.trials=4")
    deadline = time.monotonic() + 400
    while len(list(tmp_path.glob("runs/search*/*/config.yaml"))) < 3:  # the third trial has begun
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    sweep = only_sweep(tmp_path / "runs")
    before = sweep.read().wanted
    summaries = {name: sweep.run(name).summary.stat().st_mtime_ns for name in before[:2]}
    assert len(before) == 3 and sweep.state(before[2]) == State.INTERRUPTED

    printed = run_command("train.py", *words, "sweep.trials=4")
    manifest = only_sweep(tmp_path / "runs").read()
    assert manifest.wanted[:3] == before and len(manifest.wanted) == 4
    assert f"{before[2]}: continued" in printed and printed.count("started") == 1
    assert {name: sweep.run(name).summary.stat().st_mtime_ns for name in before[:2]} == summaries
    assert children(sweep) == dict.fromkeys(manifest.wanted, "FINISHED")

    (trials,) = read_trials(sweep, manifest, manifest.jobs).values()
    assert [trial.value for trial in trials] == [validation_value(sweep.run(n), METRIC) for n in manifest.wanted]
    best = max(trials, key=lambda trial: trial.value or 0)
    (matrix,) = tables(sweep)["matrices"]
    assert {run for row in matrix["cells"].values() for cell in row.values() for run in cell["runs"]} == {
        *best.runs.values()
    }
    results = (sweep.report / "results.md").read_text()
    for number, trial in enumerate(trials, 1):
        assert f"| {number} | {trial.settings[RATE]} | {trial.settings['algorithm.warmup_ratio']} |" in results
    stored = stored_run(sweep.path)
    assert stored is not None
    data = MlflowClient(tracking_uri=stored.uri).get_run(stored.run_id).data
    assert data.metrics[f"best/{METRIC}"] == pytest.approx(best.value)
    assert data.tags[f"best.{RATE}"] == best.settings[RATE]
    assert data.params[RATE] == "tag(log,interval(1e-9,1e-2))"

    again = run_command("train.py", *words, "sweep.trials=2")
    assert "4 trials were begun by earlier commands" in again and "started" not in again


def test_failed_trials_are_told_and_the_launcher_gets_several_at_once(tmp_path: Path) -> None:
    words = ("-m", *VALIDATED, f"sweep.select={METRIC}", *broken_and_fine(tmp_path), "tracking=none", "sweep.trials=2")
    words = (*words, f"output_dir={tmp_path}/runs")
    printed = run_command("train.py", *words, "sweep.trials_at_once=2", status=1)
    sweep = only_sweep(tmp_path / "runs")
    manifest = sweep.read()
    states = {
        manifest.jobs[name].axes["+reward.functions.own.function"].rpartition(":")[2]: state
        for name, state in sweep.states(manifest.wanted).items()
    }
    assert states == {"fine": State.FINISHED, "broken": State.FAILED}
    assert printed.index("trial 2: ") < printed.index("[1/2]") and "1 of 2 runs are not finished" in printed
    assert "failed" in (sweep.report / "results.md").read_text()
