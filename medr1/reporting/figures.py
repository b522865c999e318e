"""Figures of a report: heatmaps of matrices and contrasts, overview bars, training curves and rates.

Each function returns a ``Figure`` without pyplot's global state. Rates are fractions and are drawn in percent,
differences in percentage points.
"""

from __future__ import annotations

import logging
import re
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from medr1.atomic_write import atomic_write
from medr1.evaluation.calibration import Calibration
from medr1.evaluation.statistics import Estimate, PairedDifference
from medr1.evaluation.sweep_tables import ALL, ContrastMatrix, Matrix
from medr1.reporting.formatting import MEAN, contrast_label, interval, label, on_diagonal, percent
from medr1.reporting.references import Reference

FORMATS = ("svg", "pdf", "png")
CURVES = {"train/reward": "Reward", "completion_length": "Completion length (tokens)"}

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", "--", ":", "-.")
_METHOD_COLOURS = {"base": "#BBBBBB", "grpo": "#0072B2", "sft": "#D55E00", "papo": "#009E73", "gdpo": "#CC79A7"}
_EMPTY, _UNDECIDED = "#F2F2F2", "#6E6E6E"  # a cell without a colour, and the digits in it
_COLUMN, PAGE_WIDTH = 3.49, 7.16  # inches: one and two columns of an IEEE journal
# Inches in a heatmap: cell width, row height, reference row height, gap between blocks, margin, height of a text line.
_CELL, _ROW, _REFERENCE, _GAP, _PAD, _LINE = 0.65, 0.36, 0.27, 0.09, 0.08, 0.125


@dataclass(frozen=True, slots=True)
class _Tile:
    """One cell of a heatmap, coloured by ``value``, or grey where the value is ``undecided``."""

    value: float
    text: str
    small: str = ""
    undecided: bool = False
    outlined: bool = False


_Rows = Sequence[tuple[str, Mapping[str, _Tile]]]  # row names, and tiles by column


Limits = tuple[float, float]  # of a colour scale, as fractions


def accuracy_limits(values: Collection[float]) -> Limits:
    """The scale for these accuracies, to whole tenths."""
    low, high = np.floor(10 * min(values, default=0)) / 10, np.ceil(10 * max(values, default=1)) / 10
    return low, max(high, low + 0.1)


def difference_limits(values: Collection[float]) -> Limits:
    """The scale for these differences: symmetric around zero, to 5 points."""
    limit = max(np.ceil(20 * max(map(abs, values), default=0.0)) / 20, 0.05)
    return -limit, limit


def shown_accuracies(matrix: Matrix, references: Sequence[Reference] = ()) -> list[float]:
    """The accuracies that ``accuracy_heatmap`` colours. Matrices side by side need the scale of all of them."""
    columns = matrix.columns or (ALL,)
    values = [cell.accuracy.value for of in matrix.cells.values() for c, cell in of.items() if c in columns]
    values += [matrix.means[row].value for row in matrix.rows if row in matrix.means and len(columns) > 1]
    shown = (*columns, MEAN) if len(columns) > 1 else columns
    return values + [v for reference in references for c, v in reference.values.items() if c in shown]


def shown_gains(matrix: Matrix) -> list[float]:
    """The gains that ``gain_heatmap`` colours."""
    cells = (cell for of in matrix.cells.values() for cell in of.values())
    return [cell.gain_over_base.difference.value for cell in cells if cell.gain_over_base]


def accuracy_heatmap(
    matrix: Matrix,
    references: Sequence[Reference] = (),
    row_title: str = "Trained on",
    limits: Limits | None = None,
) -> Figure:
    """Accuracy with its interval; the diagonal is outlined, the references are rows beneath.

    ``limits``: the colour scale, that of the matrix by default.
    """
    columns, rows = matrix.columns or (ALL,), []
    for row in matrix.rows:
        estimates = {c: cell.accuracy for c, cell in matrix.cells.get(row, {}).items() if c in columns}
        if row in matrix.means:
            estimates[MEAN] = matrix.means[row]
        tiles = {
            c: _Tile(e.value, percent(e.value), interval(e), outlined=on_diagonal(row, c)) for c, e in estimates.items()
        }
        rows.append((label(row), tiles))
    beneath = [(r.name, {c: _Tile(v, percent(v)) for c, v in r.values.items()}) for r in references]
    groups = [columns, (MEAN,)] if len(columns) > 1 else [columns]
    limits = limits or accuracy_limits(shown_accuracies(matrix, references))
    return _heatmap(label(matrix.method), row_title, groups, rows, beneath, "Blues", limits, "Accuracy (%)")


