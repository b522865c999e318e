"""The report: every number is the one given, every link leads somewhere, nothing comes from elsewhere or breaks out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from medr1.errors import DataError
from medr1.evaluation.predictions import Condition
from medr1.evaluation.statistics import Estimate, PairedDifference
from medr1.evaluation.sweep_tables import ALL, ContrastMatrix, Generalization, Matrix, SweepTables, TableCell
from medr1.reporting.references import references
from medr1.reporting.report import (
    GalleryItem,
    RunLink,
    Section,
    SectionFigure,
    Span,
    Verdict,
    slug,
    write_report,
)
from medr1.reporting.result_table import ResultTable

VOID = {"meta", "img", "br", "link", "input"}
MINUS = "\N{MINUS SIGN}"


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: str = ""
    links: list[str] = field(default_factory=list)


class Page(HTMLParser):
    """All elements, each with the text and the links within it; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.stack: list[Element] = []
        self.feed(html)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        assert len(element.attributes) == len(attrs), f"an attribute twice: {attrs}"
        self.elements.append(element)
        if tag not in VOID:
            self.stack.append(element)
        for outer in self.stack:
            outer.links += [element.attributes["href"]] if "href" in element.attributes else []

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for outer in self.stack:
            outer.text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
        return [e for e in self.elements if e.tag == tag and wanted.items() <= e.attributes.items()]

    def one(self, tag: str, **attributes: str) -> Element:
        (found,) = self.all(tag, **attributes)
        return found


def estimate(value: float, half: float = 0.04) -> Estimate:
    return Estimate(value, value - half, value + half)


def matrix(method: str = "grpo", seeds: int = 1, rows: Sequence[str] = ("ct", "mri")) -> Matrix:
    """Two columns; accuracy .601 + .1 * row - .03 * column, gain .2 on the diagonal and .01 elsewhere."""
    cells: dict[str, dict[str, TableCell]] = {}
    for i, row in enumerate(rows):
        for j, column in enumerate(("ct", "mri", ALL)):
            gain = PairedDifference(
                estimate(0.2 if row == column else 0.01), p=0.01, p_holm=0.02 if row == column else 0.3
            )
            controls = {
                Condition.BLANK_IMAGE: 0.3 + 0.1 * i,
                Condition.OPTION_PRIOR: 0.9 if row == column else 0.2 + 0.1 * i,
            }
            names = tuple(f"{method}-{row}-{seed}" for seed in range(seeds))
            accuracy = estimate(0.601 + 0.1 * i - 0.03 * j)
            cells.setdefault(row, {})[column] = TableCell(
                1200,
                100,
                names,
                accuracy,
                0.25,
                0.4,
                gain,
                controls,
                {c: estimate(0.1) for c in controls},
                dict.fromkeys(["base", *controls], 1200),
            )
    means = {row: estimate(0.5512) for row in rows}
    return Matrix(
        method, tuple(rows), ("ct", "mri"), cells, means, Generalization(estimate(0.7), estimate(0.5), estimate(0.2))
    )


def contrast() -> ContrastMatrix:
    cells = {
        "ct": {
            "ct": PairedDifference(Estimate(0.05, 0.001, 0.1), 0.01, 0.04),
            "mri": PairedDifference(Estimate(-0.05, -0.1, 0.0), 0.06, 0.12),
        },
        "mri": {
            "ct": PairedDifference(Estimate(-0.2, -0.3, -0.1), 1e-9, 4e-9),
            "mri": PairedDifference(Estimate(0.0, 0.0, 0.0), 1.0, 1.0),
        },
    }
    gaps = Generalization(estimate(0.0), estimate(0.034), estimate(-0.034))
    return ContrastMatrix("sft", "grpo", ("ct", "mri"), ("ct", "mri"), cells, estimate(0.012), gaps)


def tables(*matrices: Matrix, contrasts: Sequence[ContrastMatrix] = ()) -> SweepTables:
    return SweepTables("modality", "modality", ("0", "1"), matrices, tuple(contrasts))


def links(t: SweepTables) -> list[RunLink]:
    names = dict.fromkeys(n for m in t.matrices for row in m.cells.values() for cell in row.values() for n in cell.runs)
    return [RunLink(name, {"modality": name.split("-")[1]}, "finished", 75.2, f"../runs/{name}") for name in names]


