"""The matrices of a sweep as text: a table for each method, with its controls as rows beneath."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean

from medr1.evaluation.predictions import Condition
from medr1.evaluation.tables import ALL, Matrix, SweepTables, TableCell
from medr1.records import Modality, QuestionType
from medr1.reporting.tables import MODALITY_NAMES, QUESTION_TYPE_NAMES, ResultTable

CONTROL_NAMES = {
    Condition.BLANK_IMAGE: "empty picture",
    Condition.SHUFFLED_IMAGE: "another's picture",
    Condition.OPTION_PRIOR: "option prior",
    Condition.SURFACE_CUES: "surface cues",
}
_SHORT = {"Ultrasound": "US", "Dermoscopy": "Derm.", "Microscopy": "Micro.", "Lesion grading": "Lesion"}


def render_matrices(tables: SweepTables) -> Iterator[tuple[str, ResultTable]]:
    """For each method its name and its table, in percent, at most 100 columns wide.

    A row's ``*`` marks a gain over the base beyond chance after Holm's correction over the matrix, a ``-`` a loss.
    """
    for matrix in tables.matrices:
        titles = ("", *(_title(c) for c in matrix.columns), ALL)
        rows = [(_name(row), *_values(matrix, matrix.cells[row])) for row in matrix.rows if row in matrix.cells]
        beneath = [(name, *values) for name, values in _references(matrix)]
        notes = [
            f"Trained on (or with) the row's {tables.row_axis}, tested on the column's {tables.column_axis}; in %."
        ]
        notes.append("*, -: above, below the base (McNemar, Holm over the matrix, below .05).")
        if tables.seeds:
            notes.append(f"Means over the seeds {', '.join(tables.seeds)}." if len(tables.seeds) > 1 else "One seed.")
        if matrix.generalization:
            g = matrix.generalization
            parts = (("diagonal", g.diagonal), ("rest", g.off_diagonal), ("gap", g.gap))
            notes.append(
                "; ".join(f"{n} {100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]" for n, e in parts)
            )
        yield matrix.method, ResultTable(titles, (*rows, ("Beside it, averaged over rows",), *beneath), tuple(notes))


def _values(matrix: Matrix, cells: Mapping[str, TableCell]) -> Iterator[str]:
    for column in (*matrix.columns, ALL):
        if (cell := cells.get(column)) is None:
            yield ""
            continue
        mark = " "
        if cell.gain and cell.gain.p_holm < 0.05:
            mark = "*" if cell.gain.difference.value > 0 else "-"
        yield f"{100 * cell.accuracy.value:.1f}{mark}"


def _references(matrix: Matrix) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Base, controls and chance. For a square matrix the option prior is told apart by whether it knows the column."""

    def row(value_of: Mapping[str, list[float]]) -> tuple[str, ...]:
        means = {column: fmean(values) for column, values in value_of.items() if values}
        return tuple(f"{100 * means[c]:.1f} " if c in means else "" for c in (*matrix.columns, ALL))

    def collected(pick: Mapping[tuple[str, str], float | None]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for (_, column), value in pick.items():
            if value is not None:
                found.setdefault(column, []).append(value)
        return found

    cells = {(r, c): cell for r, of_row in matrix.cells.items() for c, cell in of_row.items()}
    if base := collected({key: cell.base for key, cell in cells.items()}):
        yield "base", row(base)
    for control, name in CONTROL_NAMES.items():
        values = {key: cell.controls.get(control) for key, cell in cells.items()}
        if control == Condition.OPTION_PRIOR and matrix.generalization:
            yield f"{name}, same row", row(collected({k: v for k, v in values.items() if k[0] == k[1]}))
            yield f"{name}, other rows", row(collected({k: v for k, v in values.items() if k[0] != k[1]}))
        elif found := collected(values):
            yield name, row(found)
    yield "chance", row(collected({key: cell.chance for key, cell in cells.items()}))


def _title(column: str) -> str:
    name = _name(column)
    return _SHORT.get(name, name).replace(" ", "\n")


def _name(value: str) -> str:
    if value in list(Modality):
        return MODALITY_NAMES[Modality(value)]
    return QUESTION_TYPE_NAMES[QuestionType(value)] if value in list(QuestionType) else value
