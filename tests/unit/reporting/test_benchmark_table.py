"""The table of several benchmarks, on predictions that can be counted by eye."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from medr1.evaluation.metrics import summarise
from medr1.reporting.benchmark_table import render_benchmarks
from tests.unit.evaluation.test_metrics import line

PLACES = {"1": "slake", "2": "slake", "3": "vqa_rad", "4": "vqa_rad", "5": "vqa_rad"}


def lines(letters: str, condition: str) -> list:
    found = (line(record, letter, condition=condition) for record, letter in zip(PLACES, letters, strict=True))
    return [replace(p, benchmark=PLACES[p.record]) for p in found]


def table() -> object:
    return render_benchmarks(
        {c: summarise(lines(letters, c)) for c, letters in {"trained": "ABAAA", "blank_image": "BBAAB"}.items()}
    )


def test_a_column_for_each_benchmark_and_a_row_for_each_condition() -> None:
    found = table()
    assert found.titles == ("", "slake", "vqa\nrad", "mean")
    rows = {row[0]: row[1:] for row in found.rows}
    assert rows["Questions"] == ("2", "3", "") and rows["Chance"] == ("25.0", "25.0", "25.0")
    assert rows["Blank image"] == ("0.0", "66.7", "33.3")
    assert [value.split("\n")[0] for value in rows["Trained"]] == ["50.0", "100.0", "75.0"]
    assert list(rows)[-1] == "Trained" and "[" in rows["Trained"][0] and "[" not in rows["Trained"][2]


def test_the_table_is_printed_within_a_hundred_columns() -> None:
    console = Console(width=100, file=io.StringIO())
    console.print(table())
    assert "slake" in console.file.getvalue()
