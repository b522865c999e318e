"""Made-up miniatures of benchmarks in the layouts in which they are released, oddities included.

Each ``write_NAME`` writes a folder and returns what each written row is: "train" or "test" for a question that is used,
else the reason why it is left out or refused.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(seed: int, side: int = 40) -> bytes:
    """A small image. Different seeds give different contents."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def save_png(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(seed))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_csv(path: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def embedded(seed: int) -> dict[str, Any]:
    return {"bytes": png(seed), "path": f"{seed}.png"}


def write_vqa_rad(root: Path) -> list[str]:
    rows = [
        ("freeform", "Is there a fracture?", "Yes", "CLOSED", "train"),
        ("para", "Is a fracture seen?", "no", "CLOSED ", "train"),
        ("freeform", "Is the mass on the left or right?", "Right", "CLOSED", "train"),
        ("freeform", "How many masses are there?", 3, "CLOSED", "choices_not_named"),
        ("freeform", "What is seen?", "a mass", "OPEN", "open_question"),
        ("test_freeform", "Is there free air?", "No.", "CLOSED", "test"),
        ("test_para", "Is free air seen?", "yes", "CLOSED ", "test"),
        ("test_freeform", "How large is the mass?", 5.6, "OPEN ", "open_question"),
    ]
    records = []
    for number, (phrase, question, answer, kind, _) in enumerate(rows):
        save_png(root / "VQA_RAD Image Folder" / f"synpic{number // 2}.jpg", number // 2)
        record = {"qid": number, "phrase_type": phrase, "image_name": f"synpic{number // 2}.jpg"}
        record |= {"image_organ": "CHEST", "question": question, "question_type": "PRES", "answer": answer}
        records.append(record | {"answer_type": kind})
    write_json(root / "VQA_RAD Dataset Public.json", records)
    return [row[-1] for row in rows]


def write_slake(root: Path, validation: str = "validation.json") -> list[str]:
    rows = [
        ("train.json", "Does the image contain the liver?", "Yes", "en", "CLOSED", "CT", "train"),
        ("train.json", "Which is bigger in this image, kidney or liver?", "Liver", "en", "CLOSED", "CT", "train"),
        ("train.json", "图中有肝吗?", "有", "zh", "CLOSED", "CT", "other_language"),
        ("train.json", "What organ is this?", "Lung", "en", "OPEN", "X-Ray", "open_question"),
        ("train.json", "Is this MRI?", "No", "en", "CLOSED", "X-Ray", "train"),
        (validation, "Is this a brain?", "Yes", "en", "CLOSED", "MRI", None),
        (
            "test.json",
            "Is the tumor in the upper left or the lower right?",
            "Lower right",
            "en",
            "CLOSED",
            "MRI",
            "test",
        ),
        ("test.json", "Is there edema?", "No", "en", "CLOSED", "MRI", "test"),
        ("test.json", "Which part is shown?", "Head", "en", "CLOSED", "MRI", "choices_not_named"),
    ]
    files: dict[str, list[dict[str, Any]]] = {}
    for number, (file, question, answer, language, kind, modality, _) in enumerate(rows):
        save_png(root / "imgs" / f"xmlab{number}" / "source.jpg", 100 + number)
        record = {"img_id": number, "img_name": f"xmlab{number}/source.jpg", "question": question, "answer": answer}
        record |= {"q_lang": language, "location": "Abdomen", "modality": modality, "answer_type": kind}
        record |= {"base_type": "vqa", "content_type": "Organ", "triple": ["vhead", "_", "_"], "qid": 1000 + number}
        files.setdefault(file, []).append(record)
    for file, records in files.items():
        write_json(root / file, records)
    return [row[-1] for row in rows if row[-1] is not None]  # the validation part is not read


def write_path_vqa(root: Path) -> list[str]:
    rows = [
        ("train", "is necrosis present?", "yes", "train"),
        ("train", "does it show a nerve?", "no", "train"),
        ("train", "what is present?", "liver", "open_question"),
        ("validation", "is this bone?", "yes", None),
        ("test", "is a gland seen?", "yes", "test"),
        ("test", "where are the cells?", "in the vein", "open_question"),
        ("test", "is this skin?", "no", "test"),
    ]
    for part in ("train", "validation", "test"):
        records = [
            {"image": embedded(200 + number), "question": question, "answer": answer}
            for number, (its, question, answer, _) in enumerate(rows)
            if its == part
        ]
        write_parquet(root / "data" / f"{part}-00000-of-00001.parquet", records)
    (root / "train_vqa.pkl").write_bytes(b"never read")
    return [row[-1] for row in rows if row[-1] is not None]


def _pmc_row(number: int, letter: str, prefix: bool) -> dict[str, Any]:
    texts = dict(zip("ABCD", ("Axial", "Sagittal", "Coronal", "Oblique"), strict=True))
    choices = {f"Choice {key}": f" {key}:{text}" if prefix else text for key, text in texts.items()}
    return {"Figure_path": f"PMC{number}_fig1.jpg", "Question": f"Which plane is {number}?", **choices}


def write_pmc_vqa(root: Path) -> list[str]:
    """Version 1. The older copy of the training file spells ``Anwser`` and has no label."""
    texts = {"A": "Axial", "B": "Sagittal"}
    train = [_pmc_row(n, letter, True) | {"Anwser": f" {texts[letter]} "} for n, letter in enumerate("ABA")]
    test = [
        _pmc_row(n, letter, True) | {"Answer": texts[letter], "Answer_label": letter}
        for n, letter in ((3, "B"), (4, "A"))
    ]
    bad = [_pmc_row(5, "A", True) | {"Choice B": " B:Axial", "Answer": "Axial", "Answer_label": "A"}]
    for number in range(6):
        save_png(root / "figures" / f"PMC{number}_fig1.jpg", 300 + number)
    write_csv(root / "train.csv", train)
    write_csv(root / "test.csv", [*test, *bad])
    write_csv(root / "test_clean.csv", test[:1])
    return ["train"] * 3 + ["test"] * 2 + ["duplicate_option"]


def write_pmc_vqa_2(root: Path) -> list[str]:
    for part, numbers in (("train", (0, 1)), ("test", (2, 3, 4))):
        rows = [
            {"index": n, **_pmc_row(n, "C", False), "Caption": 'A, "quoted"\ncaption', "Answer": "C", "split": part}
            for n in numbers
        ]
        for number in numbers:
            save_png(root / "figures" / f"PMC{number}_fig1.jpg", 320 + number)
        write_csv(root / f"{part}_2.csv", rows)
    return ["train"] * 2 + ["test"] * 3


def write_medxpertqa_mm(root: Path) -> list[str]:
    options = {"A": "Gout", "B": "Lupus", "C": "Sepsis", "D": "Anemia", "E": "Asthma"}
    listing = " ".join(f"({key}) {text}" for key, text in options.items())
    for part, numbers in (("dev", (0,)), ("test", (1, 2, 3))):
        lines = []
        for number in numbers:
            names = [f"MM-{number}-{letter}.jpeg" for letter in ("ab" if number == 2 else "a")]
            for i, name in enumerate(names):
                save_png(root / "images" / name, 400 + 10 * number + i)
            record = {"id": f"MM-{number}", "question": f"A man of {60 + number}?\nAnswer Choices: {listing}"}
            record |= {"options": options, "label": "ABCDE"[number], "images": names, "medical_task": "Diagnosis"}
            lines.append(json.dumps(record | {"body_system": "Skeletal", "question_type": "Reasoning"}))
        (root / "MM").mkdir(parents=True, exist_ok=True)
        (root / "MM" / f"{part}.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return ["test"] * 3


def write_mmmu_med(root: Path) -> list[str]:
    subjects = ["Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy"]
    kinds: list[str] = []
    for number, subject in enumerate([*subjects, "Public_Health"]):
        for part in ("dev", "validation"):
            rows = []
            for kind in ("multiple-choice", "open"):
                seed = 500 + 10 * number + 5 * (part == "dev") + (kind == "open")
                row: dict[str, Any] = {"id": f"{part}_{subject}_{kind}", "question": "<image 1> What is it?"}
                row |= {"options": "['the patient\\'s skin', \"bone\", 'a, b']" if kind != "open" else "[]"}
                row |= {"explanation": "", "image_1": embedded(seed)}
                row |= {"question": "Is <image 1> or <image 2> new?"} if number == 1 else {}
                row |= {f"image_{i}": embedded(seed + 1000) if i == 2 and number == 1 else None for i in range(2, 8)}
                row |= {"img_type": "['Body Scans: MRI, CT scans, and X-rays']", "answer": "B", "subfield": subject}
                rows.append(row | {"topic_difficulty": "Easy", "question_type": kind})
            schema = pa.Table.from_pylist(rows).schema
            image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            for i in range(1, 8):
                schema = schema.set(schema.get_field_index(f"image_{i}"), pa.field(f"image_{i}", image))
            path = root / subject / f"{part}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, schema), path)
        kinds += ["test", "open_question"]
    return kinds


def write_medframeqa(root: Path) -> list[str]:
    rows = []
    for number in range(3):
        row: dict[str, Any] = {"question_id": f"q{number}", "question": "What changes?", "options": ["Size", "Place"]}
        row |= {"correct_answer": "AB"[number % 2], "modality": "CT", "organ": "lung", "system": "Chest"}
        row |= {f"image_{i}": embedded(600 + 10 * number + i) if i < 3 + number else None for i in range(1, 6)}
        rows.append(row)
    write_parquet(root / "data" / "test-00000-of-00001.parquet", rows)
    return ["test"] * 3


def write_medvlthinker_eval(root: Path) -> list[str]:
    rows = []
    for number, dataset in enumerate(("slake_closed", "slake_closed", "pmc_vqa", "medxpertqa_mm")):
        images = [embedded(700 + 10 * number + i) for i in range(2 if dataset == "medxpertqa_mm" else 1)]
        row = {"images": images, "question": f"Which side is {number}?", "options": '{"A": "left", "B": "right"}'}
        row |= {"answer_label": "A", "answer": "left", "reasoning": None, "dataset_name": dataset}
        rows.append(row | {"dataset_index": number, "hash": "0", "misc": "{}"})
    rows.append(rows[0] | {"answer_label": "C", "dataset_index": 9})
    write_parquet(root / "data" / "test-00000-of-00001.parquet", rows)
    return ["test"] * 4 + ["answer_not_among_options"]


def write_gmai_mmbench(root: Path) -> list[str]:
    rows = []
    for number in range(4):
        row = {"index": number, "image": base64.b64encode(png(800 + number, 200)).decode(), "question": "Which one?"}
        row |= {"A": "nevus", "B": "melanoma", "C": "wart" if number else "", "D": "", "E": "", "answer": "B"}
        rows.append(row | {"category": "x", "l2-category": "y", "modality": "Dermoscopy", "clinical vqa task": "DD"})
    write_csv(root / "GMAI_mm_bench_VAL_beta.tsv", rows, "\t")
    return ["test"] * 4


# How each benchmark is chosen, and its miniature.
MINIATURES: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
    "vqa_rad": ("vqa_rad", write_vqa_rad),
    "slake": ("slake", write_slake),
    "path_vqa": ("path_vqa", write_path_vqa),
    "pmc_vqa": ("pmc_vqa", write_pmc_vqa),
    "pmc_vqa data.version=v2": ("pmc_vqa", write_pmc_vqa_2),
    "medxpertqa_mm": ("medxpertqa_mm", write_medxpertqa_mm),
    "mmmu_med": ("mmmu_med", write_mmmu_med),
    "medframeqa": ("medframeqa", write_medframeqa),
    "medvlthinker_eval": ("medvlthinker_eval", write_medvlthinker_eval),
    "gmai_mmbench": ("gmai_mmbench", write_gmai_mmbench),
}
