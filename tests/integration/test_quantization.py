"""``model.quantization=nf4``: an adapter on a base in 4 bits is trained, resumed, evaluated again and exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1.ask import load
from medr1.evaluation.predictions import read_predictions
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.evaluate import evaluate
from medr1.workflows.export import export_run
from medr1.workflows.train import train
from tests.integration.conftest import FEW_IMAGES, composed, train_here, train_interrupted

pytest.importorskip("bitsandbytes", reason="the extra [quantization] is not installed")

SETTINGS = (
    *("debug=quick", "modality=mri", "reasoning=no_think", "tracking=none", *FEW_IMAGES),
    *("model.tuning=lora", "model.quantization=nf4", "algorithm.learning_rate=1e-2"),
    *("trainer.max_steps=4", "trainer.save_steps=2", "evaluation.blank_image=false", "evaluation.shuffled_image=false"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return train_here(tmp_path_factory.mktemp("quantized") / "run", *SETTINGS)


def texts(run: RunDirectory, condition: str) -> list[str]:
    return [line.text for line in read_predictions(run.predictions(condition))]


@pytest.mark.long
def test_a_run_that_was_interrupted_and_resumed_is_the_same(run: RunDirectory, tmp_path: Path) -> None:
    again = train_interrupted(tmp_path / "run", 3, *SETTINGS)
    train(composed("train", f"resume={again.path}"), again.path, [])
    adapters = [(found.model / "adapter_model.safetensors").read_bytes() for found in (run, again)]
    assert adapters[0] == adapters[1]
    assert texts(run, "trained") == texts(again, "trained") != texts(run, "base")


def test_its_answers_are_those_of_the_quantized_base(run: RunDirectory, tmp_path: Path) -> None:
    words = (f"run={run.path}", f"output_dir={tmp_path}", "tracking=none", "evaluation.blank_image=false")
    words += ("evaluation.shuffled_image=false",)
    evaluate(composed("evaluate", *words), tmp_path / "again", list(words))
    assert texts(RunDirectory(tmp_path / "again"), "trained") == texts(run, "trained")


@pytest.mark.parametrize("merge", [True, pytest.param(False, marks=pytest.mark.long)])
def test_an_export_answers_like_the_run(merge: bool, run: RunDirectory, tmp_path: Path) -> None:
    """Merged: ordinary weights, which are those that the quantized ones stand for, and the adapter."""
    export_run(run, tmp_path / "export", merge)
    choice = load(tmp_path / "export").choice
    assert choice.quantization == ("none" if merge else "nf4")
    assert "on nf4 weights" in (tmp_path / "export" / "README.md").read_text("utf-8")
    if not merge:
        return
    words = ["model=hf", f"model.path={tmp_path / 'export'}", "model.dtype=float32", "data.image_size=84"]
    words += [word for word in SETTINGS if word.startswith(("reasoning", "tracking", "data", "evaluation"))]
    words += ["evaluation.max_completion_length=32", "evaluation.limit=5", f"output_dir={tmp_path}"]
    evaluate(composed("evaluate", *words), tmp_path / "merged", words)
    exported, trained = texts(RunDirectory(tmp_path / "merged"), "base"), texts(run, "trained")
    assert len(exported) == len(trained)
    assert sum(a == b for a, b in zip(exported, trained, strict=True)) >= 0.97 * len(trained)
