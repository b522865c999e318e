"""Loads OmniMedVQA: reads the question files, checks every record and image, divides them, counts leaks."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from medr1.config.settings import ALL
from medr1.data.assembly import Draft, assemble, count_reasons, leak_messages, note_messages
from medr1.data.dataset import Dataset, Selection
from medr1.data.image_paths import ImageFiles, respelled_messages
from medr1.data.sources import SOURCES
from medr1.data.sources.omnimedvqa import OmniMedVQAConfig, ReleasedAxis
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
from medr1.data.splitting import count_leaks
from medr1.data.stored_data import Split
from medr1.domain.records import BadRecord, Reason, Record, check_text
from medr1.errors import DataError

log = logging.getLogger(__name__)


def load_omnimedvqa(settings: OmniMedVQAConfig, selection: Selection) -> Dataset:
    """Loads the records below ``settings.root``.

    Records come from the split files if ``split`` is ``released``, if ``splits`` is given, or if there is no
    QA_information, and from QA_information otherwise. ``axis=auto`` reads the question-type splits if only the question
    type is selected, else the modality splits.

    ``facts`` has ``counts`` (``files_skipped``: files beside the data; ``images_respelled``: paths that are spelled
    differently from their files; ``image_contents_used``: different images among the files used; ``by_exclusion``: see
    ``axes.complete_axes``; ``bad``: rejected records by reason; ``image_notes``), ``leaks`` (see
    ``splitting.count_leaks``), ``bad_records``, ``image_notes`` (see ``DecodedImage``) and ``released_axis``.

    Raises:
        DataError: a folder or file that cannot be used, no usable record, or with ``on_bad_record=error`` any bad
            record; one message then reports all of them.
    """
    root = Path(settings.root)
    axis = settings.axis
    if axis is ReleasedAxis.auto:
        only_type = selection.modality == ALL and selection.question_type != ALL
        axis = ReleasedAxis.question_type if only_type else ReleasedAxis.modality
    reading, by_exclusion, respelled = _read(root, settings, SplitAxis(axis.value))
    bad, drafts = list(reading.bad), list[Draft]()
    images = ImageFiles(root, settings.max_image_pixels)
    for question in reading.questions:
        try:
            part = "test" if settings.split is Split.test_only else question.part
            drafts.append(_draft(question, part, images, selection.control_tokens))
        except BadRecord as fault:
            bad.append(question.rejected(fault.reason, fault.detail))
    data = assemble(
        drafts,
        bad,
        root,
        settings,
        place=str(root),
        remedy="correct data.root" if bad else "correct data.root or data.splits",
        control_tokens=selection.control_tokens,
        image_grouped=settings.split is Split.image_grouped,
    )
    train, test = data.of_part("train"), data.of_part("test")
    counts = {
        "files": reading.files,
        "files_skipped": len(skipped_files([root / "QA_information", _split_place(root, settings)])),
        "questions_read": len(reading.questions) + len(reading.bad),
        "questions_used": len(data.records),
        "images_read": len(reading.images),
        "images_respelled": len(respelled),
        "images_used": data.paths,
        "image_contents_used": data.contents,
        "by_exclusion": by_exclusion,
        "bad": count_reasons(data.bad),
        "image_notes": len(data.notes),
    }
    facts = {
        "counts": counts,
        "leaks": count_leaks(train, test),
        "bad_records": [str(record) for record in data.bad],
        "image_notes": data.notes,
        "released_axis": axis.value,
    }
    remedy = SOURCES[settings.kind].image_grouped(settings)
    return Dataset(train, test, data.fingerprint, facts, _messages(facts, respelled, len(train), len(test), remedy))


def _messages(facts: Mapping[str, Any], respelled: Mapping[str, str], train: int, test: int, remedy: str) -> list[str]:
    counts = facts["counts"]
    lines = [
        f"{counts['questions_read']} questions on {counts['images_read']} images read; {counts['questions_used']} "
        f"questions on {counts['images_used']} images ({counts['image_contents_used']} different ones) used: {train} "
        f"for training, {test} for test"
    ]
    if counts["files_skipped"]:
        lines.append(f"{counts['files_skipped']} JSON files are skipped, because they are hidden or below __MACOSX")
    lines += respelled_messages(respelled)
    return [*lines, *leak_messages(facts["leaks"], remedy), *note_messages(facts["image_notes"])]


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


def _draft(question: Question, part: str, images: ImageFiles, control_tokens: Collection[str]) -> Draft:
    if question.modality is None:
        raise BadRecord(Reason.UNKNOWN_MODALITY, f"modality is given as {question.label}")
    if question.question_type is None:
        raise BadRecord(Reason.UNKNOWN_QUESTION_TYPE, "no file gives the question type")
    check_text((question.question, *question.options.values()), control_tokens)  # before the image is looked for
    record = Record(
        id=question.id,
        images=(images.find(question.image),),
        modality=question.modality,
        question_type=question.question_type,
        question=question.question,
        options=question.options,
        answer=question.answer,
        origin=f"{question.file} {question.position}",
        dataset=question.dataset,
    )
    return Draft(record, part, question.file, question.position)
