"""Validation changes nothing of a training; its best checkpoint and early stopping survive a kill, bit for bit."""

from __future__ import annotations

import gc
import json
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import medr1.workflows.train
from medr1.config.enums import CheckpointChoice
from medr1.config.settings import BLIND_VALIDATION_METRICS, VALIDATION_METRICS
from medr1.errors import CheckpointError
from medr1.evaluation.predictions import read_predictions
from medr1.models.policy import Policy
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.evaluate import evaluate
from medr1.workflows.train import train
from tests.composing import composed
from tests.integration.conftest import SMALL_RUN, read_json, train_here
from tests.integration.processes import end, start, train_together

SMALL = (*SMALL_RUN, "trainer.accelerator=cpu", "trainer.max_steps=4", "tracking=none")
VALIDATED = ("data.validation_fraction=0.25", "trainer.eval_steps=1")
BEST = "trainer.metric_for_best_model=validation/accuracy"
# No accuracy improves by more than 1, so that the second evaluation without improvement is that after step 3.
STOPPED = (*VALIDATED, BEST, "trainer.early_stopping_patience=2", "trainer.early_stopping_threshold=1")


def lines(run: RunDirectory, validation: bool) -> list[dict[str, Any]]:
    """The curves without times, of validation or of training."""
    read = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    kept = [line for line in read if ("validation/accuracy" in line) == validation]
    return [{key: value for key, value in line.items() if not key.endswith("_time")} for line in kept]


