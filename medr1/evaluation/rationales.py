"""Rationales under test: on phantoms every claim of a rationale can be checked against the truth about its picture.

A claim is a word of the phantoms' vocabulary: a whole word, in any case, since no two words of it differ only in case
and none belongs to two attributes. A word that several modalities share ("angiography") is one claim, true if this
phantom has that value. A claim made again counts once; two values of one attribute ("left right") are two claims. All
other words, plurals included, are unknown and claim nothing. Grammar is not read, so "no cyst" claims a cyst.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from medr1.data.sources.phantoms.records import NAMES, Phantom, choices
from medr1.domain.reasoning import parse
from medr1.domain.records import Modality, QuestionType, Record
from medr1.errors import DataError
from medr1.evaluation.predictions import Prediction
from medr1.evaluation.statistics import wilson
from medr1.evaluation.tables import Estimate


class Attribute(StrEnum):
    """What a rationale can name, in the order in which a phantom's own rationale names it."""

    MODALITY = "modality"
    TECHNIQUE = "technique"
    ANATOMY = "anatomy"
    GRADE = "grade"
    FINDING = "finding"
    LOCATION = "location"


# What a question asks about. "Which imaging technique?" is the question type MODALITY; none asks for its name.
ASKED: dict[QuestionType, Attribute] = {
    QuestionType.ANATOMY: Attribute.ANATOMY,
    QuestionType.DISEASE: Attribute.FINDING,
    QuestionType.LESION: Attribute.GRADE,
    QuestionType.MODALITY: Attribute.TECHNIQUE,
    QuestionType.ATTRIBUTES: Attribute.LOCATION,
}
_VOCABULARY: dict[str, tuple[Attribute, str]] = {
    **{name.casefold(): (Attribute.MODALITY, name) for name in NAMES.values()},
    **{
        value.casefold(): (attribute, value)
        for question_type, attribute in ASKED.items()
        for modality in Modality
        for value in choices(question_type, modality)
    },
}
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Claim:
    """``text`` is the value as the vocabulary spells it; it stands at ``rationale[start:end]``, first time only."""

    attribute: Attribute
    text: str
    true: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Reading:
    """One prediction whose rationale was read; ``rationale`` is empty where the completion has none."""

    record: Record
    prediction: Prediction
    rationale: str
    claims: tuple[Claim, ...]

    @property
    def answered(self) -> str | None:
        """The text of the option answered, None where no answer was read."""
        return None if self.prediction.parsed is None else self.record.options[self.prediction.parsed]

    @property
    def said(self) -> frozenset[str]:
        """The values named for the attribute that the question asks about."""
        return frozenset(c.text for c in self.claims if c.attribute is ASKED[self.record.question_type])

    @property
    def comparable(self) -> bool:
        """There is an answer, and the rationale names the attribute that the question asks about."""
        return bool(self.said) and self.answered is not None

    @property
    def contradicts(self) -> bool:
        """A comparable rationale names another value than the one answered; naming both supports neither."""
        return self.comparable and self.said != {self.answered}

    @property
    def right_reason(self) -> bool:
        """The rationale names the right value of the attribute asked about, and no other."""
        return self.said == {self.record.answer_text}


@dataclass(frozen=True, slots=True)
class AttributeRates:
    """One attribute: its claims, the share of them that are false, the share of rationales that name it."""

    claims: int
    false_share: Estimate | None
    coverage: Estimate | None


@dataclass(frozen=True, slots=True)
class RationaleRates:
    """What the rationales of ``n`` predictions on ``images`` pictures are worth. None where there is nothing to count.

    ``no_answer`` predictions have no readable answer, ``with_rationale`` have a rationale that is not empty.
    ``accuracy`` is of all ``n``. Of all claims: ``false_share`` (the hallucination rate). Of all rationales:
    ``false_per_rationale`` (mean number of false claims), ``any_false`` (share with at least one), ``coverage`` (mean
    share of the six attributes that are named). Of all words: ``unknown_share``.

    ``compared`` predictions have an answer and a rationale that names the attribute asked about; ``compared_right`` of
    them are right. ``contradiction``: share of them that name another value than the one answered.
    ``right_but_wrong_reason``: share of the right ones whose rationale names a wrong value;
    ``wrong_but_right_reason``: share of the wrong ones whose rationale names the right value and no other.
    """

    n: int
    images: int
    no_answer: int
    with_rationale: int
    compared: int
    compared_right: int
    claims: int
    accuracy: Estimate
    false_share: Estimate | None
    false_per_rationale: Estimate | None
    any_false: Estimate | None
    coverage: Estimate | None
    unknown_share: Estimate | None
    contradiction: Estimate | None
    right_but_wrong_reason: Estimate | None
    wrong_but_right_reason: Estimate | None
    by_attribute: dict[Attribute, AttributeRates]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        values = asdict(self)
        return {**values, "by_attribute": {key.value: rates for key, rates in values["by_attribute"].items()}}


