"""Circular evaluation of models whose behaviour is known: what they know, and what they choose by its letter."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.reasoning import ReasoningMode, target_text
from medr1.domain.records import Record
from medr1.evaluation.circular import CircularSummary, rotate, summarise_circular
from medr1.evaluation.predictions import Prediction, prediction

RECORDS = make_records(World.TEST, 0, 2)  # with three and with four options
MODE = ReasoningMode.NO_THINK


def of_letters(letters: str, answer: str) -> Record:
    """A record with these letters in this order; the text of X is "text X"."""
    options = {letter: f"text {letter}" for letter in letters}
    return Record("r", RECORDS[0].images, "ct", "disease", "Which?", options, answer)


def answered(record: Record, choose: Callable[[Record], str | None]) -> list[Prediction]:
    """The predictions of all rotations; ``choose`` returns a letter of the record that it is shown."""
    rotations = (rotate(record, places) for places in range(len(record.options)))
    texts = [("" if (letter := choose(r)) is None else target_text(MODE, letter), r) for r in rotations]
    return [prediction(r, f"base.rotation_{i}", MODE, text, 3, False) for i, (text, r) in enumerate(texts)]


def summary(choose: Callable[[Record], str | None], records: list[Record] = RECORDS) -> CircularSummary:
    return summarise_circular([answered(record, choose) for record in records])


def letter_of(record: Record, text: str) -> str:
    return next(letter for letter, option in record.options.items() if option == text)


@pytest.mark.parametrize("record", [RECORDS[0], of_letters("BADC", "D"), of_letters("ACD", "A")], ids=lambda r: r.id)
def test_each_text_stands_once_at_each_letter_and_the_answer_stays_the_same(record: Record) -> None:
    rotations = [rotate(record, places) for places in range(len(record.options))]
    assert rotations[0] == record
    assert {r.options[r.answer] for r in rotations} == {record.answer_text}
    for letter in record.options:
        assert {r.options[letter] for r in rotations} == set(record.options.values())
        assert sum(r.answer == letter for r in rotations) == 1
    assert all(list(r.options) == list(record.options) for r in rotations)


def test_the_first_option_goes_to_the_end() -> None:
    assert dict(rotate(of_letters("ABC", "A"), 1).options) == {"A": "text B", "B": "text C", "C": "text A"}
    assert rotate(of_letters("ABC", "A"), 1).answer == "C"


@pytest.mark.parametrize("letter", ["A", "C"])
def test_a_model_that_always_says_one_letter_is_at_chance_with_letter_bias_1(letter: str) -> None:
    found = summary(lambda record: letter)
    chance = sum(1 / len(record.options) for record in RECORDS) / len(RECORDS)
    assert {len(record.options) for record in RECORDS} == {3, 4}
    assert found.circular_accuracy.value == found.consistency.value == 0
    assert found.mean_accuracy.value == pytest.approx(chance)
    assert found.letter_bias is not None and found.letter_bias.value == found.letter_bias.low == pytest.approx(1)
    assert found.letters[letter] == 1 and sum(found.letters.values()) == 1


def test_a_model_that_knows_the_answer_has_no_letter_bias() -> None:
    found = summary(lambda record: record.answer)
    assert found.circular_accuracy.value == found.mean_accuracy.value == found.consistency.value == 1
    assert found.letter_bias is not None and found.letter_bias.high == pytest.approx(0)


def test_a_model_that_always_chooses_the_same_wrong_text_is_consistent() -> None:
    def last_text(record: Record) -> str:
        return letter_of(record, max(set(record.options.values()) - {record.answer_text}))

    found = summary(last_text)
    assert found.consistency.value == 1 and found.mean_accuracy.value == found.circular_accuracy.value == 0
    assert found.letter_bias is not None and found.letter_bias.value == pytest.approx(0)


@pytest.mark.parametrize("letters", ["BADC", "ACD", "AB", "ABCDEFGHIJ"])
def test_letters_need_not_be_in_alphabetical_order(letters: str) -> None:
    record = of_letters(letters, letters[1])
    for choose, consistency, bias in (
        (lambda r: letter_of(r, f"text {letters[0]}"), 1, 0),
        (lambda r: letters[0], 0, 1),
    ):
        found = summary(choose, [record])
        assert found.consistency.value == consistency
        assert found.letter_bias is not None and found.letter_bias.value == pytest.approx(bias)


def test_a_model_that_is_correct_in_all_but_one_rotation() -> None:
    record = of_letters("ABCD", "B")
    found = summary(lambda r: "B" if r.answer == "A" else r.answer, [record])
    assert (found.circular_accuracy.value, found.mean_accuracy.value, found.consistency.value) == (0, 0.75, 0)
    # Chosen: B twice, C and D once; expected: each once. 1/2 (1 + 1) / (4 * 3/4).
    assert found.letter_bias is not None and found.letter_bias.value == pytest.approx(1 / 3)
    assert found.letters == {"A": 0, "B": 0.5, "C": 0.25, "D": 0.25}


def test_an_answer_that_cannot_be_read_is_not_consistent_and_has_no_letter() -> None:
    found = summary(lambda r: None if r.answer == "A" else r.answer, [of_letters("AB", "B")])
    assert (found.circular_accuracy.value, found.mean_accuracy.value, found.consistency.value) == (0, 0.5, 0)
    assert found.letters == {"A": 0, "B": 1} and found.letter_bias is not None
    nothing = summary(lambda record: None)
    assert nothing.letter_bias is None and nothing.letters == {} and nothing.consistency.value == 0


def test_a_record_without_all_its_rotations_is_refused() -> None:
    group = answered(RECORDS[0], lambda record: "A")
    for part in (group[1:], [*group[:-1], group[0]]):
        with pytest.raises(ValueError, match=RECORDS[0].id):
            summarise_circular([part])
