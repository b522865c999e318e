"""The report of a sweep: one HTML file that needs nothing else, and its figures beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from string import Template
from urllib.parse import quote

from matplotlib.figure import Figure
from PIL import Image

from medr1.atomic_write import write_text
from medr1.errors import DataError
from medr1.evaluation.statistics import wilson
from medr1.evaluation.tables import ALL, ContrastMatrix, Estimate, SweepTables
from medr1.reporting import figures as draw
from medr1.reporting.report_tables import CONTROLS, contrast_table, matrix_table, references, result_table, slug
from medr1.reporting.tables import ResultTable

Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]  # (step, value) by run name and metric
_DATA_AXES = ("modality", "question_type")  # rows that say what was trained on, not how
_OPEN = "Struck through: the interval contains zero, so that the sign is open. Blue is better, red is worse."


@dataclass(frozen=True, slots=True)
class RunLink:
    """One run of the sweep.

    ``state`` is finished, failed, interrupted or waiting; ``directory`` is relative to the report; ``page`` is the
    run's page in MLflow, or empty; ``error`` is the traceback of a failed run, or empty.
    """

    name: str
    axes: Mapping[str, str]
    state: str
    seconds: float | None
    directory: str
    page: str = ""
    error: str = ""


class Verdict(StrEnum):
    """Whether a claim is true."""

    RIGHT = "right"
    WRONG = "wrong"
    NEUTRAL = "neutral"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a text; the pieces joined are the text."""

    text: str
    verdict: Verdict = Verdict.NEUTRAL


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """One example: its picture, what a model said about it, and what a reader must know to judge that."""

    image: Image.Image
    pieces: Sequence[Piece]
    caption: str


@dataclass(frozen=True, slots=True)
class SectionFigure:
    """``name`` is that of its files and differs from all others of the report."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """A further chapter of a report. ``tables``: title and table."""

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
    runs: Sequence[RunLink],
    curves: Curves,
    sections: Sequence[Section] = (),
    facts: Mapping[str, str],
) -> Path:
    """Writes ``folder/report.html`` and ``folder/figures``; returns the path of the report.

    Args:
        curves: those of ``figures.CURVES`` are drawn.
        facts: what else one must know to repeat the sweep, such as versions, commit and data fingerprint.

    Raises:
        DataError: a cell of a table names a run that ``runs`` does not have, or two figures have one name.
    """
    page = _Page(folder, tables, {run.name: run for run in runs})
    chapters = [
        ("Figures", "".join(_figures(page))),
        ("Accuracy", "".join(matrix_table(matrix, page.row_title(), page.href) for matrix in tables.matrices)),
        ("Contrasts", "".join(contrast_table(contrast, page.row_title(contrast)) for contrast in tables.contrasts)),
        ("Training curves", _curves(page, curves)),
        *((section.title, _section(page, section)) for section in sections),
        ("Runs", _runs(runs)),
        ("How this was made", _facts(command, tables, facts)),
    ]
    parts = [(f"part-{i}-{slug(name)}", escape(name), html) for i, (name, html) in enumerate(chapters) if html]
    finished = sum(run.state == "finished" for run in runs)
    records = max((cell.n for m in tables.matrices for row in m.cells.values() for cell in row.values()), default=0)
    trained = " trained on" if tables.row_axis in _DATA_AXES else ""
    rows, columns = _axis(tables.row_axis), _axis(tables.column_axis)
    lead = (
        f"Rows: {rows}{trained}. Columns: {columns} tested on, {records:,} questions. {finished} of {len(runs)} runs "
        "have finished. Every accuracy links to the run that it comes from."
    )
    findings = "".join(f"<li>{escape(sentence)}</li>" for sentence in tables.findings)
    html = Template((files("medr1.reporting") / "templates" / "report.html").read_text("utf-8")).substitute(
        title=escape(title),
        lead=escape(lead),
        findings=findings or "<li>None yet.</li>",
        contents=" ".join(f'<a href="#{anchor}">{name}</a>' for anchor, name, _ in parts),
        body="\n".join(f'<section><h2 id="{anchor}">{name}</h2>\n{html}</section>' for anchor, name, html in parts),
    )
    path = folder / "report.html"
    write_text(path, html)
    return path


@dataclass(frozen=True, slots=True)
class _Page:
    folder: Path
    tables: SweepTables
    runs: Mapping[str, RunLink]
    names: list[str] = field(default_factory=list)  # of the figures so far

    def figure(self, name: str, figure: Figure, caption: str) -> str:
        """Saves the figure and embeds it as a picture, so that the ids of several drawings cannot meet."""
        if name in self.names:
            raise DataError(f"two figures of the report are called {name!r}; give each a name of its own")
        self.names.append(name)
        draw.save(figure, self.folder / "figures", name)
        drawing = base64.b64encode((self.folder / "figures" / f"{name}.svg").read_bytes()).decode()
        width = round(130 * figure.get_figwidth())  # a third larger than on paper
        saved = " ".join(f'<a href="figures/{quote(name)}.{kind}">{kind.upper()}</a>' for kind in draw.FORMATS)
        return (
            f'<figure id="figure-{slug(name)}"><img width="{width}" src="data:image/svg+xml;base64,{drawing}" '
            f'alt="{escape(caption)}">\n<figcaption><b>Figure {len(self.names)}.</b> {escape(caption)} {saved}'
            "</figcaption></figure>\n"
        )

    def row_title(self, contrast: ContrastMatrix | None = None) -> str:
        """What the rows of a matrix, or of a contrast, are."""
        if contrast and contrast.a.startswith(f"{contrast.rows[0]}: "):
            return "Method"
        return "Trained on" if self.tables.row_axis in _DATA_AXES else _axis(self.tables.row_axis).capitalize()

    def href(self, name: str) -> str:
        """The run's page in MLflow, or its directory."""
        if name not in self.runs:
            raise DataError(f"the tables name run {name!r}, which is not among the {len(self.runs)} runs of the report")
        return self.runs[name].page or quote(self.runs[name].directory)


