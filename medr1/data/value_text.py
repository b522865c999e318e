"""The values of data files as texts."""

from __future__ import annotations

import math
from typing import Any

from medr1.domain.records import BadRecord, Reason
from medr1.domain.texts import UNENCODABLE, is_blank


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
