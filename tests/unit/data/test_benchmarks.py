"""Each benchmark, read from a miniature in its released layout: counts, records, images, and what is missing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from medr1.data.dataset import Dataset, load_dataset
from medr1.data.sources import SOURCES
from medr1.domain.records import UNSPECIFIED, Record
from medr1.errors import DataError
from medr1.evaluation.data_audit import audit_data
from tests.composing import composed
from tests.miniatures import MINIATURES, write_path_vqa, write_slake


@cache
def composed_data(words: str, *overrides: str) -> Any:
    """The settings of these words, composed once."""
    return composed("evaluate", *f"data={words}".split(), "data.root=.", *overrides).data


def load(words: str, root: Path, *overrides: str) -> Dataset:
    """The dataset as a command line would load it."""
    places = {"root": str(root), "cache_dir": str(root.parent / "cache")}
    settings = replace(composed_data(words, *overrides), **places)
    SOURCES[settings.kind].check(settings)
    return load_dataset(settings, "all", "all")


def by_id(dataset: Dataset) -> dict[str, Record]:
    return {record.id: record for record in (*dataset.train, *dataset.test)}


@pytest.mark.parametrize("words", MINIATURES)
def test_counts_are_those_of_the_written_rows(words: str, tmp_path: Path) -> None:
    expected = Counter(MINIATURES[words][1](tmp_path / "data"))
    dataset = load(words, tmp_path / "data")
    counts = dataset.facts["counts"]
    found = Counter({"train": len(dataset.train), "test": len(dataset.test)}) + Counter(counts["left_out"])
    assert found + Counter(counts["bad"]) == expected
    assert counts["questions_read"] == expected.total()
    for record in (*dataset.train, *dataset.test):
        assert record.answer in record.options and all(image.load(28).size[0] >= 40 for image in record.images)
    again = load(words, tmp_path / "data")
    assert (again.fingerprint, again.facts) == (dataset.fingerprint, dataset.facts)


@pytest.mark.parametrize("words", MINIATURES)
def test_open_questions_are_no_defects_and_bad_records_are(words: str, tmp_path: Path) -> None:
    MINIATURES[words][1](tmp_path / "data")
    if words in ("pmc_vqa", "medvlthinker_eval"):
        with pytest.raises(DataError, match=r"duplicate_option|answer_not_among_options"):
            load(words, tmp_path / "data", "data.on_bad_record=error")
    else:
        load(words, tmp_path / "data", "data.on_bad_record=error")


@pytest.mark.parametrize("words", MINIATURES)
def test_a_missing_file_is_named(words: str, tmp_path: Path) -> None:
    MINIATURES[words][1](tmp_path / "data")
    dataset = load(words, tmp_path / "data")
    gone = Path(dataset.test[0].origin.partition(" #")[0])
    gone.unlink()
    with pytest.raises(DataError, match=r"has no .*Remedy"):
        load(words, tmp_path / "data")


def test_vqa_rad(tmp_path: Path) -> None:
    MINIATURES["vqa_rad"][1](tmp_path / "data")
    records = by_id(load("vqa_rad", tmp_path / "data"))
    assert [(records[i].options, records[i].answer) for i in ("1", "2", "5")] == [
        ({"A": "Yes", "B": "No"}, "B"),
        ({"A": "left", "B": "right"}, "B"),
        ({"A": "Yes", "B": "No"}, "B"),
    ]
    assert {(r.modality, r.question_type) for r in records.values()} == {(UNSPECIFIED, "PRES")}


@pytest.mark.parametrize("validation", ["validation.json", "validate.json"])
def test_slake_has_the_modalities_of_omnimedvqa_and_either_name_of_its_validation_part(
    validation: str, tmp_path: Path
) -> None:
    write_slake(tmp_path / "data", validation)
    dataset = load("slake", tmp_path / "data", "data.test_part=validation")
    assert [(r.modality, r.question_type, r.answer_text) for r in dataset.test] == [("mri", "Organ", "Yes")]
    assert [r.modality for r in dataset.train] == ["ct", "ct", "xray"]
    assert dataset.train[1].options == {"A": "kidney", "B": "liver"} and dataset.train[1].answer == "B"


def test_splits_of_a_benchmark(tmp_path: Path) -> None:
    write_slake(tmp_path / "data")
    alone = load("slake", tmp_path / "data", "data.split=test_only")
    assert (len(alone.train), len(alone.test)) == (0, 2)
    grouped = load("slake", tmp_path / "data", "data.split=image_grouped", "data.test_fraction=0.4")
    assert len(grouped.train) + len(grouped.test) == 5 and grouped.facts["leaks"]["records_by_content"] == 0
    with pytest.raises(DataError, match=r"data\.test_part=val: .* train, validation, test"):
        load("slake", tmp_path / "data", "data.test_part=val")


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    write_path_vqa(tmp_path / "data")
    for file in (tmp_path / "data" / "data").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="pickles are never loaded"):
        load("path_vqa", tmp_path / "data")


def test_another_layout_is_named(tmp_path: Path) -> None:
    write_slake(tmp_path / "data")
    file = tmp_path / "data" / "test.json"
    file.write_text(file.read_text().replace('"q_lang"', '"language"'))
    with pytest.raises(DataError, match=r"has no column 'q_lang'.*release of slake"):
        load("slake", tmp_path / "data")


def test_pmc_vqa_prefixes_and_its_cleaned_part(tmp_path: Path) -> None:
    MINIATURES["pmc_vqa"][1](tmp_path / "data")
    dataset = load("pmc_vqa", tmp_path / "data", "data.test_part=test_clean")
    assert len(dataset.test) == 1
    assert dataset.train[1].options == {"A": "Axial", "B": "Sagittal", "C": "Coronal", "D": "Oblique"}
    assert [record.answer for record in dataset.train] == ["A", "B", "A"]


def test_several_images(tmp_path: Path) -> None:
    found = {}
    for words in ("medxpertqa_mm", "mmmu_med", "medframeqa", "medvlthinker_eval"):
        MINIATURES[words][1](tmp_path / words)
        found[words] = [len(record.images) for record in load(words, tmp_path / words).test]
    assert found == {
        "medxpertqa_mm": [1, 2, 1],
        "mmmu_med": [1, 2, 1, 1, 1],
        "medframeqa": [2, 3, 4],
        "medvlthinker_eval": [1, 1, 1, 2],
    }


def test_medxpertqa_questions_end_before_their_options(tmp_path: Path) -> None:
    MINIATURES["medxpertqa_mm"][1](tmp_path / "data")
    first = load("medxpertqa_mm", tmp_path / "data").test[0]
    assert (first.question, first.question_type, len(first.options)) == ("A man of 61?", "Reasoning", 5)


def test_mmmu_options_and_data_sets(tmp_path: Path) -> None:
    MINIATURES["mmmu_med"][1](tmp_path / "data")
    records = load("mmmu_med", tmp_path / "data").test
    assert records[0].options == {"A": "the patient's skin", "B": "bone", "C": "a, b"}
    assert [r.dataset for r in records][:2] == ["Basic_Medical_Science", "Clinical_Medicine"]
    assert all(record.id.startswith("validation_") for record in records)


@pytest.mark.parametrize("words", MINIATURES)
def test_the_audit_reads_it(words: str, tmp_path: Path) -> None:
    MINIATURES[words][1](tmp_path / "data")
    dataset = load(words, tmp_path / "data")
    audit = audit_data(dataset, words)
    of_set = audit.sets[words]
    assert (of_set.train, of_set.test) == (len(dataset.train), len(dataset.test))
    assert sum(of_set.answers.values()) == len(dataset.test) and 0 < of_set.chance <= 0.5
    assert (of_set.option_prior is None) == (not dataset.train)
    assert of_set.leaked_records == sum(
        bool({i.key for i in r.images} & {i.key for t in dataset.train for i in t.images}) for r in dataset.test
    )
