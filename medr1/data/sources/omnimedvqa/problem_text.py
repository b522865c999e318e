"""Med-R1's problem strings, e.g. ``What is shown? A)lung, left, B)heart, C)Eosin (H&E) stain``, taken apart.

The string is the question, one space, and the options joined by ``", "``, each behind its letter and ``)``. Options
contain commas and parentheses, so neither may be split on. A label is a letter and ``)`` that

- stands at the start or after white space (the first one) or after a comma, semicolon or line break (all others);
- does not close a parenthesis: in ``(H&E)`` and ``hepatitis (A, B)`` the letter belongs to the option's text.

Nothing is guessed: labels must be distinct and without gaps (A to D, in any order), or the record is bad.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from medr1.domain.records import LETTERS

_LABEL = re.compile(rf"(?P<separator>^|[,;\n]\s*|\s)(?P<letter>[{LETTERS}])\)")
_PARENTHESIS = re.compile(r"[()]")
_ANSWER = re.compile(rf"\s*<answer>\s*([{LETTERS}])\s*</answer>\s*")


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its options in the order in which they stand; the letters are the record's own."""

    question: str
    options: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Label:
    letter: str
    start: int
    """Where the separator begins, which is where the text before the label ends."""
    end: int
    opens: bool
    """Only white space before it: can be the first label."""
    follows: bool
    """A comma, semicolon or line break before it: can be a later label."""


def parse_problem(text: str) -> Problem:
    """Splits a problem string into question and options.

    Where the question itself holds labels ("Compare A) and B) …"), the reading with most options counts, and of
    several such the last. A parenthesis left open hides the labels behind it; only if no reading is found with
    parentheses respected, one without is sought.

    Raises:
        ValueError: no options, or labels that repeat or leave gaps.
    """
    for respect_parentheses in (True, False):
        labels = _labels(text, respect_parentheses)
        readings = [reading for i, label in enumerate(labels) if label.opens and (reading := _reading(labels, i))]
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
        ValueError: the text is anything else.
    """
    match = _ANSWER.fullmatch(text)
    if match is None:
        raise ValueError(f"solution {text!r} is not of the form '<answer> C </answer>'")
    return match[1]


def _labels(text: str, respect_parentheses: bool) -> list[_Label]:
    """All labels; with ``respect_parentheses`` those that close a parenthesis opened before them are none."""
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
        opens, follows = not separator.strip(), separator[:1] in (",", ";", "\n")
        labels.append(_Label(match["letter"], match.start(), match.end(), opens, follows))
    return labels


def _reading(labels: list[_Label], first: int) -> list[_Label]:
    """The options if they begin at ``labels[first]``; empty if a label repeats or is missing in between."""
    chosen = [labels[first], *(label for label in labels[first + 1 :] if label.follows)]
    letters = {label.letter for label in chosen}
    return chosen if len(letters) == len(chosen) >= 2 and letters == set(LETTERS[: len(chosen)]) else []
