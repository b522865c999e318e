"""Own data: every format of file, options, answers and images, how records are divided, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import pickle
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from medr1.cli.main import CONF
from medr1.config.schema import register
from medr1.data import images, tables
from medr1.data.dataset import Dataset, Selection, load_dataset
from medr1.data.sources import SOURCES
from medr1.data.sources.mcqa.settings import FilesConfig, McqaConfig, OwnSplit
from medr1.domain.records import UNSPECIFIED
from medr1.errors import ConfigError, DataError
from medr1.workflows.components import check_typed
from tests.composing import composed
from tests.dicom_files import write_dicom
from tests.miniatures import png, save_png, write_csv, write_json, write_parquet

assert CONF.is_dir()
register()


@cache
def composed_data(place: str, *overrides: str) -> McqaConfig:
    """The settings of these overrides, composed once."""
    data = composed("evaluate", "data=mcqa", f"data.path={place}", *overrides).data
    assert isinstance(data, McqaConfig)
    return data


def load(path: Path, *overrides: str) -> Dataset:
    """The dataset as a command line would load it."""
    names_files = any(override.startswith("data.files") for override in overrides)  # which must be there
    settings = composed_data(str(path) if names_files else ".", *overrides)
    settings = dataclasses.replace(settings, path=str(path), cache_dir=str(path.parent / "cache"))
    SOURCES[settings.kind].check(settings)
    return load_dataset(settings, "all", "all")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.characters(categories=["Cs"]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=6,
)


def own_settings(path: Path) -> McqaConfig:
    """The settings for all records of a file as test records, without composing them."""
    return McqaConfig(
        name="mcqa", path=str(path), split=OwnSplit.test_only, cache_dir=str(path.parent.parent / "cache")
    )


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("fuzz") / "data"
    save_images(folder, 1)
    return folder


def rows(count: int = 6, **changes: Any) -> list[dict[str, Any]]:
    """Rows with paths of images; a change to None removes the column."""
    made = []
    for n in range(count):
        row = {"image": f"img/{n}.png", "question": f"Which side is {n}?", "options": ["left", "right"]}
        row |= {"answer": "AB"[n % 2], "modality": ("PET", "ECG")[n % 2]} | changes
        made.append({key: value for key, value in row.items() if value is not None})
    return made


def save_images(folder: Path, count: int = 6) -> None:
    for n in range(count):
        save_png(folder / "img" / f"{n}.png", n)


def write_json_lines(path: Path, records: list[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_tsv(path: Path, records: list[dict[str, Any]]) -> None:
    write_csv(path, records, "\t")


WRITERS: dict[str, Callable[[Path, Any], None]] = {
    "q.json": write_json,
    "q.jsonl": write_json_lines,
    "q.csv": write_csv,
    "q.tsv": write_tsv,
    "q.parquet": write_parquet,
}
TEXT_OPTIONS = {"q.csv": '["left", "right"]', "q.tsv": "{'A': 'left', 'B': 'right'}"}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("form", ["path", "bytes", "base64", "data_url", "mapping", "list"])
def test_every_file_holds_every_form_of_image(name: str, form: str, tmp_path: Path) -> None:
    save_images(tmp_path)
    made = rows(options=TEXT_OPTIONS.get(name, ["left", "right"]))
    text = name in TEXT_OPTIONS or name.startswith("q.json")
    for n, row in enumerate(made):
        content: Any = base64.b64encode(png(n)).decode() if text else png(n)
        forms: dict[str, Any] = {"path": f"img/{n}.png", "bytes": content, "mapping": {"bytes": content, "path": None}}
        forms |= {"base64": base64.b64encode(png(n)).decode(), "list": [f"img/{n}.png", f"img/{(n + 1) % 6}.png"]}
        row["image"] = forms["path"] if form == "data_url" else forms[form]
        if form == "data_url":
            row["image"] = f"data:image/png;base64,{forms['base64']}"
        if name in TEXT_OPTIONS and form in ("list", "mapping"):
            row["image"] = json.dumps(forms["list"]) if form == "list" else content
    WRITERS[name](tmp_path / name, made)
    dataset = load(tmp_path / name, "data.split=test_only", "data.on_bad_record=error")
    assert [(r.question, r.options, r.answer, r.modality) for r in dataset.test] == [
        (f"Which side is {n}?", {"A": "left", "B": "right"}, "AB"[n % 2], ("PET", "ECG")[n % 2]) for n in range(6)
    ]
    for n, record in enumerate(dataset.test):
        expected = [n, (n + 1) % 6] if form == "list" else [n]
        for image, seed in zip(record.images, expected, strict=True):
            save_png(tmp_path / "expected.png", seed)
            copy = pickle.loads(pickle.dumps(image))  # as it goes to another process
            shown = images.read_rgb(tmp_path, "expected.png", 10_000)
            assert copy == image and hash(copy) == hash(image) and copy.load(28).tobytes() == shown.tobytes()


def test_all_files_of_the_same_records_have_the_same_contents(tmp_path: Path) -> None:
    save_images(tmp_path)
    found = []
    for name, write in WRITERS.items():
        write(tmp_path / name, rows(options=TEXT_OPTIONS.get(name, ["left", "right"])))
        dataset = load(tmp_path / name, "data.split=test_only")
        found.append([dataclasses.replace(r, id="", origin="") for r in dataset.test])
    assert all(records == found[0] for records in found)


def test_a_second_start_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "q.parquet", [row | {"image": png(n)} for n, row in enumerate(rows())])
    first = load(tmp_path / "q.parquet")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(images, "_decode", refuse)
    again = load(tmp_path / "q.parquet")
    assert (again.fingerprint, again.facts, again.test) == (first.fingerprint, first.facts, first.test)
    write_parquet(tmp_path / "q.parquet", [row | {"image": png(n + 50)} for n, row in enumerate(rows())])
    with pytest.raises(AssertionError, match="decoded"):
        load(tmp_path / "q.parquet")


def test_image_bytes_are_not_read_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory of Arrow while 64 MB of image bytes are in the table: one batch of them while copied, none after."""
    noise = png(0) + bytes(1_000_000)
    table = pa.Table.from_pylist([row | {"image": noise} for row in rows(64)])
    pq.write_table(table, tmp_path / "q.parquet", row_group_size=8, compression="none")
    del table
    monkeypatch.setattr(tables, "_BATCH", 8)
    peaks = []
    for _ in range(2):
        usual = pa.default_memory_pool()
        pool = pa.proxy_memory_pool(usual)
        pa.set_memory_pool(pool)
        try:
            dataset = load(tmp_path / "q.parquet", "data.split=test_only")
        finally:
            pa.set_memory_pool(usual)
        assert len(dataset.test) == 64
        peaks.append(pool.max_memory())
    assert 8_000_000 < peaks[0] < 32_000_000 and peaks[1] < 2_000_000, peaks


