"""Parses the overrides of a command line before Hydra composes the config, so that messages can name each mistake."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Container, Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from medr1.config.naming import is_below
from medr1.config.override_text import quoted, shell_word
from medr1.errors import ConfigError

_GROUPED_DIGITS = re.compile(r"(?<![\w.'\"/-])\d[\d_]*_\d+(?![\w.'\"/-])")
_REMOVABLE = ("reward.functions", "hydra")  # what has entries that a run may do without


def read_overrides(words: Sequence[str], groups: Container[str]) -> list[Override]:
    """The overrides among the words of a command line.

    ``groups``: the config groups, which take one option in each run.

    Raises:
        ConfigError: a word that Hydra cannot read, with the same override in quotes; a list, a number or null for a
            group, or a group that is removed.
    """
    overrides = [_parse(word) for word in words if not word.startswith("-") and ("=" in word or word[:1] in "~+")]
    for override in overrides:
        key, text = override.get_key_element(), str(override.input_line)
        value = override.value()
        if not key.lstrip("+~"):
            raise ConfigError(f"{text}: an override is written KEY=VALUE")
        if override.key_or_group in groups and override.is_delete():
            raise ConfigError(f"{text}: a run has one {override.key_or_group}; choose another one with {key[1:]}=NAME")
        if override.is_delete() and not is_below(key, _REMOVABLE):
            raise ConfigError(f"{text}: a setting cannot be removed; give it another value with {key[1:]}=VALUE")
        if override.key_or_group not in groups or isinstance(value, Glob):  # names of files, which Hydra looks up
            continue
        if isinstance(value, list | dict):
            options = ",".join(map(str, value))
            raise ConfigError(
                f"{text}: a run has one {override.key_or_group}, not a list of them; one run for each of them: "
                f"-m {key}={options}"
            )
        for option in override.sweep_iterator() if override.is_discrete_sweep() else [value]:
            if option is None or isinstance(option, bool | int | float):
                raise ConfigError(
                    f"{text}: an option is a text, and Hydra reads {option} as none; put it in quotes, which the shell "
                    f"must not remove: {_in_quotes(key, 'null' if option is None else str(option))}"
                )
    return overrides


def expand_sets(words: Sequence[str]) -> list[str]:
    """``data.sets=[slake,vqa_rad]`` as Hydra composes it: ``data=benchmarks``, with a file of ``data`` for each name.

    Raises:
        ConfigError: no list of names, or a name twice.
    """
    expanded: list[str] = []
    for word in words:
        if not word.lstrip("+").startswith("data.sets="):
            expanded.append(word)
            continue
        names = _parse(word).value()
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{word}: give the names of files in conf/data, such as data.sets=[slake,vqa_rad]")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"{word}: {twice} occurs twice")
        expanded += [f"+data@data.sets.{name}={name}" for name in names]
        if not any(other.startswith("data=") for other in words):
            expanded.append("data=benchmarks")
    return expanded


def _parse(word: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        key, separator, value = word.partition("=")
        if not separator or not key.lstrip("+~"):
            raise ConfigError(f"{word}: an override is written KEY=VALUE") from error
        if not _is_read(f"{key}=1"):
            detail = "no setting has such a name; a name has letters, digits and the signs _ . / - @"
            raise ConfigError(f"{word}: {key!r}: {detail}") from error
        if value.startswith("~/"):  # in quotes it would be the name of a folder
            raise ConfigError(
                f"{word}: the shell has left ~ as it is; type {shell_word(key, os.path.expanduser(value))}"
            ) from error
        raise ConfigError(
            f"{word}: the characters of its value need quotes, which the shell must not remove; type "
            f"{_in_quotes(key, value)}"
        ) from error
    return override


def _is_read(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _in_quotes(key: str, value: str) -> str:
    """The override with its value in the quotes of Hydra's grammar and itself in those of the shell."""
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return shlex.quote(quoted(key, value[1:-1] if is_quoted else value))


def refuse_numbers(overrides: Sequence[Override], is_text: Callable[[str], bool]) -> None:
    """Refuses names such as 2026_11_28 and 1e5, which Hydra reads as a number with other characters, also in lists.

    ``is_text``: whether the value of a key is a text.

    Raises:
        ConfigError: with the same override in quotes.
    """
    for override in overrides:
        key, value = override.get_key_element().lstrip("+"), override.value()
        text = str(override.input_line).partition("=")[2]
        # The key is looked up last, because that walks through all schemas.
        if not isinstance(value, int | float | str) and (found := _GROUPED_DIGITS.search(text)) and is_text(key):
            raise ConfigError(
                f"{override.input_line}: Hydra reads {found[0]} as a number; put it in quotes, which the shell must "
                f'not remove: "{found[0]}"'
            )
        if isinstance(value, int | float) and not isinstance(value, bool) and str(value) != text and is_text(key):
            raise ConfigError(
                f"{override.input_line}: Hydra reads {text} as the number {value}; put it in quotes, which the shell "
                f"must not remove: {_in_quotes(key, text)}"
            )


def refuse_others(typed: Sequence[Override], allowed: Iterable[str], command: str) -> None:
    """Refuses every override but those of ``allowed`` and of settings below them, and ``plugins``, already imported.

    Raises:
        ConfigError: gives ``command``, a sentence that says why, and the refused overrides.
    """
    others = [str(o.input_line) for o in typed if not is_below(o.get_key_element(), (*allowed, "plugins"))]
    if others:
        raise ConfigError(f"{command}; leave out {', '.join(others)}")
