"""From runs to tables: numbers counted by hand on eight records, and a loop that draws images and seeds one by one."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import UNSPECIFIED, Modality, QuestionType
from medr1.errors import ConfigError, DataError
from medr1.evaluation.matrices import tabulate
from medr1.evaluation.metrics import compare
from medr1.evaluation.predictions import Prediction
from medr1.evaluation.statistics import Estimate, holm, wilson
from medr1.evaluation.sweep_tables import ALL, Matrix, SweepRun
from medr1.reporting.figures import accuracy_heatmap, contrast_heatmap, gain_heatmap
from medr1.reporting.findings import findings
from medr1.reporting.matrix_tables import render_matrices
from medr1.reporting.references import references

CT, MRI = Modality.CT, Modality.MRI


def predictions(pattern: str, condition: str = "trained") -> list[Prediction]:
    """One prediction for each 1 (correct) or 0 (wrong); the first half is CT, with two records per image.

    Every other image is from the held-out scanner; the first record has two options, the others four.
    """
    outcomes = pattern.replace(" ", "")
    return [
        Prediction(
            record=f"record {i}",
            image=f"{i // 2:03d}/scanner-{'AE'[i // 2 % 2]}",
            modality=CT if i < len(outcomes) / 2 else MRI,
            question_type=(QuestionType.DISEASE, QuestionType.LESION)[i % 2],
            condition=condition,
            reasoning=ReasoningMode.NO_THINK,
            text="",
            answer="A",
            parsed="A" if correct == "1" else "B",
            lenient=None,
            correct=correct == "1",
            format=True,
            length=4,
            truncated=False,
            options=4 if i else 2,
        )
        for i, correct in enumerate(outcomes)
    ]


def run(trained: str, *, base: str = "", seed: str | None = None, controls: dict[str, str] | None = None, **axes: str):
    conditions = {"trained": trained, **({"base": base} if base else {}), **(controls or {})}
    axes = {**axes, **({"seed": seed} if seed is not None else {})}
    name = "-".join(axes.values())
    return SweepRun(
        name, axes, {condition: predictions(pattern, condition) for condition, pattern in conditions.items()}
    )


BASE = "1000 0100"
SWEEP = [
    run("0110 1111", modality="mri", algorithm="sft", base=BASE, controls={"option_prior": "0000 1110"}),
    run("1111 0100", modality="ct", algorithm="sft", base=BASE, controls={"option_prior": "1111 1000"}),
    run("1110 0110", modality="ct", algorithm="grpo", base=BASE),
    run("0111 1111", modality="mri", algorithm="grpo", base=BASE, controls={"blank_image": "0000 0001"}),
]


def matrix(tables_of: list[SweepRun] = SWEEP, method: str = "sft", rows: str = "modality", columns: str = "modality"):
    tables = tabulate(tables_of, rows, columns, resamples=200)
    return next(m for m in tables.matrices if m.method == method)


def test_a_cell_by_hand() -> None:
    sft = matrix()
    cell = sft.cells["ct"]["ct"]
    assert (cell.n, cell.images, cell.runs) == (4, 2, ("ct-sft",))
    assert cell.accuracy == wilson(1, 2)  # as correct as each other: one trial for each image
    assert cell.chance == (1 / 2 + 3 / 4) / 4
    assert cell.base == 0.25
    assert cell.gain_over_base is not None
    assert cell.gain_over_base.difference.value == 0.75
    assert cell.gain_over_base.p == 2 / 8  # three records, all correct only in the trained model: 2 * (1/2)^3
    assert cell.controls == {"option_prior": 1.0}
    assert cell.margins == {"option_prior": Estimate(0, 0, 0)}
    other = sft.cells["ct"]["mri"]
    assert (other.accuracy.value, other.base, other.controls) == (0.25, 0.25, {"option_prior": 0.25})
    assert other.gain_over_base is not None
    # The same predictions as the base model.
    assert (other.gain_over_base.difference, other.gain_over_base.p) == (Estimate(0, 0, 0), 1.0)


def test_the_column_of_all_records() -> None:
    cell = matrix().cells["ct"][ALL]
    assert (cell.n, cell.images, cell.base) == (8, 4, 0.25)
    # Correct on the four images: 2, 2, 1 and 0 of 2. Their residuals from 5/4 have squares of the sum 11/4, so that the
    # variance of the share is 11/4 * 4/3 / 8^2; of independent records it is 15/64 / 8.
    effective = 8 * (15 / 64 / 8) / (11 / 3 / 64)
    found = wilson(5 / 8, effective)
    assert (cell.accuracy.low, cell.accuracy.high) == pytest.approx((found.low, found.high))
    # The base has one of two right on two images: residuals 1/2, -1/2, 1/2, -1/2, fewer than of independent records.
    assert cell.effective_n["base"] == 8
    assert cell.chance == (1 / 2 + 7 / 4) / 8
    assert cell.controls == {"option_prior": 5 / 8} and cell.margins["option_prior"].value == 0


def test_the_margin_over_a_control_is_paired_by_record_and_image() -> None:
    """On each image one of two records is right: with the own image the first, with the control the second."""
    runs = [run("1010 1010", modality=row, controls={"blank_image": "0101 0001"}) for row in ("ct", "mri")]
    found = matrix(runs, "trained")
    cell = found.cells["ct"][ALL]
    assert cell.margins["blank_image"].value == (4 - 3) / 8
    assert found.cells["ct"]["ct"].margins["blank_image"] == Estimate(0, 0, 0)  # on both images
    assert found.generalization is not None
    assert found.generalization.margins["blank_image"].value == (0 + 1 / 4) / 2


def test_rows_methods_and_columns_are_in_order() -> None:
    tables = tabulate(SWEEP, "modality", "question_type", resamples=10)
    assert [m.method for m in tables.matrices] == ["sft", "grpo"]
    assert tables.matrices[0].rows == ("ct", "mri")  # the order of the enum, not of the runs
    assert tables.matrices[0].columns == ("disease", "lesion")
    assert tables.seeds == ()
    assert tables.matrices[0].generalization is None  # rows that are no columns


def test_generalization_by_hand() -> None:
    # sft: ct 1, .25; mri .5, 1. grpo: ct .75, .5; mri .75, 1.
    sft, grpo = matrix().generalization, matrix(method="grpo").generalization
    assert sft is not None and grpo is not None
    assert (sft.diagonal.value, sft.off_diagonal.value, sft.gap.value) == (1.0, 0.375, 0.625)
    assert (grpo.diagonal.value, grpo.off_diagonal.value, grpo.gap.value) == (0.875, 0.625, 0.25)
    assert matrix().means["ct"].value == (1 + 0.25) / 2
    contrast = tabulate(SWEEP, "modality", "modality", resamples=200).contrasts[0]
    assert (contrast.a, contrast.b) == ("sft", "grpo")
    assert contrast.cells["ct"]["ct"].difference.value == -0.25
    assert contrast.overall.value == pytest.approx((0.75 + 0.5 + 0.75 + 1) / 4 - (1 + 0.25 + 0.5 + 1) / 4)
    assert contrast.generalization is not None
    assert contrast.generalization.diagonal.value == pytest.approx(0.875 - 1.0)
    assert contrast.generalization.off_diagonal.value == 0.25
    assert contrast.generalization.gap.value == pytest.approx(0.25 - 0.625)


def test_means_weigh_columns_equally() -> None:
    # Question types of unequal size: three of four lesion questions become disease questions.
    lines = predictions("1010 1011")
    changed = [replace(p, question_type=QuestionType.DISEASE) if i in (1, 3, 5) else p for i, p in enumerate(lines)]
    only = SweepRun("x", {"modality": "ct"}, {"trained": changed})
    means = tabulate([only], "modality", "question_type", resamples=10).matrices[0].means
    assert means["ct"].value == pytest.approx((4 / 7 + 1) / 2)


def test_every_resample_draws_the_same_images_for_all_rows() -> None:
    # Two rows with the same predictions: diagonal and rest hold the same cells, whatever images are drawn.
    same = [run("1001 1100 1110 0010", modality=m) for m in ("ct", "mri")]
    found = matrix(same, "trained").generalization
    assert found is not None
    assert found.gap == Estimate(0, 0, 0)
    assert found.diagonal.high - found.diagonal.low > 0.1


def test_intervals_equal_a_loop_over_images_and_seeds() -> None:
    rng = np.random.default_rng(4)
    images, records, resamples = 24, 48, 3000
    easy = np.repeat(rng.random(images), 2)  # so that the two records of an image are correlated

    def outcomes(gain: float) -> np.ndarray:
        return rng.random(records) < np.clip(easy + gain + rng.normal(0, 0.1), 0, 1)

    correct_by_run = {
        (method, row, seed): outcomes(0.2 * (method == "grpo"))
        for method in ("sft", "grpo")
        for row in ("ct", "mri")
        for seed in ("0", "1", "2")
    }
    runs = [
        run("".join("01"[int(correct)] for correct in found), modality=row, algorithm=method, seed=seed)
        for (method, row, seed), found in correct_by_run.items()
    ]
    tables = tabulate(runs, "modality", "modality", resamples=resamples)
    assert tables.seeds == ("0", "1", "2")
    looped: dict[str, list[float]] = {"cell": [], "gap": [], "contrast gap": [], "overall": []}
    half = images // 2
    for _ in range(resamples):
        drawn = [rng.integers(0, half, half), rng.integers(half, images, half)]
        column = [np.concatenate([2 * part, 2 * part + 1]) for part in drawn]

        def accuracy(method: str, row: str, seeds: np.ndarray) -> list[float]:
            return [np.mean([correct_by_run[method, row, str(s)][records].mean() for s in seeds]) for records in column]  # noqa: B023

        seeds = {row: rng.integers(3, size=2) for row in ("ct", "mri")}
        sft, grpo = (
            np.array([accuracy(method, row, seeds[row]) for row in ("ct", "mri")]) for method in ("sft", "grpo")
        )
        gaps = [np.trace(m) / 2 - (m.sum() - np.trace(m)) / 2 for m in (sft, grpo)]
        looped["cell"].append(sft[0, 1])
        looped["gap"].append(gaps[0])
        looped["contrast gap"].append(gaps[1] - gaps[0])
        looped["overall"].append((grpo - sft).mean())
    sft_matrix, contrast = tables.matrices[0], tables.contrasts[0]
    assert sft_matrix.generalization is not None and contrast.generalization is not None
    estimates = {
        "cell": sft_matrix.cells["ct"]["mri"].accuracy,
        "gap": sft_matrix.generalization.gap,
        "contrast gap": contrast.generalization.gap,
        "overall": contrast.overall,
    }
    for name, found in estimates.items():
        low, high = np.quantile(looped[name], [0.025, 0.975])
        assert found.low == pytest.approx(low, abs=0.03), name
        assert found.high == pytest.approx(high, abs=0.03), name
        assert found.low <= found.value <= found.high, name


def test_seeds_are_pooled_and_their_tests_as_well() -> None:
    runs = [
        run("1111 0000", modality="ct", seed="7", base="0000 0000"),
        run("1110 0000", modality="ct", seed="8", base="0000 0000"),
        run("1100 1100", modality="ct", seed="9", base="0000 0000"),
    ]
    cell = matrix(runs, "trained").cells["ct"]["ct"]
    assert cell.runs == ("ct-7", "ct-8", "ct-9")
    assert cell.n == 4
    assert cell.accuracy.value == pytest.approx(0.75)
    assert cell.gain_over_base is not None
    # McNemar 2/16, 2/8 and 2/4; twice the median.
    assert cell.gain_over_base.p == pytest.approx(0.5)


def test_a_condition_that_a_seed_lacks_is_absent() -> None:
    runs = [
        run("1111 0000", modality="ct", seed="0", base=BASE, controls={"blank_image": BASE}),
        run("1111 0000", modality="ct", seed="1"),
    ]
    cell = matrix(runs, "trained").cells["ct"]["ct"]
    assert (cell.base, cell.gain_over_base, cell.controls) == (None, None, {})


def test_holm_takes_all_cells_as_one_family_and_the_column_of_all_as_another() -> None:
    rng = np.random.default_rng(1)
    patterns = ["".join(rng.choice(["0", "1"], 40, p=[1 - p, p])) for p in (0.9, 0.8, 0.7)]
    base = "".join(rng.choice(["0", "1"], 40))
    rows = ("ct", "mri", "xray")
    runs = [run(p, modality=row, algorithm=a, base=base) for row, p in zip(rows, patterns, strict=True) for a in "ab"]
    runs[0] = run(base, modality="ct", algorithm="a", base=base)
    tables = tabulate(runs, "modality", "modality", resamples=10)
    gains = {r: {c: cell.gain_over_base for c, cell in cells.items()} for r, cells in tables.matrices[0].cells.items()}
    for family in (gains, tables.contrasts[0].cells):
        for columns in (["ct", "mri"], [ALL]):
            p = [family[row][column].p for row in rows for column in columns]
            assert [family[row][column].p_holm for row in rows for column in columns] == holm(p)
    assert holm([gains[row][ALL].p for row in rows]) != [gains[row][ALL].p for row in rows]


def test_a_row_that_one_method_lacks_is_absent_from_the_contrast() -> None:
    tables = tabulate(SWEEP[:3], "modality", "modality", resamples=10)
    assert tables.matrices[1].rows == ("ct",)
    assert tables.matrices[1].generalization is None
    assert tables.contrasts[0].rows == ("ct",)
    assert tables.contrasts[0].generalization is None
    assert tabulate([SWEEP[0], SWEEP[2]], "modality", "modality", resamples=10).contrasts == ()


def test_contrasts_pair_the_seeds_that_both_have() -> None:
    runs = [
        run("1111 0000", modality="ct", algorithm="sft", seed="0"),
        run("0000 0000", modality="ct", algorithm="sft", seed="1"),
        run("1111 1111", modality="ct", algorithm="grpo", seed="1"),
    ]
    contrast = tabulate(runs, "modality", "modality", resamples=10).contrasts[0]
    assert contrast.cells["ct"]["ct"].difference.value == 1.0


def test_a_value_of_several_words_is_one_setting() -> None:
    methods = [("Chest X-ray", "grpo"), ("Brain MRI", "grpo"), ("CT", "sft")]
    runs = [run(BASE, question_type="disease", modality=m, algorithm=a) for m, a in methods]
    contrasts = tabulate(runs, "question_type", "modality", resamples=10).contrasts
    assert [(c.a, c.b, c.changed) for c in contrasts] == [
        ("Chest X-ray grpo", "Brain MRI grpo", 1),
        ("CT sft", "Chest X-ray grpo", 2),
        ("CT sft", "Brain MRI grpo", 2),
    ]


def test_seeds_that_are_all_correct_have_the_interval_of_one() -> None:
    of_seeds = [run("1111 1111", modality="ct", algorithm="sft", seed=seed) for seed in ("0", "1")]
    for runs in (of_seeds[:1], of_seeds):
        assert matrix(runs).cells["ct"]["ct"].accuracy == wilson(1, 2)


def test_the_reference_is_side_a_wherever_it_stands() -> None:
    order = ("grpo", "sft", "zero_shot")
    tables = tabulate([run(BASE, algorithm=a, modality="ct") for a in order], "modality", "modality", resamples=10)
    assert [(c.a, c.b) for c in tables.contrasts] == [("sft", "grpo"), ("zero_shot", "grpo"), ("zero_shot", "sft")]


def test_many_methods_are_compared_with_the_first_only() -> None:
    tables = tabulate([run(BASE, scale=str(i), modality="ct") for i in range(7)], "modality", "modality", resamples=10)
    assert [(c.a, c.b) for c in tables.contrasts] == [("0", str(i)) for i in range(1, 7)]
    assert (
        len(tabulate([run(BASE, scale=str(i), modality="ct") for i in range(6)], "modality", "modality").contrasts)
        == 15
    )


def test_rows_that_are_ways_of_training_are_compared() -> None:
    runs = [run(p, reasoning=r, algorithm="grpo") for r, p in {"think": "1111 1111", "no_think": "1010 0000"}.items()]
    tables = tabulate(runs, "reasoning", "modality", resamples=10)
    assert tables.matrices[0].rows == ("think", "no_think")  # the order of first appearance
    (contrast,) = tables.contrasts
    assert (contrast.a, contrast.b, contrast.rows) == ("grpo: think", "grpo: no_think", ("grpo",))
    assert contrast.cells["grpo"]["mri"].difference.value == -1.0
    assert contrast.overall.value == -0.75
    assert contrast.generalization is None


def test_a_run_without_training_is_the_base_model() -> None:
    base_only = SweepRun("zero", {"algorithm": "zero_shot"}, {"base": predictions(BASE, "base")})
    tables = tabulate([base_only, run("1111 1111", algorithm="grpo", base=BASE)], "algorithm", "modality", resamples=10)
    cell = tables.matrices[0].cells["zero_shot"]["ct"]
    assert (cell.accuracy.value, cell.base, cell.gain_over_base) == (0.25, None, None)
    assert (tables.contrasts[0].a, tables.contrasts[0].overall.value) == ("trained: zero_shot", 0.75)


def test_scanner_columns() -> None:
    # Images 0 and 2 are from a scanner of the training data, 1 and 3 are not.
    shortcut = matrix([run("1100 1101", **{"data.shortcut": "0.9"})], "trained", "data.shortcut", "scanner")
    assert shortcut.columns == ("seen scanners", "held-out scanner")
    assert [shortcut.cells["0.9"][c].accuracy.value for c in shortcut.columns] == [1.0, 0.25]


def test_scanner_columns_of_real_phantoms() -> None:
    records = make_records(World.TEST, 0, 4)
    lines = [
        replace(predictions("11")[1], record=r.id, image=r.image_key, modality=r.modality, options=len(r.options))
        for r in records
    ]
    only = SweepRun("x", {"algorithm": "grpo"}, {"trained": lines})
    cells = tabulate([only], "algorithm", "scanner", resamples=10).matrices[0].cells["grpo"]
    held_out = sum(r.image_key.endswith("scanner-E") for r in records)
    assert 0 < held_out < len(records)
    assert cells["held-out scanner"].n == held_out


def test_nothing_but_seed_and_input_decides_a_number() -> None:
    runs = [run(pattern * 8, modality=m) for m, pattern in (("ct", "1101 0011"), ("mri", "1000 1110"))]
    first, second, third = (tabulate(runs, "modality", "modality", resamples=99, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first != third


def test_records_that_differ_are_refused() -> None:
    first = SWEEP[1]
    fewer = replace(SWEEP[0], predictions={"trained": predictions("0110 1111")[:-1]})
    with pytest.raises(DataError, match=r"run mri-sft, condition trained lacks 1, such as record 7"):
        tabulate([first, fewer], "modality", "modality")
    with pytest.raises(DataError, match=r"run mri-sft lacks 1, such as record 7"):
        tabulate([fewer, replace(first, predictions={"trained": predictions(BASE)})], "modality", "modality")
    changed = [replace(p, options=3) if p.record == "record 5" else p for p in predictions(BASE, "base")]
    other = replace(SWEEP[0], predictions={"trained": predictions(BASE), "base": changed})
    with pytest.raises(DataError, match=r"record 5 .* run mri-sft, condition base \(.*3\)"):
        tabulate([first, other], "modality", "modality")
    twice = replace(first, predictions={"trained": [*predictions(BASE), predictions(BASE)[0]]})
    with pytest.raises(DataError, match="occurs twice"):
        tabulate([twice], "modality", "modality")


def test_runs_that_make_no_table_are_refused() -> None:
    with pytest.raises(DataError, match="at least one finished run"):
        tabulate([], "modality", "modality")
    with pytest.raises(DataError, match=r"mri-sft and mri-sft have the same axes"):
        tabulate([SWEEP[0], SWEEP[0]], "modality", "modality")
    with pytest.raises(DataError, match="vary the same axes"):
        tabulate([SWEEP[0], run(BASE, modality="ct")], "modality", "modality")
    with pytest.raises(DataError, match="including reasoning"):
        tabulate(SWEEP, "reasoning", "modality")
    with pytest.raises(ConfigError, match="'organ' is none of modality, question_type, benchmark, scanner"):
        tabulate(SWEEP, "modality", "organ")
    with pytest.raises(DataError, match="no predictions of condition trained or base"):
        tabulate([replace(SWEEP[0], predictions={"blank_image": predictions(BASE)})], "modality", "modality")
    foreign = [replace(p, image="Images/x.png") for p in predictions(BASE)]
    with pytest.raises(DataError, match=r"record 0: image 'Images/x.png'"):
        tabulate([replace(SWEEP[0], predictions={"trained": foreign})], "modality", "scanner")


def test_tables_are_plain_json() -> None:
    tables = tabulate(SWEEP, "modality", "modality", resamples=10)
    read = json.loads(json.dumps(asdict(tables)))
    assert read["matrices"][0]["cells"]["ct"]["ct"]["accuracy"]["low"] == wilson(1, 2).low
    assert read["contrasts"][0]["cells"]["mri"]["all"]["p_holm"] == tables.contrasts[0].cells["mri"][ALL].p_holm


def test_no_number_is_missing_or_outside_its_range() -> None:
    def check(m: Matrix) -> None:
        for row in m.rows:
            assert list(m.cells[row]) == [*m.columns, ALL]
            for cell in m.cells[row].values():
                assert 0 <= cell.accuracy.low <= cell.accuracy.value <= cell.accuracy.high <= 1
                assert cell.gain_over_base is not None and all(
                    map(math.isfinite, (cell.gain_over_base.p, cell.gain_over_base.p_holm))
                )
                assert cell.gain_over_base.p <= cell.gain_over_base.p_holm <= 1

    for found in tabulate(SWEEP, "modality", "question_type", resamples=50).matrices:
        check(found)


def renamed(runs: list[SweepRun], **names: str) -> list[SweepRun]:
    """The runs with other values of the modality, both trained and tested."""
    return [
        SweepRun(
            of.name,
            {axis: names.get(value, value) for axis, value in of.axes.items()},
            {c: [replace(p, modality=names[p.modality]) for p in lines] for c, lines in of.predictions.items()},
        )
        for of in runs
    ]


def test_values_of_the_data_are_rows_and_columns() -> None:
    known, own = (
        tabulate(SWEEP, "modality", "modality"),
        tabulate(renamed(SWEEP, ct="ECG", mri="pet"), "modality", "modality"),
    )
    assert (own.matrices[0].rows, own.matrices[0].columns) == (("ECG", "pet"), ("ECG", "pet"))
    for of_known, of_own in zip(known.matrices, own.matrices, strict=True):
        assert of_own.generalization == of_known.generalization
        assert of_own.cells["ECG"]["pet"] == of_known.cells["ct"]["mri"]


def test_known_values_come_first_and_all_records_last() -> None:
    trained = ["PET", "all", "mri", "Echo", "ct"]
    (found,) = tabulate([run("1111 0000", modality=value) for value in trained], "modality", "modality").matrices
    assert found.rows == ("ct", "mri", "Echo", "PET", "all")


def test_an_axis_that_the_data_lacks_gives_the_column_of_all_records_alone() -> None:
    runs = [
        run("1111 0100", algorithm="sft", seed="0", base=BASE, controls={"option_prior": "1111 1000"}),
        run("1110 0110", algorithm="grpo", seed="0", base=BASE, controls={"option_prior": "1111 1000"}),
    ]
    found = tabulate(renamed(runs, ct=UNSPECIFIED, mri=UNSPECIFIED), "algorithm", "modality")
    (matrix,) = found.matrices
    assert matrix.columns == () and {row: set(cells) for row, cells in matrix.cells.items()} == {
        "sft": {ALL},
        "grpo": {ALL},
    }
    assert matrix.means["sft"].value == matrix.cells["sft"][ALL].accuracy.value == 5 / 8
    assert [(c.columns, set(c.cells[c.rows[0]])) for c in found.contrasts] == [((), {ALL})]
    # No table, sentence or figure needs a column.
    assert any("Gain over the base model on all test records" in sentence for sentence in findings(found))
    assert not any("0 of 0" in sentence for sentence in findings(found))
    ((_, table),) = render_matrices(found)
    assert table.titles == ("", "All")
    for figure in (
        accuracy_heatmap(matrix, references(matrix)),
        gain_heatmap(matrix),
        contrast_heatmap(found.contrasts[0]),
    ):
        assert UNSPECIFIED not in [text.get_text() for text in figure.axes[0].texts]


def test_patients_with_images_of_many_modalities_are_resampled_as_in_a_paired_difference() -> None:
    """Each has images of other modalities than all others, so that each would be a stratum of its own."""
    rng, names = np.random.default_rng(0), [f"m{i}" for i in range(5)]
    sets = [[n for n, bit in zip(names, f"{number:05b}", strict=True) if bit == "1"] for number in range(3, 28)]
    line = predictions("0")[0]
    cells = [(f"patient {p}", name, k) for p, found in enumerate(sets) for name in found for k in range(4)]
    answers = {"base": rng.random(len(sets)) < 0.5, "trained": rng.random(len(sets)) < 0.5}  # a patient's are alike

    def lines(condition: str) -> list[Prediction]:
        return [
            replace(
                line,
                record=f"{patient} {name} {k}",
                image=f"{patient} {name} {k}",
                group=patient,
                modality=name,
                condition=condition,
                parsed="A" if (right := bool(answers[condition][int(patient.split()[1])])) else "B",
                correct=right,
            )
            for patient, name, k in cells
        ]

    axes = {"modality": "m0", "algorithm": "grpo"}
    run = SweepRun("r", axes, {condition: lines(condition) for condition in answers})
    (matrix,) = tabulate([run], "modality", "modality").matrices
    gain = matrix.cells["m0"][ALL].gain_over_base
    expected = compare(lines("base"), lines("trained")).overall.difference
    assert gain is not None and gain.difference.value == pytest.approx(expected.value)
    assert (gain.difference.low, gain.difference.high) == pytest.approx((expected.low, expected.high), abs=0.06)