def test_options_in_columns_and_positions_as_answers(tmp_path: Path) -> None:
    save_images(tmp_path)
    made = [
        row | {"opa": "left", "opb": "right", "opc": "" if n else "both"} for n, row in enumerate(rows(options=None))
    ]
    for n, row in enumerate(made):
        row["answer"] = 1 + n % 2
    write_csv(tmp_path / "q.csv", made)
    words = ["data.columns.options=[opa,opb,opc]", "data.split=test_only"]
    with pytest.raises(DataError, match=r"data\.answer_format=zero_based or data\.answer_format=one_based"):
        load(tmp_path / "q.csv", *words)
    records = load(tmp_path / "q.csv", *words, "data.answer_format=one_based").test
    assert [len(record.options) for record in records] == [3, 2, 2, 2, 2, 2]
    assert [record.answer for record in records] == ["A", "B"] * 3


def test_integers_that_pandas_writes_as_floats_are_positions_and_texts(tmp_path: Path) -> None:
    """In a column with an empty cell. The values of other columns stay as they are."""
    save_images(tmp_path)
    made = [
        row | {"A": "left", "B": "right", "answer": f"{n % 2}.0" if n else "", "id": f"{n}.0"}
        for n, row in enumerate(rows(options=None))
    ]
    write_csv(tmp_path / "q.csv", made)
    words = ["data.columns.options=[A,B]", "data.split=test_only"]
    with pytest.raises(DataError, match=r"answer '1\.0'.*data\.answer_format=zero_based"):
        load(tmp_path / "q.csv", *words)
    records = load(tmp_path / "q.csv", *words, "data.answer_format=zero_based").test
    assert [record.answer for record in records] == ["B", "A", "B", "A", "B"]
    assert [record.id for record in records] == ["1.0", "2.0", "3.0", "4.0", "5.0"]
    write_csv(tmp_path / "q.csv", [row | {"A": "1", "B": "1.0 cm", "answer": "1.0"} for row in made])
    assert {r.answer for r in load(tmp_path / "q.csv", *words).test} == {"A"}
    write_csv(tmp_path / "q.csv", [row | {"A": "2", "B": "1.0", "answer": "1.0"} for row in made])
    assert {r.answer for r in load(tmp_path / "q.csv", *words).test} == {"B"}


def test_columns_are_mapped_and_optional_ones_are_found_by_name(tmp_path: Path) -> None:
    save_images(tmp_path)
    made = [
        {"pic": r["image"], "q": r["question"], "c": r["options"], "a": r["answer"], "id": f"r{n}", "rationale": "why"}
        for n, r in enumerate(rows())
    ]
    write_json_lines(tmp_path / "q.jsonl", made)
    columns = "data.columns={image: pic, question: q, options: c, answer: a, dataset: q}"
    record = load(tmp_path / "q.jsonl", columns, "data.split=test_only").test[1]
    assert (record.id, record.rationale, record.dataset) == ("r1", "why", "Which side is 1?")
    assert (record.modality, record.question_type) == (UNSPECIFIED, UNSPECIFIED)


def test_several_image_columns(tmp_path: Path) -> None:
    save_images(tmp_path)
    made = [row | {"image_2": "img/0.png" if n == 3 else None} for n, row in enumerate(rows())]
    write_json(tmp_path / "q.json", made)
    records = load(tmp_path / "q.json", "data.columns.image=[image,image_2]", "data.split=test_only").test
    assert [len(record.images) for record in records] == [1, 1, 1, 2, 1, 1]


