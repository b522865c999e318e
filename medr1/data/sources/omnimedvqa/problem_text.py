"""Parses Med-R1's problem strings, e.g. ``What is shown? A)lung, left, B)heart, C)Eosin (H&E) stain``.

A problem is the question, a space, and the options joined by ``", "``, each after its letter and ``)``. Options contain
commas and parentheses, so neither can be split on. A letter and ``)`` is a label if it

- stands at the start or after white space (first label) or after a comma, semicolon or line break (later labels), and
- does not close a parenthesis: in ``(H&E)`` and ``hepatitis (A, B)`` the letter belongs to the option.

Labels must be distinct and without gaps (A to D, in any order). Otherwise the problem is rejected.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NamedTuple

from medr1.domain.records import LETTERS

_LETTER = f"[{''.join(LETTERS)}]"
_LABEL = re.compile(rf"(?P<separator>^|[,;\n]\s*|\s)(?P<letter>{_LETTER})\)")
_PARENTHESIS = re.compile(r"[()]")
_ANSWER = re.compile(rf"\s*<answer>\s*({_LETTER})\s*</answer>\s*")


class Problem(NamedTuple):
    """A question and its options by letter, in the order of the text."""

    question: str
    options: dict[str, str]


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
        firsts = (i for i, label in enumerate(labels) if not label["separator"].strip())
        later = [i for i, label in enumerate(labels) if label["separator"][:1] in (",", ";", "\n")]
        if readings := [reading for i in firsts if (reading := _reading(labels, i, later))]:
            best = max(readings, key=lambda reading: (len(reading), reading[0].start()))
            ends = [label.start() for label in best[1:]] + [len(text)]
            options = {label["letter"]: text[label.end() : end].strip() for label, end in zip(best, ends, strict=True)}
            return Problem(text[: best[0].start()].strip(), options)
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


def _labels(text: str, respect_parentheses: bool) -> list[re.Match[str]]:
    """All labels, without those inside parentheses if ``respect_parentheses``."""
    labels = []
    depth = position = 0
    for match in _LABEL.finditer(text):
        for parenthesis in _PARENTHESIS.findall(text, position, match.end() - 1):
            depth = depth + 1 if parenthesis == "(" else max(0, depth - 1)
        position = match.end() - 1
        if not depth or not respect_parentheses:
            position = match.end()
            labels.append(match)
    return labels


def _reading(labels: list[re.Match[str]], first: int, later: list[int]) -> list[re.Match[str]]:
    """The labels of the options if they start at ``labels[first]``; empty if a letter repeats or is missing.

    ``later`` are the indices of the labels that can follow another one.
    """
    start = bisect_right(later, first)
    # One more than there are letters: then one repeats.
    chosen = [labels[first], *(labels[i] for i in later[start : start + len(LETTERS)])]
    letters = {label["letter"] for label in chosen}
    return chosen if len(letters) == len(chosen) >= 2 and letters == set(LETTERS[: len(chosen)]) else []