def report(
    folder: Path, t: SweepTables, runs: Sequence[RunLink] | None = None, real: bool = False, **more: object
) -> Page:
    """``real=False``: figures are made, but the files are not theirs, which would take seconds."""
    arguments: dict[str, object] = {"title": "A sweep", "command": "python train.py", "findings": ()} | more
    arguments = {"curves": {}, "facts": {}, "verdict": (), "conditions": {}, "max_rewards": {}} | arguments
    with pytest.MonkeyPatch.context() as patch:
        if not real:
            patch.setattr("medr1.reporting.figures.save", lambda _, folder, name: stand_in(folder / f"{name}.svg"))
        path = write_report(folder, tables=t, runs=links(t) if runs is None else runs, **arguments)  # type: ignore[arg-type]
    assert path == folder / "report.html"
    return Page(path.read_text("utf-8"))


def stand_in(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("<svg/>")


def points(fraction: float, sign: str = "") -> str:
    return f"{100 * fraction:{sign}.1f}".replace("-", MINUS)


def test_every_number_of_a_matrix_is_that_of_its_cell_and_links_to_its_run(tmp_path: Path) -> None:
    t = tables(matrix("sft"), matrix("grpo"))
    runs = [replace(run, page=f"http://server:5000/#/{run.name}") if "sft" in run.name else run for run in links(t)]
    page = report(tmp_path, t, runs)
    for m in t.matrices:
        for row, cells in m.cells.items():
            for column, cell in cells.items():
                td = page.one("td", data_method=m.method, data_row=row, data_column=column)
                a, gain = cell.accuracy, cell.gain_over_base
                assert gain
                shown = points(gain.difference.value, "+")
                shown = f"{shown}*" if row == column else f"({shown})"
                assert td.text == f"{points(a.value)}[{points(a.low)}, {points(a.high)}]{shown}"
                assert float(td.attributes["data-value"]) == a.value
                assert float(td.attributes["data-gain-low"]) == gain.difference.low
                (run,) = [run for run in runs if run.name == cell.runs[0]]
                (anchor,) = td.links
                of_run = page.one("tr", id=anchor.removeprefix("#"))
                assert run.name in of_run.text and run.directory in of_run.text
                assert of_run.links == ([run.page] if run.page else [])
                assert ("diagonal" in td.attributes.get("class", "")) == (row == column)
            mean = page.one("td", data_method=m.method, data_row=row, data_column="mean")
            assert mean.text == "55.1[51.1, 59.1]"


def test_several_seeds_have_a_link_each(tmp_path: Path) -> None:
    page = report(tmp_path, tables(matrix(seeds=3)))
    td = page.one("td", data_row="ct", data_column="mri")
    assert len(td.links) == 3
    for seed, link in enumerate(td.links):
        assert page.one("tr", id=link.removeprefix("#")).text.startswith(f"grpo-ct-{seed}")
    assert td.text.startswith("57.1123[")


def test_controls_are_rows_beneath_the_matrix(tmp_path: Path) -> None:
    page = report(tmp_path, tables(matrix()))
    shown = {
        reference: [page.one("td", data_reference=reference, data_column=c).text for c in ("ct", "mri", "mean")]
        for reference in ("base", "blank_image", "option_prior_same_row", "option_prior_other_rows", "chance")
    }
    assert shown == {
        "base": ["40.0"] * 3,
        "blank_image": ["35.0"] * 3,  # (.3 + .4) / 2
        "option_prior_same_row": ["90.0"] * 3,
        "option_prior_other_rows": ["30.0", "20.0", "25.0"],  # .3 trained on MRI, .2 trained on CT
        "chance": ["25.0"] * 3,
    }
    assert not page.all("td", data_reference="surface_cues")


def test_references_without_a_diagonal_or_a_base() -> None:
    m = matrix(rows=("think_before", "no_think"))
    cells = {row: {c: replace(cell, base=None) for c, cell in of.items()} for row, of in m.cells.items()}
    found = {r.key: r.values for r in references(replace(m, cells=cells))}
    assert found.keys() == {"blank_image", "option_prior", "chance"}
    assert found["option_prior"] == pytest.approx({"ct": 0.25, "mri": 0.25, ALL: 0.25, "mean": 0.25})


def test_what_was_trained_on_everything_is_no_other_row() -> None:
    found = {r.key: r.values for r in references(matrix(rows=("ct", "mri", ALL)))}
    assert found["option_prior_other_rows"] == pytest.approx({"ct": 0.3, "mri": 0.2, "mean": 0.25})


def test_a_row_that_was_not_run_is_no_number(tmp_path: Path) -> None:
    m = matrix()
    cells = {"ct": {"ct": m.cells["ct"]["ct"]}}
    page = report(tmp_path, tables(replace(m, cells=cells, means={}, generalization=None)))
    assert page.one("td", data_row="ct").text.startswith("60.1")
    assert "MRI\N{EN DASH}\N{EN DASH}\N{EN DASH}\N{EN DASH}" in page.one("table", **{"class": "numbers"}).text.replace(
        "\n", ""
    )


def test_a_contrast_is_grey_exactly_where_its_interval_contains_zero(tmp_path: Path) -> None:
    page = report(tmp_path, tables(contrasts=[contrast()]))
    shown = {(td.attributes["data-row"], td.attributes["data-column"]): td for td in page.all("td", data_b="grpo")}
    assert {key for key, td in shown.items() if "undecided" in td.attributes.get("class", "").split()} == {
        ("ct", "mri"),
        ("mri", "mri"),
    }
    assert shown["ct", "ct"].text == "+5.0*[+0.1, +10.0]p = .040"
    assert shown["ct", "mri"].text == f"{MINUS}5.0[{MINUS}10.0, +0.0]p = .120"
    assert shown["mri", "ct"].text == f"{MINUS}20.0*[{MINUS}30.0, {MINUS}10.0]p <.001"
    assert shown["mri", "mri"].text == "+0.0p = 1.00", "an interval that has collapsed says nothing"
    text = page.one("body").text
    assert f"Mean over rows and columns: +1.2 [{MINUS}2.8, +5.2]" in text
    assert f"gaps: {MINUS}3.4 [{MINUS}7.4, +0.6]" in text


def test_the_verdict_comes_first_and_every_link_within_the_page_leads_somewhere(tmp_path: Path) -> None:
    t = tables(matrix(), contrasts=[contrast()])
    curves = {"grpo-ct-0": {"train/reward": [(0, 0.1), (1, 0.2)], "completion_length": [(0, 5.0), (1, 6.0)]}}
    page = report(
        tmp_path,
        t,
        verdict=["A verdict."],
        conditions={"model": "tiny", "date": "2026-01-02"},
        findings=["A finding."],
        sections=[Section("Rationales & more", ("A paragraph.",)), Section("Runs", ("Of one name.",))],
        curves=curves,
    )
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    inner = [link[1:] for link in page.one("nav").links]
    assert len(inner) == 9 and set(inner) <= set(ids)
    text = page.one("main").text
    order = ("A verdict.", "Figure 1.", "More figures", "A finding.", "n = 1,200", "Contrasts", "Training curves")
    order = (*order, "A paragraph.", "1 min 15 s", "Reproduction")
    places = [text.index(part, text.index("Figure 2.") if i > 2 else 0) for i, part in enumerate(order)]
    assert places == sorted(places)
    assert page.one("dl").text == "modeltinydate2026-01-02"
    assert [e.attributes.get("open") is not None or "open" in e.attributes for e in page.all("details")].count(
        True
    ) == 1


def test_nothing_comes_from_the_network_and_all_figures_are_files_too(tmp_path: Path) -> None:
    page = report(tmp_path, tables(matrix(), contrasts=[contrast()]), real=True)
    sources = [e.attributes["src"] for e in page.elements if "src" in e.attributes]
    assert len(sources) == 4 and all(source.startswith("data:image/") for source in sources)
    assert not page.all("script") and not page.all("link")
    assert "url(" not in page.one("style").text and "@import" not in page.one("style").text
    assert all(link.startswith("#") for link in page.one("body").links)  # whoever receives the file has no other
    assert len(list((tmp_path / "figures").iterdir())) == 3 * len(sources)


def test_text_cannot_break_out(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'
    m = matrix(f"grpo {evil}")
    gallery = [GalleryItem(Image.new("RGB", (8, 8)), [Span(evil, Verdict.FALSE), Span(evil)], evil)]
    table = ResultTable((evil,) * 2, ((evil,), (evil, evil)), (evil,))
    t = tables(m)
    runs = [*links(t), RunLink(evil, {evil: evil}, "failed", None, f"../{evil}", f"http://x/{evil}", evil)]
    section = Section(evil, (evil,), (SectionFigure("empty", Figure(), evil),), ((evil, table),), gallery)
    page = report(tmp_path, t, runs, findings=[evil], sections=[section], title=evil, command=evil, facts={evil: evil})
    assert not page.all("script")
    assert page.one("body").text.count("<script>alert(1)</script>") > 15
    assert all("<" not in name and '"' not in name for e in page.elements for name in e.attributes)


def test_a_failed_run_shows_its_traceback(tmp_path: Path) -> None:
    t = tables(matrix())
    failed = RunLink(
        "grpo-us-0", {"modality": "us", "seed": "0"}, "failed", 7265, "../runs/a b,c=d", error="ValueError: x < y"
    )
    page = report(tmp_path, t, [*links(t), failed])
    assert "Why it failedValueError: x < y" in [e.text for e in page.all("details")]
    assert "2 of 3 runs have finished" in page.one("p", **{"class": "lead"}).text
    assert page.one("tr", id="run-2").text == "grpo-us-0us0failed2 h 1 min../runs/a b,c=d"
    assert page.one("tr", id="run-2").links == []


def test_claims_are_marked_by_more_than_colour(tmp_path: Path) -> None:
    spans = [Span("An "), Span("MRI", Verdict.TRUE), Span(" of a "), Span("hip", Verdict.FALSE)]
    page = report(
        tmp_path, tables(), sections=[Section("S", gallery=[GalleryItem(Image.new("L", (4, 4)), spans, "Q")])]
    )
    assert page.one("p", **{"class": "completion"}).text == "An MRI\N{CHECK MARK} of a hip\N{BALLOT X}"
    assert [e.text for e in page.all("sup")] == ["\N{CHECK MARK}", "\N{BALLOT X}"]


def test_a_sweep_without_a_finished_run_still_has_a_report(tmp_path: Path) -> None:
    page = report(tmp_path, tables(), [RunLink("a", {}, "waiting", None, "a")])
    assert "0 of 1 runs have finished" in page.one("body").text
    assert not page.all("img")


def test_seeds_are_averaged_in_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("medr1.reporting.figures.curves", lambda runs: drawn.extend(runs) or Figure())
    curves = {
        "grpo-ct-0": {"train/reward": [(0, 1.0), (5, 2.0)], "completion_length": [(0, 10.0)]},
        "grpo-ct-1": {"train/reward": [(0, 2.0)], "completion_length": [(0, 20.0)]},
        "sft-ct-0": {"train/loss": [(0, 1.0)], "completion_length": [(0, 1.0)]},
    }
    t, maxima = tables(matrix("grpo", seeds=2), matrix("sft")), {"grpo-ct-0": 2.0, "grpo-ct-1": None}
    report(tmp_path, t, curves=curves, max_rewards=maxima)
    (curve,) = drawn
    assert (curve.row, curve.method, curve.maximum) == ("ct", "grpo", 2.0)
    assert curve.values == {"train/reward": [(0, 1.5), (5, 2.0)], "completion_length": [(0, 15.0)]}


def test_the_overview_averages_methods_over_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("medr1.reporting.figures.overview", lambda *given: drawn.append(given) or Figure())
    report(tmp_path / "a", tables(matrix()))
    m = matrix(rows=("no_think", "think_after"))
    cells = {
        row: {c: replace(cell, base=0.2 * i) for c, cell in of.items()}
        for i, (row, of) in enumerate(m.cells.items(), 1)
    }
    ways = SweepTables("reasoning", "modality", (), (replace(m, cells=cells),), ())
    report(tmp_path / "b", ways)
    (series, chance), (by_row, _) = drawn
    assert chance == dict.fromkeys(("ct", "mri", ALL), 0.25)
    assert series["grpo"]["ct"].value == pytest.approx((0.601 + 0.701) / 2)
    assert series["grpo"]["ct"].low == pytest.approx(0.611)
    # Wilson's interval of 480 of 1,200, by the formula
    assert series["Base"]["ct"].low == pytest.approx(0.37264, abs=1e-5)
    assert list(by_row) == ["Base, no_think", "Base, think_after", "no_think", "think_after"]
    assert [by_row[f"Base, {row}"]["ct"].value for row in m.rows] == pytest.approx([0.2, 0.4])
    assert by_row["think_after"]["mri"].value == pytest.approx(0.671)


def test_a_run_that_is_not_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="grpo-ct-0"):
        report(tmp_path, tables(matrix()), [])


def test_two_figures_with_one_name_are_refused(tmp_path: Path) -> None:
    figures = [SectionFigure("twice", Figure(), ""), SectionFigure("twice", Figure(), "")]
    with pytest.raises(DataError, match="'twice'"):
        report(tmp_path, tables(), sections=[Section("S", figures=figures)])


def test_the_name_of_a_long_path_fits_into_a_file_name() -> None:
    """Two of them make the name of a figure: a sweep over models has their paths as rows."""
    paths = [f"/home/somebody/{'projects/' * 15}models/step-{step}" for step in (500, 1000)]
    names = [slug(path) for path in paths]
    assert len(set(names)) == 2 and all(len(f"contrast-{name}-{name}.svg") < 255 for name in names)
    assert slug("GRPO: No-Think") == "grpo-no-think"