@pytest.mark.parametrize("form", ["columns", "list", "bytes"])
def test_placeholders_of_images_behind_an_absent_one_are_refused(form: str, tmp_path: Path) -> None:
    """Else <image 3> would show the image of another number."""
    save_images(tmp_path)
    texts = ["Is <image 3> like <image 2>?", "Is <image 1> normal?", "Which side?"]
    given: list[list[Any]] = [[None, "img/1.png", "img/2.png"], ["img/0.png", None, "img/2.png"], [None, "img/3.png"]]
    made = rows(3)
    for row, text, of_row in zip(made, texts, given, strict=True):
        row |= {"question": text, "image": of_row} if form == "list" else {"question": text}
        if form == "bytes":
            row["image"] = [path and {"bytes": (tmp_path / path).read_bytes(), "path": path} for path in of_row]
        if form == "columns":
            row |= {f"image_{n + 1}": path for n, path in enumerate(of_row)}
            del row["image"]
    name, write = ("q.parquet", write_parquet) if form == "bytes" else ("q.json", write_json)
    write(tmp_path / name, made)
    words = ["data.columns.image=[image_1,image_2,image_3]"] if form == "columns" else []
    loaded = load(tmp_path / name, "data.split=test_only", *words)
    assert [(r.question, len(r.images)) for r in loaded.test] == [(texts[1], 2), (texts[2], 1)]
    assert "record #0: no_image: the text has <image 3>, and image 1 is absent" in loaded.facts["bad_records"][0]


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_lists_of_images_as_pandas_writes_them_and_names_in_brackets(suffix: str, tmp_path: Path) -> None:
    save_images(tmp_path)
    texts = ["['img/0.png', 'img/1.png']", '["img/0.png"]', "[CT]0.png", "[None, 'img/2.png']", "['img/0.png", "[1]"]
    (tmp_path / "[CT]0.png").write_bytes(png(9))
    made = [row | {"image": text, "options": "['left', 'right']"} for row, text in zip(rows(), texts, strict=True)]
    WRITERS[f"q.{suffix}"](tmp_path / f"q.{suffix}", made)
    loaded = load(tmp_path / f"q.{suffix}", "data.split=test_only")
    shown = [["img/0.png", "img/1.png"], ["img/0.png"], ["[CT]0.png"], ["img/2.png"]]
    assert [[image.path for image in record.images] for record in loaded.test] == shown
    assert loaded.facts["counts"]["bad"] == {"malformed": 1, "no_image": 1}


def test_values_of_an_axis_are_grouped_and_others_stay(tmp_path: Path) -> None:
    save_images(tmp_path)
    write_json(tmp_path / "q.json", [row | {"question_type": "Chest X-Ray"} for row in rows()])
    words = ["data.split=test_only", "data.question_type_map={Chest X-Ray: xray}"]
    records = load(tmp_path / "q.json", *words).test
    assert {(r.modality, r.question_type) for r in records} == {("PET", "xray"), ("ECG", "xray")}
    with pytest.raises(DataError, match=r"data\.modality_map: no record has the value 'PTE'; did you mean 'PET'\?"):
        load(tmp_path / "q.json", "data.modality_map={PTE: x}")


@pytest.mark.parametrize("by", ["column", "named column", "names", "files", "images"])
def test_how_records_are_divided(by: str, tmp_path: Path) -> None:
    data, words = tmp_path / "data", list[str]()
    save_images(data)
    made = rows()
    parts = ["train", "train", "train", "Test", "test", "val"]
    if by in ("column", "named column"):
        column = "split" if by == "column" else "part"
        write_json(data / "q.json", [row | {column: part} for row, part in zip(made, parts, strict=True)])
        words = ["data.columns.split=part"] if by == "named column" else []
    elif by == "images":
        write_json(data / "q.json", [*made, *({**row, "question": "And this?"} for row in made)])
        words = ["data.test_fraction=0.34"]
    else:
        names = ("train-0.jsonl", "test-0.jsonl", "val-0.jsonl") if by == "names" else ("a.jsonl", "b.jsonl", "c.jsonl")
        for name, taken in zip(names, (made[:3], made[3:5], made[5:]), strict=True):
            write_json_lines(data / name, taken)
        words = ["data.files.train=[a.jsonl]", "data.files.test=[b.jsonl]"] if by == "files" else []
    dataset = load(data, *words)
    assert dataset.facts["leaks"]["records_by_content"] == 0
    assert (len(dataset.train), len(dataset.test)) == ((8, 4) if by == "images" else (3, 2))
    assert dataset.facts["counts"]["left_out"] == ({} if by in ("images", "files") else {"other_part": 1})


def test_a_column_that_is_named_goes_before_the_names_of_files(tmp_path: Path) -> None:
    save_images(tmp_path)
    made = [row | {"fold": fold} for row, fold in zip(rows(), ["train", "test"] * 3, strict=True)]
    for name, taken in (("train.jsonl", made[:3]), ("test.jsonl", made[3:])):
        write_json_lines(tmp_path / name, taken)
    assert sorted(r.question[-2] for r in load(tmp_path, "data.columns.split=fold").test) == ["1", "3", "5"]
    assert [r.question[-2] for r in load(tmp_path).test] == ["3", "4", "5"]
    own = composed_data(".", "data.columns.split=fold")  # as a file of conf/data with this column
    files = FilesConfig(train=["train.jsonl"], test=["test.jsonl"])
    own = dataclasses.replace(own, path=str(tmp_path), files=files, cache_dir=str(tmp_path / "cache"))
    assert [r.question[-2] for r in load_dataset(own, "all", "all").test] == ["3", "4", "5"]


def test_repeated_ids_get_numbers_that_no_other_record_has(tmp_path: Path) -> None:
    save_images(tmp_path)
    made = [row | {"id": name} for row, name in zip(rows(), ["x", "x", "x~2", "x", "y", "x~2"], strict=True)]
    write_json_lines(tmp_path / "q.jsonl", made)
    assert [r.id for r in load(tmp_path, "data.split=test_only").test] == ["x", "x~3", "x~2", "x~4", "y", "x~2~2"]


def test_a_changed_rationale_is_other_data(tmp_path: Path) -> None:
    save_images(tmp_path)
    found = []
    for rationale in (None, "because", "although"):
        write_json_lines(tmp_path / "q.jsonl", rows(rationale=rationale))
        found.append(load(tmp_path, "data.split=test_only").fingerprint)
    assert len(set(found)) == 3


