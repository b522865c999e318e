"""The settings of a stored run as options of the config groups, so that a command can start from them.

``resume=RUN`` and ``run=RUN`` begin with what the run stores. It becomes the option ``stored`` of every group, which
Hydra composes like any other option; what is typed beside it comes on top and is checked as always.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore

from medr1.config.schema import groups
from medr1.config.settings import CommonConfig

# What a command has of its own, whatever run it starts from.
_OF_THE_COMMAND = (
    *("output_dir", "plugins", "resume", "run", "sweep", "audit", "compare", "checkpoint", "export", "merge"),
    *("plan", "plan_memory"),
)

STORED = "stored"  # the option of a group that holds the settings of a stored run


def stored_options(settings: CommonConfig, schema: type[CommonConfig], typed: Collection[str]) -> list[str]:
    """The overrides with which a command of ``schema`` starts from ``settings``, but for the keys in ``typed``.

    Registers the option ``stored`` of each group. A run of the other command is tracked on its own.
    """
    words, in_groups = [], groups(schema)
    for item in fields(schema):
        is_own = item.name in _OF_THE_COMMAND or (item.name == "tracking" and not isinstance(settings, schema))
        if is_own or not hasattr(settings, item.name):
            continue
        value = getattr(settings, item.name)
        if item.name in in_groups:
            ConfigStore.instance().store(group=item.name, name=STORED, node=value)
            words += [f"{item.name}={STORED}"] if item.name not in typed else []
        else:
            words += [f"{key}={_text(plain)}" for key, plain in _plain(item.name, value) if key not in typed]
    return words


def _plain(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The settings below a key that belongs to no group, by dotted key."""
    if is_dataclass(value):
        for item in fields(value):
            yield from _plain(f"{key}.{item.name}", getattr(value, item.name))
    else:
        yield key, value


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