def claims(rationale: str, truth: Phantom) -> list[Claim]:
    """The claims of a rationale in their order, each with its truth."""
    values = {attribute: truth.value(question_type) for question_type, attribute in ASKED.items()}
    values[Attribute.MODALITY] = NAMES[truth.modality]
    found: dict[str, Claim] = {}
    for match in _WORD.finditer(rationale):
        if known := _VOCABULARY.get(match[0].casefold()):
            attribute, text = known
            found.setdefault(text, Claim(attribute, text, text == values[attribute], *match.span()))
    return list(found.values())


def read_rationales(predictions: Iterable[Prediction], records: Mapping[str, Record]) -> list[Reading]:
    """The predictions of one condition and reasoning mode with their records (``records``: by id) and claims.

    Raises:
        DataError: no predictions, several conditions or modes, a record that is unknown, is no phantom or is another
            question than the one that was answered.
    """
    readings = []
    kinds = set()
    for line in predictions:
        kinds.add(f"{line.condition} ({line.reasoning.value})")
        record = records.get(line.record)
        if record is None:
            raise DataError(f"record {line.record} of the predictions is none of the test records; pass its own data")
        truth = record.image
        if not isinstance(truth, Phantom):
            raise DataError(
                f"record {line.record}: its picture {truth.key} is no phantom, so the claims of a rationale cannot be "
                "checked; rationales are tested with data=phantoms only"
            )
        answer = (truth.key, record.answer, len(record.options))
        if answer != (line.image, line.answer, line.options) or line.parsed not in {None, *record.options}:
            raise DataError(
                f"record {line.record} asks about {truth.key}, right is {record.answer} of {len(record.options)}; the "
                f"prediction ({line.parsed}) is about {line.image}, right is {line.answer} of {line.options}; "
                "pass the records, with the same data.seed, that were evaluated"
            )
        rationale = parse(line.text, line.reasoning, record.options).rationale
        readings.append(Reading(record, line, rationale, tuple(claims(rationale, truth))))
    if len(kinds) != 1:
        found = ", ".join(sorted(kinds)) or "no prediction at all"
        raise DataError(f"expected the predictions of one condition and reasoning mode, found: {found}")
    return readings


def rationale_rates(
    predictions: Sequence[Prediction], records: Mapping[str, Record], resamples: int = 2000, seed: int = 0
) -> RationaleRates:
    """The rates of one condition; several runs may be pooled. For a cell, pass the predictions of the cell.

    The 95 % intervals are a percentile bootstrap over images, because the rationales of one picture are much alike: a
    share taken as one of independent rationales would look surer than it is. Where every image gives 0, or every one
    gives 1, it is Wilson's interval with one trial for each image, as a bootstrap cannot know what it has never seen.

    Raises:
        DataError: see ``read_rationales``.
    """
    readings = read_rationales(predictions, records)
    spoken = [r for r in readings if r.rationale]
    compared = [r for r in spoken if r.comparable]

    def ratio(part: Iterable[Reading], count: Callable[[Reading], tuple[int, int]]) -> Estimate | None:
        return _ratio([(r.prediction.image, *count(r)) for r in part], resamples, seed)

    def share(part: Iterable[Reading], holds: Callable[[Reading], bool]) -> Estimate | None:
        return ratio(part, lambda r: (holds(r), 1))

    def of_attribute(attribute: Attribute) -> AttributeRates:
        return AttributeRates(
            claims=sum(len(_about(r, attribute)) for r in spoken),
            false_share=ratio(spoken, lambda r: _false_of(_about(r, attribute))),
            coverage=share(spoken, lambda r: bool(_about(r, attribute))),
        )

    accuracy = share(readings, lambda r: r.prediction.correct)
    assert accuracy is not None  # read_rationales returns at least one
    return RationaleRates(
        n=len(readings),
        images=len({r.prediction.image for r in readings}),
        no_answer=sum(r.prediction.parsed is None for r in readings),
        with_rationale=len(spoken),
        compared=len(compared),
        compared_right=sum(r.prediction.correct for r in compared),
        claims=sum(len(r.claims) for r in spoken),
        accuracy=accuracy,
        false_share=ratio(spoken, lambda r: (_false(r), len(r.claims))),
        false_per_rationale=ratio(spoken, lambda r: (_false(r), 1)),
        any_false=share(spoken, lambda r: _false(r) > 0),
        coverage=ratio(spoken, lambda r: (len({c.attribute for c in r.claims}), len(Attribute))),
        unknown_share=ratio(spoken, lambda r: _unknown_of_all_words(r.rationale)),
        contradiction=share(compared, lambda r: r.contradicts),
        right_but_wrong_reason=share((r for r in compared if r.prediction.correct), lambda r: not r.right_reason),
        wrong_but_right_reason=share((r for r in compared if not r.prediction.correct), lambda r: r.right_reason),
        by_attribute={attribute: of_attribute(attribute) for attribute in Attribute},
    )


