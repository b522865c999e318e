"""One way to any data: what is selected for training, what is tested, and a fingerprint that tells data apart."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from medr1.config.settings import OmniMedVQAConfig, PhantomsConfig
from medr1.data.dataset import Dataset, limit_cells, load_dataset, select
from medr1.domain.records import Modality, QuestionType
from medr1.errors import DataError

MINI = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "omnimedvqa-mini"
needs_mini = pytest.mark.skipif(not MINI.is_dir(), reason="the OmniMedVQA sample is not beside the repository")


def phantoms(**changes: Any) -> DictConfig:
    small = {"train_images_per_modality": 3, "test_images_per_modality": 2, "image_size": 28}
    return OmegaConf.structured(PhantomsConfig(**({"name": "phantoms"} | small | changes)))


def omnimedvqa(root: Path, cache: Path, **changes: Any) -> DictConfig:
    given = {"name": "omnimedvqa", "image_size": 28, "root": str(root), "cache_dir": str(cache)} | changes
    return OmegaConf.structured(OmniMedVQAConfig(**given))


def load(data: DictConfig, modality: str = "all", question_type: str = "all") -> Dataset:
    return load_dataset(data, modality, question_type)


def release(root: Path, records: int = 6) -> Path:
    """A release of one picture and question each, alternately CT and X-Ray."""
    rows = [
        {
            "dataset": "D",
            "question_id": f"D_{i}",
            "question_type": ("Disease Diagnosis", "Anatomy Identification")[i // 2 % 2],
            "question": f"What is shown in {i}?",
            "gt_answer": "lung",
            "image_path": f"Images/D/{i}.png",
            "option_A": "heart",
            "option_B": "lung",
            "modality_type": ("CT(Computed Tomography)", "X-Ray")[i % 2],
        }
        for i in range(records)
    ]
    for i in range(records):
        (root / "Images/D").mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((60, 60)).save(root / f"Images/D/{i}.png")
    (root / "QA_information").mkdir()
    (root / "QA_information/D.json").write_text(json.dumps(rows))
    return root


@pytest.mark.parametrize("modality", ["all", "us"])
@pytest.mark.parametrize("question_type", ["all", "lesion"])
def test_training_is_narrowed_and_the_test_covers_everything(modality: str, question_type: str) -> None:
    data, whole = load(phantoms(), modality, question_type), load(phantoms())
    assert data.train == select(whole.train, modality, question_type)
    assert {r.modality.value for r in data.train} == (set(Modality) if modality == "all" else {modality})
    assert {r.question_type.value for r in data.train} == (
        set(QuestionType) if question_type == "all" else {question_type}
    )
    assert len(data.train) == 3 * (8 if modality == "all" else 1) * (5 if question_type == "all" else 1)
    assert data.test == whole.test and len(data.test) == 8 * 5 * 2
    assert data.fingerprint == whole.fingerprint


def test_facts_can_be_stored_as_json() -> None:
    facts = json.loads(json.dumps(load(phantoms()).facts))
    assert facts["counts"] == {"questions_train": 120, "questions_test": 80, "images_test": 16}


def test_limit_keeps_the_first_records_of_each_cell() -> None:
    test = load(phantoms(test_images_per_modality=4)).test
    limited = limit_cells(test, 3)
    assert set(Counter((r.modality, r.question_type) for r in limited).values()) == {3}
    for cell in {(r.modality, r.question_type) for r in test}:
        of_cell = [r for r in test if (r.modality, r.question_type) == cell]
        assert [r for r in limited if (r.modality, r.question_type) == cell] == of_cell[:3]
    assert limit_cells(test, None) == test and limit_cells(test, 99) == test


FINGERPRINT = load(phantoms()).fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"train_images_per_modality": 4},
        {"test_images_per_modality": 3},
        {"shortcut": 1.0},
        {"image_size": 56},
    ],
    ids=str,
)
def test_the_fingerprint_changes_with_the_data(changes: dict[str, Any]) -> None:
    assert load(phantoms(**changes)).fingerprint != FINGERPRINT


def test_the_fingerprint_changes_with_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    from medr1.data.sources.phantoms import drawing as phantom_images

    scan = phantom_images._scan
    monkeypatch.setattr(phantom_images, "_scan", lambda c, picture, scanner: scan(c, 0.9 * picture, scanner))
    assert load(phantoms()).fingerprint != FINGERPRINT


def test_the_fingerprint_does_not_depend_on_what_was_asked_before() -> None:
    load(phantoms(seed=5)).test[0].image.load(84)
    np.random.default_rng().random(3)
    np.random.seed(4)
    assert load(phantoms(), "mri", "disease").fingerprint == load(phantoms()).fingerprint == FINGERPRINT


def test_files_give_the_same_kind_of_dataset(tmp_path: Path) -> None:
    root = release(tmp_path / "root")
    config = omnimedvqa(root, tmp_path / "cache", split="image_grouped", test_fraction=0.4)
    data = load(config, "ct")
    assert {r.modality for r in data.train} == {Modality.CT}
    assert {r.modality for r in data.test} == {Modality.CT, Modality.XRAY}
    assert json.loads(json.dumps(data.facts))["counts"]["questions_used"] == 6
    assert any("6 questions on 6 images read" in message for message in data.messages)
    again = load(omnimedvqa(root, tmp_path / "cache", split="image_grouped", test_fraction=0.4))
    assert again.fingerprint == data.fingerprint
    Image.new("RGB", (60, 60), "red").save(root / "Images/D/0.png")
    changed = load(omnimedvqa(root, tmp_path / "cache", split="image_grouped", test_fraction=0.4))
    assert changed.fingerprint != data.fingerprint


def test_a_selection_that_leaves_nothing_says_what_there_is(tmp_path: Path) -> None:
    config = omnimedvqa(release(tmp_path / "root"), tmp_path / "cache", split="image_grouped")
    with pytest.raises(DataError) as error:
        load(config, "us", "lesion")
    message = str(error.value)
    assert "modality=us and question_type=lesion" in message
    assert "modality=ct question_type=disease" in message and "modality=xray question_type=anatomy" in message


def test_without_training_records_every_record_tests(tmp_path: Path) -> None:
    config = omnimedvqa(release(tmp_path / "root"), tmp_path / "cache", split="test_only")
    data = load(config, "us", "lesion")
    assert data.train == [] and len(data.test) == 6


@needs_mini
@pytest.mark.parametrize(
    ("modality", "question_type", "axis"),
    [("ct", "all", "modality"), ("all", "anatomy", "question_type"), ("all", "all", "modality")],
)
def test_auto_reads_the_family_of_real_splits_that_is_narrowed(
    modality: str, question_type: str, axis: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.getbasetemp() / "pictures"
    data = load(omnimedvqa(MINI, cache), modality, question_type)
    assert data.facts["released_axis"] == axis and data.train and data.test
    assert {r.modality for r in data.test} == set(Modality)
