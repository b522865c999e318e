"""Options and answers in the forms in which data sets write them; no text is guessed and none crashes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr1.data.sources.mcqa.choices import (
    AnswerFormat,
    named_choices,
    parse_answer,
    parse_options,
    text_or_none,
    yes_or_no,
)
from medr1.domain.records import LETTERS, BadRecord, Reason
from medr1.domain.texts import one_line, option_meaning

texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf"]), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip())
)
lists = st.lists(texts, min_size=1, max_size=len(LETTERS), unique_by=option_meaning)


@given(lists)
def test_every_form_of_a_list_gives_the_same_options(options: list[str]) -> None:
    expected = {letter: one_line(text) for letter, text in zip(LETTERS, options, strict=False)}
    lettered = dict(zip(LETTERS, options, strict=False))
    for form in (options, tuple(options), json.dumps(options), repr(options), lettered, json.dumps(lettered)):
        assert parse_options(form) == expected
    assert parse_options({f"{letter.lower()}.": text for letter, text in lettered.items()}) == expected


@given(lists, st.data())
def test_an_answer_is_found_in_each_form(options: list[str], data: st.DataObject) -> None:
    parsed = parse_options(options)
    position = data.draw(st.integers(0, len(options) - 1))
    letter = LETTERS[position]
    assert parse_answer(options[position], parsed, AnswerFormat.text) == letter
    assert parse_answer(f"({letter.lower()})", parsed, AnswerFormat.letter) == letter
    assert parse_answer(position, parsed, AnswerFormat.zero_based) == letter
    assert parse_answer(float(position + 1), parsed, AnswerFormat.one_based) == letter
    try:
        assert parse_answer(options[position], parsed) == letter
    except BadRecord as bad:  # "b" is the letter of one option and the text of another
        assert bad.reason is Reason.AMBIGUOUS_ANSWER


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda e: st.lists(e) | st.dictionaries(st.text(), e)
    )
)
def test_any_value_is_parsed_or_refused_by_name(value: Any) -> None:
    for parse in (parse_options, lambda v: parse_answer(v, {"A": "x", "B": "y"}), lambda v: text_or_none(v, "it")):
        try:
            parse(value)
        except BadRecord as bad:
            assert bad.detail


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.NO_OPTIONS),
        (7, Reason.NO_OPTIONS),
        ("left; right", Reason.NO_OPTIONS),
        ("['left', 'right'", Reason.NO_OPTIONS),
        ("__import__('os').system('true')", Reason.NO_OPTIONS),
        ("[" * 5000, Reason.NO_OPTIONS),
        ("['" + "x" * 30_000 + "']", Reason.NO_OPTIONS),
        ('"left"', Reason.NO_OPTIONS),
        (["left", ["right"]], Reason.MALFORMED),
        ({"first": "left"}, Reason.MALFORMED),
        ({"A": "left", "a": "right"}, Reason.DUPLICATE_OPTION),
        ([str(i) for i in range(27)], Reason.TOO_MANY_OPTIONS),
        ({"A": "left", "K": "right"}, Reason.TOO_MANY_OPTIONS),
        (["\ud800", "right"], Reason.UNENCODABLE_TEXT),
    ],
)
def test_options_that_are_refused(value: Any, reason: Reason) -> None:
    with pytest.raises(BadRecord) as bad:
        parse_options(value)
    assert bad.value.reason is reason


@pytest.mark.parametrize("absent", [None, float("nan"), "", " \n", "\u200b"])
def test_absent_options_are_left_out_and_the_others_keep_their_letters(absent: Any) -> None:
    assert parse_options({"A": "left", "B": 2.0, "C": absent}) == {"A": "left", "B": "2"}
    assert parse_options(["left", 2.0, absent, absent]) == {"A": "left", "B": "2"}
    gap = parse_options(["left", absent, "right"])
    assert gap == {"A": "left", "C": "right"}
    assert parse_answer(2, gap, AnswerFormat.zero_based) == parse_answer(3, gap, AnswerFormat.one_based) == "C"
    with pytest.raises(BadRecord):
        parse_answer(1, gap, AnswerFormat.zero_based)


OPTIONS = {"A": "1", "B": "b", "C": "A", "D": "Left lung"}


@pytest.mark.parametrize(
    ("answer", "form", "expected"),
    [
        ("D", AnswerFormat.auto, "D"),
        ("left  lung.", AnswerFormat.auto, "D"),
        ("B", AnswerFormat.auto, "B"),  # letter and text agree
        ("Ｄ", AnswerFormat.auto, "D"),  # noqa: RUF001 (full-width)
        ("（ｄ）", AnswerFormat.letter, "D"),  # noqa: RUF001
        ("A", AnswerFormat.auto, Reason.AMBIGUOUS_ANSWER),
        ("A", AnswerFormat.letter, "A"),
        ("A", AnswerFormat.text, "C"),
        (1, AnswerFormat.auto, "A"),  # the text of an option
        (0, AnswerFormat.auto, Reason.AMBIGUOUS_ANSWER),
        (0, AnswerFormat.zero_based, "A"),
        ("3", AnswerFormat.zero_based, "D"),
        (4, AnswerFormat.zero_based, Reason.ANSWER_NOT_AMONG_OPTIONS),
        (0, AnswerFormat.one_based, Reason.ANSWER_NOT_AMONG_OPTIONS),
        (4, AnswerFormat.one_based, "D"),
        ("-1", AnswerFormat.zero_based, Reason.ANSWER_NOT_AMONG_OPTIONS),
        ("E", AnswerFormat.letter, Reason.ANSWER_NOT_AMONG_OPTIONS),
        ("Right lung", AnswerFormat.auto, Reason.ANSWER_NOT_AMONG_OPTIONS),
        (None, AnswerFormat.auto, Reason.ANSWER_NOT_AMONG_OPTIONS),
        (True, AnswerFormat.zero_based, Reason.MALFORMED),
        ("٣", AnswerFormat.zero_based, "D"),
    ],
)
def test_answers(answer: Any, form: AnswerFormat, expected: str | Reason) -> None:
    try:
        found: str | Reason = parse_answer(answer, OPTIONS, form)
    except BadRecord as bad:
        found = bad.reason
    assert found == expected


@pytest.mark.parametrize(
    ("question", "answer", "choices"),
    [
        ("Which is bigger in this image, kidney or liver?", "Liver", ["kidney", "liver"]),
        ("Is the lesion in the left or right lung?", "Right", ["left", "right"]),
        ("Is the lesion in the left or right lung?", "left", ["left", "right"]),
        ("Is this a CT or an MRI?", "MRI", ["CT", "MRI"]),
        ("Is this a CT or an MRI image?", "CT", ["CT", "MRI"]),
        ("Is it in the upper left or the lower right?", "upper left", ["upper left", "lower right"]),
        ("Is it benign or highly malignant?", "Highly malignant", ["benign", "highly malignant"]),
        ("What is shown?", "liver", None),
        ("Is it red, green or blue or black?", "red", None),
        ("Is the lesion in the left or right lung?", "both", None),
        ("Is the liver left or left?", "left", None),
    ],
)
def test_choices_that_a_question_names(question: str, answer: str, choices: list[str] | None) -> None:
    assert named_choices(question, answer) == choices


@given(texts, texts)
def test_named_choices_hold_the_answer_once_or_are_none(question: str, answer: str) -> None:
    choices = named_choices(f"{question} or {answer}?", answer)
    assert choices is None or (len(choices) > 1 and len(set(map(option_meaning, choices))) == len(choices))


def test_yes_and_no() -> None:
    assert [yes_or_no(text) for text in ("yes", "No. ", "YES", "none", "not seen")] == ["Yes", "No", "Yes", None, None]
