"""Rewards: Med-R1's two rules, their weighted sum, and reward functions of one's own."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
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
from medr1.rewards import REWARDS, check, compute_rewards, explain_key, max_reward, reward_function

NO_THINK = ReasoningMode.NO_THINK


def config(**functions: dict[str, Any]) -> RewardConfig:
    return RewardConfig("test", functions)


EVEN = config(accuracy={"weight": 1.0}, format={"weight": 1.0})


class NoImage:
    key = "none"

    def load(self, side: int) -> Image.Image:
        raise AssertionError("rewards do not load images")


def record(answer: str = "C", letters: str = "ABCD", id: str = "r") -> Record:
    options = {letter: f"option {letter}" for letter in letters}
    return Record(id, (NoImage(),), Modality.CT, QuestionType.ANATOMY, "Which?", options, answer)


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


@pytest.fixture
def registered() -> Iterator[None]:
    """Forgets what a test registers."""
    yield
    for name in ("own", "overlong"):
        REWARDS.pop(name, None)


IDS = [[5, 6, 2], [5] * 4]
CUT = [False, True]


def none(completions, records):
    return [0, 0] if records[0].id == "r" else None


def mode_only(completions, records, *, reasoning):
    return [float(reasoning is NO_THINK)] * 2


def positional_mode(completions, records, reasoning, limit=2):
    return [float(reasoning is NO_THINK) + limit] * 2


def ids_only(completions, records, *, completion_ids):
    return [sum(ids) for ids in completion_ids]


def cut_only(completions, records, *, truncated):
    return [-float(cut) for cut in truncated]


def everything(texts, rows, *, truncated, limit=3, completion_ids, reasoning):
    return [len(ids) - limit + cut for ids, cut in zip(completion_ids, truncated, strict=True)]


def keywords(completions, records, **kwargs):
    return [len(kwargs["completion_ids"]), len(kwargs)]


def no_names(*both):
    return [len(both)] * 2


def answers_only(completions, records, *, answers):
    return [float(letter == "C") for letter in answers]


def generator(completions, records, *, truncated):
    return (float(cut) for cut in truncated)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        *((none, [0, 0]), (mode_only, [1, 1]), (positional_mode, [3, 3]), (ids_only, [13, 20]), (cut_only, [0, -1])),
        *((everything, [0, 2]), (keywords, [2, 4]), (no_names, [2, 2]), (generator, [0, 1]), (answers_only, [1, 1])),
    ],
)
def test_a_function_gets_the_arguments_that_it_names(
    registered: None, function: Callable[..., Any], expected: list[float]
) -> None:
    reward_function("own")(function)
    own = config(own={"weight": 1.0})
    check(own)
    rewards = compute_rewards(own, ["a", "b"], [record()] * 2, NO_THINK, completion_ids=IDS, truncated=CUT)
    assert rewards.parts["own"] == expected and all(type(value) is float for value in rewards.total)


@pytest.mark.parametrize("function", [ids_only, cut_only, everything])
def test_an_argument_that_the_algorithm_does_not_pass_is_named(registered: None, function: Callable[..., Any]) -> None:
    reward_function("own")(function)
    with pytest.raises(RewardError, match=r"reward own needs (completion_ids|truncated)"):
        compute_rewards(config(own={"weight": 1.0}), ["a", "b"], [record()] * 2, NO_THINK)


@pytest.mark.parametrize(
    "name", ["reasoning", "answers", "completion_ids", "truncated", "completions", "records", "texts"]
)
def test_an_argument_is_no_setting(registered: None, name: str) -> None:
    reward_function("own")(everything)
    with pytest.raises(ConfigError, match=rf"own\.{name}: no such setting"):
        check(config(own={"weight": 1.0, name: 1}))


@pytest.mark.parametrize(
    "function",
    [
        *(lambda: [], lambda completions: [], lambda *, completions, records: []),
        *(lambda a, b, *, weight=1: [], lambda completion_ids, longest=20: []),
    ],
    ids=["none", "one", "by_keyword", "weight", "as_of_a_file"],
)
def test_a_function_with_unusable_parameters_is_refused(registered: None, function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="reward function own"):
        reward_function("own")(function)


def below(limit, threshold):
    if threshold >= limit:
        raise ValueError(f"threshold={threshold} must be below limit={limit}")


def below_config_error(*, threshold, limit):
    if threshold >= limit:
        raise ConfigError("threshold must be below limit")


def below_any(**settings):
    if settings["threshold"] >= settings["limit"]:
        raise ValueError("threshold must be below limit")


def below_by_division(limit, threshold):
    assert 1 / (limit - threshold) > 0


@pytest.mark.parametrize("own_check", [below, below_config_error, below_any, below_by_division])
@pytest.mark.parametrize(
    ("settings", "works"),
    [({}, True), ({"threshold": 9}, True), ({"threshold": 10}, False), ({"limit": 5, "threshold": 5}, False)],
    ids=str,
)
def test_a_function_checks_its_settings_with_their_defaults(
    registered: None, own_check: Callable[..., None], settings: dict[str, int], works: bool
) -> None:
    @reward_function("overlong", check=own_check)
    def overlong(completions, records, *, limit=10, threshold=8, other=1):
        raise AssertionError("settings are checked without calling the function")

    given = config(accuracy={"weight": 1.0}, overlong={"weight": 1.0, **settings})
    if works:
        check(given)
    else:
        with pytest.raises(ConfigError, match=r"reward\.functions\.overlong: "):
            check(given)


def division(completions, records):
    return [1 / len(text) for text in completions]


def indexing(completions, records, *, completion_ids):
    return [ids[0] for ids in completion_ids]


def lookup(completions, records):
    return [{"C": 1.0}[record.answer] for record in records]


def own_error(completions, records, *, truncated):
    if any(truncated):
        raise ConfigError("cannot score what is cut off")
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("function", "error"),
    [(division, "ZeroDivisionError"), (indexing, "IndexError"), (lookup, "KeyError"), (own_error, "ConfigError")],
)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_exception_names_function_and_record(
    registered: None, function: Callable[..., Any], error: str, position: int
) -> None:
    reward_function("own")(function)
    texts, ids, cut, answers = ["a"] * 3, [[1]] * 3, [False] * 3, ["C"] * 3
    texts[position], ids[position], cut[position], answers[position] = "", [], True, "A"
    records = [record(answer, id=f"file/{i}") for i, answer in enumerate(answers)]
    with pytest.raises(RewardError, match=rf"reward own raised {error} for record file/{position}: ") as caught:
        compute_rewards(config(own={"weight": 1.0}), texts, records, NO_THINK, completion_ids=ids, truncated=cut)
    assert f"{Path(__file__).name}, line" in str(caught.value) and caught.value.__cause__ is not None


def test_an_exception_that_no_single_record_causes_names_all(registered: None) -> None:
    @reward_function("own")
    def own(completions, records):
        return [1.0] if len(completions) == 1 else [0.0][1]

    records = [record(id="file/1"), record(id="file/2")]
    with pytest.raises(RewardError, match="IndexError for the records file/1, file/2 together"):
        compute_rewards(config(own={"weight": 1.0}), ["a", "b"], records, NO_THINK)


@pytest.mark.parametrize("returned", [None, 1.0, True])
def test_a_function_that_returns_no_list_is_refused(registered: None, returned: Any) -> None:
    reward_function("own")(lambda completions, records: returned)
    with pytest.raises(RewardError, match=f"reward own returned {returned}; return a list"):
        compute_rewards(config(own={"weight": 1.0}), ["a"], [record()], NO_THINK)


@pytest.mark.parametrize("name", ["accuracy", "format"])
def test_the_name_of_a_function_of_the_package_is_taken(
    registered: None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the package's own file has been imported already."""
    monkeypatch.delitem(REWARDS, name, raising=False)
    with pytest.raises(ConfigError, match=rf"reward function {name} is defined twice, in .*rewards/{name}\.py"):
        reward_function(name)(none)
    assert name not in REWARDS


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("reward.functions.acuracy", ["no such reward function", "Did you mean accuracy"]),
        ("reward.functions.acuracy.weight", ["reward.functions.acuracy", "Did you mean accuracy"]),
        ("reward.functions.formt.weight", ["Did you mean format"]),
        ("reward.functions.accuracy.wieght", ["accuracy.wieght: no such setting", "Did you mean weight"]),
        ("reward.functions.brevity.longst", ["Did you mean longest", "penalty"]),
        ("reward.functions.brevity.penalty.x", ["penalty.x: no such setting", "Did you mean penalty"]),
        ("reward.functions.brevity.longest", ["+reward.functions.brevity.longest=..."]),
        ("reward.functions.brevity.weight", ["+reward.functions.brevity.weight=..."]),
        ("reward.functions.brevity", ["+reward.functions.brevity.weight=..."]),
    ],
)
def test_a_key_that_a_reward_does_not_have_is_explained(brevity: None, key: str, named: list[str]) -> None:
    assert [words for words in named if words not in explain_key(key)] == [], explain_key(key)


@pytest.mark.parametrize(
    ("functions", "highest"),
    [
        ({"accuracy": {"weight": 1.0}, "format": {"weight": 0.5}}, 1.5),
        ({"accuracy": {"weight": 1.0}, "repetition_penalty": {"weight": 1.0}}, 1.0),
        ({"accuracy": {"weight": 1.0}, "removed": {"weight": 1.0}}, None),
        ({"mine": {"weight": 1.0, "function": "mine.py:mine"}}, None),
    ],
)
def test_the_highest_reward_is_known_where_every_function_says_its_own(
    functions: dict[str, dict[str, float]], highest: float | None
) -> None:
    assert max_reward(RewardConfig("own", functions)) == highest
