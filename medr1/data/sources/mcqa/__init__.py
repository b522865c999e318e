"""Own multiple-choice questions, with the columns of the user. Loading is imported when used."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from medr1.data.dataset import Dataset, Selection
from medr1.data.sources import SOURCES
from medr1.data.sources.mcqa.settings import McqaConfig, OwnSplit
from medr1.data.sources.source import Source
from medr1.domain.records import LETTERS
from medr1.errors import ConfigError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class Mcqa(Source[McqaConfig]):
    """Own multiple-choice questions."""

    kind = "mcqa"
    settings = McqaConfig

    def check(self, settings: McqaConfig) -> None:
        from medr1.data.tables import SUFFIXES, refusal

        path = Path(settings.path)
        if not path.exists() and not _HUB_ID.fullmatch(settings.path):
            raise ConfigError(f"data.path={settings.path}: no such file or folder (looked from {Path.cwd()})")
        if path.is_file() and path.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"data.path={refusal(path)}")
        if settings.root is not None and not Path(settings.root).is_dir():
            raise ConfigError(f"data.root={settings.root}: no such folder (looked from {Path.cwd()})")
        files = settings.files
        for part, names in (("train", files.train), ("validation", files.validation), ("test", files.test)):
            for name in names:
                if Path(name).is_absolute() or ".." in Path(name).parts:
                    raise ConfigError(
                        f"data.files.{part}={name}: use a path below data.path={settings.path}, without .."
                    )
                if not (path / name).is_file():
                    raise ConfigError(f"data.files.{part}={name}: no such file in the folder data.path={settings.path}")
        if (files.train or files.validation) and not files.test:
            key = "data.files.train" if files.train else "data.files.validation"
            raise ConfigError(f"{key} needs data.files.test, the files with test records")
        for key, column in (("image", settings.columns.image), ("options", settings.columns.options)):
            names = column if isinstance(column, list) else [column]
            if not names or not all(isinstance(name, str) and name for name in names):
                raise ConfigError(f"data.columns.{key}={column}: use the name of a column, or a list of names")
        if len(names) > len(LETTERS):
            raise ConfigError(
                f"data.columns.options has {len(names)} columns; a question has at most {len(LETTERS)} options"
            )
        if len(names) == 1 and isinstance(settings.columns.options, list):
            raise ConfigError(
                f"data.columns.options={names}: one column has all options (data.columns.options={names[0]}), or "
                "several columns have one each"
            )

    def has_validation(self, settings: McqaConfig) -> bool:
        return self._has_part(settings) or super().has_validation(settings)

    def _has_part(self, settings: McqaConfig) -> bool:
        named = bool(settings.files.validation) or (not settings.files.test and settings.validation_part is not None)
        return settings.split is OwnSplit.auto and named

    def check_training(self, settings: McqaConfig) -> None:
        if settings.split is OwnSplit.test_only or (settings.files.test and not settings.files.train):
            key = "data.split=test_only" if settings.split is OwnSplit.test_only else "data.files.test alone"
            raise ConfigError(f"{key} has no training records; use evaluate.py, or another data.split")

    def without_effect(self, settings: McqaConfig) -> Iterator[tuple[str, Sequence[str]]]:
        if settings.split is not OwnSplit.auto:
            keys: tuple[str, ...] = ("data.columns.split", "data.train_part", "data.test_part")
            keys = (*keys, "data.files.train", "data.files.test", "data.files.validation", "data.validation_part")
            yield f"data.split={settings.split}", keys
        if settings.split is OwnSplit.test_only:
            yield f"data.split={settings.split}", ("data.test_fraction", "data.seed", "data.validation_fraction")
        elif self._has_part(settings):
            yield "the validation part of the data", ("data.validation_fraction",)
        if settings.files.test:
            yield "data.files", ("data.columns.split", "data.train_part", "data.test_part", "data.validation_part")
            yield "data.files", ("data.test_fraction", "data.seed")

    def image_grouped(self, settings: McqaConfig) -> str:
        if settings.files.test:  # the names of parts are then not read
            settings = replace(settings, validation_part=None)
        return super().image_grouped(settings)

    def without_own_validation(self, settings: McqaConfig, benchmarks: Collection[str]) -> str:
        if settings.files.validation:
            return "data.files.validation=[]"
        return super().without_own_validation(settings, benchmarks)

    def load(self, settings: McqaConfig, selection: Selection) -> Dataset:
        from medr1.data.sources.mcqa.own import load_own

        return load_own(settings, selection)


SOURCES.register(Mcqa())
