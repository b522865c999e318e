"""Sweeps from the command line: nothing is lost, nothing is run twice, whatever the launcher and whoever is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from medr1.atomic_write import write_json
from medr1.evaluation.predictions import read_predictions
from medr1.runs.sweep import State, SweepDirectory
from medr1.tracking.address import stored_run
from tests.integration.conftest import ROOT, command, read_json, run_command

pytestmark = pytest.mark.long

SMALL = ("debug=quick", "data.train_images_per_modality=10", "data.test_images_per_modality=2", "trainer.max_steps=2")
SWEEP = ("sweep=cross_modality", "modality=ct,mri", *SMALL)


def launcher(name: str, *settings: str) -> tuple[str, ...]:
    plugin = name.split("_")[0]
    if importlib.util.find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is None:
        pytest.skip(f'hydra-{plugin}-launcher is not installed: pip install -e ".[launchers]"')
    return (f"hydra/launcher={name}", *settings)


def broken_and_fine(folder: Path) -> tuple[str, str]:
    """Overrides with a reward function that ends a run, by no error of its own kind, and one that does not."""
    (folder / "rewards.py").write_text(
        "class Broken(BaseException):\n    pass\n\n\n"
        "def broken(completions, **more):\n    raise Broken('nothing to reward')\n\n\n"
        "def fine(completions, **more):\n    return [0.0 for _ in completions]\n"
    )
    functions = ",".join(f"{folder}/rewards.py:{name}" for name in ("broken", "fine"))
    return f"+reward.functions.own.function={functions}", "+reward.functions.own.weight=1"


def only_sweep(output_dir: Path) -> SweepDirectory:
    (file,) = output_dir.glob("*/sweep.json")
    return SweepDirectory(file.parent)


def copied(sweep: SweepDirectory, output_dir: Path) -> SweepDirectory:
    """A copy that the same command finds in another ``output_dir``."""
    return SweepDirectory(Path(shutil.copytree(sweep.path, output_dir / sweep.path.name)))


def tables(sweep: SweepDirectory) -> Any:
    return read_json(sweep.report / "matrices.json")


def children(sweep: SweepDirectory) -> dict[str, str]:
    """Directory and status of every run in MLflow under the sweep's own."""
    stored = stored_run(sweep.path)
    assert stored is not None
    client = MlflowClient(tracking_uri=stored.uri)
    experiment = client.get_experiment_by_name(stored.experiment)
    runs = client.search_runs([experiment.experiment_id], f"tags.mlflow.parentRunId = '{stored.run_id}'")
    found = [(r.data.tags["run_directory"], r.info.status) for r in runs]
    assert len(dict(found)) == len(found), "a run stands twice under its sweep"
    return {Path(directory).name: status for directory, status in found}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepDirectory, str]:
    """Four runs, two at a time in the processes of joblib."""
    output_dir = tmp_path_factory.mktemp("joblib")
    launcher("joblib")
    printed = run_command("train.py", *SWEEP, "launcher=local", f"output_dir={output_dir}")
    return only_sweep(output_dir), printed


def test_parallel_runs_are_all_there_once(undisturbed: tuple[SweepDirectory, str]) -> None:
    sweep, printed = undisturbed
    names = sweep.read().wanted
    assert len(names) == 4 and set(sweep.states(names).values()) == {State.FINISHED}
    assert children(sweep) == dict.fromkeys(names, "FINISHED")
    assert "4 of 4 done" in printed
    assert "launcher" not in sweep.path.name, "how runs are started makes no other sweep"
    bases = [sweep.run(name).predictions("base").read_bytes() for name in names]
    assert len(list((sweep.path / "base").glob("*.jsonl"))) == 1 and len(set(bases)) == 1


def test_cells_are_those_of_the_predictions_files(undisturbed: tuple[SweepDirectory, str]) -> None:
    sweep, _ = undisturbed
    found = tables(sweep)
    for matrix in found["matrices"]:
        for row, cells in matrix["cells"].items():
            (name,) = {run for cell in cells.values() for run in cell["runs"]}
            assert sweep.read().jobs[name].axes == {"modality": row, "algorithm": matrix["method"], "seed": "0"}
            lines = read_predictions(sweep.run(name).predictions("trained"))
            for column, cell in cells.items():
                part = [p for p in lines if column in ("all", p.modality)]
                assert cell["n"] == len(part)
                assert cell["accuracy"]["value"] == pytest.approx(sum(p.correct for p in part) / len(part))
    stored = stored_run(sweep.path)
    assert stored is not None
    client = MlflowClient(tracking_uri=stored.uri)
    assert client.get_run(stored.run_id).info.status == "FINISHED"
    files = {f.path for f in client.list_artifacts(stored.run_id)}
    assert {"report.html", "matrices.json", "results.md", "sft.csv", "grpo.csv", "figures"} <= files


