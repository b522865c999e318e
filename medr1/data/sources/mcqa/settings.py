"""Settings of ``mcqa`` and of the benchmarks. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING, OmegaConf

from medr1.config.settings import NEUTRAL
from medr1.data.sources.mcqa.choices import AnswerFormat
from medr1.data.stored_data import Split, StoredDataConfig


class OwnSplit(StrEnum):
    """How own data is divided into training and test."""

    auto = "auto"
    image_grouped = "image_grouped"
    test_only = "test_only"


@dataclass
class ColumnsConfig:
    """The columns of a table. null: the column with the name of the setting, if there is one."""

    id: str | None = None
    """Identifies the record in predictions. Without it: file and row."""
    image: Any = "image"
    """One or several images: path, bytes, base64, a mapping with bytes and path, or a list. Or a list of columns."""
    question: str = "question"
    """The question."""
    options: Any = "options"
    """The options: a list, a mapping from letters, or either as a text. A list of columns: each has one option."""
    answer: str = "answer"
    """The correct option, see ``data.answer_format``."""
    modality: str | None = None
    """The imaging modality, any text."""
    question_type: str | None = None
    """The type of the question, any text."""
    split: str | None = None
    """The part of the record, see ``data.train_part`` and ``data.test_part``."""
    group: str | None = None
    """The patient or study: the records of a group stay together where training, validation and test are divided, and
    intervals resample groups."""
    rationale: str | None = None
    """A reference rationale, for SFT."""
    dataset: str | None = None
    """The data set that the record was collected from."""


@dataclass
class FilesConfig:
    """Files of each part, below ``data.path``."""

    train: list[str] = field(default_factory=list)
    """Files with training records."""
    validation: list[str] = field(default_factory=list)
    """Files with validation records."""
    test: list[str] = field(default_factory=list)
    """Files with test records."""


def _open_map() -> dict[str, str]:
    """An empty mapping whose keys a command line may add; Hydra closes all others."""
    return OmegaConf.create({}, flags={"struct": False})  # type: ignore[return-value]


@dataclass
class TableConfig(StoredDataConfig):
    """Questions in tables: JSON, JSON Lines, CSV, TSV or Parquet."""

    train_part: str = "train"
    """The part of the data that is for training, as the data calls it."""
    test_part: str = "test"
    """The part of the data that is for test, as the data calls it."""
    validation_part: str | None = None
    """The part of the data that is for validation, as the data calls it. null: none, see ``data.validation_fraction``.

    Its records then are the validation records."""
    modality_map: dict[str, str] = field(default_factory=_open_map)
    """Groups values of the modality: {value in the data: value in medr1}. Other values stay as they are."""
    question_type_map: dict[str, str] = field(default_factory=_open_map)
    """Groups values of the question type, as ``modality_map``."""


@dataclass
class McqaConfig(TableConfig):
    """Own questions: a file, a folder of files, or a data set of the Hugging Face hub."""

    kind: str = "mcqa"
    path: str = field(default=MISSING, metadata=NEUTRAL)
    """File, folder or hub id (OWNER/NAME) of the questions."""
    root: str | None = field(default=None, metadata=NEUTRAL)
    """Folder that image paths are relative to. null: the folder of the file that names the image."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """The columns of the tables."""
    files: FilesConfig = field(default_factory=FilesConfig)
    """Files of each part. Empty: all files of the folder."""
    answer_format: AnswerFormat = AnswerFormat.auto
    """How the answer is written: letter, text, a position counted from 0 (zero_based) or from 1 (one_based).

    auto: a letter or a text."""
    split: OwnSplit = OwnSplit.auto
    """image_grouped: no image content in both parts; test_only: no training records.

    auto: by ``data.files``, by ``data.columns.split``, by files named train and test, or by a column named split, else
    image_grouped."""


@dataclass
class BenchmarkConfig(TableConfig):
    """A public benchmark in the layout in which it is released."""

    root: str = field(default=MISSING, metadata=NEUTRAL)
    """Folder of the release."""
    split: Split = Split.released
    """released: the parts of the release; image_grouped: these together, with no image content in both parts;
    test_only: the test part alone, without training records."""
