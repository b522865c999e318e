"""Settings that all sources with files on disk share. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from medr1.config.settings import NEUTRAL, DataConfig


class Split(StrEnum):
    """How the records are divided into training and test."""

    released = "released"
    image_grouped = "image_grouped"
    test_only = "test_only"


class OnBadRecord(StrEnum):
    """Whether records that cannot be used stop the run or are skipped and counted."""

    error = "error"
    skip = "skip"


@dataclass
class StoredDataConfig(DataConfig):
    """Records and images in files."""

    on_bad_record: OnBadRecord = OnBadRecord.skip
    """Stop with an error at records that cannot be used, or skip them. Both report all of them."""
    test_fraction: float = 0.2
    """Fraction of the records in the test part, for split=image_grouped."""
    seed: int = 0
    """Seed of the division into training and test, for split=image_grouped."""
    max_image_pixels: int = 50_000_000
    """Largest image that is decoded, in pixels. Larger ones are rejected as decompression bombs."""
    cache_dir: str = field(default=MISSING, metadata=NEUTRAL)
    """Folder of the cache of image hashes and thumbnails."""
