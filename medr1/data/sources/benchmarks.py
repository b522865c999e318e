"""Several data sources as one: a model is tested on all of them, and trained on one or on all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from medr1.config.settings import DataConfig
from medr1.config.validate import check_range
from medr1.data.dataset import Dataset, Selection
from medr1.data.sources import SOURCES
from medr1.data.sources.source import Source
from medr1.domain.records import ImageSource, Record
from medr1.errors import ConfigError, DataError


@dataclass
class BenchmarksConfig(DataConfig):
    """Several data sources as one."""

    kind: str = "benchmarks"
    sets: dict[str, Any] = field(default_factory=dict)
    """The data sets, by the names of their files in ``conf/data``, each with its own settings:
    ``data.sets=[slake,vqa_rad] data.sets.slake.root=DIR``."""
    train: str | None = None
    """The set whose training records are used. null: those of all sets."""

    def __post_init__(self) -> None:
        # A stored config has plain values; a composed one is the same.
        self.sets = {
            name: dataclasses.asdict(values) if isinstance(values, DataConfig) else values
            for name, values in self.sets.items()
        }


# How images are shown to the model is the same for all sets.
_SHARED = tuple(item.name for item in dataclasses.fields(DataConfig) if item.name not in ("name", "kind"))


@dataclass(frozen=True, slots=True)
class _ImageOfSet:
    """An image of a set. Two sets may have the same keys for different images."""

    benchmark: str
    image: ImageSource

    @property
    def key(self) -> str:
        return f"{self.benchmark}/{self.image.key}"

    @property
    def sha256(self) -> str:
        return getattr(self.image, "sha256", "")

    def load(self, side: int) -> Image.Image:
        return self.image.load(side)


class Benchmarks(Source[BenchmarksConfig]):
    """Several data sources as one. A record's id begins with the name of its set, as in ``slake/12``."""

    kind = "benchmarks"
    settings = BenchmarksConfig

    def check(self, settings: BenchmarksConfig) -> None:
        if not settings.sets:
            raise ConfigError("data=benchmarks needs data.sets=[NAME,...], names of files in conf/data")
        if settings.train is not None and settings.train not in settings.sets:
            raise ConfigError(f"data.train={settings.train}: use one of data.sets, {', '.join(settings.sets)}")
        for name, of_set in _typed(settings).items():
            if of_set.kind == self.kind:
                raise ConfigError(f"data.sets.{name}: is several sets itself; name these sets instead")
            for item in dataclasses.fields(of_set):
                check_range(f"data.{item.name}", getattr(of_set, item.name), f"data.sets.{name}.{item.name}")
            with _named(name, of_set):
                SOURCES[of_set.kind].check(of_set)

    def check_training(self, settings: BenchmarksConfig) -> None:
        sets = _typed(settings)
        for name in _trained(settings):
            of_set = sets[name]
            with _named(name, of_set):
                SOURCES[of_set.kind].check_training(of_set)

    def has_validation(self, settings: BenchmarksConfig) -> bool:
        sets = _typed(settings)
        return any(SOURCES[sets[name].kind].has_validation(sets[name]) for name in _trained(settings))

    def without_effect(self, settings: BenchmarksConfig) -> Iterator[tuple[str, Sequence[str]]]:
        for name, of_set in _typed(settings).items():
            yield "data=benchmarks, whose own value is that of all sets", [f"data.sets.{name}.{key}" for key in _SHARED]
            for choice, keys in SOURCES[of_set.kind].without_effect(of_set):
                of_all = [f"data.sets.{name}.{key.removeprefix('data.')}" for key in keys]
                yield _in_set(name, of_set, choice), of_all

    def image_grouped(self, settings: BenchmarksConfig) -> str:
        sets = _typed(settings)
        of_sets = (_in_set(n, sets[n], SOURCES[sets[n].kind].image_grouped(sets[n])) for n in _trained(settings))
        return " or ".join(filter(None, of_sets))

    def without_own_validation(self, settings: BenchmarksConfig, benchmarks: Collection[str]) -> str:
        typed = []
        for name, of_set in _typed(settings).items():
            if name in (benchmarks or _trained(settings)):
                own = SOURCES[of_set.kind].without_own_validation(of_set, benchmarks)
                typed.append(_in_set(name, of_set, own))
        return " ".join(filter(None, typed))

    def load(self, settings: BenchmarksConfig, selection: Selection) -> Dataset:
        train: list[Record] = []
        validation: list[Record] = []
        test: list[Record] = []
        fingerprints: dict[str, str] = {}
        facts: dict[str, Any] = {}
        messages: list[str] = []
        trained = _trained(settings)
        for name, of_set in _typed(settings).items():
            with _named(name, of_set):
                dataset = SOURCES[of_set.kind].load(of_set, selection)
            if name in trained:
                train += _of_set(name, dataset.train)
                validation += _of_set(name, dataset.validation)
            test += _of_set(name, dataset.test)
            fingerprints[name] = dataset.fingerprint
            facts[name] = dataset.facts
            said = [_in_set(name, of_set, message) for message in dataset.messages]
            messages += [f"{name}: {message}" for message in said]
            if not dataset.test:
                missing = f"data.sets.{name}: there is no test record; choose another split, or leave it out"
                raise DataError("\n".join([missing, *said]))
        messages += _leaks_between([*train, *validation], test)
        text = json.dumps([sorted(fingerprints.items()), settings.train])
        return Dataset(train, test, hashlib.sha256(text.encode()).hexdigest(), {"sets": facts}, messages, validation)


