"""OmniMedVQA from disk: reads either layout, checks every record and picture, splits, and counts what leaks.

``load_omnimedvqa`` is the way in. What the files hold is read in ``omnimedvqa_files``, the axis that a split file does
not give is found in ``omnimedvqa_axes``, pictures are checked and compared in ``image_index``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medr1.config.enums import OnBadRecord, Split
from medr1.data.image_index import ImageFacts, ImageIndex, group_pictures
from medr1.data.images import FileImage
from medr1.data.sources.omnimedvqa.axes import AxisFinder
from medr1.data.sources.omnimedvqa.files import Question, Reading, SplitAxis, SplitFile, read_release, read_splits
from medr1.domain.records import BadRecord, Modality, Reason, Record
from medr1.errors import DataError

log = logging.getLogger(__name__)

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class LeakCount:
    """How many test records and test images (paths) show what training shows as well, by path and by picture.

    In the total, training means all of it; under ``by_modality``, training of the same modality.
    """

    test_records: int
    test_images: int
    records_by_path: int
    images_by_path: int
    records_by_picture: int
    images_by_picture: int
    by_modality: Mapping[Modality, LeakCount] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Usable records, the others with their reasons, and what a user must know about both.

    ``counts``: ``files``, ``questions_read``, ``questions_used``, ``images_read``, ``images_used``, ``pictures_used``
    (groups of images that show the same), ``by_exclusion`` (axes inferred, see ``omnimedvqa_axes``), and ``bad``, a
    mapping from reason to count. ``fingerprint`` is a SHA-256 over all used records, their part and their image bytes.
    """

    train: list[Record]
    test: list[Record]
    bad: list[BadRecord]
    counts: dict[str, int | dict[str, int]]
    leaks: LeakCount
    fingerprint: str


@dataclass(slots=True)
class _Source:
    """The questions of the chosen files, with the part (train, test, or empty where the files do not say)."""

    files: int = 0
    questions: list[tuple[str, Question]] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    images: set[str] = field(default_factory=set)
    by_exclusion: int = 0

    def add(self, part: str, reading: Reading) -> None:
        self.files += reading.files
        self.questions += [(part, question) for question in reading.questions]
        self.bad += reading.bad
        self.images |= reading.images


def load_omnimedvqa(
    *,
    root: Path,
    splits: Path | None,
    split: Split,
    axis: SplitAxis,
    on_bad_record: OnBadRecord,
    test_fraction: float,
    seed: int,
    cache_dir: Path,
    max_image_pixels: int,
) -> Loaded:
    """Loads the data below ``root``.

    ``splits`` is a folder or a file of the split layout, by default ``root/Splits``; ``axis`` chooses the family.
    Records come from split files for ``released``, or where ``splits`` is given, or where there is no QA_information,
    and otherwise from QA_information. ``test_fraction`` (of the records) and ``seed`` are for ``image_grouped`` only.

    Raises:
        DataError: a place or file that cannot be used, no usable record at all, or with ``on_bad_record=error`` one
            message about all bad records.
    """
    if split is Split.image_grouped and not 0.0 < test_fraction < 1.0:
        raise DataError(f"test_fraction is {test_fraction}. Remedy: a value between 0 and 1, such as 0.2")
    source = _read_source(root, splits, split, axis)
    questions, bad = _with_axes(source)
    cache_name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    index = ImageIndex(root, cache_dir / f"pictures-{cache_name}.jsonl", max_pixels=max_image_pixels)
    facts = index.check(question.image for _, question in questions)
    usable = [(part, question) for part, question in questions if facts[question.image].reason is None]
    for _, question in questions:
        fact = facts[question.image]
        if fact.reason is not None:
            bad.append(BadRecord(question.file, question.position, fact.reason, fact.detail))
    counted = dict(sorted(Counter(record.reason.value for record in bad).items()))
    if bad:
        _report_bad(root, bad, counted, on_bad_record, empty=not usable)
    if not usable:
        raise DataError(f"{root}: the files hold no record. Remedy: correct data.root or data.splits")
    pictures = group_pictures(facts.values())
    records = _to_records(root, usable, pictures, max_image_pixels)
    parts = _parts(records, [part for part, _ in usable], split, test_fraction, seed)
    train = [record for record, part in zip(records, parts, strict=True) if part == "train"]
    test = [record for record, part in zip(records, parts, strict=True) if part == "test"]
    used = {question.image for _, question in usable}
    return Loaded(
        train=train,
        test=test,
        bad=bad,
        counts={
            "files": source.files,
            "questions_read": len(source.questions) + len(source.bad),
            "questions_used": len(records),
            "images_read": len(source.images),
            "images_used": len(used),
            "pictures_used": len({pictures[image] for image in used}),
            "by_exclusion": source.by_exclusion,
            "bad": counted,
        },
        leaks=count_leaks(train, test),
        fingerprint=_fingerprint(zip(parts, records, strict=True), facts),
    )


