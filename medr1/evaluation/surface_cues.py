"""Surface cues: what the typing of the options gives away, whatever they say.

In many OmniMedVQA questions the right option is the only one that begins in lower case, or the odd one out by its
closing full stop. The rules here look at the first and the last character of each option and at nothing else; they
are not learnt from any answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from medr1.domain.reasoning import ReasoningMode, target_text
from medr1.domain.records import Record
from medr1.evaluation.predictions import Condition, Prediction, prediction


@dataclass(frozen=True, slots=True)
class CueCount:
    """In ``n`` records the cue points to one option, and in ``right`` of these to the right one."""

    n: int = 0
    correct: int = 0


@dataclass(frozen=True, slots=True)
class CueCounts:
    """How often each cue is there, and how often it is right.

    ``lower_case``: exactly one option begins in lower case. ``odd_full_stop``: of three or more options exactly one
    differs from all others by its closing full stop. ``with_full_stop``: exactly one option closes with a full stop;
    ``without_full_stop``: exactly one does not. The last two also count pairs of two options, in which neither is the
    odd one: such a pair counts in both.
    """

    lower_case: CueCount
    odd_full_stop: CueCount
    with_full_stop: CueCount
    without_full_stop: CueCount


def cue_option(options: Mapping[str, str]) -> str | None:
    """The letter that the cues point to: the lower-case cue first, then the full stop; None where there is neither."""
    return lower_case_option(options) or odd_full_stop_option(options)


def lower_case_option(options: Mapping[str, str]) -> str | None:
    """The only option that begins in lower case; None if none or several do."""
    return _only([letter for letter, text in options.items() if text.lstrip()[:1].islower()])


def odd_full_stop_option(options: Mapping[str, str]) -> str | None:
    """The one of three or more options whose closing full stop, or lack of one, no other shares."""
    if len(options) < 3:
        return None
    stopped, others = _by_full_stop(options)
    return _only(stopped) or _only(others)


def count_cues(questions: Iterable[tuple[Mapping[str, str], str]]) -> CueCounts:
    """Counts the cues in (options, letter of the right one)."""
    found: dict[str, list[bool]] = {
        "lower_case": [],
        "odd_full_stop": [],
        "with_full_stop": [],
        "without_full_stop": [],
    }
    for options, answer in questions:
        stopped, others = _by_full_stop(options)
        pointed = {
            "lower_case": lower_case_option(options),
            "odd_full_stop": odd_full_stop_option(options),
            "with_full_stop": _only(stopped),
            "without_full_stop": _only(others),
        }
        for cue, letter in pointed.items():
            if letter is not None:
                found[cue].append(letter == answer)
    return CueCounts(**{cue: CueCount(len(rights), sum(rights)) for cue, rights in found.items()})


def expected_accuracy(questions: Iterable[tuple[Mapping[str, str], str]]) -> float:
    """Accuracy of the cues over (options, letter of the right one), with a uniform guess where there is no cue."""
    pointed = ((cue_option(options), options, answer) for options, answer in questions)
    return fmean(1 / len(options) if letter is None else float(letter == answer) for letter, options, answer in pointed)


def surface_cue_predictions(records: Iterable[Record], mode: ReasoningMode) -> list[Prediction]:
    """The control's answers as lines of a predictions file. Well-formed by construction, and no token is generated.

    Where no cue points anywhere, the text with the largest hash together with the record id is taken: reproducible,
    the same wherever the option stands, and at chance in the long run.
    """
    return [
        prediction(
            record,
            condition=Condition.SURFACE_CUES,
            reasoning=mode,
            text=target_text(mode, cue_option(record.options) or _any_option(record)),
            length=0,
            truncated=False,
        )
        for record in records
    ]


def _any_option(record: Record) -> str:
    def rank(letter: str) -> bytes:
        return hashlib.sha256(f"{record.id}\n{record.options[letter]}".encode()).digest()

    return max(record.options, key=rank)


def _by_full_stop(options: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Letters of the options with and without a closing full stop."""
    stopped = [letter for letter, text in options.items() if text.rstrip().endswith(".")]
    return stopped, [letter for letter in options if letter not in stopped]


def _only(letters: list[str]) -> str | None:
    return letters[0] if len(letters) == 1 else None
