"""The data of a run: training and test records from any data source."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from medr1.config.settings import ALL, DataConfig
from medr1.domain.records import Modality, QuestionType, Record
from medr1.errors import DataError


@dataclass(frozen=True, slots=True)
class Selection:
    """Modality and question type of the training records, or "all"."""

    modality: str
    question_type: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Training records of the selected modality and question type, and test records of all of them.

    ``fingerprint`` identifies the data. ``facts`` are statistics of the source, ready for JSON. ``messages`` summarise
    them for the log.
    """

    train: list[Record]
    test: list[Record]
    fingerprint: str
    facts: dict[str, Any]
    messages: list[str]


def load_dataset(settings: DataConfig, modality: str, question_type: str) -> Dataset:
    """Loads the data of ``settings`` and selects the training records.

    Raises:
        DataError: files or records that cannot be used, or no training record in the selection.
    """
    from medr1.data.sources import SOURCES  # sources import this module

    dataset = SOURCES[settings.kind].load(settings, Selection(modality, question_type))
    train = select(dataset.train, modality, question_type)
    if dataset.train and not train:
        present = sorted({f"modality={r.modality.value} question_type={r.question_type.value}" for r in dataset.train})
        raise DataError(
            f"no training record has modality={modality} and question_type={question_type}; the data has:\n  "
            + "\n  ".join(present)
        )
    return dataclasses.replace(dataset, train=train)


def select(records: Iterable[Record], modality: str, question_type: str) -> list[Record]:
    """The records of one modality (or "all") and one question type (or "all")."""
    return [r for r in records if modality in (ALL, r.modality.value) and question_type in (ALL, r.question_type.value)]


def limit_cells(records: Iterable[Record], limit: int | None) -> list[Record]:
    """The first ``limit`` records of each combination of modality and question type. None: all records."""
    counts: Counter[tuple[Modality, QuestionType]] = Counter()
    limited = []
    for record in records:
        counts[record.modality, record.question_type] += 1
        if limit is None or counts[record.modality, record.question_type] <= limit:
            limited.append(record)
    return limited
