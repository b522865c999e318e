"""The audit of a data set: duplicates between training and test, and what baselines without a model score.

All counts are over the readable records: those that medr1 uses and those that it refuses only because they repeat an
option, because other readers of the same files keep these. Rates are fractions.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from medr1.data.image_index import check_images, group_by_content
from medr1.data.sources.omnimedvqa import OmniMedVQAConfig
from medr1.data.sources.omnimedvqa.files import (
    Question,
    Reading,
    SplitAxis,
    read_release,
    read_splits,
    respell_images,
    skipped_files,
)
from medr1.domain.records import BadRecord, Reason, in_order
from medr1.domain.texts import option_meaning
from medr1.errors import DataError
from medr1.evaluation.option_prior import OptionPrior
from medr1.evaluation.surface_cues import CueCounts, count_cues, expected_accuracy

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """One set of files: a split family, or QA_information.

    ``records``: all records in the files. ``options``: readable records by number of options. ``repeats``: readable
    records with two options that differ only in case and a final full stop. ``bad``: refused records by reason.
    """

    name: str
    files: int
    records: int
    readable: int
    options: Mapping[int, int]
    repeats: int
    cues: CueCounts
    bad: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Leak:
    """Number of test images, and of those that are also training images.

    ``by_path`` compares paths, ``by_content`` the images themselves (see ``data.image_index``). ``by_content`` includes
    ``by_path`` and is None without image files.
    """

    images: int
    by_path: int
    by_content: int | None


@dataclass(frozen=True, slots=True)
class CellAudit:
    """One modality or question type of a split family.

    ``train`` and ``test``: numbers of records, None without such a file. All else is about the test records:
    ``options`` by number of options, ``chance`` of a uniform guess, ``surface_cues`` with a uniform guess without a
    cue, ``option_prior`` fitted to the training records of the same cell, ``leak`` of their images.
    """

    train: int | None
    test: int | None
    options: Mapping[int, int]
    chance: float | None
    surface_cues: float | None
    option_prior: float | None
    leak: Leak | None


@dataclass(frozen=True, slots=True)
class Family:
    """One split family, with cells by modality or by question type.

    ``option_prior[trained][tested]``: expected accuracy of ``OptionPrior`` fitted to one cell and tested on another,
    with a uniform guess between ties. ``off_diagonal`` and ``off_diagonal_chance``: its mean and the mean chance over
    all pairs of different cells, with equal weight. ``leak``: all test images against all training images.
    """

    axis: SplitAxis
    cells: Mapping[str, CellAudit]
    option_prior: Mapping[str, Mapping[str, float]]
    off_diagonal: float | None
    off_diagonal_chance: float | None
    leak: Leak | None

    @property
    def pairs(self) -> int:
        """Number of pairs of different trained and tested cells."""
        return sum(trained != tested for trained, row in self.option_prior.items() for tested in row)


@dataclass(frozen=True, slots=True)
class Crossing:
    """Training questions of one family that are test questions of the other (same image, question and options)."""

    train: SplitAxis
    test: SplitAxis
    train_records: int
    shared: int


@dataclass(frozen=True, slots=True)
class Audit:
    """The audit of the files at ``place``.

    ``compared_images``: number of images compared by content, None without image files. ``bad_images``: unreadable
    images by reason. ``examples``: one message for each file and reason for bad records.
    """

    place: str
    sources: Sequence[Source]
    families: Sequence[Family]
    crossings: Sequence[Crossing]
    compared_images: int | None
    bad_images: Mapping[str, int]
    examples: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


def audit(
    place: Path, images: Path | None = None, *, cache_dir: Path, max_pixels: int = OmniMedVQAConfig.max_image_pixels
) -> Audit:
    """Audits the question files at ``place``. 63,489 records take seconds, the first pass over the images minutes.

    Args:
        place: OmniMedVQA's root, or a folder or file of the split layout. Records come from the split files, or from
            QA_information if there are none.
        images: the folder that image paths are relative to; by default ``place`` if it has the folder Images.
        cache_dir: folder of the image index, shared with ``load_omnimedvqa``.
        max_pixels: larger images are not decoded.

    Raises:
        DataError: a place without usable files, or ``images`` without any image of the records.
    """
    root = images or (place if (place / "Images").is_dir() else None)
    files = _read(place, root)
    contents, bad_images = _image_contents(root, files, cache_dir, max_pixels) if root else ({}, {})
    if images and not contents:
        raise DataError(f"{images} has none of the images that {place} names. Remedy: the folder above Images")
    split = {of.axis: of.questions for of in files if of.axis}
    families = split or dict.fromkeys(SplitAxis, files[0].questions)
    return Audit(
        place=str(place),
        sources=[_source(of) for of in files],
        families=[_family(axis, questions, contents) for axis, questions in families.items()],
        crossings=list(_crossings(split)),
        compared_images=len(contents) or None,
        bad_images=bad_images,
        examples=[str(bad) for bad in _first_of_each(bad for of in files for bad in of.bad)],
    )


@dataclass(frozen=True, slots=True)
class _Files:
    """The question files of one split family, or of QA_information, which has no axis.

    ``questions`` are the readable records. A record with a repeated option, or without a cell, is also in ``bad``.
    """

    axis: SplitAxis | None
    reading: Reading
    questions: Sequence[Question]
    bad: Sequence[BadRecord]


def _read(place: Path, root: Path | None) -> list[_Files]:
    """The split families and QA_information, as far as they exist. ``root``: the folder of the images, if any."""
    if not place.exists():
        raise DataError(f"{place} does not exist. Remedy: the folder of OmniMedVQA or of Med-R1's split files")
    splits, release = place / "Splits", place / "QA_information"
    if not splits.is_dir() and not release.is_dir():
        splits = place
    split_files = read_splits(splits) if splits.exists() else []
    readings: list[tuple[SplitAxis | None, Reading]] = [
        (axis, Reading.merge(file.reading for file in split_files if file.axis is axis)) for axis in SplitAxis
    ]
    if release.is_dir():
        readings.append((None, read_release(release)))
    if root is not None:
        respell_images([reading for _, reading in readings], root)
    if skipped := skipped_files([splits, release]):
        log.warning("%d JSON files are skipped, because they are hidden or below __MACOSX", len(skipped))
    return [_files(axis, reading) for axis, reading in readings if reading.files]


def _files(axis: SplitAxis | None, reading: Reading) -> _Files:
    unknown = Reason.UNKNOWN_QUESTION_TYPE if axis is SplitAxis.QUESTION_TYPE else Reason.UNKNOWN_MODALITY
    value = attrgetter(axis or SplitAxis.MODALITY)
    without_cell = [q.rejected(unknown, f"the file gives {q.label}") for q in reading.questions if value(q) is None]
    return _Files(axis, reading, [*reading.questions, *reading.repeated], [*reading.bad, *without_cell])


def _image_contents(
    root: Path, files: Iterable[_Files], cache_dir: Path, max_pixels: int
) -> tuple[dict[str, str], dict[str, int]]:
    """Content of each readable image (see ``image_index``), and number of unreadable images by reason."""
    paths = sorted(set[str]().union(*(of.reading.images for of in files)))
    facts = check_images(root, paths, cache_dir, max_pixels=max_pixels).values()
    return group_by_content(facts), _count(fact.reason.value for fact in facts if fact.reason)


def _source(files: _Files) -> Source:
    return Source(
        name=f"{files.axis.value} splits".replace("_", " ") if files.axis else "QA_information",
        files=files.reading.files,
        records=len(files.reading.questions) + len(files.reading.bad),
        readable=len(files.questions),
        options=_option_counts(files.questions),
        repeats=sum(len(set(map(option_meaning, q.options.values()))) < len(q.options) for q in files.questions),
        cues=count_cues(files.questions),
        bad=_count(bad.reason.value for bad in files.bad),
    )


def _family(axis: SplitAxis, questions: Sequence[Question], contents: Mapping[str, str]) -> Family:
    train, test = _by_value(axis, questions, True), _by_value(axis, questions, False)
    values: list[str] = in_order(value for value in {**train, **test} if value is not None)
    prior: dict[str, dict[str, float]] = {}
    for trained in (value for value in values if value in train):
        fitted = OptionPrior.fit(train[trained])
        prior[trained] = {value: fitted.expected_accuracy(test[value]) for value in values if value in test}
    chance = {value: fmean(1 / len(q.options) for q in test[value]) for value in values if value in test}
    pairs = [(trained, tested) for trained, row in prior.items() for tested in row if trained != tested]
    cells = {
        value: CellAudit(
            train=len(train[value]) if value in train else None,
            test=len(test[value]) if value in test else None,
            options=_option_counts(test.get(value, ())),
            chance=chance.get(value),
            surface_cues=expected_accuracy(test[value]) if value in test else None,
            option_prior=prior.get(value, {}).get(value),
            leak=_leak(train.get(value, ()), test.get(value, ()), contents),
        )
        for value in values
    }
    return Family(
        axis=axis,
        cells=cells,
        option_prior=prior,
        off_diagonal=fmean(prior[trained][tested] for trained, tested in pairs) if pairs else None,
        off_diagonal_chance=fmean(chance[tested] for _, tested in pairs) if pairs else None,
        leak=_leak(_all(train), _all(test), contents),
    )


def _by_value(axis: SplitAxis, questions: Iterable[Question], train: bool) -> dict[str | None, list[Question]]:
    """Training questions, or all others, by cell; those without a cell are None. Without a split, all are tests."""
    by_value: dict[str | None, list[Question]] = defaultdict(list)
    for question in questions:
        if (question.part == "train") is train:
            by_value[getattr(question, axis)].append(question)
    return dict(by_value)


def _all(questions: Mapping[str | None, list[Question]]) -> list[Question]:
    return [question for of_value in questions.values() for question in of_value]


def _leak(train: Sequence[Question], test: Sequence[Question], contents: Mapping[str, str]) -> Leak | None:
    """None if one of the two is empty."""
    if not train or not test:
        return None
    trained, tested = {q.image for q in train}, {q.image for q in test}
    by_content = None
    if contents:
        # An unreadable image is compared by its path.
        trained_contents = {contents.get(image, image) for image in trained}
        by_content = sum(contents.get(image, image) in trained_contents for image in tested)
    return Leak(len(tested), len(tested & trained), by_content)


def _crossings(families: Mapping[SplitAxis, Sequence[Question]]) -> Iterator[Crossing]:
    for train_axis, test_axis in permutations(families, 2):
        train = [q.content for q in families[train_axis] if q.part == "train"]
        test = {q.content for q in families[test_axis] if q.part == "test"}
        yield Crossing(train_axis, test_axis, len(train), sum(content in test for content in train))


def _option_counts(questions: Iterable[Question]) -> dict[int, int]:
    return dict(sorted(Counter(len(question.options) for question in questions).items()))


def _count(reasons: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(reasons).items()))


def _first_of_each(bad: Iterable[BadRecord]) -> Iterable[BadRecord]:
    """The first bad record of each file and reason."""
    first: dict[tuple[str, Reason], BadRecord] = {}
    for record in bad:
        first.setdefault((record.file, record.reason), record)
    return first.values()
