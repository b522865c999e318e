"""One way to any data: records for training and test, with what a user must know about them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from medr1.config.enums import OnBadRecord, Split
from medr1.config.settings import ALL
from medr1.data.sources.omnimedvqa.files import SplitAxis
from medr1.data.sources.omnimedvqa.source import Loaded, load_omnimedvqa
from medr1.data.sources.phantoms.records import World, make_records
from medr1.domain.records import Modality, QuestionType, Record
from medr1.errors import DataError


@dataclass(frozen=True, slots=True)
class Dataset:
    """Training records of the chosen modality and question type, test records of all of them.

    ``facts`` is JSON-ready (counts, bad records by reason, leaks); ``messages`` say the same to a person.
    """

    train: list[Record]
    test: list[Record]
    fingerprint: str
    facts: dict[str, Any]
    messages: list[str]


def load_dataset(data: DictConfig, modality: str, question_type: str) -> Dataset:
    """Reads ``data`` and selects what is trained on.

    Raises:
        DataError: unusable files or records, or a selection that leaves nothing to train on or to test.
    """
    dataset = _phantoms(data) if data.name == "phantoms" else _omnimedvqa(data, modality, question_type)
    train = select(dataset.train, modality, question_type)
    if dataset.train and not train:
        present = sorted({f"modality={r.modality.value} question_type={r.question_type.value}" for r in dataset.train})
        raise DataError(
            f"no training record has modality={modality} and question_type={question_type}; the data has:\n  "
            + "\n  ".join(present)
        )
    return dataclasses.replace(dataset, train=train)


def select(records: Iterable[Record], modality: str, question_type: str) -> list[Record]:
    """The records of one modality (or all) and one question type (or all)."""
    return [r for r in records if modality in (ALL, r.modality.value) and question_type in (ALL, r.question_type.value)]


def limit_cells(records: Iterable[Record], limit: int | None) -> list[Record]:
    """At most ``limit`` records of each modality and question type, the first ones."""
    taken: dict[tuple[Modality, QuestionType], int] = {}
    kept = []
    for record in records:
        cell = (record.modality, record.question_type)
        taken[cell] = taken.get(cell, 0) + 1
        if limit is None or taken[cell] <= limit:
            kept.append(record)
    return kept


def _phantoms(data: DictConfig) -> Dataset:
    train = make_records(World.TRAIN, data.seed, data.train_images_per_modality, data.shortcut)
    test = make_records(World.TEST, data.seed, data.test_images_per_modality)
    digest = hashlib.sha256()
    for record in (*train, *test):
        digest.update(repr(record).encode())
    for record in test[:: 5 * data.test_images_per_modality]:  # one picture of each modality: the drawing itself
        digest.update(record.image.load(data.image_size).tobytes())
    counts = {"questions_train": len(train), "questions_test": len(test), "images_test": len(test) // 5}
    return Dataset(train, test, digest.hexdigest(), {"counts": counts}, [])


def _omnimedvqa(data: DictConfig, modality: str, question_type: str) -> Dataset:
    narrowed = str(data.axis)
    if narrowed == "auto":
        narrowed = "question_type" if modality == ALL and question_type != ALL else "modality"
    loaded = load_omnimedvqa(
        root=Path(data.root),
        splits=None if data.splits is None else Path(data.splits),
        split=Split(data.split),
        axis=SplitAxis(narrowed),
        on_bad_record=OnBadRecord(data.on_bad_record),
        test_fraction=data.test_fraction,
        seed=data.seed,
        cache_dir=Path(data.cache_dir),
        max_image_pixels=data.max_image_pixels,
    )
    leaks = dataclasses.asdict(loaded.leaks)
    bad = [str(record) for record in loaded.bad]
    facts = {"counts": loaded.counts, "leaks": leaks, "bad_records": bad, "released_axis": narrowed}
    return Dataset(loaded.train, loaded.test, loaded.fingerprint, facts, _messages(loaded))


def _messages(loaded: Loaded) -> list[str]:
    c, leaks = loaded.counts, loaded.leaks
    lines = [
        f"{c['questions_read']} questions on {c['images_read']} images read; {c['questions_used']} questions on "
        f"{c['images_used']} images ({c['pictures_used']} different pictures) used: {len(loaded.train)} for training, "
        f"{len(loaded.test)} for test"
    ]
    if loaded.bad:
        counts = c["bad"].items() if isinstance(c["bad"], dict) else []
        lines.append("bad records left out: " + ", ".join(f"{n} {reason}" for reason, n in counts))
        lines += [f"  {record}" for record in loaded.bad[:10]]
    if leaks.records_by_picture:
        lines.append(
            f"{leaks.records_by_picture} of {leaks.test_records} test questions show a picture that training shows too "
            f"({leaks.records_by_path} by path); data.split=image_grouped has none"
        )
    return lines
