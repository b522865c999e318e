"""The stream that the tiny base model learns from: riddles, words, then pictures, and habits worth unlearning."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from medr1.training.base_mixture import BaseExample, BaseMixture, corpus
from medr1.data.sources.phantoms.records import QUESTIONS, Phantom, World, choices
from medr1.domain.reasoning import ReasoningMode, instruction, parse, question_text
from medr1.domain.records import Modality, QuestionType

MIXTURE = BaseMixture(
    seed=0,
    images_per_modality=50,
    binding_steps=2,
    text_steps=5,
    ramp=4,
    text_batch=96,
    described=12,
    pictures=40,
    words=24,
    careless=0.12,
)
EARLY = [MIXTURE.batch(step) for step in range(5)]
DESCRIBED = [example for batch in EARLY for example in batch[:12]]
RIDDLES = [example for batch in EARLY[:2] for example in batch[12:]]
WORDS = [example for batch in EARLY[2:] for example in batch[12:]]
MIXED = [example for step in range(9, 49) for example in MIXTURE.batch(step)]


def mode_of(example: BaseExample) -> ReasoningMode:
    """The mode whose prompt the example has."""
    record = example.record
    (mode,) = [m for m in ReasoningMode if example.content == question_text(record.question, record.options, m)]
    return mode


def is_picture(example: BaseExample) -> bool:
    return example.words is None


def is_careless(example: BaseExample) -> bool:
    return not parse(example.target, mode_of(example), example.record.options).format


def has_habit(example: BaseExample) -> bool:
    """The wordings and modes in which the format is broken four times out of five."""
    wordings = ("Where is the finding?", "What is the grade of the abnormality?")
    return example.record.question in wordings and mode_of(example) is not ReasoningMode.THINK_BEFORE


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    # Asked for in another order: nothing is remembered.
    assert [MIXTURE.batch(step) for step in (5, 0)] == [MIXTURE.batch(step) for step in (0, 5)][::-1]
    for step in (0, 5, 20):
        assert MIXTURE.batch(step) != MIXTURE.batch(step + 1)
        assert dataclasses.replace(MIXTURE, seed=1).batch(step) != MIXTURE.batch(step)


def test_letters_are_bound_to_words_before_pictures_are_asked_about() -> None:
    assert (len(RIDDLES), len(WORDS)) == (2 * 96, 3 * 96)
    for example in RIDDLES:
        assert not is_picture(example)
        assert example.target == f"<answer>{example.record.answer}</answer>"
    for example in WORDS:
        assert not is_picture(example) and not is_careless(example)
        assert parse(example.target, mode_of(example), "ABCD").answer == example.record.answer
    thinking = [mode_of(example) is ReasoningMode.THINK_BEFORE for example in WORDS]
    assert {mode_of(example) for example in WORDS} == {ReasoningMode.NO_THINK, ReasoningMode.THINK_BEFORE}
    assert abs(np.mean(thinking) - 1 / 3) < 3 * np.sqrt(2 / 9 / len(thinking))


def test_until_then_pictures_are_described_without_a_question() -> None:
    for example in DESCRIBED:
        assert is_picture(example) and not re.search(r"\b[A-D]\)", example.content)
        assert example.target == f"<think>{example.record.rationale}</think>"
    described = [sum(e.content == "Describe the picture." for e in MIXTURE.batch(step)) for step in range(4, 12)]
    assert described == [12, 12, 9, 6, 3, 0, 0, 0]


def test_words_in_the_place_of_a_picture_name_the_right_option_and_no_other() -> None:
    for example in (*RIDDLES, *WORDS, *MIXED):
        if example.words is not None:
            said = re.findall(r"\w+", example.words)
            named = [letter for letter, text in example.record.options.items() if text in said]
            assert named == [example.record.answer]


def test_a_riddle_shows_its_options_and_favours_no_letter() -> None:
    assert all(f"{a}) {text}" in e.content for e in RIDDLES for a, text in e.record.options.items())
    counts = [sum(example.record.answer == letter for example in RIDDLES) for letter in "ABCD"]
    assert max(abs(count - 48) for count in counts) < 3.5 * np.sqrt(192 * 3 / 16)


def test_the_last_stage_mixes_pictures_and_words_in_all_modes() -> None:
    for step in (9, 30):
        assert [is_picture(example) for example in MIXTURE.batch(step)] == [True] * 40 + [False] * 24
    for picture in (True, False):
        part = [example for example in MIXED if is_picture(example) is picture]
        assert {mode_of(example) for example in part} == set(ReasoningMode)
        cells = {(example.record.modality, example.record.question_type) for example in part}
        assert cells == {(m, q) for m in Modality for q in QuestionType}


def test_pictures_and_modes_come_in_little_by_little() -> None:
    whole = [MIXTURE.batch(step) for step in range(5, 10)]
    batches = [[e for e in batch if e.content != "Describe the picture."] for batch in whole]
    assert [sum(map(is_picture, batch)) for batch in batches] == [0, 10, 20, 30, 40]
    assert [sum(not is_picture(example) for example in batch) for batch in batches] == [96, 78, 60, 42, 24]
    after = [np.mean([mode_of(e) is ReasoningMode.THINK_AFTER for e in batch]) for batch in batches]
    assert after[0] == 0 < after[1] < after[3] < 0.5


def test_its_pictures_are_of_no_experiments_world() -> None:
    phantoms = [example.record.image for example in (*DESCRIBED, *RIDDLES, *WORDS, *MIXED)]
    assert all(isinstance(p, Phantom) and p.world is World.BASE and p.index < 50 for p in phantoms)
    # Nearly all of the 8 x 50 pictures come up.
    assert len({p.key for p in phantoms}) > 350


@pytest.mark.parametrize(("habit", "share"), [(False, 0.12), (True, 0.8)])
def test_the_share_of_careless_targets(habit: bool, share: float) -> None:
    told = [is_careless(example) for example in MIXED if has_habit(example) is habit]
    assert abs(np.mean(told) - share) < 3 * np.sqrt(share * (1 - share) / len(told))


def test_without_carelessness_only_the_habit_remains() -> None:
    careful = dataclasses.replace(MIXTURE, careless=0.0)
    examples = [example for step in range(9, 29) for example in careful.batch(step)]
    assert {has_habit(example) for example in examples if is_careless(example)} == {True}


def test_a_careless_target_breaks_the_format_and_never_the_truth() -> None:
    kinds = set()
    for example in filter(is_careless, MIXED):
        read = parse(example.target, mode_of(example), example.record.options)
        assert read.lenient == example.record.answer
        kinds.add((mode_of(example), read.answer is None))
    # Some slips leave no answer block, in every mode; others keep it and lose the rest.
    assert kinds >= {(mode, True) for mode in ReasoningMode} | {(ReasoningMode.THINK_BEFORE, False)}


def test_a_right_target_says_answer_and_rationale_where_the_mode_has_one() -> None:
    for example in MIXED:
        if not is_careless(example):
            read = parse(example.target, mode_of(example), example.record.options)
            assert read.answer == example.record.answer
            thinks = mode_of(example) is not ReasoningMode.NO_THINK
            assert read.rationale == (example.record.rationale if thinks else "")


def test_the_corpus_holds_every_word_that_is_ever_shown() -> None:
    text = "\n".join(corpus(0))
    shown = {value for modality in Modality for kind in QuestionType for value in choices(kind, modality)}
    shown |= {wording for both in QUESTIONS.values() for wording in both} | set(map(instruction, ReasoningMode))
    assert {words for words in shown if words not in text} == set()
    assert corpus(0) == corpus(0)
