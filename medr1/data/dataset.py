"""The data of a run: training and test records from any data source."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from medr1.config.messages import nearest
from medr1.config.settings import ALL, DataConfig
from medr1.domain.reasoning import TAGS, missing_placeholder
from medr1.domain.records import AXES, BadRecord, Reason, Record, axis_problem, check_text, in_order
from medr1.errors import DataError

_NOT_A_VALUE = (ALL, "mean")  # "all" selects all records; tables have columns "all" and "mean"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records a run can use.

    Modality and question type of the training records, or "all". Records with one of the ``control_tokens``, those of
    the model's tokenizer, are bad records (see ``check_text``).
    """

    modality: str
    question_type: str
    control_tokens: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Dataset:
    """Training and validation records of the selected modality and question type, and test records of all of them.

    ``fingerprint`` identifies the data. ``facts`` are JSON-serializable statistics of the source. ``messages``
    summarise them for the log. ``pass_rates``: the difficulty of each training record, if a training goes from easy to
    hard by it, else empty.
    """

    train: list[Record]
    test: list[Record]
    fingerprint: str
    facts: dict[str, Any]
    messages: list[str]
    validation: list[Record] = dataclasses.field(default_factory=list)
    pass_rates: list[float] = dataclasses.field(default_factory=list)


def load_dataset(
    settings: DataConfig,
    modality: str,
    question_type: str,
    *,
    control_tokens: frozenset[str] = frozenset(),
    is_trained: bool = False,
    is_other_data: bool = False,
) -> Dataset:
    """Loads the data of ``settings``, selects the training records, and takes validation records from them.

    ``control_tokens`` are those of the model's tokenizer. ``is_trained``: there must be training records.
    ``is_other_data``: the selection is that of a run on perhaps other data, which need not have the values; without
    them, there are no training records.

    Raises:
        DataError: files or records that cannot be used, no test record, no training record in the selection, with
            ``is_trained`` no training record at all, or validation records that share an image with other parts.
    """
    from medr1.data.sources import SOURCES  # sources import this module

    dataset = SOURCES[settings.kind].load(settings, Selection(modality, question_type, control_tokens))
    train = select(dataset.train, modality, question_type)
    validation = select(dataset.validation, modality, question_type)
    for record in (*dataset.train, *dataset.validation, *dataset.test):
        check_axes(record)
    if not train and (is_trained or (dataset.train and not is_other_data)):
        raise DataError(
            f"data={settings.name}: no training record has modality={modality} and question_type={question_type}."
            f"{_nearest_values(dataset.train, modality=modality, question_type=question_type)}\n"
            f"{_listing('training', dataset.train)}\n{_listing('test', dataset.test)}\n"
            f"{_said(dataset)}Remedy: choose from the training records, or add some"
        )
    if not dataset.test:
        raise DataError(
            f"data={settings.name}: there is no test record, so that nothing can be evaluated.\n"
            f"{_listing('training', dataset.train)}\n{_said(dataset)}Remedy: add test records, or choose another split"
        )
    for record in (
        *train,
        *validation,
        *dataset.test,
    ):  # a source without a way to skip bad records has not looked for these
        try:
            check_record(record, settings.max_images, control_tokens)
        except BadRecord as bad:
            raise BadRecord(
                bad.reason, f"{bad.detail}. Remedy: correct or remove it", record.origin, record.id
            ) from bad
    messages = dataset.messages
    if dataset.train and not train:
        messages = [
            *messages,
            f"data={settings.name} has no training record with modality={modality} and question_type={question_type}, "
            "those of the run, so that there is no option prior",
        ]
    if dataset.validation or settings.validation_fraction > 0:
        train, validation = _validation(settings, train, validation, dataset)
        messages = [*messages, f"{len(validation)} validation records, {len(train)} training records"]
    if is_trained and not validation and SOURCES[settings.kind].has_validation(settings):
        raise DataError(
            f"data={settings.name}: no validation record has modality={modality} and question_type={question_type}.\n"
            f"{_listing('validation', dataset.validation)}\nRemedy: take validation records from the training records "
            f"instead, with {_taken_from_training(settings, dataset.validation)}, or correct the part"
        )
    if settings.max_train_images is not None:
        train = limit_images(train, settings.max_train_images)
        messages = [*messages, f"data.max_train_images={settings.max_train_images}: {len(train)} training records"]
    dataset = dataclasses.replace(dataset, train=train, validation=validation, messages=messages)
    return dataclasses.replace(dataset, fingerprint=_with_validation(dataset)) if validation else dataset


