"""Rewards by rule: only the letter of a well-formed answer block earns accuracy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from medr1.rewards.rules import score_completions
from PIL import Image

from medr1.domain.reasoning import ReasoningMode, target_text
from medr1.domain.records import Modality, QuestionType, Record

EVEN = {"accuracy": 1.0, "format": 1.0}


class NoImage:
    key = "none"

    def load(self, size: int) -> Image.Image:
        raise AssertionError("rewards do not look at pictures")


def record(answer: str = "C", letters: str = "ABCD") -> Record:
    options = {letter: f"option {letter}" for letter in letters}
    return Record("r", NoImage(), Modality.CT, QuestionType.ANATOMY, "Which?", options, answer)


@pytest.mark.parametrize(
    ("text", "accuracy", "format_"),
    [
        ("<answer>C</answer>", 1, 1),
        ("<answer>B</answer>", 0, 1),
        ("<answer>C</answer> so it is", 1, 0),
        ("<think>x</think><answer>C</answer>", 1, 0),
        ("C", 0, 0),
        ("The answer is C", 0, 0),
        ("<answer>C</answer><answer>C</answer>", 0, 0),
        ("<answer>A</answer><answer>C</answer>", 0, 0),
        ("<answer>C", 0, 0),
        ("<answer>E</answer>", 0, 0),
        ("<answer>c</answer>", 0, 0),
        ("", 0, 0),
    ],
)
def test_parts_by_hand(text: str, accuracy: int, format_: int) -> None:
    rewards = score_completions([text], [record()], ReasoningMode.NO_THINK, EVEN)
    assert rewards.parts == {"accuracy": [accuracy], "format": [format_]}
    assert rewards.total == [accuracy + format_]


def test_total_is_the_weighted_sum() -> None:
    texts = ["<answer>C</answer>", "<answer>B</answer>", "say <answer>C</answer>", "C"]
    weights = {"accuracy": 0.9, "format": 0.1}
    rewards = score_completions(texts, [record()] * 4, ReasoningMode.NO_THINK, weights)
    assert rewards.total == pytest.approx([1.0, 0.1, 0.9, 0.0])


def test_each_completion_is_held_against_its_own_record() -> None:
    texts = ["<answer>C</answer>"] * 3
    records = [record("C"), record("A"), record("A", letters="AB")]
    rewards = score_completions(texts, records, ReasoningMode.NO_THINK, EVEN)
    assert rewards.parts == {"accuracy": [1, 0, 0], "format": [1, 1, 0]}
    with pytest.raises(ValueError, match="shorter"):
        score_completions(texts, records[:2], ReasoningMode.NO_THINK, EVEN)


@given(st.text(alphabet="ABCD.() <answer>/think", max_size=60), st.sampled_from(ReasoningMode))
def test_a_lenient_reading_is_never_rewarded(text: str, mode: ReasoningMode) -> None:
    rewards = score_completions([text], [record()], mode, EVEN)
    parsed = rewards.parsed[0]
    if parsed.answer is None:
        assert rewards.total == [0]
    assert rewards.parts["accuracy"] == [float(parsed.answer == "C")]


def test_a_lenient_reading_that_is_right_earns_nothing() -> None:
    rewards = score_completions(["It is C."], [record()], ReasoningMode.NO_THINK, EVEN)
    assert rewards.parsed[0].lenient == "C"
    assert rewards.total == [0]


@pytest.mark.parametrize("mode", ReasoningMode)
def test_the_target_of_supervised_training_earns_everything(mode: ReasoningMode) -> None:
    assert score_completions([target_text(mode, "C", "why")], [record()], mode, EVEN).total == [2]
