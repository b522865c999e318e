"""The partial file of predictions: what a kill leaves there is continued or refused, and a failure ends the rest."""

from __future__ import annotations

import json
import threading
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import openai._base_client
import pytest
from PIL import Image

from medr1.config.enums import Resize
from medr1.data.image_loader import cached_image_loader
from medr1.data.image_size import ImageSize
from medr1.data.images import FileImage
from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.reasoning import ReasoningMode, question_text
from medr1.domain.records import Record
from medr1.errors import DataError, ServerError
from medr1.evaluation import server_predictions
from medr1.evaluation.chat_client import ChatClient
from medr1.evaluation.circular import rotate
from medr1.evaluation.prediction_store import partial_file
from medr1.evaluation.predictions import Condition, prediction, read_predictions
from medr1.evaluation.server_predictions import ServerPredictionStore
from tests.scripted_server import ScriptedServer, Step, completion, scripted_server

RECORDS = [replace(r, question=f"{r.question} [{r.id}]") for r in make_records(World.TEST, 0, 1)]
MODE = ReasoningMode.NO_THINK
SIZE = ImageSize(Resize.square, 28, 1, 1, 28)


@contextmanager
def answering(fails: str | None = None) -> Iterator[tuple[ScriptedServer, ChatClient]]:
    """A server whose every completion is A, except for one record that fails, and its client."""

    def reply(body: Any) -> Step:
        return (400, {}, {}) if record_of(body) == fails else (200, completion(), {})

    with scripted_server(reply) as server, closing(ChatClient(server.url, "name", timeout=60, max_retries=0)) as client:
        yield server, client


def bodies(server: ScriptedServer) -> list[Any]:
    return [body for *_, body in server.requests]


def asked(server: ScriptedServer) -> list[str]:
    """The record of each request."""
    return [record_of(body) for body in bodies(server)]


def sampling(server: ScriptedServer) -> list[tuple[float, int | None]]:
    """Temperature and seed of each request."""
    return [(body["temperature"], body.get("seed")) for body in bodies(server)]


def parts_of(body: Any) -> list[Any]:
    """Texts and images of a request in order."""
    prefix = "data:image/png;base64,"
    (turn,) = body["messages"]
    return [
        part["text"] if part["type"] == "text" else b64decode(part["image_url"]["url"].removeprefix(prefix))
        for part in turn["content"]
    ]


def record_of(body: Any) -> str:
    """The id of the record, which the questions of ``RECORDS`` name."""
    return str(parts_of(body)[-1]).partition("[")[2].partition("]")[0]


def store_in(
    folder: Path, concurrency: int = 3, records: Sequence[Record] = RECORDS, size: ImageSize = SIZE
) -> ServerPredictionStore:
    return ServerPredictionStore(
        records=records,
        mode=MODE,
        load=cached_image_loader(size),
        file=lambda condition: folder / f"{condition}.jsonl",
        concurrency=concurrency,
        max_completion_length=8,
        temperature=0.7,
        seed=5,
    )


def generate(
    folder: Path, client: ChatClient, concurrency: int = 3, records: Sequence[Record] = RECORDS, size: ImageSize = SIZE
) -> Path:
    store_in(folder, concurrency, records, size).generate(client, Condition.BASE)
    return folder / "base.jsonl"


LINES = [asdict(prediction(r, Condition.BASE, MODE, "<answer>B</answer>", 3, False)) for r in RECORDS]


def write_partial(folder: Path, *lines: dict[str, Any], torn: bytes = b"") -> Path:
    unfinished = partial_file(folder / "base.jsonl")
    unfinished.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + torn)
    return unfinished


@pytest.mark.parametrize("concurrency", [1, 3, 100])
def test_every_record_is_requested_once_and_predictions_are_in_order(concurrency: int, tmp_path: Path) -> None:
    with answering() as (server, client):
        file = generate(tmp_path, client, concurrency=concurrency)
    assert sorted(asked(server)) == sorted(r.id for r in RECORDS)
    assert [line.record for line in read_predictions(file)] == [r.id for r in RECORDS]
    assert [path.name for path in tmp_path.iterdir()] == ["base.jsonl"]


