"""The audit as a text: every number stands where it belongs, within 100 columns; and as flat metrics."""

from __future__ import annotations

import re
from dataclasses import replace

from medr1.data.sources.omnimedvqa.files import SplitAxis
from medr1.domain.records import Modality, QuestionType
from medr1.evaluation.audit import Audit, CellAudit, Crossing, Family, Leak, Source
from medr1.evaluation.surface_cues import CueCount, CueCounts
from medr1.reporting.audit_text import metric_items, render

CUES = CueCounts(CueCount(12_814, 12_814), CueCount(5_931, 5_896), CueCount(10_918, 7_002), CueCount(0, 0))
OPTIONS = {2: 6_778, 3: 122, 4: 56_589}
SOURCE = Source("modality splits", 16, 63_490, 63_489, OPTIONS, 44, CUES, {"duplicate_option": 44})
CELL = CellAudit(12_567, 3_241, {2: 834, 4: 2_407}, 0.31433, 0.33562, 0.99044, Leak(3_169, 396, None))
NO_TRAIN = CellAudit(None, 6_370, {2: 3, 4: 6_367}, 0.25012, 0.30593, None, None)
FAMILY = Family(
    axis=SplitAxis.MODALITY,
    cells={Modality.CT: CELL, Modality.MRI: NO_TRAIN},
    option_prior={Modality.CT: {Modality.CT: 0.99044, Modality.MRI: 0.30518}},
    off_diagonal=0.30518,
    off_diagonal_chance=0.25012,
    leak=Leak(9_539, 1_836, None),
)
AUDIT = Audit(
    place="data/splits",
    sources=[SOURCE],
    families=[FAMILY],
    crossings=[Crossing(SplitAxis.MODALITY, SplitAxis.QUESTION_TYPE, 45_827, 9_256)],
    compared_images=None,
    bad_images={},
    examples=[
        "data/splits/modality/test/ultrasound_test.json, record #445: duplicate_option: " + "options B and D " * 9
    ],
)


def section(text: str, title: str) -> str:
    """The text below a title, up to the next title, with single spaces."""
    found = re.search(rf"(?:^|\n){re.escape(title)}\n=+\n(.*?)(?:\n\n[^\n]+\n==|\Z)", text, re.DOTALL)
    assert found, title
    return re.sub(" +", " ", found[1])


def test_each_number_stands_in_its_row() -> None:
    text = render(AUDIT)
    assert "files records readable 4 opt. 3 opt. 2 opt. repeats" in section(text, "Records")
    assert "modality splits 16 63,490 63,489 56,589 122 6,778 44" in section(text, "Records")
    options = section(text, "Options and chance of the test")
    assert "modality training test 4 opt. 2 opt. chance" in options
    assert "CT 12,567 3,241 2,407 834 31.4" in options
    assert "MRI no training file 6,370 6,367 3 25.0" in options
    leaks = section(text, "Leaks")
    assert "CT 3,169 396 12.5 - -" in leaks
    assert "MRI no training file - - - -" in leaks
    assert "all 9,539 1,836 19.2 - -" in leaks
    assert "no image files" in leaks
    crossings = section(text, "Leaks between the split families")
    assert "modality splits 45,827 question type splits: 9,256" in crossings
    prior = section(text, "Option prior")
    assert "CT 99.0 30.5\nMRI no training file\n" in prior
    assert "1 pairs of different cells by modality: 30.5, chance 25.0." in prior
    cues = section(text, "Surface cues")
    assert "exactly one begins in lower case 12,814 100.0" in cues
    assert "exactly one ends with a full stop 10,918 64.1" in cues
    assert cues.endswith("exactly one lacks a full stop 0")
    assert "CT 33.6 31.4" in section(text, "Accuracy of the surface cues")
    assert "modality splits duplicate option 44" in section(text, "Bad records")
    assert "ultrasound_test.json, record #445" in section(text, "Bad records")


def test_leaks_by_content() -> None:
    seen = replace(CELL, leak=Leak(3_169, 396, 500))
    family = replace(FAMILY, cells={Modality.CT: seen}, leak=Leak(3_169, 396, 634))
    leaks = section(
        render(replace(AUDIT, families=[family], compared_images=9_000, bad_images={"no_image": 7, "too_large": 3})),
        "Leaks",
    )
    assert "CT 3,169 396 12.5 500 15.8" in leaks
    assert "all 3,169 396 12.5 634 20.0" in leaks
    assert "9,000 images were compared; 10 cannot be read" in " ".join(leaks.split())