def same(a: Path, b: Path) -> bool:
    first, second = (load_file(next(place.glob("*.safetensors"))) for place in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "words",
    [
        ("trainer.eval_steps=3",),
        pytest.param(("algorithm=sft",), marks=pytest.mark.long),
        pytest.param(("model.tuning=lora", "model.gradient_checkpointing=true"), marks=pytest.mark.long),
        pytest.param(("algorithm.num_iterations=2", "algorithm.objective.beta=0"), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_training_with_validation_is_the_training_without_it(words: Sequence[str], tmp_path: Path) -> None:
    own = [word for word in words if "eval_steps" not in word]
    without = train_here(tmp_path / "without", *SMALL, *own)
    run = train_here(tmp_path / "with", *SMALL, *VALIDATED, *words)
    assert same(without.model, run.model)
    assert lines(without, False) == lines(run, False)
    assert not lines(without, True)
    steps = [line["step"] for line in lines(run, True)]
    assert steps == ([0, 3, 4] if "trainer.eval_steps=3" in words else [0, 1, 2, 3, 4])
    for condition in ("base", "trained", "blank_image"):
        assert read_predictions(run.predictions(condition)) == read_predictions(without.predictions(condition))


@pytest.mark.long
def test_the_best_checkpoint_is_that_of_the_best_value(tmp_path: Path) -> None:
    """With the learning rate 1, each step makes other weights, most of them bad."""
    words = (*SMALL, *VALIDATED, BEST, "algorithm.learning_rate=1e-3")
    run = train_here(tmp_path / "run", *words, "trainer.max_steps=3")
    values = {line["step"]: line["validation/accuracy"] for line in lines(run, True) if line["step"]}
    best = read_json(run.best)
    assert best["value"] == pytest.approx(max(values.values()), abs=1e-6)
    assert best["step"] == min(step for step, value in values.items() if value == max(values.values()))
    assert set(lines(run, True)[0]) == {"step", *VALIDATION_METRICS, *BLIND_VALIDATION_METRICS}
    # The weights of the best step are those of a training that ends there.
    ends_there = train_here(tmp_path / "ends", *words, f"trainer.max_steps={best['step']}")
    kept = run.weights("", CheckpointChoice.best)[0]
    assert len(list(run.best_checkpoint.iterdir())) == 1
    assert same(Path(kept), ends_there.model)
    assert run.weights("", CheckpointChoice.last) == run.weights("") == (str(run.model), None)
    at_end = train_here(tmp_path / "at_end", *words, "trainer.max_steps=3", "trainer.load_best_model_at_end=true")
    assert same(at_end.model, Path(kept)) and same(Path(at_end.weights("", CheckpointChoice.last)[0]), run.model)
    for checkpoint, trained in (("best", at_end), ("last", run)):
        place = tmp_path / f"evaluated-{checkpoint}"
        overrides = (f"run={run.path}", f"checkpoint={checkpoint}", "tracking=none")
        evaluate(composed("evaluate", *overrides), place, list(overrides))
        found = read_predictions(RunDirectory(place).predictions("trained"))
        assert found == read_predictions(trained.predictions("trained"))


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [
        ("trainer.metric_for_best_model=validation/accuracy", "trainer.greater_is_better=false"),
        ("trainer.metric_for_best_model=validation/completion_length", "reasoning=think_after"),
    ],
    ids=str,
)
def test_the_best_checkpoint_is_that_of_the_smallest_value(words: Sequence[str], tmp_path: Path) -> None:
    """As the setting says, and without it for a length."""
    settings = (*SMALL, *VALIDATED, *words, "algorithm.learning_rate=1e-2", "trainer.max_steps=3")
    run = train_here(tmp_path / "run", *settings)
    metric = words[0].partition("=")[2]
    values = {line["step"]: line[metric] for line in lines(run, True) if line["step"]}
    assert min(values.values()) < max(values.values())
    best = read_json(run.best)
    assert best["metric"] == metric and best["value"] == pytest.approx(min(values.values()), abs=1e-6)
    assert best["step"] == min(step for step, value in values.items() if value == min(values.values()))


def test_the_trained_policy_is_gone_before_the_final_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation loads the weights again, so that a device would have to hold them twice."""
    alive: list[int] = []

    def evaluate_weights(*args: Any, **kwargs: Any) -> None:
        gc.collect()
        alive.append(sum(isinstance(item, Policy) for item in gc.get_objects()) - before)
        original(*args, **kwargs)

    original = medr1.workflows.train.evaluate_weights
    before = sum(isinstance(item, Policy) for item in gc.get_objects())
    monkeypatch.setattr(medr1.workflows.train, "evaluate_weights", evaluate_weights)
    train_here(tmp_path / "run", *SMALL, *VALIDATED, BEST, "trainer.max_steps=1")
    assert alive == [0]


def test_a_run_without_a_best_checkpoint_says_so(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.model.mkdir()
    with pytest.raises(CheckpointError, match="metric_for_best_model"):
        run.weights("", CheckpointChoice.best)
    assert run.weights("", CheckpointChoice.last) == (str(run.model), None)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = train_here(tmp_path_factory.mktemp("stopped") / "run", *SMALL, *STOPPED)
    assert [line["step"] for line in lines(run, True)] == [0, 1, 2, 3], "it stops before step 4"
    return run


@pytest.mark.long
def test_killed_and_resumed_equals_uninterrupted(stopped: RunDirectory, tmp_path: Path) -> None:
    processes = start(1, tmp_path, *SMALL, *STOPPED)
    run, deadline = RunDirectory(tmp_path / "run"), time.monotonic() + 120
    while run.latest_checkpoint() is None:
        assert time.monotonic() < deadline, (tmp_path / "rank0.log").read_text()
        time.sleep(0.01)
    processes[0].kill()
    assert end(processes) == [-signal.SIGKILL] and not run.model.exists()
    train_together(1, tmp_path, resume=True)
    equal(run, stopped)


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_that_has_moved_goes_on_from_a_checkpoint(step: int, stopped: RunDirectory, tmp_path: Path) -> None:
    """Step 3: it has stopped, and is killed before its model is stored."""
    run = RunDirectory(tmp_path / "moved")
    if step == 3:
        shutil.copytree(stopped.path, run.path)
        for name in ("model", "model_best"):
            shutil.rmtree(run.path / name)
        for name in ("best.json", "finished.json", "summary.json", "predictions/trained.jsonl"):
            (run.path / name).unlink()
    else:
        first = RunDirectory(tmp_path / "first")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("medr1.training.validation.EarlyStop.on_train_batch_end", fail_at(2))
            with pytest.raises(RuntimeError, match="stopped by"):
                train_here(first.path, *SMALL, *STOPPED)
        first.path.rename(run.path)
    latest = run.latest_checkpoint()
    assert latest is not None and latest.stem == f"step={step}"
    train(composed("train", f"resume={run.path}"), run.path, [])
    equal(run, stopped)


def fail_at(step: int) -> Any:
    from medr1.training.validation import EarlyStop

    original = EarlyStop.on_train_batch_end

    def hook(self: EarlyStop, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch.step + 1 == step:
            raise RuntimeError("stopped by the test")
        original(self, trainer, module, outputs, batch, batch_idx)

    return hook


def equal(run: RunDirectory, peace: RunDirectory) -> None:
    assert same(run.model, peace.model) and same(run.path / "model_best", peace.path / "model_best")
    assert read_json(run.best) == read_json(peace.best)
    for validation in (True, False):
        assert lines(run, validation) == lines(peace, validation)
    assert read_predictions(run.predictions("trained")) == read_predictions(peace.predictions("trained"))


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_validate_as_one(strategy: str, tmp_path: Path) -> None:
    words = (*SMALL, *VALIDATED, BEST, "trainer.max_steps=2", "algorithm.learning_rate=1e-5")
    train_together(1, tmp_path / "one", *words)
    train_together(2, tmp_path / "two", *words, f"trainer={strategy}", "trainer.devices=2")
    one, two = (RunDirectory(tmp_path / name / "run") for name in ("one", "two"))
    assert lines(one, True) == lines(two, True) and len(lines(one, True)) == 3
    assert read_json(one.best) == read_json(two.best)
    a, b = (load_file(run.path / "model_best" / "model.safetensors") for run in (one, two))
    assert max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-5
