"""Checks the claims of rationales on phantoms, whose image content is known.

A claim is a whole word of the phantoms' vocabulary, in any case; no word belongs to two attributes. A word that several
modalities share ("angiography") is true if this phantom has that value. Repetitions count once; two values of one
attribute ("left right") are two claims. All other words, plurals included, are unknown words. Grammar is ignored, so
that "no cyst" claims a cyst.
"""

from __future__ import annotations

import json
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
from medr1.evaluation.bootstrap import bootstrap_ratio, sums_by_cluster
from medr1.evaluation.predictions import Prediction
from medr1.evaluation.statistics import Estimate, wilson


class Attribute(StrEnum):
    """The attributes of a phantom, in the order in which its own rationale names them."""

    MODALITY = "modality"
    TECHNIQUE = "technique"
    ANATOMY = "anatomy"
    GRADE = "grade"
    FINDING = "finding"
    LOCATION = "location"


# The attribute that a question asks for. "Which imaging technique?" has the question type MODALITY.
QUESTION_ATTRIBUTE: dict[QuestionType, Attribute] = {
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
        for question_type, attribute in QUESTION_ATTRIBUTE.items()
        for modality in Modality
        for value in choices(question_type, modality)
    },
}
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Claim:
    """``text`` is spelt as in the vocabulary; its first occurrence is ``rationale[start:end]``."""

    attribute: Attribute
    text: str
    true: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class CheckedRationale:
    """One prediction with the claims of its rationale, which is empty if the completion has none."""

    record: Record
    prediction: Prediction
    rationale: str
    claims: tuple[Claim, ...]

    @property
    def predicted_text(self) -> str | None:
        """The text of the predicted option, None without a readable answer."""
        return None if self.prediction.parsed is None else self.record.options[self.prediction.parsed]

    @property
    def named(self) -> frozenset[str]:
        """The values that the rationale names for the attribute in question."""
        attribute = QUESTION_ATTRIBUTE[QuestionType(self.record.question_type)]
        return frozenset(c.text for c in self.claims if c.attribute is attribute)

    @property
    def comparable(self) -> bool:
        """There is an answer, and the rationale names the attribute in question."""
        return bool(self.named) and self.predicted_text is not None

    @property
    def contradicts(self) -> bool:
        """The rationale is comparable and names anything but the predicted value."""
        return self.comparable and self.named != {self.predicted_text}

    @property
    def correct_reason(self) -> bool:
        """The rationale names the correct value of the attribute in question and no other."""
        return self.named == {self.record.answer_text}

    def about(self, attribute: Attribute) -> list[Claim]:
        return [claim for claim in self.claims if claim.attribute is attribute]


@dataclass(frozen=True, slots=True)
class AttributeRates:
    """One attribute: number of claims, the share that is false, and the share of rationales that name it."""

    claims: int
    false_share: Estimate | None
    coverage: Estimate | None


@dataclass(frozen=True, slots=True)
class RationaleRates:
    """Rates over the rationales of ``n`` predictions on ``images`` images. None if there is nothing to count.

    ``no_answer``: predictions without a readable answer. ``with_rationale``: predictions with a rationale.
    ``accuracy``: over all ``n``. ``false_share``: false claims among all claims, the hallucination rate. Over all
    rationales: ``false_per_rationale`` (mean number of false claims), ``any_false`` (share with at least one),
    ``coverage`` (mean share of the six attributes that are named). ``unknown_share``: among all words.

    ``compared``: predictions with an answer and a rationale that names the attribute in question; ``compared_correct``
    of them are correct. ``contradiction``: share of them that name another value than the predicted one.
    ``correct_but_wrong_reason``: share of the correct ones whose rationale names a wrong value.
    ``wrong_but_correct_reason``: share of the wrong ones whose rationale names only the correct value.
    """

    n: int
    images: int
    no_answer: int
    with_rationale: int
    compared: int
    compared_correct: int
    claims: int
    accuracy: Estimate
    false_share: Estimate | None
    false_per_rationale: Estimate | None
    any_false: Estimate | None
    coverage: Estimate | None
    unknown_share: Estimate | None
    contradiction: Estimate | None
    correct_but_wrong_reason: Estimate | None
    wrong_but_correct_reason: Estimate | None
    by_attribute: dict[Attribute, AttributeRates]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


