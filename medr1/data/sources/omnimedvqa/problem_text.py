"""Parses Med-R1's problem strings, e.g. ``What is shown? A)lung, left, B)heart, C)Eosin (H&E) stain``.

A problem is the question, a space, and the options joined by ``", "``, each after its letter and ``)``. Options contain
commas and parentheses, so neither can be split on. A letter and ``)`` is a label if it

- stands at the start or after white space (first label) or after a comma, semicolon or line break (later labels), and
- does not close a parenthesis: in ``(H&E)`` and ``hepatitis (A, B)`` the letter belongs to the option.

Labels must be distinct and without gaps (A to D, in any order). Otherwise the problem is rejected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from medr1.domain.records import LETTERS

_LABEL = re.compile(rf"(?P<separator>^|[,;\n]\s*|\s)(?P<letter>[{LETTERS}])\)")
_PARENTHESIS = re.compile(r"[()]")
_ANSWER = re.compile(rf"\s*<answer>\s*([{LETTERS}])\s*</answer>\s*")


class Problem(NamedTuple):
    """A question and its options by letter, in the order of the text."""

    question: str
    options: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Label:
    """A label in the text, from the start of its separator to the end of ``)``."""

    letter: str
    start: int
    end: int
    can_be_first: bool
    can_be_later: bool


def parse_problem(text: str) -> Problem:
    """Splits a problem string into question and options.

    If the question itself contains labels ("Compare A) and B) ..."), the reading with the most options is used, and
    the last of several such readings. An unclosed parenthesis hides the labels after it; parentheses are ignored only
    if there is no reading that respects them.

    Raises:
        ValueError: no options, or labels that repeat or leave gaps.
    """
    for respect_parentheses in (True, False):
        labels = _labels(text, respect_parentheses)
        readings = [
            reading for i, label in enumerate(labels) if label.can_be_first and (reading := _reading(labels, i))
        ]
        if readings:
            best = max(readings, key=lambda reading: (len(reading), reading[0].start))
            ends = [label.start for label in best[1:]] + [len(text)]
            options = {label.letter: text[label.end : end].strip() for label, end in zip(best, ends, strict=True)}
            return Problem(text[: best[0].start].strip(), options)
    found = ", ".join(f"{match['letter']})" for match in _LABEL.finditer(text))
    raise ValueError(f"no list of options A), B), … in {text!r}" + (f" (labels found: {found})" if found else ""))


def parse_solution(text: str) -> str:
    """The letter in ``<answer> C </answer>``.

    Raises:
        ValueError: any other text.
    """
    match = _ANSWER.fullmatch(text)
    if match is None:
        raise ValueError(f"solution {text!r} does not have the form '<answer> C </answer>'")
    return match[1]


def _labels(text: str, respect_parentheses: bool) -> list[_Label]:
    """All labels, without those inside parentheses if ``respect_parentheses``."""
    labels: list[_Label] = []
    depth = position = 0
    for match in _LABEL.finditer(text):
        for parenthesis in _PARENTHESIS.findall(text, position, match.end() - 1):
            depth = depth + 1 if parenthesis == "(" else max(0, depth - 1)
        position = match.end() - 1
        if depth and respect_parentheses:
            continue
        position = match.end()
        separator = match["separator"]
        labels.append(
            _Label(
                match["letter"], match.start(), match.end(), not separator.strip(), separator[:1] in (",", ";", "\n")
            )
        )
    return labels


def _reading(labels: list[_Label], first: int) -> list[_Label]:
    """The labels of the options if they start at ``labels[first]``; empty if a letter repeats or is missing."""
    chosen = [labels[first], *(label for label in labels[first + 1 :] if label.can_be_later)]
    letters = {label.letter for label in chosen}
    return chosen if len(letters) == len(chosen) >= 2 and letters == set(LETTERS[: len(chosen)]) else []
