"""Parses options and answers in the forms in which data sets write them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from medr1.data.value_text import MAX_LITERAL, parse_value, value_as_text, whole_number
from medr1.domain.records import LETTERS, BadRecord, Reason
from medr1.domain.texts import one_line, option_meaning, plain_line

_POSITION = re.compile(r"\d{1,4}")
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
YES_NO = ("Yes", "No")


class AnswerFormat(StrEnum):
    """How the answer is written."""

    auto = "auto"
    letter = "letter"
    text = "text"
    zero_based = "zero_based"
    one_based = "one_based"


def text_or_none(value: Any, name: str) -> str | None:
    """A value as text without white space around it, see ``value_as_text``."""
    text = value_as_text(value, name)
    return None if text is None else text.strip()


def parse_options(value: Any) -> dict[str, str]:
    """Options by letter, from a list, a mapping from letters, or either as a text in JSON or in Python.

    Absent values are left out, and the others keep their letters: questions with fewer options lack the last ones.

    Raises:
        BadRecord: another value, keys that are no letters, or more options than letters.
    """
    if isinstance(value, str):
        value = _parse_text(value)
    if isinstance(value, Mapping):
        items = [(_key(key), value[key]) for key in value]
        named = {letter: text_or_none(text, f"option {letter}") for letter, text in items}
        if len(named) < len(items):
            raise BadRecord(Reason.DUPLICATE_OPTION, f"the letters {', '.join(map(repr, value))} repeat")
        options = {letter: text for letter, text in named.items() if text is not None}
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if len(value) > len(LETTERS):
            raise _too_many(len(value))
        options = {}
        for letter, item in zip(LETTERS, value, strict=False):
            text = text_or_none(item, f"option {letter}")
            if text is not None:
                options[letter] = text
    else:
        raise BadRecord(Reason.NO_OPTIONS, f"the options are {value!r:.80}, expected a list, a mapping or a text")
    return {letter: one_line(text) for letter, text in options.items()}


def first_of(text: str | None) -> str | None:
    """The first of a list that is written as a text, or None. Raises BadRecord for another text."""
    items = None if text is None else _parse_text(text)
    return text_or_none(items[0], f"the first of {text!r:.80}") if isinstance(items, list) and items else None


def _parse_text(text: str) -> Any:
    if len(text) > MAX_LITERAL:
        raise BadRecord(Reason.NO_OPTIONS, f"a list is a text of {len(text)} characters: {text!r:.80}")
    try:
        return parse_value(text)
    except ValueError as error:
        detail = f"{text!r:.120} does not parse: it is a list or mapping neither in JSON nor in Python"
        raise BadRecord(Reason.NO_OPTIONS, detail) from error


def _key(key: Any) -> str:
    match = _LETTER.fullmatch(key.strip()) if isinstance(key, str) else None
    letter = match[1].upper() if match else ""
    if letter not in LETTERS:
        if match:
            raise _too_many(ord(letter) - ord("A") + 1)
        raise BadRecord(Reason.MALFORMED, f"option {key!r} is not named by a letter")
    return letter


def _too_many(count: int) -> BadRecord:
    return BadRecord(Reason.TOO_MANY_OPTIONS, f"{count} options; at most {len(LETTERS)} have a letter")


def parse_answer(value: Any, options: Mapping[str, str], form: AnswerFormat = AnswerFormat.auto) -> str:
    """The letter of the correct option.

    ``auto`` takes a letter or the text of an option, compared as in ``option_meaning``. A number that is the text of
    no option can count from 0 or from 1, so it needs another ``form``. ``1.0`` is ``1`` if it is no option itself.

    Raises:
        BadRecord: no option, or in ``auto`` two different ones: a letter that is also the text of another option.
    """
    text = text_or_none(value, "the answer")
    if text is None:
        raise BadRecord(Reason.ANSWER_NOT_AMONG_OPTIONS, f"the answer is {value!r}")
    found = _options_of(text, options, form) or _options_of(whole_number(text), options, form)
    if len(found) == 1:
        return found.pop()
    listing = ", ".join(f"{letter}) {option}" for letter, option in options.items())
    detail = f"answer {text!r}, options {listing}"
    if found:
        raise BadRecord(
            Reason.AMBIGUOUS_ANSWER, f"{detail}. Remedy: data.answer_format=letter or data.answer_format=text"
        )
    if form is AnswerFormat.auto and _POSITION.fullmatch(whole_number(text)):
        detail += ". Remedy: if it is a position, data.answer_format=zero_based or data.answer_format=one_based"
        raise BadRecord(Reason.AMBIGUOUS_ANSWER, detail)
    raise BadRecord(Reason.ANSWER_NOT_AMONG_OPTIONS, detail)


def _options_of(text: str, options: Mapping[str, str], form: AnswerFormat) -> set[str]:
    """The letters of the options that an answer means."""
    found: set[str] = set()
    if form in (AnswerFormat.auto, AnswerFormat.letter):
        match = _LETTER.fullmatch(plain_line(text))
        found |= {match[1].upper()} & set(options) if match else set()
    if form in (AnswerFormat.auto, AnswerFormat.text):
        found |= {letter for letter, option in options.items() if option_meaning(option) == option_meaning(text)}
    if form in (AnswerFormat.zero_based, AnswerFormat.one_based) and _POSITION.fullmatch(text):
        index = int(text) - (form is AnswerFormat.one_based)
        found |= {letter for letter in options if LETTERS.index(letter) == index}
    return found


def yes_or_no(answer: str) -> str | None:
    """The option ``Yes`` or ``No`` that an answer means, or None."""
    return next((option for option in YES_NO if option_meaning(option) == option_meaning(answer)), None)


def named_choices(question: str, answer: str) -> list[str] | None:
    """The choices that a question names, of which one is the answer: "Is this a CT or an MRI image?" -> CT, MRI.

    The choices stand around the only "or". Those before it are separated by commas; without a comma each choice has as
    many words as the answer, or fewer. They are spelled as in the question, so that the spelling does not show which
    one is correct. None if the answer is not exactly one of them.
    """
    sides = re.split(r"\bor\b", one_line(question).rstrip(" ?.!"), flags=re.IGNORECASE)
    if len(sides) != 2:
        return None
    listed = [text for part in sides[0].split(",") if (text := _without_article(part))]
    right = _without_article(sides[1].strip(" ,"))
    words = len(_without_article(answer).split())
    for choices in (
        [*listed[1:], right],  # "Which organ is larger, kidney, heart or small bowel?"
        [_last(sides[0].strip(" ,"), words), " ".join(right.split()[:words])],  # "in the left or right lung"
    ):
        meanings = [option_meaning(choice) for choice in choices]
        fitting = meanings.count(option_meaning(_without_article(answer)))
        if fitting == 1 and len(set(meanings)) == len(choices) > 1 and all(meanings):
            return choices
    return None


# What stands before a choice and is no part of it.
_LEADING = re.compile(
    r"^(?:(?:an?|the|is|are|was|were|be|it|this|that|there|in|on|at|of|from|to|with|by|as)\s+)+", re.IGNORECASE
)


def _last(text: str, words: int) -> str:
    return _LEADING.sub("", " ".join(text.split()[-words:]))


def _without_article(text: str) -> str:
    return re.sub(r"^(?:an?|the)\s+", "", text.strip(), flags=re.IGNORECASE)
