"""The matrices of a sweep as text: a table for each method, with its controls as rows beneath."""

from __future__ import annotations

from collections.abc import Iterator

from medr1.evaluation.tables import ALL, SweepTables, TableCell
from medr1.reporting.figures import columns_of, interval, label, percent
from medr1.reporting.report_tables import references
from medr1.reporting.tables import ResultTable

_SHORT = {"Ultrasound": "US", "Dermoscopy": "Derm.", "Microscopy": "Micro.", "Lesion grading": "Lesion"}


def render_matrices(tables: SweepTables) -> Iterator[tuple[str, ResultTable]]:
    """For each method its name and its table, in percent, at most 100 columns wide.

    ``*`` marks a gain over the base beyond chance after Holm's correction over the matrix, ``-`` a loss.
    """
    for matrix in tables.matrices:
        columns = [*dict.fromkeys((*columns_of(matrix), ALL))]
        titles = ("", *(_SHORT.get(label(c), label(c)).replace(" ", "\n") for c in columns))
        rows = [(label(row), *(_value(matrix.cells[row].get(c)) for c in columns)) for row in matrix.rows]
        beneath = [
            (reference.name, *(f"{100 * reference.values[c]:.1f} " if c in reference.values else "" for c in columns))
            for reference in references(matrix)
        ]
        notes = [f"In %. Rows: {tables.row_axis}. Columns: {tables.column_axis} of the test records."]
        notes.append("*, -: above, below the base (McNemar, Holm over the matrix, below .05).")
        notes.append(f"Seeds: {', '.join(tables.seeds)}.")
        if matrix.generalization:
            g = matrix.generalization
            parts = {"diagonal": g.diagonal, "rest": g.off_diagonal, "gap": g.gap}
            notes.append("; ".join(f"{name} {percent(e.value)} {interval(e)}" for name, e in parts.items()))
        yield matrix.method, ResultTable(titles, (*rows, ("Beside it, averaged over rows",), *beneath), tuple(notes))


def _value(cell: TableCell | None) -> str:
    if cell is None:
        return ""
    mark = " "
    if cell.gain and cell.gain.p_holm < 0.05:
        mark = "*" if cell.gain.difference.value > 0 else "-"
    return f"{100 * cell.accuracy.value:.1f}{mark}"
