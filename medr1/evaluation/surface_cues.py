"""Surface cues: the correct option can often be guessed from how the options are typed, whatever they say.

In many OmniMedVQA questions the correct option is the only one that begins in lower case, or the only one with (or
without) a final full stop. The rules read the first and the last character of each option and are not fitted to
answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.evaluation.predictions import Condition, MultipleChoice, Prediction, baseline_prediction, hash_rank


@dataclass(frozen=True, slots=True)
class CueCount:
    """In ``n`` records the cue points to one option; in ``correct`` of these it is the correct one."""

    n: int = 0
    correct: int = 0


@dataclass(frozen=True, slots=True)
class CueCounts:
    """How often each cue occurs and points to the correct option.

    ``lower_case``: exactly one option begins in lower case. ``odd_full_stop``: of three or more options exactly one has
    a final full stop, or exactly one has none. ``with_full_stop``: exactly one option ends with a full stop;
    ``without_full_stop``: exactly one does not. A question with two options, one of them with a full stop, counts in
    both of the last two cues.
    """

    lower_case: CueCount
    odd_full_stop: CueCount
    with_full_stop: CueCount
    without_full_stop: CueCount


def cue_option(options: Mapping[str, str]) -> str | None:
    """The letter that the cues point to: lower case first, then the full stop. None without a cue."""
    return lower_case_option(options) or odd_full_stop_option(options)


def lower_case_option(options: Mapping[str, str]) -> str | None:
    """The only option that begins in lower case, or None."""
    return _only([letter for letter, text in options.items() if text.lstrip()[:1].islower()])


def odd_full_stop_option(options: Mapping[str, str]) -> str | None:
    """The only one of three or more options that ends with a full stop, or the only one that does not; else None."""
    return (_full_stop_option(options, True) or _full_stop_option(options, False)) if len(options) > 2 else None


def count_cues(questions: Sequence[MultipleChoice]) -> CueCounts:
    def count(cue: Callable[[Mapping[str, str]], str | None]) -> CueCount:
        hits = [letter == q.answer for q in questions if (letter := cue(q.options)) is not None]
        return CueCount(len(hits), sum(hits))

    return CueCounts(
        lower_case=count(lower_case_option),
        odd_full_stop=count(odd_full_stop_option),
        with_full_stop=count(lambda options: _full_stop_option(options, True)),
        without_full_stop=count(lambda options: _full_stop_option(options, False)),
    )


def expected_accuracy(questions: Iterable[MultipleChoice]) -> float:
    """Expected accuracy of the cues, with a uniform guess for questions that have no cue."""
    return fmean(
        1 / len(q.options) if (letter := cue_option(q.options)) is None else float(letter == q.answer)
        for q in questions
    )


def surface_cue_predictions(records: Iterable[Record], mode: ReasoningMode) -> list[Prediction]:
    """Predicts the option that the cues point to; without a cue, one chosen by ``hash_rank``."""

    def predict(record: Record) -> str:
        options = record.options
        return cue_option(options) or max(options, key=lambda letter: hash_rank(record, options[letter]))

    return [baseline_prediction(record, Condition.SURFACE_CUES, mode, predict(record)) for record in records]


def _full_stop_option(options: Mapping[str, str], ends: bool) -> str | None:
    """The only option whose text ends with a full stop (``ends``), or does not."""
    return _only([letter for letter, text in options.items() if text.rstrip().endswith(".") is ends])


def _only(letters: list[str]) -> str | None:
    return letters[0] if len(letters) == 1 else None
