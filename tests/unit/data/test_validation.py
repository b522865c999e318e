"""Validation records: of images of their own, divided by content, never one of the test."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from medr1.config.settings import DataConfig
from medr1.data.dataset import Dataset, Selection, load_dataset
from medr1.data.images import FileImage
from medr1.data.sources import SOURCES
from medr1.data.sources.phantoms import PhantomsConfig
from medr1.data.sources.source import Source
from medr1.data.splitting import connected, validation_parts
from medr1.domain.records import Record
from medr1.errors import DataError
from medr1.workflows.components import check_typed
from tests.composing import composed
from tests.miniatures import png, save_png, write_json, write_slake

MODALITIES, TYPES = ("ct", "mri"), ("anatomy", "lesion")


def record(number: int, *images: int, modality: str = "ct", question_type: str = "lesion") -> Record:
    shown = tuple(FileImage(Path(), f"{image}.png", content_id=f"content-{image}") for image in images or (number,))
    return Record(f"id-{number}", shown, modality, question_type, "Which?", {"A": "a", "B": "b"}, "A")


def many(images: int = 200) -> list[Record]:
    """Two questions on each image, alternately of all modalities and question types."""
    return [
        record(2 * i + j, i, modality=MODALITIES[i % 2], question_type=TYPES[i // 2 % 2])
        for i in range(images)
        for j in range(2)
    ]


def validation(records: list[Record], fraction: float, *excluded: Record) -> list[Record]:
    chosen = validation_parts(records, fraction, excluded)
    return [record for record, is_chosen in zip(records, chosen, strict=True) if is_chosen]


@pytest.mark.parametrize("fraction", [0.04, 0.1, 0.5])
def test_every_modality_and_type_gives_its_share_in_whole_images(fraction: float) -> None:
    records = many()
    taken = validation(records, fraction)
    cells = Counter((r.modality, r.question_type) for r in taken)
    assert len(cells) == 4 and all(count == 2 * int(50 * fraction) for count in cells.values())
    assert not connected(taken, [r for r in records if r not in taken])


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_the_order_of_the_records_does_not_matter_but_their_images_do(fraction: float) -> None:
    records = many()
    mixed = random.Random(0).sample(records, len(records))
    names = {r.id for r in validation(records, fraction)}
    assert {r.id for r in validation(mixed, fraction)} == names
    renamed = [replace(r, id=f"new-{r.id}") for r in records]
    assert {r.id for r in validation(renamed, fraction)} == {f"new-{name}" for name in names}
    assert names != {r.id for r in records[: len(names)]}


def test_one_large_image_is_not_taken_for_the_whole_share() -> None:
    """Whatever the order of the hash: of four images one has 200 of 230 questions."""
    for shift in range(10):
        sizes = dict(zip(range(shift, shift + 4), (200, 10, 10, 10), strict=True))
        records = [record(1000 * image + n, image) for image, count in sizes.items() for n in range(count)]
        assert len(validation(records, 0.1)) == 20 and len(validation(records, 0.01)) == 10


def test_images_of_the_test_are_never_taken_and_connected_ones_stay_together() -> None:
    records = [record(0, 0, 1), record(1, 1, 2), record(2, 2), record(3, 3), record(4, 4)]
    for fraction in (0.2, 0.6):
        taken = {r.id for r in validation(records, fraction)}
        assert taken and len(taken & {"id-0", "id-1", "id-2"}) in (0, 3)
    assert {r.id for r in validation(records, 0.9, record(9, 2), record(8, 4))} == {"id-3"}
    assert validation(records, 0.9, *records) == [] == validation(records[:3], 0.5)


@pytest.fixture
def mine() -> Iterator[Any]:
    """(train, validation, test) -> settings of a source with these records."""

    @dataclass
    class MineConfig(DataConfig):
        kind: str = "mine"
        name: str = "mine"

    parts: list[list[Record]] = []

    class Mine(Source[MineConfig]):
        kind = "mine"
        settings = MineConfig

        def load(self, settings: MineConfig, selection: Selection) -> Dataset:
            train, own, test = parts
            return Dataset(train, test, "", {}, [], own)

    def source(*given: list[Record], fraction: float = 0.0) -> MineConfig:
        parts[:] = given
        return MineConfig(validation_fraction=fraction)

    SOURCES.register(Mine())
    yield source
    del SOURCES._components["mine"]


def test_any_source_gives_validation_records(mine: Any) -> None:
    train, test = many(40), [record(999)]
    data = load_dataset(mine(train, [], test, fraction=0.25), "mri", "all", is_trained=True)
    assert {r.modality for r in (*data.train, *data.validation)} == {"mri"}
    assert len(data.validation) == 8 and len(data.train) == 32 and not connected(data.validation, data.train)
    of_all = load_dataset(mine(train, [], test, fraction=0.25), "all", "all")
    assert {r.id for r in data.validation} < {r.id for r in of_all.validation}
    assert data.fingerprint != of_all.fingerprint != load_dataset(mine(train, [], test), "all", "all").fingerprint


@pytest.mark.parametrize(
    ("train", "own", "test", "fraction", "named"),
    [
        ([record(1)], [record(2, 1)], [record(3)], 0.0, "training record, first id-2"),
        ([record(1)], [record(2, 3)], [record(3)], 0.0, "test record, first id-2"),
        ([record(1)], [], [record(2)], 0.5, "1 training records have 1 images"),
        ([record(1), record(2)], [], [record(3, 1), record(4, 2)], 0.5, "2 are also in the test"),
        ([record(1)], [record(2, modality="mri")], [record(3)], 0.0, "no validation record has modality=ct"),
    ],
    ids=["image of training", "image of test", "one image", "all in the test", "not of the selection"],
)
def test_a_validation_set_that_is_empty_or_shared_is_refused(
    train: list[Record], own: list[Record], test: list[Record], fraction: float, named: str, mine: Any
) -> None:
    settings = mine(train, own, test, fraction=fraction)
    SOURCES["mine"].has_validation = lambda _: True  # type: ignore[method-assign]
    with pytest.raises(DataError, match=named):
        load_dataset(settings, "ct", "all", is_trained=True)


def test_phantoms_for_validation_leave_training_and_test_as_they_are() -> None:
    settings = PhantomsConfig(train_images_per_modality=10, test_images_per_modality=2, image_size=28)
    before = load_dataset(settings, "all", "all")
    after = load_dataset(replace(settings, validation_fraction=0.2, shortcut=0.9), "ct", "all")
    assert [r.id for r in after.train] == [r.id for r in before.train if r.modality == "ct"]
    assert after.test == before.test and before.validation == []
    assert len(after.validation) == 2 * 5 and after.fingerprint != before.fingerprint
    images = {image.load(28).tobytes() for r in (*after.train, *after.test) for image in r.images}
    assert images.isdisjoint(image.load(28).tobytes() for r in after.validation for image in r.images)
    assert len(load_dataset(replace(settings, validation_fraction=0.001), "all", "all").validation) == 8 * 5


def load(words: str) -> Dataset:
    cfg = composed("train", *words.split(), "trainer.eval_steps=1")
    return load_dataset(cfg.data, "all", "all", is_trained=True)


def test_the_validation_part_of_a_benchmark(tmp_path: Path) -> None:
    write_slake(tmp_path / "data")
    words = f"data=slake data.root={tmp_path}/data data.cache_dir={tmp_path}/cache data.validation_part="
    data = load(f"{words}validation")
    assert [r.id for r in data.validation] == ["1005"] and [r.id for r in data.train] == ["1000", "1001", "1004"]
    with pytest.raises(DataError, match=r"data\.validation_part=dev: .* train, validation, test"):
        load(f"{words}dev")
    with pytest.raises(DataError, match="no validation record"):
        load(f"{words}train")


@pytest.mark.parametrize("by", ["column", "names", "files"])
def test_the_validation_part_of_own_data(by: str, tmp_path: Path) -> None:
    sizes = {"train": 3, "val": 2, "test": 1}
    rows: dict[str, list[dict[str, Any]]] = {part: [] for part in sizes}
    for number, part in enumerate(part for part, size in sizes.items() for _ in range(size)):
        save_png(tmp_path / "q" / f"{number}.png", number)
        row = {"id": str(number), "image": f"{number}.png", "question": "Which?", "options": ["a", "b"], "answer": "A"}
        rows[part].append(row | ({"split": part} if by == "column" else {}))
    if by == "column":
        write_json(tmp_path / "q" / "all.json", [row for part in rows.values() for row in part])
    else:
        for part, of_part in rows.items():
            write_json(tmp_path / "q" / f"{part}.json", of_part)
    files = "data.files.train=[train.json] data.files.validation=[val.json] data.files.test=[test.json]"
    chosen = files if by == "files" else "data.validation_part=val"
    data = load(f"data=mcqa data.path={tmp_path}/q data.cache_dir={tmp_path}/cache {chosen}")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [3, 2, 1]


@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize("by", ["column", "files"])
def test_the_remedy_for_shared_validation_images_works_as_it_is_printed(by: str, sets: bool, tmp_path: Path) -> None:
    sizes = {"train": 9, "val": 2, "test": 1}
    parts = [part for part, size in sizes.items() for _ in range(size)]
    rows = [
        {"image": f"{n - (n == 9)}.png", "question": f"Which {n}?", "options": ["a", "b"], "answer": "A", "part": part}
        for n, part in enumerate(parts)
    ]
    for number in range(len(rows)):
        save_png(tmp_path / "q" / f"{number}.png", number)
    for part in sizes:
        write_json(tmp_path / "q" / f"{part}.json", [row for row in rows if row["part"] == part])
    words = {
        "files": "data.files.train=[train.json] data.files.validation=[val.json] data.files.test=[test.json]",
        "column": "data.columns.split=part data.validation_part=val",
    }[by]
    place, chosen = ("data.sets.mcqa.", "data=benchmarks +data@data.sets.mcqa=mcqa") if sets else ("data.", "data=mcqa")
    line = f"data.path={tmp_path}/q data.cache_dir={tmp_path}/cache {words}".replace("data.", place)
    with pytest.raises(DataError, match="share an image or a group with a training record") as error:
        load(f"{chosen} {line}")
    typed = str(error.value).rpartition(" instead, with ")[2]
    assert typed.endswith(" data.validation_fraction=0.1")
    cfg = composed("train", *chosen.split(), *line.split(), *typed.split(), "trainer.eval_steps=1")
    check_typed([cfg], [word.partition("=")[0] for word in [*line.split(), *typed.split()]])
    data = load_dataset(cfg.data, "all", "all", is_trained=True)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 1, 1)


def test_sets_with_and_without_validation_records_of_their_own(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    rows = [
        {"image": f"{number}.png", "question": "Which?", "options": ["a", "b"], "answer": "A"} for number in range(10)
    ]
    write_json(tmp_path / "q.json", rows)
    sets = "data=benchmarks +data@data.sets.mcqa=mcqa +data@data.sets.phantoms=phantoms data.validation_fraction=0.25"
    small = "data.sets.phantoms.train_images_per_modality=4 data.sets.phantoms.test_images_per_modality=1"
    own = f"data.sets.mcqa.path={tmp_path}/q.json data.sets.mcqa.cache_dir={tmp_path}/cache"
    write_slake(tmp_path / "slake")
    part = (
        f"+data@data.sets.slake=slake data.sets.slake.root={tmp_path}/slake data.sets.slake.validation_part=validation"
    )
    without = load(f"{sets} {small} {own} {part} data.validation_fraction=0")
    assert {r.benchmark for r in without.validation} == {"slake"}
    data = load(f"{sets} {small} {own}")
    assert Counter(r.benchmark for r in data.validation) == {"phantoms": 8 * 5, "mcqa": 2}
    assert Counter(r.benchmark for r in data.train) == {"phantoms": 4 * 8 * 5, "mcqa": 6}
