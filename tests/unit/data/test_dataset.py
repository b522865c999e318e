"""Datasets of every source: selection of the training records, the test records, and the fingerprint."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from PIL import Image

from medr1.config.enums import Resize
from medr1.config.settings import DataConfig
from medr1.data.dataset import Dataset, Selection, limit_cells, limit_images, load_dataset, select
from medr1.data.images import FileImage
from medr1.data.sources import SOURCES
from medr1.data.sources.omnimedvqa import OmniMedVQAConfig
from medr1.data.sources.phantoms import PhantomsConfig
from medr1.data.sources.source import Source
from medr1.data.stored_data import Split
from medr1.domain.records import UNSPECIFIED, BadRecord, Modality, QuestionType, Reason, Record
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


def collected(*parts: tuple[str, int, int], modality: Modality = Modality.CT) -> list[Record]:
    """Records of one cell: (data set, images, questions on each image). Repeated ids are numbered, as in files."""
    return [
        Record(
            id=f"{dataset}/{image}/{question}",
            images=(FileImage(Path("root"), f"Images/{dataset}/{image}.png"),),
            modality=modality,
            question_type=QuestionType.DISEASE,
            question=f"Question {question}?",
            options={"A": "yes", "B": "no"},
            answer="A",
            dataset=dataset,
        )
        for dataset, images, questions in parts
        for image in range(images)
        for question in range(questions)
    ]


def counts(records: list[Record]) -> dict[str, int]:
    return dict(Counter(record.dataset for record in records))


def test_limit_applies_to_each_cell_and_keeps_the_order() -> None:
    test = load(phantoms(test_images_per_modality=4)).test
    limited = limit_cells(test, 3)
    cells = Counter((r.modality, r.question_type) for r in limited)
    assert len(cells) == 40 and set(cells.values()) == {3}
    assert limited == [record for record in test if record in limited]
    assert limit_cells(test, None) == test and limit_cells(test, 99) == test and limit_cells([], 3) == []


def test_the_sample_is_not_the_first_records_and_a_smaller_one_is_part_of_it() -> None:
    records = collected(("D", 200, 1))
    samples = [limit_cells(records, n) for n in (1, 5, 20, 100)]
    assert samples[2] != records[:20] and max(records.index(r) for r in samples[2]) > 100
    for smaller, larger in pairwise(samples):
        assert {r.id for r in smaller} < {r.id for r in larger}


@pytest.mark.parametrize("order", ["reversed", "shuffled", "by question", "renumbered"])
def test_the_sample_does_not_depend_on_the_order_of_the_files(order: str) -> None:
    records = collected(("D", 30, 3), ("E", 5, 1), ("F", 2, 20))
    other = list(records)
    if order == "shuffled":
        random.Random(1).shuffle(other)
    elif order == "by question":
        other.sort(key=lambda record: record.question)
    else:
        other.reverse()
    if order == "renumbered":  # records with the same id are numbered in the order of the files
        records = [replace(r, id=f"D~{n}") for n, r in enumerate(records)]
        other = [replace(r, id=f"D~{n}") for n, r in enumerate(other)]

    def content(sample: list[Record]) -> set[tuple[str, str]]:
        return {(record.image_key, record.question) for record in sample}

    for limit in (1, 4, 20, 60):
        assert content(limit_cells(other, limit)) == content(limit_cells(records, limit))


@pytest.mark.parametrize(
    ("parts", "limit", "expected"),
    [
        ((("D", 100, 1), ("E", 100, 1)), 20, {"D": 10, "E": 10}),
        ((("D", 900, 1), ("E", 100, 1)), 20, {"D": 18, "E": 2}),
        ((("D", 500, 1), ("E", 1, 1)), 2, {"D": 1, "E": 1}),
        ((("D", 500, 1), ("E", 3, 1), ("F", 2, 1)), 3, {"D": 1, "E": 1, "F": 1}),
        ((("D", 500, 1), ("E", 3, 1), ("F", 2, 1)), 20, {"D": 18, "E": 1, "F": 1}),
        ((("D", 10, 1), ("E", 10, 1)), 19, None),
        ((("", 10, 1),), 4, {"": 4}),
    ],
)
def test_the_sample_has_every_data_set_in_proportion(
    parts: tuple[tuple[str, int, int], ...], limit: int, expected: dict[str, int] | None
) -> None:
    sample = limit_cells(collected(*parts), limit)
    assert len(sample) == limit
    assert counts(sample) == expected if expected else set(counts(sample).values()) == {9, 10}


def test_fewer_places_than_data_sets_go_to_different_ones() -> None:
    sample = limit_cells(collected(*((name, 50, 1) for name in "DEFGH")), 3)
    assert set(counts(sample).values()) == {1} and len(sample) == 3


@pytest.mark.parametrize(("images", "questions", "limit"), [(10, 7, 10), (10, 7, 25), (3, 50, 2), (1, 9, 4)])
def test_the_sample_is_spread_over_images(images: int, questions: int, limit: int) -> None:
    per_image = Counter(r.image_key for r in limit_cells(collected(("D", images, questions)), limit))
    assert len(per_image) == min(images, limit) and max(per_image.values()) - min(per_image.values()) <= 1


def test_training_on_few_images_keeps_all_their_questions_and_the_other_parts() -> None:
    def loaded(limit: int | None) -> Dataset:
        settings = phantoms(train_images_per_modality=12, validation_fraction=0.5, max_train_images=limit)
        return load_dataset(settings, "all", "all")

    whole, parts = loaded(None), [loaded(limit) for limit in (1, 3, 7, 99)]
    assert parts[-1].train == whole.train
    for part, images in zip(parts, (1, 3, 7, 12), strict=True):
        assert Counter(r.modality for r in part.train) == dict.fromkeys(Modality, 5 * images)
        assert len({r.image_key for r in part.train}) == 8 * images
        assert part.train == [record for record in whole.train if record in part.train]
        assert (part.validation, part.test) == (whole.validation, whole.test)
    for smaller, larger in pairwise(parts):
        assert {r.id for r in smaller.train} < {r.id for r in larger.train}
    assert [r for r in parts[1].train if r.modality == "ct"] != whole.train[:15], "a sample, not the first images"


def test_images_of_the_same_name_in_two_data_sets_are_two_images() -> None:
    records = collected(("D", 10, 2), ("E", 10, 3))
    assert limit_images(records[::-1], 6) == limit_images(records, 6)[::-1]
    assert len({(r.dataset, r.image_key) for r in limit_images(records, 6)}) == 6
    assert limit_images(records, 20) == records


@needs_mini
@pytest.mark.parametrize("limit", [8, 20])
def test_the_sample_of_real_data_has_every_data_set_of_a_modality(
    limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    test = load(omnimedvqa(MINI, tmp_path_factory.getbasetemp() / "images", split=Split.test_only)).test
    sample = limit_cells(test, limit)
    for cell in {(r.modality, r.question_type) for r in test}:
        whole, part = ([r for r in of if (r.modality, r.question_type) == cell] for of in (test, sample))
        assert len(part) == min(limit, len(whole)) and counts(part).keys() == counts(whole).keys()
        assert len({r.image_key for r in part}) >= min(limit, len({r.image_key for r in whole})) - 1
    assert len(counts(sample)) == 17
    assert {r.id for r in limit_cells(test[::-1], limit)} == {r.id for r in sample}


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


@pytest.mark.parametrize(
    ("shortcut", "fingerprint"),
    [
        (0.0, "32c33b76dfe20967c801dd0e4ddfe493f8fb318cf0b060974e020ba760e24746"),
        (0.6, "46f5a39cf7eb0f8db93dde60ffb2dfa1b4d8c12f1113832c726d2a7a1617f724"),
    ],
)
def test_the_fingerprint_of_phantoms_does_not_change_by_accident(shortcut: float, fingerprint: str) -> None:
    assert load(phantoms(shortcut=shortcut)).fingerprint == fingerprint


def test_the_fingerprint_changes_with_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    from medr1.data.sources.phantoms import drawing as phantom_images

    scan = phantom_images._scan
    monkeypatch.setattr(phantom_images, "_scan", lambda c, image, scanner: scan(c, 0.9 * image, scanner))
    assert load(phantoms()).fingerprint != FINGERPRINT


def test_the_fingerprint_does_not_depend_on_earlier_calls() -> None:
    load(phantoms(seed=5)).test[0].images[0].load(84)
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


def cells_of(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("  modality=")]


@pytest.mark.parametrize(
    ("train", "test", "selected", "is_trained"),
    [
        (0, 0, "all", False),
        (0, 0, "all", True),
        (4, 0, "all", False),
        (4, 0, "ct", True),
        (0, 4, "all", True),
        (4, 4, "us", True),
        (4, 4, "us", False),
        (0, 4, "us", True),
    ],
)
def test_missing_training_or_test_records_are_refused_with_what_there_is(
    train: int, test: int, selected: str, is_trained: bool
) -> None:
    parts = collected(("D", train, 1)), collected(("E", test, 1), modality=Modality.XRAY)
    with one_source(*parts) as config, pytest.raises(DataError) as caught:
        load_dataset(config, selected, "all", is_trained=is_trained)
    message = str(caught.value)
    assert "data=mine" in message and "Remedy" in message
    expected = [f"modality=ct question_type=disease: {train}"] * bool(train)
    lacks_training = selected == "us" if train else is_trained
    if lacks_training:
        expected += [f"modality=xray question_type=disease: {test}"] * bool(test)
    assert (f"modality={selected} and" in message) is lacks_training
    assert cells_of(message) == expected


@pytest.mark.parametrize(("train", "is_trained"), [(0, False), (1, True), (1, False)])
def test_an_evaluation_needs_no_training_records(train: int, is_trained: bool) -> None:
    with one_source(collected(("D", train, 1)), collected(("E", 1, 1))) as config:
        data = load_dataset(config, "all", "all", is_trained=is_trained)
    assert (len(data.train), len(data.test)) == (train, 1)


@pytest.mark.parametrize("train", [0, 1])
def test_phantoms_without_test_images_are_refused(train: int) -> None:
    with pytest.raises(DataError, match="no test record"):
        load(phantoms(train_images_per_modality=train, test_images_per_modality=0))
    with pytest.raises(DataError, match="no training record"):
        load_dataset(phantoms(train_images_per_modality=0), "all", "all", is_trained=True)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    "changes",
    [
        {"question": "Seen <|im_end|>?"},
        {"question": "Seen [SEP]?"},
        {"options": {"A": "yes", "B": "[SEP]"}},
        {"options": {"A": "\ud800", "B": "no"}},
        {"rationale": "because [SEP]"},
        {"rationale": "It is seen.</think>"},
    ],
    ids=str,
)
def test_a_source_that_skips_no_records_is_checked_as_well(part: str, changes: dict[str, Any]) -> None:
    good = collected(("D", 2, 1))
    bad = [good[0], replace(good[1], origin="mine.csv 7", **changes)]
    with one_source(bad if part == "train" else good, bad if part == "test" else good) as config:
        with pytest.raises(BadRecord) as caught:
            load_dataset(config, "all", "all", control_tokens=frozenset({"[SEP]"}))
        if "[SEP]" in str(changes):
            load_dataset(config, "all", "all")
    assert "mine.csv 7, record D/1/0" in str(caught.value) and "Remedy" in str(caught.value)


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


@contextmanager
def one_source(train: list[Record], test: list[Record]) -> Iterator[DataConfig]:
    """A data source with these records, for the duration of the block."""

    @dataclass
    class MineConfig(DataConfig):
        kind: str = "mine"
        name: str = "mine"

    class Mine(Source[MineConfig]):
        kind = "mine"
        settings = MineConfig

        def load(self, settings: MineConfig, selection: Selection) -> Dataset:
            return Dataset(train, test, "", {}, [])

    SOURCES.register(Mine())
    try:
        yield MineConfig()
    finally:
        del SOURCES._components["mine"]


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


@dataclass
class OwnConfig(DataConfig):
    """Phantoms with other values of the axes, by known value."""

    kind: str = "own_axes"
    names: dict[str, str] = field(default_factory=dict)


class Own(Source[OwnConfig]):
    kind = "own_axes"
    settings = OwnConfig

    def load(self, settings: OwnConfig, selection: Selection) -> Dataset:
        known = load(phantoms())
        parts = (
            [
                replace(r, modality=settings.names[r.modality], question_type=UNSPECIFIED)
                for r in part
                if r.modality in settings.names
            ]
            for part in (known.train, known.test)
        )
        return Dataset(*parts, "fingerprint", {}, [])


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[..., OwnConfig]:
    monkeypatch.setattr(SOURCES, "_components", {**SOURCES._components, "own_axes": Own()})
    return lambda **names: OwnConfig(name="own", image_size=28, names=names)


def test_training_records_are_selected_by_values_of_the_data(own: Callable[..., OwnConfig]) -> None:
    data = own(ct="Chest X-ray", mri="CT/MR")
    assert {r.modality for r in load(data, modality="CT/MR").train} == {"CT/MR"}
    assert {r.modality for r in load(data, modality="CT/MR").test} == {"Chest X-ray", "CT/MR"}
    assert len(load(data, question_type=UNSPECIFIED).train) == len(load(data).train) == 30
    per_cell = Counter((r.modality, r.question_type) for r in limit_cells(load(data).test, 3))
    assert per_cell == {("Chest X-ray", UNSPECIFIED): 3, ("CT/MR", UNSPECIFIED): 3}


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ({"modality": "chest x-ry"}, "modality=chest x-ry: Did you mean 'Chest X-ray'?"),
        ({"modality": "ecg"}, "modality=ecg: Did you mean 'ECG'?"),
        ({"question_type": "unspecifid"}, "question_type=unspecifid: Did you mean 'unspecified'?"),
    ],
)
def test_a_value_that_the_data_lacks_is_named_with_the_nearest_and_all(
    own: Callable[..., OwnConfig], selection: dict[str, str], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        load(own(ct="Chest X-ray", mri="ECG"), **selection)
    assert said in str(caught.value)
    for value in ("Chest X-ray", "ECG"):
        assert f"modality={value} question_type=unspecified: 15" in str(caught.value)


def test_other_data_need_not_have_the_selection_of_a_run(own: Callable[..., OwnConfig]) -> None:
    found = load_dataset(own(ct="PET"), "ct", "all", is_other_data=True)
    assert found.train == [] and len(found.test) == 10
    assert any("modality=ct" in message and "no option prior" in message for message in found.messages)
    with pytest.raises(DataError):
        load_dataset(own(ct="PET"), "ct", "all", is_other_data=True, is_trained=True)


@pytest.mark.parametrize("value", ["all", "mean", "", " ", " PET", "PET\n", "P\x1b[31mET", "\ud800", "x" * 101])
def test_a_text_that_cannot_be_a_value_is_refused_with_its_record(own: Callable[..., OwnConfig], value: str) -> None:
    with pytest.raises(BadRecord) as caught:
        load(own(ct=value))
    assert repr(value) in str(caught.value) and "phantoms, record train/ct/" in str(caught.value)


TWO = replace(RECORDS[0], images=RECORDS[0].images * 2, question="Is <image 2> like the other?")


@pytest.mark.parametrize(
    ("record", "reason", "named"),
    [
        (replace(TWO, images=RECORDS[0].images * 4), Reason.TOO_MANY_IMAGES, "4 images; data.max_images=3"),
        (replace(TWO, question="<image 3>?"), Reason.MALFORMED, "<image 3>, and there are 2"),
        (replace(TWO, options={"A": "<image 0>", "B": "none"}), Reason.MALFORMED, "<image 0>"),
    ],
    ids=["images", "question", "option"],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_images_that_are_too_many_or_not_there_are_named(record: Record, reason: Reason, named: str, part: str) -> None:
    records = [TWO, record]
    with one_source(*((records, [TWO]) if part == "train" else ([TWO], records))) as settings:
        settings.max_images = 3
        with pytest.raises(BadRecord, match=re.escape(named)) as caught:
            load(settings)
        assert (caught.value.reason, caught.value.record) == (reason, record.id)
        records.pop()
        assert load(settings).train == [TWO]


def test_a_record_has_an_image_and_a_key_of_all_its_images() -> None:
    with pytest.raises(BadRecord, match="no image"):
        replace(RECORDS[0], images=())
    one, two = (FileImage(Path("root"), name) for name in ("a.png", "b.png"))
    keys = [replace(RECORDS[0], images=images).image_key for images in ((one,), (two,), (one, two), (two, one))]
    assert keys[:2] == ["a.png", "b.png"] and keys[2] == keys[3] and len(set(keys)) == 3


def test_the_fingerprint_of_phantoms_changes_with_the_size_at_which_they_are_drawn() -> None:
    native = {"resize": Resize.native, "max_pixels": 28 * 28}
    assert load(phantoms(**native)).fingerprint == FINGERPRINT, "the same pixels"
    assert load(phantoms(**native | {"max_pixels": 56 * 56})).fingerprint != FINGERPRINT