def test_a_file_of_no_part_beside_training_and_test_is_named(tmp_path: Path) -> None:
    """Else the test questions would be divided anew, and some of them trained on."""
    save_images(tmp_path)
    made = rows()
    for name, taken in (("train.jsonl", made[:3]), ("test.jsonl", made[3:5]), ("extra.jsonl", made[5:])):
        write_json_lines(tmp_path / name, taken)
    with pytest.raises(DataError, match=r"extra\.jsonl; .*data\.files\.train=.*data\.split=image_grouped"):
        load(tmp_path)
    assert len(load(tmp_path, "data.files.train=[train.jsonl]", "data.files.test=[test.jsonl]").test) == 2
    divided = load(tmp_path, "data.split=image_grouped")
    assert len(divided.train) + len(divided.test) == 6


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (("train.jsonl", "val.jsonl"), "data.test_part=val"),
        (("train-0.jsonl", "train-1.jsonl", "Valid.jsonl"), "data.test_part=valid"),
        (("train1.jsonl", "test1.jsonl"), "data.files.train=[train1.jsonl] data.files.test=[test1.jsonl]"),
        (("training.jsonl", "testing.jsonl"), "data.files.train=[training.jsonl] data.files.test=[testing.jsonl]"),
        (("train/q.jsonl", "test/q.jsonl"), "data.files.train=[train/q.jsonl] data.files.test=[test/q.jsonl]"),
        (("train.jsonl", "extra.jsonl"), "data.split=image_grouped"),
        (("extra.jsonl", "test.jsonl"), "data.split=image_grouped"),
    ],
)
def test_files_of_parts_without_a_test_part_are_not_divided_anew(
    names: tuple[str, ...], remedy: str, tmp_path: Path
) -> None:
    """Else training records of the data set would be tested on, and its test records trained on."""
    data = tmp_path / "data"
    save_images(data)
    for n, name in enumerate(names):
        (data / name).parent.mkdir(exist_ok=True)
        write_json_lines(data / name, rows(6)[2 * n : 2 * n + 2])
    for words in ([], ["data.validation_fraction=0.3"]):
        with pytest.raises(DataError) as error:
            load(data, *words)
        assert f"data.path={data}" in str(error.value) and remedy in str(error.value)
    divided = load(data, *remedy.split(), f"data.root={data}")
    assert len(divided.test) == 2 or remedy == "data.split=image_grouped"
    for n, name in enumerate(names):  # a column of the rows divides them
        write_json_lines(data / name, [row | {"split": "train" if n else "test"} for row in rows(6)[2 * n : 2 * n + 2]])
    assert {r.question[-2] for r in load(data, f"data.root={data}").test} == {"0", "1"}


@pytest.mark.parametrize(
    "names", [("train-0.jsonl", "train-1.jsonl"), ("liver.jsonl", "testis.jsonl"), ("train1.jsonl", "train2.jsonl")]
)
def test_files_of_one_part_or_of_none_are_divided(names: tuple[str, ...], tmp_path: Path) -> None:
    save_images(tmp_path)
    for n, name in enumerate(names):
        write_json_lines(tmp_path / name, rows(6)[3 * n : 3 * n + 3])
    assert "divided by image content" in "".join(load(tmp_path).messages)


def test_a_data_set_of_the_hub_without_the_test_split_is_not_divided_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medr1.data.sources.mcqa.own.open_hub", lambda name: {"train": [], "validation": []})
    with pytest.raises(DataError, match=r"the splits train, validation, .*data\.test_part=validation.*image_grouped"):
        load(Path("somebody/questions"))


def test_another_part_for_test(tmp_path: Path) -> None:
    save_images(tmp_path)
    write_json(tmp_path / "q.json", [r | {"split": "val" if n > 3 else "train"} for n, r in enumerate(rows())])
    assert len(load(tmp_path / "q.json", "data.test_part=val").test) == 2
    with pytest.raises(DataError, match=r"no test record(?s:.*)2 in part 'val'; data\.test_part=val chooses 'val'"):
        load(tmp_path / "q.json")
    with pytest.raises(DataError, match=r"no training record(?s:.*)4 in part 'train'; data\.train_part=train"):
        settings = composed_data(".", "data.test_part=val", "data.train_part=training")
        settings = dataclasses.replace(settings, path=str(tmp_path / "q.json"), cache_dir=str(tmp_path / "cache"))
        load_dataset(settings, "all", "all", is_trained=True)


def test_the_part_that_is_left_out_can_be_chosen_as_the_log_says(tmp_path: Path) -> None:
    save_images(tmp_path)
    parts = ["train", "train", "train", "test", "dev set", "dev set"]
    write_json(tmp_path / "q.json", [row | {"split": part} for row, part in zip(rows(), parts, strict=True)])
    said = "".join(load(tmp_path / "q.json").messages)
    assert "2 in part 'dev set'; 'data.validation_part=dev set' chooses 'dev set'" in said
    assert len(load(tmp_path / "q.json", "data.validation_part=dev set").validation) == 2


@pytest.mark.parametrize("first", ["{broken", json.dumps(rows(1)[0])], ids=["broken", "without the column"])
def test_the_first_row_does_not_hide_the_split_of_the_others(first: str, tmp_path: Path) -> None:
    """Else records that are declared as test would be trained on."""
    save_images(tmp_path)
    others = [json.dumps(row | {"split": "test" if n > 3 else "train"}) for n, row in enumerate(rows())]
    (tmp_path / "q.jsonl").write_text("\n".join([first, *others]), encoding="utf-8")
    loaded = load(tmp_path / "q.jsonl")
    assert [record.question for record in loaded.test] == ["Which side is 4?", "Which side is 5?"]
    assert len(loaded.train) == 4 and "divided by column 'split'" in "".join(loaded.messages)
    with pytest.raises(DataError, match=r"q\.jsonl"):
        load(tmp_path / "q.jsonl", "data.on_bad_record=error")


