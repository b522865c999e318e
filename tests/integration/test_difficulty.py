"""A run chooses and orders its training records by pass rates; killed anywhere, or with others, it is the same."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medr1.errors import ConfigError, DataError
from medr1.evaluation.pass_rates import read_pass_rates
from medr1.evaluation.predictions import read_predictions
from medr1.runs.run_directory import RunDirectory
from medr1.training.steps import step_indices
from medr1.workflows.evaluate import evaluate
from medr1.workflows.session import load_data
from medr1.workflows.train import train
from tests.composing import composed
from tests.integration.conftest import SMALL_RUN, read_json, train_here
from tests.integration.processes import Watched, end, start, train_together

pytestmark = pytest.mark.long

SMALL = (
    *SMALL_RUN,
    "trainer.accelerator=cpu",
    "evaluation.blank_image=false",
    "tracking=none",
    "algorithm.learning_rate=1e-4",
    "trainer.max_steps=null",
    "trainer.num_train_epochs=0.5",
    "data.filter.pass_rate=[0.3,0.9]",
    "data.filter.num_generations=8",
    "data.curriculum=pass_rate",
)


def words(output_dir: Path, *more: str) -> tuple[str, ...]:
    return (*SMALL, f"output_dir={output_dir}", *more)


def cached(output_dir: Path) -> list[str]:
    """The lines of the one cache of completions below an output directory."""
    (file,) = (output_dir / "cache").glob("pass_rates-*.jsonl")
    return file.read_text().splitlines()[1:]


def same_model(a: RunDirectory, b: RunDirectory) -> bool:
    first, second = (load_file(run.model / "model.safetensors") for run in (a, b))
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, Watched]:
    """An uninterrupted run in one process, and what it computed."""
    place = tmp_path_factory.mktemp("peace")
    return RunDirectory(place / "run"), train_together(1, place, *words(place))


def test_a_run_is_trained_on_the_records_of_the_interval_from_easy_to_hard(peace: tuple[RunDirectory, Watched]) -> None:
    run, watched = peace
    rates = {rate.record: rate for rate in read_pass_rates(run.pass_rates)}
    chosen = [name for name, rate in rates.items() if 0.3 <= rate.value <= 0.9]
    assert len(rates) == 40 and 4 < len(chosen) < 36
    stored = run.stored_config(type(composed("train")))
    assert stored.trainer.max_steps == len(watched.completions) == -(-len(chosen) // 8)  # half an epoch, four a step
    of_steps = [sorted({record for record, *_ in step}) for step in watched.completions]
    values = [rates[name].value for name in chosen]
    expected = [sorted(chosen[i] for i in step_indices(len(chosen), 4, 0, n, values)) for n in range(len(of_steps))]
    assert of_steps == expected
    facts = read_json(run.environment)
    assert facts["data"]["pass_rates"] == read_json(run.summary)["pass_rates"]
    assert facts["data"]["pass_rates"]["training_records"] == len(chosen)
    assert facts["data_fingerprint"] != load_data(composed("train", *SMALL)).fingerprint
    assert f"the {len(chosen)} of 40 training records" in run.results.read_text()


def test_another_algorithm_takes_the_same_records_from_the_cache(
    peace: tuple[RunDirectory, Watched], tmp_path: Path
) -> None:
    run, _ = peace
    shutil.copytree(run.path.parent / "cache", tmp_path / "cache")
    before = cached(tmp_path)
    sft = train_here(tmp_path / "sft", *SMALL, "algorithm=sft", "seed=1", "data.filter.pass_rate=null")
    assert sft.pass_rates.read_bytes() == run.pass_rates.read_bytes()
    assert cached(tmp_path) == before
    assert read_json(sft.summary)["pass_rates"]["training_records"] == 40, "a curriculum alone keeps all records"


def test_an_evaluation_of_the_run_has_its_option_prior(peace: tuple[RunDirectory, Watched], tmp_path: Path) -> None:
    run, _ = peace
    again = RunDirectory(tmp_path / "again")
    given = (f"run={run.path}", "tracking=none")
    evaluate(composed("evaluate", *given), again.path, list(given))
    for condition in ("option_prior", "trained"):
        assert read_predictions(again.predictions(condition)) == read_predictions(run.predictions(condition))
    assert read_json(again.summary)["data_fingerprint"] == read_json(run.summary)["data_fingerprint"]


def killed(place: Path, *given: str, at: str, size: int = 0) -> None:
    """Kills a run as soon as a file that matches ``at`` has more than ``size`` bytes."""
    processes = start(1, place, *given)
    deadline = time.monotonic() + 120
    while not any(file.stat().st_size > size for file in place.glob(at)):
        assert time.monotonic() < deadline, (place / "rank0.log").read_text()
        time.sleep(0.005)
    processes[0].kill()
    assert end(processes) == [-signal.SIGKILL]


def test_killed_while_it_samples_and_while_it_trains(peace: tuple[RunDirectory, Watched], tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    given = words(tmp_path, "evaluation.batch_size=16")
    killed(tmp_path, *given, at="cache/pass_rates-*.jsonl", size=2000)
    assert not run.config.exists(), "a run begins with its records"
    before = cached(tmp_path)
    assert 20 < len(before) < 320
    killed(tmp_path, *given, at="run/checkpoints/step=1.ckpt/state.json")
    lines = cached(tmp_path)
    assert lines[: len(before) - 1] == before[:-1]
    assert len(lines) == len({line.rpartition(",")[0] for line in lines}) == 320, "no completion is sampled twice"
    shutil.rmtree(tmp_path / "cache")
    train_together(1, tmp_path, resume=True)
    assert not (tmp_path / "cache").exists(), "a run has its own pass rates"
    assert same_model(peace[0], run) and run.pass_rates.read_bytes() == peace[0].pass_rates.read_bytes()


@pytest.mark.parametrize("change", ["one_rate", "one_record"])
def test_a_run_goes_on_with_its_own_records_only(
    change: str, peace: tuple[RunDirectory, Watched], tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(peace[0].path, run.path)
    lines = run.pass_rates.read_text().splitlines(keepends=True)
    chosen = next(i for i, rate in enumerate(read_pass_rates(run.pass_rates)) if 0.3 <= rate.value <= 0.9)
    if change == "one_rate":
        count = read_pass_rates(run.pass_rates)[chosen].correct
        lines[chosen] = lines[chosen].replace(f'"correct": {count}', f'"correct": {count - 1}')
    else:
        del lines[chosen]
    run.pass_rates.write_text("".join(lines))
    with pytest.raises((ConfigError, DataError), match="the data has changed"):
        train(composed("train", f"resume={run.path}"), run.path, [])


def test_an_interval_without_records_is_refused_before_the_run_begins(tmp_path: Path) -> None:
    one_record = ("modality=ct", "question_type=anatomy")
    with pytest.raises(DataError, match=r"data\.filter\.pass_rate=\[1\.0, 1\.0\] leaves no training record"):
        train_here(tmp_path / "run", *SMALL, *one_record, "data.filter.pass_rate=[1,1]")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_two_processes_sample_each_completion_once_and_train_as_one(
    peace: tuple[RunDirectory, Watched], tmp_path: Path
) -> None:
    run, one = peace
    two = train_together(2, tmp_path, *words(tmp_path, "trainer=ddp", "trainer.devices=2"))
    assert sorted(cached(tmp_path)) == sorted(cached(run.path.parent))
    assert [[record for record, *_ in step] for step in two.completions] == [
        [record for record, *_ in step] for step in one.completions
    ]
    texts: list[Any] = [watched.completions[0] for watched in (one, two)]
    assert texts[0] == texts[1]
    assert (tmp_path / "run" / "pass_rates.jsonl").read_bytes() == run.pass_rates.read_bytes()
