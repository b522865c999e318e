"""What a report says of the settings of its runs."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from medr1.atomic_write import read_json, write_json
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.conditions import conditions
from tests.composing import composed

BEST = ["trainer.metric_for_best_model=validation/accuracy", "trainer.load_best_model_at_end=true"]
BEST += ["data.validation_fraction=0.1", "trainer.eval_steps=50"]


def run(place: Path, *overrides: str, best: int | None = None):
    cfg = composed("train", *overrides)
    directory = RunDirectory(place)
    directory.create(OmegaConf.structured(cfg), [], {})
    if best is not None:
        write_json(directory.best, {"metric": "validation/accuracy", "step": best, "value": 0.5})
    return directory, cfg


def test_training_data_and_the_tested_checkpoint_are_named(tmp_path: Path) -> None:
    mri = run(tmp_path / "a", "modality=mri", "question_type=disease", *BEST, best=100)
    found = conditions([mri])
    assert found["trained on"] == "MRI, Disease"
    assert found["tested"] == "the checkpoint with the best validation/accuracy (step 100)"
    every = run(tmp_path / "b", *BEST, best=50)
    found = conditions([mri, every])
    assert found["trained on"] == "MRI, Disease; all records" and found["tested"].endswith("(step 50 to 100)")


def test_the_date_is_that_of_the_start(tmp_path: Path) -> None:
    """A resumed run writes its config again, and a copy has new times."""
    directory, cfg = run(tmp_path / "a")
    write_json(directory.environment, {**read_json(directory.environment), "started": "2026-01-02T23:59:00+01:00"})
    assert conditions([(directory, cfg)])["date"] == "2026-01-02"


def test_the_last_model_is_not_named_as_chosen(tmp_path: Path) -> None:
    found = conditions([run(tmp_path / "a")])
    assert "tested" not in found and found["trained on"] == "all records" and "steps of" in found["training"]
