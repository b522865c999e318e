"""Claims against the truth of one phantom, rates that can be counted by eye, and rationales with errors put in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from medr1.data.sources.phantoms.drawing import ANATOMIES, FINDINGS, GRADES, LOCATIONS
from medr1.data.sources.phantoms.records import NAMES, Phantom, World, make_phantom, make_record, make_records
from medr1.data.sources.phantoms.techniques import TECHNIQUES
from medr1.domain.reasoning import ReasoningMode, target_text
from medr1.domain.records import Modality, QuestionType, Record
from medr1.errors import DataError
from medr1.evaluation.predictions import Prediction, prediction
from medr1.evaluation.rationales import (
    QUESTION_ATTRIBUTE,
    Attribute,
    CheckedRationale,
    check_rationales,
    claims,
    rationale_rates,
    select_examples,
)
from medr1.evaluation.statistics import Estimate, wilson

KNEE = Phantom(World.TEST, 0, Modality.MRI, 0, "knee", "FLAIR", "nodule", "mild", "left", "A")
FUNDUS = Phantom(World.TEST, 0, Modality.FP, 0, "disc", "angiography", "cyst", "severe", "top", "B")
VALUES = {
    Attribute.MODALITY: set(NAMES.values()),
    Attribute.TECHNIQUE: {word for words in TECHNIQUES.values() for word in words},
    Attribute.ANATOMY: {word for words in ANATOMIES.values() for word in words},
    Attribute.GRADE: set(GRADES),
    Attribute.FINDING: set(FINDINGS),
    Attribute.LOCATION: set(LOCATIONS),
}


def question(phantom: Phantom, question_type: QuestionType) -> Record:
    return make_record(phantom, question_type, np.random.default_rng(0))


def line(
    record: Record,
    answer: str | None,
    rationale: str,
    mode: ReasoningMode = ReasoningMode.THINK_BEFORE,
    condition: str = "trained",
) -> Prediction:
    """A prediction that answers with the option of this text (None: with no letter)."""
    letter = next((letter for letter, text in record.options.items() if text == answer), "")
    return prediction(record, condition, mode, target_text(mode, letter, rationale), length=12, truncated=False)


def by_id(*records: Record) -> dict[str, Record]:
    return {record.id: record for record in records}


def found_claims(rationale: str, truth: Phantom = KNEE) -> list[tuple[str, str, bool]]:
    return [(c.attribute.value, c.text, c.true) for c in claims(rationale, truth)]


def test_each_word_of_the_world_stands_for_one_value_of_one_attribute() -> None:
    words = Counter(word.casefold() for values in VALUES.values() for word in values)
    assert set(words.values()) == {1}
    for attribute, values in VALUES.items():
        for word in values:
            assert [(c.attribute, c.text) for c in claims(f"It is {word}.", KNEE)] == [(attribute, word)]


def test_the_rationale_of_a_phantom_is_true_in_all_six_attributes() -> None:
    for modality in Modality:
        for index in range(20):
            phantom = make_phantom(World.TEST, 0, modality, index)
            found = claims(phantom.rationale, phantom)
            assert [c.attribute for c in found] == list(Attribute)
            assert all(c.true for c in found)
            assert [phantom.rationale[c.start : c.end] for c in found] == phantom.rationale.split()


def test_each_claim_is_checked_for_itself() -> None:
    assert found_claims("CT FLAIR spine mild cyst left") == [
        ("modality", "CT", False),
        ("technique", "FLAIR", True),
        ("anatomy", "spine", False),
        ("grade", "mild", True),
        ("finding", "cyst", False),
        ("location", "left", True),
    ]


@pytest.mark.parametrize(
    ("rationale", "found"),
    [
        ("", []),
        ("I see it clearly", []),
        ("Mild, flair; KNEE.", [("grade", "mild", True), ("technique", "FLAIR", True), ("anatomy", "knee", True)]),
        ("left-sided T2-FLAIR", [("location", "left", True), ("technique", "FLAIR", True)]),
        ("nodules, leftmost, kneecap, mild_nodule", []),
        ("OCT", [("modality", "OCT", False)]),
        ("unpolarized", [("technique", "unpolarized", False)]),
        ("left right", [("location", "left", True), ("location", "right", False)]),
        ("top top Top nodule nodule", [("location", "top", False), ("finding", "nodule", True)]),
        ("no cyst", [("finding", "cyst", False)]),
    ],
)
def test_which_words_are_claims(rationale: str, found: list[tuple[str, str, bool]]) -> None:
    assert found_claims(rationale) == found


def test_a_word_of_several_modalities_is_true_where_the_phantom_has_that_value() -> None:
    assert found_claims("angiography", FUNDUS) == found_claims(
        "angiography", replace(KNEE, modality=Modality.CT, technique="angiography")
    )
    assert found_claims("angiography", FUNDUS) == [("technique", "angiography", True)]
    assert found_claims("angiography") == [("technique", "angiography", False)]


def test_positions_are_those_in_the_rationale() -> None:
    text = "Seen: a  Mild cyst, mild"
    assert [(c.text, text[c.start : c.end], c.start) for c in claims(text, KNEE)] == [
        ("mild", "Mild", 9),
        ("cyst", "cyst", 14),
    ]


WHERE = question(KNEE, QuestionType.ATTRIBUTES)
WHAT = question(KNEE, QuestionType.DISEASE)
GRADE = question(FUNDUS, QuestionType.LESION)
HOW = question(FUNDUS, QuestionType.MODALITY)
BODY = question(FUNDUS, QuestionType.ANATOMY)
FIVE = by_id(WHERE, WHAT, GRADE, HOW, BODY)
LINES = [
    line(WHERE, "left", "MRI FLAIR knee mild nodule left"),  # all true, and so answered
    line(WHAT, "nodule", "MRI FLAIR spine mild cyst left"),  # two false; names cyst, answers nodule: correct
    line(GRADE, "mild", "severe"),  # one claim, true; the answer is another one and wrong
    line(HOW, "colour", "the colour"),  # one claim, false, and so answered; one unknown word
    line(BODY, None, "top or left of the disc"),  # no answer; one of two locations false; three unknown words
]


def value(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.value


def test_the_rates_by_counting() -> None:
    rates = rationale_rates(LINES, FIVE)
    assert (rates.n, rates.images, rates.no_answer, rates.with_rationale) == (5, 2, 1, 5)
    assert (rates.compared, rates.compared_correct, rates.claims) == (4, 2, 17)
    assert value(rates.accuracy) == pytest.approx(2 / 5)
    assert value(rates.false_share) == pytest.approx(4 / 17)
    assert value(rates.false_per_rationale) == pytest.approx(4 / 5)
    assert value(rates.any_false) == pytest.approx(3 / 5)
    assert value(rates.coverage) == pytest.approx((1 + 1 + 1 / 6 + 1 / 6 + 2 / 6) / 5)
    assert value(rates.unknown_share) == pytest.approx(4 / 21)
    assert value(rates.contradiction) == pytest.approx(2 / 4)
    assert value(rates.correct_but_wrong_reason) == pytest.approx(1 / 2)
    assert value(rates.wrong_but_correct_reason) == pytest.approx(1 / 2)


def test_the_rates_of_each_attribute_by_counting() -> None:
    found = rationale_rates(LINES, FIVE).by_attribute
    assert list(found) == list(Attribute)
    assert {a.value: (r.claims, value(r.false_share), value(r.coverage)) for a, r in found.items()} == {
        "modality": (2, 0.0, 2 / 5),
        "technique": (3, pytest.approx(1 / 3), 3 / 5),
        "anatomy": (3, pytest.approx(1 / 3), 3 / 5),
        "grade": (3, 0.0, 3 / 5),
        "finding": (2, 0.5, 2 / 5),
        "location": (4, 0.25, 3 / 5),
    }


@pytest.mark.parametrize("mode", [ReasoningMode.THINK_BEFORE, ReasoningMode.THINK_AFTER])
@pytest.mark.parametrize(
    ("answer", "rationale", "comparable", "contradicts", "correct_reason"),
    [
        ("left", "a nodule to the left", True, False, True),
        ("left", "a nodule to the right", True, True, False),
        ("right", "a nodule to the left", True, True, True),
        ("right", "a nodule to the right", True, False, False),
        ("right", "a nodule to the top", True, True, False),
        # Naming both is no reason for either.
        ("left", "left or right", True, True, False),
        ("right", "left or right", True, True, False),
        # The attribute in question is not named, or there is no answer.
        ("left", "a mild cyst", False, False, False),
        (None, "a nodule to the left", False, False, True),
        ("left", "", False, False, False),
    ],
)
def test_answer_against_rationale(
    mode: ReasoningMode, answer: str | None, rationale: str, comparable: bool, contradicts: bool, correct_reason: bool
) -> None:
    (reading,) = check_rationales([line(WHERE, answer, rationale, mode)], by_id(WHERE))
    assert reading.rationale == rationale
    assert (reading.comparable, reading.contradicts, reading.correct_reason) == (
        comparable,
        contradicts,
        correct_reason,
    )


def test_the_correct_option_names_the_attribute_in_question() -> None:
    for modality in Modality:
        phantom = make_phantom(World.TEST, 1, modality, 0)
        for question_type, attribute in QUESTION_ATTRIBUTE.items():
            record = question(phantom, question_type)
            (reading,) = check_rationales([line(record, record.answer_text, phantom.rationale)], by_id(record))
            assert reading.named == {record.answer_text} and record.answer_text in VALUES[attribute]


def test_rationales_that_are_not_there_are_counted_apart() -> None:
    lines = [
        line(WHERE, "left", ""),
        line(WHAT, "cyst", "cyst", ReasoningMode.THINK_BEFORE),
        prediction(GRADE, "trained", ReasoningMode.THINK_BEFORE, "<think>severe", 3, truncated=True),
    ]
    rates = rationale_rates(lines, FIVE)
    assert (rates.n, rates.no_answer, rates.with_rationale, rates.compared) == (3, 1, 1, 1)
    assert value(rates.any_false) == 1.0
    assert value(rates.accuracy) == pytest.approx(1 / 3)
    assert rates.correct_but_wrong_reason is None and value(rates.wrong_but_correct_reason) == 0.0


def test_without_any_rationale_only_the_accuracy_is_known() -> None:
    rates = rationale_rates([line(WHERE, "left", "", ReasoningMode.NO_THINK)], FIVE)
    assert value(rates.accuracy) == 1.0
    assert rates.with_rationale == rates.claims == rates.compared == 0
    missing = (rates.false_share, rates.false_per_rationale, rates.any_false, rates.coverage, rates.unknown_share)
    assert {*missing, rates.contradiction, rates.correct_but_wrong_reason, rates.wrong_but_correct_reason} == {None}
    assert {(r.claims, r.false_share, r.coverage) for r in rates.by_attribute.values()} == {(0, None, None)}


def test_errors_put_in_are_found_again() -> None:
    """Each attribute is replaced by a wrong value with a probability of its own; all counts are known beforehand."""
    rng = np.random.default_rng(4)
    chance = dict(zip(Attribute, (0.05, 0.2, 0.4, 0.6, 0.8, 1.0), strict=True))
    records = make_records(World.TEST, 0, 10)
    lines, wrong, affected, contradictions = [], Counter[Attribute](), 0, 0
    for record in records:
        assert isinstance(record.images[0], Phantom)
        words = dict(zip(Attribute, record.images[0].rationale.split(), strict=True))
        changed = [a for a in Attribute if rng.random() < chance[a]]
        for attribute in changed:
            words[attribute] = str(rng.choice(sorted(VALUES[attribute] - {words[attribute]})))
        answer = str(rng.choice(list(record.options.values())))
        lines.append(line(record, answer, " ".join(words.values()), ReasoningMode.THINK_AFTER))
        wrong.update(changed)
        affected += bool(changed)
        contradictions += words[QUESTION_ATTRIBUTE[record.question_type]] != answer
    rates = rationale_rates(lines, by_id(*records))
    n = len(records)
    assert (rates.n, rates.images, rates.claims, rates.compared) == (n, 80, 6 * n, n)
    assert value(rates.false_share) == pytest.approx(wrong.total() / (6 * n))
    assert value(rates.any_false) == pytest.approx(affected / n)
    assert value(rates.contradiction) == pytest.approx(contradictions / n)
    for attribute, found in rates.by_attribute.items():
        assert value(found.false_share) == pytest.approx(wrong[attribute] / n)
        assert found.false_share is not None
        assert found.false_share.low <= chance[attribute] <= found.false_share.high


def questions(images: int) -> list[Record]:
    return [r for r in make_records(World.TEST, 0, images) if r.modality is Modality.MRI]


def test_the_interval_is_that_of_a_bootstrap_over_images() -> None:
    """Against the plain loop: draw images, add up their claims, divide."""
    rng = np.random.default_rng(1)
    records = questions(15)
    lines, counts = [], dict[str, list[tuple[int, int]]]()
    for record in records:
        assert isinstance(record.images[0], Phantom)
        words = [w if rng.random() < 0.7 else "CT" for w in record.images[0].rationale.split()]
        lines.append(line(record, record.answer_text, " ".join(words)))
        counts.setdefault(record.image_key, []).append(("CT" in words, len(set(words))))
    images = list(counts.values())
    ratios = []
    for _ in range(8000):
        drawn = [pair for i in rng.integers(len(images), size=len(images)) for pair in images[i]]
        ratios.append(sum(part for part, _ in drawn) / sum(whole for _, whole in drawn))
    found = rationale_rates(lines, by_id(*records), resamples=8000).false_share
    assert found is not None
    assert (found.low, found.high) == pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=0.15 * np.std(ratios))


def test_the_same_rationale_five_times_on_an_image_has_the_interval_of_one() -> None:
    records = questions(40)
    words = {r.image_key: "CT" if i % 3 else "MRI" for i, r in enumerate(records[::5])}
    lines = [line(r, r.answer_text, words[r.image_key]) for r in records]
    five, one = (rationale_rates(part, by_id(*records)) for part in (lines, lines[::5]))
    assert (five.n, one.n, five.images) == (200, 40, 40)
    assert five.any_false == one.any_false
    assert five.any_false is not None and five.any_false.low < 26 / 40 < five.any_false.high


def test_where_all_images_agree_the_interval_is_no_point() -> None:
    records = questions(12)
    true, false = (
        rationale_rates([line(r, r.answer_text, w) for r in records], by_id(*records)) for w in ("MRI", "CT")
    )
    for estimate, images in ((true.any_false, 0), (false.any_false, 12), (true.false_share, 0), (true.accuracy, 12)):
        assert estimate == wilson(images / 12, 12)


@pytest.mark.parametrize(
    ("change", "records", "message"),
    [
        (lambda p: [], FIVE, "no predictions"),
        (lambda p: [p, replace(p, condition="base")], FIVE, "found: base .think_before., trained .think_before."),
        (lambda p: [p, replace(p, reasoning=ReasoningMode.THINK_AFTER)], FIVE, "think_after.*think_before"),
        (lambda p: [p], {}, f"record {WHERE.id} of the predictions is none of the test records"),
        (lambda p: [replace(p, image="phantom/test-1/mri/00000/scanner-A")], FIVE, "data.seed"),
        (lambda p: [replace(p, options=3)], FIVE, r"4\) in the data and .*3\) in the prediction"),
        (lambda p: [replace(p, parsed="J", correct=False)], FIVE, r"prediction \(J\)"),
        (lambda p: [replace(p, answer=_other(p.answer), correct=False)], FIVE, "pass the records"),
    ],
)
def test_predictions_and_records_must_belong_together(
    change: Callable[[Prediction], list[Prediction]], records: Mapping[str, Record], message: str
) -> None:
    for use in (rationale_rates, select_examples):
        with pytest.raises(DataError, match=message):
            use(change(LINES[0]), records)


def _other(letter: str) -> str:
    return "A" if letter != "A" else "B"


class Photograph:
    """An image with unknown content."""

    key = "images/1.png"

    def load(self, side: int) -> None:
        raise AssertionError("must not be loaded")


def test_an_image_with_unknown_content_is_refused() -> None:
    record = replace(WHERE, images=(Photograph(),))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"images/1.png is not a phantom"):
        rationale_rates([line(record, "left", "left")], by_id(record))


RECORDS = make_records(World.TEST, 0, 4)


def mixed() -> list[Prediction]:
    """All four combinations of correct and wrong answers with correct and wrong reasons, over all cells."""
    lines = []
    for i, record in enumerate(RECORDS):
        wrong = next(text for text in record.options.values() if text != record.answer_text)
        answer, reason = [(record.answer_text, wrong)[k] for k in (i % 2, i // 2 % 2)]
        lines.append(line(record, answer, f"I see {reason}" if i % 7 else "I see nothing"))
    return lines


def corner(reading: CheckedRationale) -> tuple[bool, bool]:
    return reading.prediction.correct, reading.correct_reason


def test_the_gallery_shows_all_four_kinds_and_many_modalities() -> None:
    shown = select_examples(mixed(), by_id(*RECORDS), n=8)
    assert [corner(r) for r in shown] == [(a, b) for a in (True, False) for b in (True, False) for _ in range(2)]
    assert len({r.record.modality for r in shown}) == 8 == len({r.record.image_key for r in shown})
    assert all(r.comparable and r.claims and r.prediction.record == r.record.id for r in shown)
    assert {r.record.question_type for r in select_examples(mixed(), by_id(*RECORDS), n=16)} == set(QuestionType)


@pytest.mark.parametrize("seed", range(5))
def test_the_gallery_repeats_no_image_or_question_type_before_it_must(seed: int) -> None:
    records = questions(4)
    lines = [line(r, r.answer_text, r.rationale) for r in records]
    shown = [r.record for r in select_examples(lines, by_id(*records), n=4, seed=seed)]
    assert len({r.image_key for r in shown}) == len({r.question_type for r in shown}) == 4


def test_the_gallery_depends_on_its_seed_alone() -> None:
    lines, records = mixed(), by_id(*RECORDS)
    first = select_examples(lines, records, n=8)
    assert select_examples(lines[::-1], records, n=8) == first
    assert select_examples(lines, records, n=8, seed=1) != first


def test_the_gallery_takes_what_there_is() -> None:
    lines = mixed()
    comparable = [r for r in check_rationales(lines, by_id(*RECORDS)) if r.comparable]
    everything = select_examples(lines, by_id(*RECORDS), n=10_000)
    assert sorted(r.record.id for r in everything) == sorted(r.record.id for r in comparable)
    # Two runs that answer alike, pooled.
    assert len(select_examples(lines + lines, by_id(*RECORDS), n=10_000)) == 2 * len(comparable)
    correct = [r.prediction for r in comparable if corner(r) == (True, True)]
    assert [corner(r) for r in select_examples(correct, by_id(*RECORDS), n=5)] == [(True, True)] * 5
    assert [len(select_examples(lines, by_id(*RECORDS), n=n)) for n in (0, 1, 6)] == [0, 1, 6]


def test_rates_are_plain_json() -> None:
    plain = rationale_rates(LINES, FIVE).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert {type(key) for key in plain["by_attribute"]} == {str}
    assert plain["by_attribute"]["finding"]["false_share"]["value"] == 0.5
    assert plain["contradiction"].keys() == {"value", "low", "high"}
