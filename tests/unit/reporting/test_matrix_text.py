"""The matrices as text: the numbers of the cells, their marks, and what stands beneath."""

from __future__ import annotations

from dataclasses import replace

from medr1.domain.records import Modality
from medr1.evaluation.tables import ALL, Estimate, Generalization, Matrix, SweepTables, TableCell, Versus
from medr1.reporting.matrix_text import render_matrices

CELL = TableCell(
    n=80,
    images=40,
    runs=("a",),
    accuracy=Estimate(0.7, 0.6, 0.8),
    chance=0.25,
    base=0.5,
    gain=Versus(Estimate(0.2, 0.1, 0.3), 0.001, 0.01),
    controls={"blank_image": 0.3},
)
WORSE = replace(CELL, gain=Versus(Estimate(-0.2, -0.3, -0.1), 0.001, 0.01))
OPEN = replace(CELL, gain=Versus(Estimate(0.1, 0.0, 0.2), 0.04, 0.3))


def tables() -> SweepTables:
    columns = tuple(str(m) for m in Modality)
    cells = {"ct": {**dict.fromkeys(columns, OPEN), "ct": CELL, "us": WORSE, ALL: CELL}}
    estimate = Estimate(0.5, 0.4, 0.6)
    matrix = Matrix("grpo", ("ct",), columns, cells, {"ct": estimate}, Generalization(estimate, estimate, estimate))
    return SweepTables("modality", "modality", ("0", "1"), (matrix,), (), ())


def test_cells_carry_their_marks_and_references_stand_beneath() -> None:
    ((method, table),) = render_matrices(tables())
    assert method == "grpo"
    rows = {row[0]: dict(zip(table.titles[1:], row[1:], strict=True)) for row in table.rows if len(row) > 1}
    assert (rows["CT"]["CT"], rows["CT"]["US"], rows["CT"]["MRI"]) == ("70.0*", "70.0-", "70.0 ")
    assert rows["Base"]["CT"] == "50.0 " and rows["Empty picture"]["MRI"] == "30.0 " and rows["Chance"]["CT"] == "25.0 "
    assert "diagonal 50.0 [40.0, 60.0]; rest 50.0 [40.0, 60.0]; gap 50.0 [40.0, 60.0]" in table.notes
    assert "Seeds: 0, 1." in table.notes
    assert max(map(len, table.to_markdown().splitlines())) < 200
