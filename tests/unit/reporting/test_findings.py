"""The sentences on made-up tables: what their intervals support and what not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from medr1.domain.reasoning import ReasoningMode
from medr1.evaluation.metrics import compare, summarise
from medr1.evaluation.predictions import Condition, Prediction
from medr1.evaluation.statistics import Estimate, PairedDifference
from medr1.evaluation.sweep_tables import ALL, ContrastMatrix, Generalization, Matrix, SweepTables, TableCell
from medr1.reporting.findings import findings, run_verdict

ROWS = ("ct", "mri")
REMAINS = "the accuracy that remains above chance does not come from the image"


def near(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value, round(value - half, 6), round(value + half, 6))


def paired(difference: float, p_holm: float = 0.001, half: float = 0.01) -> PairedDifference:
    return PairedDifference(near(difference, half), p_holm / 4, p_holm)


def cell(accuracy: float, base: float | None = None, n: int = 1000, runs: int = 2, **controls: float) -> TableCell:
    gain = None if base is None else paired(accuracy - base)
    margins = {name: near(accuracy - value) for name, value in controls.items()}
    return TableCell(
        n,
        n // 5,
        tuple(map(str, range(runs))),
        near(accuracy),
        0.25,
        base,
        gain,
        controls,
        margins,
        dict.fromkeys(["base", *controls], n),
    )


def square(method: str, own: float, rest: float, base: float | None = None, **controls: float) -> Matrix:
    inner = {r: {c: cell(own if r == c else rest, base, **(controls if r == c else {})) for c in ROWS} for r in ROWS}
    cells = {r: {**line, ALL: cell((own + rest) / 2, base)} for r, line in inner.items()}
    means = {r: near((own + rest) / 2) for r in ROWS}
    margins = {name: near(own - value) for name, value in controls.items()}
    return Matrix(method, ROWS, ROWS, cells, means, Generalization(near(own), near(rest), near(own - rest), margins))


def flat(method: str, *rows: str, columns: Sequence[str] = ("x",), accuracy: float = 0.6, **more: float) -> Matrix:
    cells = {row: {column: cell(accuracy, **more) for column in (*columns, ALL)} for row in rows}
    return Matrix(method, rows, tuple(columns), cells, {row: near(accuracy) for row in rows}, None)


def contrast(a: str, b: str, own: float, rest: float, *, half: float = 0.01, p_holm: float = 0.001) -> ContrastMatrix:
    cells = {r: {c: paired(own if r == c else rest, p_holm, half) for c in (*ROWS, ALL)} for r in ROWS}
    generalization = Generalization(near(own, half), near(rest, half), near(own - rest, half))
    return ContrastMatrix(a, b, ROWS, ROWS, cells, near((own + rest) / 2, half), generalization)


def said(
    *matrices: Matrix, contrasts: Sequence[ContrastMatrix] = (), rows: str = "modality", columns: str = "modality"
) -> list[str]:
    """The sentences, with ASCII minus signs."""
    tables = SweepTables(rows, columns, ("0", "1"), matrices, tuple(contrasts))
    return [sentence.replace("\N{MINUS SIGN}", "-") for sentence in findings(tables)]


def one(sentences: list[str], part: str) -> str:
    (found,) = [sentence for sentence in sentences if part in sentence]
    return found


@pytest.mark.parametrize(("prior", "reached"), [(0.96, True), (0.941, True), (0.939, False), (0.3, False)])
def test_the_option_prior_explains_an_accuracy_from_its_interval_upwards(prior: float, reached: bool) -> None:
    sentences = said(square("GRPO", 0.95, 0.5, option_prior=prior))
    found = one(sentences, "option prior")
    numbers = f"the diagonal of GRPO (95.0 % [94.0, 96.0], option prior {100 * prior:.1f} %)"
    if reached:
        assert found == (
            f"The option prior, which sees no image, does not score significantly below {numbers}: this accuracy does "
            "not show that the model uses the image."
        )
    else:
        assert found == f"The option prior, which sees no image, scores below {numbers}."


def test_several_methods_share_a_sentence() -> None:
    matrices = [square(m, 0.95, 0.5, surface_cues=0.97) for m in ("SFT", "GRPO")]
    assert "the diagonal of SFT (95.0 % [94.0, 96.0], surface cues 97.0 %); the diagonal of GRPO (" in one(
        said(*matrices), "A rule on surface cues"
    )


@pytest.mark.parametrize(
    ("blank", "expected"),
    [
        (
            0.94,
            "scores 94.0 %, with its own image 95.0 % [94.0, 96.0] (+1.0 [+0.0, +2.0] points): no evidence that "
            "the model uses the image.",
        ),
        (0.41, f"drops from 95.0 % to 41.0 % (chance 25.0 %): {REMAINS}."),
        # Wilson of 540 in 2,000 records begins at 25.1 %, of 530 at 24.6 %.
        (0.27, f"drops from 95.0 % to 27.0 % (chance 25.0 %): {REMAINS}."),
        (0.265, "drops from 95.0 % to 26.5 % (chance 25.0 %): not significantly above chance."),
        (0.1, "drops from 95.0 % to 10.0 % (chance 25.0 %): not significantly above chance."),
    ],
)
def test_a_blank_image(blank: float, expected: str) -> None:
    sentences = said(square("GRPO", 0.95, 0.5, blank_image=blank))
    assert one(sentences, "blank image") == f"With a blank image, the diagonal of GRPO {expected}"


def test_a_margin_without_an_interval_shows_nothing() -> None:
    """A bootstrap over few images that all have the same difference gives a point."""
    matrix = square("GRPO", 0.95, 0.5, blank_image=0.1, option_prior=0.1)
    assert matrix.generalization is not None
    margins = {name: Estimate(0.85, 0.85, 0.85) for name in matrix.generalization.margins}
    found = said(replace(matrix, generalization=replace(matrix.generalization, margins=margins)))
    assert "no evidence that the model uses the image" in one(found, "blank image")
    assert "does not score significantly below" in one(found, "option prior")


def test_a_shuffled_image_at_chance() -> None:
    found = one(said(square("SFT", 0.521, 0.4, shuffled_image=0.26)), "image of another record")
    assert found == (
        "With the image of another record (of the same modality if possible), the diagonal of SFT drops from 52.1 % "
        "to 26.0 % (chance 25.0 %): not significantly above chance."
    )


def test_cells_of_unequal_size_are_as_uncertain_as_the_smaller_one_makes_them() -> None:
    # 27 % of 2,000 records is more than a guess. The mean of 10 and 1,990 is as good as 4 / (1/10 + 1/1990) = 40.
    matrix = square("GRPO", 0.95, 0.5, blank_image=0.27)
    sizes = {"ct": 10, "mri": 1990}
    cells = {
        r: {c: replace(x, effective_n=dict.fromkeys(x.effective_n, sizes.get(c, 2000))) for c, x in line.items()}
        for r, line in matrix.cells.items()
    }
    assert "not significantly above chance" in one(said(replace(matrix, cells=cells)), "blank image")


def test_image_ablations_are_not_read_for_an_accuracy_at_chance() -> None:
    sentences = said(square("GRPO", 0.255, 0.25, blank_image=0.25))
    assert sentences[0] == "Not significantly above chance: the diagonal of GRPO (25.5 % [24.5, 26.5], chance 25.0 %)."
    assert not [s for s in sentences if "image" in s]


def test_a_control_above_chance_is_reported_beside_an_accuracy_at_chance() -> None:
    sentences = said(square("GRPO", 0.255, 0.25, option_prior=0.9, surface_cues=0.26))
    assert one(sentences, "option prior") == (
        "The option prior, which sees no image, scores above the diagonal of GRPO (25.5 % [24.5, 26.5], option prior "
        "90.0 %): a high accuracy there would not show that the model uses the image."
    )
    assert not [s for s in sentences if "surface cues" in s]


def test_a_single_row_is_judged_by_its_own_column() -> None:
    cells = {"ct": {"ct": cell(0.9, option_prior=0.95), "mri": cell(0.4, option_prior=0.2), ALL: cell(0.65)}}
    alone = Matrix("GRPO", ("ct",), ROWS, cells, {"ct": near(0.65)}, None)
    assert "does not score significantly below GRPO on CT (90.0 % [89.0, 91.0], option prior 95.0 %)" in one(
        said(alone), "option prior"
    )


def test_rows_that_are_ways_of_training_are_named() -> None:
    assert "does not score significantly below GRPO (reasoning No-Think) (60.0 %" in one(
        said(flat("GRPO", "no_think", option_prior=0.7), rows="reasoning"), "option prior"
    )
    assert "does not score significantly below shortcut 0.9 (60.0 %" in one(
        said(flat("trained", "0.9", option_prior=0.7), rows="data.shortcut"), "option prior"
    )


def test_long_lists_are_cut() -> None:
    found = one(said(flat("GRPO", *"abcdefgh", option_prior=0.7)), "option prior")
    assert "GRPO (modality f) (60.0 % [59.0, 61.0], option prior 70.0 %); and 2 more: this accuracy" in found


def test_gains_on_and_off_the_diagonal() -> None:
    sentences = said(square("GRPO", 0.95, 0.5, base=0.52))
    assert sentences[:2] == [
        "On the diagonal GRPO scores 95.0 % [94.0, 96.0], the base model 52.0 %; off the diagonal 50.0 % [49.0, 51.0], "
        "the base model 52.0 %.",
        "GRPO is significantly above the base model in 2 of 4 cells and below it in 2 (5 % level after Holm's "
        "correction); the other cells are inconclusive.",
    ]


def test_a_gain_counts_only_if_test_and_interval_agree() -> None:
    matrix = square("GRPO", 0.95, 0.5, base=0.4)
    line = dict(matrix.cells["ct"])
    line["ct"] = replace(line["ct"], gain_over_base=paired(0.55, half=0.6))  # the interval contains zero
    line["mri"] = replace(line["mri"], gain_over_base=paired(0.1, p_holm=0.06))
    found = one(said(replace(matrix, cells={**matrix.cells, "ct": line})), "above the base model")
    assert "in 2 of 4 cells and below it in 0" in found


def test_gains_of_rows_that_are_no_columns() -> None:
    sentences = said(flat("GRPO", "think", base=0.595), flat("SFT", "think", base=0.5), rows="reasoning")
    gains = [s for s in sentences if s.startswith("Gain over")]
    assert gains == [
        "Gain over the base model on all test records, in points: GRPO (reasoning think) +0.5 [-0.5, +1.5] "
        "(inconclusive).",
        "Gain over the base model on all test records, in points: SFT (reasoning think) +10.0 [+9.0, +11.0].",
    ]


def test_a_contrast_is_significant_or_inconclusive() -> None:
    sentences = said(contrasts=[contrast("SFT", "GRPO", -0.01, 0.07), contrast("a", "b", -0.05, -0.05)])
    assert one(sentences, "Over all cells GRPO") == (
        "Over all cells GRPO scores 3.0 points [2.0, 4.0] more than SFT; it is significantly above SFT in 2 of 4 cells "
        "and below it in 0 (5 % level after Holm's correction)."
    )
    assert (
        "Over all cells b scores 5.0 points [4.0, 6.0] less than a; it is significantly above a in 0 of 4 cells and "
        "below it in 4" in one(sentences, "Over all cells b")
    )
    unclear = said(contrasts=[contrast("trained: SFT", "trained: GRPO", 0.002, 0.006)])
    assert unclear[0] == "Inconclusive over all cells, in points: GRPO against SFT +0.4 [-0.6, +1.4]."


@pytest.mark.parametrize(
    ("own", "rest", "expected"),
    [
        (
            -0.01,
            0.06,
            "GRPO generalizes better than SFT: off the diagonal it scores 6.0 points [5.0, 7.0] more, and its gap "
            "between the diagonal and the other cells is 7.0 points [6.0, 8.0] smaller.",
        ),
        (
            -0.05,
            0.005,
            "The gap of GRPO between the diagonal and the other cells is 5.5 points [4.5, 6.5] smaller than that of "
            "SFT, but off the diagonal GRPO does not score significantly more (+0.5 [-0.5, +1.5] points): not "
            "shown to generalize better.",
        ),
        (
            -0.09,
            -0.05,
            "The gap of GRPO between the diagonal and the other cells is 4.0 points [3.0, 5.0] smaller than that of "
            "SFT, but off the diagonal GRPO does not score significantly more (-5.0 [-6.0, -4.0] points): not "
            "shown to generalize better.",
        ),
        (
            0.01,
            -0.06,
            "GRPO generalizes worse than SFT: off the diagonal it scores 6.0 points [5.0, 7.0] less, and its gap "
            "between the diagonal and the other cells is 7.0 points [6.0, 8.0] larger.",
        ),
        (
            0.05,
            0.02,
            "The gap of GRPO between the diagonal and the other cells is 3.0 points [2.0, 4.0] larger than that of "
            "SFT, but off the diagonal GRPO does not score significantly less (+2.0 [+1.0, +3.0] points): not "
            "shown to generalize worse.",
        ),
        (
            0.055,
            0.05,
            "Inconclusive which method has the smaller gap (differences in points): GRPO against SFT gap +0.5 [-0.5, "
            "+1.5], off the diagonal +5.0 [+4.0, +6.0].",
        ),
    ],
)
def test_generalization_is_claimed_only_with_its_intervals(own: float, rest: float, expected: str) -> None:
    assert said(contrasts=[contrast("SFT", "GRPO", own, rest)])[-1] == expected


def test_the_gap_of_a_method() -> None:
    sentences = said(square("GRPO", 0.95, 0.5), square("SFT", 0.5, 0.495))
    assert "Off the diagonal GRPO scores 45.0 points [44.0, 46.0] less than on it (50.0 % against 95.0 %)." in sentences
    assert one(sentences, "SFT has") == (
        "SFT has no significant gap between the diagonal (50.0 % [49.0, 51.0]) and the other cells (49.5 % [48.5, "
        "50.5]): +0.5 [-0.5, +1.5] points."
    )


def test_a_contrast_of_two_changes_is_not_read() -> None:
    both = contrast("SFT think", "GRPO no_think", -0.01, 0.07)
    assert said(contrasts=[replace(both, changed=2)]) == []
    assert said(contrasts=[contrast("SFT think", "GRPO think", -0.01, 0.07)]) != []


def test_the_held_out_scanner() -> None:
    columns = ("seen scanners", "held-out scanner")
    rows = {"0.0": (0.7, 0.69), "0.9": (0.8, 0.5), "0.5": (0.5, 0.6)}
    cells = {row: {columns[0]: cell(a), columns[1]: cell(b), ALL: cell(0.6)} for row, (a, b) in rows.items()}
    matrix = Matrix("SFT", tuple(rows), columns, cells, {row: near(0.6) for row in rows}, None)
    assert said(matrix, rows="data.shortcut", columns="scanner")[:3] == [
        "Lower on the held-out scanner against the seen scanners: SFT (shortcut 0.9) 50.0 % [49.0, 51.0] against 80.0 "
        "% [79.0, 81.0].",
        "Higher on the held-out scanner against the seen scanners: SFT (shortcut 0.5) 60.0 % [59.0, 61.0] against 50.0 "
        "% [49.0, 51.0].",
        "Inconclusive on the held-out scanner against the seen scanners: SFT (shortcut 0.0) 69.0 % [68.0, 70.0] "
        "against 70.0 % [69.0, 71.0].",
    ]


def test_controls_come_first_and_single_runs_last() -> None:
    matrix = square("GRPO", 0.95, 0.5, base=0.5, option_prior=0.96)
    cells = {row: {name: replace(x, runs=("only",)) for name, x in line.items()} for row, line in matrix.cells.items()}
    sentences = said(replace(matrix, cells=cells), contrasts=[contrast("SFT", "GRPO", -0.01, 0.06)])
    starts = (
        "The option prior",
        "On the diagonal",
        "GRPO is significantly above",
        "Over all cells",
        "Off the",
        "GRPO generalizes",
    )
    assert [
        s.startswith(start) for s, start in zip(sentences, (*starts, "2 of 2 rows have a single run"), strict=True)
    ] == [True] * 7


def lines(condition: str, correct: Sequence[bool], modality: Sequence[str]) -> list[Prediction]:
    """One question an image, in reversed order for the base."""
    found = [
        Prediction(
            *(f"r{i}", f"i{i}", modality[i % len(modality)], "disease", condition, ReasoningMode.NO_THINK, ""),
            *("A", "A" if is_correct else "B", "A" if is_correct else "B", is_correct, True, 4, False, 4),
        )
        for i, is_correct in enumerate(correct)
    ]
    return found[::-1] if condition == Condition.BASE else found


def verdict_of(conditions: Mapping[str, list[Prediction]], is_trained_on: Callable[[Prediction], bool]) -> list[str]:
    """The verdict, with ASCII minus signs."""
    comparison = compare(conditions["base"], conditions["trained"]) if "trained" in conditions else None
    summaries = {name: summarise(of) for name, of in conditions.items()}
    return in_ascii(run_verdict(summaries, comparison, conditions, is_trained_on))


def in_ascii(sentences: Sequence[str]) -> list[str]:
    return [sentence.replace("\N{MINUS SIGN}", "-") for sentence in sentences]


def test_the_verdict_on_a_run_separates_what_it_was_trained_on() -> None:
    """200 questions on MRI, of which it learns the second half, and 200 on CT, where nothing changes."""
    modality = ("mri", "ct")
    base = [i < 200 for i in range(400)]
    trained = [i < 200 or i % 2 == 0 for i in range(400)]
    blank = [False] * 400
    conditions = {
        name: lines(name, correct, modality)
        for name, correct in (("base", base), ("trained", trained), ("blank_image", blank))
    }
    first, second, third = verdict_of(conditions, lambda line: line.modality == "mri")
    assert first.startswith(
        "The trained model scores 75.0 % [70.5, 79.0] on 400 test questions, the base model 50.0 %: +25.0 ["
    )
    assert "was trained on: +50.0 [" in second and second.endswith("on the others: +0.0 points (inconclusive).")
    assert third.startswith("With a blank image it scores 0.0 %; the image adds +75.0 [")
    assert len(verdict_of(conditions, lambda line: True)) == 2, "all records are like those of training"


def test_the_verdict_without_training_names_chance() -> None:
    base = lines("base", [True, False] * 20, ("mri",))
    assert verdict_of({"base": base}, lambda line: False) == [
        "The base model scores 50.0 % [35.2, 64.8] on 40 test questions; chance is 25.0 %."
    ]
    assert verdict_of({}, lambda line: False) == []


def test_all_modalities_are_named_as_a_row() -> None:
    assert one(said(flat("grpo", ALL, base=0.5)), "Gain over").startswith(
        "Gain over the base model on all test records, in points: GRPO (all modalities) +10.0"
    )
