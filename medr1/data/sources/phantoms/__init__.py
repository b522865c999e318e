"""Phantoms: synthetic medical images with known attributes, drawn from a seed. Holds the settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from medr1.config.settings import OTHER_TEST, SAME_RECORDS, DataConfig, added
from medr1.data.dataset import Dataset, Selection
from medr1.data.sources import SOURCES
from medr1.data.sources.source import Source
from medr1.domain.records import Modality, QuestionType, Record


@dataclass
class PhantomsConfig(DataConfig):
    """Synthetic images drawn from a seed. Needs no files."""

    kind: str = "phantoms"
    seed: int = field(default=0, metadata=OTHER_TEST)
    """Seed of images, questions and the order of options."""
    train_images_per_modality: int = 400
    """Training images of each modality, with one question of each type."""
    test_images_per_modality: int = field(default=80, metadata=OTHER_TEST)
    """Test images of each modality, with one question of each type. Half of them come from a held-out scanner."""
    shortcut: float = field(default=0.0, metadata=SAME_RECORDS)
    """Fraction of training questions of each type whose correct letter is that of the scanner.

    Without a shortcut it is 0.25, by chance; values up to 0.25 change nothing."""
    question_version: int = field(default=2, metadata={**added(1), **OTHER_TEST})
    """Version of the questions. 1: in 60 % of the questions about a location, the wording agrees with it; for results
    that were published with this version."""


class Phantoms(Source[PhantomsConfig]):
    """Synthetic images drawn from a seed."""

    kind = "phantoms"
    settings = PhantomsConfig
    modalities = tuple(Modality)
    question_types = tuple(QuestionType)
    adds_validation = True

    def load(self, settings: PhantomsConfig, selection: Selection) -> Dataset:
        from medr1.data.sources.phantoms.records import load_phantoms

        return load_phantoms(settings)

    def annotated_test_records(self, settings: PhantomsConfig) -> list[Record]:
        from medr1.data.sources.phantoms.records import World, make_records

        return make_records(
            World.TEST, settings.seed, settings.test_images_per_modality, version=settings.question_version
        )


SOURCES.register(Phantoms())
