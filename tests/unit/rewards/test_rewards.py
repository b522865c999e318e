"""Rewards: Med-R1's two rules, their weighted sum, and reward functions of one's own."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medr1 import rewards as package
from medr1.config.settings import RewardConfig
from medr1.domain.reasoning import ReasoningMode, parse, target_text
from medr1.domain.records import Modality, QuestionType, Record
from medr1.errors import ConfigError, RewardError
from medr1.rewards import REWARDS, check, compute_rewards, reward_function

NO_THINK = ReasoningMode.NO_THINK


def config(**functions: dict[str, Any]) -> RewardConfig:
    return RewardConfig("test", functions)


EVEN = config(accuracy={"weight": 1.0}, format={"weight": 1.0})


class NoImage:
    key = "none"

    def load(self, size: int) -> Image.Image:
        raise AssertionError("rewards do not load images")


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
        ("<answer>c</answer>", 1, 1),
        ("<answer>C) or D)</answer>", 0, 0),
        ("<answer>A) B) C) D)</answer>", 0, 0),
        ("", 0, 0),
    ],
)
def test_parts_by_hand(text: str, accuracy: int, format_: int) -> None:
    rewards = compute_rewards(EVEN, [text], [record()], NO_THINK)
    assert rewards.parts == {"accuracy": [accuracy], "format": [format_]}
    assert rewards.total == [accuracy + format_]


def test_total_is_the_weighted_sum() -> None:
    texts = ["<answer>C</answer>", "<answer>B</answer>", "say <answer>C</answer>", "C"]
    weighted = config(accuracy={"weight": 0.9}, format={"weight": 0.1})
    rewards = compute_rewards(weighted, texts, [record()] * 4, NO_THINK)
    assert rewards.total == pytest.approx([1.0, 0.1, 0.9, 0.0])


def test_each_completion_is_compared_with_its_own_record() -> None:
    texts = ["<answer>C</answer>"] * 3
    records = [record("C"), record("A"), record("A", letters="AB")]
    rewards = compute_rewards(EVEN, texts, records, NO_THINK)
    assert rewards.parts == {"accuracy": [1, 0, 0], "format": [1, 1, 0]}
    with pytest.raises(ValueError, match="shorter"):
        compute_rewards(EVEN, texts, records[:2], NO_THINK)


@given(st.text(alphabet="ABCD.() <answer>/think", max_size=60), st.sampled_from(ReasoningMode))
def test_lenient_parsing_is_never_rewarded(text: str, mode: ReasoningMode) -> None:
    rewards = compute_rewards(EVEN, [text], [record()], mode)
    parsed = parse(text, mode, record().options)
    if parsed.answer is None:
        assert rewards.total == [0]
    assert rewards.parts["accuracy"] == [float(parsed.answer == "C")]


def test_a_correct_lenient_answer_earns_nothing() -> None:
    assert parse("It is C.", NO_THINK, record().options).lenient == "C"
    assert compute_rewards(EVEN, ["It is C."], [record()], NO_THINK).total == [0]


@pytest.mark.parametrize("mode", ReasoningMode)
def test_the_target_of_supervised_training_earns_everything(mode: ReasoningMode) -> None:
    assert compute_rewards(EVEN, [target_text(mode, "C", "why")], [record()], mode).total == [2]


def test_a_function_without_weight_is_not_computed() -> None:
    assert compute_rewards(config(format={"weight": 2.0}), ["<answer>B</answer>"], [record()], NO_THINK) == (
        package.Rewards({"format": [1.0]}, [2.0])
    )


@pytest.fixture
def brevity() -> Iterator[None]:
    """A reward function with settings, registered as a plugin file does it."""

    @reward_function("brevity")
    def function(completions, records, *, reasoning, longest: int, penalty=0.5, returned=None):
        if returned is not None:
            return returned
        return [0.0 if len(text) <= longest else -penalty for text in completions]

    yield
    del REWARDS["brevity"]


def test_a_function_of_ones_own_gets_its_settings(brevity: None) -> None:
    mixed = config(accuracy={"weight": 1.0}, brevity={"weight": 2.0, "longest": 18})
    check(mixed)
    rewards = compute_rewards(mixed, ["<answer>C</answer>", "<answer>C</answer>!"], [record()] * 2, NO_THINK)
    assert rewards.parts == {"accuracy": [1, 1], "brevity": [0, -0.5]} and rewards.total == [1, 0]


def test_one_file_in_the_package_is_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is imported when it is used by name, not before."""
    (tmp_path / "shouting.py").write_text(
        "from medr1.rewards import reward_function\n"
        "@reward_function('shouting')\n"
        "def shouting(completions, records, *, reasoning):\n"
        "    return [float(text.isupper()) for text in completions]\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    check(EVEN)
    assert "medr1.rewards.shouting" not in sys.modules
    loud = config(shouting={"weight": 1})
    check(loud)
    assert compute_rewards(loud, ["YES", "no"], [record()] * 2, NO_THINK).total == [1, 0]
    del REWARDS["shouting"], sys.modules["medr1.rewards.shouting"]


@pytest.mark.parametrize(
    ("functions", "named"),
    [
        ({"acuracy": {"weight": 1.0}}, ["acuracy", "accuracy", "format"]),
        ({"accuracy": {"weight": -0.5}}, ["accuracy.weight=-0.5"]),
        ({"accuracy": {"weight": math.nan}}, ["accuracy.weight=nan"]),
        ({"accuracy": {"weight": "much"}}, ["accuracy.weight=much"]),
        ({"accuracy": {}}, ["accuracy.weight"]),
        ({"accuracy": {"weight": 0}, "format": {"weight": 0.0}}, ["reward.functions", "weight"]),
        ({}, ["reward.functions", "weight"]),
        ({"accuracy": {"wieght": 1.0, "weight": 1.0}}, ["accuracy.wieght", "weight"]),
        ({"brevity": {"weight": 1.0, "longest": 3, "penatly": 1}}, ["brevity.penatly", "penalty"]),
        ({"brevity": {"weight": 1.0}}, ["brevity.longest"]),
        ({"brevity": {"weight": 1.0, "longest": 3, "penalty": "big"}}, ["brevity.penalty=big"]),
        ({"brevity": {"weight": 1.0, "longest": 3, "reasoning": "no_think"}}, ["brevity.reasoning"]),
    ],
    ids=str,
)
def test_unusable_settings_are_refused(brevity: None, functions: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check(config(**functions))
    assert all(name in str(caught.value) for name in named), caught.value


@pytest.mark.parametrize("returned", [[1.0], [0.0, math.nan], [0.0, math.inf], [0.0, None], [0.0, "1"]], ids=str)
def test_values_that_are_no_numbers_are_refused(brevity: None, returned: list[Any]) -> None:
    broken = config(brevity={"weight": 1.0, "longest": 3, "returned": returned})
    with pytest.raises(RewardError, match="brevity"):
        compute_rewards(broken, ["one", "two"], [record()] * 2, NO_THINK)
