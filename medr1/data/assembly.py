"""Makes a dataset of records that were read from files: checks texts and images, divides them, counts what it finds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medr1.config.enums import Resize
from medr1.data.dataset import check_axes, check_record
from medr1.data.image_index import ImageFacts, group_by_content, index_images
from medr1.data.image_size import check_aspect_ratio
from medr1.data.splitting import image_grouped_parts, stored_images
from medr1.data.stored_data import OnBadRecord, StoredDataConfig
from medr1.domain.records import BadRecord, Reason, Record
from medr1.errors import DataError

log = logging.getLogger(__name__)

EXAMPLES = 10  # how many records, or notes on images, a message lists


@dataclass(frozen=True, slots=True)
class Draft:
    """A record whose images are not checked yet.

    ``part`` is "train", "validation" or "test", empty if the files do not divide the records. ``file`` and ``position``
    name it in messages.
    """

    record: Record
    part: str
    file: str
    position: str

    def rejected(self, reason: Reason, detail: str) -> BadRecord:
        """The error that names this record."""
        return BadRecord(reason, detail, self.file, self.position)


@dataclass(frozen=True, slots=True)
class Assembly:
    """The usable records with the part of each, all bad records, the facts of the images, and the fingerprint."""

    parts: list[str]
    records: list[Record]
    bad: list[BadRecord]
    notes: list[str]
    contents: int
    paths: int
    fingerprint: str

    def of_part(self, part: str) -> list[Record]:
        """The training, the validation or the test records."""
        return [record for record, its in zip(self.records, self.parts, strict=True) if its == part]


def assemble(
    drafts: Iterable[Draft],
    bad: Iterable[BadRecord],
    root: Path,
    settings: StoredDataConfig,
    *,
    place: str,
    remedy: str,
    control_tokens: frozenset[str],
    image_grouped: bool,
) -> Assembly:
    """Checks texts and images of the drafts, numbers repeated ids, and divides the records.

    ``bad`` are the records that were refused before. ``place`` names the data in messages; ``remedy`` is what to do if
    nothing can be used. ``image_grouped``: divided by image content, else as the drafts say.

    Raises:
        DataError: no usable record, or with ``on_bad_record=error`` any bad record; one message reports all of them.
    """
    if image_grouped and not 0.0 < settings.test_fraction < 1.0:
        raise DataError(f"data.test_fraction={settings.test_fraction}. Remedy: a value between 0 and 1, such as 0.2")
    bad, readable = list(bad), list[Draft]()
    for draft in drafts:
        record = draft.record
        try:
            check_record(record, settings.max_images, control_tokens)
            check_axes(record)
            readable.append(draft)
        except BadRecord as fault:
            bad.append(draft.rejected(fault.reason, fault.detail))
    images = index_images(
        (image for draft in readable for image in stored_images(draft.record)),
        root,
        Path(settings.cache_dir),
        max_pixels=settings.max_image_pixels,
    )
    usable = list[Draft]()
    for draft in readable:
        facts = [images[image.path] for image in stored_images(draft.record)]
        faults = list(filter(None, (_image_fault(fact, settings) for fact in facts)))
        if faults:
            bad.append(draft.rejected(*faults[0]))
        else:
            usable.append(draft)
    if bad:
        _report_bad(place, bad, settings.on_bad_record, "" if usable else remedy)
    if not usable:
        raise DataError(f"{place}: the files hold no record. Remedy: {remedy}")
    contents = group_by_content(images.values())
    records = _to_records(usable, contents, images)
    parts = [draft.part for draft in usable]
    if image_grouped:
        parts = image_grouped_parts(records, settings.test_fraction, settings.seed)
    used = {image.path for record in records for image in stored_images(record)}
    return Assembly(
        parts=parts,
        records=records,
        bad=bad,
        notes=[f"image {path!r} {note}" for path in sorted(used) for note in images[path].notes],
        contents=len({contents[path] for path in used}),
        paths=len(used),
        fingerprint=_fingerprint(zip(parts, records, strict=True), images),
    )


def _image_fault(facts: ImageFacts, settings: StoredDataConfig) -> tuple[Reason, str] | None:
    if facts.reason is not None:
        return facts.reason, facts.detail
    try:
        if settings.resize == Resize.native and facts.width:  # else it is checked when the image is loaded
            check_aspect_ratio(facts.width, facts.height)
    except BadRecord as bad:
        return bad.reason, f"image {facts.path!r} {bad.detail}"
    return None


def count_reasons(bad: Iterable[BadRecord]) -> dict[str, int]:
    """The number of bad records by reason."""
    return dict(sorted(Counter(record.reason.value for record in bad).items()))


def leak_messages(leaks: Mapping[str, Any], remedy: str) -> list[str]:
    """What the log says of ``count_leaks``. ``remedy``: see ``Source.image_grouped``."""
    avoided = f"; {remedy} avoids this" if remedy else ""
    messages = []
    if leaks["records_by_content"]:
        messages.append(
            f"{leaks['records_by_content']} of {leaks['test_records']} test questions have an image that also occurs "
            f"in training ({leaks['records_by_path']} by path){avoided}"
        )
    if leaks.get("records_by_group"):
        messages.append(
            f"{leaks['records_by_group']} of {leaks['test_records']} test questions belong to a group of "
            f"data.columns.group that also occurs in training{avoided}"
        )
    return messages


def note_messages(notes: Sequence[str]) -> list[str]:
    """What the log says of the notes on images."""
    if not notes:
        return []
    more = f"\n  … and {len(notes) - EXAMPLES} more" if len(notes) > EXAMPLES else ""
    return ["\n  ".join([f"{len(notes)} note(s) on images:", *notes[:EXAMPLES]]) + more]


def _report_bad(place: str, bad: list[BadRecord], on_bad: OnBadRecord, remedy: str) -> None:
    """Raises one error about all bad records, or logs it as a warning if they are skipped and other records remain.

    ``remedy`` is given if no other record remains.
    """
    summary = ", ".join(f"{count} {reason}" for reason, count in count_reasons(bad).items())
    first = {record.reason: record for record in reversed(bad)}.values()  # each reason gets an example
    examples = [str(record) for record in [*first, *(record for record in bad if record not in first)][:EXAMPLES]]
    more = [f"… and {len(bad) - EXAMPLES} more"] if len(bad) > EXAMPLES else []
    listing = "\n  ".join([summary, *examples, *more, "The first record of a file is #0."])
    if on_bad is OnBadRecord.skip and not remedy:
        log.warning("%d record(s) cannot be used and are skipped: %s", len(bad), listing)
        return
    which = f"none of the {len(bad)} records read can" if remedy else f"{len(bad)} record(s) cannot"
    remedy = remedy or "correct the data, or skip these records with data.on_bad_record=skip"
    raise DataError(f"{place}: {which} be used: {listing}\nRemedy: {remedy}")


def _to_records(drafts: Sequence[Draft], contents: Mapping[str, str], facts: Mapping[str, ImageFacts]) -> list[Record]:
    """The records with the content ids and hashes of their images. Predictions are stored by id, so repeated ids are
    numbered."""
    records: list[Record] = []
    seen: Counter[str] = Counter()
    taken = {draft.record.id for draft in drafts}
    for record in (draft.record for draft in drafts):
        seen[record.id] += 1
        identity = record.id
        if seen[record.id] > 1:
            while (identity := f"{record.id}~{seen[record.id]}") in taken:
                seen[record.id] += 1
            taken.add(identity)
        images = tuple(
            image.with_content_id(contents[image.path], facts[image.path].sha256) for image in stored_images(record)
        )
        records.append(dataclasses.replace(record, id=identity, images=images))
    return records


def _fingerprint(records: Iterable[tuple[str, Record]], images: Mapping[str, ImageFacts]) -> str:
    """SHA-256 of parts, records and image bytes. The order of the records in the files does not matter."""
    lines = sorted(
        json.dumps(
            [
                *(part, r.id, *(fact for i in stored_images(r) for fact in (i.path, images[i.path].sha256))),
                *(r.modality, r.question_type, r.question, list(r.options.items()), r.answer),
                *([r.rationale] if r.rationale else []),
                *([{"group": r.group}] if r.group else []),
            ]
        )
        for part, r in records
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
