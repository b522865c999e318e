"""Pretraining examples of the tiny base model: word matching, rationales, images, and format violations."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from medr1.data.sources.phantoms.records import QUESTIONS, Phantom, World, choices
from medr1.domain.reasoning import ReasoningMode, instruction, parse, question_text
from medr1.domain.records import Modality, QuestionType
from medr1.training.algorithms.pretrain import PretrainConfig
from medr1.training.base_mixture import BaseExample, BaseMixture, corpus

SETTINGS = PretrainConfig(
    images_per_modality=50,
    binding_steps=2,
    text_steps=5,
    ramp=4,
    text_batch=96,
    described=12,
    images=40,
    words=24,
    careless=0.12,
    careless_wordings=0.8,
)
MIXTURE = BaseMixture(0, SETTINGS)
EARLY = [MIXTURE.batch(step) for step in range(5)]
DESCRIBED = [example for batch in EARLY for example in batch[:12]]
MATCHING = [example for batch in EARLY[:2] for example in batch[12:]]
WORDS = [example for batch in EARLY[2:] for example in batch[12:]]
MIXED = [example for step in range(9, 49) for example in MIXTURE.batch(step)]


def mode_of(example: BaseExample) -> ReasoningMode:
    """The mode of the example's prompt."""
    record = example.record
    (mode,) = [m for m in ReasoningMode if example.content == question_text(record.question, record.options, m)]
    return mode


def has_image(example: BaseExample) -> bool:
    return example.words is None


def is_careless(example: BaseExample) -> bool:
    return not parse(example.target, mode_of(example), example.record.options).format


def often_careless(example: BaseExample) -> bool:
    """The wordings and modes whose targets violate the format with probability 0.8."""
    wordings = ("Where is the finding?", "What is the grade of the abnormality?")
    return example.record.question in wordings and mode_of(example) is not ReasoningMode.THINK_BEFORE


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    # The order of the calls does not matter.
    assert [MIXTURE.batch(step) for step in (5, 0)] == [MIXTURE.batch(step) for step in (0, 5)][::-1]
    for step in (0, 5, 20):
        assert MIXTURE.batch(step) != MIXTURE.batch(step + 1)
        assert dataclasses.replace(MIXTURE, seed=1).batch(step) != MIXTURE.batch(step)


def test_matching_and_rationales_come_before_questions_about_images() -> None:
    assert (len(MATCHING), len(WORDS)) == (2 * 96, 3 * 96)
    for example in MATCHING:
        assert not has_image(example)
        assert example.target == f"<answer>{example.record.answer}</answer>"
    for example in WORDS:
        assert not has_image(example) and not is_careless(example)
        assert parse(example.target, mode_of(example), "ABCD").answer == example.record.answer
    thinking = [mode_of(example) is ReasoningMode.THINK_BEFORE for example in WORDS]
    assert {mode_of(example) for example in WORDS} == {ReasoningMode.NO_THINK, ReasoningMode.THINK_BEFORE}
    assert abs(np.mean(thinking) - 1 / 3) < 3 * np.sqrt(2 / 9 / len(thinking))


def test_images_are_described_until_then() -> None:
    for example in DESCRIBED:
        assert has_image(example) and not re.search(r"\b[A-D]\)", example.content)
        assert example.target == f"<think>{example.record.rationale}</think>"
    described = [sum(e.content == "Describe the picture." for e in MIXTURE.batch(step)) for step in range(4, 12)]
    assert described == [12, 12, 9, 6, 3, 0, 0, 0]


def test_words_in_place_of_an_image_name_the_correct_option_only() -> None:
    for example in (*MATCHING, *WORDS, *MIXED):
        if example.words is not None:
            said = re.findall(r"\w+", example.words)
            named = [letter for letter, text in example.record.options.items() if text in said]
            assert named == [example.record.answer]


def test_matching_examples_show_their_options_and_favour_no_letter() -> None:
    assert all(f"{a}) {text}" in e.content for e in MATCHING for a, text in e.record.options.items())
    counts = [sum(example.record.answer == letter for example in MATCHING) for letter in "ABCD"]
    assert max(abs(count - 48) for count in counts) < 3.5 * np.sqrt(192 * 3 / 16)


