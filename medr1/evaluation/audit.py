"""The audit of a data set: what its splits give away before any model is trained.

Everything is counted over the readable records: those that this project uses and those that it refuses only because
they repeat an option, since whoever else reads the files meets these as well. Rates are fractions.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from statistics import fmean
from typing import Any

from medr1.data.image_index import check_images, group_by_content
from medr1.data.sources.omnimedvqa import OmniMedVQAConfig
from medr1.data.sources.omnimedvqa.files import (
    Question,
    Reading,
    SplitAxis,
    SplitFile,
    parse_modality,
    parse_question_type,
    read_release,
    read_splits,
)
from medr1.data.sources.omnimedvqa.problem_text import parse_problem, parse_solution
from medr1.domain.records import BadRecord, Modality, QuestionType, Reason, option_meaning
from medr1.errors import DataError
from medr1.evaluation.option_prior import OptionPrior
from medr1.evaluation.surface_cues import CueCounts, count_cues, expected_accuracy

Value = Modality | QuestionType
_AXES: dict[SplitAxis, type[Modality] | type[QuestionType]] = {
    SplitAxis.MODALITY: Modality,
    SplitAxis.QUESTION_TYPE: QuestionType,
}


@dataclass(frozen=True, slots=True)
class Source:
    """One set of files: a family of splits, or QA_information.

    ``records`` are all in the files, ``readable`` those that everything else is counted over. ``options``: number of
    readable records by number of options. ``repeats``: readable records with two options that differ in nothing but
    case and a closing full stop. ``bad``: records that are refused, by reason.
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
    """Test images (different paths) that training shows as well: as the same path, and as the same picture.

    ``by_picture`` counts those by path too; it is None where the pictures are not there.
    """

    images: int
    by_path: int
    by_picture: int | None


@dataclass(frozen=True, slots=True)
class CellAudit:
    """One modality or question type of a family of splits.

    ``train`` and ``test`` are numbers of records; None where there is no such file. The rest is about the test
    records: ``options`` by number of options, ``chance`` of a uniform guess, ``blind`` the option prior fitted to the
    training records of this cell (see ``Family``), ``cues`` the surface cues with a uniform guess where there is none,
    ``leak`` against the training records of this cell.
    """

    train: int | None
    test: int | None
    options: Mapping[int, int]
    chance: float | None
    cues: float | None
    blind: float | None
    leak: Leak | None


@dataclass(frozen=True, slots=True)
class Family:
    """One family of splits: cells by modality or by question type.

    ``blind[trained][tested]`` is the accuracy of an option prior: for each question the option whose text has the
    highest right / (offered + 1) among the training records, without case and closing full stops; ties count as a
    uniform guess among them. The one more offer keeps a text that was right once in one question behind one that was
    right in 90 of 91. ``across`` is the mean over all pairs of different cells with equal weight, ``across_chance``
    the mean chance of the same pairs. ``leak``: all test images against all training of the family.
    """

    axis: SplitAxis
    cells: Mapping[Value, CellAudit]
    blind: Mapping[Value, Mapping[Value, float]]
    across: float | None
    across_chance: float | None
    leak: Leak | None

    @property
    def pairs(self) -> int:
        """Number of pairs of different cells, trained and tested."""
        return sum(trained is not tested for trained, row in self.blind.items() for tested in row)


@dataclass(frozen=True, slots=True)
class Crossing:
    """Questions (same image, question and options) in training of one family and in the test of the other."""

    train: SplitAxis
    test: SplitAxis
    train_records: int
    shared: int


