"""Divides records into training and test so that they share no image or group, and counts what they share."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, cast

from medr1.data.image_index import StoredImage
from medr1.domain.records import Record, in_order


def stored_images(record: Record) -> tuple[StoredImage, ...]:
    """The images of a record that were read from files."""
    return cast(tuple[StoredImage, ...], record.images)


def image_grouped_parts(records: Sequence[Record], test_fraction: float, seed: int) -> list[str]:
    """The part of each record, "train" or "test". No image content and no group of records is in both.

    Contents of each modality are taken in the order of a seeded hash, as long as the records stay within the fraction.
    A content that records of several modalities share counts for the modality of its first record. A modality with two
    or more contents has at least one in the test part. Contents that one record shows together stay together.
    """
    groups = _groups(records)
    sizes = Counter(groups)
    strata: dict[str, list[str]] = defaultdict(list)
    for group, record in {group: record for group, record in reversed([*zip(groups, records, strict=True)])}.items():
        strata[record.modality].append(group)
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
    return ["test" if group in chosen else "train" for group in groups]


def validation_parts(records: Sequence[Record], fraction: float, excluded: Iterable[Record] = ()) -> list[bool]:
    """Whether each record is for validation. No image content and no group is in both parts, or also in ``excluded``.

    Contents of each benchmark, modality and question type are taken in the order of a hash, as long as the records stay
    within the fraction. Of two or more at least one is taken, the smallest if none stays within it. A content with
    records of several of them counts for the first in alphabetical order, so that the order of the records does not
    matter.
    """
    groups = _groups(records)
    sizes = Counter(groups)
    stratum: dict[str, tuple[str, str, str]] = {}
    for group, record in zip(groups, records, strict=True):
        own = (record.benchmark, record.modality, record.question_type)
        stratum[group] = min(stratum.get(group, own), own)
    shared = {key for record in excluded for key in _with_files(record)}
    fixed = {g for g, record in zip(groups, records, strict=True) if not shared.isdisjoint(_with_files(record))}
    strata: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for group, own in stratum.items():
        strata[own].append(group)
    chosen: set[str] = set()
    for contents in strata.values():
        target, taken = fraction * sum(sizes[content] for content in contents), 0
        free = sorted(
            (content for content in contents if content not in fixed),
            key=lambda content: hashlib.sha256(f"validation:{content}".encode()).digest(),
        )
        for content in free:
            if taken + sizes[content] <= target:
                chosen.add(content)
                taken += sizes[content]
        if taken == 0 and free and len(contents) > 1:
            chosen.add(min(free, key=sizes.__getitem__))  # a large one could be most of the training records
    return [group in chosen for group in groups]


def connected(records: Iterable[Record], others: Iterable[Record]) -> list[Record]:
    """The records that show an image content that one of the others shows, too, or are of the same group."""
    keys = {key for record in others for key in _connections(record)}
    return [record for record in records if not keys.isdisjoint(_connections(record))]


def _groups(records: Iterable[Record]) -> list[str]:
    """For each record the first of the image contents that it is connected with, by records that show several or belong
    to one group."""
    parent: dict[str, str] = {}

    def root(content: str) -> str:
        while parent.setdefault(content, content) != content:
            parent[content] = content = parent[parent[content]]
        return content

    contents = [_connections(record) for record in records]
    for first, *others in contents:
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return [root(keys[0]) for keys in contents]


def count_leaks(train: Sequence[Record], test: Sequence[Record]) -> dict[str, Any]:
    """Counts test records and test images (paths) that also occur in training, by path and by image content.

    ``by_modality`` has the same counts for each modality, with training records of this modality only.
    """
    by_modality = {
        str(modality): _leaks([r for r in train if r.modality == modality], [r for r in test if r.modality == modality])
        for modality in in_order(record.modality for record in test)
    }
    return {**_leaks(train, test), "by_modality": by_modality}


def _leaks(train: Sequence[Record], test: Sequence[Record]) -> dict[str, int]:
    paths = {image.path for record in train for image in stored_images(record)}
    contents = {key for record in train for key in _keys(record)}
    groups = {key for record in train for key in _group_keys(record)}
    images = {i.path: key for r in test for i, key in zip(stored_images(r), _keys(r), strict=True)}
    return {
        "test_records": len(test),
        "test_images": len(images),
        "records_by_path": sum(any(image.path in paths for image in stored_images(record)) for record in test),
        "images_by_path": len(images.keys() & paths),
        "records_by_content": sum(not contents.isdisjoint(_keys(record)) for record in test),
        "images_by_content": sum(content in contents for content in images.values()),
        **({"records_by_group": sum(not groups.isdisjoint(_group_keys(r)) for r in test)} if groups else {}),
    }


def file_hashes(record: Record) -> list[str]:
    """SHA-256 of the files of a record's images. Drawn images have none."""
    return [digest for image in record.images if (digest := getattr(image, "sha256", ""))]


def _with_files(record: Record) -> list[str]:
    """``_connections``, and the files of the images: images of several data sets have other keys for the same file."""
    return [*_connections(record), *file_hashes(record)]


def _connections(record: Record) -> list[str]:
    """The keys that keep records together: those of the images, and of the group."""
    return [*_keys(record), *_group_keys(record)]


def _group_keys(record: Record) -> list[str]:
    return [record.group_key] if record.group else []


def _keys(record: Record) -> tuple[str, ...]:
    """The content ids of the images of a record."""
    return tuple(image.key for image in record.images)