def count_leaks(train: Sequence[Record], test: Sequence[Record]) -> LeakCount:
    """Counts test records and images whose path, or whose picture, also stands in training."""
    by_modality = {
        modality: _leaks([r for r in train if r.modality is modality], of_modality)
        for modality in Modality
        if (of_modality := [r for r in test if r.modality is modality])
    }
    return dataclasses.replace(_leaks(train, test), by_modality=by_modality)


def _leaks(train: Sequence[Record], test: Sequence[Record]) -> LeakCount:
    paths, pictures = {_path(record) for record in train}, {record.image.key for record in train}
    images = {_path(record): record.image.key for record in test}
    return LeakCount(
        test_records=len(test),
        test_images=len(images),
        records_by_path=sum(_path(record) in paths for record in test),
        images_by_path=len(images.keys() & paths),
        records_by_picture=sum(record.image.key in pictures for record in test),
        images_by_picture=sum(picture in pictures for picture in images.values()),
    )


def _path(record: Record) -> str:
    return record.image.relative if isinstance(record.image, FileImage) else record.image.key


def _read_source(root: Path, splits: Path | None, split: Split, axis: SplitAxis) -> _Source:
    """Reads what ``split`` asks for; every missing place is an error of its own."""
    if not root.is_dir():
        raise DataError(f"data root {root} is not a folder. Remedy: data.root=PATH of the unpacked OmniMedVQA")
    if splits is not None and not splits.exists():
        raise DataError(f"data.splits {splits} does not exist. Remedy: a folder or file of Med-R1's split files")
    qa_folder, split_place = root / "QA_information", splits or root / "Splits"
    release = read_release(qa_folder) if qa_folder.is_dir() else None
    if release is None and not split_place.exists():
        raise DataError(f"data root {root} holds neither QA_information nor Splits. Remedy: correct data.root")
    source = _Source()
    if split is not Split.released and splits is None and release is not None:
        source.add("", release)
        return source
    if not split_place.exists():
        raise DataError(
            f"data.split=released needs Med-R1's split files, and {split_place} does not exist. "
            "Remedy: data.splits=PATH of the split files, or data.split=image_grouped, or data.split=test_only"
        )
    files = read_splits(split_place)
    family = [file for file in files if file.axis is axis]
    if not family:
        raise DataError(f"{split_place} holds no split files by {axis}. Remedy: the other family, or the files")
    return _from_family(family, files, release)


def _from_family(family: Sequence[SplitFile], files: Sequence[SplitFile], release: Reading | None) -> _Source:
    source = _Source()
    for file in family:
        source.add(file.part, file.reading)
    finder = AxisFinder(release.questions if release else [], files)
    source.questions = [(part, finder.complete(question)) for part, question in source.questions]
    source.by_exclusion = finder.by_exclusion
    if finder.by_exclusion:
        log.warning(
            "%d questions stand in no file of the other family of splits, where one value lacks a file: "
            "they are taken to be of that value",
            finder.by_exclusion,
        )
    return source


def _with_axes(source: _Source) -> tuple[list[tuple[str, Question]], list[BadRecord]]:
    """Sorts out the questions whose modality or question type is unknown."""
    good, bad = [], list(source.bad)
    for part, question in source.questions:
        if question.modality is None:
            reason, detail = Reason.UNKNOWN_MODALITY, f"modality is given as {question.named}"
        elif question.question_type is None:
            reason, detail = Reason.UNKNOWN_QUESTION_TYPE, "it stands in no file that gives its question type"
        else:
            good.append((part, question))
            continue
        bad.append(BadRecord(question.file, question.position, reason, detail))
    return good, bad


