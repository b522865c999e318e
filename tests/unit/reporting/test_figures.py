"""Figures: the numbers drawn are those given, nothing overlaps or is cut, and the same figure gives the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from medr1.domain.records import Modality, QuestionType
from medr1.evaluation.calibration import Calibration, OptionProbabilities, calibrate
from medr1.evaluation.statistics import Estimate, PairedDifference
from medr1.evaluation.sweep_tables import ALL, ContrastMatrix, Matrix, TableCell
from medr1.reporting.figures import (
    Curve,
    accuracy_heatmap,
    accuracy_limits,
    contrast_heatmap,
    curves,
    difference_limits,
    gain_heatmap,
    method_colours,
    overview,
    rates,
    reliability,
    run_curves,
    save,
    shown_accuracies,
    shown_gains,
)
from medr1.reporting.formatting import MEAN, percent
from medr1.reporting.references import Reference

MODALITIES, QUESTION_TYPES = tuple(m.value for m in Modality), tuple(q.value for q in QuestionType)
LONG = (
    "Optical coherence tomography of the posterior segment of the eye",
    "Pneumonoultramicroscopicsilicovolcanoconiosis",
    *(f"a name of which nobody knows why it is so very long, number {i}" for i in range(6)),
)


def estimate(value: float, half: float = 0.04) -> Estimate:
    return Estimate(value, value - half, value + half)


def difference(value: float, half: float = 0.04) -> PairedDifference:
    return PairedDifference(estimate(value, half), p=0.01, p_holm=0.04)


def cell(accuracy: float, gain: PairedDifference | None = None) -> TableCell:
    return TableCell(400, 80, ("run",), estimate(accuracy), 0.25, 0.5 if gain else None, gain, {}, {}, {"base": 400})


def matrix(rows: Sequence[str], columns: Sequence[str], method: str = "grpo") -> Matrix:
    cells = {
        row: {
            column: cell(0.1 + 0.1 * i + 0.0123 * j, difference(0.02 * (i - j)))
            for j, column in enumerate((*columns, ALL))
        }
        for i, row in enumerate(rows)
    }
    return Matrix(method, tuple(rows), tuple(columns), cells, {row: estimate(0.333) for row in rows}, None)


def contrast(rows: Sequence[str], columns: Sequence[str], a: str = "sft", b: str = "grpo") -> ContrastMatrix:
    cells = {
        row: {column: difference(0.02 * (i - j)) for j, column in enumerate((*columns, ALL))}
        for i, row in enumerate(rows)
    }
    return ContrastMatrix(a, b, tuple(rows), tuple(columns), cells, estimate(0.01), None)


def beneath(columns: Sequence[str]) -> list[Reference]:
    names = (
        "Base",
        "Blank image",
        "Shuffled image",
        "Option prior (same row)",
        "Option prior (other rows)",
        "Chance",
    )
    return [Reference(name, name, dict.fromkeys((*columns, MEAN), 0.25)) for name in names]


@cache
def texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """All texts that are seen, and where."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    hidden: set[int] = set()
    for axes in figure.axes:
        # Ticks beyond the limits, or of an axis that is switched off, exist but are not seen.
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = (*axis.get_major_ticks(), *axis.get_minor_ticks())
            hidden |= {id(t.label1) for t in ticks if not (axes.axison and min(limits) <= t.get_loc() <= max(limits))}
    return [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in shown if id(t) not in hidden]


def curve(row: str, method: str = "grpo", steps: int = 30) -> Curve:
    values = [(step, 0.5 + step / 60) for step in range(steps)]
    return Curve(row, method, {"train/reward": values, "completion_length": values})


def named_rates(names: Sequence[str], series: Sequence[str]) -> Figure:
    return rates({s: [(name, estimate(0.3)) for name in names] for s in series}, "Reasoning", "False claims")


def calibration(n: int = 300) -> Calibration:
    """That of a model which is correct in half of the records, whatever its probabilities are."""
    rng = np.random.default_rng(0)
    drawn = [dict(zip("ABCD", map(float, p), strict=True)) for p in rng.dirichlet([0.4] * 4, size=n)]
    best = [max(p, key=p.__getitem__) for p in drawn]
    lines = [OptionProbabilities(str(i), str(i), best[i] if i % 2 else "ABCD"[i % 4], p) for i, p in enumerate(drawn)]
    found = calibrate(lines)
    assert found is not None
    return found


