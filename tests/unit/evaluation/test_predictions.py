"""The predictions file: exact round trip, atomic writing, errors that name file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Modality, QuestionType, Record
from medr1.errors import DataError
from medr1.evaluation.predictions import Prediction, prediction, read_predictions, write_predictions

LINE = Prediction(
    record="ct/1",
    image="a.png",
    modality=Modality.CT,
    question_type=QuestionType.DISEASE,
    condition="base",
    reasoning=ReasoningMode.NO_THINK,
    text="<answer>B</answer>",
    answer="B",
    parsed="B",
    lenient="B",
    correct=True,
    format=True,
    length=7,
    truncated=False,
    options=4,
)
UNREAD = replace(LINE, record="ct/2", text="", parsed=None, lenient=None, correct=False, format=False, truncated=True)


@dataclass(frozen=True)
class UnreadImage:
    key: str

    def load(self, side: int) -> Image.Image:
        raise AssertionError("a prediction line must not decode the image")


def edited(**changes: object) -> str:
    """The line as JSON with some fields changed; ``...`` removes the field."""
    value = json.loads(json.dumps({name: getattr(LINE, name) for name in Prediction.__dataclass_fields__}))
    value.update(changes)
    return json.dumps({name: v for name, v in value.items() if v is not ...})


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "run" / "predictions.jsonl"
    lines = [LINE, UNREAD, replace(LINE, condition="trained", text="a\nb\u2028\x85\u00e9\ud800 \"'\\")]
    write_predictions(path, lines)
    back = read_predictions(path)
    assert back == lines
    assert [type(back[0].modality), type(back[0].question_type), type(back[0].reasoning)] == [str, str, ReasoningMode]
    assert path.read_bytes().count(b"\n") == 3
    first = path.read_bytes()
    path.write_bytes(first.replace(b', "group": ""', b""))  # as files were before groups
    assert path.read_bytes() != first and read_predictions(path) == back
    write_predictions(path, back)
    assert path.read_bytes() == first


@given(text=st.text(), length=st.integers(0, 10**6))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, text: str, length: int) -> None:
    path = tmp_path_factory.mktemp("any") / "p.jsonl"
    lines = [replace(LINE, text=text, length=length)]
    write_predictions(path, lines)
    assert read_predictions(path) == lines


def test_an_empty_file_holds_no_predictions(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.jsonl", [])
    assert read_predictions(tmp_path / "p.jsonl") == []


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    write_predictions(path, [LINE])

    def interrupted() -> Iterator[Prediction]:
        yield UNREAD
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(path, interrupted())
    assert read_predictions(path) == [LINE]
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_at_work_keeps_the_whole_old_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    write_predictions(path, [LINE])
    with path.open(encoding="utf-8") as reader:
        write_predictions(path, [UNREAD])
        # The name moved to a new file; writing into the old one would change what this reader sees.
        assert json.loads(reader.read())["record"] == "ct/1"
    assert read_predictions(path) == [UNREAD]


def test_a_duplicate_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ct/1 occurs twice in condition base"):
        write_predictions(tmp_path / "p.jsonl", [LINE, LINE])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (edited(record="ct/2")[:-9], "not JSON"),
        ("", "not JSON"),
        ("[1]", "expected an object, got list"),
        (edited(record="ct/2", parsed=...), r"missing field\(s\): parsed"),
        (edited(record="ct/2", colour="red"), r"unknown field\(s\): colour"),
        (edited(record="ct/2", length=True), "field length: True is not int"),
        (edited(record="ct/2", correct=1), "field correct: 1 is not bool"),
        (edited(record="ct/2", answer=None), "field answer: None is not str"),
        (edited(record="ct/2", modality=""), "record 'ct/2', condition 'base': modality must not be empty"),
        (edited(record="ct/2", modality=None), "field modality: None is not str"),
        (edited(record="ct/2", reasoning="loud"), "field reasoning: 'loud' is none of think_before"),
        (edited(record="ct/2", correct=False), "record ct/2: correct is False"),
        (edited(), "record ct/1 occurs twice in condition base"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, second: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f"{edited()}\n{second}\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"p\.jsonl, line 2: {message}"):
        read_predictions(path)


def test_one_record_may_stand_in_several_conditions(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f"{edited()}\n{edited(condition='trained')}\n", encoding="utf-8")
    assert [(p.record, p.condition) for p in read_predictions(path)] == [("ct/1", "base"), ("ct/1", "trained")]


def test_bytes_that_are_not_text_and_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(edited().encode() + b"\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: not JSON in UTF-8"):
        read_predictions(path)
    with pytest.raises(DataError, match=r"none\.jsonl: no such predictions file"):
        read_predictions(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "change", [{"correct": False}, {"parsed": None}, {"options": 1}, {"length": -1}, {"record": ""}]
)
def test_fields_may_not_contradict_each_other(change: dict[str, object]) -> None:
    with pytest.raises(DataError):
        replace(LINE, **change)  # type: ignore[arg-type]


def test_a_line_from_a_record_and_its_completion() -> None:
    record = Record(
        "us/3", (UnreadImage("u.png"),), Modality.US, QuestionType.ANATOMY, "What?", {"A": "x", "C": "y"}, "C"
    )
    line = prediction(record, "base", ReasoningMode.THINK_BEFORE, "<answer>C</answer>", length=5, truncated=False)
    # The letter is read although the think block is missing, which only costs the format.
    assert (line.record, line.image, line.options, line.answer) == ("us/3", "u.png", 2, "C")
    assert (line.parsed, line.correct, line.format, line.length) == ("C", True, False, 5)
    # B is none of the options; a lenient reading finds the lone C.
    loose = prediction(record, "base", ReasoningMode.NO_THINK, "It is C", length=3, truncated=True)
    assert (loose.parsed, loose.lenient, loose.correct, loose.truncated) == (None, "C", False, True)
    assert (line.group, line.cluster) == ("", line.image)
    patient = prediction(replace(record, group="7"), "base", ReasoningMode.NO_THINK, "It is C", 3, truncated=True)
    assert patient.cluster == patient.group == replace(record, group="7").group_key
    elsewhere = replace(record, group="7", benchmark="other").group_key
    assert patient.image == line.image and patient.group not in (elsewhere, patient.image)
    foreign = prediction(record, "base", ReasoningMode.NO_THINK, "<answer>B</answer>", length=3, truncated=False)
    assert (foreign.parsed, foreign.lenient, foreign.correct) == (None, None, False)
