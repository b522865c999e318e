"""The page of a single run."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from medr1.reporting.result_table import ResultTable
from medr1.reporting.run_report import write_run_report

TABLE = ResultTable(("", "n"), (("By modality",), ("MRI <b>", "40")), ("In %.",))


@pytest.mark.parametrize("steps", [0, 9, 10])
def test_the_page_has_settings_and_tables_and_from_ten_steps_on_the_curves(steps: int, tmp_path: Path) -> None:
    page, curves = tmp_path / "report.html", tmp_path / "curves.png"
    points = [(step, float(step)) for step in range(steps)]
    write_run_report(
        page,
        title="a run",
        verdict=["It gains 3 % & wins."],
        conditions={"model": "tiny", "training": "1 < 2"},
        tables=[TABLE],
        curves={"train/reward": points, "completion_length": points[:1]} if steps else {},
        max_reward=2.0,
        curves_file=curves,
    )
    html = page.read_text(encoding="utf-8")
    for text in (
        "a run",
        "<p>It gains 3\N{NO-BREAK SPACE}% &amp; wins.</p>",
        "<dd>tiny</dd>",
        "1 &lt; 2",
        "MRI &lt;b&gt;",
        "<td>40</td>",
        "In %.",
    ):
        assert text in html
    assert curves.exists() == ("<img" in html) == (steps >= 10)
    if steps >= 10:
        assert base64.b64encode(curves.read_bytes()).decode() in html
    assert "http" not in html, "a page needs no other file"
