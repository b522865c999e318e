"""The environment of a run of a sweep, and the progress of runs that are launched remotely."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from medr1.runs.sweep import Job, Manifest, SweepDirectory
from medr1.workflows.sweep_job import print_progress, run_environment


def test_a_run_inside_a_slurm_job_starts_its_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning leaves that to SLURM where it finds the number of tasks."""
    for name in ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "1")
    found = run_environment(OmegaConf.create({"array_parallelism": 16}))
    assert "SLURM_JOB_ID" in found and not {"SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"} & set(found)


def test_runs_side_by_side_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    threads = [run_environment(OmegaConf.create(c)).get("OMP_NUM_THREADS") for c in ({"n_jobs": 4}, {"n_jobs": 1}, {})]
    assert threads == ["2", None, None]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run_environment(OmegaConf.create({"n_jobs": 4}))["OMP_NUM_THREADS"] == "3"


def test_progress_of_remotely_launched_runs_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = SweepDirectory(tmp_path / "sweep")
    jobs = {name: Job(name, {"seed": name}, []) for name in ("a", "b")}
    directory.add(Manifest("title", "seed", "modality", [], list(jobs), jobs))
    printed = ""

    def wait_for(text: str) -> None:
        nonlocal printed
        deadline = time.monotonic() + 30
        while text not in printed:
            assert time.monotonic() < deadline, printed
            time.sleep(0.01)
            printed += capsys.readouterr().out

    watching = threading.Thread(target=print_progress, args=(directory, directory.states(jobs), 0.01), daemon=True)
    watching.start()
    for file, text in (
        (directory.run("a").config, "a: started; 0 of 2 done"),
        (directory.run("b").failure, "b: failed; 0 of 2 done"),
        (directory.run("a").finished, "a: finished; 1 of 2 done"),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({}))
        wait_for(text)
    watching.join(30)
    assert not watching.is_alive(), "all runs have ended"