@dataclass(frozen=True, slots=True)
class Audit:
    """What is known about the data at ``place``.

    ``pictures``: images compared as pictures; None where they are not there. ``bad_images``: images that cannot be
    read, by reason. ``examples``: messages about bad records, the first of each file and reason.
    """

    place: str
    sources: Sequence[Source]
    families: Sequence[Family]
    crossings: Sequence[Crossing]
    pictures: int | None
    bad_images: Mapping[str, int]
    examples: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, with texts as keys, ready for JSON."""
        return {**_plain(asdict(self))}


def audit(
    place: Path, images: Path | None = None, *, cache_dir: Path, max_pixels: int = OmniMedVQAConfig.max_image_pixels
) -> Audit:
    """Reads and counts; 63,489 records take seconds, the first look at the pictures minutes.

    Args:
        place: OmniMedVQA's root, or a folder or file of the split layout. Records come from the split files, and from
            QA_information where there are none.
        images: the folder that image paths start from; by default ``place`` if it holds the folder Images.
        cache_dir: where what is known about pictures is kept, as ``load_omnimedvqa`` keeps it.
        max_pixels: larger pictures are not decoded.

    Raises:
        DataError: a place without usable files, or ``images`` without a single picture of the records.
    """
    parts = _read(place)
    root = images or (place if (place / "Images").is_dir() else None)
    found, bad_images = _pictures(root, parts, cache_dir, max_pixels) if root else ({}, {})
    pictures = found or None
    if images and not pictures:
        raise DataError(f"{images} holds none of the pictures that {place} names. Remedy: the folder above Images")
    families = {axis: [part for part in parts if part.axis is axis] for axis in SplitAxis}
    split = {axis: of_axis for axis, of_axis in families.items() if of_axis}
    unsplit = [part for part in parts if part.axis is None]
    sources = {f"{axis} splits".replace("_", " "): of_axis for axis, of_axis in split.items()}
    sources["QA_information"] = unsplit
    return Audit(
        place=str(place),
        sources=[_source(name, of_source) for name, of_source in sources.items() if of_source],
        families=[_family(axis, of_axis, pictures) for axis, of_axis in split.items()]
        or [_family(axis, _by_value(axis, unsplit), pictures) for axis in SplitAxis],
        crossings=list(_crossings(split)),
        pictures=len(found) or None,
        bad_images=bad_images,
        examples=_examples(bad for part in parts for bad in part.bad),
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """The readable records of one file (or of one cell), in training or test; all of QA_information has no axis."""

    axis: SplitAxis | None
    value: Value | None
    train: bool
    records: int
    questions: Sequence[Question]
    bad: Sequence[BadRecord] = ()
    files: int = 0
    images: frozenset[str] = frozenset()


def _read(place: Path) -> list[_Part]:
    """The split files, and QA_information where there is one."""
    if not place.exists():
        raise DataError(f"{place} does not exist. Remedy: OmniMedVQA's folder, or a folder of Med-R1's split files")
    splits, release = place / "Splits", place / "QA_information"
    if not splits.is_dir() and not release.is_dir():
        splits = place
    parts = [_part(file.reading, file) for file in (read_splits(splits) if splits.exists() else ())]
    return parts + ([_part(read_release(release))] if release.is_dir() else [])


def _part(reading: Reading, file: SplitFile | None = None) -> _Part:
    axis, value = (file.axis, file.value) if file else (None, None)
    unknown = Reason.UNKNOWN_QUESTION_TYPE if axis is SplitAxis.QUESTION_TYPE else Reason.UNKNOWN_MODALITY
    homeless = [q for q in reading.questions if (value if file else q.modality) is None]
    return _Part(
        axis=axis,
        value=value,
        train=file is not None and file.part == "train",
        records=len(reading.questions) + len(reading.bad),
        questions=[*reading.questions, *_repeating(reading.bad)],
        bad=[*reading.bad, *(q.rejected(unknown, f"the file gives {q.label}") for q in homeless)],
        files=reading.files,
        images=frozenset(reading.images),
    )


def _by_value(axis: SplitAxis, parts: Iterable[_Part]) -> list[_Part]:
    """Unsplit records as tests of each cell, for what can be said without a split."""
    cells: dict[Value, list[Question]] = defaultdict(list)
    for question in (question for part in parts for question in part.questions):
        value = question.modality if axis is SplitAxis.MODALITY else question.question_type
        if value is not None:
            cells[value].append(question)
    return [_Part(axis, value, False, len(questions), questions) for value, questions in cells.items()]


def _repeating(bad: Iterable[BadRecord]) -> Iterator[Question]:
    """The records that are refused for a repeated option, read again: the reader keeps their place only."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for record in bad:
        if record.reason is not Reason.DUPLICATE_OPTION:
            continue
        if record.file not in rows:
            rows[record.file] = json.loads(Path(record.file).read_bytes())
        row = rows[record.file][int(record.record.removeprefix("#").split()[0])]
        modality, question_type = None, None
        if "problem" in row:
            problem, image = parse_problem(row["problem"]), row["image"]
            question, options, answer = problem.question, problem.options, parse_solution(row["solution"])
        else:
            question, image, correct = row["question"].strip(), row["image_path"], option_meaning(row["gt_answer"])
            options = {key[-1]: text.strip() for key, text in row.items() if key.startswith("option_") and text}
            answer = next((letter for letter, text in options.items() if option_meaning(text) == correct), "")
            modality = parse_modality(row.get("modality_type") or "")
            question_type = parse_question_type(row["question_type"])
        if answer in options:
            yield Question(
                record.file, record.record, "", image, question, options, answer, modality, question_type, ""
            )


