"""Reference rows beneath a matrix: base, controls and chance, averaged over the matrix's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from medr1.evaluation.predictions import Condition
from medr1.evaluation.sweep_tables import ALL, Matrix, TableCell
from medr1.reporting.formatting import MEAN, label, on_diagonal

T = TypeVar("T")

# In the order of their rows.
CONTROL_DESCRIPTIONS = {
    Condition.BLANK_IMAGE: "the trained model with a blank image",
    Condition.SHUFFLED_IMAGE: "the trained model with the image of another record, of the same modality if possible",
    Condition.OPTION_PRIOR: "the option with the highest correct / (offered + 1) in the training records of the row",
    Condition.SURFACE_CUES: "the option that differs in case or final full stop",
}


@dataclass(frozen=True, slots=True)
class Reference:
    """``values``: by column, ``all`` and ``mean``."""

    key: str
    name: str
    values: Mapping[str, float]


def references(matrix: Matrix) -> list[Reference]:
    """The reference rows for which the matrix has values.

    The option prior is fitted to the training records of a row. In a matrix with a diagonal it has two reference rows,
    for the same row and for other rows; the column of all records is left out, because it mixes the two.
    """
    square = set(matrix.rows) & set(matrix.columns)
    wanted: list[tuple[str, str, str, bool | None]] = []  # key, source, name, on the diagonal or off it
    for source in ("base", *CONTROL_DESCRIPTIONS, "chance"):
        if source == Condition.OPTION_PRIOR and square:
            wanted.append((f"{source}_same_row", source, f"{label(source)} (same row)", True))
            wanted.append((f"{source}_other_rows", source, f"{label(source)} (other rows)", False))
        else:
            wanted.append((source, source, label(source), None))

    found = []
    for key, source, name, diagonal in wanted:
        values: dict[str, float] = {}
        for column in matrix.columns if diagonal is not None else (*matrix.columns, ALL):
            numbers = [
                value
                for row in matrix.rows
                if column in matrix.cells.get(row, {})
                and (diagonal is None or (row in square and on_diagonal(row, column) is diagonal))
                and (value := _value(matrix.cells[row][column], source)) is not None
            ]
            if numbers:
                values[column] = fmean(numbers)
        if matrix.columns and values.keys() >= set(matrix.columns):
            values[MEAN] = fmean(values[column] for column in matrix.columns)
        if values:
            found.append(Reference(key, name, values))
    return found


def _value(cell: TableCell, source: str) -> float | None:
    return {"base": cell.base, "chance": cell.chance}.get(source, cell.controls.get(source))


def name_bases(bases: Mapping[tuple[str, str], T]) -> dict[tuple[str, str], T]:
    """What is known of the base models, by row and name. ``bases``: by row and method.

    A row of which all methods have one base has it once, as ``base``. Otherwise each base has the name of the first
    method that began with it.
    """
    distinct: dict[str, dict[str, T]] = {}
    for (row, method), found in bases.items():
        of_row = distinct.setdefault(row, {})
        if found not in of_row.values():
            of_row[method] = found
    return {
        (row, Condition.BASE if len(of_row) == 1 else f"{Condition.BASE}, {method}"): found
        for row, of_row in distinct.items()
        for method, found in of_row.items()
    }


def is_base(name: str) -> bool:
    return name.split(",")[0] == Condition.BASE