def _report_bad(root: Path, bad: list[BadRecord], counted: dict[str, int], on_bad: OnBadRecord, empty: bool) -> None:
    """Raises one error about all bad records, or logs their number where they may be skipped and others remain."""
    summary = ", ".join(f"{count} {reason}" for reason, count in counted.items())
    if on_bad is OnBadRecord.skip and not empty:
        log.warning("%d record(s) cannot be used and are skipped: %s", len(bad), summary)
        return
    # One of each reason before the second of any, or ten missing pictures would hide the one broken record.
    seen: Counter[Reason] = Counter()
    ranked = []
    for record in bad:
        ranked.append((seen[record.reason], record))
        seen[record.reason] += 1
    shown = [str(record) for _, record in sorted(ranked, key=lambda pair: pair[0])[:_SHOWN]]
    more = [f"… and {len(bad) - len(shown)} more"] if len(bad) > len(shown) else []
    remedy = "correct data.root" if empty else "correct the data, or leave these records out: data.on_bad_record=skip"
    head = f"{root}: {f'none of the {len(bad)} records read can' if empty else f'{len(bad)} record(s) cannot'} be used"
    raise DataError("\n  ".join([f"{head}: {summary}", *shown, *more]) + f"\nRemedy: {remedy}")


def _to_records(
    root: Path, usable: Iterable[tuple[str, Question]], pictures: Mapping[str, str], max_pixels: int
) -> list[Record]:
    records: list[Record] = []
    seen: Counter[str] = Counter()
    for _, question in usable:
        assert question.modality is not None and question.question_type is not None  # see _with_axes
        seen[question.id] += 1
        # An id names one record in every predictions file; a repeated one is numbered.
        identity = question.id if seen[question.id] == 1 else f"{question.id}~{seen[question.id]}"
        image = FileImage(root, question.image, pictures[question.image], max_pixels)
        origin = f"{question.file} {question.position}"
        records.append(
            Record(
                identity,
                image,
                question.modality,
                question.question_type,
                question.question,
                question.options,
                question.answer,
                origin=origin,
            )
        )
    return records


def _parts(
    records: Sequence[Record], given: Sequence[str], split: Split, test_fraction: float, seed: int
) -> Sequence[str]:
    """The part of each record: as given, all test, or cut by picture."""
    if split is Split.released:
        return given
    if split is Split.test_only:
        return ["test"] * len(records)
    testing = _test_pictures(records, test_fraction, seed)
    return ["test" if record.image.key in testing else "train" for record in records]


def _test_pictures(records: Sequence[Record], test_fraction: float, seed: int) -> set[str]:
    """Pictures to test on: per modality, in the order of a seeded hash, as many as keep within the fraction of records.

    A picture that records of several modalities show counts under that of its first record. A modality of two or more
    pictures gives at least one.
    """
    sizes = Counter(record.image.key for record in records)
    strata: dict[Modality, list[str]] = defaultdict(list)
    for record in {record.image.key: record for record in reversed(records)}.values():
        strata[record.modality].append(record.image.key)
    chosen: set[str] = set()
    for pictures in strata.values():
        pictures.sort(key=lambda picture: hashlib.sha256(f"{seed}:{picture}".encode()).digest())
        target, taken = test_fraction * sum(sizes[picture] for picture in pictures), 0
        for picture in pictures:
            if taken + sizes[picture] <= target:
                chosen.add(picture)
                taken += sizes[picture]
        if taken == 0 and len(pictures) > 1:
            chosen.add(pictures[0])
    return chosen


def _fingerprint(records: Iterable[tuple[str, Record]], facts: Mapping[str, ImageFacts]) -> str:
    """SHA-256 over the content of the records, whatever order the files give them in."""
    lines = sorted(
        json.dumps(
            [
                part,
                record.id,
                _path(record),
                facts[_path(record)].sha256,
                record.modality,
                record.question_type,
                record.question,
                list(record.options.items()),
                record.answer,
            ]
        )
        for part, record in records
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