def claims(rationale: str, truth: Phantom) -> list[Claim]:
    """The claims of a rationale in their order, each true or false of the phantom."""
    values = {attribute: truth.value(question_type) for question_type, attribute in QUESTION_ATTRIBUTE.items()}
    values[Attribute.MODALITY] = NAMES[truth.modality]
    found: dict[str, Claim] = {}
    for match in _WORD.finditer(rationale):
        if match[0].casefold() in _VOCABULARY:
            attribute, text = _VOCABULARY[match[0].casefold()]
            found.setdefault(text, Claim(attribute, text, text == values[attribute], *match.span()))
    return list(found.values())


def check_rationales(predictions: Iterable[Prediction], records: Mapping[str, Record]) -> list[CheckedRationale]:
    """The predictions of one condition and reasoning mode with their records (``records``: by id) and claims.

    Raises:
        DataError: no predictions, several conditions or modes, or a record that is unknown, is not a phantom or is
            another question than the predicted one.
    """
    checked = []
    kinds = set()
    for line in predictions:
        kinds.add(f"{line.condition} ({line.reasoning.value})")
        record = records.get(line.record)
        if record is None:
            raise DataError(f"record {line.record} of the predictions is none of the test records; pass its own data")
        truth, *others = record.images
        if others or not isinstance(truth, Phantom):
            raise DataError(
                f"record {line.record}: image {record.image_key} is not a phantom; rationales can only be checked with "
                "data=phantoms"
            )
        expected, found = (truth.key, record.answer, len(record.options)), (line.image, line.answer, line.options)
        if expected != found or line.parsed not in {None, *record.options}:
            raise DataError(
                f"record {line.record}: image, answer and number of options are {expected} in the data and {found} in "
                f"the prediction ({line.parsed}); pass the records of the evaluation, with the same data.seed"
            )
        rationale = parse(line.text, line.reasoning, record.options).rationale
        checked.append(CheckedRationale(record, line, rationale, tuple(claims(rationale, truth))))
    if len(kinds) != 1:
        found_kinds = ", ".join(sorted(kinds)) or "no predictions"
        raise DataError(f"expected the predictions of one condition and reasoning mode, found: {found_kinds}")
    return checked


