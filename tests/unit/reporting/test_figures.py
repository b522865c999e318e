"""Figures: the numbers drawn are those given, nothing overlaps or is cut, and the same figure gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from medr1.evaluation.tables import ALL, ContrastMatrix, Estimate, Matrix, TableCell, Versus
from medr1.records import Modality, QuestionType
from medr1.reporting.figures import (
    MEAN,
    Curve,
    Reference,
    accuracy_heatmap,
    contrast_heatmap,
    contrast_name,
    curves,
    gain_heatmap,
    label,
    overview,
    percent,
    rates,
    save,
)

MODALITIES, QUESTION_TYPES = tuple(m.value for m in Modality), tuple(q.value for q in QuestionType)
LONG = (
    "Optical coherence tomography of the posterior segment of the eye",
    "Pneumonoultramicroscopicsilicovolcanoconiosis",
    *(f"a name of which nobody knows why it is so very long, number {i}" for i in range(6)),
)


def estimate(value: float, half: float = 0.04) -> Estimate:
    return Estimate(value, value - half, value + half)


def versus(value: float, half: float = 0.04) -> Versus:
    return Versus(estimate(value, half), p=0.01, p_holm=0.04)


def cell(accuracy: float, gain: Versus | None = None) -> TableCell:
    return TableCell(400, 80, ("run",), estimate(accuracy), 0.25, 0.5 if gain else None, gain, {})


def matrix(rows: Sequence[str], columns: Sequence[str], method: str = "grpo") -> Matrix:
    cells = {
        row: {
            column: cell(0.1 + 0.1 * i + 0.0123 * j, versus(0.02 * (i - j))) for j, column in enumerate((*columns, ALL))
        }
        for i, row in enumerate(rows)
    }
    return Matrix(method, tuple(rows), tuple(columns), cells, {row: estimate(0.333) for row in rows}, None)


def contrast(rows: Sequence[str], columns: Sequence[str], a: str = "sft", b: str = "grpo") -> ContrastMatrix:
    cells = {
        row: {column: versus(0.02 * (i - j)) for j, column in enumerate((*columns, ALL))} for i, row in enumerate(rows)
    }
    return ContrastMatrix(a, b, tuple(rows), tuple(columns), cells, estimate(0.01), None)


def beneath(columns: Sequence[str]) -> list[Reference]:
    names = (
        "Base",
        "Empty picture",
        "Another's picture",
        "Option prior (same row)",
        "Option prior (other rows)",
        "Chance",
    )
    return [Reference(name, name, dict.fromkeys((*columns, MEAN), 0.25)) for name in names]


def texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """All texts that are seen, and where."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in shown]
    for axes in figure.axes:
        # Ticks beyond the limits exist, but nobody sees them.
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if axes.axison and not min(limits) <= tick.get_loc() <= max(limits):
                    gone = tick.label1.get_window_extent(canvas.get_renderer())
                    boxes = [(text, box) for text, box in boxes if box.bounds != gone.bounds]
                if not axes.axison:
                    boxes = [(t, b) for t, b in boxes if b.bounds != tick.label1.get_window_extent().bounds]
    return boxes


def curve(row: str, method: str = "grpo", steps: int = 30) -> Curve:
    values = [(step, 0.5 + step / 60) for step in range(steps)]
    return Curve(row, method, {"train/reward": values, "train/completion_length": values})


def named_rates(names: Sequence[str], series: Sequence[str]) -> Figure:
    return rates({s: [(name, estimate(0.3)) for name in names] for s in series}, "Reasoning", "False claims")


FIGURES = {
    "accuracy 8x8": lambda: accuracy_heatmap(matrix(MODALITIES, MODALITIES), beneath(MODALITIES)),
    "accuracy 5x5": lambda: accuracy_heatmap(matrix(QUESTION_TYPES, QUESTION_TYPES), beneath(QUESTION_TYPES)),
    "accuracy long": lambda: accuracy_heatmap(matrix(LONG, LONG, " and ".join(LONG)), beneath(LONG), LONG[1]),
    "accuracy 1x2": lambda: accuracy_heatmap(matrix(["0.5"], ["seen scanners", "held-out scanner"])),
    "accuracy all": lambda: accuracy_heatmap(matrix(["think_before"], [ALL], " ".join(LONG))),
    "gain 8x8": lambda: gain_heatmap(matrix(MODALITIES, MODALITIES)),
    "gain long": lambda: gain_heatmap(matrix(LONG, LONG)),
    "contrast 5x5": lambda: contrast_heatmap(contrast(QUESTION_TYPES, QUESTION_TYPES)),
    "contrast long": lambda: contrast_heatmap(contrast(LONG, LONG, LONG[0], LONG[1]), LONG[0]),
    "overview 8": lambda: overview(
        {s: dict.fromkeys((*MODALITIES, ALL), estimate(0.5)) for s in ("Base", "sft", "grpo")},
        dict.fromkeys((*MODALITIES, ALL), 0.25),
    ),
    "overview 5": lambda: overview(
        {"sft": dict.fromkeys(QUESTION_TYPES, estimate(0.5))}, dict.fromkeys(QUESTION_TYPES, 0.3)
    ),
    "overview long": lambda: overview({s: dict.fromkeys(LONG, estimate(0.5)) for s in LONG}, dict.fromkeys(LONG, 0.25)),
    "curves 8": lambda: curves([curve(row) for row in MODALITIES]),
    "curves long": lambda: curves([curve(row, method) for row in LONG for method in LONG[:2]]),
    "rates named": lambda: named_rates(("think_before", "think_after"), ("base", "sft", "grpo")),
    "rates long": lambda: named_rates(LONG, LONG[:3]),
    "rates numbers": lambda: rates(
        {s: [(0.0, estimate(0.1)), (0.9, estimate(0.95))] for s in LONG}, LONG[0], "Accuracy"
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_overlaps_another_or_is_cut(name: str) -> None:
    figure = FIGURES[name]()
    boxes = texts(figure)
    page = figure.bbox
    assert len(boxes) > 5
    for text, box in boxes:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, (text, box, page)
    for (one, a), (other, b) in combinations(boxes, 2):
        # Half a pixel of 100 dpi: what rounding to pixels may add.
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(overlap) <= 0.5, (one, other, overlap)
