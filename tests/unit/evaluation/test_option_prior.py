"""The option prior: its definition on toy records, chance on unknown options, and its accuracy on real splits."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Modality, QuestionType, Record
from medr1.errors import DataError
from medr1.evaluation.option_prior import OptionPrior, option_prior_predictions

SPLITS = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "medr1-splits"


@dataclass(frozen=True)
class Unseen:
    """An image that must not be loaded."""

    key: str = "image"

    def load(self, side: int) -> Image.Image:
        raise AssertionError("the option prior must not load the image")


def record(options: dict[str, str], answer: str, id: str = "1") -> Record:
    return Record(id, (Unseen(),), Modality.CT, QuestionType.DISEASE, "What is it?", options, answer)


def test_the_rate_decides_not_the_count() -> None:
    often = [record({"A": "benign", "B": "cyst"}, "A", str(i)) for i in range(3)]
    # benign: correct in 3 of 6 questions that offer it; rare: in 1 of 1; each denominator plus one.
    wrong = [record({"A": "benign", "B": "nevus"}, "B", f"w{i}") for i in range(3)]
    prior = OptionPrior.fit([*often, *wrong, record({"A": "rare", "B": "cyst"}, "A")])
    assert prior.score("benign") == 3 / 7
    assert prior.score("rare") == 1 / 2
    assert prior.score("cyst") == 0.0
    assert prior.score("never offered") == 0.0
    assert prior.predict(record({"A": "cyst", "B": "benign", "C": "rare"}, "A")) == "C"


def test_case_and_closing_stop_do_not_count() -> None:
    prior = OptionPrior.fit([record({"A": "Yes.", "B": "no"}, "A"), record({"A": "yes", "B": "No."}, "B")])
    assert prior.score(" YES. ") == 1 / 3


def test_fitting_takes_at_least_one_record() -> None:
    with pytest.raises(DataError, match="at least one training record"):
        OptionPrior.fit([])


def test_unknown_options_are_at_chance_without_a_preferred_position() -> None:
    prior = OptionPrior.fit([record({"A": "x", "B": "y"}, "A")])
    # Only the correct option's position is skewed: always D. Choosing the first would score 0, the last 1.
    unknown = [record({"A": "p", "B": "q", "C": "r", "D": "s"}, "D", id=str(i)) for i in range(4000)]
    chosen = [prior.predict(r) for r in unknown]
    # Each letter is binomial(4000, 1/4): mean 1000, standard deviation 27; four of those either way.
    assert all(abs(chosen.count(letter) - 1000) < 110 for letter in "ABCD")
    assert chosen == [prior.predict(r) for r in unknown]


def test_a_tie_goes_to_the_same_text_wherever_it_stands() -> None:
    prior = OptionPrior.fit([record({"A": "x", "B": "y"}, "A")])
    for i in range(20):
        here = record({"A": "p", "B": "q", "C": "r"}, "A", id=str(i))
        there = record({"A": "r", "B": "p", "C": "q"}, "A", id=str(i))
        assert here.options[prior.predict(here)] == there.options[prior.predict(there)]


@pytest.mark.parametrize("mode", list(ReasoningMode))
def test_predictions_are_well_formed(mode: ReasoningMode) -> None:
    known = record({"A": "cyst", "E": "tumour"}, "E", id="known")
    lines = option_prior_predictions(
        OptionPrior.fit([known]), [known, record({"A": "tumour", "B": "cyst"}, "B", "2")], mode
    )
    assert [(p.record, p.parsed, p.correct) for p in lines] == [("known", "E", True), ("2", "A", False)]
    assert {(p.condition, p.format, p.length, p.truncated, p.reasoning) for p in lines} == {
        ("option_prior", True, 0, False, mode)
    }


def read_split(family: str, part: str, name: str) -> list[Record]:
    """The fewest lines that read a split file of Med-R1; the real reader with its checks is tested elsewhere."""
    rows = json.loads((SPLITS / family / part / f"{name}_{part}.json").read_text(encoding="utf-8"))
    records = []
    for number, row in enumerate(rows):
        pieces = re.split(r"(?:^|\s)([A-J])\)", row["problem"])[1:]
        options = {a: text.strip().removesuffix(",") for a, text in zip(pieces[::2], pieces[1::2], strict=True)}
        answer = re.search(r"<answer>\s*([A-J])\s*</answer>", row["solution"])
        assert answer is not None
        records.append(record(options, answer[1], id=f"{name}_{part}.json#{number}"))
    return records


# Accuracies of the option prior within a modality or a question type, measured on the Med-R1 splits.
REAL = {
    ("modality", "CT(Computed Tomography)"): 0.990,
    ("modality", "Dermoscopy"): 0.953,
    ("modality", "Fundus Photography"): 0.949,
    ("modality", "Microscopy Images"): 0.986,
    ("modality", "OCT (Optical Coherence Tomography"): 1.000,
    ("modality", "X-Ray"): 0.946,
    ("modality", "ultrasound"): 0.834,
    ("question_type", "Anatomy Identification"): 0.811,
    ("question_type", "Lesion Grading"): 0.961,
    ("question_type", "Modality Recognition"): 0.947,
    ("question_type", "Other Biological Attributes"): 1.000,
}


@pytest.mark.skipif(not SPLITS.is_dir(), reason="the Med-R1 splits are not part of the project (research use only)")
@pytest.mark.parametrize(("family", "name"), REAL)
def test_the_figures_on_the_real_splits(family: str, name: str) -> None:
    prior = OptionPrior.fit(read_split(family, "train", name))
    lines = option_prior_predictions(prior, read_split(family, "test", name), ReasoningMode.NO_THINK)
    accuracy = sum(p.correct for p in lines) / len(lines)
    # Tolerance for rounding and a few ties.
    assert accuracy == pytest.approx(REAL[family, name], abs=0.001)


@pytest.mark.skipif(not SPLITS.is_dir(), reason="the Med-R1 splits are not part of the project (research use only)")
def test_across_real_modalities_it_is_near_chance() -> None:
    prior = OptionPrior.fit(read_split("modality", "train", "Dermoscopy"))
    test = read_split("modality", "test", "OCT (Optical Coherence Tomography")
    lines = option_prior_predictions(prior, test, ReasoningMode.NO_THINK)
    accuracy, chance = sum(p.correct for p in lines) / len(lines), sum(r.chance for r in test) / len(test)
    assert abs(accuracy - chance) < 0.1