def _validation(
    settings: DataConfig, train: list[Record], validation: list[Record], dataset: Dataset
) -> tuple[list[Record], list[Record]]:
    """Training and validation records, with a share of the training records taken for validation.

    None are taken from benchmarks that have validation records of their own.

    Raises:
        DataError: a validation record has an image or group that is also in another part, or there is none to take.
    """
    from medr1.data.sources import SOURCES
    from medr1.data.splitting import connected, validation_parts

    own = {record.benchmark for record in dataset.validation}
    for part, others in (("training", train), ("test", dataset.test)):
        if shared := connected(validation, others):
            raise DataError(
                f"data={settings.name}: {len(shared)} of {len(validation)} validation records share an image or "
                f"a group with a {part} record, first {shared[0].id}. Remedy: take validation "
                f"records from the training records instead, with {_taken_from_training(settings, shared)}"
            )
    divided = [r for r in train if r.benchmark not in own] if settings.validation_fraction > 0 else []
    is_validation = validation_parts(divided, settings.validation_fraction, dataset.test)
    taken = {id(record) for record, chosen in zip(divided, is_validation, strict=True) if chosen}
    if divided and not taken and not validation:
        grouped = SOURCES[settings.kind].image_grouped(settings)
        raise DataError(
            f"data={settings.name}: data.validation_fraction={settings.validation_fraction:g} leaves no validation "
            f"record: {len(divided)} training records have {len({r.image_key for r in divided})} images, of which "
            f"{len({r.image_key for r in connected(divided, dataset.test)})} are also in the test "
            f"records, or of a group that is. Remedy: more images{grouped and f', or {grouped}'}"
        )
    return [r for r in train if id(r) not in taken], [*validation, *(r for r in divided if id(r) in taken)]


def _taken_from_training(settings: DataConfig, validation: Iterable[Record]) -> str:
    """What is typed so that validation records are taken from the training records in place of these."""
    from medr1.data.sources import SOURCES

    own = SOURCES[settings.kind].without_own_validation(settings, {record.benchmark for record in validation})
    return f"{own} data.validation_fraction=0.1".lstrip()


