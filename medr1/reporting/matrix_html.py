"""The tables of a report as HTML: of each matrix, with its references beneath and links to runs, and of each contrast.

Every number carries data attributes (such as method, row, column and the value as a fraction) for scripts to check.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from statistics import fmean

from medr1.evaluation.predictions import Condition
from medr1.evaluation.tables import ALL, ContrastMatrix, Estimate, Matrix, TableCell, Versus
from medr1.reporting.figures import MEAN, Reference, columns_of, contrast_name, interval, label, on_diagonal, percent
from medr1.reporting.tables import ResultTable

# Name and meaning of each control, in the order of their rows.
CONTROLS = {
    Condition.BLANK_IMAGE: ("Empty picture", "the trained model sees an empty picture"),
    Condition.SHUFFLED_IMAGE: ("Another's picture", "the trained model sees the picture of another record"),
    Condition.OPTION_PRIOR: ("Option prior", "the option most often right in the training records of the row"),
    Condition.SURFACE_CUES: ("Surface cues", "the option that its typing gives away"),
}

Href = Callable[[str], str]  # run name -> address of the run


def references(matrix: Matrix) -> list[Reference]:
    """What a matrix is to be held against: base, controls and chance, each averaged over the rows.

    The option prior knows what its row was trained on, so it comes twice where there is a diagonal: on it and off it.
    """
    columns = columns_of(matrix)
    trained = set(matrix.rows) & set(columns)
    wanted: list[tuple[str, str, str, set[bool]]] = [("base", "base", "Base", set())]
    for control, (name, _) in CONTROLS.items():
        if control == Condition.OPTION_PRIOR and trained:
            wanted.append((f"{control}_same_row", control, f"{name} (same row)", {True}))
            wanted.append((f"{control}_other_rows", control, f"{name} (other rows)", {False}))
        else:
            wanted.append((control, control, name, set()))
    wanted.append(("chance", "chance", "Chance", set()))

    found = []
    for key, source, name, diagonal in wanted:
        values: dict[str, float] = {}
        # The column of all records mixes the diagonal with the rest.
        for column in columns if diagonal else dict.fromkeys((*columns, ALL)):
            rows = [row for row in matrix.rows if column in matrix.cells.get(row, {})]
            if diagonal:
                rows = [row for row in rows if row in trained and on_diagonal(row, column) in diagonal]
            numbers = [_beside(matrix.cells[row][column], source) for row in rows]
            if known := [number for number in numbers if number is not None]:
                values[column] = fmean(known)
        if values.keys() >= set(columns):
            values[MEAN] = fmean(values[column] for column in columns)
        if values:
            found.append(Reference(key, name, values))
    return found


def matrix_table(matrix: Matrix, row_title: str, href: Href) -> str:
    """Accuracy, interval and gain of each cell, with a link to each of its runs; the references; what generalizes."""
    columns = [*dict.fromkeys((*columns_of(matrix), ALL)), MEAN]
    n = {column: cell.n for cells in matrix.cells.values() for column, cell in cells.items()}
    heads = [f"{escape(label(c))}<small>n = {n[c]:,}</small>" if c in n else escape(label(c)) for c in columns]
    rows = []
    for row in matrix.rows:
        cells = {c: _cell(matrix.method, row, c, cell, href) for c, cell in matrix.cells.get(row, {}).items()}
        if mean := matrix.means.get(row):
            data = _data(method=matrix.method, row=row, column=MEAN, value=mean.value, low=mean.low, high=mean.high)
            cells[MEAN] = f"<td{data}>{percent(mean.value)}<small>{interval(mean)}</small></td>"
        rows.append((label(row), "", cells))
    for i, reference in enumerate(references(matrix)):
        cells = {}
        for column, value in reference.values.items():
            data = _data(method=matrix.method, reference=reference.key, column=column, value=value)
            cells[column] = f"<td{data}>{percent(value)}</td>"
        rows.append((reference.name, ' class="reference"' if i else ' class="reference first"', cells))
    note = (
        "In percent, with 95 % intervals. Third line: gain over the base in points, in parentheses where its interval "
        "contains zero. *: p below .05 after Holm's correction."
    )
    if set(matrix.rows) & set(matrix.columns):
        note += " Framed: tested on what it was trained on."
    if g := matrix.generalization:
        note += f" Mean of the diagonal: {_said(g.diagonal)}; off it: {_said(g.off_diagonal)}; gap: {_said(g.gap)}."
    title = f'<h3 id="matrix-{slug(matrix.method)}">{escape(label(matrix.method))}</h3>'
    return f'{title}{_grid(row_title, heads, columns, rows)}<p class="note">{note}</p>\n'


def contrast_table(contrast: ContrastMatrix, row_title: str) -> str:
    """Difference, interval and corrected p of each cell; a cell is struck through where its interval contains zero."""
    columns = list(dict.fromkeys((*columns_of(contrast), ALL)))
    rows = []
    for row in contrast.rows:
        cells = {}
        for column, versus in contrast.cells.get(row, {}).items():
            d = versus.difference
            names = [name for name, so in (("open", versus.open), ("diagonal", on_diagonal(row, column))) if so]
            data = _data(a=contrast.a, b=contrast.b, row=row, column=column, value=d.value, low=d.low, high=d.high)
            data += _data(p=versus.p, p_holm=versus.p_holm)
            numbers = f"<b>{percent(d.value, '+')}{_mark(versus)}</b><small>{interval(d, '+')}</small>"
            style = f' class="{" ".join(names)}"' if names else ""
            cells[column] = f"<td{style}{data}>{numbers}<small>{_p(versus)}</small></td>"
        rows.append((label(row), "", cells))
    note = (
        "In percentage points, with 95 % intervals and p after Holm's correction (*: below .05). Struck through: the "
        f"interval contains zero. Mean over rows and columns: {_said(contrast.overall, '+')}."
    )
    if contrast.gap:
        note += f" Difference of the generalization gaps: {_said(contrast.gap, '+')}."
    title = f'<h3 id="contrast-{slug(contrast.b)}-{slug(contrast.a)}">{escape(contrast_name(contrast))}</h3>'
    table = _grid(row_title, [escape(label(column)) for column in columns], columns, rows)
    return f'{title}{table}<p class="note">{note}</p>\n'


def result_table(title: str, table: ResultTable) -> str:
    """A table of texts with its notes; a row of one text is the title of a section."""
    rows = []
    for row in table.rows:
        if len(row) == 1:
            rows.append(f'<tr><th colspan="{len(table.titles)}">{escape(row[0])}</th></tr>')
        else:
            rows.append(f"<tr>{''.join(f'<td>{escape(value)}</td>' for value in row)}</tr>")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.titles)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return f"<h3>{escape(title)}</h3>{_scroll('plain', head, rows)}{notes}\n"


def slug(name: str) -> str:
    """For ids and file names."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _beside(cell: TableCell, source: str) -> float | None:
    return {"base": cell.base, "chance": cell.chance}.get(source, cell.controls.get(source))


