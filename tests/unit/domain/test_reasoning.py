"""Prompts, grammars and the parser, on valid, invalid and arbitrary completions."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medr1.domain.reasoning import Parsed, ReasoningMode, instruction, parse, question_text, target_text

BEFORE, NONE, AFTER = ReasoningMode.THINK_BEFORE, ReasoningMode.NO_THINK, ReasoningMode.THINK_AFTER
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
LETTERS = "ABCD"

FREE_TEXT = st.text(max_size=80).filter(lambda text: not any(tag in text for tag in TAGS))
PIECES = st.sampled_from([*TAGS, "A", "C", "E", "c", " ", "\n", "(", ")", ".", ":", "<", ">", "/", "a nodule", "None"])
SCRAPS = st.lists(PIECES, max_size=20).map("".join)


def read(text: str, mode: ReasoningMode, letters: str = LETTERS) -> Parsed:
    return parse(text, mode, letters)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (BEFORE, "<think>a nodule</think><answer>C</answer>"),
        (BEFORE, "<think></think><answer>C</answer>"),
        (BEFORE, " \n<think>a\n\nb</think>\n\n<answer>\n C \n</answer>\n"),
        (BEFORE, "<think>A or B? 3 < 4 and <b>so</b></think><answer>C</answer>"),
        (NONE, "<answer>C</answer>"),
        (NONE, "\t<answer> C </answer>\n"),
        (NONE, "<answer>(C)</answer>"),
        (NONE, "<answer>C)</answer>"),
        (NONE, "<answer>C.</answer>"),
        (NONE, "<answer>C:</answer>"),
        (NONE, "<answer>C) the left lung, or A</answer>"),
        (AFTER, "<answer>C</answer><think>a nodule</think>"),
        (AFTER, " <answer>C</answer>\n<think>\nfor 2 > 1</think> "),
    ],
)
def test_valid_completions(mode: ReasoningMode, text: str) -> None:
    found = read(text, mode)
    assert (found.format, found.answer, found.lenient) == (True, "C", "C")
    for other in set(ReasoningMode) - {mode}:
        assert (read(text, other).format, read(text, other).answer) == (False, "C")


@pytest.mark.parametrize(
    ("text", "lenient"),
    [
        ("<answer>A</answer><answer>C</answer>", "C"),
        ("<answer>C</answer><answer>C</answer>", "C"),
        ("<think>x</think><answer>C</answer><think>y</think><answer>C</answer>", "C"),
        ("<answer><answer>C</answer></answer>", "C"),
        ("<think><answer>C</answer></think><answer>C</answer>", "C"),
        ("<answer>C", "C"),
        ("<think>x</think><answer>C", "C"),
        ("C", "C"),
        ("C)", "C"),
        ("(C)", "C"),
        ("The answer is C.", "C"),
        ("<answer>c</answer>", None),
        ("<answer>E</answer>", None),
        ("<answer>K</answer>", None),
        ("<answer></answer>", None),
        ("<answer>None</answer>", None),
        ("<answer>AC</answer>", None),
        ("<answer>the lung</answer>", None),
        ("<answer>C<think>x</think></answer>", "C"),
        ("<ANSWER>C</ANSWER>", "C"),
        ("A nodule is seen", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("mode", ReasoningMode)
def test_completions_without_an_answer_in_any_mode(text: str, lenient: str | None, mode: ReasoningMode) -> None:
    found = read(text, mode)
    assert (found.format, found.answer, found.lenient) == (False, None, lenient)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (BEFORE, "<answer>C</answer><think>x</think>"),
        (BEFORE, "<think>x<answer>C</answer>"),
        (BEFORE, "x</think><answer>C</answer>"),
        (BEFORE, "<think>x</think>so <answer>C</answer>"),
        (BEFORE, "<think>x</think><answer>C</answer>."),
        (BEFORE, "<think><think>x</think></think><answer>C</answer>"),
        (BEFORE, "<think>x</think><think>y</think><answer>C</answer>"),
        (BEFORE, "<answer>C</answer>"),
        (NONE, "<think>x</think><answer>C</answer>"),
        (NONE, "<answer>C</answer></answer>"),
        (NONE, "None\n\n<answer> C </answer>"),  # the target of supervised fine-tuning in the released code
        (NONE, "<answer>C</answer><think></think>"),
        (AFTER, "<think>x</think><answer>C</answer>"),
        (AFTER, "<answer>C</answer><think>x"),
        (AFTER, "<answer>C</answer><think>x</think><think>y</think>"),
        (AFTER, "<answer>C</answer>"),
    ],
)
def test_an_answer_outside_the_grammar_counts_without_the_format(mode: ReasoningMode, text: str) -> None:
    found = read(text, mode)
    assert (found.format, found.answer) == (False, "C")


def test_only_letters_of_the_options_are_answers() -> None:
    assert read("<answer>C</answer>", NONE, "AB").answer is None
    assert not read("<answer>C</answer>", NONE, "AB").format
    assert read("<answer>J</answer>", NONE, "AJ").answer == "J"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is not A but B", "B"),
        ("A lesion in the right lobe, so D", "D"),
        ("Vitamin E", None),
        ("CT", None),
        ("<answer>A</answer> or <answer>B</answer>, perhaps D", "B"),
    ],
)
def test_the_lenient_answer_is_the_last_letter_that_stands_alone(text: str, expected: str | None) -> None:
    assert read(text, NONE).lenient == expected


@given(st.sampled_from(ReasoningMode), st.sampled_from(LETTERS), FREE_TEXT)
@example(BEFORE, "A", "<")
@example(BEFORE, "A", "<answer")
@example(AFTER, "B", "</think")
def test_target_text_matches_the_grammar(mode: ReasoningMode, letter: str, rationale: str) -> None:
    found = read(target_text(mode, letter, rationale), mode)
    assert (found.format, found.answer) == (True, letter)
    assert found.rationale == ("" if mode is NONE else rationale.strip())


@given(st.one_of(SCRAPS, st.text(max_size=80)), st.sampled_from(ReasoningMode))
def test_the_fields_agree_for_any_text(text: str, mode: ReasoningMode) -> None:
    found = read(text, mode)
    assert found.answer in {None, *LETTERS} and found.lenient in {None, *LETTERS}
    if found.format:
        assert found.answer is not None
        assert text.count("<answer>") == text.count("</answer>") == 1
        assert text.count("<think>") == text.count("</think>") == (mode is not NONE)
        assert sum(read(text, other).format for other in ReasoningMode) == 1
    if found.answer is not None:
        assert found.lenient == found.answer and text.count("<answer>") == 1


LONG = 50_000


@pytest.mark.parametrize("mode", ReasoningMode)
@pytest.mark.parametrize(
    "text",
    [
        "<think>" * LONG,
        "</think>" * LONG,
        "<answer>" * LONG,
        "<answer>C" * LONG,
        "<answer>C)" + "<" * LONG,
        "<answer>" + " " * LONG,
        "<answer>C" + " " * LONG,
        "<think>" + " " * LONG + "</think>" + " " * LONG + "<answer>",
        " " * LONG + "<answer>C</answer>" + " " * LONG + "x",
        "<answer>C</answer><think>" + "x" * LONG,
        "<think>x</think>" * LONG,
        "A " * LONG,
        "A" + " " * LONG + "B" + "\n" * LONG,
    ],
    ids=lambda text: f"{text[:20]!r}",
)
def test_parsing_time_is_linear(text: str, mode: ReasoningMode) -> None:
    start = time.process_time()
    read(text, mode)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("mode", ReasoningMode)
def test_the_prompt_describes_the_grammar(mode: ReasoningMode) -> None:
    text = question_text(" Which organ? ", {"A": "lung", "C": "CT, PET", "B": "liver"}, mode)
    assert text == f"Which organ?\nA) lung\nC) CT, PET\nB) liver\n{instruction(mode)}"
    tags = [instruction(mode).find("<think></think>"), instruction(mode).find("<answer></answer>")]
    assert tags[1] >= 0
    assert (tags[0] >= 0) == (mode is not NONE)
    assert mode is NONE or (tags[0] < tags[1]) == (mode is BEFORE)