def rationale_rates(
    predictions: Sequence[Prediction], records: Mapping[str, Record], resamples: int = 2000, seed: int = 0
) -> RationaleRates:
    """The rates of one condition. Several runs may be pooled; for a cell, pass the predictions of the cell.

    The 95 % intervals are a percentile bootstrap over images, because the rationales of one image are correlated. If
    all images have rate 0, or all have rate 1, the Wilson interval with one trial per image is used, because a
    bootstrap would return a point.

    Raises:
        DataError: see ``check_rationales``.
    """
    checked = check_rationales(predictions, records)
    rationales = [r for r in checked if r.rationale]
    compared = [r for r in rationales if r.comparable]

    def ratio(
        part: Iterable[CheckedRationale], count: Callable[[CheckedRationale], tuple[int, int]]
    ) -> Estimate | None:
        """Sum of numerators over sum of denominators. Images without a denominator are left out."""
        counts = [(r.prediction.cluster, *pair) for r in part if (pair := count(r))[1]]
        if not counts:
            return None
        clusters, numerators, denominators = zip(*counts, strict=True)
        sums = sums_by_cluster(clusters, numerators, denominators)
        for rate in (0, 1):
            if (sums[:, 0] == rate * sums[:, 1]).all():
                return wilson(rate, len(sums))
        return bootstrap_ratio(sums, resamples=resamples, seed=seed)

    def share(part: Iterable[CheckedRationale], holds: Callable[[CheckedRationale], bool]) -> Estimate | None:
        return ratio(part, lambda r: (holds(r), 1))

    def of_attribute(attribute: Attribute) -> AttributeRates:
        return AttributeRates(
            claims=sum(len(r.about(attribute)) for r in rationales),
            false_share=ratio(rationales, lambda r: (_false(r.about(attribute)), len(r.about(attribute)))),
            coverage=share(rationales, lambda r: bool(r.about(attribute))),
        )

    accuracy = share(checked, lambda r: r.prediction.correct)
    assert accuracy is not None  # check_rationales returns at least one
    return RationaleRates(
        n=len(checked),
        images=len({r.prediction.image for r in checked}),
        no_answer=sum(r.prediction.parsed is None for r in checked),
        with_rationale=len(rationales),
        compared=len(compared),
        compared_correct=sum(r.prediction.correct for r in compared),
        claims=sum(len(r.claims) for r in rationales),
        accuracy=accuracy,
        false_share=ratio(rationales, lambda r: (_false(r.claims), len(r.claims))),
        false_per_rationale=ratio(rationales, lambda r: (_false(r.claims), 1)),
        any_false=share(rationales, lambda r: _false(r.claims) > 0),
        coverage=ratio(rationales, lambda r: (len({c.attribute for c in r.claims}), len(Attribute))),
        unknown_share=ratio(rationales, lambda r: _unknown_and_all_words(r.rationale)),
        contradiction=share(compared, lambda r: r.contradicts),
        correct_but_wrong_reason=share((r for r in compared if r.prediction.correct), lambda r: not r.correct_reason),
        wrong_but_correct_reason=share((r for r in compared if not r.prediction.correct), lambda r: r.correct_reason),
        by_attribute={attribute: of_attribute(attribute) for attribute in Attribute},
    )


def select_examples(
    predictions: Sequence[Prediction], records: Mapping[str, Record], n: int = 8, seed: int = 0
) -> list[CheckedRationale]:
    """At most ``n`` comparable examples for a gallery; the same input and seed give the same choice.

    The four combinations of correct and wrong answers with correct and wrong reasons take turns, as far as they occur.
    Within one, images, modalities and question types that were chosen least are preferred. The order is: correct answer
    with correct reason, correct with wrong, wrong with correct, wrong with wrong.

    Raises:
        DataError: see ``check_rationales``.
    """
    checked = sorted((r for r in check_rationales(predictions, records) if r.comparable), key=lambda r: r.record.id)
    candidates: dict[tuple[bool, bool], list[CheckedRationale]] = {
        (answer, reason): [] for answer in (True, False) for reason in (True, False)
    }
    for i in np.random.default_rng(seed).permutation(len(checked)):
        candidates[checked[i].prediction.correct, checked[i].correct_reason].append(checked[i])
    times_chosen: Counter[str] = Counter()
    chosen: dict[tuple[bool, bool], list[CheckedRationale]] = {kind: [] for kind in candidates}
    while any(candidates.values()) and sum(map(len, chosen.values())) < n:
        for kind, left in candidates.items():
            if left and sum(map(len, chosen.values())) < n:
                # min takes the first of equals, which is random by the permutation.
                best = min(left, key=lambda r: [times_chosen[key] for key in _diversity_keys(r)])
                # By identity, because pooled runs have equal predictions.
                candidates[kind] = [r for r in left if r is not best]
                chosen[kind].append(best)
                times_chosen.update(_diversity_keys(best))
    return [example for part in chosen.values() for example in part]


def _diversity_keys(checked: CheckedRationale) -> tuple[str, str, str]:
    record = checked.record
    return record.image_key, f"modality {record.modality}", f"question type {record.question_type}"


def _false(part: Sequence[Claim]) -> int:
    return sum(not claim.true for claim in part)


def _unknown_and_all_words(rationale: str) -> tuple[int, int]:
    words = _WORD.findall(rationale)
    return sum(word.casefold() not in _VOCABULARY for word in words), len(words)
