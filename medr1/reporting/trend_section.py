"""The chapter of a sweep whose rows are numbers, such as the strength of a shortcut: accuracy against that number."""

from __future__ import annotations

from medr1.evaluation.tables import ALL, Estimate, SweepTables
from medr1.reporting.figures import columns_of, label, rates
from medr1.reporting.report import Section, SectionFigure

_MOST = 3  # columns that one drawing can hold apart; of more, only all records


def trend_section(tables: SweepTables) -> Section | None:
    """One line for each method and column, with its interval as a band; None where rows are no numbers."""
    if len({row for matrix in tables.matrices for row in matrix.rows if _is_number(row)}) < 2:
        return None
    series: dict[str, list[tuple[str | float, Estimate]]] = {}
    for matrix in tables.matrices:
        columns = columns_of(matrix) if len(columns_of(matrix)) <= _MOST else (ALL,)
        for column in columns:
            points = [
                (float(row), matrix.cells[row][column].accuracy)
                for row in sorted(filter(_is_number, matrix.rows), key=float)
                if column in matrix.cells[row]
            ]
            series[f"{label(matrix.method)}, {label(column)}"] = list(points)
    figure = rates(series, label(tables.row_axis), "Accuracy")
    caption = f"Accuracy against {tables.row_axis}. Bands: 95 % intervals."
    return Section(f"Accuracy against {label(tables.row_axis)}", figures=(SectionFigure("trend", figure, caption),))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