def test_a_longer_command_runs_only_what_is_not_finished(
    undisturbed: tuple[SweepDirectory, str], tmp_path: Path
) -> None:
    sweep = copied(undisturbed[0], tmp_path)
    before = {name: sweep.run(name).summary.stat().st_mtime_ns for name in sweep.read().wanted}
    longer = [word.replace("ct,mri", "ct,mri,us") for word in (*SWEEP, "algorithm=sft")]
    printed = run_command("train.py", *longer, f"output_dir={sweep.path.parent}")
    assert "2 finished, 0 to be continued" in printed
    assert printed.count("started") == 1 and len(sweep.read().jobs) == 5
    assert {name: sweep.run(name).summary.stat().st_mtime_ns for name in before} == before
    grown = tables(sweep)
    assert {m["method"]: len(m["cells"]) for m in grown["matrices"]} == {"sft": 3, "grpo": 2}


def test_what_cannot_stand_in_one_table_is_refused_before_it_is_computed(
    undisturbed: tuple[SweepDirectory, str],
) -> None:
    sweep, _ = undisturbed
    rates = "algorithm.learning_rate=1e-4,1e-3"
    printed = run_command("train.py", *SWEEP, rates, f"output_dir={sweep.path.parent}", status=2)
    for words in ("holds runs that vary algorithm, modality", "algorithm.learning_rate", "sweep.name=NAME"):
        assert words in printed, printed
    printed = run_command("train.py", *SWEEP, "sweep.chain=algorithm", f"output_dir={sweep.path.parent}", status=2)
    assert "which begins a chain, and here it continues" in printed, printed
    one = sweep.run(sweep.read().wanted[0]).path
    printed = run_command("train.py", "-m", f"resume={one}", "seed=0,1", status=2)
    assert "continues one run, without -m" in printed, printed
    assert "directory of a sweep" in run_command("train.py", f"resume={sweep.path}", status=2)
    name = sweep.read().wanted[0]
    environment = sweep.run(name).environment
    before = environment.read_text()
    write_json(environment, {**json.loads(before), "model_fingerprint": "of other weights"})
    printed = run_command("train.py", *SWEEP, f"output_dir={sweep.path.parent}", status=2)
    environment.write_text(before)
    assert f"{sweep.run(name).path} began with other weights" in printed, printed


def test_a_finished_run_with_the_same_values_and_other_settings_is_refused(
    undisturbed: tuple[SweepDirectory, str], tmp_path: Path
) -> None:
    """As after an update that has changed a default: both would stand in the same cell."""
    sweep = copied(undisturbed[0], tmp_path)
    name, other = sweep.read().wanted[0], "of_an_earlier_version"
    sweep.run(name).path.rename(sweep.run(other).path)
    sweep.manifest_file.write_text(sweep.manifest_file.read_text().replace(name, other))
    printed = run_command("train.py", *SWEEP, f"output_dir={tmp_path}", status=2)
    assert f"holds the finished run {other}, which has the values of {name} (" in printed, printed


def test_runs_from_before_a_setting_are_extended_with_its_earlier_value(
    undisturbed: tuple[SweepDirectory, str], tmp_path: Path
) -> None:
    """The questions of version 1 are others, so the seeds of both versions cannot stand in one cell."""
    sweep = copied(undisturbed[0], tmp_path)
    for name in sweep.read().wanted:
        config = sweep.run(name).config
        stored = config.read_text()
        assert "question_version: 2" in stored
        config.write_text(stored.replace("  question_version: 2\n", ""))
    printed = run_command("train.py", *SWEEP, "seed=1", f"output_dir={tmp_path}", status=2)
    assert "holds runs with data.question_version=1" in printed and "add data.question_version=1, or" in printed, (
        printed
    )
    # The remedy leads to the same directory. There the run is refused, because it was made with version 2 after all.
    printed = run_command("train.py", *SWEEP, "data.question_version=1", f"output_dir={tmp_path}", status=2)
    assert f"{sweep.path} holds the finished run" in printed, printed


def test_the_report_of_a_sweep_whose_database_is_gone(undisturbed: tuple[SweepDirectory, str], tmp_path: Path) -> None:
    """It is written, and the remedies that are printed work."""
    sweep = copied(undisturbed[0], tmp_path)
    stored = stored_run(sweep.path)
    assert stored is not None
    replace(stored, uri=f"sqlite:///{tmp_path}/gone.db").write(sweep.path)
    shutil.rmtree(sweep.report)
    printed = run_command("evaluate.py", f"sweep={sweep.path}")
    for words in ("the report is not in MLflow", "tracking.uri=sqlite:////PATH", "tracking.enabled=false"):
        assert words in printed, printed
    assert (sweep.report / "report.html").is_file()
    assert "not in MLflow" not in run_command("evaluate.py", f"sweep={sweep.path}", "tracking.enabled=false")
    run_command("evaluate.py", f"sweep={sweep.path}", f"tracking.uri={stored.uri}")
    assert stored_run(sweep.path) == stored, "where it is now, the run is the same"


