"""Overrides as they are typed: what Hydra cannot read is printed in quotes with which it can."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medr1.cli.overrides import read_overrides, refuse_numbers, refuse_others
from medr1.config.override_text import override_text, shell_word
from medr1.errors import ConfigError

VALUES = [
    *(
        "/x/数据",
        "/x/(1)",
        "a=b",
        "it's",
        "[x",
        "~data",
        "a{b",
        "a;b",
        "é",
        "a]",
        "a#b",
        "🙂",
        'a"b',
        "a'b\"c",
        "f(1)",
    ),
    *("C:\\data (1)\\", "x&y", "<x>", "a!b", "a^b", "`x`", "'", '"', "a,(b", "\\'", "50 % (a)", "名前=値"),
]


@pytest.mark.parametrize("value", VALUES)
def test_the_printed_override_is_read_as_the_typed_value(value: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_overrides([f"data.root={value}"], ())
    message = str(error.value)
    assert message.startswith(f"data.root={value}: ")
    (word,) = shlex.split(message.split("; type ")[1])
    (override,) = read_overrides([word], ())
    assert override.get_key_element() == "data.root" and str(override.value()) == value


def test_a_tilde_that_the_shell_has_left_is_written_out() -> None:
    with pytest.raises(ConfigError) as error:
        read_overrides(["data.root=~/data"], ())
    (word,) = shlex.split(str(error.value).split("; type ")[1])
    (override,) = read_overrides([word], ())
    assert override.value() == str(Path.home() / "data")


@pytest.mark.parametrize(
    "value", ["runs/a b", "1e-4", "null", "[1,2]", "{a:1}", "a,b", "range(3)", "${seed}", "a:b", ""]
)
def test_what_hydra_reads_is_left_to_it(value: str) -> None:
    (override,) = read_overrides([f"data.root={value}"], ("modality",))
    assert override.input_line == f"data.root={value}"


@pytest.mark.parametrize("value", ["[ct,mri]", "[ct]", "[]", "['ct']", "{ct:1}"])
@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_a_list_for_a_group_is_refused(value: str, prefix: str) -> None:
    with pytest.raises(ConfigError, match="a run has one modality, not a list of them"):
        read_overrides([f"{prefix}modality={value}"], ("modality",))


@pytest.mark.parametrize("word", ["=1", "=", "+=1", "~", "~=", "+", "++", "+ct"])
def test_an_override_has_a_name_and_a_value(word: str) -> None:
    with pytest.raises(ConfigError, match="an override is written KEY=VALUE"):
        read_overrides([word], ())


@pytest.mark.parametrize("key", ["数据", "da ta", "+a b", "seed ", "a(b", "'seed'", "a,b"])
def test_a_name_that_cannot_be_is_named(key: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_overrides([f"{key}=1"], ())
    assert repr(key) in str(error.value) and "no setting has such a name" in str(error.value)


@pytest.mark.parametrize("word", ["~modality", "~modality=ct"])
def test_a_group_cannot_be_removed(word: str) -> None:
    with pytest.raises(ConfigError, match=r"a run has one modality; choose another one with modality=NAME"):
        read_overrides([word], ("modality",))


@pytest.mark.parametrize("value", [*VALUES, "/a b", "a,b", "2026_11_28", "null", "true", "1e5", "glob(*)", "", "\\'\""])
def test_a_printed_value_is_read_as_it_was(value: str) -> None:
    (word,) = shlex.split(shell_word("data.root", value))
    (override,) = read_overrides([word], ())
    assert override.value() == value


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])).filter(lambda text: "${" not in text))
@settings(deadline=None)
def test_any_printed_path_is_read_as_it_was(value: str) -> None:
    (override,) = read_overrides([override_text("data.root", value)], ())
    assert override.value() == value


def test_a_plain_path_stays_as_it_is() -> None:
    assert shell_word("resume", "/runs/2026-11-28_seed0") == "resume=/runs/2026-11-28_seed0"


def test_a_name_that_is_read_as_another_number_is_refused() -> None:
    overrides = read_overrides(["hydra.run.dir=2026_11_28", "seed=1_0", "data.root=12", "resume=1e5"], ())
    refuse_numbers(overrides[1:3], lambda key: key != "seed")
    with pytest.raises(ConfigError, match=r"reads 2026_11_28 as the number 20261128") as error:
        refuse_numbers(overrides, lambda key: key != "seed")
    (word,) = shlex.split(str(error.value).rpartition(": ")[2])
    assert read_overrides([word], ())[0].value() == "2026_11_28"
    for word in ("data.root=2026_11_28,2026_12_01", "compare=[a,2026_11]"):
        with pytest.raises(ConfigError, match=r"Hydra reads 2026_11(_28)? as a number"):
            refuse_numbers(read_overrides([word], ()), lambda key: True)
    refuse_numbers(
        read_overrides(["compare=[a_1,runs/2026_11,'2026_11']", "seed=1_0,2"], ()), lambda key: key != "seed"
    )
    with pytest.raises(ConfigError, match=r"reads 1e5 as the number 100000\.0"):
        refuse_numbers(overrides[3:], lambda key: key != "seed")


WORDS = st.lists(
    st.sampled_from(["modality", "data.root", "seed", "=", "+", "~", "@", ",", "[", "]", "{", "}", "(", ")", "${", "$"])
    | st.sampled_from(["'", '"', "\\", " ", ":", "null", "1e5", "range(3)", "choice(", "#", "\n", "\0", "数据"])
    | st.text(max_size=3)
    | st.characters(categories=["Cs"]),
    max_size=8,
).map("".join)


@given(WORDS | st.text() | WORDS.map("data.root={}".format))
@settings(deadline=None)
def test_any_word_is_read_or_named_with_a_word_that_is_read(word: str) -> None:
    try:
        read_overrides([word], ("modality",))
    except ConfigError as error:
        message = str(error)
        assert word in message
        if "; type " in message:
            (typed,) = shlex.split(message.rpartition("; type ")[2])
            (override,) = read_overrides([typed], ("modality",))
            assert override.get_key_element() == word.partition("=")[0]


def test_words_that_are_no_overrides_are_left_alone() -> None:
    words = ["-m", "--cfg", "job", "--config-dir=/x (1)", "seed=1", "~reward.functions.format", "+a=1"]
    assert [str(o.input_line) for o in read_overrides(words, ())] == ["seed=1", "~reward.functions.format", "+a=1"]


def test_only_the_allowed_places_may_be_typed() -> None:
    typed = read_overrides(["run=a", "data.root=/x", "seed=1", "+data.rooty=1"], ())
    refuse_others(typed[:2], ("run", "data"), "this")
    with pytest.raises(ConfigError, match=r"^this; leave out seed=1, \+data.rooty=1$"):
        refuse_others(typed, ("run", "data.root"), "this")


def test_a_glob_of_options_is_left_to_hydra() -> None:
    (override,) = read_overrides(["modality=glob(m*)"], ("modality",))
    assert override.is_sweep_override()
