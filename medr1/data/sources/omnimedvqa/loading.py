"""Loads OmniMedVQA: reads the question files, checks every record and image, divides them, counts leaks."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medr1.config.enums import Resize
from medr1.config.settings import ALL
from medr1.data.dataset import Dataset, Selection
from medr1.data.image_index import ImageFacts, check_images, group_by_content
from medr1.data.image_size import check_aspect_ratio
from medr1.data.images import FileImage
from medr1.data.sources.omnimedvqa import OmniMedVQAConfig, OnBadRecord, ReleasedAxis, Split
from medr1.data.sources.omnimedvqa.axes import complete_axes
from medr1.data.sources.omnimedvqa.files import (
    Question,
    Reading,
    SplitAxis,
    read_release,
    read_splits,
    respell_images,
    skipped_files,
)
from medr1.domain.records import BadRecord, Modality, Reason, Record, check_text
from medr1.errors import DataError

log = logging.getLogger(__name__)

_EXAMPLES = 10


def load_omnimedvqa(settings: OmniMedVQAConfig, selection: Selection) -> Dataset:
    """Loads the records below ``settings.root``.

    Records come from the split files if ``split`` is ``released``, if ``splits`` is given, or if there is no
    QA_information, and from QA_information otherwise. ``axis=auto`` reads the question-type splits if only the question
    type is selected, else the modality splits.

    ``facts`` has ``counts`` (``files_skipped``: files beside the data; ``images_respelled``: paths that are spelled
    differently from their files; ``image_contents_used``: different images among the files used; ``by_exclusion``: see
    ``axes.complete_axes``; ``bad``: rejected records by reason; ``image_notes``), ``leaks`` (see ``count_leaks``),
    ``bad_records``, ``image_notes`` (see ``DecodedImage``) and ``released_axis``.

    Raises:
        DataError: a folder or file that cannot be used, no usable record, or with ``on_bad_record=error`` any bad
            record; one message then reports all of them.
    """
    root = Path(settings.root)
    if settings.split is Split.image_grouped and not 0.0 < settings.test_fraction < 1.0:
        raise DataError(f"data.test_fraction={settings.test_fraction}. Remedy: a value between 0 and 1, such as 0.2")
    axis = settings.axis
    if axis is ReleasedAxis.auto:
        only_type = selection.modality == ALL and selection.question_type != ALL
        axis = ReleasedAxis.question_type if only_type else ReleasedAxis.modality
    reading, by_exclusion, respelled = _read(root, settings, SplitAxis(axis.value))
    bad, complete = list(reading.bad), list[Question]()
    for question in reading.questions:
        if fault := _unknown_axis(question) or _control(question, selection.control_tokens):
            bad.append(question.rejected(*fault))
        else:
            complete.append(question)
    paths = (question.image for question in complete)
    images = check_images(root, paths, Path(settings.cache_dir), max_pixels=settings.max_image_pixels)
    faults = {path: fault for path, facts in images.items() if (fault := _image_fault(facts, settings))}
    usable = [question for question in complete if question.image not in faults]
    bad += [q.rejected(*faults[q.image]) for q in complete if q.image in faults]
    bad_counts = dict(sorted(Counter(record.reason.value for record in bad).items()))
    if bad:
        _report_bad(root, bad, bad_counts, settings.on_bad_record, empty=not usable)
    if not usable:
        raise DataError(f"{root}: the files hold no record. Remedy: correct data.root or data.splits")
    contents = group_by_content(images.values())
    records = _to_records(root, usable, contents, settings.max_image_pixels)
    parts = _parts(records, usable, settings)
    train, test = ([r for r, of in zip(records, parts, strict=True) if of == part] for part in ("train", "test"))
    used = {question.image for question in usable}
    notes = [f"image {path!r} {note}" for path in sorted(used) for note in images[path].notes]
    counts = {
        "files": reading.files,
        "files_skipped": len(skipped_files([root / "QA_information", _split_place(root, settings)])),
        "questions_read": len(reading.questions) + len(reading.bad),
        "questions_used": len(records),
        "images_read": len(reading.images),
        "images_respelled": len(respelled),
        "images_used": len(used),
        "image_contents_used": len({contents[image] for image in used}),
        "by_exclusion": by_exclusion,
        "bad": bad_counts,
        "image_notes": len(notes),
    }
    facts = {
        "counts": counts,
        "leaks": count_leaks(train, test),
        "bad_records": [str(record) for record in bad],
        "image_notes": notes,
        "released_axis": axis.value,
    }
    fingerprint = _fingerprint(zip(parts, records, strict=True), images)
    return Dataset(train, test, fingerprint, facts, _messages(facts, respelled, len(train), len(test)))


def count_leaks(train: Sequence[Record], test: Sequence[Record]) -> dict[str, Any]:
    """Counts test records and test images (paths) that also occur in training, by path and by image content.

    ``by_modality`` has the same counts for each modality, with training records of this modality only.
    """
    by_modality = {
        modality.value: _leaks([r for r in train if r.modality is modality], of_modality)
        for modality in Modality
        if (of_modality := [r for r in test if r.modality is modality])
    }
    return {**_leaks(train, test), "by_modality": by_modality}


def _leaks(train: Sequence[Record], test: Sequence[Record]) -> dict[str, int]:
    paths, contents = {_path(record) for record in train}, {record.image_key for record in train}
    images = {_path(record): record.image_key for record in test}
    return {
        "test_records": len(test),
        "test_images": len(images),
        "records_by_path": sum(_path(record) in paths for record in test),
        "images_by_path": len(images.keys() & paths),
        "records_by_content": sum(record.image_key in contents for record in test),
        "images_by_content": sum(content in contents for content in images.values()),
    }


def _path(record: Record) -> str:
    (image,) = record.images
    assert isinstance(image, FileImage)
    return image.path


def _messages(facts: Mapping[str, Any], respelled: Mapping[str, str], train: int, test: int) -> list[str]:
    counts, leaks = facts["counts"], facts["leaks"]
    lines = [
        f"{counts['questions_read']} questions on {counts['images_read']} images read; {counts['questions_used']} "
        f"questions on {counts['images_used']} images ({counts['image_contents_used']} different ones) used: {train} "
        f"for training, {test} for test"
    ]
    if counts["files_skipped"]:
        lines.append(f"{counts['files_skipped']} JSON files are skipped, because they are hidden or below __MACOSX")
    if respelled:
        written, file = next(iter(respelled.items()))
        lines.append(
            f"{len(respelled)} image paths are spelled differently from their files, which are used nevertheless: "
            f"{written!r} is {file!r}"
        )
    if leaks["records_by_content"]:
        lines.append(
            f"{leaks['records_by_content']} of {leaks['test_records']} test questions have an image that also occurs "
            f"in training ({leaks['records_by_path']} by path); data.split=image_grouped avoids this"
        )
    if notes := facts["image_notes"]:
        more = f"\n  … and {len(notes) - _EXAMPLES} more" if len(notes) > _EXAMPLES else ""
        lines.append("\n  ".join([f"{len(notes)} note(s) on images:", *notes[:_EXAMPLES]]) + more)
    return lines


def _split_place(root: Path, settings: OmniMedVQAConfig) -> Path:
    return root / "Splits" if settings.splits is None else Path(settings.splits)


def _read(root: Path, settings: OmniMedVQAConfig, axis: SplitAxis) -> tuple[Reading, int, dict[str, str]]:
    """The questions to use, with axes filled in as far as possible, and the number of axes inferred by exclusion.

    Also returns the image files by paths that are spelled differently from them.
    """
    splits = None if settings.splits is None else Path(settings.splits)
    if not root.is_dir():
        raise DataError(f"data.root={root} is not a folder. Remedy: data.root=PATH of the unpacked OmniMedVQA")
    if splits is not None and not splits.exists():
        raise DataError(f"data.splits={splits} does not exist. Remedy: a folder or file of Med-R1's split files")
    qa_folder, split_place = root / "QA_information", _split_place(root, settings)
    release = read_release(qa_folder) if qa_folder.is_dir() else None
    if release is None and not split_place.exists():
        raise DataError(f"data.root={root} holds neither QA_information nor Splits. Remedy: correct data.root")
    if settings.split is not Split.released and splits is None and release is not None:
        return release, 0, respell_images([release], root)
    if not split_place.exists():
        raise DataError(
            f"data.split=released needs Med-R1's split files, and {split_place} does not exist. "
            "Remedy: data.splits=PATH of the split files, or data.split=image_grouped, or data.split=test_only"
        )
    files = read_splits(split_place)
    respelled = respell_images([*([release] if release else []), *(file.reading for file in files)], root)
    reading = Reading.merge(file.reading for file in files if file.axis is axis)
    if not reading.files:
        raise DataError(f"{split_place} holds no split files by {axis}. Remedy: the other data.axis, or the files")
    reading.questions, by_exclusion = complete_axes(reading.questions, release.questions if release else [], files)
    if by_exclusion:
        log.warning(
            "modality or question type of %d questions is inferred by exclusion: one value lacks a split file, and "
            "the questions are in no other file",
            by_exclusion,
        )
    return reading, by_exclusion, respelled


def _unknown_axis(question: Question) -> tuple[Reason, str] | None:
    if question.modality is None:
        return Reason.UNKNOWN_MODALITY, f"modality is given as {question.label}"
    if question.question_type is None:
        return Reason.UNKNOWN_QUESTION_TYPE, "no file gives the question type"
    return None


def _control(question: Question, control_tokens: Collection[str]) -> tuple[Reason, str] | None:
    try:
        check_text((question.question, *question.options.values()), control_tokens)
    except BadRecord as bad:
        return bad.reason, bad.detail
    return None


def _image_fault(facts: ImageFacts, settings: OmniMedVQAConfig) -> tuple[Reason, str] | None:
    if facts.reason is not None:
        return facts.reason, facts.detail
    try:
        if settings.resize == Resize.native and facts.width:  # else it is checked when the image is loaded
            check_aspect_ratio(facts.width, facts.height)
    except BadRecord as bad:
        return bad.reason, f"image {facts.path!r} {bad.detail}"
    return None


def _report_bad(root: Path, bad: list[BadRecord], counts: dict[str, int], on_bad: OnBadRecord, empty: bool) -> None:
    """Raises one error about all bad records, or logs it as a warning if they are skipped and other records remain."""
    summary = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    first = {record.reason: record for record in reversed(bad)}.values()  # each reason gets an example
    examples = [str(record) for record in [*first, *(record for record in bad if record not in first)][:_EXAMPLES]]
    more = [f"… and {len(bad) - _EXAMPLES} more"] if len(bad) > _EXAMPLES else []
    listing = "\n  ".join([summary, *examples, *more])
    if on_bad is OnBadRecord.skip and not empty:
        log.warning("%d record(s) cannot be used and are skipped: %s", len(bad), listing)
        return
    remedy = "correct data.root" if empty else "correct the data, or skip these records with data.on_bad_record=skip"
    head = f"{root}: {f'none of the {len(bad)} records read can' if empty else f'{len(bad)} record(s) cannot'} be used"
    raise DataError(f"{head}: {listing}\nRemedy: {remedy}")


def _to_records(root: Path, questions: Iterable[Question], contents: Mapping[str, str], limit: int) -> list[Record]:
    records: list[Record] = []
    seen: Counter[str] = Counter()
    for q in questions:
        assert q.modality is not None and q.question_type is not None  # see _unknown_axis
        seen[q.id] += 1
        # Predictions are stored by record id, so repeated ids are numbered.
        identity = q.id if seen[q.id] == 1 else f"{q.id}~{seen[q.id]}"
        image = FileImage(root, q.image, contents[q.image], limit)
        origin = f"{q.file} {q.position}"
        records.append(
            Record(
                id=identity,
                images=(image,),
                modality=q.modality,
                question_type=q.question_type,
                question=q.question,
                options=q.options,
                answer=q.answer,
                origin=origin,
                dataset=q.dataset,
            )
        )
    return records


def _parts(records: Sequence[Record], questions: Sequence[Question], settings: OmniMedVQAConfig) -> list[str]:
    """The part of each record, train or test."""
    if settings.split is Split.released:
        return [question.part for question in questions]
    if settings.split is Split.test_only:
        return ["test"] * len(records)
    test = _test_contents(records, settings.test_fraction, settings.seed)
    return ["test" if record.image_key in test else "train" for record in records]


def _test_contents(records: Sequence[Record], test_fraction: float, seed: int) -> set[str]:
    """Chooses the image contents of the test part.

    Contents of each modality are taken in the order of a seeded hash, as long as the records stay within the fraction.
    A content that records of several modalities share counts for the modality of its first record. A modality with two
    or more contents has at least one in the test part.
    """
    sizes = Counter(record.image_key for record in records)
    strata: dict[Modality, list[str]] = defaultdict(list)
    for record in {record.image_key: record for record in reversed(records)}.values():
        strata[record.modality].append(record.image_key)
    chosen: set[str] = set()
    for contents in strata.values():
        contents.sort(key=lambda content: hashlib.sha256(f"{seed}:{content}".encode()).digest())
        target, taken = test_fraction * sum(sizes[content] for content in contents), 0
        for content in contents:
            if taken + sizes[content] <= target:
                chosen.add(content)
                taken += sizes[content]
        if taken == 0 and len(contents) > 1:
            chosen.add(contents[0])
    return chosen


def _fingerprint(records: Iterable[tuple[str, Record]], images: Mapping[str, ImageFacts]) -> str:
    """SHA-256 of parts, records and image bytes. The order of the records in the files does not matter."""
    lines = sorted(
        json.dumps(
            [
                *(part, r.id, _path(r), images[_path(r)].sha256, r.modality, r.question_type),
                *(r.question, list(r.options.items()), r.answer),
            ]
        )
        for part, r in records
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
