"""The tables of the further measures: their numbers are those of the summaries, and they fit in 100 columns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medr1.evaluation.calibration import Calibration
from medr1.evaluation.circular import CircularSummary
from medr1.evaluation.measures import Measures, measure_items
from medr1.evaluation.pass_at_k import SampleSummary
from medr1.evaluation.statistics import Estimate
from medr1.reporting.measure_table import measure_rows, render_measures
from medr1.reporting.result_table import ABSENT
from tests.unit.reporting.test_result_table import printed, row


def at(value: float) -> Estimate:
    return Estimate(value, value - 0.1, value + 0.1)


SAMPLES = SampleSummary(80, 40, 4, {1: at(0.25), 4: at(0.6)}, {1: at(0.25), 4: at(0.4)}, {1: 0.3, 4: 0.7})
CIRCULAR = CircularSummary(80, 40, at(0.15), at(0.42), at(0.31), at(0.22), {"A": 0.4, "B": 0.6, "C": 0.0})
CALIBRATION = Calibration(70, 10, 40, at(0.45), 0.62, at(0.17), at(0.9), ())
ALL = Measures(SAMPLES, CIRCULAR, CALIBRATION)


def test_each_measure_has_a_section_and_each_model_a_column() -> None:
    better = replace(ALL, samples=replace(SAMPLES, pass_at_k={1: at(0.5), 4: at(0.8)}))
    table = render_measures({"base": ALL, "trained": better})
    assert row(table, "pass@4") == {
        "": "pass@4",
        "Base\n[95 %]": "60.0 [50.0, 70.0]",
        "Trained\n[95 %]": "80.0 [70.0, 90.0]",
    }
    expected = {
        "pass@4 of guesses": "70.0",
        "maj@4": "40.0 [30.0, 50.0]",
        "correct in all rotations": "15.0 [5.0, 25.0]",
        "mean accuracy": "42.0 [32.0, 52.0]",
        "consistency": "31.0 [21.0, 41.0]",
        "letter bias": "22.0 [12.0, 32.0]",
        "answers B": "60.0",
        "answers C": "0.0",
        "calibration error": "17.0 [7.0, 27.0]",
        "Brier score": "90.0 [80.0, 100.0]",
        "records with probabilities": "70 of 80",
    }
    assert {name: row(table, name)["Base\n[95 %]"] for name in expected} == expected
    assert [r[0] for r in table.rows if len(r) == 1] == ["4 samples", "Rotated options", "Probabilities of the options"]
    assert max(map(len, printed(table).splitlines())) <= 100
    assert "| **4 samples** |" in table.to_markdown()


def test_trained_minus_base_is_a_column_where_it_can_be_paired() -> None:
    differences = {"pass@1": at(0.05), "circular_accuracy": Estimate(-0.2, -0.3, -0.1), "consistency": at(0)}
    table = render_measures({"base": ALL, "trained": ALL}, differences)
    shown = {name: row(table, name)["difference\n[95 %]"] for name in ("pass@1", "correct in all rotations", "maj@4")}
    minus = "\N{MINUS SIGN}"
    assert shown == {
        "pass@1": f"+5.0 [{minus}5.0, +15.0]",
        "correct in all rotations": f"{minus}20.0 [{minus}30.0, {minus}10.0]",
        "maj@4": ABSENT,
    }
    assert max(map(len, printed(table).splitlines())) <= 100


@pytest.mark.parametrize(
    ("measures", "title", "note"),
    [
        (Measures(SAMPLES, None, None), "4 samples", "pass@k"),
        (Measures(None, CIRCULAR, None), "Rotated options", "Letter bias"),
        (Measures(None, None, CALIBRATION), "Probabilities of the options", "ECE"),
    ],
)
def test_what_was_not_measured_is_not_shown(measures: Measures, title: str, note: str) -> None:
    table = render_measures({"base": measures})
    assert [r[0] for r in table.rows if len(r) == 1] == [title]
    assert len(table.notes) == 2 and note in table.notes[1]
    many = measure_rows({("CT", "base"): measures, ("CT", "sft"): ALL})
    assert len(many.notes) == 4 and many.rows[0].count(ABSENT) == len(many.titles) - 2 - sum(
        len(titles)
        for titles, part in (
            (("pass@4", "maj@4"), measures.samples),
            (("correct in all rotations", "consistency", "letter bias"), measures.circular),
            (("accuracy of the most probable", "calibration error", "Brier score"), measures.calibration),
        )
        if part
    )


def test_a_tracker_gets_a_few_numbers_of_the_evaluated_model() -> None:
    other = Measures(None, replace(CIRCULAR, letter_bias=None, circular_accuracy=at(0.3)), None)
    assert dict(measure_items({"base": other, "trained": ALL})) == {
        "test_pass_at_k": 0.6,
        "test_maj_at_k": 0.4,
        "test_circular_accuracy": 0.15,
        "test_letter_bias": 0.22,
        "test_calibration_error": 0.17,
    }
    assert list(measure_items({"base": other})) == [("test_circular_accuracy", 0.3)]
