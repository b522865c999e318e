"""The partial file: what a kill can leave there is taken up or refused, never counted twice."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from medr1.data.image_loader import cached_image_loader
from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.reasoning import ReasoningMode
from medr1.errors import DataError, ServerError
from medr1.evaluation.chat_client import Reply
from medr1.evaluation.predictions import Condition, prediction, read_predictions
from medr1.evaluation.server_predictions import ServerPredictionStore, partial_of

RECORDS = make_records(World.TEST, 0, 1)
MODE = ReasoningMode.NO_THINK


class Says:
    """Answers A, but fails for one record; notes who was asked."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.asked = fails, list[str]()

    def generate(self, text: str, png: bytes, max_completion_length: int, *, record: str, stop: Event) -> Reply:
        self.asked.append(record)
        if record == self.fails:
            raise ServerError(f"record {record}")
        return Reply("<answer>A</answer>", 3, False)


def answers(folder: Path, concurrency: int = 3) -> ServerPredictionStore:
    return ServerPredictionStore(
        RECORDS,
        MODE,
        load=cached_image_loader(28),
        file=lambda condition: folder / f"{condition}.jsonl",
        concurrency=concurrency,
        max_completion_length=8,
    )


def generate(folder: Path, server: Any, **settings: Any) -> Path:
    answers(folder, **settings).generate(server, Condition.BASE)
    return folder / "base.jsonl"


LINES = [asdict(prediction(r, Condition.BASE, MODE, "<answer>B</answer>", 3, False)) for r in RECORDS]


def begun(folder: Path, *lines: dict[str, Any], torn: bytes = b"") -> Path:
    partial = partial_of(folder / "base.jsonl")
    partial.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + torn)
    return partial


@pytest.mark.parametrize("concurrency", [1, 3, 100])
def test_every_record_is_asked_once_and_stands_in_its_place(concurrency: int, tmp_path: Path) -> None:
    server = Says()
    file = generate(tmp_path, server, concurrency=concurrency)
    assert sorted(server.asked) == sorted(r.id for r in RECORDS)
    assert [line.record for line in read_predictions(file)] == [r.id for r in RECORDS]
    assert [path.name for path in tmp_path.iterdir()] == ["base.jsonl"]


def test_a_failure_keeps_what_had_come_and_the_next_process_asks_the_rest(tmp_path: Path) -> None:
    first, second = Says(fails=RECORDS[20].id), Says()
    with pytest.raises(ServerError, match=RECORDS[20].id):
        generate(tmp_path, first)
    kept = {line.record for line in read_predictions(partial_of(tmp_path / "base.jsonl"))}
    assert kept == set(first.asked) - {RECORDS[20].id} and len(kept) >= 18
    file = generate(tmp_path, second)
    assert sorted(second.asked) == sorted({r.id for r in RECORDS} - kept)
    assert len(read_predictions(file)) == len(RECORDS)


@pytest.mark.parametrize("torn", [b"", b"{", json.dumps(LINES[4]).encode(), b'{"text": "\xc3'])
def test_a_torn_last_line_is_dropped_and_asked_again(torn: bytes, tmp_path: Path) -> None:
    begun(tmp_path, *LINES[:4], torn=torn)
    server = Says()
    lines = read_predictions(generate(tmp_path, server))
    assert sorted(server.asked) == sorted(r.id for r in RECORDS[4:])
    assert [line.parsed for line in lines] == ["B"] * 4 + ["A"] * (len(RECORDS) - 4)


def test_a_whole_file_beside_its_partial_one_asks_nothing(tmp_path: Path) -> None:
    file = generate(tmp_path, Says())
    partial, server = begun(tmp_path, *LINES), Says()
    before = file.read_bytes()
    generate(tmp_path, server)
    assert (server.asked, file.read_bytes(), partial.exists()) == ([], before, False)


def test_answers_to_other_questions_are_refused(tmp_path: Path) -> None:
    stranger = asdict(prediction(replace(RECORDS[0], id="stranger"), Condition.BASE, MODE, "", 0, False))
    for line in (stranger, {**LINES[0], "condition": "trained"}, {**LINES[0], "reasoning": "think_after"}):
        begun(tmp_path, line)
        with pytest.raises(DataError, match=r"base\.jsonl\.partial: record .* remove the file"):
            generate(tmp_path, Says())
    begun(tmp_path, LINES[0], LINES[0])
    with pytest.raises(DataError, match=r"line 2: .*occurs twice"):
        generate(tmp_path, Says())
