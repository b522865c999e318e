"""The measures of stored files, and those of two models on the same records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from medr1.errors import DataError
from medr1.evaluation.calibration import OptionProbabilities, write_option_probabilities
from medr1.evaluation.circular import rotate
from medr1.evaluation.measures import Measured, compare_measures, read_measured, summarise_measures
from medr1.evaluation.predictions import Prediction, prediction, write_predictions
from tests.unit.evaluation.test_circular import MODE, of_letters
from tests.unit.evaluation.test_metrics import line

RECORD = of_letters("ABCD", "B")


def sampled(answers: Mapping[str, str]) -> Measured:
    """A sample for each letter of a record's text; the correct answer is A."""
    groups = [
        [line(record, letter, image=record[0], condition=f"base.sample_{i}") for i, letter in enumerate(letters)]
        for record, letters in answers.items()
    ]
    return Measured(samples=groups)


def rotated(choices: Sequence[str], condition: str = "base") -> list[Prediction]:
    """The answers to the rotations of ``RECORD``; the first to the question itself."""
    names = [condition, *(f"{condition}.rotation_{i}" for i in range(1, 4))]
    texts = [f"<answer>{letter}</answer>" for letter in choices]
    return [
        prediction(rotate(RECORD, places), name, MODE, text, 3, False)
        for places, (name, text) in enumerate(zip(names, texts, strict=True))
    ]


def test_what_a_run_has_stored_is_summarised(tmp_path: Path) -> None:
    def file(name: str) -> Path:
        return tmp_path / f"{name}.jsonl"

    assert summarise_measures(read_measured(file, "base")) is None
    itself, *others = rotated("BADC")  # correct in all rotations
    write_predictions(file("base"), [itself])
    write_predictions(file("base.rotations"), others)
    write_predictions(file("base.samples"), sampled({"1": "AB", "2": "BB"}).samples[0])
    write_option_probabilities(file("base.option_probabilities"), [OptionProbabilities("r", "i", "A", None)])
    found = summarise_measures(read_measured(file, "base"))
    assert found is not None and found.samples is not None and found.circular is not None
    assert found.circular.circular_accuracy.value == 1 and found.samples.pass_at_k[2].value == 1
    assert found.calibration is None
    assert found.to_dict()["samples"]["pass_at_k"]["2"]["value"] == 1
    write_predictions(file("base"), [line("other", "A")])
    with pytest.raises(DataError, match=r"base\.rotations\.jsonl .*different records"):
        read_measured(file, "base")


def test_two_models_are_compared_record_by_record() -> None:
    a, b = sampled({"x1": "AB", "x2": "BB", "y1": "AA"}), sampled({"y1": "AB", "x1": "AA", "x2": "BA"})
    found = compare_measures(a, b)
    assert found.keys() == {"pass@1", "pass@2", "maj@1", "maj@2"}
    assert found["pass@1"].value == pytest.approx((0.5 + 0.5 - 0.5) / 3)
    assert found["pass@2"].value == pytest.approx((0 + 1 + 0) / 3)
    # Image x gains 0.5 twice, image y loses 0.5: the ends are those of only one of the images.
    assert (found["pass@1"].low, found["pass@1"].high) == (-0.5, 0.5)
    assert compare_measures(a, a)["maj@2"].value == 0
    circular = compare_measures(Measured(rotations=[rotated("BADC")]), Measured(rotations=[rotated("BADD")]))
    assert {name: estimate.value for name, estimate in circular.items()} == {
        "circular_accuracy": -1,
        "mean_accuracy": -0.25,
        "consistency": -1,
    }


def test_only_the_same_records_are_compared() -> None:
    a = sampled({"x1": "AB", "x2": "BB"})
    assert compare_measures(a, Measured()) == {}
    with pytest.raises(DataError, match="different records"):
        compare_measures(a, sampled({"x1": "AB", "x3": "BB"}))