def test_it_fits_in_100_columns_whatever_the_numbers() -> None:
    wide = {n: 888_888 for n in (2, 3, 4, 5)}
    cell = CellAudit(888_888, 888_888, wide, 1.0, 1.0, 1.0, Leak(888_888, 888_888, 888_888))
    cues = CueCounts(*[CueCount(888_888, 888_888)] * 4)
    names = {"modality splits": 1, "question type splits": 2, "QA_information": 3}
    sources = [Source(n, 888, 888_888, 888_888, wide, 888_888, cues, {"unknown_question_type": 888_888}) for n in names]
    families = [
        Family(
            axis=axis,
            cells={value: cell for value in values if value is not Modality.OCT} | extra,
            option_prior={value: dict.fromkeys(values, 1.0) for value in values if value is not Modality.OCT},
            off_diagonal=1.0,
            off_diagonal_chance=1.0,
            leak=cell.leak,
        )
        for axis, values, extra in (
            (
                SplitAxis.MODALITY,
                list(Modality),
                {Modality.OCT: replace(cell, train=None, leak=None, option_prior=None)},
            ),
            (SplitAxis.QUESTION_TYPE, list(QuestionType), {}),
        )
    ]
    crossings = [
        Crossing(SplitAxis.MODALITY, SplitAxis.QUESTION_TYPE, 888_888, 888_888),
        Crossing(SplitAxis.QUESTION_TYPE, SplitAxis.MODALITY, 888_888, 888_888),
    ]
    place = "folder/" * 30
    text = render(Audit(place, sources, families, crossings, 888_888, {"undecodable_image": 8}, [place + "a.json, #1"]))
    assert max(map(len, text.splitlines())) <= 100
    assert "100.0" in text and "no training file" in text


def test_without_training_files() -> None:
    family = Family(SplitAxis.MODALITY, {Modality.MRI: NO_TRAIN}, {}, None, None, None)
    source = replace(SOURCE, name="QA_information", bad={})
    text = render(replace(AUDIT, sources=[source], families=[family], crossings=[], examples=[]))
    assert "There is no training file: all records count as test." in text
    assert section(text, "Bad records").strip() == "None."
    assert "\nLeaks" not in text and "\nOption prior" not in text


def test_flat_metrics() -> None:
    seen = replace(CELL, leak=Leak(1_000, 100, 250))
    items = list(metric_items(replace(AUDIT, families=[replace(FAMILY, cells={Modality.CT: seen})])))
    metrics = dict(items)
    assert len(metrics) == len(items)
    assert metrics["audit/records/modality_splits"] == 63_489
    assert metrics["audit/repeated_option/modality_splits"] == 44
    assert metrics["audit/lower_case/modality_splits"] == 12_814
    assert metrics["audit/with_full_stop_correct/modality_splits"] == 7_002 / 10_918
    assert metrics["audit/without_full_stop/modality_splits"] == 0
    assert "audit/without_full_stop_correct/modality_splits" not in metrics
    assert (metrics["audit/leak_by_path/ct"], metrics["audit/leak_by_content/ct"]) == (0.1, 0.25)
    assert metrics["audit/leak_by_path/all_modality_splits"] == 1_836 / 9_539
    assert "audit/leak_by_content/all_modality_splits" not in metrics
    assert (metrics["audit/chance/ct"], metrics["audit/surface_cues/ct"]) == (0.31433, 0.33562)
    assert (metrics["audit/option_prior/ct"], metrics["audit/option_prior_off_diagonal/modality"]) == (0.99044, 0.30518)
    assert metrics["audit/modality_train_in_question_type_test"] == 9_256
    # What MLflow takes, and no name that is a folder of another one.
    assert all(re.fullmatch(r"[\w./ -]+", name) for name in metrics)
    assert not [name for name in metrics if any(other.startswith(f"{name}/") for other in metrics)]
    without = metric_items(replace(AUDIT, families=[replace(FAMILY, cells={Modality.MRI: NO_TRAIN})]))
    assert not {"audit/option_prior/mri", "audit/leak_by_path/mri"} & {name for name, _ in without}
