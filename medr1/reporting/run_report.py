"""The report of one run: its settings, training curves and result tables in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from medr1.atomic_write import write_text
from medr1.reporting.pages import data_url, page_templates
from medr1.reporting.result_table import ResultTable

Curves = Mapping[str, Sequence[tuple[int, float]]]  # (step, value) by metric

_FEWEST_STEPS = 10  # fewer are no curve


def write_run_report(
    file: Path,
    *,
    title: str,
    verdict: Sequence[str],
    conditions: Mapping[str, str],
    tables: Sequence[ResultTable],
    curves: Curves,
    max_reward: float | None,
    curves_file: Path,
) -> None:
    """Writes the report, and the training curves as PNG to ``curves_file`` if training had at least ten steps.

    Args:
        verdict: the sentences that come first.
        conditions: the settings of the run by name.
        curves: metrics of the run; those of rewards, loss, validation and completion length are drawn.
        max_reward: the highest possible reward, if known.
    """
    source = ""
    steps = [step for values in curves.values() if len(values) > 1 for step, _ in values]
    if max(steps, default=0) - min(steps, default=0) >= _FEWEST_STEPS - 1:
        from medr1.reporting import figures  # matplotlib takes a second to import

        figures.save_png(figures.run_curves(curves, max_reward), curves_file)
        source = data_url("image/png", curves_file.read_bytes())
    page = page_templates().get_template("run_report.html")
    write_text(file, page.render(title=title, verdict=verdict, conditions=conditions, tables=tables, curves=source))
