"""Nothing is lost: a run that was killed and resumed equals one that was left in peace, bit for bit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from medr1.evaluation.predictions import read_predictions
from medr1.runs.run_directory import RunDirectory
from medr1.tracking.address import stored_run
from medr1.workflows.train import train
from tests.integration.conftest import (
    FEW_IMAGES,
    command,
    composed,
    only_run,
    run_command,
    train_here,
    train_interrupted,
)

SETTINGS = (
    "debug=quick",
    "modality=ct",
    "reasoning=no_think",
    "trainer.max_steps=8",
    "evaluation.limit=1",
    "evaluation.blank_image=false",
    "evaluation.shuffled_image=false",
    *FEW_IMAGES,
)


def status_of(run: RunDirectory) -> str:
    stored = stored_run(run.path)
    assert stored is not None
    return str(MlflowClient(tracking_uri=stored.uri).get_run(stored.run_id).info.status)


def same_weights(a: RunDirectory, b: RunDirectory) -> bool:
    first, second = (load_file(run.model / "model.safetensors") for run in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def wait_for_checkpoint(output_dir: Path, step: int) -> None:
    """Until the checkpoint of a step is there, whole."""
    deadline = time.monotonic() + 120
    while not list(output_dir.glob(f"*/checkpoints/step={step}.ckpt/state.json")):
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_and_resumed_equals_uninterrupted(how: signal.Signals, tmp_path: Path) -> None:
    killed_dir = tmp_path / "killed"
    process = command("train.py", *SETTINGS, f"output_dir={killed_dir}")
    wait_for_checkpoint(killed_dir, 4)
    os.killpg(process.pid, how)
    printed, _ = process.communicate(timeout=120)
    killed = only_run(killed_dir)
    assert ("Continue with: python train.py resume=" in printed) == (how is not signal.SIGKILL)
    assert process.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 130) and not killed.model.exists()
    assert status_of(killed) == ("RUNNING" if how is signal.SIGKILL else "KILLED")
    run_command("train.py", f"resume={killed.path}")
    left_in_peace = train_here(tmp_path / "peace", *SETTINGS)
    assert same_weights(killed, left_in_peace)
    assert read_predictions(killed.predictions("trained")) == read_predictions(left_in_peace.predictions("trained"))
    assert status_of(killed) == "FINISHED"
    stored = stored_run(killed.path)
    assert stored is not None
    history = MlflowClient(tracking_uri=stored.uri).get_metric_history(stored.run_id, "train/reward")
    assert [m.step for m in sorted(history, key=lambda m: m.step)] == list(range(8))


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["drpo", "gdpo", "noisy_rollout", "papo", "reinforce_pp", "rloo", "sapo"])
def test_an_interrupted_run_of_every_method_resumes_exactly(algorithm: str, tmp_path: Path) -> None:
    settings = (
        "reasoning=no_think",
        "debug=quick",
        f"algorithm={algorithm}",
        "trainer.max_steps=4",
        "trainer.save_steps=1",
    )
    quick = (
        *settings,
        *FEW_IMAGES,
        "evaluation.limit=1",
        "evaluation.blank_image=false",
        "tracking=none",
        "trainer.accelerator=cpu",
    )
    run = train_interrupted(tmp_path / "interrupted" / "run", 2, *quick)
    train(composed("train", f"resume={run.path}"), run.path, [])
    assert same_weights(run, train_here(tmp_path / "peace", *quick))


def test_an_offloaded_optimizer_is_resumed(tmp_path: Path) -> None:
    quick = (*SETTINGS, "trainer.max_steps=3", "trainer.save_steps=1", "tracking=none", "trainer.accelerator=cpu")
    offloaded = (*quick, "trainer.optimizer_offload=true")
    run = train_interrupted(tmp_path / "interrupted" / "run", 2, *offloaded)
    train(composed("train", f"resume={run.path}"), run.path, [])
    assert same_weights(run, train_here(tmp_path / "peace", *offloaded))
    on_the_device = load_file(train_here(tmp_path / "device", *quick).model / "model.safetensors")
    for name, weight in load_file(run.model / "model.safetensors").items():
        torch.testing.assert_close(weight, on_the_device[name], rtol=0, atol=1e-5)


def test_a_failing_run_ends_failed_and_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "run")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("medr1.workflows.train.save_policy", full_disk)
        with pytest.raises(OSError, match="no space"):
            train_here(run.path, *SETTINGS, "trainer.max_steps=2")
    assert status_of(run) == "FAILED" and not run.model.exists()
    train(composed("train", f"resume={run.path}"), run.path, [])
    assert status_of(run) == "FINISHED" and run.summary.is_file()


def test_resuming_a_finished_run_answers_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train_here(tmp_path / "run", *SETTINGS, "trainer.max_steps=2", "tracking=none")
    before = run.summary.read_text()

    def unexpected(*_: object, **__: object) -> None:
        raise AssertionError("a finished condition was answered again")

    monkeypatch.setattr("medr1.evaluation.local_predictions.predict", unexpected)
    train(composed("train", f"resume={run.path}"), run.path, [])
    assert run.summary.read_text() == before
