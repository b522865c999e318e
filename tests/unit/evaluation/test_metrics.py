"""From prediction lines to cells, contrasts and metric names, on a handful of lines that can be counted by eye."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from mlflow.utils.validation import _validate_metric_name

from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import UNSPECIFIED, Modality, QuestionType
from medr1.errors import DataError
from medr1.evaluation.metrics import compare, metric_items, summarise
from medr1.evaluation.predictions import Prediction
from medr1.evaluation.statistics import wilson


def line(
    record: str,
    parsed: str | None,
    *,
    modality: str = Modality.CT,
    question_type: str = QuestionType.DISEASE,
    condition: str = "base",
    image: str = "",
    lenient: str | None = None,
    options: int = 4,
    length: int = 10,
    format: bool = True,
    truncated: bool = False,
) -> Prediction:
    """A prediction whose correct answer is A."""
    return Prediction(
        record=record,
        image=image or record,
        modality=modality,
        question_type=question_type,
        condition=condition,
        reasoning=ReasoningMode.NO_THINK,
        text="",
        answer="A",
        parsed=parsed,
        lenient=lenient or parsed,
        correct=parsed == "A",
        format=format,
        length=length,
        truncated=truncated,
        options=options,
    )


LINES = [
    line("1", "A", image="x", length=4),
    line("2", "B", image="x", options=2, length=6),
    line("3", None, lenient="A", format=False, truncated=True, length=50),
    line("4", "A", modality=Modality.OCT, question_type=QuestionType.LESION, format=False, length=20),
    line("5", "A", modality=Modality.OCT, question_type=QuestionType.LESION),
]


def test_the_overall_cell_by_counting() -> None:
    cell = summarise(LINES).overall
    assert (cell.n, cell.images) == (5, 4)
    assert cell.accuracy.value == 3 / 5
    assert cell.accuracy == wilson(3 / 5, 5)
    assert cell.chance == pytest.approx((4 * 0.25 + 0.5) / 5)
    assert (cell.format_rate, cell.unparsed_rate, cell.clipped_ratio) == (3 / 5, 1 / 5, 1 / 5)
    assert cell.lenient_accuracy == 4 / 5
    assert cell.mean_length == (4 + 6 + 50 + 20 + 10) / 5


def test_only_what_occurs_has_a_cell() -> None:
    summary = summarise(LINES)
    assert {m: (c.n, c.accuracy.value) for m, c in summary.by_modality.items()} == {
        Modality.CT: (3, 1 / 3),
        Modality.OCT: (2, 1.0),
    }
    assert {t: c.n for t, c in summary.by_question_type.items()} == {QuestionType.DISEASE: 3, QuestionType.LESION: 2}
    # Equal weight for each modality: (1/3 + 1) / 2, where the overall accuracy is 3/5.
    assert summary.modality_mean == pytest.approx(2 / 3)


def test_records_of_one_group_are_one_cluster() -> None:
    """Forty images of four patients, all of a patient right or wrong: there are four answers, and not forty."""
    alone = [line(str(i), "A" if i // 10 % 2 else "B") for i in range(40)]
    grouped = [replace(p, group=f"patient {i // 10}") for i, p in enumerate(alone)]
    apart, together = summarise(alone).overall, summarise(grouped).overall
    assert apart.accuracy == wilson(0.5, 40) and together.images == 40
    of_three = wilson(0.5, 3)  # (K - 1) / K of the four clusters
    assert (together.accuracy.low, together.accuracy.high) == pytest.approx((of_three.low, of_three.high))
    after = [replace(p, condition="trained", parsed="A", correct=True) for p in grouped]
    differences = {}
    ungrouped = [replace(p, group="") for p in after]
    for base, later in ((alone, ungrouped), (grouped, after), (alone, after)):  # the last base is older than groups
        found = compare(base, later)
        differences[found.cluster_unit] = found.overall.difference
    assert differences["images"].low > 0.3  # about 0.5 - 1.96 * sqrt(0.25 / 40)
    assert differences["groups"].low == 0.0  # one of 2^4 resamples has no other patient than those that were right


def test_a_summary_is_plain_json() -> None:
    plain = summarise(LINES).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["by_modality"]["oct"]["accuracy"]["value"] == 1.0
    assert {type(key) for key in (*plain["by_modality"], *plain["by_question_type"])} == {str}
    assert (plain["condition"], plain["overall"]["n"]) == ("base", 5)


def test_a_summary_is_of_one_condition_and_of_records_that_occur_once() -> None:
    with pytest.raises(DataError, match="found: base, trained"):
        summarise([LINES[0], replace(LINES[1], condition="trained")])
    with pytest.raises(DataError, match="no predictions"):
        summarise([])
    with pytest.raises(DataError, match="record 1 occurs twice in condition base"):
        summarise([LINES[0], LINES[0]])


def test_metric_names_and_values() -> None:
    of_base = {
        "test_accuracy": 0.6,
        "test_chance": pytest.approx(0.3),
        "test_completion_length": 18.0,
        "test_format_rate": 0.6,
        "test_lenient_accuracy": 0.8,
        "test_unparsed_rate": 0.2,
        "test_modality_mean": pytest.approx((1 / 3 + 1) / 2),
    }
    base = summarise(LINES)
    assert dict(metric_items({"base": base}, None)) == of_base
    after = trained("AAABA")
    blank = summarise([replace(p, condition="blank_image") for p in trained("BBBBA")])
    found = dict(metric_items({"base": base, "trained": summarise(after), "blank_image": blank}, compare(LINES, after)))
    assert found.keys() == {*of_base, "test_base_accuracy", "test_blank_image_accuracy", "test_difference"}
    assert (found["test_accuracy"], found["test_base_accuracy"]) == (0.8, 0.6)
    assert (found["test_blank_image_accuracy"], found["test_difference"]) == (0.2, pytest.approx(0.2))
    for name in found:
        _validate_metric_name(name)


def trained(answers: str) -> list[Prediction]:
    return [
        replace(p, condition="trained", parsed=letter, lenient=letter, correct=letter == "A")
        for p, letter in zip(LINES, answers, strict=True)
    ]


def test_a_comparison_by_counting() -> None:
    # base: correct, wrong, wrong, correct, correct; trained: correct, correct, correct, wrong, correct.
    result = compare(LINES, trained("AAABA"))
    assert (result.a, result.b) == ("base", "trained")
    assert (result.overall.n, result.overall.images) == (5, 4)
    assert (result.overall.only_a, result.overall.only_b) == (1, 2)
    assert result.overall.difference.value == pytest.approx(1 / 5)
    assert result.overall.difference.low < 0.2 < result.overall.difference.high
    # 1 and 2: 2 * P(X <= 1 of 3) = 2 * 4/8 = 1
    assert result.overall.p == 1.0
    ct = result.by_modality[Modality.CT]
    assert (ct.only_a, ct.only_b) == (0, 2)
    assert ct.difference.value == pytest.approx(2 / 3)
    assert ct.p == pytest.approx(0.5)  # 2 * (1/2)^2
    assert result.by_question_type[QuestionType.LESION].difference.value == -0.5
    plain = result.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["by_modality"]["ct"]["only_b"] == 2


def test_the_order_of_the_lines_does_not_matter() -> None:
    other = trained("AAABA")
    assert compare(LINES, other[::-1]) == compare(LINES, other)


def test_holm_covers_the_cells_of_a_family() -> None:
    # CT: 8 records correct only in b, p = 2/2^8 = 1/128; OCT: 6, p = 2/2^6 = 1/32. Holm: 1/128 * 2 and 1/32 * 1.
    modalities = [Modality.CT] * 8 + [Modality.OCT] * 6
    a = [line(str(i), "B", modality=m) for i, m in enumerate(modalities)]
    b = [line(str(i), "A", modality=m, condition="trained") for i, m in enumerate(modalities)]
    result = compare(a, b)
    assert result.by_modality[Modality.CT].p == pytest.approx(1 / 128)
    assert result.by_modality[Modality.CT].p_holm == pytest.approx(1 / 64)
    assert result.by_modality[Modality.OCT].p_holm == pytest.approx(1 / 32)
    # The one cell of a family, and the overall cell, have nothing to be adjusted for.
    assert result.by_question_type[QuestionType.DISEASE].p_holm == pytest.approx(2 / 2**14)
    assert result.overall.p_holm == result.overall.p


def test_a_record_that_is_missing_on_either_side_is_named() -> None:
    other = trained("AAABA")
    with pytest.raises(DataError, match=r"condition trained lacks 2, such as 1;"):
        compare(LINES, other[2:])
    with pytest.raises(DataError, match=r"condition base lacks 1, such as 5;"):
        compare(LINES[:-1], other)


def test_a_record_must_be_the_same_question_on_both_sides() -> None:
    other = trained("AAABA")
    other[0] = replace(other[0], options=3)
    with pytest.raises(DataError, match=r"record 1 .* condition base .*4\).* condition trained .*3\)"):
        compare(LINES, other)
    # The name of an image is that of the first file with its content, which depends on the training records.
    renamed = [replace(line, image=f"other/{line.image}") for line in trained("AAABA")]
    assert compare(LINES, renamed) == compare(LINES, trained("AAABA"))


def test_values_of_the_data_come_after_the_known_ones_in_alphabetical_order() -> None:
    values = ["PET", "Chest X-ray", "mri", "ecg", "ct", "CT"]
    found = summarise([line(str(i), "A", modality=value) for i, value in enumerate(values)])
    assert list(found.by_modality) == ["ct", "mri", "Chest X-ray", "CT", "ecg", "PET"]
    assert json.loads(json.dumps(found.to_dict()))["by_modality"].keys() == set(values)


def test_an_axis_that_the_data_lacks_has_no_cells() -> None:
    lines = [line(str(i), "AB"[i % 2], modality=UNSPECIFIED, question_type=UNSPECIFIED) for i in range(4)]
    found = summarise(lines)
    assert (found.by_modality, found.by_question_type, found.modality_mean) == ({}, {}, None)
    assert found.to_dict()["modality_mean"] is None
    assert "test_modality_mean" not in dict(metric_items({"base": found}, None))
    difference = compare(lines, [replace(p, condition="trained") for p in lines])
    assert (difference.by_modality, difference.by_question_type, difference.overall.n) == ({}, {}, 4)


def test_records_without_a_value_among_others_are_a_cell() -> None:
    found = summarise([line("1", "A", modality="PET"), line("2", "B", modality=UNSPECIFIED)])
    assert {value: cell.n for value, cell in found.by_modality.items()} == {"PET": 1, UNSPECIFIED: 1}