def _pictures(
    root: Path, parts: Iterable[_Part], cache_dir: Path, max_pixels: int
) -> tuple[dict[str, str], dict[str, int]]:
    """Picture (see ``image_index``) of each image that can be read; number of the others by reason."""
    paths = sorted(frozenset[str]().union(*(part.images for part in parts)))
    facts = check_images(root, paths, cache_dir, max_pixels=max_pixels).values()
    return group_by_content(facts), _count(fact.reason.value for fact in facts if fact.reason)


def _source(name: str, parts: Sequence[_Part]) -> Source:
    questions = [question for part in parts for question in part.questions]
    return Source(
        name=name,
        files=sum(part.files for part in parts),
        records=sum(part.records for part in parts),
        readable=len(questions),
        options=_option_counts(questions),
        repeats=sum(len(set(map(option_meaning, q.options.values()))) < len(q.options) for q in questions),
        cues=count_cues((q.options, q.answer) for q in questions),
        bad=_count(bad.reason.value for part in parts for bad in part.bad),
    )


def _family(axis: SplitAxis, parts: Sequence[_Part], pictures: Mapping[str, str] | None) -> Family:
    train, test = (_questions(part for part in parts if part.train is training) for training in (True, False))
    values: list[Value] = [value for value in _AXES[axis] if value in train or value in test]
    blind: dict[Value, dict[Value, float]] = {}
    for trained in (value for value in values if value in train):
        prior = OptionPrior.count((q.options, q.answer) for q in train[trained])
        blind[trained] = {tested: _blind(prior, test[tested]) for tested in values if tested in test}
    chances = {value: fmean(1 / len(q.options) for q in test[value]) for value in values if value in test}
    pairs = [(a, b) for a, row in blind.items() for b in row if a is not b]
    cells = {
        value: CellAudit(
            train=len(train[value]) if value in train else None,
            test=len(test[value]) if value in test else None,
            options=_option_counts(test.get(value, ())),
            chance=chances.get(value),
            cues=expected_accuracy((q.options, q.answer) for q in test[value]) if value in test else None,
            blind=blind.get(value, {}).get(value),
            leak=_leak(train.get(value), test.get(value), pictures),
        )
        for value in values
    }
    return Family(
        axis=axis,
        cells=cells,
        blind=blind,
        across=fmean(blind[a][b] for a, b in pairs) if pairs else None,
        across_chance=fmean(chances[b] for _, b in pairs) if pairs else None,
        leak=_leak(_joined(train), _joined(test), pictures),
    )


def _questions(parts: Iterable[_Part]) -> dict[Value | None, list[Question]]:
    """By value of the axis; None for a file called unknown. Empty files count as none."""
    questions: dict[Value | None, list[Question]] = defaultdict(list)
    for part in parts:
        if part.questions:
            questions[part.value] += part.questions
    return dict(questions)


def _joined(questions: Mapping[Value | None, list[Question]]) -> list[Question]:
    return [question for of_value in questions.values() for question in of_value]


def _leak(
    train: Sequence[Question] | None, test: Sequence[Question] | None, pictures: Mapping[str, str] | None
) -> Leak | None:
    """None where one of the two is not there."""
    if not train or not test:
        return None
    trained, tested = {q.image for q in train}, {q.image for q in test}
    by_picture = None
    if pictures is not None:
        # An image that cannot be read is at least the same as itself.
        known = {pictures.get(image, image) for image in trained}
        by_picture = sum(pictures.get(image, image) in known for image in tested)
    return Leak(len(tested), len(tested & trained), by_picture)


def _crossings(families: Mapping[SplitAxis, Sequence[_Part]]) -> Iterator[Crossing]:
    for train_axis, test_axis in permutations(families, 2):
        train = [q.content for q in _joined(_questions(part for part in families[train_axis] if part.train))]
        test = {q.content for q in _joined(_questions(part for part in families[test_axis] if not part.train))}
        yield Crossing(train_axis, test_axis, len(train), sum(content in test for content in train))


def _blind(prior: OptionPrior, test: Sequence[Question]) -> float:
    """Expected accuracy of the option with the best score, where ties are guessed."""
    total = 0.0
    for question in test:
        of_letter = {letter: prior.score(text) for letter, text in question.options.items()}
        best = max(of_letter.values())
        if of_letter[question.answer] == best:
            total += 1 / sum(score == best for score in of_letter.values())
    return total / len(test)


def _option_counts(questions: Iterable[Question]) -> dict[int, int]:
    return dict(sorted(Counter(len(question.options) for question in questions).items()))


def _count(reasons: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(reasons).items()))


def _examples(bad: Iterable[BadRecord]) -> list[str]:
    """The first of each file and reason."""
    return [str(record) for record in {(b.file, b.reason): b for b in reversed(list(bad))}.values()][::-1]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.value if isinstance(value, SplitAxis) else value
