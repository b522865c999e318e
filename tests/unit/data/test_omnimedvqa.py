"""Loading OmniMedVQA: both layouts, every kind of bad record and its message, leaks, image-grouped splits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from medr1.config.enums import Resize
from medr1.config.settings import ALL
from medr1.data.dataset import Dataset, Selection
from medr1.data.sources.omnimedvqa import OmniMedVQAConfig, ReleasedAxis
from medr1.data.sources.omnimedvqa.files import parse_modality, parse_question_type
from medr1.data.sources.omnimedvqa.loading import load_omnimedvqa
from medr1.data.stored_data import OnBadRecord, Split
from medr1.domain.reasoning import ReasoningMode, question_text
from medr1.domain.records import Modality, QuestionType
from medr1.errors import DataError
from tests.dicom_files import write_dicom

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
MINI = SHARED / "omnimedvqa-mini"
needs_mini = pytest.mark.skipif(not MINI.is_dir(), reason="the OmniMedVQA sample is not beside the repository")
FILES = {"ct": "CT(Computed Tomography)", "xray": "X-Ray"}


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((60, 60), Image.Resampling.BICUBIC).save(path)


def qa(number: int, **changes: Any) -> dict[str, Any]:
    """A record in release layout; a change to None removes the key."""
    record = {
        "dataset": "D",
        "question_id": f"D_{number:04d}",
        "question_type": "Disease Diagnosis",
        "question": f"What is seen in {number} (here)?",
        "gt_answer": "Nodule",
        "image_path": f"Images/D/{number}.png",
        "option_A": "Fracture, old",
        "option_B": "Nodule",
        "modality_type": "X-Ray" if number % 2 else "CT(Computed Tomography)",
    } | changes
    return {key: value for key, value in record.items() if value is not None}


def split_record(record: dict[str, Any]) -> dict[str, str]:
    options = {key[-1]: value for key, value in record.items() if key.startswith("option_")}
    letter = next(letter for letter, text in options.items() if text == record["gt_answer"])
    problem = record["question"] + " " + ", ".join(f"{key}){text}" for key, text in options.items())
    return {"image": record["image_path"], "problem": problem, "solution": f"<answer> {letter} </answer>"}


def write_qa(root: Path, records: list[Any], images: bool = True) -> Path:
    path = root / "QA_information" / "Open-access" / "D.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    for number in range(len(records)) if images else ():
        save_image(root / f"Images/D/{number}.png", number)
    return path


def write_split(place: Path, name: str, records: list[dict[str, Any]]) -> Path:
    path = place / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([split_record(record) for record in records]))
    return path


def load(root: Path, control_tokens: frozenset[str] = frozenset(), **changes: Any) -> Dataset:
    settings: dict[str, Any] = {
        "root": str(root),
        "split": Split.test_only,
        "on_bad_record": OnBadRecord.error,
        "test_fraction": 0.25,
        "cache_dir": str(root.parent / "cache"),
        "max_image_pixels": 100_000,
    }
    return load_omnimedvqa(OmniMedVQAConfig(**(settings | changes)), Selection(ALL, ALL, control_tokens))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def test_a_release_record_becomes_a_record(root: Path) -> None:
    write_qa(root, [qa(0), qa(1, gt_answer="nodule.")])
    first, second = load(root).test
    assert (first.id, first.modality, first.question_type) == ("D_0000", Modality.CT, QuestionType.DISEASE)
    assert (first.question, dict(first.options)) == ("What is seen in 0 (here)?", {"A": "Fracture, old", "B": "Nodule"})
    assert first.answer == second.answer == "B"
    assert second.modality is Modality.XRAY
    assert first.origin.endswith("D.json #0 (D_0000)")
    assert first.images[0].load(28).size == (60, 60)


def test_an_answer_is_the_option_that_means_the_same_and_there_is_only_one(root: Path) -> None:
    write_qa(root, [qa(0, gt_answer="nodule. "), qa(1, option_A="Nodule ."), qa(2, gt_answer="Nodules")])
    with pytest.raises(DataError, match="1 answer_not_among_options, 1 duplicate_option"):
        load(root)
    assert [record.answer for record in load(root, on_bad_record=OnBadRecord.skip).test] == ["B"]


@pytest.mark.parametrize(
    ("correct", "letter"),
    [
        ("nodule", "B"),
        ("“Nodule”.", "B"),
        ("Ｎodule", "B"),  # noqa: RUF001
        ("Nod\u00adule\n", "B"),
        ("Crohn's\u00a0disease", "C"),
        ("Crohn&rsquo;s disease;", "C"),
        ("&lt;&nbsp;5 &micro;m", "D"),
        ("10^5", "E"),
        ("5 mm", None),
        ("105", None),
        ("Nodules", None),
        ("< 5 mm", None),
        ("B", None),
        ("Nodule?", None),
    ],
)
def test_an_answer_is_matched_by_meaning_and_never_guessed(root: Path, correct: str, letter: str | None) -> None:
    options = {"option_C": "Crohn’s disease", "option_D": "&lt; 5 μm", "option_E": "10⁵"}  # noqa: RUF001
    write_qa(root, [qa(0, gt_answer=correct, **options), qa(1)])
    loaded = load(root, on_bad_record=OnBadRecord.skip)
    if letter is None:
        assert loaded.facts["counts"]["bad"] == {"answer_not_among_options": 1} and len(loaded.test) == 1
    else:
        assert loaded.test[0].answer == letter


@pytest.mark.parametrize("correct", ["10⁵", "10^5", "105"])
def test_an_answer_that_fits_several_options_is_refused(root: Path, correct: str) -> None:
    write_qa(root, [qa(0, gt_answer=correct, option_A="10⁵", option_B="10^5", option_C="105"), qa(1)])
    assert load(root, on_bad_record=OnBadRecord.skip).facts["counts"]["bad"] == {"duplicate_option": 1}


@pytest.mark.parametrize("absent", ["null", "NaN", '""', '" "', '"\\n\\t"', '"\\u00a0"', '"\\u200b"'])
@pytest.mark.parametrize("letter", ["C", "A"])
def test_absent_options_are_left_out(root: Path, absent: str, letter: str) -> None:
    record = qa(0, option_A="Fracture, old", option_C="Cyst") | {f"option_{letter}": "HERE"}
    path = write_qa(root, [record])
    path.write_text(path.read_text().replace('"HERE"', absent))
    left = {"A": "Fracture, old", "B": "Nodule", "C": "Cyst"}
    del left[letter]
    assert load(root).test[0].options == left


@pytest.mark.parametrize(
    ("changes", "options", "answer"),
    [
        ({"option_A": 1, "option_B": 2, "option_C": 3, "gt_answer": 2}, ["1", "2", "3"], "B"),
        ({"option_A": 1, "option_B": 2, "option_C": 3.0, "gt_answer": 3}, ["1", "2", "3"], "C"),
        ({"option_A": 1, "option_B": 2, "gt_answer": "2"}, ["1", "2"], "B"),
        ({"option_A": "1", "option_B": "2", "gt_answer": 2}, ["1", "2"], "B"),
        ({"option_A": 0.5, "option_B": 5, "gt_answer": 0.5}, ["0.5", "5"], "A"),
        ({"option_A": -5, "option_B": 5, "gt_answer": -5}, ["-5", "5"], "A"),
        ({"option_A": 0, "option_B": "some", "gt_answer": 0}, ["0", "some"], "A"),
        ({"option_A": 10**30, "option_B": 1e300, "gt_answer": 1e300}, [str(10**30), "1e+300"], "B"),
        ({"option_A": "Old\n fracture"}, ["Old fracture", "Nodule"], "B"),
        ({"option_B": " Nodule\r\n", "option_A": "Old\u2028fracture\t"}, ["Old fracture", "Nodule"], "B"),
    ],
)
def test_numbers_become_texts_and_an_option_is_one_line(
    root: Path, changes: dict[str, Any], options: list[str], answer: str
) -> None:
    write_qa(root, [qa(0, **changes)])
    record = load(root).test[0]
    assert (list(record.options.values()), record.answer) == (options, answer)


@pytest.mark.parametrize(
    ("given", "identity"), [(17, "17"), (17.0, "17"), (0, "0"), (1.5, "1.5"), ("017", "017"), (10**25, str(10**25))]
)
def test_an_id_may_be_a_number(root: Path, given: Any, identity: str) -> None:
    write_qa(root, [qa(0, question_id=given), qa(1, question_id=given, gt_answer="Mass")])
    loaded = load(root, on_bad_record=OnBadRecord.skip)
    assert [record.id for record in loaded.test] == [identity]
    assert f"record #1 ({identity})" in loaded.facts["bad_records"][0]


def test_the_fields_of_a_split_file_may_be_absent_too(root: Path) -> None:
    write_qa(root, [qa(0), qa(1), qa(2)])
    records: list[dict[str, Any]] = [split_record(qa(1)), split_record(qa(2)) | {"problem": float("nan")}]
    records += [split_record(qa(2)) | {"solution": None}, split_record(qa(2)) | {"image": ""}]
    path = root / "Splits/X-Ray_test.json"
    path.parent.mkdir()
    path.write_text(json.dumps(records))
    loaded = load(root, split=Split.released, on_bad_record=OnBadRecord.skip)
    assert loaded.facts["counts"]["bad"] == {"malformed": 3} and len(loaded.test) == 1


BESIDE = [
    "._D.json",
    ".ipynb_checkpoints/D-checkpoint.json",
    "Open-access/._D.json",
    "__MACOSX/Open-access/D.json",
    "Open-access/__MACOSX/x/D.json",
    ".git/x/y/D.json",
]


@pytest.mark.parametrize("content", ["[{", json.dumps([qa(7)])])
@pytest.mark.parametrize("name", BESIDE)
def test_files_beside_the_data_are_skipped_and_counted(root: Path, name: str, content: str) -> None:
    write_qa(root, [qa(0)])
    write_split(root / "Splits", "CT_test", [qa(0)])
    for folder in ("QA_information", "Splits"):
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_text(content)
    (root / "QA_information/.DS_Store").write_text("no JSON")
    for split in (Split.released, Split.test_only):
        loaded = load(root, split=split)
        assert [record.id for record in loaded.test] == ["D_0000"]
        assert loaded.facts["counts"]["files_skipped"] == 2
        assert sum("2 JSON files are skipped" in message for message in loaded.messages) == 1


def test_a_hidden_folder_above_the_data_hides_nothing(tmp_path: Path) -> None:
    root = tmp_path / ".cache/__MACOSX/.data"
    write_qa(root, [qa(0)])
    loaded = load(root)
    assert len(loaded.test) == 1 and loaded.facts["counts"]["files_skipped"] == 0
    assert not any("skipped" in message for message in loaded.messages)


def test_only_files_beside_the_data_are_no_data(root: Path) -> None:
    write_qa(root, [qa(0)]).rename(root / "QA_information/Open-access/._D.json")
    with pytest.raises(DataError, match=r"no JSON files but 1"):
        load(root)


@pytest.mark.parametrize(
    "place", ["Images", "Images/D", "Images/D/1.png", "QA_information", "QA_information/Open-access"]
)
def test_links_to_data_elsewhere_are_followed(root: Path, place: str) -> None:
    write_qa(root, [qa(0), qa(1)])
    expected = load(root)
    elsewhere = root.parent / "elsewhere"
    (root / place).rename(elsewhere)
    (root / place).symlink_to(elsewhere)
    assert load(root).fingerprint == expected.fingerprint
    question_file = root / "QA_information/Open-access/D.json"
    question_file.rename(root.parent / "store")
    question_file.symlink_to(root.parent / "store")
    assert load(root).fingerprint == expected.fingerprint


def test_link_loops_and_second_names_of_a_folder_are_read_once(root: Path) -> None:
    write_qa(root, [qa(0), qa(1)])
    qa_folder = root / "QA_information"
    (qa_folder / "Open-access/up").symlink_to(qa_folder)
    (qa_folder / "A-second-name").symlink_to(qa_folder / "Open-access")
    (qa_folder / "self").symlink_to(qa_folder / "self")
    (root / "Images/up").symlink_to(root)
    loaded = load(root)
    assert [record.id for record in loaded.test] == ["D_0000", "D_0001"]
    assert loaded.test[0].origin.startswith(str(qa_folder / "Open-access/D.json"))


def test_data_that_is_installed_by_links_to_a_hidden_folder_is_read(root: Path) -> None:
    write_qa(root, [qa(0), qa(1)])
    (root / "QA_information/Open-access").rename(root / "QA_information/.store")
    (root / "QA_information/Open-access").symlink_to(root / "QA_information/.store")
    assert len(load(root).test) == 2


@pytest.mark.parametrize("layout", [Split.test_only, Split.released])
def test_image_paths_in_another_spelling_are_found_and_counted(root: Path, layout: Split) -> None:
    """Also across the layouts, whose questions are joined by their images."""
    records = [qa(0), qa(1), qa(2)]
    spelled = [records[0], records[1] | {"image_path": "images\\d\\1.PNG"}]
    spelled += [records[2] | {"image_path": "Images/D/2%2Epng "}]
    write_qa(root, records if layout is Split.released else spelled)
    write_split(root / "Splits", "CT_test", [spelled[0], spelled[2]])
    write_split(root / "Splits", "X-Ray_train", [spelled[1]])
    loaded = load(root, split=layout)
    assert sorted(r.id for r in (*loaded.train, *loaded.test)) == ["D_0000", "D_0001", "D_0002"]
    assert sorted(r.images[0].path for r in (*loaded.train, *loaded.test)) == [f"Images/D/{n}.png" for n in range(3)]
    assert loaded.facts["counts"]["images_respelled"] == 2 and loaded.facts["counts"]["images_used"] == 3
    assert any("2 image paths are spelled differently" in message for message in loaded.messages)
    write_qa(root, records)
    assert load(root).facts["counts"]["images_respelled"] == 0


def test_two_spellings_of_one_image_leak(root: Path) -> None:
    write_qa(root, [qa(1)])
    save_image(root / "Images/D/1.png", 1)
    write_split(root / "Splits", "X-Ray_train", [qa(1)])
    write_split(root / "Splits", "X-Ray_test", [qa(1, image_path="Images/D/1.PNG")])
    leaks = load(root, split=Split.released).facts["leaks"]
    assert (leaks["images_by_path"], leaks["images_by_content"]) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "dataset"),
    [
        ({}, "D"),
        ({"dataset": None}, "D"),
        ({"dataset": "MIAS"}, "MIAS"),
        ({"dataset": [1]}, "D"),
        ({"dataset": " "}, "D"),
    ],
)
def test_the_data_set_of_a_record_is_the_given_one_or_the_folder_of_its_image(
    root: Path, changes: dict[str, Any], dataset: str
) -> None:
    write_qa(root, [qa(1, **changes)])
    save_image(root / "Images/D/1.png", 1)
    write_split(root / "Splits", "X-Ray_test", [qa(1)])
    assert [record.dataset for record in load(root).test] == [dataset]
    assert [record.dataset for record in load(root, split=Split.released).test] == ["D"]


@pytest.mark.parametrize("layout", [Split.test_only, Split.released])
@pytest.mark.parametrize("text", ["Seen [SEP]?", "<s>", "x<image>y"])
def test_control_tokens_of_the_model_are_bad_records(root: Path, text: str, layout: Split) -> None:
    changed = qa(0, question=text)
    write_qa(root, [changed, qa(2, option_A=text), qa(1)])
    write_split(root / "Splits", "CT_test", [changed, qa(2, option_A=text), qa(1)])
    tokens = frozenset({"[SEP]", "<s>", "<image>"})
    assert len(load(root, split=layout).test) == 3
    loaded = load(root, split=layout, on_bad_record=OnBadRecord.skip, control_tokens=tokens)
    assert [record.id for record in loaded.test] == ["D_0001"]
    assert loaded.facts["counts"]["bad"] == {"control_token": 2} and loaded.facts["counts"]["questions_used"] == 1
    with pytest.raises(DataError, match="2 control_token"):
        load(root, split=layout, control_tokens=tokens)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.characters(categories=["Cs"]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=6,
)
_PATHS = st.sampled_from(
    ["Images/D/0.png", "images\\d\\0.PNG", "Images/D/%30.png", "Images/D", "../x.png", "Images/\0"]
)
_TYPED = st.sampled_from(
    ["Nodule", "nodule.", "Cyst", "<|im_end|>", "\ud800", "", " ", 3, 3.0, "3", None, float("nan")]
)
_RELEASE = st.fixed_dictionaries(
    {},
    optional={
        "question_id": _JSON | st.just("D_1"),
        "question_type": _JSON | st.just("Disease Diagnosis"),
        "question": _JSON | st.just("Seen?"),
        "gt_answer": _JSON | _TYPED,
        "image_path": _JSON | _PATHS,
        "modality_type": _JSON | st.sampled_from(["X-Ray", "MR"]),
        "dataset": _JSON,
        **{f"option_{letter}": _JSON | _TYPED for letter in "ABCDZ"},
    },
)
_SPLIT = st.fixed_dictionaries(
    {},
    optional={
        "image": _JSON | _PATHS,
        "problem": _JSON | st.sampled_from(["Q? A)x, B)y", "Q? A)x, B)X.", "Q? A)x, B)<|im_end|>", "Q? A)\ud800, B)y"]),
        "solution": _JSON | st.sampled_from(["<answer> A </answer>", "<answer> ( </answer>", "A"]),
    },
)


@pytest.fixture(scope="module")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz") / "root"
    save_image(root / "Images/D/0.png", 0)
    (root / "QA_information").mkdir()
    (root / "Splits").mkdir()
    return root


def loads_or_names(root: Path, path: Path, split: Split, records: int | None) -> None:
    """Skipping loads what is good or names the file; what is skipped is named with file and record."""
    try:
        loaded = load(root, split=split, on_bad_record=OnBadRecord.skip)
    except DataError as error:
        assert str(path) in str(error) or "hold no record" in str(error)
        assert "Remedy" in str(error)
        str(error).encode()
        return
    assert records is not None
    bad = loaded.facts["bad_records"]
    assert len(loaded.test) + len(bad) == records
    assert all(f"{path}, record #" in line for line in bad)
    json.dumps(loaded.facts).encode()
    "".join(bad).encode()
    for record in loaded.test:
        question_text(record.question, record.options, ReasoningMode.NO_THINK).encode()
        assert record.answer in record.options and record.images[0].load(28).size == (60, 60)


@given(st.lists(_RELEASE | _RELEASE.map(lambda changes: qa(0) | changes) | _JSON, min_size=1, max_size=3))
def test_any_records_of_a_release_are_read_or_named(image_root: Path, records: list[Any]) -> None:
    path = image_root / "QA_information/D.json"
    path.write_text(json.dumps(records))
    loads_or_names(image_root, path, Split.test_only, len(records))
    path.write_text("[]")


@given(st.lists(_SPLIT | _SPLIT.map(lambda changes: split_record(qa(0)) | changes) | _JSON, min_size=1, max_size=3))
def test_any_records_of_a_split_are_read_or_named(image_root: Path, records: list[Any]) -> None:
    (image_root / "QA_information/D.json").write_text(
        json.dumps([qa(0, question="Q?", option_A="x", option_B="y", gt_answer="x")])
    )
    path = image_root / "Splits/CT_test.json"
    path.write_text(json.dumps(records))
    loads_or_names(image_root, path, Split.released, len(records))


@given(st.binary(max_size=60) | _JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b"[" + b"9" * 5000 + b"]")
@example(b"\xef\xbb\xbf[]")
@example('[{"question": "x"}]'.encode("utf-16"))
def test_any_file_is_read_or_named(image_root: Path, content: bytes) -> None:
    path = image_root / "QA_information/D.json"
    path.write_bytes(content)
    loads_or_names(image_root, path, Split.test_only, None)


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("MR (Mag-netic Resonance Imaging)", Modality.MRI),
        ("OCT (Optical Coherence Tomography", Modality.OCT),
        ("Optical Coherence Tomography", Modality.OCT),
        ("ultrasound", Modality.US),
        ("Microscopy Images", Modality.MICRO),
        ("CT(Computed Tomography)", Modality.CT),
        ("X-Ray", Modality.XRAY),
        ("Fundus Photography", Modality.FP),
        ("Dermoscopy", Modality.DER),
        ("Digital Photography", None),
        ("Modality Recognition", None),
        ("unknown", None),
        ("", None),
    ],
)
def test_modality_names(name: str, modality: Modality | None) -> None:
    assert parse_modality(name) is modality


def test_question_type_names() -> None:
    names = ["Anatomy Identification", "Disease Diagnosis", "Lesion Grading", "Modality Recognition"]
    assert [parse_question_type(name) for name in [*names, "Other Biological Attributes"]] == list(QuestionType)
    assert parse_question_type("X-Ray") is None


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"gt_answer": None}, "malformed", "key 'gt_answer' is missing"),
        ({"question": ["x"]}, "malformed", "key 'question' is ['x']"),
        ({"option_C": True}, "malformed", "key 'option_C' is True"),
        ({"option_C": {}}, "malformed", "key 'option_C' is {}"),
        ({"option_C": float("inf")}, "malformed", "key 'option_C' is inf"),
        ({"question_id": []}, "malformed", "key 'question_id' is []"),
        ({"gt_answer": float("nan")}, "malformed", "key 'gt_answer' is nan, which counts as absent"),
        ({"question": " \n\u200b"}, "malformed", "'question' is ' \\n\\u200b', which counts as absent"),
        ({"modality_type": ""}, "unknown_modality", "modality is given as None"),
        ({"modality_type": float("nan")}, "unknown_modality", "modality is given as None"),
        ({"modality_type": 3}, "unknown_modality", "'3'"),
        ({"question": "Seen <|image_pad|>?"}, "control_token", "<|image_pad|>"),
        ({"option_A": "<|im_end|>"}, "control_token", "<|im_end|>"),
        ({"question": "Seen \ud800?"}, "unencodable_text", "\\ud800"),
        ({"option_A": "a\0b"}, "unencodable_text", "\\x00"),
        ({"question_id": "D\udfff_1"}, "unencodable_text", "\\udfff"),
        ({"image_path": "Images/\ud800.png"}, "unencodable_text", "\\ud800"),
        ({"modality_type": None}, "unknown_modality", "modality is given as None"),
        ({"modality_type": "Endoscopy"}, "unknown_modality", "'Endoscopy'"),
        ({"question_type": "Riddle"}, "unknown_question_type", "'Riddle'"),
        ({"option_A": None, "option_B": None}, "no_options", "0 option"),
        ({"option_C": "nodule."}, "duplicate_option", "options B and C"),
        ({"gt_answer": "Mass"}, "answer_not_among_options", "gt_answer 'Mass'"),
        ({"gt_answer": "B"}, "answer_not_among_options", "gt_answer 'B'"),
        ({"image_path": "Images/D/absent.png"}, "no_image", "'Images/D/absent.png' does not exist"),
        ({"image_path": "../x.png"}, "path_leaves_root", "contains '..'"),
        ({"image_path": "/x.png"}, "path_leaves_root", "is absolute"),
        ({"image_path": "Images/%2e%2e/%2E%2E/x.png"}, "path_leaves_root", "contains '..'"),
        ({"image_path": "Images\\..\\x.png"}, "path_leaves_root", "contains '..'"),
        ({"image_path": "Images/D"}, "no_image", "'Images/D' does not exist"),
        ({"image_path": "Images/" + 300 * "x" + ".png"}, "no_image", "does not exist"),
        ({"image_path": "Images/loop.png"}, "no_image", "'Images/loop.png' does not exist"),
        ({"image_path": "Images/d/TWO.png"}, "ambiguous_image", "'Images/D/Two.png', 'Images/D/two.png'"),
        ({"image_path": "Images/empty.png"}, "undecodable_image", "has 0 bytes"),
        ({"image_path": "Images/text.png"}, "undecodable_image", "cannot be decoded"),
        ({"image_path": "Images/cut.png"}, "undecodable_image", "cannot be decoded"),
        ({"image_path": "Images/huge.png"}, "image_too_large", "data.max_image_pixels"),
    ],
)
def test_each_bad_record_is_named_and_can_be_skipped(
    root: Path, changes: dict[str, Any], reason: str, detail: str
) -> None:
    path = write_qa(root, [qa(0), qa(1, **changes), qa(2)])
    for number, name in enumerate(("Two.png", "two.png")):
        save_image(root / "Images/D" / name, number)
    (root / "Images/loop.png").symlink_to(root / "Images/loop.png")
    (root / "Images/empty.png").touch()
    (root / "Images/text.png").write_text("no image")
    (root / "Images/cut.png").write_bytes((root / "Images/D/1.png").read_bytes()[:500])
    Image.new("L", (1000, 1000)).save(root / "Images/huge.png")
    with pytest.raises(DataError) as caught:
        load(root)
    message = str(caught.value)
    assert f"1 record(s) cannot be used: 1 {reason}" in message
    named = "#1" if "question_id" in changes else "#1 (D_0001)"
    assert f"{path}, record {named}: {reason}" in message and detail in message
    assert "data.on_bad_record=skip" in message
    loaded = load(root, on_bad_record=OnBadRecord.skip)
    assert [record.id for record in loaded.test] == ["D_0000", "D_0002"]
    assert len(loaded.facts["bad_records"]) == 1 and loaded.facts["counts"]["bad"] == {reason: 1}
    assert (loaded.facts["counts"]["questions_read"], loaded.facts["counts"]["questions_used"]) == (3, 2)


def test_one_error_lists_ten_bad_records_and_every_reason(root: Path) -> None:
    records = [qa(n, image_path=f"Images/absent{n}.png") for n in range(30)] + ["text", qa(99, gt_answer="Mass")]
    write_qa(root, [*records, qa(1)])
    with pytest.raises(DataError) as caught:
        load(root)
    message = str(caught.value)
    assert "32 record(s) cannot be used: 1 answer_not_among_options, 1 malformed, 30 no_image" in message
    assert message.count("record #") == 10 and "and 22 more" in message
    assert "found str, expected an object" in message and "'Mass'" in message


def test_skipping_all_records_is_an_error(root: Path) -> None:
    write_qa(root, [qa(0), qa(1)], images=False)
    with pytest.raises(
        DataError, match=r"none of the 2 records read can be used: 2 no_image[\s\S]*Remedy: correct data.root"
    ):
        load(root, on_bad_record=OnBadRecord.skip)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[{", "not valid JSON"), ('{"a": 1}', "found dict"), ("", "not valid JSON"), ("\udcff", "not valid JSON")],
)
def test_broken_files_are_named_whatever_is_skipped(root: Path, content: str, message: str) -> None:
    path = write_qa(root, [qa(0)])
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message) as caught:
        load(root, on_bad_record=OnBadRecord.skip)
    assert str(path) in str(caught.value) and "Remedy" in str(caught.value)


def test_missing_and_empty_places(root: Path) -> None:
    with pytest.raises(DataError, match="absent is not a folder"):
        load(root / "absent")
    with pytest.raises(DataError, match="neither QA_information nor Splits"):
        load(root)
    (root / "QA_information").mkdir()
    with pytest.raises(DataError, match="QA_information has no JSON file"):
        load(root)
    write_qa(root, [])
    with pytest.raises(DataError, match="hold no record"):
        load(root)
    write_qa(root, [qa(0)])
    with pytest.raises(DataError, match=r"needs Med-R1's split files[\s\S]*data.split=image_grouped"):
        load(root, split=Split.released)
    with pytest.raises(DataError, match=r"data.splits=.*nowhere"):
        load(root, splits=str(root / "nowhere"))
    with pytest.raises(DataError, match=r"test_fraction=1\.5"):
        load(root, split=Split.image_grouped, test_fraction=1.5)


def test_released_split_joins_question_types_and_ids(root: Path) -> None:
    records = [qa(0), qa(1), qa(2, question_type="Lesion Grading"), qa(3)]
    write_qa(root, records)
    places = root / "Splits/modality"
    write_split(places / "train", "CT(Computed Tomography)_train", [records[0], records[2]])
    write_split(places / "train", "X-Ray_train", [records[1]])
    write_split(places / "test", "X-Ray_test", [records[3], qa(4, image_path="Images/D/1.png", modality_type="X-Ray")])
    loaded = load(root, split=Split.released, on_bad_record=OnBadRecord.skip)
    assert {record.id: record.question_type.value for record in loaded.train} == {
        "D_0000": "disease",
        "D_0001": "disease",
        "D_0002": "lesion",
    }
    assert [record.id for record in loaded.test] == ["D_0003"]
    assert loaded.facts["counts"]["bad"] == {"unknown_question_type": 1}
    with pytest.raises(DataError, match="no split files by question_type"):
        load(root, split=Split.released, axis=ReleasedAxis.question_type)


TYPES = ["Anatomy Identification", "Lesion Grading", "Modality Recognition", "Other Biological Attributes"]


@pytest.mark.parametrize("missing", [0, 1])
def test_question_type_from_the_other_family_and_by_exclusion(root: Path, missing: int) -> None:
    records = [qa(0), qa(1), qa(2)]
    write_qa(root, records)
    (root / "QA_information/Open-access/D.json").unlink()
    (root / "QA_information/Open-access").rmdir()
    (root / "QA_information").rmdir()
    for part in ("train", "test"):
        write_split(root / "Splits/modality" / part, f"X-Ray_{part}", records[1:] if part == "train" else records[:1])
        for name in TYPES[missing:]:
            write_split(root / "Splits/question_type" / part, f"{name}_{part}", [])
    write_split(root / "Splits/question_type/test", "Lesion Grading_test", [records[2]])
    loaded = load(root, split=Split.released, on_bad_record=OnBadRecord.skip)
    if missing:
        assert loaded.facts["counts"]["bad"] == {"unknown_question_type": 2}
        assert loaded.facts["counts"]["by_exclusion"] == 0
        assert [record.question_type.value for record in loaded.train] == ["lesion"]
    else:
        assert loaded.facts["counts"]["by_exclusion"] == 2
        assert sorted(record.question_type.value for record in loaded.train) == ["disease", "lesion"]


def test_file_called_unknown_is_never_completed_by_exclusion(root: Path) -> None:
    records = [qa(n, modality_type=None) for n in range(3)]
    write_qa(root, records)
    for name in ("CT", "MR", "X-Ray", "ultrasound", "Dermoscopy", "Fundus Photography", "OCT"):
        for part in ("train", "test"):
            write_split(root / "Splits/modality" / part, f"{name}_{part}", [])
    write_split(root / "Splits/modality/train", "unknown_train", [records[0]])
    write_split(root / "Splits/question_type/train", "Disease Diagnosis_train", records[:1])
    write_split(root / "Splits/question_type/test", "Disease Diagnosis_test", [qa(1, question="Another?")])
    (root / "QA_information/Open-access/D.json").write_text("[]")
    arguments: dict[str, Any] = {"split": Split.released, "on_bad_record": OnBadRecord.skip}
    loaded = load(root, axis=ReleasedAxis.question_type, **arguments)
    assert [(record.question, record.modality.value) for record in loaded.test] == [("Another?", "micro")]
    assert loaded.facts["counts"]["bad"] == {"unknown_modality": 1} and loaded.train == []


def test_single_split_file_and_bad_names(root: Path) -> None:
    write_qa(root, [qa(1), qa(2)])
    save_image(root / "Images/D/2.png", 2)
    path = write_split(root.parent / "elsewhere", "X-Ray_test", [qa(1)])
    loaded = load(root, split=Split.released, splits=str(path))
    assert (loaded.train, [record.id for record in loaded.test]) == ([], ["D_0001"])
    assert [record.id for record in load(root, splits=str(path)).test] == ["D_0001"]
    wrong = path.rename(path.with_name("questions.json"))
    with pytest.raises(DataError, match=r"questions.json: the file name"):
        load(root, splits=str(wrong))


def test_repeated_ids_are_numbered(root: Path) -> None:
    write_qa(root, [qa(0), qa(1, question_id="D_0000")])
    assert [record.id for record in load(root).test] == ["D_0000", "D_0000~2"]


def test_image_grouped_keeps_copies_together_and_depends_on_the_seed_only(root: Path) -> None:
    records = [qa(n) for n in range(40)]
    write_qa(root, records)
    for number in range(0, 40, 4):  # every fourth CT image is also saved as a JPEG, used by the next CT question
        with Image.open(root / f"Images/D/{number}.png") as image:
            image.save(root / f"Images/D/{number + 2}.jpg", quality=80)
        records[number + 2]["image_path"] = f"Images/D/{number + 2}.jpg"
    write_qa(root, records, images=False)
    loaded = load(root, split=Split.image_grouped)
    side = {record.id: part for part in ("train", "test") for record in getattr(loaded, part)}
    assert len(side) == 40 and loaded.facts["counts"]["image_contents_used"] == 30
    assert all(side[f"D_{n:04d}"] == side[f"D_{n + 2:04d}"] for n in range(0, 40, 4))
    assert loaded.facts["leaks"]["records_by_content"] == 0
    assert Counter(record.modality.value for record in loaded.test) == {"ct": 4, "xray": 5}
    write_qa(root, records[::-1], images=False)
    again = load(root, split=Split.image_grouped)
    assert {record.id for record in again.test} == {record.id for record in loaded.test}
    assert again.fingerprint == loaded.fingerprint
    other = load(root, split=Split.image_grouped, seed=1)
    assert {record.id for record in other.test} != {record.id for record in loaded.test}
    assert other.fingerprint != loaded.fingerprint


def test_leaks_by_path_by_content_and_by_modality(root: Path) -> None:
    records = [qa(n) for n in range(6)]
    write_qa(root, records)
    with Image.open(root / "Images/D/1.png") as image:
        image.save(root / "Images/D/3.jpg", quality=80)
    records[3]["image_path"] = "Images/D/3.jpg"  # the image of 1 under another path
    records[5]["image_path"] = "Images/D/0.png"  # a training path, but of another modality
    extra = qa(1, question="And what else?", question_id="D_9")  # a training path
    write_qa(root, [*records, extra], images=False)
    write_split(root / "Splits/modality", "CT_train", [records[0], records[2]])
    write_split(root / "Splits/modality", "X-Ray_train", [records[1]])
    write_split(root / "Splits/modality", "CT_test", [records[4]])
    write_split(root / "Splits/modality", "X-Ray_test", [records[3], records[5], extra])
    leaks = load(root, split=Split.released).facts["leaks"]
    assert (leaks["test_records"], leaks["test_images"]) == (4, 4)
    assert (leaks["records_by_path"], leaks["records_by_content"]) == (2, 3)
    xray = leaks["by_modality"]["xray"]
    assert (xray["test_images"], xray["images_by_path"], xray["images_by_content"]) == (3, 1, 2)
    assert leaks["by_modality"]["ct"]["records_by_content"] == 0


def test_images_with_frames_or_without_content_are_counted_and_named(root: Path) -> None:
    names = ["Images/D/film.gif", "Images/D/clear.png", "Images/D/scan.dcm", "Images/D/3.png"]
    write_qa(root, [qa(number, image_path=name) for number, name in enumerate(names)])
    page = Image.new("L", (20, 20))
    page.save(root / names[0], save_all=True, append_images=[Image.new("L", (20, 20), g) for g in (99, 180)])
    Image.new("RGBA", (20, 20)).save(root / names[1])
    write_dicom(root / names[2], np.arange(32, dtype=np.int16).reshape(2, 4, 4))
    loaded = load(root)
    assert len(loaded.test) == 4 and loaded.facts["counts"]["image_notes"] == 3
    notes = dict(zip(sorted(names[:3]), loaded.facts["image_notes"], strict=True))
    assert all(name in note for name, note in notes.items())
    assert "3 frames" in notes[names[0]] and "empty" in notes[names[1]] and "2 frames" in notes[names[2]]
    assert any("3 note(s)" in message and names[0] in message for message in loaded.messages)
    assert load(root).facts == loaded.facts  # also from the cache


def test_fingerprint_depends_on_the_image(root: Path) -> None:
    write_qa(root, [qa(0), qa(1)])
    before = load(root).fingerprint
    assert load(root).fingerprint == before
    save_image(root / "Images/D/1.png", 77)
    assert load(root).fingerprint != before


@needs_mini
@pytest.mark.parametrize(
    ("axis", "train", "test", "by_path", "by_content"),
    [(ReleasedAxis.modality, 1687, 409, 124, 135), (ReleasedAxis.question_type, 1704, 392, 114, 131)],
)
def test_real_released_splits(
    tmp_path: Path, axis: ReleasedAxis, train: int, test: int, by_path: int, by_content: int
) -> None:
    arguments: dict[str, Any] = {"split": Split.released, "axis": axis, "cache_dir": str(tmp_path)}
    loaded = load(MINI, on_bad_record=OnBadRecord.skip, max_image_pixels=64_000_000, **arguments)
    assert (len(loaded.train), len(loaded.test)) == (train, test)
    counts, leaks = loaded.facts["counts"], loaded.facts["leaks"]
    assert (leaks["records_by_path"], leaks["records_by_content"]) == (by_path, by_content)
    assert counts["bad"] == {"duplicate_option": 1, "unknown_modality": 1} and len(loaded.facts["bad_records"]) == 2
    independent = [
        record for path in (MINI / "Splits" / axis.value).rglob("*.json") for record in json.loads(path.read_text())
    ]
    assert counts["questions_read"] == len(independent) == train + test + 2
    assert counts["images_read"] == len({record["image"] for record in independent})


@needs_mini
def test_real_layouts_agree(tmp_path: Path) -> None:
    """Both layouts have the same questions, so that answers, axes and ids must be equal."""
    changes = {"on_bad_record": OnBadRecord.skip, "cache_dir": str(tmp_path), "max_image_pixels": 10**6}
    release, split = load(MINI, **changes), load(MINI, split=Split.released, **changes)

    def content(records: list[Any]) -> set[tuple[Any, ...]]:
        return {
            (r.id, r.image_key, r.modality, r.question_type, r.question, tuple(r.options.items()), r.answer)
            for r in records
        }

    assert len(release.test) == 2096
    assert content(release.test) == content(split.train + split.test)


@pytest.mark.parametrize("resize", Resize)
def test_an_image_too_narrow_for_its_own_aspect_ratio_is_a_bad_record(root: Path, resize: Resize) -> None:
    write_qa(root, [qa(0), qa(1)])
    Image.new("RGB", (402, 2), "red").save(root / "Images/D/1.png")
    loaded = load(root, on_bad_record=OnBadRecord.skip, resize=resize)
    bad = {"aspect_ratio": 1} if resize is Resize.native else {}
    assert (len(loaded.test), loaded.facts["counts"]["bad"]) == (2 - len(bad), bad)
    if bad:
        with pytest.raises(DataError, match=r"Images/D/1\.png' has 402 x 2 pixels"):
            load(root, on_bad_record=OnBadRecord.error, resize=resize)
