"""The audit: hand-made splits whose figures are known, a slow count beside the fast one, and the real splits."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medr1.data.sources.omnimedvqa.files import SplitAxis
from medr1.domain.records import Modality, QuestionType
from medr1.errors import DataError
from medr1.evaluation.audit import Audit, CellAudit, Crossing, Family, Leak, audit
from medr1.evaluation.surface_cues import CueCount

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
REAL, MINI = SHARED / "medr1-splits", SHARED / "omnimedvqa-mini"
CT, XRAY = "CT(Computed Tomography)", "X-Ray"
Row = dict[str, str]


def row(image: str, options: str, answer: str, question: str = "What is it?") -> Row:
    """``options`` are separated by a slash; they get the letters from A."""
    listed = ", ".join(f"{letter}){text}" for letter, text in zip("ABCDE", options.split("/"), strict=False))
    return {
        "image": f"Images/D/{image}",
        "problem": f"{question} {listed}",
        "solution": f"<answer> {answer} </answer>",
    }


def write(folder: Path, family: str, name: str, part: str, rows: Sequence[Any]) -> None:
    path = folder / family / part / f"{name}_{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def family(found: Audit, axis: SplitAxis) -> Family:
    return next(f for f in found.families if f.axis is axis)


def cell(found: Audit, value: Modality | QuestionType) -> CellAudit:
    axis = SplitAxis.MODALITY if isinstance(value, Modality) else SplitAxis.QUESTION_TYPE
    return family(found, axis).cells[value]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Audit]:
    def run(place: Path, images: Path | None = None) -> Audit:
        return audit(place, images, cache_dir=tmp_path / "cache")

    return run


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """Two modalities, a third without training, a record of no modality, a repeated option, a broken record."""
    place = tmp_path / "splits"
    write(
        place,
        "modality",
        CT,
        "train",
        [
            row("1.png", "Cyst/Nodule/Scar/Bone", "A"),
            row("1.png", "Lung/Heart", "A", "Which organ?"),
            row("2.png", "Cyst/cyst./Scar/Bone", "A"),
            {"image": "Images/D/3.png", "problem": "no options"},
        ],
    )
    write(
        place,
        "modality",
        CT,
        "test",
        [
            row("1.png", "Scar/Cyst./Bone/Nodule", "B"),
            row("4.png", "Eye/Ear", "A"),
            row("4.png", "Eye/Ear/Cyst", "A", "What else?"),
        ],
    )
    write(place, "modality", XRAY, "train", [row("9.png", "Ear/Eye", "B"), row("4.png", "Ear/Nose", "A")])
    write(place, "modality", XRAY, "test", [row("10.png", "Nose/Eye/Ear/Cyst", "B")])
    write(place, "modality", "ultrasound", "test", [row("11.png", "Cyst/Nose", "A")])
    write(place, "modality", "unknown", "train", [row("10.png", "Bone/Eye", "A")])
    question_types = "question_type"
    write(place, question_types, "Disease Diagnosis", "train", [row("10.png", "Nose/Eye/Ear/Cyst", "B")])
    write(
        place,
        question_types,
        "Disease Diagnosis",
        "test",
        [row("9.png", "Eye/Ear", "A"), row("2.png", "Cyst/cyst./Scar/Bone", "A"), row("4.png", "Ear/Nose/Lip", "A")],
    )
    return place


def test_records_and_options_are_counted_over_the_readable_ones(splits: Path, run: Callable[..., Audit]) -> None:
    modality, question_type = run(splits).sources
    assert (modality.name, modality.files, modality.records, modality.readable) == ("modality splits", 6, 12, 11)
    assert (dict(modality.options), modality.repeats) == ({2: 6, 3: 1, 4: 4}, 1)
    assert dict(modality.bad) == {"duplicate_option": 1, "malformed": 1, "unknown_modality": 1}
    assert (question_type.name, question_type.readable, question_type.repeats) == ("question type splits", 4, 1)


def test_chance_and_cues_of_a_cell_are_those_of_its_test(splits: Path, run: Callable[..., Audit]) -> None:
    ct = cell(run(splits), Modality.CT)
    assert (ct.train, ct.test, dict(ct.options)) == (3, 3, {2: 1, 3: 1, 4: 1})
    assert ct.chance == pytest.approx((1 / 4 + 1 / 2 + 1 / 3) / 3)
    # "Cyst." is the odd one out and correct; the other two questions have no cue.
    assert ct.surface_cues == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert run(splits).sources[0].cues.odd_full_stop == CueCount(2, 1)


def test_leaks_by_path_are_those_of_the_same_cell_and_of_all(splits: Path, run: Callable[..., Audit]) -> None:
    found = run(splits)
    assert found.compared_images is None
    assert cell(found, Modality.CT).leak == Leak(images=2, by_path=1, by_content=None)
    assert cell(found, Modality.XRAY).leak == Leak(1, 0, None)
    # 1.png (CT), 4.png (trained as X-Ray), 10.png (trained in the file called unknown), not 11.png.
    assert family(found, SplitAxis.MODALITY).leak == Leak(4, 3, None)


def test_a_cell_without_training_file_has_no_leak_and_no_option_prior(splits: Path, run: Callable[..., Audit]) -> None:
    found = run(splits)
    us = cell(found, Modality.US)
    assert (us.train, us.test, us.leak, us.option_prior) == (None, 1, None, None)
    assert Modality.US not in family(found, SplitAxis.MODALITY).option_prior
    assert Modality.MRI not in family(found, SplitAxis.MODALITY).cells


def test_questions_that_cross_the_families_whatever_the_order_of_their_options(
    splits: Path, run: Callable[..., Audit]
) -> None:
    assert list(run(splits).crossings) == [
        # "Eye/Ear" on 9.png stands the other way round in the test; the repeated option counts as well.
        Crossing(SplitAxis.MODALITY, SplitAxis.QUESTION_TYPE, train_records=6, shared=2),
        Crossing(SplitAxis.QUESTION_TYPE, SplitAxis.MODALITY, train_records=1, shared=1),
    ]


def test_the_option_prior_by_hand(splits: Path, run: Callable[..., Audit]) -> None:
    modality = family(run(splits), SplitAxis.MODALITY)
    # Trained on CT: cyst is correct 2 of 3 times offered (it is offered twice in one record), lung 1 of 1.
    # Test: "Cyst." is correct; eye and ear are unknown, a guess; with cyst beside them it is taken, and wrong.
    assert modality.option_prior[Modality.CT][Modality.CT] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert modality.option_prior[Modality.CT] == pytest.approx({Modality.CT: 0.5, Modality.XRAY: 0.0, Modality.US: 1.0})
    # Trained on X-Ray: eye 1 / (1 + 1), ear 1 / (2 + 1), nose 0.
    assert modality.option_prior[Modality.XRAY] == pytest.approx(
        {Modality.CT: 2.25 / 3, Modality.XRAY: 1.0, Modality.US: 0.5}
    )
    assert cell(run(splits), Modality.XRAY).option_prior == 1.0
    assert (modality.pairs, modality.off_diagonal) == (4, pytest.approx((0.0 + 1.0 + 0.75 + 0.5) / 4))
    chances = {Modality.CT: (1 / 4 + 1 / 2 + 1 / 3) / 3, Modality.XRAY: 1 / 4, Modality.US: 1 / 2}
    assert modality.off_diagonal_chance == pytest.approx(
        (chances[Modality.XRAY] + chances[Modality.CT] + 2 * chances[Modality.US]) / 4
    )


def test_one_hit_in_one_question_is_less_than_nine_in_ten(tmp_path: Path, run: Callable[..., Audit]) -> None:
    often = [row(f"{i}.png", "Cyst/Scar", "A" if i else "B") for i in range(10)]
    write(tmp_path / "s", "modality", CT, "train", [*often, row("r.png", "Rare/Nose", "A")])
    write(tmp_path / "s", "modality", CT, "test", [row("t.png", "Rare/Cyst", "B")])
    assert cell(run(tmp_path / "s"), Modality.CT).option_prior == 1.0


def test_the_option_prior_against_a_slow_count(tmp_path: Path, run: Callable[..., Audit]) -> None:
    draw = random.Random(3)

    def rows(count: int) -> list[Row]:
        return [
            row(
                f"{draw.random()}.png",
                "/".join(draw.sample(["Pq", "Rs", "Tu", "Vw", "Xy", "Za"], k)),
                draw.choice("AB"),
            )
            for k in (draw.choice([2, 3, 4]) for _ in range(count))
        ]

    train, test = rows(25), rows(200)
    write(tmp_path / "s", "modality", CT, "train", train)
    write(tmp_path / "s", "modality", CT, "test", test)

    def options(of: Row) -> list[str]:
        return [piece[2:] for piece in of["problem"].removeprefix("What is it? ").split(", ")]

    def correct(of: Row) -> str:
        return options(of)["AB".index(of["solution"][9])]

    def score(text: str) -> Fraction:
        offered = [r for r in train if text in options(r)]
        return Fraction(sum(correct(r) == text for r in offered), len(offered) + 1)

    total = Fraction(0)
    for question in test:
        best = [t for t in options(question) if score(t) == max(map(score, options(question)))]
        total += Fraction(best.count(correct(question)), len(best))
    assert cell(run(tmp_path / "s"), Modality.CT).option_prior == pytest.approx(float(total / 200))


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((60, 60), Image.Resampling.BICUBIC).save(path)


def test_leaks_by_content_find_copies_under_another_path(
    splits: Path, tmp_path: Path, run: Callable[..., Audit]
) -> None:
    for name, seed in {"1.png": 1, "2.png": 2, "4.png": 2, "9.png": 9, "10.png": 10, "11.png": 9}.items():
        save_image(tmp_path / "Images" / "D" / name, seed)
    found = run(splits, tmp_path)
    assert found.compared_images == 6
    assert dict(found.bad_images) == {"no_image": 1}
    assert cell(found, Modality.CT).leak == Leak(images=2, by_path=1, by_content=2)
    assert cell(found, Modality.XRAY).leak == Leak(1, 0, 0)
    assert family(found, SplitAxis.MODALITY).leak == Leak(4, 3, 4)


def test_an_unreadable_image_is_compared_by_path(splits: Path, tmp_path: Path, run: Callable[..., Audit]) -> None:
    save_image(tmp_path / "Images" / "D" / "4.png", 2)
    assert cell(run(splits, tmp_path), Modality.CT).leak == Leak(images=2, by_path=1, by_content=1)


def test_without_split_files_all_records_are_test(tmp_path: Path, run: Callable[..., Audit]) -> None:
    record = {
        "question_id": "D_1",
        "question_type": "Disease Diagnosis",
        "question": "What is seen?",
        "gt_answer": "Nodule",
        "image_path": "Images/D/1.png",
        "option_A": "Fracture, old",
        "option_B": "Nodule",
        "modality_type": "X-Ray",
    }
    repeating = record | {"question_id": "D_2", "option_A": "nodule.", "option_C": "Cyst", "option_D": None}
    homeless = record | {"question_id": "D_3", "modality_type": None}
    (tmp_path / "QA_information").mkdir()
    (tmp_path / "QA_information" / "D.json").write_text(json.dumps([record, repeating, homeless]))
    found = run(tmp_path)
    (source,) = found.sources
    assert (source.name, source.records, source.readable, source.repeats) == ("QA_information", 3, 3, 1)
    assert (dict(source.options), dict(source.bad)) == ({2: 2, 3: 1}, {"duplicate_option": 1, "unknown_modality": 1})
    xray, disease = cell(found, Modality.XRAY), cell(found, QuestionType.DISEASE)
    assert (xray.train, xray.test, disease.test) == (None, 2, 3)
    assert disease.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert [f.leak for f in found.families] == [None, None]
    assert [f.off_diagonal for f in found.families] == [None, None]
    assert list(found.crossings) == []


def test_files_beside_the_data_numbers_and_other_spellings(
    tmp_path: Path, run: Callable[..., Audit], caplog: pytest.LogCaptureFixture
) -> None:
    record = {
        "question_id": 1,
        "question_type": "Lesion Grading",
        "question": "How many?",
        "gt_answer": 2,
        "image_path": "images\\d\\1.PNG",
        "option_A": 1,
        "option_B": 2,
        "option_C": float("nan"),
        "modality_type": "X-Ray",
    }
    (tmp_path / "QA_information/.hidden").mkdir(parents=True)
    (tmp_path / "QA_information/.hidden/D.json").write_text("[{")
    (tmp_path / "QA_information/D.json").write_text(json.dumps([record, record | {"option_C": 2.0}]))
    save_image(tmp_path / "Images/D/1.png", 1)
    write(tmp_path / "Splits", "modality", XRAY, "train", [row("1.png", "Cyst/Nodule", "A")])
    write(tmp_path / "Splits", "modality", XRAY, "test", [row("1.PNG ", "Cyst/Nodule", "A")])
    found = run(tmp_path)
    modality, release = found.sources
    assert (release.readable, release.repeats, dict(release.bad)) == (2, 1, {"duplicate_option": 1})
    assert modality.readable == 2 and cell(found, Modality.XRAY).leak == Leak(images=1, by_path=1, by_content=1)
    assert (found.compared_images, dict(found.bad_images)) == (1, {})
    assert "1 JSON files are skipped" in caplog.text


def test_it_is_ready_for_json(splits: Path, run: Callable[..., Audit]) -> None:
    plain = run(splits).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    modality = plain["families"][0]
    assert modality["axis"] == "modality"
    assert modality["cells"]["ct"]["leak"] == {"images": 2, "by_path": 1, "by_content": None}
    assert modality["cells"]["ct"]["options"] == {"2": 1, "3": 1, "4": 1}
    assert modality["option_prior"]["ct"]["us"] == 1.0
    assert plain["crossings"][0]["shared"] == 2
    assert len(plain["examples"]) == 4


def test_a_missing_place_and_foreign_images(splits: Path, tmp_path: Path, run: Callable[..., Audit]) -> None:
    with pytest.raises(DataError, match=r"absent does not exist\. Remedy"):
        run(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"none of the images .* Remedy"):
        run(splits, tmp_path / "empty")


needs_splits = pytest.mark.skipif(not REAL.is_dir(), reason="the Med-R1 splits are not beside the repository")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return audit(REAL, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.long
@needs_splits
def test_the_records_of_the_real_splits(real: Audit) -> None:
    source = real.sources[0]
    assert (source.readable, source.repeats) == (63_489, 44)
    assert dict(source.options) == {2: 6_778, 3: 122, 4: 56_589}
    assert dict(source.bad) == {"duplicate_option": 44, "unknown_modality": 1}
    assert [crossing.shared for crossing in real.crossings] == [9_256, 5_251]


@pytest.mark.long
@needs_splits
def test_the_leaks_of_the_real_splits(real: Audit) -> None:
    leaks = {value: c.leak for value, c in family(real, SplitAxis.MODALITY).cells.items()}
    percent = {value: round(100 * leak.by_path / leak.images, 1) for value, leak in leaks.items() if leak}
    assert percent == {
        Modality.CT: 12.5,
        Modality.XRAY: 33.2,
        Modality.US: 2.1,
        Modality.DER: 18.2,
        Modality.FP: 9.8,
        Modality.OCT: 30.8,
        Modality.MICRO: 27.8,
    }
    assert (leaks[Modality.MRI], cell(real, Modality.MRI).train) == (None, None)


@pytest.mark.long
@needs_splits
def test_the_option_prior_of_the_real_splits(real: Audit) -> None:
    cells = {value: cell for f in real.families for value, cell in f.cells.items()}
    assert {v: round(c.option_prior, 3) for v, c in cells.items() if c.option_prior is not None} == {
        Modality.CT: 0.990,
        Modality.XRAY: 0.946,
        Modality.US: 0.834,
        Modality.DER: 0.953,
        Modality.FP: 0.949,
        Modality.OCT: 1.000,
        Modality.MICRO: 0.986,
        QuestionType.ANATOMY: 0.811,
        QuestionType.LESION: 0.961,
        QuestionType.MODALITY: 0.947,
        QuestionType.ATTRIBUTES: 1.000,
    }
    modality = family(real, SplitAxis.MODALITY)
    assert (modality.pairs, round(modality.off_diagonal or 0, 3)) == (49, 0.277)


@pytest.mark.long
@needs_splits
def test_chance_and_cues_of_the_real_splits(real: Audit) -> None:
    chances = [c.chance for c in family(real, SplitAxis.MODALITY).cells.values() if c.chance is not None]
    assert (round(min(chances), 2), round(max(chances), 2)) == (0.25, 0.31)
    cues = real.sources[0].cues
    assert cues.lower_case == CueCount(12_814, 12_814)
    shares = [round(count.correct / count.n, 2) for count in (cues.with_full_stop, cues.without_full_stop)]
    assert shares == [0.64, 0.74]
    assert cues.odd_full_stop == CueCount(5_931, 5_896)


@pytest.mark.skipif(not MINI.is_dir(), reason="the OmniMedVQA sample is not beside the repository")
def test_by_content_the_real_sample_leaks_more_than_by_path(run: Callable[..., Audit]) -> None:
    found = run(MINI)
    assert found.compared_images == 1_194
    # MHSMA's x.jpg and x.png have the same content; so do copies in Chest CT Scan.
    assert cell(found, Modality.MICRO).leak == Leak(images=32, by_path=9, by_content=14)
    assert cell(found, Modality.CT).leak == Leak(images=53, by_path=35, by_content=40)
    assert {source.name: source.readable for source in found.sources} == {
        "modality splits": 2_098,
        "question type splits": 2_098,
        "QA_information": 2_098,
    }
