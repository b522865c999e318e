"""A sweep on disk: its manifest and the states of its runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from medr1.config.naming import distinct_names, sweep_name
from medr1.errors import ConfigError
from medr1.runs.sweep import Job, Manifest, State, SweepDirectory, seconds_left, sweep_of


def manifest(*names: str) -> Manifest:
    jobs = {name: Job(name, {"modality": name}, [f"modality={name}"]) for name in names}
    return Manifest("cross_modality", "modality", "modality", ["sweep=cross_modality"], list(names), jobs)


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDirectory:
    directory = SweepDirectory(tmp_path / "sweep")
    directory.add(manifest("ct", "mri"))
    return directory


def put(file: Path, content: object = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def test_the_manifest_comes_back_and_grows_with_the_commands(sweep: SweepDirectory) -> None:
    assert sweep.read() == manifest("ct", "mri")
    sweep.add(manifest("oct"))
    again = sweep.read()
    assert again.wanted == ["oct"] and list(again.jobs) == ["ct", "mri", "oct"]
    assert list(sweep.add(manifest("b", "a")).jobs) == list(sweep.read().jobs) == ["ct", "mri", "oct", "b", "a"]
    assert again.jobs["mri"].axes == {"modality": "mri"}


def test_states_are_read_from_the_files_of_the_runs(sweep: SweepDirectory) -> None:
    run = sweep.run("ct")
    assert sweep.state("ct") == State.WAITING
    put(run.config)
    assert sweep.state("ct") == State.INTERRUPTED
    put(run.failure)
    assert sweep.state("ct") == State.FAILED
    put(run.summary)
    assert sweep.state("ct") == State.FAILED, "MLflow may not have its results yet"
    put(run.finished)
    assert sweep.states(["ct", "mri"]) == {"ct": State.FINISHED, "mri": State.WAITING}


def test_a_new_command_starts_failed_runs_again(sweep: SweepDirectory) -> None:
    for name in ("ct", "mri"):
        put(sweep.run(name).failure)
    sweep.add(manifest("ct"))
    assert sweep.states(["ct", "mri"]) == {"ct": State.WAITING, "mri": State.FAILED}


def test_a_missing_and_a_damaged_manifest_are_refused(sweep: SweepDirectory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no sweep: it has no sweep\.json"):
        SweepDirectory(tmp_path).read()
    for damage in ("{", "[]", '{"jobs": 3}', '{"jobs": [], "name": "x"}'):
        sweep.manifest_file.write_text(damage)
        with pytest.raises(ConfigError, match=r"sweep\.json is damaged"):
            sweep.read()


def test_a_run_knows_its_sweep(sweep: SweepDirectory) -> None:
    assert sweep_of(sweep.run("ct")) == sweep
    assert sweep_of(SweepDirectory(sweep.path.parent).run("alone")) is None


def test_runs_with_the_same_inputs_share_base_predictions(sweep: SweepDirectory) -> None:
    def file(**inputs: object) -> Path:
        with sweep.shared_base_predictions(inputs) as path:
            return path

    assert file(mode="no_think", limit=None) == file(limit=None, mode="no_think")
    assert file(mode="no_think", limit=None) != file(mode="no_think", limit=3)


def test_the_time_left_is_estimated_from_earlier_runs(sweep: SweepDirectory) -> None:
    assert seconds_left([], 3, 1) is None and sweep.seconds("ct") is None
    assert seconds_left([60.0, 120.0], 4, 2) == 180.0
    put(sweep.run("ct").timing, {"seconds": 12.5})
    assert sweep.seconds("ct") == 12.5


def test_a_sweep_is_named_by_the_overrides_that_its_runs_share() -> None:
    assert sweep_name("shortcut", []) == "shortcut"
    assert sweep_name("shortcut", ["reasoning=no_think", "budget=quick"]) == "shortcut_reasoning-no_think_budget-quick"
    long = [sweep_name("x", [f"model.path=/{'a' * 200}{end}"]) for end in "bc"]
    assert long[0] != long[1] and max(map(len, long)) <= 100


def test_values_that_differ_only_in_odd_characters_name_different_sweeps() -> None:
    odd = [
        sweep_name("seeds", [f"modality={value}"]) for value in ("CT-MR", "CT/MR", "CT MR", "'CT MR'", "数据", "资料")
    ]
    assert len(set(odd)) == len(odd) and odd[0] == "seeds_modality-CT-MR"
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in odd)


def test_texts_with_the_same_file_name_get_a_hash_each() -> None:
    names = distinct_names(["grpo", "a b", "a/b", "PET", "pet"], lambda text: re.sub(r"\W", "-", text))
    assert names["grpo"] == "grpo" and len({name.lower() for name in names.values()}) == 5