def test_a_failure_keeps_what_arrived_and_the_next_process_generates_the_rest(tmp_path: Path) -> None:
    with (
        answering(fails=RECORDS[20].id) as (first, client),
        pytest.raises(ServerError, match=f"{RECORDS[20].id}: HTTP 400"),
    ):
        generate(tmp_path, client)
    saved = {line.record for line in read_predictions(partial_file(tmp_path / "base.jsonl"))}
    assert saved == set(asked(first)) - {RECORDS[20].id} and len(saved) >= 18
    with answering() as (second, client):
        file = generate(tmp_path, client)
    assert sorted(asked(second)) == sorted({r.id for r in RECORDS} - saved)
    assert len(read_predictions(file)) == len(RECORDS)


@pytest.mark.parametrize("torn", [b"", b"{", json.dumps(LINES[4]).encode(), b'{"text": "\xc3'])
def test_a_torn_last_line_is_dropped_and_generated_again(torn: bytes, tmp_path: Path) -> None:
    write_partial(tmp_path, *LINES[:4], torn=torn)
    with answering() as (server, client):
        lines = read_predictions(generate(tmp_path, client))
    assert sorted(asked(server)) == sorted(r.id for r in RECORDS[4:])
    assert [line.parsed for line in lines] == ["B"] * 4 + ["A"] * (len(RECORDS) - 4)


def test_with_a_complete_file_beside_its_partial_one_nothing_is_requested(tmp_path: Path) -> None:
    with answering() as (server, client):
        file = generate(tmp_path, client)
        unfinished, before = write_partial(tmp_path, *LINES), file.read_bytes()
        generate(tmp_path, client)
    assert (len(server.requests), file.read_bytes(), unfinished.exists()) == (len(RECORDS), before, False)


def test_predictions_for_other_records_are_refused(tmp_path: Path) -> None:
    stranger = asdict(prediction(replace(RECORDS[0], id="stranger"), Condition.BASE, MODE, "", 0, False))
    with answering() as (server, client):
        for line in (stranger, {**LINES[0], "condition": "trained"}, {**LINES[0], "reasoning": "think_after"}):
            write_partial(tmp_path, line)
            with pytest.raises(DataError, match=r"base\.jsonl\.partial: record .* remove the file"):
                generate(tmp_path, client)
        write_partial(tmp_path, LINES[0], LINES[0])
        with pytest.raises(DataError, match=r"line 2: .*occurs twice"):
            generate(tmp_path, client)
    assert not server.requests


