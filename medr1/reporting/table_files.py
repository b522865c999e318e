"""The tables of a sweep as JSON and as CSV, for scripts; every number unrounded."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import Any

from medr1.evaluation.tables import ALL, Matrix, SweepTables, TableCell

_COLUMNS = (
    *("method", "row", "column", "n", "images", "runs", "accuracy", "low", "high", "chance"),
    *("base", "gain", "gain_low", "gain_high", "p", "p_holm"),
)


def to_dict(tables: SweepTables) -> dict[str, Any]:
    """Plain types only, ready for JSON; the layout is that of the dataclasses."""
    return asdict(tables)


def to_csv(matrix: Matrix) -> str:
    """One line a cell, that of all records last in its row, with a column for each control that any cell has.

    Several runs of a cell are separated by a space; what a cell lacks is empty.
    """
    cells = [
        (row, column, matrix.cells[row][column])
        for row in matrix.rows
        for column in (*matrix.columns, ALL)
        if column in matrix.cells[row]
    ]
    controls = list(dict.fromkeys(control for _, _, cell in cells for control in cell.controls))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_COLUMNS, *controls))
    for row, column, cell in cells:
        writer.writerow((matrix.method, row, column, *_values(cell), *(cell.controls.get(c, "") for c in controls)))
    return text.getvalue()


def _values(cell: TableCell) -> tuple[object, ...]:
    gain: tuple[object, ...] = ("",) * 5
    if cell.gain:
        difference = cell.gain.difference
        gain = (difference.value, difference.low, difference.high, cell.gain.p, cell.gain.p_holm)
    accuracy = (cell.accuracy.value, cell.accuracy.low, cell.accuracy.high)
    base = "" if cell.base is None else cell.base
    return (cell.n, cell.images, " ".join(cell.runs), *accuracy, cell.chance, base, *gain)
