"""The report of a sweep: one self-contained HTML file, with its figures as files beside it."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain
from pathlib import Path
from statistics import fmean

from jinja2 import Environment
from matplotlib.figure import Figure
from PIL import Image

from medr1.atomic_write import write_text
from medr1.config.naming import distinct_names, short_hash
from medr1.domain.records import AXES
from medr1.errors import DataError
from medr1.evaluation.predictions import Condition
from medr1.evaluation.statistics import Estimate, wilson
from medr1.evaluation.sweep_tables import ALL, ContrastMatrix, Matrix, SweepTables
from medr1.reporting import figures as draw
from medr1.reporting import formatting
from medr1.reporting.pages import data_url, page_templates
from medr1.reporting.references import CONTROL_DESCRIPTIONS, name_bases, references
from medr1.reporting.result_table import ResultTable

Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]  # (step, value) by run name and metric
_LONGEST_SLUG = 80  # two of them and a suffix are a file name
_UNDECIDED = (
    "Grey: the interval contains zero, or is a point, because too few images differ. Blue is better, red is worse."
)


@dataclass(frozen=True, slots=True)
class RunLink:
    """One run of the sweep.

    ``state`` is finished, failed, interrupted or waiting. ``directory`` is shown as text, ``page`` is the run's page on
    an MLflow server that others can reach, or empty, ``error`` the log of a failed run or empty.
    """

    name: str
    axes: Mapping[str, str]
    state: str
    seconds: float | None
    directory: str
    page: str = ""
    error: str = ""


class Verdict(StrEnum):
    """Whether a claim is true. The values are also CSS classes."""

    TRUE = "true"
    FALSE = "false"
    NEUTRAL = "neutral"


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text; the text is the concatenation of its spans."""

    text: str
    verdict: Verdict = Verdict.NEUTRAL


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """One example: the image, the completion, and a caption with question and answer."""

    image: Image.Image
    spans: Sequence[Span]
    caption: str

    @property
    def source(self) -> str:
        stored = io.BytesIO()
        self.image.save(stored, "PNG")
        return data_url("image/png", stored.getvalue())