FIGURES = {
    "accuracy 8x8": lambda: accuracy_heatmap(matrix(MODALITIES, MODALITIES), beneath(MODALITIES)),
    "accuracy 5x5": lambda: accuracy_heatmap(matrix(QUESTION_TYPES, QUESTION_TYPES), beneath(QUESTION_TYPES)),
    "accuracy long": lambda: accuracy_heatmap(matrix(LONG, LONG, " and ".join(LONG)), beneath(LONG), LONG[1]),
    "accuracy 1x2": lambda: accuracy_heatmap(matrix(["0.5"], ["seen scanners", "held-out scanner"])),
    "accuracy one column": lambda: accuracy_heatmap(matrix(["think_before"], ["ct"], " ".join(LONG))),
    "gain 8x8": lambda: gain_heatmap(matrix(MODALITIES, MODALITIES)),
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
    **{f"reliability {n}": lambda n=n: reliability(dict.fromkeys(LONG[:n], calibration())) for n in (1, 2, 3, 7)},
    "reliability models": lambda: reliability(dict.fromkeys(("base", "trained"), calibration())),
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


def test_the_reliability_is_that_of_the_bins_and_the_diagonal_that_of_a_calibrated_model() -> None:
    found = calibration()
    figure = reliability({"base": found, "trained": found})
    curve = figure.axes[0]
    diagonal, line = curve.get_lines()
    bins = [b for b in found.bins if b.n]
    assert len(bins) > 5
    assert list(line.get_xdata()) == pytest.approx([100 * b.confidence for b in bins])
    assert list(line.get_ydata()) == pytest.approx([100 * b.accuracy for b in bins])
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 100]
    heights = [bar.get_height() for bar in figure.axes[2].patches]
    assert heights == pytest.approx([100 * b.n / found.n for b in found.bins]) and sum(heights) == pytest.approx(100)
    assert [text for text, _ in texts(figure) if percent(found.expected_calibration_error.value) in text]


def at(figure: Figure, text: str) -> Bbox:
    """Where this one text stands."""
    (box,) = [box for shown, box in texts(figure) if shown == text]
    return box


def center(box: Bbox) -> tuple[float, float]:
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def test_an_accuracy_stands_in_its_row_and_column_with_its_interval() -> None:
    cells = {"ct": {"ct": cell(0.7012), "mri": cell(0.405)}, "mri": {"ct": cell(0.33)}}
    means = {"ct": Estimate(0.5531, 0.5, 0.601)}
    figure = accuracy_heatmap(
        Matrix("grpo", ("ct", "mri"), ("ct", "mri"), cells, means, None), beneath(("ct", "mri"))[:1]
    )
    columns = {
        name: center(box)[0] for name, box in texts(figure) if name in ("CT", "MRI") and box.x0 > at(figure, "Base").x1
    }
    rows = {name: center(box)[1] for name, box in texts(figure) if box.x1 <= at(figure, "Base").x1 + 1}
    assert list(columns) == ["CT", "MRI"] and columns["CT"] < columns["MRI"] and rows["CT"] > rows["MRI"]
    for text, row, column in (("70.1", "CT", "CT"), ("40.5", "CT", "MRI"), ("33.0", "MRI", "CT")):
        x, y = center(at(figure, text))
        assert x == pytest.approx(columns[column], abs=1)
        assert abs(y - rows[row]) < 18, "half the height of a row"
    assert {"[66.1, 74.1]", "55.3", "[50.0, 60.1]", "GRPO", "Trained on", "Tested on"} <= {
        text for text, _ in texts(figure)
    }
    # One cell of the matrix and the mean of its row were not run.
    assert [text for text, _ in texts(figure)].count("\N{EN DASH}") == 2
    x, y = center(next(box for text, box in texts(figure) if text == "25.0"))
    assert y == pytest.approx(rows["Base"], abs=2)


@pytest.mark.parametrize("draw", [accuracy_heatmap, gain_heatmap])
def test_the_diagonal_is_framed_but_not_all_by_all(draw: Callable[[Matrix], Figure]) -> None:
    figure = draw(matrix(("mri", ALL), ("ct", "mri")))
    (frame,) = [p for p in figure.findobj(Rectangle) if not p.get_fill() and p.axes is figure.axes[0]]
    number = percent(0.1123) if draw is accuracy_heatmap else percent(-0.02, "+")
    (inside,) = [
        text for text, box in texts(figure) if text == number and frame.get_window_extent().contains(*center(box))
    ]
    assert inside == number


