"""The matrices as text and CSV: the numbers of the cells, their marks, and the reference rows."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

from medr1.domain.records import Modality
from medr1.evaluation.statistics import Estimate, PairedDifference
from medr1.evaluation.sweep_tables import ALL, Generalization, Matrix, SweepTables, TableCell
from medr1.reporting.matrix_tables import render_matrices, to_csv

CELL = TableCell(
    n=80,
    images=40,
    runs=("a",),
    accuracy=Estimate(0.7, 0.6, 0.8),
    chance=0.25,
    base=0.5,
    gain_over_base=PairedDifference(Estimate(0.2, 0.1, 0.3), 0.001, 0.01),
    controls={"blank_image": 0.3},
    margins={"blank_image": Estimate(0.4, 0.3, 0.5)},
    effective_n={"base": 80, "blank_image": 80},
)
WORSE = replace(CELL, gain_over_base=PairedDifference(Estimate(-0.2, -0.3, -0.1), 0.001, 0.01))
INCONCLUSIVE = replace(CELL, gain_over_base=PairedDifference(Estimate(0.1, 0.0, 0.2), 0.04, 0.3))


def tables() -> SweepTables:
    columns = tuple(str(m) for m in Modality)
    cells = {"ct": {**dict.fromkeys(columns, INCONCLUSIVE), "ct": CELL, "us": WORSE, ALL: CELL}}
    estimate = Estimate(0.5, 0.4, 0.6)
    matrix = Matrix("grpo", ("ct",), columns, cells, {"ct": estimate}, Generalization(estimate, estimate, estimate))
    return SweepTables("modality", "modality", ("0", "1"), (matrix,), ())


def test_cells_have_marks_and_references_are_beneath() -> None:
    ((method, table),) = render_matrices(tables())
    assert method == "grpo"
    rows = {row[0]: dict(zip(table.titles[1:], row[1:], strict=True)) for row in table.rows if len(row) > 1}
    assert (rows["CT"]["CT"], rows["CT"]["US"], rows["CT"]["MRI"]) == ("70.0*", "70.0-", "70.0 ")
    assert rows["Base"]["CT"] == "50.0 " and rows["Blank image"]["MRI"] == "30.0 " and rows["Chance"]["CT"] == "25.0 "
    assert "diagonal 50.0 [40.0, 60.0]; off-diagonal 50.0 [40.0, 60.0]; gap 50.0 [40.0, 60.0]" in table.notes
    assert "Seeds: 0, 1." in table.notes
    assert max(map(len, table.to_markdown().splitlines())) < 200


def test_csv_holds_every_cell_unrounded() -> None:
    (matrix,) = tables().matrices
    cells = {"ct": {**matrix.cells["ct"], "mri": replace(CELL, runs=("a", "b"), accuracy=Estimate(1 / 3, 0.1, 2 / 3))}}
    lines = list(csv.DictReader(io.StringIO(to_csv(replace(matrix, cells=cells)))))
    assert [(line["row"], line["column"]) for line in lines] == [("ct", c) for c in (*matrix.columns, ALL)]
    line = lines[1]
    assert (line["method"], line["n"], line["images"], line["runs"]) == ("grpo", "80", "40", "a b")
    expected = {"accuracy": 1 / 3, "low": 0.1, "high": 2 / 3, "chance": 0.25, "base": 0.5, "blank_image": 0.3}
    expected |= {"gain": 0.2, "gain_low": 0.1, "gain_high": 0.3, "p": 0.001, "p_holm": 0.01}
    assert {key: float(line[key]) for key in expected} == expected
    cells = {"ct": {"ct": replace(CELL, base=None, gain_over_base=None, controls={})}}
    lacking = next(csv.DictReader(io.StringIO(to_csv(replace(matrix, cells=cells)))))
    assert {key: lacking[key] for key in ("base", "gain", "p", "p_holm")} == dict.fromkeys(
        ("base", "gain", "p", "p_holm"), ""
    )
