"""Surface cues: what counts as a cue, and chance without a cue."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from PIL import Image

from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Modality, QuestionType, Record
from medr1.evaluation.surface_cues import (
    CueCount,
    CueCounts,
    count_cues,
    cue_option,
    expected_accuracy,
    lower_case_option,
    odd_full_stop_option,
    surface_cue_predictions,
)

Options = dict[str, str]


@dataclass(frozen=True)
class Unseen:
    """An image that must not be loaded."""

    key: str = "image"

    def load(self, side: int) -> Image.Image:
        raise AssertionError("surface cues must not load the image")


def record(options: Options, answer: str = "A", id: str = "1") -> Record:
    return Record(id, (Unseen(),), Modality.CT, QuestionType.DISEASE, "What is it?", options, answer)


@pytest.mark.parametrize(
    ("options", "letter"),
    [
        ({"A": "Lung", "B": "heart", "C": "Liver"}, "B"),
        ({"A": "Lung", "E": "heart"}, "E"),
        ({"A": "lung", "B": "heart", "C": "Liver"}, None),
        ({"A": "Lung", "B": "Heart"}, None),
        ({"A": "lung", "B": "heart"}, None),
        ({"A": "3 cm", "B": "(left)", "C": " nodule"}, "C"),
        ({"A": "MRI of the knee", "B": "CT"}, None),
    ],
)
def test_the_only_option_that_begins_in_lower_case(options: Options, letter: str | None) -> None:
    assert lower_case_option(options) == letter


@pytest.mark.parametrize(
    ("options", "letter"),
    [
        ({"A": "Lung", "B": "Heart.", "C": "Liver", "D": "Eye"}, "B"),
        ({"A": "Lung.", "B": "Heart. ", "C": "Liver.", "D": "Eye"}, "D"),
        ({"A": "Lung.", "B": "Heart.", "C": "Liver", "D": "Eye"}, None),
        ({"A": "Lung", "B": "Heart", "C": "Liver"}, None),
        ({"A": "Lung.", "B": "Heart.", "C": "Liver."}, None),
        ({"A": "Lung.", "B": "Heart"}, None),
        ({"A": "Grade 1.5", "B": "Dr. Who", "C": "None."}, "C"),
    ],
)
def test_the_odd_one_out_by_its_full_stop(options: Options, letter: str | None) -> None:
    assert odd_full_stop_option(options) == letter


def test_lower_case_goes_before_the_full_stop() -> None:
    assert cue_option({"A": "lung", "B": "Heart.", "C": "Liver"}) == "A"
    assert cue_option({"A": "lung", "B": "heart.", "C": "Liver"}) == "B"
    assert cue_option({"A": "Lung", "B": "Heart", "C": "Liver"}) is None


QUESTIONS = [
    ({"A": "Lung", "B": "heart", "C": "Liver"}, "B"),
    ({"A": "lung", "B": "Heart."}, "B"),
    ({"A": "Lung.", "B": "Heart", "C": "Liver"}, "A"),
    ({"A": "Lung.", "B": "Heart.", "C": "Liver"}, "A"),
    ({"A": "Lung.", "B": "Heart"}, "B"),
    ({"A": "Lung", "B": "Heart", "C": "Liver", "D": "Eye"}, "D"),
]


def test_counts_by_hand() -> None:
    assert count_cues([record(*question) for question in QUESTIONS]) == CueCounts(
        lower_case=CueCount(2, 1),
        odd_full_stop=CueCount(2, 1),
        # The two pairs count in both: with a stop correct in the first, without one in the second.
        with_full_stop=CueCount(3, 2),
        without_full_stop=CueCount(3, 1),
    )
    assert count_cues([]).lower_case == CueCount(0, 0)


def test_expected_accuracy_by_hand() -> None:
    # Correct, wrong, correct, wrong, a guess between two, a guess among four.
    assert expected_accuracy([record(*question) for question in QUESTIONS]) == pytest.approx(
        (1 + 0 + 1 + 0 + 1 / 2 + 1 / 4) / 6
    )


@pytest.mark.parametrize("mode", list(ReasoningMode))
def test_predictions_are_well_formed_lines(mode: ReasoningMode) -> None:
    lines = surface_cue_predictions(
        [record({"A": "Cyst", "E": "tumour"}, "E", "x"), record({"A": "a.", "B": "b", "C": "c"}, "B", "y")], mode
    )
    assert [(p.record, p.parsed, p.correct) for p in lines] == [("x", "E", True), ("y", "A", False)]
    assert {(p.condition, p.format, p.length, p.truncated, p.reasoning) for p in lines} == {
        ("surface_cues", True, 0, False, mode)
    }


def test_without_a_cue_it_is_at_chance_without_a_preferred_position() -> None:
    unknown = [record({"A": "P", "B": "Q", "C": "R", "D": "S"}, "D", id=str(i)) for i in range(4000)]
    lines = surface_cue_predictions(unknown, ReasoningMode.NO_THINK)
    chosen = [p.parsed for p in lines]
    # Each letter is binomial(4000, 1/4): mean 1000, standard deviation 27; four of those either way.
    assert all(abs(chosen.count(letter) - 1000) < 110 for letter in "ABCD")
    assert lines == surface_cue_predictions(unknown, ReasoningMode.NO_THINK)


def test_without_a_cue_the_same_text_is_chosen_wherever_it_stands() -> None:
    for i in range(20):
        here, there = {"A": "P", "B": "Q", "C": "R"}, {"A": "R", "B": "P", "C": "Q"}
        (first,) = surface_cue_predictions([record(here, id=str(i))], ReasoningMode.NO_THINK)
        (second,) = surface_cue_predictions([record(there, id=str(i))], ReasoningMode.NO_THINK)
        assert here[str(first.parsed)] == there[str(second.parsed)]
