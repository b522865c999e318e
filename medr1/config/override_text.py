"""Writes overrides that Hydra reads again, such as those of the commands in messages: resume='/runs/a (1)'."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def override_text(key: str, value: str | Path) -> str:
    """``key=value``, with the value in the quotes of Hydra's grammar if Hydra would read another value without them."""
    text = str(value)
    plain = f"{key}={text}"
    try:
        read = OverridesParser.create().parse_override(plain).value()
    except HydraException:
        return quoted(key, text)
    return plain if isinstance(read, str) and read == text else quoted(key, text)


def shell_word(key: str, value: str | Path) -> str:
    """The override as it is typed in a shell."""
    return shlex.quote(override_text(key, value))


def quoted(key: str, text: str) -> str:
    """``key="text"``: the value in the quotes of Hydra's grammar, whatever it is."""
    quote = '"' if '"' not in text else "'"
    # A backslash is an escape only in front of a quote, and in front of backslashes that stand before one.
    inner = re.sub(rf"(\\*){quote}", rf"\1\1\\{quote}", text)
    inner = re.sub(r"(\\+)$", r"\1\1", inner)
    return f"{key}={quote}{inner}{quote}"