@contextmanager
def _named(name: str, of_set: DataConfig) -> Iterator[None]:
    """Errors of a set name its settings: ``data.root=`` is ``data.sets.NAME.root=``."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(_in_set(name, of_set, str(error))) from error
    except DataError as error:
        raise DataError(_in_set(name, of_set, str(error))) from error


def _in_set(name: str, of_set: DataConfig, text: str) -> str:
    """A message with the settings of a set under their own names, beside those that are the same for all sets."""
    own = "|".join(item.name for item in dataclasses.fields(of_set) if item.name not in (*_SHARED, "name", "kind"))
    return re.sub(rf"\bdata\.(?=(?:{own})\b)", f"data.sets.{name}.", text)


def _typed(settings: BenchmarksConfig) -> dict[str, DataConfig]:
    """The settings of each set. Those of a stored run have lost their types, which ``kind`` gives back."""
    found: dict[str, DataConfig] = {}
    for name, values in settings.sets.items():
        if not isinstance(values, Mapping) or "kind" not in values:
            raise ConfigError(f"data.sets.{name}={values}: must be a file of conf/data; give data.sets=[{name}]")
        try:
            typed = OmegaConf.merge(OmegaConf.structured(SOURCES[values["kind"]].settings), values)
        except OmegaConfBaseException as error:
            raise ConfigError(f"data.sets.{name}: {str(error).splitlines()[0]}") from error
        of_set = OmegaConf.to_object(typed)
        assert isinstance(of_set, DataConfig)
        found[name] = dataclasses.replace(of_set, **{key: getattr(settings, key) for key in _SHARED})
    return found


def _trained(settings: BenchmarksConfig) -> list[str]:
    """The sets whose training records are used."""
    return list(settings.sets) if settings.train is None else [settings.train]


def _leaks_between(train: Iterable[Record], test: Sequence[Record]) -> list[str]:
    """What the log says of test images of a set whose files are also in training or validation records of another."""
    from medr1.data.splitting import file_hashes

    places: dict[str, set[str]] = defaultdict(set)
    for record in train:
        for file in file_hashes(record):
            places[file].add(record.benchmark)
    sizes = Counter(record.benchmark for record in test)
    leaks: Counter[tuple[str, str]] = Counter()
    for record in test:
        others = set().union(*(places.get(file, ()) for file in file_hashes(record))) - {record.benchmark}
        leaks.update((record.benchmark, other) for other in others)
    return [
        f"{name}: {count} of {sizes[name]} test questions have an image that also occurs in the training of {other}"
        for (name, other), count in sorted(leaks.items())
    ]


def _of_set(name: str, records: Iterable[Record]) -> list[Record]:
    return [
        dataclasses.replace(
            record,
            id=f"{name}/{record.id}",
            images=tuple(_ImageOfSet(name, image) for image in record.images),
            benchmark=name,
        )
        for record in records
    ]


SOURCES.register(Benchmarks())
