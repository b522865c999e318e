"""The values of data files as texts."""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

from medr1.domain.records import BadRecord, Reason
from medr1.domain.texts import UNENCODABLE, is_blank

MAX_LITERAL = 20_000  # characters of a value in Python: the parser needs much more memory than the text


def value_as_text(value: Any, name: str) -> str | None:
    """A value as text. None if it is absent: null, NaN, or a text that shows nothing. Numbers are texts.

    ``name`` is what an error calls it.

    Raises:
        BadRecord: neither text nor number, or a text that cannot be encoded.
    """
    if isinstance(value, str):
        if UNENCODABLE.search(value):
            raise BadRecord(Reason.UNENCODABLE_TEXT, f"{name} is {value!r}")
        return None if is_blank(value) else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value in (math.inf, -math.inf):
        raise BadRecord(Reason.MALFORMED, f"{name} is {value!r:.80}, expected a text or a number")
    # Tables with an empty cell turn the integers of its column into floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else str(value)


def whole_number(text: str) -> str:
    """``1.0`` as ``1``: pandas writes the integers of a CSV column with an empty cell so. Other texts stay."""
    return text.partition(".")[0] if re.fullmatch(r"\d+\.0+", text) else text


def parse_value(text: str) -> Any:
    """A list or mapping that is written as a text, in JSON or, as pandas and MMMU write it, in Python.

    Raises:
        ValueError: it is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if len(text) > MAX_LITERAL:
            raise ValueError(f"{len(text)} characters that are not JSON") from None
        try:
            return ast.literal_eval(text.strip())
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(str(error)) from error
