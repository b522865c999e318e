"""Samples and rotations of a local policy: no answer depends on its batch, and what is stored is not asked again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.reasoning import ReasoningMode
from medr1.evaluation.circular import rotate
from medr1.evaluation.local_predictions import LocalPredictionStore, predict
from medr1.evaluation.measures import read_measured, summarise_measures
from medr1.evaluation.prediction_store import Request, partial_file, sample_seed
from medr1.evaluation.predictions import Condition, Prediction, read_predictions
from medr1.generation.engines.local import LocalEngine
from medr1.models.loading import ModelSpec, load_policy
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from tests.integration.chat_server import TINY

RECORDS = make_records(World.TEST, 0, 1)[:10]


@pytest.fixture(scope="module")
def loaded() -> tuple[Policy, Processor]:
    return load_policy(ModelSpec(str(TINY)))


def store_in(folder: Path, **changes: Any) -> LocalPredictionStore:
    settings: dict[str, Any] = {
        "records": RECORDS,
        "mode": ReasoningMode.NO_THINK,
        "load": lambda record: (record.images[0].load(84),),
        "file": lambda name: folder / f"{name}.jsonl",
        "max_completion_length": 6,
        "batch_size": 64,
        "engine": LocalEngine(),
        "temperature": 1.0,
        "seed": 0,
    }
    return LocalPredictionStore(**{**settings, **changes})


def samples(folder: Path, loaded: tuple[Policy, Processor], n: int = 4, **changes: Any) -> dict[Any, Prediction]:
    store = store_in(folder, **changes)
    store.generate_samples(Condition.BASE, n, partial(store.answer, *loaded))
    return {(line.record, line.condition): line for line in read_predictions(folder / "base.samples.jsonl")}


def test_a_sample_depends_on_its_seed_and_its_record_alone(loaded: tuple[Policy, Processor], tmp_path: Path) -> None:
    four = samples(tmp_path / "four", loaded)
    assert list(four) == [(r.id, f"base.sample_{i}") for r in RECORDS for i in range(4)]
    assert len({line.text for line in four.values()}) > 3
    few = samples(tmp_path / "few", loaded, n=3, batch_size=2, records=RECORDS[3:5])  # fewer than there are samples
    assert few == {key: four[key] for key in few} and len(few) == 6
    other = samples(tmp_path / "seed", loaded, seed=1)
    assert [line.text for line in other.values()] != [line.text for line in four.values()]
    cold = samples(tmp_path / "cold", loaded, temperature=0.001)
    greedy = list(predict(*loaded, RECORDS, ReasoningMode.NO_THINK, "base", load=lambda r: (r.images[0].load(84),),
                          batch_size=64, max_completion_length=6, engine=LocalEngine()))  # fmt: skip
    assert [line.text for line in cold.values()] == [line.text for line in greedy for _ in range(4)]


def test_seeds_of_samples_are_distinct() -> None:
    seeds = {sample_seed(s, record.id, i) for s in range(3) for record in RECORDS for i in range(20)}
    assert len(seeds) == 600 and max(seeds) < 2**63


def test_rotations_are_greedy_answers_to_the_rotated_records(loaded: tuple[Policy, Processor], tmp_path: Path) -> None:
    store = store_in(tmp_path, batch_size=3)
    store.generate(*loaded, Condition.BASE)
    store.generate_rotations(Condition.BASE, partial(store.answer, *loaded))
    store.score_options(*loaded, Condition.BASE)
    lines = read_predictions(tmp_path / "base.rotations.jsonl")
    for places in (1, 2, 3):
        rotated = [rotate(record, places) for record in RECORDS if len(record.options) > places]
        expected = list(predict(*loaded, rotated, store.mode, f"base.rotation_{places}", load=store.load,
                                batch_size=64, max_completion_length=6, engine=LocalEngine()))  # fmt: skip
        assert [line for line in lines if line.condition == f"base.rotation_{places}"] == expected
    found = summarise_measures(read_measured(store.file, "base"))
    assert found is not None and found.samples is None
    assert found.circular is not None and found.circular.n == len(RECORDS)
    assert found.calibration is not None and found.calibration.n + found.calibration.without == len(RECORDS)
    agrees = found.calibration.accuracy.value * found.calibration.n
    assert agrees == pytest.approx(sum(line.correct for line in store.conditions["base"]))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_batches_that_are_encoded_in_advance_change_nothing(
    num_workers: int, loaded: tuple[Policy, Processor], tmp_path: Path
) -> None:
    """Batches of three; samples, rotations and probabilities too."""
    files = {}
    for workers in (0, num_workers):
        store = store_in(tmp_path / str(workers), batch_size=3, num_workers=workers)
        store.generate(*loaded, Condition.BASE)
        store.generate_samples(Condition.BASE, 2, partial(store.answer, *loaded))
        store.generate_rotations(Condition.BASE, partial(store.answer, *loaded))
        store.score_options(*loaded, Condition.BASE)
        files[workers] = {file.name: file.read_bytes() for file in (tmp_path / str(workers)).iterdir()}
    assert len(files[0]) == 4 and files[0] == files[num_workers]


@pytest.mark.parametrize("stored", [1, 7, 39])
def test_what_a_killed_process_has_stored_is_not_generated_again(
    stored: int, loaded: tuple[Policy, Processor], tmp_path: Path
) -> None:
    whole = list(samples(tmp_path / "whole", loaded).values())
    store = store_in(tmp_path)
    unfinished = partial_file(store.file("base.samples"))
    unfinished.write_text("".join(json.dumps(asdict(line)) + "\n" for line in reversed(whole[:stored])) + '{"torn')
    asked: list[Request] = []

    def answer(requests: list[Request]) -> Iterator[Prediction]:
        asked.extend(requests)
        return store.answer(*loaded, requests)

    store.generate_samples(Condition.BASE, 4, answer)
    assert [request.key for request in asked] == [(line.record, line.condition) for line in whole[stored:]]
    assert read_predictions(store.file("base.samples")) == whole and not unfinished.exists()
    store.generate_samples(Condition.BASE, 4, lambda requests: pytest.fail("the file is complete"))
