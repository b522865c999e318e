"""The result table: its numbers are the summary's, and it fits in 100 columns whatever they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from medr1.domain.records import Modality, QuestionType
from medr1.evaluation.metrics import Cell, Comparison, Contrast, Summary
from medr1.evaluation.statistics import Estimate
from medr1.reporting.result_table import GROUPS_NOTE, ResultTable, render_results

CELL = Cell(
    n=1234,
    images=1000,
    accuracy=Estimate(0.7012, 0.6751, 0.7260),
    chance=0.2741,
    format_rate=0.9876,
    unparsed_rate=0.0123,
    lenient_accuracy=0.71,
    mean_length=61.5,
    clipped_ratio=0.01,
)
CONTRAST = Contrast(
    n=1234, images=1000, difference=Estimate(0.2994, 0.2649, 0.3351), only_a=8, only_b=377, p=0.0421, p_holm=0.3
)


def summary(condition: str, cell: Cell = CELL) -> Summary:
    return Summary(condition, cell, dict.fromkeys(Modality, cell), dict.fromkeys(QuestionType, cell))


def comparison(contrast: Contrast = CONTRAST) -> Comparison:
    return Comparison(
        "base", "trained", contrast, dict.fromkeys(Modality, contrast), dict.fromkeys(QuestionType, contrast)
    )


def printed(table: ResultTable, width: int = 100) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def row(table: ResultTable, name: str) -> dict[str, str]:
    (found,) = [r for r in table.rows if len(r) > 1 and r[0] == name]
    return dict(zip(table.titles, found, strict=True))


def test_it_says_what_intervals_of_groups_resample() -> None:
    summaries = {name: summary(name) for name in ("base", "trained")}
    of_images = "\n".join(render_results(summaries, comparison()).notes)
    assert "cluster bootstrap over images" in of_images and GROUPS_NOTE not in of_images
    of_groups = "\n".join(render_results(summaries, replace(comparison(), cluster_unit="groups")).notes)
    assert "cluster bootstrap over groups" in of_groups and GROUPS_NOTE in of_groups


def test_the_numbers_are_those_of_the_summaries() -> None:
    accuracy = Estimate(0.4, 0.3051, 0.5)
    of_mri = replace(CELL, n=77, accuracy=accuracy, chance=0.5, format_rate=1.0, unparsed_rate=0.0)
    trained = summary("trained")
    trained.by_modality[Modality.MRI] = of_mri
    against = comparison()
    against.by_modality[Modality.MRI] = replace(
        CONTRAST, difference=Estimate(-0.05, -0.1, 0.0), p=0.00002, p_holm=0.001
    )
    table = render_results(
        {
            "base": summary("base", replace(CELL, accuracy=Estimate(0.4018, 0.3, 0.5))),
            "trained": trained,
            "option_prior": summary("option_prior", replace(CELL, accuracy=Estimate(0.9904, 0.9, 1.0))),
            "blank_image": summary("blank_image", replace(CELL, accuracy=Estimate(0.2, 0.1, 0.3))),
        },
        against,
    )
    assert row(table, "MRI") == {
        "": "MRI",
        "n": "77",
        "chance": "50.0",
        "option\nprior": "99.0",
        "blank\nimage": "20.0",
        "base": "40.2",
        "trained\n[95 %]": "40.0 [30.5,50.0]",
        "difference\n[95 %]": "-5.0 [-10.0,+0.0]",
        "p": "<.001*",
        "fmt": "100",
        "not\nread": "0.0",
    }
    overall = row(table, "All questions")
    assert (overall["n"], overall["trained\n[95 %]"], overall["fmt"]) == ("1234", "70.1 [67.5,72.6]", "98.8")
    assert overall["difference\n[95 %]"] == "+29.9 [+26.5,+33.5]"
    # (7 * .7012 + .4) / 8 = .66355 for trained.
    assert table.notes[1] == (
        "Mean over modalities (equal weight): option prior 99.0, blank image 20.0, base 40.2, trained 66.4."
    )
    # Not starred: .042 is below .05 only before Holm's correction.
    assert overall["p"] == ".042 "


def test_rows_come_by_modality_then_by_type_then_overall() -> None:
    names = [r[0] for r in render_results({"trained": summary("trained")}).rows]
    assert names == [
        "By modality",
        *("CT", "MRI", "X-Ray", "Ultrasound", "Dermoscopy", "Fundus", "OCT", "Microscopy"),
        "By type",
        *("Anatomy", "Disease", "Lesion", "Modality", "Attributes"),
        "Overall",
        "All questions",
    ]


def test_what_was_trained_on_is_marked() -> None:
    table = render_results(
        {"trained": summary("trained")},
        trained_modalities=[Modality.MRI],
        trained_question_types=[QuestionType.MODALITY],
    )
    assert [r[0] for r in table.rows if "\N{DAGGER}" in r[0]] == ["MRI\N{DAGGER}", "Modality\N{DAGGER}"]
    assert table.notes[-1] == "\N{DAGGER}: seen in training."
    assert not any("\N{DAGGER}" in note for note in render_results({"trained": summary("trained")}).notes)


def test_an_absent_condition_leaves_its_column_out() -> None:
    table = render_results({"base": summary("base"), "option_prior": summary("option_prior")})
    assert table.titles == ("", "n", "chance", "option\nprior", "base\n[95 %]", "fmt", "not\nread")
    assert {len(r) for r in table.rows} == {1, 7}
    assert not any("blank image:" in note or "McNemar" in note for note in table.notes)


def test_a_modality_that_a_condition_lacks_leaves_a_gap() -> None:
    base, trained, against = summary("base"), summary("trained"), comparison()
    del base.by_modality[Modality.CT], against.by_modality[Modality.CT]
    for family in (base.by_modality, trained.by_modality, against.by_modality):
        family.pop(Modality.OCT)
    table = render_results({"base": base, "trained": trained}, against)
    ct = row(table, "CT")
    assert (ct["base"], ct["difference\n[95 %]"], ct["p"]) == ("-", "-", "-")
    assert ct["trained\n[95 %]"] == "70.1 [67.5,72.6]"
    assert "OCT" not in [r[0] for r in table.rows]


WORST = replace(
    CELL,
    n=888888,
    accuracy=Estimate(0.8888, 0.8887, 0.8889),
    chance=0.3333,
    format_rate=0.8888,
    unparsed_rate=0.8888,
)
WORST_CONTRAST = replace(CONTRAST, difference=Estimate(-0.8888, -0.8889, -0.8887), p=0.0001, p_holm=0.0008)
FULL = replace(CELL, n=888888, accuracy=Estimate(1.0, 1.0, 1.0), chance=0.5, format_rate=1.0, unparsed_rate=1.0)
FULL_CONTRAST = replace(CONTRAST, difference=Estimate(-1.0, -1.0, -1.0), p=0.0, p_holm=0.0)


@pytest.mark.parametrize(("cell", "contrast"), [(WORST, WORST_CONTRAST), (FULL, FULL_CONTRAST)])
def test_it_fits_in_100_columns_uncut(cell: Cell, contrast: Contrast) -> None:
    conditions = ("option_prior", "blank_image", "base", "trained")
    summaries = {c: summary(c, cell) for c in conditions}
    table = render_results(summaries, comparison(contrast), list(Modality), list(QuestionType))
    text = printed(table, width=100)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    # Given more room it looks the same: nothing was squeezed, cut or wrapped to fit.
    assert [s.rstrip() for s in printed(table, width=200).splitlines()] == [s.rstrip() for s in lines]
    assert "\u2026" not in text
    (grading,) = [s.split() for s in lines if s.startswith("Lesion\N{DAGGER}")]
    assert grading[1:] == " ".join(next(r for r in table.rows if r[0].startswith("Lesion"))[1:]).split()


def test_markdown_holds_the_same_table() -> None:
    table = render_results({c: summary(c) for c in ("base", "trained")}, comparison(), [Modality.CT])
    lines = table.to_markdown().splitlines()
    assert lines[0] == "|  | n | chance | base | trained [95 %] | difference [95 %] | p | fmt | not read |"
    assert lines[1].count("---") == 9
    assert lines[2] == "| **By modality** |  |  |  |  |  |  |  |  |"
    assert "| CT\N{DAGGER} | 1234 | 27.4 | 70.1 | 70.1 [67.5,72.6] | +29.9 [+26.5,+33.5] | .042 | 98.8 | 1.2 |" in lines
    assert {line.count("|") for line in lines if line.startswith("|")} == {10}
    assert all(note in lines for note in table.notes)


@pytest.mark.parametrize("conditions", [[], ["trained", "zero_shot"]])
def test_unknown_conditions_are_refused(conditions: list[str]) -> None:
    with pytest.raises(ValueError, match="option_prior, blank_image, base, trained"):
        render_results({c: summary(c) for c in conditions})


def test_values_of_the_data_are_rows_under_their_own_names() -> None:
    values = ["ct", "CT", "Chest X-ray", "a|b *c*"]
    found = replace(summary("trained"), by_modality=dict.fromkeys(values, CELL), by_question_type={})
    table = render_results({"trained": found}, trained_modalities=["Chest X-ray"])
    names = [r[0] for r in table.rows]
    # "CT" is the name of "ct" too, which therefore keeps its own.
    assert names == ["By modality", "ct", "a|b *c*", "Chest X-ray\N{DAGGER}", "CT", "Overall", "All questions"]
    rows = [line for line in table.to_markdown().splitlines() if line.startswith("|")]
    assert any(line.startswith(r"| a\|b \*c\* |") for line in rows)
    assert {line.replace(r"\|", "").count("|") for line in rows} == {len(table.titles) + 1}


def test_a_long_value_fits_in_100_columns() -> None:
    conditions = ("option_prior", "blank_image", "base", "trained")
    value = "Dynamic contrast-enhanced magnetic resonance imaging of the breast"
    long = {c: replace(summary(c, WORST), by_modality={value: WORST}) for c in conditions}
    text = printed(render_results(long, comparison(WORST_CONTRAST)))
    assert max(map(len, text.splitlines())) <= 100 and "\u2026" not in text
    (last,) = (line for line in text.splitlines() if line.startswith("All"))
    width = len(last) - len(last.removeprefix("All").removeprefix(" questions").lstrip())
    names = "".join(line[:width] for line in text.splitlines())
    assert value.replace(" ", "") in names.replace(" ", "")
