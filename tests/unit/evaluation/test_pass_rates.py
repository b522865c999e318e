"""Pass rates: what they count, which records they leave, and when a stored completion is taken again."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medr1.data.dataset import Dataset
from medr1.data.images import FileImage
from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.errors import DataError
from medr1.evaluation.local_predictions import LocalPredictionStore
from medr1.evaluation.pass_rates import PassRate, SampleCache, read_pass_rates, with_pass_rates, write_pass_rates
from medr1.evaluation.prediction_store import Request
from medr1.evaluation.predictions import Prediction, prediction
from medr1.generation.engines.local import LocalEngine
from medr1.models.loading import ModelSpec, load_policy
from medr1.rewards.accuracy import accuracy
from tests.integration.chat_server import TINY

MODE = ReasoningMode.NO_THINK
RECORDS = make_records(World.TRAIN, 0, 1)[:10]
SETTINGS = {"model": "a", "temperature": 1.0, "max_completion_length": 6, "seed": 0, "rollout": {"kind": "local"}}


def dataset(*values: float) -> tuple[Dataset, list[PassRate]]:
    """Records with these pass rates of four completions."""
    records = RECORDS[: len(values)]
    rates = [PassRate(r.id, round(4 * v), 0, 4) for r, v in zip(records, values, strict=True)]
    return Dataset(records, [], "fingerprint", {"counts": 3}, ["read"]), rates


def answers(requests: list[Request]) -> Iterator[Prediction]:
    """Every second completion is correct, every fourth has no answer."""
    for request in requests:
        assert request.sample is not None
        letter = request.record.answer if request.sample % 2 == 0 else next(iter(request.record.options))
        text = "" if request.sample % 4 == 3 else f"<answer>{letter}</answer>"
        yield prediction(request.record, request.condition, MODE, text, 3, False)


@pytest.mark.parametrize(
    ("interval", "left"),
    [
        ([0.25, 0.75], [1, 2, 3]),
        ([0.3, 0.7], [2]),
        ([0.0, 0.0], [0]),
        ([1.0, 1.0], [4]),
        ([0.0, 1.0], [0, 1, 2, 3, 4]),
        (None, [0, 1, 2, 3, 4]),
    ],
)
def test_the_ends_of_the_interval_belong_to_it(interval: list[float] | None, left: list[int]) -> None:
    values = (0, 0.25, 0.5, 0.75, 1)
    data, rates = dataset(*values)
    found = with_pass_rates(data, rates[::-1], interval, curriculum=True)
    assert found.train == [RECORDS[i] for i in left]
    assert found.pass_rates == [values[i] for i in left]
    assert with_pass_rates(data, rates, interval, curriculum=False).pass_rates == []
    facts = found.facts["pass_rates"]
    assert (facts["records"], facts["training_records"], facts["mean"]) == (5, len(left), 0.5)
    assert list(facts["histogram"].values()) == [1, 1, 1, 1, 0, 1]
    assert facts["by_modality"] == {"ct": [len(left), 5]}
    assert found.facts["counts"] == 3 and found.messages[0] == "read"
    assert any(f"the {len(left)} of 5" in message for message in found.messages) is (interval is not None)


def test_an_empty_result_tells_the_distribution() -> None:
    data, rates = dataset(0, 0, 1)
    with pytest.raises(DataError, match=r"pass_rate=\[0\.1, 0\.9\].* 0: 2, .* 1: 1;.*Remedy"):
        with_pass_rates(data, rates, [0.1, 0.9], curriculum=False)


def test_a_record_without_pass_rate_means_other_data() -> None:
    data, rates = dataset(0.5, 0.5)
    with pytest.raises(DataError, match=RECORDS[1].id):
        with_pass_rates(data, rates[:1], [0, 1], curriculum=False)


def test_the_fingerprint_tells_which_records_are_trained_on_and_in_which_order() -> None:
    data, rates = dataset(0.25, 0.5, 1)
    _, others = dataset(0.25, 0.75, 1)
    chosen = [
        with_pass_rates(data, rates, [0, 1], curriculum=False),
        with_pass_rates(data, rates, [0, 0.9], curriculum=False),
        with_pass_rates(data, rates, [0, 1], curriculum=True),
        with_pass_rates(data, others, [0, 1], curriculum=True),
        with_pass_rates(dataclasses.replace(data, fingerprint="other"), rates, [0, 1], curriculum=False),
    ]
    assert len({found.fingerprint for found in chosen}) == len(chosen)
    assert with_pass_rates(data, rates, None, curriculum=False).fingerprint == chosen[0].fingerprint


def test_rates_are_counted_and_survive_the_file(tmp_path: Path) -> None:
    cache = SampleCache(tmp_path, SETTINGS, MODE)
    records = [record for record in RECORDS if record.answer != next(iter(record.options))]
    cache.add(cache.missing(records, 8), answers)
    rates = cache.pass_rates(records, 8)
    assert rates == [PassRate(record.id, 4, 2, 8) for record in records]
    assert [rate.value for rate in rates] == [0.5] * len(records)
    write_pass_rates(tmp_path / "rates.jsonl", rates)
    assert read_pass_rates(tmp_path / "rates.jsonl") == rates


@pytest.mark.parametrize(
    "line",
    [
        *('{"record": "a"}', "[]", "{", '{"record": "a", "correct": "1", "unparsed": 0, "num_generations": 4}'),
        *(
            json.dumps({"record": "a", "correct": correct, "unparsed": unparsed, "num_generations": n})
            for correct, unparsed, n in ((5, 0, 4), (3, 2, 4), (-1, 0, 4), (0, 0, 0), (1.5, 0, 4))
        ),
    ],
)
def test_damaged_rates_are_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "rates.jsonl").write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"rates\.jsonl, line 1 is damaged"):
        read_pass_rates(tmp_path / "rates.jsonl")


@pytest.mark.parametrize(
    "changed",
    [
        *({name: "other"} for name in SETTINGS),
        {"image_size": 84},
        {"rollout": {"kind": "local", "temperature_factor": 1.2}},
    ],
    ids=str,
)
def test_other_settings_have_another_file(changed: dict[str, Any], tmp_path: Path) -> None:
    assert SampleCache(tmp_path, SETTINGS | changed, MODE).file != SampleCache(tmp_path, SETTINGS, MODE).file
    assert (
        SampleCache(tmp_path, dict(reversed(SETTINGS.items())), MODE).file == SampleCache(tmp_path, SETTINGS, MODE).file
    )


IMAGE = FileImage(Path("a"), "x.png", sha256="1")
STORED = dataclasses.replace(RECORDS[0], images=(IMAGE,))


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (dataclasses.replace(STORED, id="b"), False),
        (dataclasses.replace(STORED, question="Which one?"), False),
        (dataclasses.replace(STORED, options=dict(reversed(STORED.options.items()))), False),
        (dataclasses.replace(STORED, images=(dataclasses.replace(IMAGE, sha256="2"),)), False),
        (dataclasses.replace(STORED, images=(IMAGE, IMAGE)), False),
        (dataclasses.replace(STORED, images=(dataclasses.replace(IMAGE, root=Path("b"), content_id="y"),)), True),
        (dataclasses.replace(STORED, answer="B" if STORED.answer == "A" else "A"), True),
        (dataclasses.replace(STORED, rationale="because"), True),
    ],
)
def test_a_completion_belongs_to_what_the_model_is_shown(other: Record, is_same: bool, tmp_path: Path) -> None:
    cache = SampleCache(tmp_path, SETTINGS, MODE)
    cache.add(cache.missing([STORED], 2), answers)
    assert (cache.missing([other], 2) == []) is is_same
    think = SampleCache(tmp_path, SETTINGS, ReasoningMode.THINK_BEFORE)
    assert len(think.missing([STORED], 2)) == 2, "another prompt"


@pytest.mark.parametrize("stored", [0, 1, 7, 39])
def test_what_a_killed_process_has_stored_is_not_generated_again(stored: int, tmp_path: Path) -> None:
    whole, torn = (SampleCache(tmp_path / name, SETTINGS, MODE) for name in ("whole", "torn"))
    requests = whole.missing(RECORDS, 4)
    whole.add(requests, answers)
    torn.folder.mkdir()
    lines = whole.file.read_bytes().splitlines(keepends=True)
    torn.file.write_bytes(b"".join(lines[: 1 + stored]) + lines[1 + stored][:20])
    left = torn.missing(RECORDS, 4)
    assert [request.key for request in left] == [request.key for request in requests[stored:]]
    torn.add(left, answers)
    assert torn.file.read_bytes() == whole.file.read_bytes()
    assert torn.missing(RECORDS, 4) == []


def test_more_completions_add_to_the_stored_ones_and_records_share_them(tmp_path: Path) -> None:
    cache = SampleCache(tmp_path, SETTINGS, MODE)
    cache.add(cache.missing(RECORDS[:4], 4), answers)
    assert [r.sample for r in cache.missing(RECORDS[:2], 6)] == [4, 5, 4, 5]
    assert {r.record.id for r in cache.missing(RECORDS[2:6], 4)} == {r.id for r in RECORDS[4:6]}
    assert cache.missing(RECORDS[:4], 2) == [] and cache.pass_rates(RECORDS[:1], 2)[0].num_generations == 2


@pytest.mark.parametrize("line", ['{"record": "a"}', "[]", '{"record": "a", "sample": 0, "parsed": "Z"}', "{", "\xff"])
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    cache = SampleCache(tmp_path, SETTINGS, MODE)
    cache.add(cache.missing(RECORDS[:1], 2), answers)
    first, *others = cache.file.read_text().splitlines()
    cache.file.write_text("\n".join([first, others[0], line, others[1], ""]), encoding="latin-1")
    with pytest.raises(DataError, match=rf"{cache.file.name}, line 3 is damaged"):
        cache.missing(RECORDS[:1], 2)


def test_the_pass_rate_is_the_mean_accuracy_reward_of_the_samples(tmp_path: Path) -> None:
    loaded = load_policy(ModelSpec(str(TINY)))
    store = LocalPredictionStore(
        records=RECORDS,
        mode=MODE,
        load=lambda record: (record.images[0].load(84),),
        file=lambda name: tmp_path / f"{name}.jsonl",
        max_completion_length=6,
        batch_size=7,
        engine=LocalEngine(),
    )
    cache = SampleCache(tmp_path, SETTINGS, MODE)
    cache.add(cache.missing(RECORDS, 5), lambda requests: store.answer(*loaded, requests))
    store.batch_size = 64
    store.generate_samples("base", 5, lambda requests: store.answer(*loaded, requests))
    by_id = {record.id: record for record in RECORDS}
    lines = [json.loads(line) for line in (tmp_path / "base.samples.jsonl").read_text().splitlines()]
    rewards = accuracy([line["text"] for line in lines], [by_id[line["record"]] for line in lines], reasoning=MODE)
    counts: Counter[str] = Counter()
    for line, reward in zip(lines, rewards, strict=True):
        counts[line["record"]] += int(reward)
    rates = cache.pass_rates(RECORDS, 5)
    assert {rate.record: rate.value for rate in rates} == {record.id: counts[record.id] / 5 for record in RECORDS}
    assert len({rate.value for rate in rates}) > 2


def test_a_process_that_waits_for_another_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    holder, waiter = (SampleCache(tmp_path, SETTINGS, MODE) for _ in range(2))
    entered = threading.Event()

    def wait() -> None:
        with waiter.lock():
            entered.set()

    with caplog.at_level("INFO"):
        with holder.lock():
            thread = threading.Thread(target=wait)
            thread.start()
            deadline = time.monotonic() + 30
            while not caplog.records:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert not entered.is_set()
        thread.join(timeout=30)
    assert entered.is_set() and f"which adds completions to {holder.file}" in caplog.text
    caplog.clear()
    with holder.lock():
        assert not caplog.records
