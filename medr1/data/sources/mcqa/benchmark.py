"""The base of a public benchmark: which files hold which part, and what question a row is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from medr1.data.dataset import Dataset, Selection
from medr1.data.sources.mcqa.settings import BenchmarkConfig
from medr1.data.sources.source import Source
from medr1.data.stored_data import Split
from medr1.errors import ConfigError, DataError

if TYPE_CHECKING:
    from medr1.data.sources.mcqa.layout import Cells, RawQuestion

B = TypeVar("B", bound=BenchmarkConfig)


class Benchmark(Source[B], Generic[B]):
    """A benchmark in its released layout.

    ``columns`` are in each of its tables.
    """

    columns: ClassVar[Sequence[str]]

    @abstractmethod
    def files(self, settings: B) -> Iterator[tuple[str, str]]:
        """The part and the name below ``settings.root`` of each file. A name may have ``*``, and ``a|b`` names of old
        and new releases. The part is empty if the rows give it."""

    @abstractmethod
    def question(self, cells: Cells, settings: B) -> RawQuestion:
        """The question in a row.

        Raises:
            LeftOut: no multiple-choice question.
            BadRecord: a row that cannot be used.
        """

    def check(self, settings: B) -> None:
        if not Path(settings.root).is_dir():
            raise ConfigError(f"data.root={settings.root}: no such folder (looked from {Path.cwd()})")

    def check_training(self, settings: B) -> None:
        if settings.split is Split.test_only:
            raise ConfigError("data.split=test_only has no training records; use evaluate.py, or another data.split")

    def without_effect(self, settings: B) -> Iterator[tuple[str, Sequence[str]]]:
        if settings.split is not Split.image_grouped:
            yield f"data.split={settings.split}", ("data.test_fraction", "data.seed")
        if settings.split is Split.test_only:
            yield f"data.split={settings.split}", ("data.train_part", "data.validation_fraction")
        if settings.split is not Split.released:
            yield f"data.split={settings.split}", ("data.validation_part",)
        elif settings.validation_part is not None:
            yield f"data.validation_part={settings.validation_part}", ("data.validation_fraction",)

    def has_validation(self, settings: B) -> bool:
        own = settings.split is Split.released and settings.validation_part is not None
        return own or super().has_validation(settings)

    def load(self, settings: B, selection: Selection) -> Dataset:
        from medr1.data.sources.mcqa.loading import Division, Input, load_tables
        from medr1.data.tables import open_file

        root = Path(settings.root)
        test_only = settings.split is Split.test_only
        inputs = [
            Input(open_file(file, file.relative_to(root).as_posix(), Path(settings.cache_dir)), part)
            for part, file in self._needed_files(root, settings, test_only)
        ]
        return load_tables(
            inputs,
            lambda cells: self.question(cells, settings),
            dict.fromkeys(self.columns, f"data.root=FOLDER of the release of {settings.name}"),
            root,
            settings,
            selection,
            Division(image_grouped=settings.split is Split.image_grouped, test_part_only=test_only),
            place=f"data={settings.name} {root}",
        )

    def _needed_files(self, root: Path, settings: B, test_only: bool) -> Iterator[tuple[str, Path]]:
        """The files of the parts that are used.

        Raises:
            DataError: a file is missing, or the benchmark has no such part.
        """
        from medr1.data.tables import pickles

        files = list(self.files(settings))
        parts = dict.fromkeys(part for part, _ in files)
        wanted = {"test_part": settings.test_part} | ({} if test_only else {"train_part": settings.train_part})
        if settings.split is Split.released and settings.validation_part is not None:
            wanted["validation_part"] = settings.validation_part
        for key, part in wanted.items() if "" not in parts else ():
            if part not in parts:
                raise DataError(f"data.{key}={part}: data={settings.name} has the parts {', '.join(parts)}")
        for part, names in files:
            if part and part not in wanted.values():
                continue
            found = next((found for name in names.split("|") if (found := sorted(root.glob(name)))), [])
            if not found:
                alone = "" if test_only or part == settings.test_part else ", or data.split=test_only"
                pickled = "; pickles are never loaded, because they can run any code" if pickles(root) else ""
                raise DataError(
                    f"data={settings.name}: {root} has no {' and no '.join(names.split('|'))}{pickled}. "
                    f"Remedy: correct data.root, or download the missing file{alone}"
                )
            yield from ((part, file) for file in found)
