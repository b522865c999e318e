"""A trained run on several benchmarks in one call, the comparison of two runs, and the audit, from the command line."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from medr1.runs.run_directory import RunDirectory
from tests.integration.conftest import MINI, TWO_IMAGES, only_run, read_json, run_command, train_here
from tests.miniatures import MINIATURES


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A few steps on phantoms."""
    folder = tmp_path_factory.mktemp("trained")
    return train_here(folder / "run", "debug=quick", *TWO_IMAGES, "modality=mri", "tracking=none", "evaluation.limit=1")


@pytest.fixture(scope="module")
def slake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slake") / "release"
    MINIATURES["slake"][1](folder)
    return folder


@pytest.fixture(scope="module")
def sets(slake: Path) -> list[str]:
    """The words of phantoms, SLAKE and, where it lies beside the project, OmniMedVQA."""
    words = ["data.sets=[phantoms,slake]", f"data.sets.slake.root={slake}"]
    if MINI.is_dir():
        omni = (f"data.sets.omnimedvqa.root={MINI}", "data.sets.omnimedvqa.split=image_grouped")
        words = ["data.sets=[phantoms,slake,omnimedvqa]", words[1], *omni]
    return words


@pytest.mark.long
def test_accuracies_by_benchmark_are_those_counted_in_the_predictions(
    trained: RunDirectory, sets: list[str], tmp_path: Path
) -> None:
    words = (f"run={trained.path}", *sets, "evaluation.limit=2", "tracking=none", f"output_dir={tmp_path}")
    printed = run_command("evaluate.py", *words)
    run = only_run(tmp_path)
    counted: dict[str, list[bool]] = defaultdict(list)
    for line in map(json.loads, run.predictions("trained").read_text().splitlines()):
        letter = line["text"].partition("<answer>")[2].partition("</answer>")[0].strip()
        assert line["record"].startswith(f"{line['benchmark']}/")
        counted[line["benchmark"]].append(letter == line["answer"])
    cells = read_json(run.summary)["conditions"]["trained"]["by_benchmark"]
    assert {name: (len(values), sum(values)) for name, values in counted.items()} == {
        name: (cell["n"], round(cell["accuracy"]["value"] * cell["n"])) for name, cell in cells.items()
    }
    assert {"phantoms", "slake"} <= cells.keys() and "By benchmark" in printed
    assert read_json(run.summary)["conditions"].keys() >= {"blank_image", "shuffled_image", "surface_cues"}
    table = run.results.read_text().rpartition("| --- |")[2]
    assert "| Trained | " in table and "| Blank image | " in table
    compared = run_command(
        "evaluate.py", f"compare=[{trained.path},{run.path}]", "tracking=none", f"output_dir={tmp_path / 'c'}", status=2
    )
    assert "no test record in common" in compared, "ids of several sets have the name of the set"


@pytest.mark.long
def test_an_evaluation_is_compared_with_another_one(trained: RunDirectory, tmp_path: Path) -> None:
    words = (*TWO_IMAGES, "evaluation.limit=2", "modality=mri", "tracking=none", "evaluation.blank_image=false")
    run_command("evaluate.py", *words, "evaluation.shuffled_image=false", f"output_dir={tmp_path / 'base'}")
    base = only_run(tmp_path / "base")
    printed = run_command(
        "evaluate.py", f"compare=[{base.path},{trained.path}]", "tracking=none", f"output_dir={tmp_path / 'compared'}"
    )
    (file,) = (tmp_path / "compared").glob("*/comparison.json")
    found = read_json(file)
    assert found["comparison"]["overall"]["n"] == 40, "one record of each cell in the sample of the training"
    assert (found["a"]["records_left_out"], found["b"]["records_left_out"]) == (40, 0)
    assert "left out: 40 of A and 0 of B" in printed


@pytest.mark.long
def test_the_audit_of_several_sets_is_written(sets: list[str], tmp_path: Path) -> None:
    small = ("data.sets.phantoms.train_images_per_modality=2", "data.sets.phantoms.test_images_per_modality=2")
    run_command("evaluate.py", "audit=data", *sets, *small, f"output_dir={tmp_path}", "tracking=none")
    (file,) = tmp_path.glob("*_audit_data/audit.json")
    found = read_json(file)
    assert found["sets"]["phantoms"]["test"] == 80 and found["sets"]["slake"]["test"] > 0
    pairs = len(found["sets"]) * (len(found["sets"]) - 1)
    assert len(found["overlaps"]) == pairs and "option\nprior" not in file.with_name("audit.txt").read_text()


@pytest.mark.long
def test_the_sweep_trains_on_each_set_and_tests_on_all(slake: Path, tmp_path: Path) -> None:
    words = ("data.sets=[phantoms,slake]", f"data.sets.slake.root={slake}", "data.train=phantoms,slake")
    printed = run_command(
        "train.py",
        *("sweep=cross_benchmark", *words, "algorithm=grpo", "debug=quick", "evaluation.limit=1"),
        *("tracking=none", f"output_dir={tmp_path}"),
    )
    (file,) = tmp_path.glob("cross_benchmark*/report/matrices.json")
    (matrix,) = read_json(file)["matrices"]
    assert matrix["rows"] == ["phantoms", "slake"] and matrix["columns"] == ["phantoms", "slake"], printed