def test_leaks_by_content_between_bytes_and_files(tmp_path: Path) -> None:
    save_images(tmp_path)
    made = rows(4)
    made[3]["image"] = base64.b64encode(png(0)).decode()
    write_json_lines(tmp_path / "q.jsonl", [r | {"split": "test" if n == 3 else "train"} for n, r in enumerate(made)])
    leaks = load(tmp_path / "q.jsonl").facts["leaks"]
    assert (leaks["records_by_path"], leaks["records_by_content"]) == (0, 1)


@pytest.mark.parametrize("sets", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        "",
        "data.files.train=[train.json] data.files.test=[test.json] data.files.validation=[other.json]",
        "data.columns.split=part",
        "data.columns.split=part data.train_part=training data.test_part=testing",
    ],
)
def test_the_remedy_for_leaks_works_as_it_is_printed(
    words: str, sets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = ("training", "testing") if "training" in words else ("train", "test")
    for place, name, taken in (("train", names[0], rows()[:4]), ("test", names[1], rows()[2:])):
        write_json(tmp_path / f"{place}.json", [row | {"part": name} for row in taken])
    if "other.json" in words:
        write_json(tmp_path / "other.json", rows(1, image="img/5.png"))

    def answer(words: str) -> str:
        line = f"data.path=. data.cache_dir=cache {words}".replace("data.", "data.sets.mcqa." if sets else "data.")
        chosen = "data=benchmarks +data@data.sets.mcqa=mcqa" if sets else "data=mcqa"
        cfg = composed("train", *chosen.split(), *line.split(), "trainer.eval_steps=1", "data.validation_fraction=0.1")
        check_typed([cfg], [word.partition("=")[0] for word in line.split()])
        data = SOURCES[cfg.data.kind].load(cfg.data, Selection("all", "all"))
        return "".join(data.messages).replace("data.sets.mcqa.", "data.")

    said = answer(words)
    found = re.search(r"also occurs in training \(2 by path\); (\S+)(?: without (.*?))? avoids this", said)
    assert found is not None, said
    left_out = (found[2] or "").split(" and ")
    answer(" ".join([word for word in words.split() if word.partition("=")[0] + "=" not in left_out] + [found[1]]))


def test_records_with_common_images_stay_together(tmp_path: Path) -> None:
    """0-1, 1-2 and 2-3 are shown together, so that all four are in one part."""
    save_images(tmp_path, 20)
    made = rows(20)
    for n in range(3):
        made[n]["image"] = [f"img/{n}.png", f"img/{n + 1}.png"]
    write_json(tmp_path / "q.json", made)
    for seed in range(4):
        dataset = load(tmp_path / "q.json", f"data.seed={seed}")
        parts = [{image.path for record in part for image in record.images} for part in (dataset.train, dataset.test)]
        assert not parts[0] & parts[1] and dataset.test


def test_paths_are_below_the_folder_of_the_file_or_below_the_root(tmp_path: Path) -> None:
    save_images(tmp_path / "data" / "sub")
    write_json(tmp_path / "data" / "sub" / "q.json", rows())
    assert load(tmp_path / "data").test[0].images[0].key.startswith("sub/img/")
    root = f"data.root={tmp_path / 'data'}"
    with pytest.raises(DataError, match="does not exist below"):
        load(tmp_path / "data", root)
    write_json(tmp_path / "data" / "sub" / "q.json", [{**r, "image": f"sub/{r['image']}"} for r in rows()])
    assert load(tmp_path / "data" / "sub" / "q.json", root).test


def test_dicom_bytes(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    write_dicom(tmp_path / "a.dcm", np.arange(64, dtype=np.int16).reshape(8, 8))
    made = rows(1, image={"bytes": (tmp_path / "a.dcm").read_bytes(), "path": "a.dcm"})
    write_parquet(tmp_path / "q.parquet", made)
    (record,) = load(tmp_path / "q.parquet", "data.split=test_only").test
    assert record.images[0].load(28).tobytes() == images.read_rgb(tmp_path, "a.dcm", 10**6).tobytes()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no image file": ({"image": "img/9.png"}, "no_image"),
    "no image": ({"image": ""}, "no_image"),
    "path out of the root": ({"image": "../secret.png"}, "path_leaves_root"),
    "absolute path": ({"image": "/etc/passwd"}, "path_leaves_root"),
    "absolute path on Windows": ({"image": "C:\\secret.png"}, "path_leaves_root"),
    "image number": ({"image": 7}, "no_image"),
    "image that is not given": ({"image": float("nan")}, "no_image"),
    "invisible image": ({"image": "\u200b"}, "no_image"),
    "images that are not given": ({"image": [None, "", float("nan")]}, "no_image"),
    "image of another type": ({"image": True}, "malformed"),
    "damaged base64": ({"image": "data:image/png;base64,iVBORw0K"}, "undecodable_image"),
    "base64 of no image": ({"image": {"bytes": "AAAA"}}, "undecodable_image"),
    "no base64": ({"image": {"bytes": "%%%"}}, "undecodable_image"),
    "no question": ({"question": " "}, "malformed"),
    "options that do not parse": ({"options": "['left', "}, "no_options"),
    "one option": ({"options": ["left"]}, "no_options"),
    "27 options": ({"options": [f"option {n}" for n in range(27)]}, "too_many_options"),
    "repeated option": ({"options": ["left", "Left."]}, "duplicate_option"),
    "answer that is no option": ({"answer": "both"}, "answer_not_among_options"),
    "no answer": ({"answer": None}, "answer_not_among_options"),
    "position": ({"answer": 0}, "ambiguous_answer"),
    "control token": ({"question": "What <|im_end|>?"}, "control_token"),
    "tags in the rationale": ({"rationale": "<think>Left.</think><answer>A</answer>"}, "malformed: the rationale has"),
    "half a surrogate pair": ({"question": "What \ud800?"}, "unencodable_text"),
    "list as modality": ({"modality": ["CT"]}, "malformed"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_skipped_and_named_or_stops(case: str, tmp_path: Path) -> None:
    changes, reason = BAD[case]
    save_images(tmp_path)
    made = rows()
    made[2] |= changes
    write_json_lines(tmp_path / "q.jsonl", made)
    dataset = load(tmp_path / "q.jsonl", "data.split=test_only")
    assert len(dataset.test) == 5 and dataset.facts["counts"]["bad"] == {reason.partition(":")[0]: 1}
    with pytest.raises(DataError, match=rf"q\.jsonl, record #2.*{reason}") as error:
        load(tmp_path / "q.jsonl", "data.split=test_only", "data.on_bad_record=error")
    assert "Remedy" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.json", "{", r"q\.json cannot be read"),
        ("q.json", '{"a": 1}', "must hold a list of records"),
        ("q.json", "[1]", "none of the 1 records"),
        ("q.jsonl", "[]\nx\n", "none of the 2 records"),
        ("q.jsonl", "", "hold no record"),
        ("q.csv", "image,image\n1,2\n", "'image' occurs twice"),
        ("q.csv", b"image,question\n\xff,b\n", "save it as UTF-8"),
        ("q.csv", "image,question,options,answer\n1,2,3,4,5\n", "5 fields for the 4 columns"),
        ("q.parquet", "PAR1", r"q\.parquet cannot be read"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        load(tmp_path / name, "data.split=test_only")


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["image", "question", "options", "answer", "id", "modality", "rationale", "dataset"]),
            JSON | st.sampled_from(["img/0.png", "img\\0.PNG", "A", "['left', 'right']", "data:image/png;base64,AA"]),
        ).map(lambda changes: rows(1)[0] | changes)
        | JSON,
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["q.json", "q.jsonl"]),
)
def test_any_records_are_read_or_named(folder_of_images: Path, records: list[Any], name: str) -> None:
    path = folder_of_images / name
    WRITERS[name](path, records)
    try:
        loaded = load_dataset(own_settings(path), "all", "all")
    except DataError as error:
        assert name in str(error) and "Remedy" in str(error)
        str(error).encode()
        return
    bad = loaded.facts["bad_records"]
    assert len(loaded.test) + len(bad) == len(records)
    assert all(f"{name}, record #" in line for line in bad)
    json.dumps(loaded.facts).encode()
    for record in loaded.test:
        assert record.answer in record.options and record.images[0].load(28).size == (40, 40)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()), st.sampled_from(list(WRITERS)))