def test_killed_sweeps_go_on_until_the_table_is_that_of_one_left_in_peace(
    undisturbed: tuple[SweepDirectory, str], tmp_path: Path
) -> None:
    """Processes of submitit on this machine; SIGKILL at three random moments, then the same command."""
    words = (*SWEEP, *launcher("submitit_local", "hydra.launcher.tasks_per_node=1"), f"output_dir={tmp_path}")
    waits = []
    for _ in range(3):
        process = command("train.py", *words)
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/*/job.log")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        waits.append(random.uniform(0, 8))
        time.sleep(waits[-1])
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    run_command("train.py", *words)
    sweep, peace = only_sweep(tmp_path), undisturbed[0]
    names = sweep.read().wanted
    assert set(sweep.states(names).values()) == {State.FINISHED}
    assert children(sweep) == dict.fromkeys(names, "FINISHED")
    for name in names:
        for condition in ("base", "trained", "shuffled_image"):
            ours, theirs = (s.run(name).predictions(condition) for s in (sweep, peace))
            assert read_predictions(ours) == read_predictions(theirs), (waits, condition)


def test_a_failing_run_is_told_with_its_traceback_and_ends_the_sweep_only_if_asked(tmp_path: Path) -> None:
    """Only the run itself finds out that the reward function ends it."""
    words = ("-m", *broken_and_fine(tmp_path), *SMALL, "tracking=none", f"output_dir={tmp_path}/runs")
    stopped = run_command("train.py", *words, "sweep.stop_on_failure=true", status=2)
    assert "skipped, because another run has failed" in stopped and "none of its 2 runs is finished" in stopped
    printed = run_command("train.py", *words, status=1)
    assert "1 of 2 runs are not finished" in printed
    sweep = only_sweep(tmp_path / "runs")
    failed, fine = sweep.read().wanted
    assert sweep.states([failed, fine]) == {failed: State.FAILED, fine: State.FINISHED}
    log = sweep.run(failed).log.read_text()
    assert "Traceback (most recent call last)" in log and "nothing to reward" in log
    page = (sweep.report / "report.html").read_text()
    assert "Traceback (most recent call last)" in page and f"{sweep.path}/" not in page and f"{ROOT}/" not in page
    assert json.loads(sweep.run(failed).failure.read_text())["status"] == 1


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_the_launchers_of_a_cluster_where_there_is_one(
    name: str, undisturbed: tuple[SweepDirectory, str], tmp_path: Path
) -> None:
    launcher("ray" if name == "ray" else "submitit_slurm")
    small = ("cpus_per_task=1", "mem_gb=2", "gpus_per_node=null", "timeout_min=10") if name == "slurm" else ()
    if name == "slurm" and (not shutil.which("sinfo") or subprocess.run(["sinfo"], capture_output=True).returncode):
        pytest.skip("no SLURM controller answers here")
    words = (f"launcher={name}", *(f"hydra.launcher.{setting}" for setting in small))
    printed = run_command("train.py", *SWEEP, *words, f"output_dir={tmp_path}")
    sweep, peace = only_sweep(tmp_path), undisturbed[0]
    names = sweep.read().wanted
    assert len(names) == 4 and children(sweep) == dict.fromkeys(names, "FINISHED")
    assert all(run in printed for run in names), "what becomes of each run is told here"
    for run in names:
        ours, theirs = (s.run(run).predictions("trained") for s in (sweep, peace))
        assert read_predictions(ours) == read_predictions(theirs)


def test_two_commands_on_one_sweep_share_its_runs(tmp_path: Path) -> None:
    """Both choose the same runs in the same order; one waits where the other is."""
    words = (*SWEEP, "algorithm=sft", f"output_dir={tmp_path}", "tracking=none")
    both = [command("train.py", *words) for _ in range(2)]
    printed = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    sweep = only_sweep(tmp_path)
    names = sweep.read().wanted
    assert len(names) == 2 and set(sweep.states(names).values()) == {State.FINISHED}
    for name in names:
        assert sum(text.count(f"{name}: started") for text in printed) == 1, printed
    assert "waiting for another command of this sweep" in "".join(printed)
    assert not any("failed" in text for text in printed), printed


def test_two_processes_do_not_work_on_one_run(undisturbed: tuple[SweepDirectory, str]) -> None:
    sweep, _ = undisturbed
    run = sweep.run(sweep.read().wanted[0])
    with run.lock():
        printed = run_command("train.py", f"resume={run.path}", status=2)
    assert "is in use by another process" in printed