def _with_validation(dataset: Dataset) -> str:
    """The fingerprint of data with validation records."""
    parts = [dataset.fingerprint, *sorted(record.id for record in dataset.validation)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def check_axes(record: Record) -> None:
    """Checks that modality and question type can be shown in tables and typed in commands. Raises BadRecord."""
    for axis in AXES:
        value = getattr(record, axis)
        problem = axis_problem(value)
        if value in _NOT_A_VALUE:
            problem = "this word stands for all records in commands and tables"
        if problem:
            raise BadRecord(
                Reason.MALFORMED, f"{axis} {value!r}: {problem}. Remedy: give it another name", record.origin, record.id
            )


def _nearest_values(records: Iterable[Record], **selected: str) -> str:
    """For each selected value that the records do not have: the values that are most like it."""
    records, text = list(records), ""
    for axis, value in selected.items():
        values = in_order(getattr(record, axis) for record in records)
        if value not in (ALL, *values) and (guess := nearest(value, values, shown=3)):
            text += f"\n{axis}={value}: {guess}"
    return text


def check_record(record: Record, max_images: int, control_tokens: Collection[str]) -> None:
    """Checks that a record can be shown to a model, and that its rationale can stand in the think block of a target.

    Raises:
        BadRecord: a text that ``check_text`` refuses, a tag of the prompt in the rationale, with which the target would
            have a second block and be no valid answer, more than ``max_images`` images, or a placeholder such as
            ``<image 3>`` in a question with two.
    """
    texts, images = (record.question, *record.options.values()), len(record.images)
    check_text((*texts, record.rationale), control_tokens)
    if tag := next((tag for tag in TAGS if tag in record.rationale), None):
        raise BadRecord(
            Reason.MALFORMED,
            f"the rationale has the tag {tag}, which SFT puts around it: give the text alone, not "
            f"{record.rationale!r:.80}",
        )
    if images > max_images:
        raise BadRecord(Reason.TOO_MANY_IMAGES, f"{images} images; data.max_images={max_images}")
    if placeholder := missing_placeholder(texts, images):
        raise BadRecord(Reason.MALFORMED, f"the text has {placeholder}, and there are {images} image(s)")


def _listing(part: str, records: Iterable[Record]) -> str:
    """How many records of each modality and question type there are."""
    cells = Counter(f"modality={r.modality} question_type={r.question_type}" for r in records)
    listing = "".join(f"\n  {cell}: {count}" for cell, count in sorted(cells.items()))
    return f"The {part} records are:{listing}" if cells else f"There are no {part} records."


def _said(dataset: Dataset) -> str:
    """What the log would say of the data: why records are missing, such as a part that no setting chooses."""
    return "".join(f"{message}\n" for message in dataset.messages)


def select(records: Iterable[Record], modality: str, question_type: str) -> list[Record]:
    """The records of one modality (or "all") and one question type (or "all")."""
    return [r for r in records if modality in (ALL, r.modality) and question_type in (ALL, r.question_type)]


def limit_cells(records: Iterable[Record], limit: int | None) -> list[Record]:
    """A sample of at most ``limit`` records of each combination of benchmark, modality and question type. None: all.

    The sample depends on the contents of the records alone, neither on their order nor on a run's seed, so that runs
    that are compared are tested on the same records. A smaller sample is part of a larger one. Within a cell the
    records are taken

    - from all data sets: one of each first, then in proportion to their sizes,
    - from as many images as possible: a second question on an image follows the first questions on all images of its
      data set,
    - apart from that in the order of a hash.

    The sample is returned in the order of ``records``.
    """
    records = list(records)
    if limit is None:
        return records
    cells: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    # Equal contents are told apart by their ids; of two equal records it does not matter which one is taken.
    rank = [(_hash(record), record.id) for record in records]
    for i in sorted(range(len(records)), key=rank.__getitem__):
        cells[records[i].benchmark, records[i].modality, records[i].question_type].append(i)
    chosen = {i for members in cells.values() for i in _spread(records, members)[:limit]}
    return [record for i, record in enumerate(records) if i in chosen]


def limit_images(records: Iterable[Record], limit: int) -> list[Record]:
    """The records of a sample of at most ``limit`` images of each modality, in the order of ``records``.

    Like that of ``limit_cells`` the sample depends on the contents of the records alone, and a smaller one is part of a
    larger one.
    """
    records = list(records)
    images: dict[str, dict[tuple[str, str], bytes]] = defaultdict(dict)  # by modality: data set and image, hash
    for record in records:
        image = (record.dataset, record.image_key)
        images[record.modality][image] = hashlib.sha256(json.dumps([_IMAGES, *image]).encode()).digest()
    chosen = {modality: set(sorted(of, key=of.__getitem__)[:limit]) for modality, of in images.items()}
    return [record for record in records if (record.dataset, record.image_key) in chosen[record.modality]]


_SAMPLE = "evaluation.limit, sample 0"
_IMAGES = "data.max_train_images, sample 0"


def _hash(record: Record) -> bytes:
    content = [_SAMPLE, record.dataset, record.image_key, record.question, list(record.options.items()), record.answer]
    return hashlib.sha256(json.dumps(content).encode()).digest()


def _spread(records: list[Record], members: list[int]) -> list[int]:
    """The records of a cell, given in the order of their hashes, in the order in which they are taken."""
    per_image: Counter[str] = Counter()
    datasets: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for rank, i in enumerate(members):
        image = records[i].image_key
        datasets[records[i].dataset].append((per_image[image], rank, i))
        per_image[image] += 1
    # The k-th of n records of a data set has its turn at k / n.
    turns = [
        (k / len(of_dataset), rank, i)
        for of_dataset in datasets.values()
        for k, (_, rank, i) in enumerate(sorted(of_dataset))
    ]
    return [i for _, _, i in sorted(turns)]