def test_a_cell_is_grey_exactly_where_its_interval_contains_zero() -> None:
    values = {
        "ct": {"ct": (0.05, 0.04), "mri": (0.04, 0.04), ALL: (0.011, 0.01)},
        "mri": {"ct": (-0.03, 0.04), "mri": (-0.07, 0.02)},
    }
    cells = {row: {column: difference(*v) for column, v in of.items()} for row, of in values.items()}
    table = ContrastMatrix("sft", "grpo", ("ct", "mri"), ("ct", "mri"), cells, estimate(0.0), None)
    figure = contrast_heatmap(table)
    FigureCanvasAgg(figure).draw()
    tiles = [patch for patch in figure.findobj(Rectangle) if patch.get_facecolor() == to_rgba("#F2F2F2")]
    grey = {
        text
        for text in ("+5.0", "+4.0", "+1.1", "\N{MINUS SIGN}3.0", "\N{MINUS SIGN}7.0")
        if any(tile.get_window_extent().contains(*center(at(figure, text))) for tile in tiles)
    }
    assert grey == {"+4.0", "\N{MINUS SIGN}3.0"}
    inks = {text.get_text(): text.get_color() for text in figure.findobj(Text) if text.get_text() in (*grey, "+5.0")}
    assert inks["+4.0"] == inks["\N{MINUS SIGN}3.0"] != inks["+5.0"]


def test_a_given_scale_is_that_of_the_colours() -> None:
    table = matrix(("ct", "mri"), ("ct", "mri"))
    for draw, own, limits in (
        (accuracy_heatmap, accuracy_limits(shown_accuracies(table)), (0.0, 0.9)),
        (gain_heatmap, difference_limits(shown_gains(table)), (-0.3, 0.3)),
    ):
        bars = [draw(table, limits=chosen).axes[1].get_xlim() for chosen in (None, limits)]  # type: ignore[operator]
        assert bars == [pytest.approx([100 * end for end in chosen]) for chosen in (own, limits)]


def test_a_method_has_the_same_colour_whatever_it_is_compared_with() -> None:
    alone, beside = method_colours(["grpo"]), method_colours(["Base", "sft", "GRPO, no_think", "rloo", "sapo"])
    assert alone["grpo"] == beside["GRPO, no_think"]
    assert len(set(beside.values())) == 5
    two = method_colours(["grpo, no_think", "grpo, think_after"])
    assert len(set(two.values())) == 2
    assert len(method_colours([f"series {i}" for i in range(20)])) == 20


@pytest.mark.parametrize(("largest", "limit"), [(0.112, 15), (-0.112, 15), (0.001, 5), (0.2, 20)])
def test_the_scale_of_differences_is_symmetric(largest: float, limit: float) -> None:
    table = ContrastMatrix("a", "b", ("x",), ("ct",), {"x": {"ct": difference(largest, 0.0005)}}, estimate(0.0), None)
    bar = contrast_heatmap(table).axes[1]
    assert bar.get_xlim() == pytest.approx((-limit, limit))


def test_no_gain_is_drawn_without_a_base() -> None:
    cells = {"ct": {"ct": cell(0.5), "mri": cell(0.5, difference(0.123))}}
    shown = [text for text, _ in texts(gain_heatmap(Matrix("sft", ("ct",), ("ct", "mri"), cells, {}, None)))]
    assert shown.count("\N{EN DASH}") == 1
    assert {"+12.3", "[+8.3, +16.3]", "SFT \N{MINUS SIGN} Base"} <= set(shown)


def test_bars_are_as_high_as_the_accuracies_and_chance_is_a_line() -> None:
    series: Mapping[str, Mapping[str, Estimate]] = {
        "Base": {"ct": Estimate(0.4, 0.3, 0.5)},
        "grpo": {"ct": Estimate(0.7, 0.65, 0.8), "mri": Estimate(0.6, 0.5, 0.65)},
    }
    axes = overview(series, {"ct": 0.25, "mri": 0.5}).axes[0]
    bars = sorted((p.get_x() + p.get_width() / 2, p.get_height()) for p in axes.patches)
    assert [height for _, height in bars] == pytest.approx([40, 70, 60])
    assert [x for x, _ in bars] == pytest.approx([-0.205, 0.205, 1.205])
    paths = [path for lines in axes.collections for path in lines.get_paths()]
    ends = sorted(tuple(round(float(y)) for y in path.vertices[:, 1]) for path in paths)
    assert ends == [(25, 25), (30, 50), (50, 50), (50, 65), (65, 80)]


