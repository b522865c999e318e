"""Texts of records: on one line, compared by meaning, and what no prompt may hold."""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache
from html.entities import html5

# Control tokens as the chat models of today spell them, such as <|im_end|>.
CONTROL_TOKEN = re.compile(r"<\|[^\s<>|]+\|>")
# No tokenizer takes half a surrogate pair; servers and databases refuse the null character.
UNENCODABLE = re.compile("[\0\ud800-\udfff]")

_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|(?P<name>\w+));")
_ENTITY_PASSES = 3  # "&amp;lt;" has been escaped twice
_SAME_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4`", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        "\u00ba": "\u00b0",  # the ordinal sign in place of the degree sign
        "\u2044": "/",
    }
)
_CLOSING = " .,;:!\u3002\u3001"  # without the question mark: "malignant?" is not "malignant"
# What NFKC turns into plain digits: 10⁵ would become 105, and 1½ would become 11/2.
_MARKS = {"<super>": "^", "<sub>": "_", "<fraction>": " ", "<circle>": " "}


def one_line(text: str) -> str:
    """The text with each run of white space, including line breaks, as one blank."""
    return " ".join(text.split())


def plain_line(text: str) -> str:
    """The text in NFKC, which makes full-width letters plain, with single blanks."""
    return one_line(unicodedata.normalize("NFKC", text))


def is_blank(text: str) -> bool:
    """Whether the text shows nothing: it has only white space and characters without width."""
    return all(character.isspace() or unicodedata.category(character) == "Cf" for character in text)


@lru_cache(maxsize=65536)
def option_meaning(text: str) -> str:
    """The text of an option in the form in which options are compared: options with the same form mean the same.

    The form ignores the Unicode form (NFKC), HTML entities, the shape of quotes and dashes, white space, characters
    without width, case, closing punctuation and quotes around the whole text. It keeps what changes a value: signs,
    units, and a raised or lowered number behind a digit (10⁵ is 10^5, not 105; cm² is cm2).
    """
    for _ in range(_ENTITY_PASSES):
        text = _ENTITY.sub(_character, text)
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    text = unicodedata.normalize("NFKC", _mark_raised(text.translate(_SAME_CHARACTERS)))
    text = unicodedata.normalize("NFKC", text.casefold()).translate(_SAME_CHARACTERS).replace("''", '"')
    text = one_line(text)
    return _without_closing(text) or text


def _character(entity: re.Match[str]) -> str:
    # Not html.unescape for names: it also takes a name's beginning, as in "&notable;".
    name = entity["name"]
    return html.unescape(entity[0]) if name is None else html5.get(f"{name};", entity[0])


def _mark_raised(text: str) -> str:
    """Puts a mark before a raised, lowered or otherwise compressed number that follows a digit."""
    marked, kind_before = list[str](), ""
    for i, character in enumerate(text):
        kind = unicodedata.decomposition(character).partition(" ")[0]
        if kind in _MARKS and kind != kind_before and i and text[i - 1].isnumeric():
            # The sign of "CD4⁺" has no number behind it and changes nothing.
            plain = unicodedata.normalize("NFKC", text[i : i + 2]).lstrip("+-\u2212")
            if plain[:1].isdigit():
                marked.append(_MARKS[kind])
        marked.append(character)
        kind_before = kind
    return "".join(marked)


def _without_closing(text: str) -> str:
    shorter = text.rstrip(_CLOSING)
    if len(shorter) > 2 and shorter[0] == shorter[-1] and shorter[0] in "'\"" and shorter.count(shorter[0]) == 2:
        shorter = shorter[1:-1].strip()
    return shorter if shorter == text else _without_closing(shorter)