def _figures(page: _Page) -> Iterator[str]:
    tables = page.tables
    if tables.matrices:
        yield page.figure("overview", *_overview(tables))
    for matrix in tables.matrices:
        name, beneath = draw.label(matrix.method), references(matrix)
        caption = (
            f"{name}: accuracy in percent with its 95 % interval. Mean: of the columns with equal weight. Beneath, "
            "averaged over the rows: base, controls and a guess."
        )
        if set(matrix.rows) & set(matrix.columns):
            caption += " Outlined: tested on what it was trained on."
        for control, (of_control, meaning) in CONTROLS.items():
            if any(reference.key.startswith(control) for reference in beneath):
                caption += f" {of_control}: {meaning}."
        figure = draw.accuracy_heatmap(matrix, beneath, page.row_title())
        yield page.figure(f"accuracy-{slug(matrix.method)}", figure, caption)
        if any(cell.gain for row in matrix.cells.values() for cell in row.values()):
            caption = f"{name}: gain over the base in percentage points, with its 95 % interval. {_OPEN}"
            yield page.figure(f"gain-{slug(matrix.method)}", draw.gain_heatmap(matrix, page.row_title()), caption)
    for contrast in tables.contrasts:
        figure = draw.contrast_heatmap(contrast, page.row_title(contrast))
        caption = f"{draw.contrast_name(contrast)}: difference in percentage points on the same records. {_OPEN}"
        yield page.figure(f"contrast-{slug(contrast.b)}-{slug(contrast.a)}", figure, caption)


def _overview(tables: SweepTables) -> tuple[Figure, str]:
    """Methods averaged over what they were trained on; where rows are no data, every row by itself."""
    found: dict[str, dict[str, list[Estimate]]] = {"Base": {}}
    chance: dict[str, float] = {}
    for matrix in tables.matrices:
        for row, cells in matrix.cells.items():
            name = row if len(tables.matrices) == 1 else f"{matrix.method}, {row}"
            of_name = found.setdefault(matrix.method if tables.row_axis in _DATA_AXES else name, {})
            for column in dict.fromkeys((*draw.columns_of(matrix), ALL)):
                if cell := cells.get(column):
                    chance[column] = cell.chance
                    of_name.setdefault(column, []).append(cell.accuracy)
                    if cell.base is not None:
                        # The base may be asked in each row's own way, such as its reasoning mode.
                        ends = wilson(round(cell.base * cell.n), cell.n)
                        found["Base"].setdefault(column, []).append(Estimate(cell.base, *ends))
    series = {name: {c: _mean(estimates) for c, estimates in of.items()} for name, of in found.items() if of}
    caption = (
        "Accuracy by column. Lines on the bars: 95 % intervals. Where a bar stands for several rows, value and ends "
        "are averages, at least as wide as an interval for the average. Dashed: a guess among the options."
    )
    return draw.overview(series, chance), caption


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    return Estimate(*(fmean(getattr(e, end) for e in estimates) for end in ("value", "low", "high")))


