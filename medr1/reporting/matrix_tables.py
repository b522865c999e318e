"""The matrices of a sweep as text tables and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from medr1.evaluation.sweep_tables import ALL, Matrix, SweepTables, TableCell
from medr1.reporting.formatting import label, percent, with_interval
from medr1.reporting.references import references
from medr1.reporting.result_table import ResultTable

_SHORT = {"Ultrasound": "US", "Dermoscopy": "Derm.", "Microscopy": "Micro.", "Lesion grading": "Lesion"}
_CSV_COLUMNS = (
    *("method", "row", "column", "n", "images", "runs", "accuracy", "low", "high", "chance"),
    *("base", "gain", "gain_low", "gain_high", "p", "p_holm"),
)


def render_matrices(tables: SweepTables) -> Iterator[tuple[str, ResultTable]]:
    """The name and the table of each method, in percent, at most 100 columns wide, with its references beneath.

    ``*`` marks cells significantly above the base after Holm's correction over the matrix, ``-`` those below.
    """
    for matrix in tables.matrices:
        columns = (*matrix.columns, ALL)
        titles = ("", *(_SHORT.get(label(c), label(c)).replace(" ", "\n") for c in columns))
        rows = [(label(row), *(_marked(matrix.cells[row].get(c)) for c in columns)) for row in matrix.rows]
        beneath = [
            (reference.name, *(f"{percent(reference.values[c])} " if c in reference.values else "" for c in columns))
            for reference in references(matrix)
        ]
        notes = [
            f"In %. Rows: {tables.row_axis}."
            + (f" Columns: {tables.column_axis} of the test records." if matrix.columns else ""),
            "*, -: above, below the base (McNemar test, p below .05 after Holm's correction over the matrix).",
            f"Seeds: {', '.join(tables.seeds) or 'one'}.",
        ]
        if g := matrix.generalization:
            parts = {"diagonal": g.diagonal, "off-diagonal": g.off_diagonal, "gap": g.gap}
            notes.append("; ".join(f"{name} {with_interval(estimate)}" for name, estimate in parts.items()))
        yield matrix.method, ResultTable(titles, (*rows, ("References, averaged over rows",), *beneath), tuple(notes))


def _marked(cell: TableCell | None) -> str:
    if cell is None:
        return ""
    mark = " "
    if cell.gain_over_base and cell.gain_over_base.p_holm < 0.05:
        mark = "*" if cell.gain_over_base.difference.value > 0 else "-"
    return f"{percent(cell.accuracy.value)}{mark}"


def to_csv(matrix: Matrix) -> str:
    """One line per cell, unrounded, with a column for each control that any cell has.

    The names of several runs are separated by spaces. Missing values are empty.
    """
    cells = [
        (row, column, matrix.cells[row][column])
        for row in matrix.rows
        for column in (*matrix.columns, ALL)
        if column in matrix.cells[row]
    ]
    controls = list(dict.fromkeys(control for _, _, cell in cells for control in cell.controls))
    text = io.StringIO()
    writer = csv.DictWriter(text, (*_CSV_COLUMNS, *controls), lineterminator="\n")
    writer.writeheader()
    for row, column, cell in cells:
        line = {"method": matrix.method, "row": row, "column": column, "n": cell.n, "images": cell.images}
        line |= {"runs": " ".join(cell.runs), "chance": cell.chance, "base": cell.base, **cell.controls}
        line |= {"accuracy": cell.accuracy.value, "low": cell.accuracy.low, "high": cell.accuracy.high}
        if tested := cell.gain_over_base:
            d = tested.difference
            line |= {"gain": d.value, "gain_low": d.low, "gain_high": d.high, "p": tested.p, "p_holm": tested.p_holm}
        writer.writerow(line)
    return text.getvalue()
