"""Settings are chosen by validation alone, row by row, and stages of a sweep continue each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from medr1.config.schema import marked_keys
from medr1.errors import ConfigError, DataError
from medr1.reporting.sections import selection_section
from medr1.runs.run_directory import RunDirectory
from medr1.runs.selection import choose, validation_value
from medr1.runs.sweep import Job, Manifest, SweepDirectory
from medr1.workflows.multirun import _chained
from medr1.workflows.sweep_job import _wait_for
from medr1.workflows.sweep_runs import rows_of
from tests.composing import composed

RATE = "algorithm.learning_rate"
RUNS = {
    # name: (row, algorithm, learning rate, seed, validation)
    "a": ("ct", "sft", "1e-4", "0", 0.5),
    "b": ("ct", "sft", "1e-4", "1", 0.7),
    "c": ("ct", "sft", "1e-3", "0", 0.8),
    "d": ("ct", "sft", "1e-3", "1", 0.3),
    "e": ("mri", "sft", "1e-4", "0", 0.1),
    "f": ("mri", "sft", "1e-3", "0", 0.2),
    "g": ("ct", "grpo", "1e-4", "0", 0.4),
    "h": ("ct", "grpo", "1e-3", "0", 0.4),
}
AXES = {
    name: {"modality": row, "algorithm": algorithm, RATE: rate, "seed": seed}
    for name, (row, algorithm, rate, seed, _) in RUNS.items()
}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("validation/accuracy", [["a", "b"], ["f"], ["g"]]),
        ("validation/completion_length", [["c", "d"], ["e"], ["g"]]),
    ],
)
def test_each_row_and_algorithm_has_the_best_mean_over_seeds(metric: str, expected: list[list[str]]) -> None:
    values = {name: run[-1] for name, run in RUNS.items()}
    choices = choose(AXES, values, "modality", metric)
    assert [choice.chosen.runs for choice in choices] == expected
    assert choices[0].cell == {"modality": "ct", "algorithm": "sft"}
    assert [option.value for option in choices[0].options] == pytest.approx([0.6, 0.55])
    section = selection_section(choices, metric, 2)
    assert metric in section.paragraphs[0] and "algorithm.learning_rate=" in section.paragraphs[2]
    assert section.paragraphs[1] == "2 runs of the sweep are not finished and do not count."
    (_, table), *_ = section.tables
    assert [row[-1] for row in table.rows].count("chosen") == 3 and len(table.rows) == 6


def test_an_option_whose_run_failed_is_not_compared_with_the_mean_of_others() -> None:
    """The remaining seed of 1e-3 is better than the mean of 1e-4, because it is an easy seed."""
    finished = {name: run for name, run in RUNS.items() if name != "d"}
    values = {name: run[-1] for name, run in finished.items()}
    choices = choose({name: AXES[name] for name in finished}, values, "modality", "validation/accuracy")
    assert choices[0].chosen.runs == ["a", "b"]
    assert [option.runs for option in choices[0].incomplete] == [["c"]]
    (_, table), *_ = selection_section(choices, "validation/accuracy", 0).tables
    assert [row[-1] for row in table.rows].count("not compared: seeds missing") == 1


@pytest.mark.parametrize(("is_best", "value"), [(True, 0.9), (False, 0.6)])
def test_the_value_is_that_of_the_checkpoint_that_the_run_evaluates(
    is_best: bool, value: float, tmp_path: Path
) -> None:
    words = (
        "data.validation_fraction=0.1",
        "trainer.eval_steps=2",
        "trainer.metric_for_best_model=validation/accuracy",
    )
    run = RunDirectory(tmp_path)
    cfg = composed("train", *words, f"trainer.load_best_model_at_end={str(is_best).lower()}")
    run.create(OmegaConf.structured(cfg), [], {})
    with pytest.raises(DataError, match="validation/accuracy"):
        validation_value(run, "validation/accuracy")
    lines: list[dict[str, Any]] = [{"step": s, "validation/accuracy": v} for s, v in ((0, 0.2), (2, 0.9), (4, 0.6))]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 5, "train/loss": 1.0}]))
    run.best.write_text(json.dumps({"step": 2}))
    assert validation_value(run, "validation/accuracy") == value


def job(**axes: str) -> Job:
    return Job("-".join(axes.values()), axes, [])


def test_each_stage_continues_the_run_of_the_stage_before_with_the_same_other_settings() -> None:
    jobs = [job(algorithm=a, seed=s) for a in ("sft", "grpo", "dapo") for s in "01"]
    found = {j.name: (j.continues, j.axes["algorithm"]) for j in _chained(jobs, "algorithm")}
    assert found == {
        "sft-0": ("", "sft"),
        "sft-1": ("", "sft"),
        "grpo-0": ("sft-0", "sft_then_grpo"),
        "grpo-1": ("sft-1", "sft_then_grpo"),
        "dapo-0": ("grpo-0", "sft_then_grpo_then_dapo"),
        "dapo-1": ("grpo-1", "sft_then_grpo_then_dapo"),
    }
    for axis in ("seed", "modality"):
        with pytest.raises(ConfigError, match=f"sweep.chain={axis}"):
            _chained([job(algorithm=a, seed="0") for a in ("sft", "grpo")], axis)


@pytest.mark.parametrize(
    ("varied", "is_selected", "rows"),
    [
        (["algorithm", RATE], False, RATE),
        (["algorithm", RATE], True, "algorithm"),
        ([RATE], True, "modality"),
        ([RATE, "modality"], True, "modality"),
        (["modality.name"], False, "modality.name"),
        ([], False, "modality"),  # seeds alone: those of a row are pooled
        (["algorithm"], False, "algorithm"),
    ],
)
def test_what_is_chosen_among_makes_no_rows(varied: list[str], is_selected: bool, rows: str) -> None:
    assert rows_of(varied, is_selected=is_selected) == rows


@pytest.mark.parametrize(("mark", "expected"), [("finished", True), ("failure", False)])
def test_a_stage_begins_when_the_one_before_has_ended(mark: str, expected: bool, tmp_path: Path) -> None:
    directory = SweepDirectory(tmp_path)
    directory.add(Manifest("t", "seed", "modality", [], ["a"], {"a": Job("a", {}, [])}))
    file: Path = getattr(directory.run("a"), mark)
    file.parent.mkdir()
    file.write_text("{}")
    assert _wait_for(directory, "a", stop_on_failure=False) is expected


def test_a_stage_does_not_wait_for_one_that_will_not_start(tmp_path: Path) -> None:
    directory = SweepDirectory(tmp_path)
    directory.add(Manifest("t", "seed", "modality", [], ["a", "b"], {n: Job(n, {}, []) for n in "ab"}))
    directory.run("a").path.mkdir()
    directory.run("a").failure.write_text("{}")
    assert _wait_for(directory, "b", stop_on_failure=True) is False


def test_settings_of_training_records_alone_can_be_chosen_among() -> None:
    same = set(marked_keys(composed("train").data, "same_records"))
    assert {"image_size", "shortcut", "filter", "curriculum"} <= same
    assert same.isdisjoint({"validation_fraction", "seed", "test_images_per_modality", "train_images_per_modality"})
