"""Datasets of every source: selection of the training records, the test records, and the fingerprint."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from PIL import Image

from medr1.config.settings import DataConfig
from medr1.data.dataset import Dataset, Selection, limit_cells, load_dataset, select
from medr1.data.sources import SOURCES
from medr1.data.sources.omnimedvqa import OmniMedVQAConfig, Split
from medr1.data.sources.phantoms import PhantomsConfig
from medr1.data.sources.source import Source
from medr1.domain.records import Modality, QuestionType
from medr1.errors import ConfigError, DataError

MINI = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "omnimedvqa-mini"
needs_mini = pytest.mark.skipif(not MINI.is_dir(), reason="the OmniMedVQA sample is not beside the repository")


def phantoms(**changes: Any) -> PhantomsConfig:
    small = {"train_images_per_modality": 3, "test_images_per_modality": 2, "image_size": 28}
    return PhantomsConfig(**(small | changes))


def omnimedvqa(root: Path, cache: Path, **changes: Any) -> OmniMedVQAConfig:
    return OmniMedVQAConfig(image_size=28, root=str(root), cache_dir=str(cache), **changes)


def load(data: DataConfig, modality: str = "all", question_type: str = "all") -> Dataset:
    return load_dataset(data, modality, question_type)


def release(root: Path, records: int = 6) -> Path:
    """A release with one question for each image, alternately CT and X-Ray."""
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
def test_the_selection_restricts_training_records_only(modality: str, question_type: str) -> None:
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


RECORDS = load(phantoms()).train
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
    monkeypatch.setattr(phantom_images, "_scan", lambda c, image, scanner: scan(c, 0.9 * image, scanner))
    assert load(phantoms()).fingerprint != FINGERPRINT


def test_the_fingerprint_does_not_depend_on_earlier_calls() -> None:
    load(phantoms(seed=5)).test[0].image.load(84)
    np.random.default_rng().random(3)
    np.random.seed(4)
    assert load(phantoms(), "mri", "disease").fingerprint == load(phantoms()).fingerprint == FINGERPRINT


def test_a_dataset_from_files(tmp_path: Path) -> None:
    root = release(tmp_path / "root")
    config = omnimedvqa(root, tmp_path / "cache", split=Split.image_grouped, test_fraction=0.4)
    data = load(config, "ct")
    assert {r.modality for r in data.train} == {Modality.CT}
    assert {r.modality for r in data.test} == {Modality.CT, Modality.XRAY}
    assert json.loads(json.dumps(data.facts))["counts"]["questions_used"] == 6
    assert any("6 questions on 6 images read" in message for message in data.messages)
    again = load(omnimedvqa(root, tmp_path / "cache", split=Split.image_grouped, test_fraction=0.4))
    assert again.fingerprint == data.fingerprint
    Image.new("RGB", (60, 60), "red").save(root / "Images/D/0.png")
    changed = load(omnimedvqa(root, tmp_path / "cache", split=Split.image_grouped, test_fraction=0.4))
    assert changed.fingerprint != data.fingerprint


def test_an_empty_selection_lists_what_the_data_has(tmp_path: Path) -> None:
    config = omnimedvqa(release(tmp_path / "root"), tmp_path / "cache", split=Split.image_grouped)
    with pytest.raises(DataError) as error:
        load(config, "us", "lesion")
    message = str(error.value)
    assert "modality=us and question_type=lesion" in message
    assert "modality=ct question_type=disease" in message and "modality=xray question_type=anatomy" in message


def test_test_only_puts_every_record_into_the_test(tmp_path: Path) -> None:
    config = omnimedvqa(release(tmp_path / "root"), tmp_path / "cache", split=Split.test_only)
    data = load(config, "us", "lesion")
    assert data.train == [] and len(data.test) == 6


def test_each_source_checks_its_settings_before_loading(tmp_path: Path) -> None:
    source, cache = SOURCES["omnimedvqa"], tmp_path / "cache"
    source.check(omnimedvqa(tmp_path, cache))
    source.check_training(omnimedvqa(tmp_path, cache))
    for config, named in (
        (omnimedvqa(tmp_path / "nowhere", cache), r"data\.root="),
        (omnimedvqa(tmp_path, cache, splits="nowhere"), r"data\.splits=nowhere"),
    ):
        with pytest.raises(ConfigError, match=named):
            source.check(config)
    with pytest.raises(ConfigError, match=r"data\.split=test_only"):
        source.check_training(omnimedvqa(tmp_path, cache, split=Split.test_only))
    with pytest.raises(ConfigError, match="phantom"):
        load(DataConfig(kind="phantom"))


def test_only_phantoms_have_annotated_test_records(tmp_path: Path) -> None:
    assert SOURCES["phantoms"].annotated_test_records(phantoms()) == load(phantoms()).test
    assert SOURCES["omnimedvqa"].annotated_test_records(omnimedvqa(tmp_path, tmp_path)) == []


def test_a_new_source_is_one_registration() -> None:
    @dataclass
    class OneRecordConfig(DataConfig):
        kind: str = "one_record"

    class OneRecord(Source[OneRecordConfig]):
        kind = "one_record"
        settings = OneRecordConfig

        def load(self, settings: OneRecordConfig, selection: Selection) -> Dataset:
            return Dataset(RECORDS[:1], RECORDS[1:2], selection.modality, {}, [])

    try:
        SOURCES.register(OneRecord())
        data = load(OneRecordConfig(), RECORDS[0].modality)
        assert (data.train, data.test, data.fingerprint) == (RECORDS[:1], RECORDS[1:2], RECORDS[0].modality)
        node = ConfigStore.instance().load("data/one_record_schema.yaml").node
        assert OmegaConf.get_type(node) is OneRecordConfig
    finally:
        del SOURCES._components["one_record"]


@needs_mini
@pytest.mark.parametrize(
    ("modality", "question_type", "axis"),
    [("ct", "all", "modality"), ("all", "anatomy", "question_type"), ("all", "all", "modality")],
)
def test_auto_reads_the_splits_of_the_restricted_axis(
    modality: str, question_type: str, axis: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.getbasetemp() / "images"
    data = load(omnimedvqa(MINI, cache), modality, question_type)
    assert data.facts["released_axis"] == axis and data.train and data.test
    assert {r.modality for r in data.test} == set(Modality)