def test_a_curve_is_the_running_mean_over_the_faint_values() -> None:
    values = [(step, float(value)) for step, value in zip(range(0, 60, 10), (0, 5, 10, 0, 5, 40), strict=True)]
    figure = curves([Curve("ct", "grpo", {"train/reward": values}), Curve("mri", "grpo", {"train/reward": values})])
    reward, length = figure.axes
    raw, smooth, *_ = reward.lines
    assert list(raw.get_ydata()) == [0, 5, 10, 0, 5, 40]
    # (0+5+10)/3, (0+5+10+0)/4, then five at a time, then the last four and three
    assert list(smooth.get_ydata()) == pytest.approx([5, 3.75, 4, 12, 13.75, 15])
    assert (raw.get_alpha() or 1) < 0.3 and raw.get_color() == smooth.get_color() != reward.lines[2].get_color()
    assert reward.get_ylabel() == "Reward" and not any(len(line.get_xdata()) for line in length.lines)


def test_the_highest_reward_is_a_line_and_length_begins_at_zero() -> None:
    values = {"train/reward": [(0, 0.5), (1, 0.7)], "completion_length": [(0, 40.0), (1, 50.0)]}
    reward, length = curves([Curve("ct", "grpo", values, 2.0)]).axes
    assert [list(line.get_ydata()) for line in reward.lines if line.get_linestyle() == "--"] == [[2.0, 2.0]]
    assert reward.get_ylim()[0] == length.get_ylim()[0] == 0
    assert not [line for line in curves([Curve("ct", "grpo", values)]).axes[0].lines if line.get_linestyle() == "--"]


def test_the_curves_of_a_run_have_a_panel_for_what_it_has() -> None:
    sft = run_curves({"train/loss": [(0, 2.0), (1, 1.0)], "learning_rate": [(0, 1.0)]}, None)
    (loss,) = sft.axes
    assert loss.get_ylabel() == "Loss (nats)" and list(loss.lines[0].get_ydata()) == [2, 1]
    points = [(step, step / 40) for step in range(30)]
    names = ("train/accuracy_reward", "train/reward", "validation/accuracy", "validation/blank_image_accuracy")
    reward, validation = run_curves(dict.fromkeys(names, points), 2.0).axes
    assert [text.get_text() for text in reward.get_legend().get_texts()] == ["sum", "accuracy", "highest possible"]
    assert [text.get_text() for text in validation.get_legend().get_texts()] == ["own image", "blank image"]
    smooth = validation.lines[1].get_ydata()
    assert list(smooth[:3]) == pytest.approx([2.5, 3.75, 5])  # percent, running mean of 5
    assert 2.0 in [line.get_ydata()[0] for line in reward.lines if line.get_linestyle() == "--"]


def test_a_name_that_begins_with_an_underscore_is_in_the_legend() -> None:
    legend = named_rates(("think_before",), ("_own", "sft")).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["_own", "SFT"]


def test_rates_over_names_are_points_with_intervals_and_over_numbers_lines_with_bands() -> None:
    points = named_rates(("think_before", "think_after"), ("sft", "grpo")).axes[0]
    assert [text.get_text() for text in points.get_xticklabels()] == ["Think-Before", "Think-After"]
    assert [list(line.get_ydata()) for line in points.lines] == [[30, 30], [30, 30]]
    assert {line.get_linestyle() for line in points.lines} == {"None"}
    assert sorted(line.get_xdata()[0] for line in points.lines) == [-0.125, 0.125]
    numbers = rates({"sft": [(0.0, estimate(0.5)), (0.9, estimate(0.7))]}, "Shortcut", "Accuracy").axes[0]
    (line,) = numbers.lines
    assert list(line.get_xdata()) == [0, 0.9] and list(line.get_ydata()) == pytest.approx([50, 70])
    (band,) = numbers.collections
    assert sorted({round(y) for y in band.get_paths()[0].vertices[:, 1]}) == [46, 54, 66, 74]


def test_the_same_figure_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(contrast_heatmap(contrast(("ct", "mri"), ("ct", "mri"))), tmp_path / name, "c")
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files.keys() == {"c.svg", "c.pdf", "c.png"}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert b"<dc:date>" not in files["c.svg"] and b"CreationDate" not in files["c.pdf"]
