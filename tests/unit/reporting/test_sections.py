"""Additional sections of a report: the trend over numeric rows, and the further measures of each model."""

from __future__ import annotations

from dataclasses import replace

from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.reasoning import ReasoningMode
from medr1.evaluation.calibration import OptionProbabilities
from medr1.evaluation.measures import Measured
from medr1.evaluation.predictions import prediction
from medr1.evaluation.statistics import Estimate
from medr1.evaluation.sweep_tables import Matrix, SweepRun, SweepTables, TableCell
from medr1.reporting.sections import measure_section, rationale_section, trend_section
from tests.unit.evaluation.test_metrics import line

CELL = TableCell(80, 40, ("a",), Estimate(0.7, 0.6, 0.8), 0.25, None, None, {}, {}, {"base": 80})
WORSE = replace(CELL, accuracy=Estimate(0.3, 0.2, 0.4))


def tables(*rows: str) -> SweepTables:
    columns = ("seen scanners", "held-out scanner")
    cells = {row: {columns[0]: CELL, columns[1]: WORSE if row == "0.9" else CELL} for row in rows}
    return SweepTables("data.shortcut", "scanner", ("0",), (Matrix("sft", rows, columns, cells, {}, None),), ())


def test_each_column_is_a_line_over_the_numbers_in_their_order() -> None:
    section = trend_section(tables("0.9", "0.0", "0.5"))
    assert section is not None
    ((seen, held_out),) = [axes.get_lines()[:2] for axes in section.figures[0].figure.axes]
    assert list(held_out.get_xdata()) == [0.0, 0.5, 0.9]
    assert [round(y) for y in held_out.get_ydata()] == [70, 70, 30] and [round(y) for y in seen.get_ydata()] == [70] * 3


def test_numbers_may_be_in_scientific_notation() -> None:
    section = trend_section(tables("0.001", "1e-5"))
    assert section is not None and [*section.figures[0].figure.axes[0].get_lines()[0].get_xdata()] == [1e-5, 1e-3]


def test_rows_that_are_names_have_no_trend() -> None:
    assert trend_section(tables("ct", "mri")) is None and trend_section(tables("0.5", "mri")) is None


def measured(record: str, parsed: str) -> Measured:
    """The answers of a model that always says ``parsed``, to a question whose answer is A."""
    samples = [[line(record, parsed, condition=f"c.sample_{i}") for i in range(4)]]
    answers = ("A", "D", "C", "B")
    rotations = [
        replace(line(record, None, condition=f"c.rotation_{i}"), answer=answer, parsed=parsed, correct=parsed == answer)
        for i, answer in enumerate(answers)
    ]
    return Measured(
        samples, [rotations], [OptionProbabilities(record, record, "A", {parsed: 0.75, "AB"[parsed == "A"]: 0.25})]
    )


def run(name: str, seed: str, method: str, base: Measured, trained: Measured | None) -> SweepRun:
    measures = {"base": base, **({"trained": trained} if trained else {})}
    axes = {"modality": "ct", "algorithm": method, "seed": seed}
    return SweepRun(name, axes, {"base": [], "trained": []}, measures)


def test_a_model_has_a_row_with_its_seeds_pooled_and_the_base_once() -> None:
    base = measured("1", "B")
    runs = [
        run("a", "0", "grpo", base, measured("1", "A")),
        run("b", "1", "grpo", base, measured("1", "B")),
        run("c", "0", "sft", base, measured("1", "A")),
    ]
    section = measure_section(runs, "modality")
    assert section is not None
    ((title, table),) = section.tables
    assert title.endswith("; the seeds are pooled, and intervals do not cover them")
    cells = {row[:2]: dict(zip(table.titles[2:], row[2:], strict=True)) for row in table.rows}
    assert list(cells) == [("CT", "Base"), ("CT", "GRPO"), ("CT", "SFT")]
    assert [cells["CT", name]["pass@4"].split()[0] for name in ("Base", "GRPO", "SFT")] == ["0.0", "50.0", "100.0"]
    assert [cells["CT", name]["letter bias"].split()[0] for name in ("Base", "SFT")] == ["100.0", "100.0"]
    assert [cells["CT", name]["calibration error"].split()[0] for name in ("Base", "GRPO", "SFT")] == [
        *("75.0", "25.0", "25.0"),
    ]
    (figure,) = section.figures
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.figure.axes[:3]] == [
        "Base",
        "GRPO",
        "SFT",
    ]


def test_methods_that_begin_with_other_models_have_a_base_each() -> None:
    small, large = measured("1", "B"), measured("1", "A")
    runs = [
        run("a", "0", "small", small, small),
        run("b", "0", "large", large, large),
        run("c", "1", "large", large, large),
    ]
    section = measure_section(runs, "modality")
    assert section is not None
    ((_, table),) = section.tables
    assert [row[:2] for row in table.rows] == [
        ("CT", "Base, small"),
        ("CT", "Base, large"),
        ("CT", "small"),
        ("CT", "large"),
    ]


def test_runs_without_measures_have_no_section() -> None:
    assert measure_section([run("a", "0", "grpo", Measured(), Measured())], "modality") is None
    assert measure_section([SweepRun("a", {"seed": "0"}, {"base": []})], "seed") is None


def test_rationales_that_cannot_be_checked_have_no_figure() -> None:
    """As of a base model that is cut off, or does not know the format."""
    records = {record.id: record for record in make_records(World.TEST, 0, 1)}
    told, silent = "<think>The scan shows", "<think>CT</think>"
    for text, figures in ((told, []), (silent, ["rationales_false"])):
        lines = [prediction(r, "base", ReasoningMode.THINK_BEFORE, text, 5, True) for r in records.values()]
        section = rationale_section(
            [SweepRun("r", {"modality": "ct", "seed": "0"}, {"base": lines})], records, 84, "modality"
        )
        assert section is not None and [figure.name for figure in section.figures] == figures


def test_trained_models_have_the_k_that_was_asked_for() -> None:
    asked = replace(measured("1", "A"), ks=[2])
    section = measure_section([run("r", "0", "grpo", asked, asked)], "modality")
    assert section is not None
    (titles,) = [table.titles for _, table in section.tables]
    assert [title for title in titles if "pass@" in title] == ["pass@2"]