@dataclass(frozen=True, slots=True)
class SectionFigure:
    """``name`` is the name of its files and unique in the report."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """An additional section of a report. ``tables``: title and table."""

    title: str
    paragraphs: Sequence[str] = ()
    figures: Sequence[SectionFigure] = ()
    tables: Sequence[tuple[str, ResultTable]] = ()
    gallery: Sequence[GalleryItem] = ()


def write_report(
    folder: Path,
    *,
    title: str,
    command: str,
    tables: SweepTables,
    verdict: Sequence[str],
    findings: Sequence[str],
    conditions: Mapping[str, str],
    runs: Sequence[RunLink],
    curves: Curves,
    max_rewards: Mapping[str, float | None],
    sections: Sequence[Section] = (),
    facts: Mapping[str, str],
) -> Path:
    """Writes ``folder/report.html`` and ``folder/figures``; returns the path of the report.

    Args:
        verdict: the sentences of the first screen. findings: all of them.
        conditions: what the runs have in common or differ in, such as model and data, for the first screen.
        curves: metrics of the runs; those of ``figures.CURVES`` are drawn. max_rewards: by run, None if not known.
        facts: additional facts for reproduction, such as versions, commit and data fingerprint.

    Raises:
        DataError: a cell of a table names a run that is not in ``runs``, or two figures have the same name.
    """
    anchors = {run.name: f"run-{place}" for place, run in enumerate(runs)}

    def anchor(name: str) -> str:
        if name not in anchors:
            raise DataError(f"run {name!r} of the tables is not among the {len(runs)} runs of the report")
        return anchors[name]

    drawn: set[str] = set()

    def draw_all(figures: Sequence[SectionFigure]) -> list[dict[str, object]]:
        """Saves the figures. The page embeds them as images, because the ids of inline SVGs could collide."""
        sources = []
        for figure in figures:
            if figure.name in drawn:
                raise DataError(f"two figures of the report have the name {figure.name!r}")
            drawn.add(figure.name)
            draw.save(figure.figure, folder / "figures", figure.name)
            svg = (folder / "figures" / f"{figure.name}.svg").read_bytes()
            width = round(130 * figure.figure.get_figwidth())  # a third larger than in print
            source = data_url("image/svg+xml", svg)
            sources.append({"figure": figure, "number": len(drawn), "source": source, "width": width})
        return sources

    html = (
        _templates()
        .get_template("report.html")
        .render(
            title=title,
            command=command,
            tables=tables,
            verdict=verdict,
            findings=findings,
            conditions=conditions,
            runs=runs,
            axes=list(dict.fromkeys(axis for run in runs for axis in run.axes)),
            figures=draw_all(_figures(tables)),
            curves=draw_all(_curves(tables, curves, max_rewards)),
            sections=[(section, draw_all(section.figures)) for section in sections],
            facts=_facts(tables) | dict(facts),
            records=max(
                (cell.n for m in tables.matrices for row in m.cells.values() for cell in row.values()), default=0
            ),
            anchor=anchor,
        )
    )
    write_text(folder / "report.html", html)
    return folder / "report.html"


def _templates() -> Environment:
    environment = page_templates()
    text = formatting
    filters = (text.label, text.axis_label, text.contrast_label, text.percent, text.interval, text.with_interval)
    environment.filters |= {function.__name__: function for function in (*filters, text.p_text, slug, duration)}
    environment.globals |= {"row_title": _row_title, "references": references, "on_diagonal": text.on_diagonal}
    environment.globals |= {"sizes": _sizes, "is_square": _is_square, "formats": draw.FORMATS}
    environment.globals |= {"ALL": ALL, "MEAN": text.MEAN}
    return environment


def slug(name: str) -> str:
    """A name as an HTML id or file name. A long one, such as the path of a model, ends with a hash."""
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return found if len(found) <= _LONGEST_SLUG else f"{found[: _LONGEST_SLUG - 9]}-{short_hash(name)}"


def _figures(tables: SweepTables) -> list[SectionFigure]:
    figures = [_overview(tables)] if tables.matrices else []
    sides = [side for contrast in tables.contrasts for side in (contrast.a, contrast.b)]
    file_name = distinct_names([*(matrix.method for matrix in tables.matrices), *sides], slug)
    # One scale for all figures of a kind, so that colours can be compared.
    shown = [draw.shown_accuracies(matrix, references(matrix)) for matrix in tables.matrices]
    accuracies = draw.accuracy_limits([*chain.from_iterable(shown)])
    gains = draw.difference_limits([*chain.from_iterable(map(draw.shown_gains, tables.matrices))])
    contrasted = [cell for contrast in tables.contrasts for of in contrast.cells.values() for cell in of.values()]
    differences = draw.difference_limits([cell.difference.value for cell in contrasted])
    for matrix in tables.matrices:
        name, beneath, row_title = formatting.label(matrix.method), references(matrix), _row_title(tables)
        caption = (
            f"{name}: accuracy in percent with its 95 % interval. Mean: over the columns with equal weight. Beneath: "
            "base, controls and chance, averaged over the rows."
        )
        if _is_square(matrix):
            caption += " Outlined: tested on the training data's own modality or question type."
        for control, description in CONTROL_DESCRIPTIONS.items():
            if any(reference.key.startswith(control) for reference in beneath):
                caption += f" {formatting.label(control)}: {description}."
        heatmap = draw.accuracy_heatmap(matrix, beneath, row_title, accuracies)
        figures.append(SectionFigure(f"accuracy-{file_name[matrix.method]}", heatmap, caption))
        if any(cell.gain_over_base for row in matrix.cells.values() for cell in row.values()):
            caption = f"{name}: gain over the base in percentage points, with its 95 % interval. {_UNDECIDED}"
            heatmap = draw.gain_heatmap(matrix, row_title, gains)
            figures.append(SectionFigure(f"gain-{file_name[matrix.method]}", heatmap, caption))
    for contrast in tables.contrasts:
        caption = (
            f"{formatting.contrast_label(contrast)}: difference in percentage points on the same records. {_UNDECIDED}"
        )
        heatmap = draw.contrast_heatmap(contrast, _row_title(tables, contrast), differences)
        figures.append(SectionFigure(f"contrast-{file_name[contrast.b]}-{file_name[contrast.a]}", heatmap, caption))
    return figures


def _row_title(tables: SweepTables, contrast: ContrastMatrix | None = None) -> str:
    """The title of the rows of a matrix or contrast."""
    if contrast and contrast.a.startswith(f"{contrast.rows[0]}: "):
        return "Method"
    return formatting.row_title(tables.row_axis)


def _is_square(matrix: Matrix) -> bool:
    return bool(set(matrix.rows) & set(matrix.columns))


def _sizes(matrix: Matrix) -> dict[str, int]:
    """Number of test records by column."""
    return {column: cell.n for cells in matrix.cells.values() for column, cell in cells.items()}


def _overview(tables: SweepTables) -> SectionFigure:
    """Methods, averaged over their training data; each row separately if rows are training settings."""
    bars: dict[str, dict[str, list[Estimate]]] = {}
    bases: dict[str, dict[str, list[Estimate]]] = {}
    chance: dict[str, float] = {}
    for matrix in tables.matrices:
        for row, cells in matrix.cells.items():
            name = row if len(tables.matrices) == 1 else f"{matrix.method}, {row}"
            bar = matrix.method if tables.row_axis in AXES else name
            of_name = bars.setdefault(bar, {})
            for column in (c for c in (*matrix.columns, ALL) if c in cells):
                cell = cells[column]
                chance[column] = cell.chance
                of_name.setdefault(column, []).append(cell.accuracy)
                if cell.base is not None:
                    base = replace(wilson(cell.base, cell.effective_n[Condition.BASE]), value=round(cell.base, 9))
                    bases.setdefault(bar, {}).setdefault(column, []).append(base)
    means, of_base = ({name: _means(of_bar) for name, of_bar in found.items()} for found in (bars, bases))
    named = name_bases({(ALL, bar): found for bar, found in of_base.items()})
    series = {name.replace(Condition.BASE, "Base", 1): found for (_, name), found in named.items()} | means
    caption = (
        "Accuracy by column with 95 % intervals. For bars of several rows, value and interval ends are averages; such "
        "an interval is at least as wide as that of the average. Dashed: chance."
    )
    return SectionFigure("overview", draw.overview(series, chance), caption)


def _means(estimates: Mapping[str, Sequence[Estimate]]) -> dict[str, Estimate]:
    """The mean of each column, rounded so that equal means of other numbers of runs are equal."""
    ends = ("value", "low", "high")
    return {
        c: Estimate(*(round(fmean(getattr(e, end) for e in found), 9) for end in ends))
        for c, found in estimates.items()
    }


def _curves(tables: SweepTables, curves: Curves, max_rewards: Mapping[str, float | None]) -> list[SectionFigure]:
    """Training curves of the runs in the matrices that logged a reward, averaged over seeds."""
    reward, *_ = draw.CURVES
    lines = []
    for matrix in tables.matrices:
        for row, cells in matrix.cells.items():
            names = dict.fromkeys(name for cell in cells.values() for name in cell.runs)
            seeds = [curves[name] for name in names if reward in curves.get(name, {})]
            values = {metric: _average([seed.get(metric, ()) for seed in seeds]) for metric in draw.CURVES}
            maxima = [value for name in names if (value := max_rewards.get(name)) is not None]
            lines += [draw.Curve(row, matrix.method, values, max(maxima, default=None))] if seeds else []
    caption = (
        "Reward and completion length during training, averaged over seeds. Lines: running mean of 5 values, drawn "
        "over the values. Dashed: the highest possible reward, where it is known."
    )
    return [SectionFigure("curves", draw.curves(lines), caption)] if lines else []


def _average(seeds: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Mean by step over the seeds that logged a value."""
    by_step: dict[int, list[float]] = {}
    for step, value in (point for points in seeds for point in points):
        by_step.setdefault(step, []).append(value)
    return [(step, fmean(values)) for step, values in sorted(by_step.items())]


def _facts(tables: SweepTables) -> dict[str, str]:
    several = len(tables.seeds) > 1
    bootstrap = f"bootstrap over {tables.cluster_unit}{' and seeds' if several else ''}"
    return {
        "seeds": ", ".join(tables.seeds) or "one",
        "intervals": f"95 %; accuracy: Wilson{f' for one seed, {bootstrap} for several' if several else ''}; "
        f"means and differences: {bootstrap}",
        "p-values": f"exact McNemar test{', twice the median over the seeds' if several else ''}; "
        "Holm's correction over the cells of a table, and separately over its column of all records",
    }


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "\N{EN DASH}"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