def gallery(
    predictions: Sequence[Prediction], records: Mapping[str, Record], n: int = 8, seed: int = 0
) -> list[Reading]:
    """At most ``n`` examples to look at, where answer and rationale can be compared.

    The four combinations of right and wrong answers with right and wrong reasons take turns as far as they occur;
    within one, new pictures come first, then modalities and question types shown least. The order is: right answer
    with right reason, right with wrong, wrong with right, wrong with wrong. The same input and seed, the same choice.

    Raises:
        DataError: see ``read_rationales``.
    """
    readings = sorted((r for r in read_rationales(predictions, records) if r.comparable), key=lambda r: r.record.id)
    rng = np.random.default_rng(seed)
    left: dict[tuple[bool, bool], list[Reading]] = {(a, b): [] for a in (True, False) for b in (True, False)}
    for i in rng.permutation(len(readings)):
        left[_corner(readings[i])].append(readings[i])
    shown: Counter[str] = Counter()
    chosen: dict[tuple[bool, bool], list[Reading]] = {corner: [] for corner in left}
    taken = 0
    while taken < n and any(left.values()):
        for corner, candidates in left.items():
            if candidates and taken < n:
                # min takes the first of equals: the one that the permutation put first.
                best = min(candidates, key=lambda r: [shown[key] for key in _seen(r)])
                # By identity: pooled runs hold equal predictions.
                left[corner] = [r for r in candidates if r is not best]
                chosen[corner].append(best)
                shown.update(_seen(best))
                taken += 1
    return [reading for part in chosen.values() for reading in part]


def _corner(reading: Reading) -> tuple[bool, bool]:
    return reading.prediction.correct, reading.right_reason


def _seen(reading: Reading) -> tuple[str, str, str]:
    record = reading.record
    return record.image.key, f"modality {record.modality}", f"question type {record.question_type}"


def _about(reading: Reading, attribute: Attribute) -> list[Claim]:
    return [c for c in reading.claims if c.attribute is attribute]


def _false_of(part: Sequence[Claim]) -> tuple[int, int]:
    return sum(not c.true for c in part), len(part)


def _false(reading: Reading) -> int:
    return _false_of(reading.claims)[0]


def _unknown_of_all_words(rationale: str) -> tuple[int, int]:
    words = _WORD.findall(rationale)
    return sum(word.casefold() not in _VOCABULARY for word in words), len(words)


def _ratio(counts: Sequence[tuple[str, int, int]], resamples: int, seed: int) -> Estimate | None:
    """Sum of numerators over sum of denominators, from (image, numerator, denominator), bootstrap over images."""
    of_image: dict[str, tuple[int, int]] = {}
    for image, more_part, more_whole in counts:
        if more_whole:  # an image that has nothing to count is no cluster, so that no resample divides by zero
            before = of_image.get(image, (0, 0))
            of_image[image] = before[0] + more_part, before[1] + more_whole
    if not of_image:
        return None
    # Images with the same counts are exchangeable: draw how often each kind occurs (as in paired_difference).
    kinds, occurrences = np.unique(np.array(list(of_image.values())), axis=0, return_counts=True)
    part, whole = kinds[:, 0], kinds[:, 1]
    images = len(of_image)
    value = float(occurrences @ part / (occurrences @ whole))
    if not part.any() or (part == whole).all():
        return Estimate(value, *wilson(round(value) * images, images))
    draws = np.random.default_rng(seed).multinomial(images, occurrences / images, size=resamples)
    low, high = np.quantile((draws @ part) / (draws @ whole), [0.025, 0.975])
    return Estimate(value, float(low), float(high))
