"""The reward functions of medr1 beside accuracy and format, by hand."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr1.config.settings import RewardConfig
from medr1.domain.reasoning import TAGS, ReasoningMode, target_text
from medr1.errors import ConfigError
from medr1.rewards import check, compute_rewards
from tests.unit.rewards.test_rewards import record

BEFORE, NONE, AFTER = ReasoningMode.THINK_BEFORE, ReasoningMode.NO_THINK, ReasoningMode.THINK_AFTER


def reward(
    name: str, text: str, mode: ReasoningMode = BEFORE, ids: int = 1, options: Any = None, **settings: Any
) -> float:
    config = RewardConfig("test", {name: {"weight": 1.0, **settings}})
    check(config)
    given = record()
    if options is not None:
        given = type(given)(given.id, given.images, given.modality, given.question_type, "Which?", options, "A")
    return compute_rewards(config, [text], [given], mode, completion_ids=[[0] * ids], truncated=[False]).total[0]


@pytest.mark.parametrize(
    ("text", "before", "none", "after"),
    [
        ("", 0, 0, 0),
        ("C", 0, 0, 0),
        ("<answer>C", 0.25, 0.5, 0.25),
        ("C</answer>", 0.25, 0.5, 0.25),
        ("<answer>C</answer>", 0.5, 1, 0.5),
        ("</answer>C<answer>", 0.25, 0.5, 0.25),
        ("<think>x</think><answer>C</answer>", 1, 1, 0.5),
        ("<answer>C</answer><think>x</think>", 0.5, 1, 1),
        ("so <think>x</think> then <answer>nothing</answer> here", 1, 1, 0.5),
        ("<think>x<answer>C</answer>", 0.75, 1, 0.5),
        ("<think></think><answer>C</answer><answer>C</answer>", 0.5, 0, 0.5),
        ("<think><think></think><answer>C</answer>", 0.75, 1, 0.5),
        ("<think><answer></think></answer>", 0.75, 1, 0.5),
        ("<THINK>x</THINK><answer>C</answer>", 0.5, 1, 0.5),
    ],
)
def test_tag_count(text: str, before: float, none: float, after: float) -> None:
    assert [reward("tag_count", text, mode) for mode in (BEFORE, NONE, AFTER)] == [before, none, after]


@given(st.lists(st.sampled_from([*TAGS, "x", " "]), max_size=8).map("".join), st.sampled_from(ReasoningMode))
def test_the_format_has_all_tags(text: str, mode: ReasoningMode) -> None:
    assert 0 <= reward("tag_count", text, mode) <= 1
    assert reward("tag_count", target_text(mode, "C", "why"), mode) == 1
    if reward("format", text, mode):
        assert reward("tag_count", text, mode) == 1


@pytest.mark.parametrize(
    ("tokens", "expected"), [(1, 0), (12, 0), (13, -0.125), (16, -0.5), (20, -1), (21, -1), (100, -1)]
)
def test_soft_overlong_punishment(tokens: int, expected: float) -> None:
    assert reward("soft_overlong_punishment", "C", ids=tokens, max_completion_len=20) == expected


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("", 3, 0),
        ("a b", 3, 0),
        ("a b c", 3, 0),
        ("a b c a b c", 3, -1 / 4),
        ("A b c\na B  c", 3, -1 / 4),
        ("no no no no no", 1, -4 / 5),
        ("no no no no no", 2, -3 / 4),
        ("no no no no no", 5, 0),
    ],
)
def test_repetition_penalty(text: str, size: int, expected: float) -> None:
    assert reward("repetition_penalty", text, ngram_size=size) == pytest.approx(expected)
    assert reward("repetition_penalty", text, ngram_size=size, max_penalty=-0.5) == pytest.approx(expected / 2)


OPTIONS = {
    "A": "cyst",
    "B": "Renal cyst",
    "C": "no finding",
    "D": "nodule (solid)",
    "E": "\uff2d\uff32\uff29",
}


@pytest.mark.parametrize(
    ("rationale", "concluded"),
    [
        ("so the answer is B.", "B"),
        ("The answer is A? No, the ANSWER IS (C)", "C"),
        ("option D fits", "D"),
        ("Choice: B", "B"),
        ("the answer would be A", "A"),
        ("a Renal  cyst is seen, so the answer is A", "A"),
        ("the answer is a nodule", None),
        ("Final answer: A renal cyst is seen", "B"),
        ("the best choice: A nodule (solid)", "D"),
        ("the answer is J", None),
        ("the answer isn't clear", None),
        ("option A's border", None),
        ("I see a CYST", "A"),
        ("I see a renal\ncyst", "B"),
        ("a renal cyst, or another cyst", None),
        ("cysts", None),
        ("microcyst", None),
        ("a nodule (solid)!", "D"),
        ("MRI", "E"),
        ("it is a cyst and no finding", None),
        ("nothing", None),
        ("", None),
        ("B", None),
        ("The answer is B, because option C would show consolidation.", "B"),
        ("The answer is B rather than option C.", "B"),
        ("Option A is unlikely. Option B fits the border. Option C is excluded.", "B"),
        ("option B is excluded", None),
        ("The final answer is **B**.", "B"),
        ("it is not B but option C", "C"),
    ],
)
def test_consistency(rationale: str, concluded: str | None) -> None:
    """1 for the concluded option, -1 for any other, 0 for all if there is none; before and after the answer."""
    for letter, mode in product(OPTIONS, (BEFORE, AFTER)):
        expected = 0 if concluded is None else 1 if concluded == letter else -1
        assert reward("consistency", target_text(mode, letter, rationale), mode, options=OPTIONS) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<answer>A</answer>",
        "<think>cyst</think>",
        "<think>cyst</think><answer>A or B</answer>",
        "cyst, so A",
        "<think>",
    ],
)
def test_consistency_is_neutral_without_answer_or_rationale(text: str) -> None:
    assert [reward("consistency", text, mode, options=OPTIONS) for mode in ReasoningMode] == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("soft_overlong_punishment", {}, "max_completion_len"),
        ("soft_overlong_punishment", {"max_completion_len": 20, "soft_punish_cache": 0}, "soft_punish_cache=0"),
        ("soft_overlong_punishment", {"max_completion_len": 20, "soft_punish_cache": 21}, "soft_punish_cache=21"),
        ("repetition_penalty", {"ngram_size": 0}, "ngram_size=0"),
        ("repetition_penalty", {"max_penalty": 0.5}, "max_penalty=0.5"),
        ("repetition_penalty", {"max_penalty": 0}, "max_penalty=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(name: str, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        reward(name, "C", **settings)