def gain_heatmap(matrix: Matrix, row_title: str = "Trained on", limits: Limits | None = None) -> Figure:
    """Gain over the base model; cells whose interval contains zero are grey. ``limits`` as in ``accuracy_heatmap``."""
    cells = {
        row: {c: v.gain_over_base for c, v in matrix.cells.get(row, {}).items() if v.gain_over_base}
        for row in matrix.rows
    }
    title = f"{label(matrix.method)} \N{MINUS SIGN} Base"
    return _differences(title, row_title, matrix, cells, "Gain (points)", limits)


def contrast_heatmap(contrast: ContrastMatrix, row_title: str = "Trained on", limits: Limits | None = None) -> Figure:
    """``b`` minus ``a``; cells whose interval contains zero are grey. ``limits`` as in ``accuracy_heatmap``."""
    return _differences(contrast_label(contrast), row_title, contrast, contrast.cells, "Difference (points)", limits)


def _differences(
    title: str,
    row_title: str,
    table: Matrix | ContrastMatrix,
    cells: Mapping[str, Mapping[str, PairedDifference]],
    scale: str,
    limits: Limits | None,
) -> Figure:
    rows = []
    for row in table.rows:
        tiles = {
            c: _Tile(d.value, percent(d.value, "+"), interval(d, "+"), d.is_inconclusive, on_diagonal(row, c))
            for c, d in ((c, cell.difference) for c, cell in cells.get(row, {}).items())
        }
        rows.append((label(row), tiles))
    groups = [table.columns] if table.columns else []
    groups += [(ALL,)] if any(ALL in tiles for _, tiles in rows) else []
    limits = limits or difference_limits([tile.value for _, tiles in rows for tile in tiles.values()])
    return _heatmap(title, row_title, groups, rows, (), "RdBu", limits, scale)


def _heatmap(
    title: str,
    row_title: str,
    groups: Sequence[Sequence[str]],
    rows: _Rows,
    beneath: _Rows,
    colours: str,
    limits: Limits,
    scale: str,
) -> Figure:
    """Draws a heatmap. The layout is in inches and follows the measured texts, so that long names do not overlap."""
    with figure_style():
        heads = {column: _wrap(label(column), 11, 3) for group in groups for column in group}
        upright = max(map(_width, heads.values())) > _CELL - 0.02
        if upright:
            heads = {column: _wrap(label(column), 28, 3) for column in heads}
        head_height = max(_width(head) if upright else _LINE * (1 + head.count("\n")) for head in heads.values())
        title, row_title = _wrap(title, 64, 3), _wrap(row_title, 20, 2)
        lines = [(_wrap(name, 22, 2), tiles, _ROW) for name, tiles in rows]
        lines += [(_wrap(name, 17, 2), tiles, _REFERENCE) for name, tiles in beneath]

        left = 2 * _PAD + max(_width(text) for text in (row_title, scale, *(name for name, _, _ in lines)))
        at = {c: left + i * _CELL for i, c in enumerate(groups[0])}
        at |= {c: left + i * _CELL + _GAP for group in groups[1:] for i, c in enumerate(group, len(at))}
        right_edge = max(at.values()) + _CELL
        # Wide enough for the numbers of the colour bar and for the title.
        bar = max(right_edge - left, 2 * _CELL)
        width = max(left + bar, _PAD + 1.15 * _width(title)) + 2 * _PAD
        top = 2 * _PAD + _LINE * (2.2 + title.count("\n")) + head_height
        bottom = top + sum(height for _, _, height in lines) + (_GAP if beneath else 0)
        height = bottom + 0.5

        figure = Figure(figsize=(width, height))
        page = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        page.set_axis_off()
        page.text(_PAD, _PAD, title, fontsize=7.5, fontweight="bold", va="top")
        page.text(
            (left + right_edge) / 2, top - head_height - 0.08, "Tested on", ha="center", va="bottom", style="italic"
        )
        page.text(left - _PAD, top - 0.05, row_title, ha="right", va="bottom", style="italic")
        for column, head in heads.items():
            middle = at[column] + _CELL / 2
            page.text(middle, top - 0.05, head, ha="center", va="bottom", rotation=90 if upright else 0)
        # Without the darkest tones, on which text is hard to read.
        tones = ListedColormap(mpl.colormaps[colours](np.linspace(0.12, 0.88, 256)))
        colouring = ScalarMappable(Normalize(*limits), tones)
        for i, (name, tiles, line_height) in enumerate(lines):
            if i == len(rows):
                top += _GAP
            page.text(left - _PAD, top + line_height / 2, name, ha="right", va="center")
            for column, x in at.items():
                _draw(page, x, top, line_height, tiles.get(column), colouring)
            top += line_height
        # In percent, like the cells.
        scale_axes = figure.add_axes((left / width, 1 - (bottom + 0.2) / height, bar / width, 0.08 / height))
        in_percent = ScalarMappable(Normalize(100 * limits[0], 100 * limits[1]), tones)
        figure.colorbar(in_percent, cax=scale_axes, orientation="horizontal", ticks=MaxNLocator(5, steps=[1, 2, 5, 10]))
        scale_axes.tick_params(labelsize=6, length=2, pad=1.5)
        page.text(left - _PAD, bottom + 0.16, scale, ha="right", va="center")
        return figure