def _curves(page: _Page, curves: Curves) -> str:
    """Of the runs that stand in a matrix and that were rewarded; seeds are averaged step by step."""
    reward, *_ = draw.CURVES
    lines = []
    for matrix in page.tables.matrices:
        for row, cells in matrix.cells.items():
            names = dict.fromkeys(name for cell in cells.values() for name in cell.runs)
            seeds = [curves[name] for name in names if reward in curves.get(name, {})]
            values = {metric: _average([seed.get(metric, ()) for seed in seeds]) for metric in draw.CURVES}
            lines += [draw.Curve(row, matrix.method, values)] if seeds else []
    caption = "Reward and completion length while training, averaged over seeds. Lines: running mean of 5 values; "
    caption += "behind them the values themselves."
    return page.figure("curves", draw.curves(lines), caption) if lines else ""


def _average(seeds: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Mean of the seeds that logged a value, by step."""
    by_step: dict[int, list[float]] = {}
    for step, value in (point for points in seeds for point in points):
        by_step.setdefault(step, []).append(value)
    return [(step, fmean(values)) for step, values in sorted(by_step.items())]


def _section(page: _Page, section: Section) -> str:
    parts = [f"<p>{escape(text)}</p>\n" for text in section.paragraphs]
    parts += [page.figure(figure.name, figure.figure, figure.caption) for figure in section.figures]
    parts += [result_table(title, table) for title, table in section.tables]
    if section.gallery:
        parts.append(f'<div class="gallery">{"".join(map(_example, section.gallery))}</div>\n')
    return "".join(parts)


def _example(item: GalleryItem) -> str:
    stored = io.BytesIO()
    item.image.save(stored, "PNG")
    picture = base64.b64encode(stored.getvalue()).decode()
    # A mark besides the colour, for readers who see no colours and for paper.
    marks = {Verdict.RIGHT: "&#10003;", Verdict.WRONG: "&#10007;"}
    said = ""
    for piece in item.pieces:
        mark = f'<sup title="{piece.verdict}">{marks[piece.verdict]}</sup>' if piece.verdict in marks else ""
        said += f'<span class="{piece.verdict}">{escape(piece.text)}{mark}</span>'
    return (
        f'<figure><img src="data:image/png;base64,{picture}" alt="{escape(item.caption)}"><figcaption>'
        f'<p class="said">{said}</p><p>{escape(item.caption)}</p></figcaption></figure>'
    )


def _runs(runs: Sequence[RunLink]) -> str:
    axes = list(dict.fromkeys(axis for run in runs for axis in run.axes))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("Run", *map(_axis, axes), "State", "Time", "Files"))
    rows = []
    for i, run in enumerate(runs):
        values = "".join(f"<td>{escape(run.axes.get(axis, ''))}</td>" for axis in axes)
        links = f'<a href="{quote(run.directory)}">directory</a>'
        links += f' <a href="{escape(run.page)}">MLflow</a>' if run.page else ""
        rows.append(
            f'<tr id="run-{i}"><td>{escape(run.name)}</td>{values}<td class="state-{slug(run.state)}">'
            f"{escape(run.state)}</td><td>{_time(run.seconds)}</td><td>{links}</td></tr>"
        )
        if run.error:
            details = f"<details><summary>Why it failed</summary><pre>{escape(run.error)}</pre></details>"
            rows.append(f'<tr><td colspan="{len(axes) + 4}">{details}</td></tr>')
    body = "\n".join(rows)
    table = f'<table class="runs"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>\n' if runs else ""


def _facts(command: str, tables: SweepTables, facts: Mapping[str, str]) -> str:
    several = len(tables.seeds) > 1
    bootstrap = f"bootstrap over images{' and seeds' if several else ''}"
    shown = {
        "seeds": ", ".join(tables.seeds) or "one",
        "intervals": f"95 %; accuracy: {bootstrap if several else 'Wilson'}; means and differences: {bootstrap}",
        "p-values": f"exact McNemar test{', twice the median over the seeds' if several else ''}; "
        "Holm's correction over the cells of a table, and over its rows for all records",
        **facts,
    }
    rows = "\n".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in shown.items())
    return f'<pre>{escape(command)}</pre>\n<table class="facts"><tbody>{rows}</tbody></table>\n'


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "&ndash;"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _axis(name: str) -> str:
    """An axis such as ``data.shortcut`` in words."""
    return name.rpartition(".")[2].replace("_", " ")