def test_the_last_stage_mixes_images_and_words_in_all_modes() -> None:
    for step in (9, 30):
        assert [has_image(example) for example in MIXTURE.batch(step)] == [True] * 40 + [False] * 24
    for image in (True, False):
        part = [example for example in MIXED if has_image(example) is image]
        assert {mode_of(example) for example in part} == set(ReasoningMode)
        cells = {(example.record.modality, example.record.question_type) for example in part}
        assert cells == {(m, q) for m in Modality for q in QuestionType}


def test_images_and_modes_are_added_gradually() -> None:
    whole = [MIXTURE.batch(step) for step in range(5, 10)]
    batches = [[e for e in batch if e.content != "Describe the picture."] for batch in whole]
    assert [sum(map(has_image, batch)) for batch in batches] == [0, 10, 20, 30, 40]
    assert [sum(not has_image(example) for example in batch) for batch in batches] == [96, 78, 60, 42, 24]
    after = [np.mean([mode_of(e) is ReasoningMode.THINK_AFTER for e in batch]) for batch in batches]
    assert after[0] == 0 < after[1] < after[3] < 0.5


def test_its_images_are_used_in_no_experiment() -> None:
    phantoms = [example.record.images[0] for example in (*DESCRIBED, *MATCHING, *WORDS, *MIXED)]
    assert all(isinstance(p, Phantom) and p.world is World.BASE and p.index < 50 for p in phantoms)
    # Nearly all of the 8 x 50 images occur.
    assert len({p.key for p in phantoms}) > 350


@pytest.mark.parametrize(("often", "share"), [(False, 0.12), (True, 0.8)])
def test_the_share_of_careless_targets(often: bool, share: float) -> None:
    careless = [is_careless(example) for example in MIXED if often_careless(example) is often]
    assert abs(np.mean(careless) - share) < 3 * np.sqrt(share * (1 - share) / len(careless))


def test_without_careless_only_the_two_wordings_violate_the_format() -> None:
    careful = BaseMixture(0, dataclasses.replace(SETTINGS, careless=0.0))
    examples = [example for step in range(9, 29) for example in careful.batch(step)]
    assert {often_careless(example) for example in examples if is_careless(example)} == {True}


def test_without_careless_wordings_these_are_as_careless_as_the_others() -> None:
    mixture = BaseMixture(0, dataclasses.replace(SETTINGS, careless_wordings=0.0))
    examples = [e for step in range(9, 49) for e in mixture.batch(step) if often_careless(e)]
    share = SETTINGS.careless
    found = np.mean([is_careless(example) for example in examples])
    assert abs(found - share) < 3 * np.sqrt(share * (1 - share) / len(examples))


def test_a_careless_target_violates_the_format_and_keeps_the_answer() -> None:
    kinds = set()
    for example in filter(is_careless, MIXED):
        read = parse(example.target, mode_of(example), example.record.options)
        assert read.lenient == example.record.answer
        kinds.add((mode_of(example), read.answer is None))
    # Some violations have no answer block, in every mode. Others keep it and lack the rest.
    assert kinds >= {(mode, True) for mode in ReasoningMode} | {(ReasoningMode.THINK_BEFORE, False)}


def test_other_targets_have_answer_and_rationale_of_the_mode() -> None:
    for example in MIXED:
        if not is_careless(example):
            read = parse(example.target, mode_of(example), example.record.options)
            assert read.answer == example.record.answer
            thinks = mode_of(example) is not ReasoningMode.NO_THINK
            assert read.rationale == (example.record.rationale if thinks else "")


def test_the_corpus_has_every_word_of_the_prompts() -> None:
    text = "\n".join(corpus(0))
    shown = {value for modality in Modality for kind in QuestionType for value in choices(kind, modality)}
    shown |= {wording for both in QUESTIONS.values() for wording in both} | set(map(instruction, ReasoningMode))
    assert {words for words in shown if words not in text} == set()
    assert corpus(0) == corpus(0)