def _cell(method: str, row: str, column: str, cell: TableCell, href: Href) -> str:
    accuracy, value = cell.accuracy, percent(cell.accuracy.value)
    links = [f'href="{escape(href(name))}" title="{escape(name)}"' for name in cell.runs]
    if len(links) == 1:
        text = f'<a class="value" {links[0]}>{value}</a>'
    else:
        seeds = "".join(f"<a {link}>{number}</a>" for number, link in enumerate(links, 1))
        text = f'<b>{value}</b><span class="seeds">{seeds}</span>'
    text += f"<small>{interval(accuracy)}</small>"
    data = _data(method=method, row=row, column=column, value=accuracy.value, low=accuracy.low, high=accuracy.high)
    data += _data(n=cell.n, images=cell.images, chance=cell.chance, base=cell.base)
    if gain := cell.gain:
        d = gain.difference
        data += _data(gain=d.value, gain_low=d.low, gain_high=d.high, p=gain.p, p_holm=gain.p_holm)
        shown = f"({percent(d.value, '+')})" if gain.open else percent(d.value, "+")
        text += f'<small title="{interval(d, "+")}, {_p(gain)}">{shown}{_mark(gain)}</small>'
    style = ' class="diagonal"' if on_diagonal(row, column) else ""
    return f"<td{style}{data}>{text}</td>"


def _grid(
    corner: str, heads: Sequence[str], columns: Sequence[str], rows: Sequence[tuple[str, str, Mapping[str, str]]]
) -> str:
    """``rows``: name, attributes of the row, ready cells by column."""
    head = "".join(f'<th scope="col">{name}</th>' for name in (escape(corner), *heads))
    lines = []
    for name, style, cells in rows:
        ready = "".join(cells.get(column, "<td>&ndash;</td>") for column in columns)
        lines.append(f'<tr{style}><th scope="row">{escape(name)}</th>{ready}</tr>')
    return _scroll("numbers", head, lines)


def _scroll(kind: str, head: str, rows: Sequence[str]) -> str:
    body = "\n".join(rows)
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>\n'


def _data(**values: str | float | None) -> str:
    """Attributes for scripts; numbers as they are, not rounded."""
    known = {name.replace("_", "-"): value for name, value in values.items() if value is not None}
    return "".join(f' data-{name}="{escape(str(value))}"' for name, value in known.items())


def _said(estimate: Estimate, sign: str = "") -> str:
    return f"{percent(estimate.value, sign)} {interval(estimate, sign)}"


def _mark(versus: Versus) -> str:
    return "*" if versus.p_holm < 0.05 else ""


def _p(versus: Versus) -> str:
    if versus.p_holm < 0.001:
        return "p &lt; .001"
    return f"p = {versus.p_holm:.3f}".replace("0.", ".") if versus.p_holm < 0.9995 else "p = 1"
