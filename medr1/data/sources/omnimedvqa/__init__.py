"""OmniMedVQA, in its release layout or with Med-R1's splits. Holds the settings; loading is imported when used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from omegaconf import MISSING

from medr1.config.settings import NEUTRAL
from medr1.data.dataset import Dataset, Selection
from medr1.data.sources import SOURCES
from medr1.data.sources.source import Source
from medr1.data.stored_data import Split, StoredDataConfig
from medr1.domain.records import Modality, QuestionType
from medr1.errors import ConfigError


class ReleasedAxis(StrEnum):
    """Which of Med-R1's two families of splits is read."""

    auto = "auto"
    modality = "modality"
    question_type = "question_type"


@dataclass
class OmniMedVQAConfig(StoredDataConfig):
    """OmniMedVQA on disk."""

    kind: str = "omnimedvqa"
    root: str = field(default=MISSING, metadata=NEUTRAL)
    """Folder of the release, with Images/ and QA_information/."""
    splits: str | None = field(default=None, metadata=NEUTRAL)
    """Folder or file of Med-R1's split files. null: the folder Splits/ in ``root``."""
    split: Split = Split.released
    """released: Med-R1's split files; image_grouped: no image content in both parts; test_only: no training records."""
    axis: ReleasedAxis = ReleasedAxis.auto
    """Family of released splits: by modality or by question type. auto: the axis that the run restricts."""


class OmniMedVQA(Source[OmniMedVQAConfig]):
    """OmniMedVQA on disk."""

    kind = "omnimedvqa"
    settings = OmniMedVQAConfig
    modalities = tuple(Modality)
    question_types = tuple(QuestionType)

    def check(self, settings: OmniMedVQAConfig) -> None:
        for key, value in (("root", settings.root), ("splits", settings.splits)):
            if value is not None and not Path(value).exists():
                raise ConfigError(f"data.{key}={value}: no such file or folder (looked from {Path.cwd()})")

    def check_training(self, settings: OmniMedVQAConfig) -> None:
        if settings.split is Split.test_only:
            raise ConfigError("data.split=test_only has no training records; use evaluate.py, or another data.split")

    def without_effect(self, settings: OmniMedVQAConfig) -> Iterator[tuple[str, Sequence[str]]]:
        if settings.split is not Split.image_grouped:
            yield f"data.split={settings.split}", ("data.test_fraction", "data.seed")

    def load(self, settings: OmniMedVQAConfig, selection: Selection) -> Dataset:
        from medr1.data.sources.omnimedvqa.loading import load_omnimedvqa

        return load_omnimedvqa(settings, selection)


SOURCES.register(OmniMedVQA())
