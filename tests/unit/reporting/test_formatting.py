"""Names and numbers as text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from medr1.evaluation.statistics import Estimate
from medr1.evaluation.sweep_tables import ContrastMatrix
from medr1.reporting.formatting import contrast_label, label, p_value, percent


def contrast(rows: Sequence[str], columns: Sequence[str], a: str = "sft", b: str = "grpo") -> ContrastMatrix:
    return ContrastMatrix(a, b, tuple(rows), tuple(columns), {}, Estimate(0.0, 0.0, 0.0), None)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("us", "Ultrasound"),
        ("grpo no_think", "GRPO No-Think"),
        ("sft_then_grpo seed", "SFT, then GRPO seed"),
        ("trained: sft", "Trained: SFT"),
        ("0.5", "0.5"),
        ("new", "new"),
    ],
)
def test_values_have_human_names(value: str, name: str) -> None:
    assert label(value) == name


def test_a_contrast_of_rows_names_the_rows_and_a_contrast_of_methods_the_methods() -> None:
    assert contrast_label(contrast(("ct",), ("ct",))) == "GRPO \N{MINUS SIGN} SFT"
    of_rows = contrast(("grpo",), ("ct",), "grpo: think_before", "grpo: no_think")
    assert contrast_label(of_rows) == "GRPO: No-Think \N{MINUS SIGN} Think-Before"


@pytest.mark.parametrize(
    ("fraction", "sign", "text"),
    [
        (0.70123, "", "70.1"),
        (-0.0004, "+", "+0.0"),
        (-0.1, "+", "\N{MINUS SIGN}10.0"),
        (1, "", "100.0"),
        (0.05, "+", "+5.0"),
    ],
)
def test_percent(fraction: float, sign: str, text: str) -> None:
    assert percent(fraction, sign) == text


@pytest.mark.parametrize(
    ("p", "text"), [(0.0009, "<.001"), (0.0421, ".042"), (0.9994, ".999"), (0.9996, "1.00"), (1.0, "1.00")]
)
def test_p_values_have_three_decimals(p: float, text: str) -> None:
    assert p_value(p) == text
