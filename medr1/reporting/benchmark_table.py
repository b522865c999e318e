"""The table of several benchmarks: a column for each, a row for each condition and control."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from medr1.domain.records import in_order
from medr1.evaluation.metrics import Cell, Summary
from medr1.evaluation.predictions import Condition
from medr1.reporting.formatting import label, percent
from medr1.reporting.result_table import ABSENT, ResultTable

_ROWS = (
    *(Condition.OPTION_PRIOR, Condition.SURFACE_CUES, Condition.BLANK_IMAGE, Condition.SHUFFLED_IMAGE),
    *(Condition.BASE, Condition.TRAINED),
)


def render_benchmarks(summaries: Mapping[str, Summary]) -> ResultTable:
    """Accuracy of each condition on each benchmark, with the mean over benchmarks (equal weight).

    Args:
        summaries: by condition, of predictions with benchmarks. The last row has Wilson 95 % intervals.
    """
    conditions = [condition for condition in _ROWS if condition in summaries]
    names = in_order(name for summary in summaries.values() for name in summary.by_benchmark)
    last = conditions[-1]
    some = {name: next(s.by_benchmark[name] for s in summaries.values() if name in s.by_benchmark) for name in names}
    rows: list[tuple[str, ...]] = [
        ("Questions", *(str(cell.n) for cell in some.values()), ""),
        ("Chance", *(percent(cell.chance) for cell in some.values()), percent(fmean(c.chance for c in some.values()))),
    ]
    for condition in conditions:
        cells = summaries[condition].by_benchmark
        values = [_accuracy(cells.get(name), with_interval=condition is last) for name in names]
        mean = percent(fmean(cell.accuracy.value for cell in cells.values())) if len(cells) == len(names) else ABSENT
        rows.append((label(condition), *values, mean))
    notes = (f"Accuracy in %; {label(last)} with the 95 % interval. Mean: over benchmarks, each with equal weight.",)
    return ResultTable(("", *(name.replace("_", "\n") for name in names), "mean"), tuple(rows), notes)


def _accuracy(cell: Cell | None, *, with_interval: bool) -> str:
    if cell is None:
        return ABSENT
    accuracy = cell.accuracy
    ends = f"\n[{percent(accuracy.low)}, {percent(accuracy.high)}]" if with_interval else ""
    return percent(accuracy.value) + ends
