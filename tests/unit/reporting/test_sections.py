"""Additional sections of a report: numeric rows have a trend figure, others do not."""

from __future__ import annotations

from dataclasses import replace

from medr1.evaluation.statistics import Estimate
from medr1.evaluation.sweep_tables import Matrix, SweepTables, TableCell
from medr1.reporting.sections import trend_section

CELL = TableCell(80, 40, ("a",), Estimate(0.7, 0.6, 0.8), 0.25, None, None, {})
WORSE = replace(CELL, accuracy=Estimate(0.3, 0.2, 0.4))


def tables(*rows: str) -> SweepTables:
    columns = ("seen scanners", "held-out scanner")
    cells = {row: {columns[0]: CELL, columns[1]: WORSE if row == "0.9" else CELL} for row in rows}
    return SweepTables("data.shortcut", "scanner", ("0",), (Matrix("sft", rows, columns, cells, {}, None),), ())


def test_each_column_is_a_line_over_the_numbers_in_their_order() -> None:
    section = trend_section(tables("0.9", "0.0", "0.5"))
    assert section is not None
    ((seen, held_out),) = [axes.get_lines()[:2] for axes in section.figures[0].figure.axes]
    assert list(held_out.get_xdata()) == [0.0, 0.5, 0.9]
    assert [round(y) for y in held_out.get_ydata()] == [70, 70, 30] and [round(y) for y in seen.get_ydata()] == [70] * 3


def test_rows_that_are_names_have_no_trend() -> None:
    assert trend_section(tables("ct", "mri")) is None and trend_section(tables("0.5", "mri")) is None
