"""The interface of a data source."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from operator import attrgetter
from typing import Any, ClassVar, Generic, TypeVar

from medr1.config.settings import DataConfig
from medr1.data.dataset import Dataset, Selection
from medr1.domain.records import Record

S = TypeVar("S", bound=DataConfig)


class Source(ABC, Generic[S]):
    """A data source, registered in ``medr1.data.sources.SOURCES``.

    ``kind`` is the value of ``data.kind``; ``settings`` is the dataclass of the source's files in conf/data.
    ``modalities`` and ``question_types`` are all values that the records of the source can have, so that others are
    refused before anything is loaded. None: any value, known when the data is loaded.
    """

    kind: ClassVar[str]
    settings: type[S]
    adds_validation: ClassVar[bool] = False
    """Whether validation records are made in addition to the training records, which then stay the same."""
    modalities: ClassVar[Sequence[str] | None] = None
    question_types: ClassVar[Sequence[str] | None] = None

    def check(self, settings: S) -> None:
        """Checks the settings before anything is loaded.

        Raises:
            ConfigError: settings that cannot work.
        """

    def check_training(self, settings: S) -> None:
        """Checks that the settings leave records to train on, before anything is loaded.

        Raises:
            ConfigError: settings without training records.
        """

    def has_validation(self, settings: S) -> bool:
        """Whether there are validation records with these settings."""
        return settings.validation_fraction > 0

    def without_effect(self, settings: S) -> Iterator[tuple[str, Sequence[str]]]:
        """Choices of the settings, each with the dotted keys that it leaves without effect and that are refused."""
        yield from ()

    def image_grouped(self, settings: S) -> str:
        """What is typed, and left out, to divide the data by image content. Empty if it is, or if it cannot be."""
        split: Any = getattr(settings, "split", None)
        if split is None or split == "image_grouped" or "image_grouped" not in type(split).__members__:
            return ""
        choice, default = "data.split=image_grouped", type(settings)()
        divided: Any = dataclasses.replace(settings, **{"split": type(split)("image_grouped")})
        unread = (key for chosen, keys in self.without_effect(divided) if chosen == choice for key in keys)
        values = ((key, attrgetter(key.removeprefix("data."))) for key in unread)
        given = [f"{key}=" for key, value in values if value(settings) != value(default)]
        return f"{choice} without {' and '.join(given)}" if given else choice

    def without_own_validation(self, settings: S, benchmarks: Collection[str]) -> str:
        """What is typed so that the source has no validation records of its own.

        ``benchmarks``: the sets of ``data=benchmarks`` that are meant.
        """
        return "" if getattr(settings, "validation_part", None) is None else "data.validation_part=null"

    @abstractmethod
    def load(self, settings: S, selection: Selection) -> Dataset:
        """Loads training and test records, and validation records if the source has some of its own.

        ``load_dataset`` then restricts training and validation records to the selection, and takes validation records
        from the training records of a source that has none.

        Raises:
            DataError: files or records that cannot be used.
        """

    def annotated_test_records(self, settings: S) -> list[Record]:
        """Test records with known image attributes, to check rationales against. Empty if the source has none."""
        return []