@example(b"[" * 100_000, "q.json")
@example(b"[" * 100_000, "q.jsonl")
@example(b"[" + b"9" * 5000 + b"]", "q.json")
@example(b'{"image": ' + b"9" * 5000 + b"}", "q.jsonl")
@example(b"image,question\n\0,\r", "q.csv")
def test_any_file_is_read_or_named(folder_of_images: Path, content: bytes, name: str) -> None:
    path = folder_of_images / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        load_dataset(own_settings(path), "all", "all")


BESIDE = [".q.json", "._q.jsonl", ".ipynb_checkpoints/q-checkpoint.json", "__MACOSX/q.csv", "sub/.git/q.parquet"]


@pytest.mark.parametrize("name", BESIDE)
def test_files_beside_the_data_are_skipped_and_counted(name: str, tmp_path: Path) -> None:
    save_images(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("[{")
    with pytest.raises(DataError, match=r"no file with one of the suffixes .* but 1 that do not belong"):
        load(tmp_path, "data.split=test_only")
    write_json(tmp_path / "q.json", rows())
    loaded = load(tmp_path, "data.split=test_only")
    assert len(loaded.test) == 6 and loaded.facts["counts"]["files_skipped"] == 1
    assert any("1 files are skipped" in message for message in loaded.messages)


def test_what_commands_in_the_folder_of_the_data_have_written_is_not_read(tmp_path: Path) -> None:
    """Else the second command reads the audit or the run of the first one as questions."""
    save_images(tmp_path)
    write_json(tmp_path / "q.json", rows())
    first = load(tmp_path, f"data.cache_dir={tmp_path}/runs/cache")
    for place in (
        *("audit/audit.json", "audit/audit.txt", "compare/comparison.json", "compare/results.md"),
        *("run/config.yaml", "run/overrides.yaml", "run/predictions/trained.jsonl", "run/model/config.json"),
        *("sweep/sweep.json", "sweep/.sweep.lock", "sweep/report/matrices.json", "sweep/base/a.jsonl"),
        *("mlflow.db", "mlartifacts/1/artifacts/audit.json", "cache/images-d14e925532409e7d.jsonl"),
    ):
        (tmp_path / "runs" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / place).write_text("{}")
    again = load(tmp_path)
    assert (again.fingerprint, again.facts) == (first.fingerprint, first.facts)
    write_json(tmp_path / "more" / "sweep.json", rows(1, question="And this?"))  # a file of this name alone is data
    with pytest.raises(DataError, match="does not exist below"):
        load(tmp_path, "data.on_bad_record=error")
    with pytest.raises(DataError, match=r"runs has no file with one of the suffixes"):
        load(tmp_path / "runs")


@pytest.mark.parametrize("place", ["img", "img/1.png", "sub", "sub/q.json"])
def test_links_to_data_elsewhere_are_followed(place: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    save_images(data)
    (data / "sub").mkdir()
    write_json(data / "sub/q.json", rows())
    words = (f"data.root={data}", "data.split=test_only")
    expected = load(data, *words)
    (data / place).rename(tmp_path / "elsewhere")
    (data / place).symlink_to(tmp_path / "elsewhere")
    (data / "sub/up").symlink_to(data)
    assert load(data, *words).fingerprint == expected.fingerprint


def test_image_paths_in_another_spelling_are_counted(tmp_path: Path) -> None:
    save_images(tmp_path)
    made = rows()
    made[1]["image"], made[2]["image"] = "img\\1.PNG", "img%2F2.png "
    write_json(tmp_path / "q.json", made)
    loaded = load(tmp_path / "q.json", "data.split=test_only")
    assert len(loaded.test) == 6 and loaded.facts["counts"]["images_respelled"] == 2
    assert any("2 image paths are spelled differently" in message for message in loaded.messages)


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_column_is_named_with_the_nearest_one(name: str, tmp_path: Path) -> None:
    save_images(tmp_path)
    WRITERS[name](tmp_path / name, [{**row, "Questions": "?"} for row in rows(question=None)])
    with pytest.raises(DataError, match=r"no column 'question'; did you mean 'Questions'\?.*data\.columns\.question="):
        load(tmp_path / name)
    with pytest.raises(DataError, match=r"no column 'view'.*data\.columns\.modality=NAME"):
        load(tmp_path / name, "data.columns.question=Questions", "data.columns.modality=view")


def test_a_csv_file_of_a_spreadsheet(tmp_path: Path) -> None:
    """With a byte order mark, line breaks in fields, CRLF, an empty line, and fewer fields than columns."""
    save_images(tmp_path)
    text = 'image,question,options,answer,modality\r\nimg/0.png,"Which\r\nside?","[""left"", ""right""]",A\r\n\r\n'
    url = "data:image/png;base64," + base64.b64encode(png(1)).decode()
    text += f'"{url}",Where?,"[""left"", ""right""]",B,CT\r\n'
    (tmp_path / "q.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    records = load(tmp_path / "q.csv", "data.split=test_only", "data.on_bad_record=error").test
    assert [(r.question, r.answer, r.modality) for r in records] == [
        ("Which\r\nside?", "A", UNSPECIFIED),
        ("Where?", "B", "CT"),
    ]
    assert records[1].images[0].load(28).size == (40, 40)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize(
    ("stray", "said"),
    [
        ({3: '"Halo sign: which side?'}, "unexpected end of data"),
        ({3: '"Halo sign: which side?', 8: 'Where is the "halo" sign?'}, "expected after"),
        (
            {3: '"Halo sign: which side?', 8: 'Larger than 5"'},
            "the quote before column 'question' is closed in another",
        ),
        (
            {3: '"Halo sign: which side?', 4: 'Larger than 5"'},
            "the quote before column 'question' is closed in another",
        ),
        ({3: 'Larger than 5"', 8: 'Where is the "halo" sign?'}, ""),  # such quotes are text
    ],
)
def test_a_quote_that_is_not_closed_joins_no_rows(
    stray: dict[int, str], said: str, suffix: str, tmp_path: Path
) -> None:
    save_images(tmp_path, 10)
    delimiter = {"csv": ",", "tsv": "\t"}[suffix]
    made = [["image", "question", "A", "B", "answer"]]
    made += [[f"img/{n}.png", stray.get(n, f"Which side is {n}?"), "left", "right", "AB"[n % 2]] for n in range(10)]
    path = tmp_path / f"q.{suffix}"
    path.write_text("".join(delimiter.join(row) + "\n" for row in made))
    words = ("data.columns.options=[A,B]", "data.split=test_only")
    if not said:
        assert [r.question for r in load(path, *words).test][3::5] == list(stray.values())
        return
    with pytest.raises(DataError, match=rf"q\.{suffix} cannot be read from line 5, record #3: .*{said}.*doubled"):
        load(path, *words)


def test_quoted_fields_of_several_lines_are_read(tmp_path: Path) -> None:
    """Also those with as many commas as a row has."""
    save_images(tmp_path)
    texts = [
        "Man, 61, smoker\nCT, chest",
        'The "halo" sign,\n\nwhich side?',
        "a\n1,2,3\nb",
        "See x.png,\nwhere?",
        "?",
        "!",
    ]
    made = [row | {"question": text, "options": "['left', 'right']"} for row, text in zip(rows(), texts, strict=True)]
    write_csv(tmp_path / "q.csv", made)
    assert [r.question for r in load(tmp_path / "q.csv", "data.split=test_only").test] == texts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data.path=nowhere.json", r"data\.path=nowhere\.json: no such file"),
        ("data.path=q.pkl", "pickles are never loaded"),
        ("data.path=q.txt", "no suffix of"),
        ("data.root=nowhere", r"data\.root=nowhere"),
        ("data.files.test=[x.json]", r"data\.files\.test=x\.json"),
        ("data.files.test=[../q.json]", r"data\.files\.test=\.\./q\.json: use a path below"),
        ("data.files.test=[/q.json]", r"data\.files\.test=/q\.json: use a path below"),
        ("data.files.train=[q.json]", r"data\.files\.test"),
        ("data.columns.options=[a]", r"data\.columns\.options=a"),
        ("data.columns.options=[a,b,c,d,e,f,g,h,i,j,k]", "11 columns"),
        ("data.columns.image={a: b}", r"data\.columns\.image"),
        ("data.columns.options=[]", r"data\.columns\.options"),
    ],
)
def test_settings_that_cannot_work(words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("q.json", "q.pkl", "q.txt"):
        Path(name).write_text("[]")
    path = [] if words.startswith("data.path") else ["data.path=."]
    with pytest.raises(ConfigError, match=message):
        composed("evaluate", "data=mcqa", *path, words)


def test_a_folder_of_pickles(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "q.pkl").write_bytes(b"")
    with pytest.raises(DataError, match="pickles are never loaded"):
        load(tmp_path / "data")


def test_a_hub_id_without_network_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    cfg = composed("evaluate", "data=mcqa", "data.path=nobody/nothing", f"data.cache_dir={tmp_path}")
    SOURCES["mcqa"].check(cfg.data)
    with pytest.raises(DataError, match=r"(?s)nobody/nothing is no file or folder here.*Remedy"):
        load_dataset(cfg.data, "all", "all")


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (("data.split=image_grouped", "data.columns.split=part"), "data.columns.split"),
        (("data.split=test_only", "data.seed=1"), "data.seed"),
        (("data.files.test=[q.json]", "data.test_fraction=0.5"), "data.test_fraction"),
        (("data.files.test=[q.json]", "data.test_part=val"), "data.test_part"),
    ],
)
def test_settings_without_effect_are_refused(
    words: tuple[str, ...], refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q.json").write_text("[]")
    words = ("data=mcqa", "data.path=.", *words)
    with pytest.raises(ConfigError, match=refused):
        check_typed([composed("evaluate", *words)], [word.partition("=")[0] for word in words])


def patients(count: int = 12, images: int = 3) -> list[dict[str, Any]]:
    """Questions on several images of each patient; the patient is a number."""
    return [
        {**row, "patient": n // images, "image": base64.b64encode(noise(n)).decode()}
        for n, row in enumerate(rows(count * images))
    ]


def noise(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def test_the_images_of_a_patient_stay_in_one_part(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "q.jsonl", patients())
    words = ("data.test_fraction=0.3", "data.validation_fraction=0.3")
    apart = load(tmp_path / "q.jsonl", *words)
    found = load(tmp_path / "q.jsonl", *words, "data.columns.group=patient")
    assert found.fingerprint != apart.fingerprint

    def parts_of(dataset: Dataset) -> list[set[int]]:
        number = [
            {int(r.question.split()[-1].strip("?")) // 3 for r in part}
            for part in (dataset.train, dataset.validation, dataset.test)
        ]
        assert all(number)
        return number

    assert set.intersection(*parts_of(apart)[::2])  # without the column
    one, two, three = parts_of(found)
    assert not one & two and not one & three and not two & three and len(one | two | three) == 12
    assert "divided by image content and column 'patient'" in "".join(found.messages)


def test_patients_that_the_data_divide_are_counted(tmp_path: Path) -> None:
    made = [row | {"split": "test" if n % 3 == 2 and n < 9 else "train"} for n, row in enumerate(patients())]
    write_json_lines(tmp_path / "q.jsonl", made)
    found = load(tmp_path / "q.jsonl", "data.columns.group=patient")
    assert found.facts["leaks"]["records_by_group"] == 3
    assert "3 of 3 test questions belong to a group" in "".join(found.messages)
    assert "records_by_group" not in load(tmp_path / "q.jsonl").facts["leaks"]


def test_a_patient_that_another_file_writes_as_a_float_is_the_same(tmp_path: Path) -> None:
    """Patients that all files write alike keep their names, so that the fingerprints of such data stay."""
    made = [row | {"options": "['left', 'right']"} for row in patients(4, 2)]
    for spelling, found in (("{}.0", 4), ("{}", 4), ("{}.5", 0)):
        write_csv(
            tmp_path / "d" / "train.csv", [row | {"patient": spelling.format(row["patient"])} for row in made[::2]]
        )
        write_csv(tmp_path / "d" / "test.csv", made[1::2])
        loaded = load(tmp_path / "d", "data.columns.group=patient")
        assert loaded.facts["leaks"]["records_by_group"] == found
        assert "4 of 4 test questions belong to a group" in "".join(loaded.messages) or not found
    write_csv(tmp_path / "d" / "test.csv", [row | {"patient": f"{row['patient']}.5"} for row in made[1::2]])
    assert {r.group for r in load(tmp_path / "d", "data.columns.group=patient").train} == {"0.5", "1.5", "2.5", "3.5"}
    for part in ("train", "test"):
        write_csv(tmp_path / "d" / f"{part}.csv", [row | {"patient": f"{row['patient']}.0"} for row in made])
    assert {r.group for r in load(tmp_path / "d", "data.columns.group=patient").train} == {"0.0", "1.0", "2.0", "3.0"}


def test_a_missing_patient_is_refused(tmp_path: Path) -> None:
    write_json_lines(
        tmp_path / "q.jsonl", [row | {"patient": None if n == 4 else "p"} for n, row in enumerate(patients())]
    )
    with pytest.raises(DataError, match=r"record #4.*column 'patient' is empty"):
        load(tmp_path / "q.jsonl", "data.columns.group=patient", "data.on_bad_record=error")


def test_a_table_with_other_separators_is_named(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("image;question;options;answer\n1.png;What?;a|b;A\n")
    with pytest.raises(DataError, match=r"single column 'image;question;options;answer', whose parts .* ';'"):
        load(tmp_path / "q.csv")


def test_validation_records_of_patients_in_training_are_refused(tmp_path: Path) -> None:
    part = ("train", "validation", "test")
    made = [row | {"split": part[n % 3] if n < 3 else part[n % 2 * 2]} for n, row in enumerate(patients(12, 3))]
    write_json_lines(tmp_path / "q.jsonl", made)
    words = ("data.validation_part=validation", "data.columns.split=split")
    assert len(load(tmp_path / "q.jsonl", *words).validation) == 1
    with pytest.raises(DataError, match=r"1 of 1 validation records share an image or a group with a training record"):
        load(tmp_path / "q.jsonl", *words, "data.columns.group=patient")
