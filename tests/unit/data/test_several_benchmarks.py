"""``data=benchmarks``: several sources as one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medr1.data.dataset import limit_cells, load_dataset
from medr1.data.sources.benchmarks import BenchmarksConfig
from medr1.data.sources.mcqa.settings import ColumnsConfig, McqaConfig
from medr1.data.sources.phantoms import PhantomsConfig
from medr1.data.splitting import file_hashes
from medr1.errors import ConfigError, DataError
from tests.composing import composed
from tests.miniatures import save_png, write_json

SMALL = {"train_images_per_modality": 2, "test_images_per_modality": 2, "image_size": 56}


def settings(train: str | None = None, **sets: Any) -> BenchmarksConfig:
    return BenchmarksConfig(name="benchmarks", image_size=56, sets=sets, train=train)


def phantoms(seed: int) -> PhantomsConfig:
    return PhantomsConfig(name="phantoms", seed=seed, **SMALL)


def test_records_images_and_ids_of_equal_sets_stay_apart() -> None:
    one = load_dataset(phantoms(0), "all", "all")
    both = load_dataset(settings(a=phantoms(0), b=phantoms(0)), "all", "all")
    assert [r.id for r in both.test] == [f"{name}/{r.id}" for name in "ab" for r in one.test]
    assert [r.benchmark for r in both.test] == ["a"] * len(one.test) + ["b"] * len(one.test)
    keys = [{r.image_key for r in both.test if r.benchmark == name} for name in "ab"]
    assert not keys[0] & keys[1] and len(keys[0]) == len({r.image_key for r in one.test})
    assert both.test[0].images[0].load(56).tobytes() == one.test[0].images[0].load(56).tobytes()
    assert both.facts["sets"].keys() == {"a", "b"}


def test_training_records_are_those_of_one_set_or_of_all() -> None:
    sets = {"a": phantoms(0), "b": phantoms(1)}
    of_all, of_b = (load_dataset(settings(train, **sets), "ct", "lesion") for train in (None, "b"))
    assert {r.benchmark for r in of_all.train} == {"a", "b"} and {r.benchmark for r in of_b.train} == {"b"}
    assert [r.id for r in of_all.test] == [r.id for r in of_b.test]
    assert {r.modality for r in of_b.train} == {"ct"}


def test_the_fingerprint_tells_data_and_the_trained_set_apart() -> None:
    found = [
        load_dataset(settings(train, **sets), "all", "all").fingerprint
        for train, sets in (
            (None, {"a": phantoms(0), "b": phantoms(1)}),
            (None, {"b": phantoms(1), "a": phantoms(0)}),
            (None, {"a": phantoms(1), "b": phantoms(0)}),
            (None, {"a": phantoms(0)}),
            ("a", {"a": phantoms(0), "b": phantoms(1)}),
        )
    ]
    assert found[0] == found[1] and len(set(found)) == 4


def test_an_image_that_two_sets_share_is_a_leak_and_no_validation_image(tmp_path: Path) -> None:
    """Set a trains on 0 to 5, 0 also under another name; set b tests 0 and 1."""
    for folder, parts in {"a": {"train": range(6), "test": [6]}, "b": {"train": [7], "test": [0, 1]}}.items():
        for part, images in parts.items():
            rows = []
            for image in images:
                save_png(tmp_path / folder / f"{part}{image}.png", image)
                rows.append({"image": f"{part}{image}.png", "question": "Which?", "options": ["x", "y"], "answer": "A"})
            if (folder, part) == ("a", "train"):
                shutil.copy(tmp_path / "a" / "train0.png", tmp_path / "a" / "again.png")
                rows.append({**rows[0], "image": "again.png"})
            write_json(tmp_path / folder / f"{part}.json", rows)
    own = {"cache_dir": str(tmp_path / "cache"), "image_size": 56}
    sets = {name: McqaConfig(name="mcqa", path=str(tmp_path / name), **own) for name in "ab"}
    data = load_dataset(replace(settings("a", **sets), validation_fraction=0.9), "all", "all")
    said = "b: 2 of 2 test questions have an image that also occurs in the training of a"
    assert [message for message in data.messages if message == said] == [said]
    files = {file for r in data.test if r.benchmark == "b" for file in file_hashes(r)}
    assert len([r for r in data.train if not files.isdisjoint(file_hashes(r))]) == 3
    assert len(data.validation) == 4 and files.isdisjoint(file for r in data.validation for file in file_hashes(r))
    other_order = load_dataset(
        replace(settings("a", **dict(reversed(sets.items()))), validation_fraction=0.9), "all", "all"
    )
    assert other_order.validation == data.validation and sorted(r.image_key for r in other_order.test) == sorted(
        r.image_key for r in data.test
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("data=benchmarks", "data.sets=[NAME"),
        ("+data@data.sets.phantoms=phantoms data.train=ct", "data.train=ct: use one of data.sets, phantoms"),
        ("+data@data.sets.phantoms=phantoms data.sets.phantoms.shortcut=5", "data.sets.phantoms.shortcut=5"),
        ("+data@data.sets.phantoms=phantoms +data.sets.phantoms.sed=5", "data.sets.phantoms"),
        ("+data.sets.x=5", "data.sets.x=5"),
        ("+data@data.sets.benchmarks=benchmarks", "data.sets.benchmarks"),
        ("+data@data.sets.omnimedvqa=omnimedvqa", "data.sets.omnimedvqa.root"),
        ("+data@data.sets.omnimedvqa=omnimedvqa data.sets.omnimedvqa.root=no", "data.sets.omnimedvqa.root=no: no such"),
        (
            "+data@data.sets.omnimedvqa=omnimedvqa data.sets.omnimedvqa.root=. data.sets.omnimedvqa.split=test_only",
            "data.sets.omnimedvqa.split=test_only has no training",
        ),
    ],
)
def test_what_is_wrong_with_a_set_is_named_by_its_own_key(words: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed("train", "data=benchmarks", *words.split())
    assert said in str(error.value)


def test_errors_and_messages_of_a_set_name_settings_that_can_be_typed(tmp_path: Path) -> None:
    for n in range(6):
        save_png(tmp_path / "q" / f"{n}.png", n)
    rows = [
        {"image": f"{n}.png", "question": "?", "options": ["a", "b"], "answer": "A", "part": ("train", "val")[n % 2]}
        for n in range(6)
    ]
    write_json(tmp_path / "q" / "q.json", rows)
    own = McqaConfig(name="mcqa", path=str(tmp_path / "q"), cache_dir=str(tmp_path / "cache"), image_size=56)
    with pytest.raises(DataError, match=r"Remedy: data\.sets\.own\.columns\.answer=NAME$"):
        load_dataset(settings(own=replace(own, columns=ColumnsConfig(answer="correct"))), "all", "all")
    of_set = settings(own=replace(own, columns=ColumnsConfig(split="part")), phantoms=phantoms(0))
    with pytest.raises(
        DataError, match=r"data\.sets\.own: there is no test record(?s:.*)data\.sets\.own\.test_part=val "
    ):
        load_dataset(of_set, "all", "all")
    with pytest.raises(DataError, match=r"none of the 6 records read can be used(?s:.*)data\.max_images=0"):
        load_dataset(replace(settings(own=own), max_images=0), "all", "all")  # a setting of all sets


def test_a_set_that_is_not_trained_on_needs_no_training_records() -> None:
    words = "+data@data.sets.omnimedvqa=omnimedvqa data.sets.omnimedvqa.root=. data.sets.omnimedvqa.split=test_only"
    words += " +data@data.sets.phantoms=phantoms data.train=phantoms"
    assert composed("train", "data=benchmarks", *words.split()).data.train == "phantoms"


def test_a_limited_sample_has_records_of_every_set() -> None:
    both = load_dataset(settings(a=phantoms(0), b=phantoms(1)), "all", "all")
    sample = limit_cells(both.test, 1)
    assert len(sample) == 2 * 8 * 5
    assert len({(r.benchmark, r.modality, r.question_type) for r in sample}) == len(sample)
