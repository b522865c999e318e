"""The stream that the tiny base model learns from: words, then pictures, and habits that are worth unlearning."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from medr1.data.base_mixture import BaseExample, BaseMixture, corpus
from medr1.data.phantoms import QUESTIONS, Phantom, World, choices
from medr1.reasoning import ReasoningMode, instruction, parse
from medr1.records import Modality, QuestionType

MIXTURE = BaseMixture(
    seed=0, images_per_modality=50, text_steps=3, ramp=4, text_batch=96, pictures=40, words=24, careless=0.12
)
BINDING = [example for step in range(3) for example in MIXTURE.batch(step)]
MIXED = [example for step in range(7, 47) for example in MIXTURE.batch(step)]


def is_careless(example: BaseExample) -> bool:
    return not parse(example.target, example.mode, example.record.options).format


def has_habit(example: BaseExample) -> bool:
    """The wordings and modes in which the format is broken four times out of five."""
    wordings = ("Where is the finding?", "What is the grade of the abnormality?")
    return example.record.question in wordings and example.mode is not ReasoningMode.THINK_BEFORE


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    # Asked for in another order: nothing is remembered.
    assert [MIXTURE.batch(step) for step in (5, 0)] == [MIXTURE.batch(step) for step in (0, 5)][::-1]
    assert MIXTURE.batch(5) != MIXTURE.batch(6)
    assert dataclasses.replace(MIXTURE, seed=1).batch(5) != MIXTURE.batch(5)


def test_the_first_stage_binds_letters_to_words_alone() -> None:
    assert len(BINDING) == 3 * 96
    assert all(example.in_words and example.mode is ReasoningMode.NO_THINK for example in BINDING)
    assert all(example.target == f"<answer>{example.record.answer}</answer>" for example in BINDING)


def test_the_second_stage_mixes_pictures_and_words_in_all_modes() -> None:
    for step in (7, 20):
        assert [example.in_words for example in MIXTURE.batch(step)] == [False] * 40 + [True] * 24
    for in_words in (True, False):
        part = [example for example in MIXED if example.in_words is in_words]
        assert {example.mode for example in part} == set(ReasoningMode)
        cells = {(example.record.modality, example.record.question_type) for example in part}
        assert cells == {(m, q) for m in Modality for q in QuestionType}


def test_pictures_and_modes_come_in_little_by_little() -> None:
    batches = [MIXTURE.batch(step) for step in range(3, 8)]
    assert [sum(not example.in_words for example in batch) for batch in batches] == [0, 10, 20, 30, 40]
    assert [sum(example.in_words for example in batch) for batch in batches] == [96, 78, 60, 42, 24]
    thinking = [np.mean([e.mode is not ReasoningMode.NO_THINK for e in batch]) for batch in batches]
    assert thinking[0] == 0 < thinking[1] < thinking[3] < 0.9


def test_its_pictures_are_of_no_experiments_world() -> None:
    phantoms = [example.record.image for example in (*BINDING, *MIXED)]
    assert all(isinstance(p, Phantom) and p.world is World.BASE and p.index < 50 for p in phantoms)
    # Nearly all of the 8 x 50 pictures come up.
    assert len({p.key for p in phantoms}) > 350


@pytest.mark.parametrize(("habit", "share"), [(False, 0.12), (True, 0.8)])
def test_the_share_of_careless_targets(habit: bool, share: float) -> None:
    told = [is_careless(example) for example in MIXED if has_habit(example) is habit]
    assert abs(np.mean(told) - share) < 3 * np.sqrt(share * (1 - share) / len(told))


def test_without_carelessness_only_the_habit_remains() -> None:
    careful = dataclasses.replace(MIXTURE, careless=0.0)
    examples = [example for step in range(7, 27) for example in careful.batch(step)]
    assert all(has_habit(example) for example in examples if is_careless(example))
    assert any(has_habit(example) for example in examples)


def test_a_careless_target_breaks_the_format_and_never_the_truth() -> None:
    kinds = set()
    for example in filter(is_careless, MIXED):
        read = parse(example.target, example.mode, example.record.options)
        assert read.lenient == example.record.answer
        kinds.add((example.mode, read.answer is None))
    # Some slips of each mode still hold one answer block, others none.
    assert kinds >= {(mode, True) for mode in ReasoningMode} | {(ReasoningMode.THINK_BEFORE, False)}


def test_a_right_target_says_answer_and_rationale_where_the_mode_has_one() -> None:
    for example in MIXED:
        if not is_careless(example):
            read = parse(example.target, example.mode, example.record.options)
            assert read.answer == example.record.answer
            assert read.rationale == ("" if example.mode is ReasoningMode.NO_THINK else example.record.rationale)


def test_the_corpus_holds_every_word_that_is_ever_shown() -> None:
    text = "\n".join(corpus(0))
    shown = {value for modality in Modality for kind in QuestionType for value in choices(kind, modality)}
    shown |= {wording for both in QUESTIONS.values() for wording in both} | set(map(instruction, ReasoningMode))
    assert {words for words in shown if words not in text} == set()
    assert corpus(0) == corpus(0)