def _draw(page: Axes, x: float, y: float, height: float, tile: _Tile | None, colouring: ScalarMappable) -> None:
    colour: Any = colouring.to_rgba(np.asarray(tile.value)) if tile and not tile.undecided else _EMPTY
    page.add_patch(Rectangle((x, y), _CELL, height, facecolor=colour, edgecolor="white", linewidth=0.8))
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    if tile is None:
        page.text(x + _CELL / 2, y + height / 2, "\N{EN DASH}", color=_UNDECIDED, **centred)
        return
    if tile.undecided:
        ink = _UNDECIDED
    else:  # Relative luminance, as the contrast of text is defined in WCAG 2.
        ink = "white" if np.dot(np.power(colour[:3], 2.2), (0.2126, 0.7152, 0.0722)) < 0.2 else "black"
    if tile.outlined:
        page.add_patch(Rectangle((x + 0.012, y + 0.012), _CELL - 0.024, height - 0.024, fill=False, linewidth=1.1))
    for text, at, size in ((tile.text, 0.36 if tile.small else 0.5, 7.5), (tile.small, 0.75, 4.8)):
        page.text(x + _CELL / 2, y + at * height, text, fontsize=size, color=ink, **centred)


def method_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each series. A method has the same in every figure, whatever it is compared with.

    Series with the colour of an earlier one, such as two settings of a method, get the next free colour.
    """
    with figure_style():
        palette = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    free = sorted(palette, key=lambda colour: colour in _METHOD_COLOURS.values())
    found: dict[str, str] = {}
    for name in names:
        own = _METHOD_COLOURS.get(re.split(r"[\s,:]", name.lower(), maxsplit=1)[0])
        if own is None or own in found.values():
            own = next((colour for colour in free if colour not in found.values()), free[len(found) % len(free)])
        found[name] = own
    return found


def overview(series: Mapping[str, Mapping[str, Estimate]], chance: Mapping[str, float]) -> Figure:
    """Grouped bars: accuracy of each series (base, methods) by column, with its interval; chance is a dashed line.

    ``chance``: by column, in the order of the bars.
    """
    columns, colours = list(chance), method_colours(series)
    with figure_style():
        figure, axes = _plot(len(columns), [*series, "Chance"])
        axes.set(ylabel="Accuracy (%)", ylim=(0, 100), xlim=(-0.6, len(columns) - 0.4))
        for i, (name, values) in enumerate(series.items()):
            x = [columns.index(column) + _offset(i, len(series), 0.82) for column in values]
            height, errors = _in_percent(list(values.values()))
            error = {"linewidth": 0.7, "ecolor": "#333333"}
            axes.bar(x, height, 0.74 / len(series), yerr=errors, label=name, error_kw=error, color=colours[name])
        heights, at = 100 * np.array(list(chance.values())), np.arange(len(columns))
        axes.hlines(heights, at - 0.45, at + 0.45, "black", "dashed", label="Chance", linewidth=0.8)
        _name_columns(figure, axes, columns)
        _legend(figure, [axes], [*series, "Chance"])
        return figure


def rates(series: Mapping[str, Sequence[tuple[str | float, Estimate]]], x_title: str, y_title: str) -> Figure:
    """Rates of several series with their intervals: lines with bands over numbers, points side by side over names."""
    places = list(dict.fromkeys(x for points in series.values() for x, _ in points))
    named, colours = any(isinstance(x, str) for x in places), method_colours(series)
    with figure_style():
        figure, axes = _plot(len(places) if named else 1, list(series))
        axes.grid(axis="y")
        for i, (name, points) in enumerate(series.items()):
            height, errors = _in_percent([estimate for _, estimate in points])
            marker: dict[str, Any] = {"marker": _MARKERS[i % len(_MARKERS)], "markersize": 3.5}
            marker |= {"label": name, "color": colours[name]}
            if named:
                x = [places.index(place) + _offset(i, len(series), 0.5) for place, _ in points]
                axes.errorbar(x, height, errors, linestyle="none", elinewidth=0.8, **marker)
            else:
                numbers = [float(place) for place, _ in points]
                (line,) = axes.plot(numbers, height, linewidth=1.0, **marker)
                band = height - errors[0], height + errors[1]
                axes.fill_between(numbers, *band, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set_ylim(0, min(axes.get_ylim()[1], 101))
        axes.set(xlabel=_wrap(x_title, 45, 2), ylabel=_wrap(f"{y_title} (%)", 32, 2))
        if named:
            axes.set_xlim(-0.6, len(places) - 0.4)
            _name_columns(figure, axes, [str(place) for place in places])
        _legend(figure, [axes], list(series))
        return figure


RELIABILITY = (
    "Reliability: accuracy of the most probable option against its probability (confidence), in 15 bins of equal "
    "width. Dashed: perfect calibration. Red: the distance from it; its mean over records is the expected calibration "
    "error (ECE). Area of a dot, and bars below: share of the records in the bin."
)


def reliability(calibrations: Mapping[str, Calibration]) -> Figure:
    """A panel for each model: accuracy against confidence in bins, over the share of records in each bin."""
    with figure_style():
        columns = min(4, len(calibrations))
        rows = -(-len(calibrations) // columns)
        figure = Figure((PAGE_WIDTH / 4 * columns, 2.3 * rows), layout="constrained")
        grid = figure.subplots(2 * rows, columns, sharex=True, squeeze=False, height_ratios=[3, 1] * rows)
        for unused in range(len(calibrations), rows * columns):
            for axes in grid[2 * (unused // columns) :, unused % columns][:2]:
                axes.set_axis_off()
        for place, (name, calibration) in enumerate(calibrations.items()):
            curve, histogram = grid[2 * (place // columns) :, place % columns][:2]
            bins = [b for b in calibration.bins if b.n]
            confidence, accuracy = (
                100 * np.array([getattr(b, key) for b in bins]) for key in ("confidence", "accuracy")
            )
            curve.plot((0, 100), (0, 100), linewidth=0.8, color="#777777", linestyle="--")
            curve.vlines(confidence, confidence, accuracy, linewidth=0.8, color="#B3341B")
            curve.plot(confidence, accuracy, linewidth=0.6)
            curve.scatter(confidence, accuracy, [3 + 60 * b.n / calibration.n for b in bins], zorder=3, clip_on=False)
            curve.set(xlim=(0, 100), ylim=(0, 103), title=_wrap(label(name), 24, 2))
            error = calibration.expected_calibration_error
            curve.text(4, 97, f"ECE {percent(error.value)}\n{interval(error)}", va="top", fontsize=6)
            low, heights = zip(*((100 * b.low, 100 * b.n / calibration.n) for b in calibration.bins), strict=True)
            histogram.bar(low, heights, width=100 / len(low), align="edge", linewidth=0.4, edgecolor="white")
            histogram.set(ylim=(0, 105), yticks=(0, 50, 100))
            if place % columns == 0:
                curve.set_ylabel("Accuracy (%)")
                histogram.set_ylabel("Records (%)")
            if place + columns >= len(calibrations):
                histogram.set_xlabel("Confidence (%)")
        return figure


def search_history(trials: Mapping[str, Mapping[int, float]], metric: str, *, maximize: bool) -> Figure:
    """The value of each trial of a search by its number, and as a line the best value so far. One series a search."""
    with figure_style():
        figure, axes = _plot(1, list(trials))
        axes.grid(axis="y")
        for i, (name, values) in enumerate(trials.items()):
            numbers, heights = list(values), list(values.values())
            (line,) = axes.step(numbers, list(accumulate(heights, max if maximize else min)), where="post", linewidth=1)
            axes.plot(numbers, heights, _MARKERS[i % len(_MARKERS)], markersize=3.5, color=line.get_color(), label=name)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set(xlabel="Trial", ylabel=_wrap(metric, 32, 2))
        if len(trials) > 1:
            _legend(figure, [axes], list(trials))
        return figure


@dataclass(frozen=True, slots=True)
class Curve:
    """The training metrics of one run: (step, value) by metric. ``maximum``: the highest reward, if known."""

    row: str
    method: str
    values: Mapping[str, Sequence[tuple[int, float]]]
    maximum: float | None = None


def curves(runs: Sequence[Curve]) -> Figure:
    """A panel for each method and metric of ``CURVES``, with a line for each row.

    Lines are running means of 5 values, drawn over the faint values. Dashed: the highest possible reward.
    """
    methods, rows = list(dict.fromkeys(r.method for r in runs)), list(dict.fromkeys(r.row for r in runs))
    with figure_style():
        height = 0.45 + 1.75 * len(methods) + 0.16 * _legend_shape(rows, PAGE_WIDTH)[1]
        figure = Figure((PAGE_WIDTH, height), layout="constrained")
        panels = figure.subplots(len(methods), len(CURVES), squeeze=False, sharex=True, sharey="col")
        cycle = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
        for run in runs:
            dash, color = divmod(rows.index(run.row), len(cycle))
            style: dict[str, Any] = {"color": cycle[color], "linestyle": _DASHES[dash % len(_DASHES)]}
            for panel, metric in zip(panels[methods.index(run.method)], CURVES, strict=True):
                steps, values = np.array(run.values.get(metric, ()), dtype=float).reshape(-1, 2).T
                _plot_smoothed(panel, steps, values, run.row, **style)
        for method, panel in zip(methods, panels[:, 0], strict=True):
            panel.set_title(_wrap(label(method), 50, 1))
            for maximum in {run.maximum for run in runs if run.method == method and run.maximum is not None}:
                _plot_maximum(panel, maximum)
        for name, of_metric in zip(CURVES.values(), panels.T, strict=True):
            for panel in of_metric:
                panel.set_ylabel(name)
                _begin_at_zero(panel)
            panel.set_xlabel("Step")
            panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _legend(figure, panels.flat, rows)
        return figure


def run_curves(values: Mapping[str, Sequence[tuple[int, float]]], maximum: float | None) -> Figure:
    """The curves of one run: rewards or loss, validation, completion length; panels without values are left out.

    Args:
        values: (step, value) by metric.
        maximum: the highest possible reward, drawn as a dashed line, if known.
    """
    rewards = [name for name in values if name.startswith("train/") and name.endswith("reward")]
    panels = {
        "Reward": [*sorted(rewards, key=lambda name: name != "train/reward")],
        "Loss (nats)": ["train/loss"],
        "Validation accuracy (%)": ["validation/accuracy", "validation/blank_image_accuracy"],
        "Completion length (tokens)": ["completion_length"],
    }
    drawn = {title: shown for title, names in panels.items() if (shown := [n for n in names if values.get(n)])}
    with figure_style():
        figure = Figure((max(PAGE_WIDTH * len(drawn) / 3, _COLUMN), 2.3), layout="constrained")
        for axes, (title, names) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True):
            percent_of = 100 if title.endswith("(%)") else 1
            for i, name in enumerate(names):
                steps, heights = np.array(values[name], dtype=float).T
                heights, line = percent_of * heights, _METRIC_NAMES.get(name, _metric_name(name))
                if len(heights) > 20:
                    _plot_smoothed(axes, steps, heights, line, color=f"C{i}")
                else:
                    axes.plot(steps, heights, linewidth=1.0, marker="o", markersize=3, label=line, color=f"C{i}")
            if title == "Reward" and maximum is not None:
                _plot_maximum(axes, maximum, "highest possible")
            _begin_at_zero(axes)
            axes.set(xlabel="Step", ylabel=title)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if len(names) > 1:
                axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1)
        return figure


_METRIC_NAMES = {
    "train/reward": "sum",
    "validation/accuracy": "own image",
    "validation/blank_image_accuracy": "blank image",
}


def _metric_name(metric: str) -> str:
    return metric.removeprefix("train/").removesuffix("_reward").replace("_", " ")


def _plot_smoothed(axes: Axes, steps: Any, values: Any, name: str, **style: Any) -> None:
    """The running mean of 5 values as a line, over the faint values."""
    axes.plot(steps, values, linewidth=0.5, alpha=0.15, **style)
    mean = [values[max(0, at - 2) : at + 3].mean() for at in range(len(values))]
    axes.plot(steps, mean, linewidth=1.0, label=name, **style)


def _plot_maximum(axes: Axes, reward: float, name: str | None = None) -> None:
    axes.axhline(reward, linestyle="--", linewidth=0.6, color="#777777", zorder=0, label=name)


def _begin_at_zero(axes: Axes) -> None:
    """Unless values are negative."""
    axes.set_ylim(min(0.0, axes.get_ylim()[0]))


def save_png(figure: Figure, file: Path) -> None:
    """Writes a figure as PNG (200 dpi). The same figure gives the same bytes."""
    with figure_style(), atomic_write(file) as target:
        figure.savefig(target, format="png", dpi=200, metadata={"Software": None})


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes ``name`` as SVG, PDF and PNG (200 dpi). The same figure gives the same bytes."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # used by matplotlib for PDF
    folder.mkdir(parents=True, exist_ok=True)
    without = {"svg": ("Date", "Creator"), "pdf": ("CreationDate", "Creator", "Producer"), "png": ("Software",)}
    with figure_style():
        for kind in FORMATS:
            with atomic_write(folder / f"{name}.{kind}") as target:
                figure.savefig(target, format=kind, dpi=200, metadata=dict.fromkeys(without[kind]))


@contextmanager
def figure_style() -> Iterator[None]:
    """The look of all figures."""
    with as_file(files("medr1.reporting") / "templates" / "figures.mplstyle") as path, mpl.rc_context(fname=path):
        yield


def _plot(places: int, names: Sequence[str]) -> tuple[Figure, Axes]:
    width = PAGE_WIDTH if places > 4 else _COLUMN
    figure = Figure((width, 2.35 + 0.16 * _legend_shape(names, width)[1]), layout="constrained")
    return figure, figure.add_subplot()


def _offset(i: int, n: int, width: float) -> float:
    """Position of series ``i`` of ``n`` within a group of this ``width``."""
    return (i - (n - 1) / 2) * width / n


def _in_percent(estimates: Sequence[Estimate]) -> tuple[Any, Any]:
    """Values [n] and distances to the ends of the intervals [2, n]."""
    value, low, high = 100 * np.array([(e.value, e.low, e.high) for e in estimates]).reshape(-1, 3).T
    # A bootstrap interval may exclude its value; bars cannot have negative lengths.
    return value, np.maximum([value - low, high - value], 0)


def _name_columns(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    """Labels the columns, horizontally if they fit, else vertically in a higher figure."""
    slot = 0.9 * figure.get_figwidth() / len(names)
    wrapped = [_wrap(label(name), max(int(slot / 0.068), 8), 3) for name in names]
    upright = max(map(_width, wrapped)) > slot - 0.04
    if upright:
        wrapped = [_wrap(label(name), 28, 1) for name in names]
        figure.set_figheight(figure.get_figheight() + max(map(_width, wrapped)))
    axes.set_xticks(range(len(names)), wrapped, rotation=90 if upright else 0)
    axes.tick_params(axis="x", length=0)


def _legend(figure: Figure, axes: Iterable[Axes], names: Sequence[str]) -> None:
    """One legend below all axes, in the order of ``names``."""
    # By hand, because matplotlib's own list leaves out names that begin with an underscore.
    drawn: Iterator[Any] = (artist for one in axes for artist in (*one.lines, *one.collections, *one.containers))
    handles = {artist.get_label(): artist for artist in drawn}
    labels = [_wrap(label(name), 48, 1) for name in names]
    columns = _legend_shape(names, figure.get_figwidth())[0]
    figure.legend([handles[name] for name in names], labels, loc="outside lower center", ncols=columns)


def _legend_shape(names: Sequence[str], width: float) -> tuple[int, int]:
    """Numbers of columns and lines of the legend."""
    fit = int((width - 0.2) / (max(_width(_wrap(label(name), 48, 1)) for name in names) + 0.5))
    lines = -(-len(names) // max(fit, 1))
    return -(-len(names) // lines), lines


def _wrap(text: str, width: int, lines: int) -> str:
    # Words of narrow labels are not broken; the label is rotated instead.
    wrapped = textwrap.wrap(text, width, max_lines=lines, placeholder="...", break_long_words=width > 16)
    return "\n".join(wrapped) or "-"


def _width(text: str) -> float:
    """Inches of the longest line."""
    return max(TextPath((0, 0), line, size=7).get_extents().width for line in text.split("\n")) / 72