def test_each_sample_is_a_request_with_a_seed_of_its_own(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    with answering() as (server, client):
        store.generate(client, Condition.BASE)
    assert set(sampling(server)) == {(0, None)}
    with answering() as (server, client):
        store.generate_samples(Condition.BASE, 3, partial(store.answer, client))
    lines = read_predictions(tmp_path / "base.samples.jsonl")
    expected = [(r.id, f"base.sample_{i}") for r in RECORDS for i in range(3)]
    assert [(line.record, line.condition) for line in lines] == expected
    assert sorted(asked(server)) == sorted(record for record, _ in expected)
    assert {temperature for temperature, _ in sampling(server)} == {0.7}
    assert len({seed for _, seed in sampling(server)}) == len(expected)
    assert store.conditions.keys() == {"base"}


def test_rotations_are_asked_with_the_options_in_their_places(tmp_path: Path) -> None:
    store = store_in(tmp_path, concurrency=1)
    with answering() as (server, client):
        store.generate_rotations(Condition.TRAINED, partial(store.answer, client))
    lines = read_predictions(tmp_path / "trained.rotations.jsonl")
    rotated = [rotate(r, places) for r in RECORDS for places in range(1, len(r.options))]
    texts = [question_text(record.question, record.options, MODE) for record in rotated]
    assert [parts_of(body)[-1] for body in bodies(server)] == texts
    assert [line.answer for line in lines] == [record.answer for record in rotated]
    assert lines[0].condition == "trained.rotation_1" and set(sampling(server)) == {(0, None)}


def test_samples_that_arrived_before_a_failure_are_not_requested_again(tmp_path: Path) -> None:
    store = store_in(tmp_path, concurrency=1)
    with answering(fails=RECORDS[7].id) as (first, client), pytest.raises(ServerError):
        store.generate_samples(Condition.BASE, 2, partial(store.answer, client))
    with answering() as (second, client):
        store.generate_samples(Condition.BASE, 2, partial(store.answer, client))
    assert len(first.requests) == 15 and len(second.requests) == 2 * len(RECORDS) - 14
    assert not set(sampling(first)[:14]) & set(sampling(second))


def test_a_failure_ends_the_requests_that_wait_for_a_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait lasts here until the client is closed. The failure does not wait for its end."""
    closed, waits = Event(), list[tuple[float, bool]]()
    clock = SimpleNamespace(time=time.time, sleep=lambda seconds: waits.append((seconds, closed.wait(60))))
    monkeypatch.setattr(openai._base_client, "time", clock)
    monkeypatch.setattr(server_predictions, "_GRACE_SECONDS", 0.3)
    replies: Any = iter([(429, {}, {"Retry-After": "6"}), (200, completion(), {}), (400, {}, {})])
    with scripted_server(lambda _: next(replies)) as server:
        before = set(threading.enumerate())
        with closing(ChatClient(server.url, "name", timeout=60, max_retries=9)) as client:
            with pytest.raises(ServerError, match="HTTP 400"):
                generate(tmp_path, client, concurrency=2)
            assert waits == []
        closed.set()
        for thread in set(threading.enumerate()) - before:
            thread.join(60)
            assert not thread.is_alive()
        assert waits == [(6, True)]
        assert len(server.requests) == 3, "the request that waited for its retry is not sent again"
    assert len(read_predictions(partial_file(tmp_path / "base.jsonl"))) == 1


def test_a_request_under_way_when_another_one_fails_is_kept(tmp_path: Path) -> None:
    failed = Event()
    good: Step = (200, completion(), {})
    bad: Step = (400, {}, {})
    replies = iter([good, *[bad] * 9])

    def reply(_: Any) -> Step:
        step = next(replies)
        if step == good:
            failed.wait(60)
            time.sleep(0.3)  # until the client knows of the failure
        else:
            failed.set()
        return step

    with scripted_server(reply) as server, pytest.raises(ServerError, match="HTTP 400"):
        generate(tmp_path, ChatClient(server.url, "name", timeout=60, max_retries=0), concurrency=2)
    assert len(server.requests) == 2
    assert len(read_predictions(partial_file(tmp_path / "base.jsonl"))) == 1


def test_all_images_are_sent_where_they_stand_and_in_their_size(tmp_path: Path) -> None:
    """As PNG of the size that the model is meant to see, so that the server's own processor need not change it."""
    for i, width in enumerate((120, 60)):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (60, width, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    images = tuple(FileImage(tmp_path, f"{i}.png") for i in range(2))
    records = [
        replace(RECORDS[0], id="before", images=images),
        replace(RECORDS[0], id="inside", images=images, question="Is <image 2> left?"),
    ]
    size = ImageSize(Resize.native, 28, 784, 10000, 28)
    with answering() as (server, client):
        generate(tmp_path, client, concurrency=1, records=records, size=size)
    loaded = [np.asarray(image) for image in cached_image_loader(size)(records[0])]
    before, inside = map(parts_of, bodies(server))
    text = question_text(RECORDS[0].question, RECORDS[0].options, MODE)
    assert before[2] == text and inside[1] == "Is " and inside[3].startswith(" left?")
    for found, expected in ((before[0], 0), (before[1], 1), (inside[0], 0), (inside[2], 1)):
        assert np.array_equal(np.asarray(Image.open(BytesIO(found))), loaded[expected])
    assert [image.shape[:2] for image in loaded] == [(56, 112), (56, 56)]
