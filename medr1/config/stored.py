"""Reads the config.yaml of a run back as the typed settings that wrote it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from medr1.config.enums import Accelerator
from medr1.config.override_text import shell_word
from medr1.config.registry import Registry
from medr1.config.renamed import renamed_keys
from medr1.config.schema import values_before
from medr1.config.settings import CommonConfig
from medr1.errors import ConfigError

T = TypeVar("T", bound=CommonConfig)
_ABSENT = object()


def read_config(file: Path, schema: type[T]) -> T:
    """The stored config. ``<group>.kind`` says which settings a group has.

    Raises:
        ConfigError: the file is damaged, or was written by another version of medr1.
    """
    try:
        stored = OmegaConf.load(file)
        if not isinstance(stored, DictConfig):
            raise ValueError("it holds no settings")
        if old := list(renamed_keys(stored)):
            raise ConfigError(f"{file} was written by medr1 0.1, which this version does not read: {'; '.join(old)}")
        names = {item.name for item in fields(schema)}
        own, other = ("algorithm", "checkpoint") if "algorithm" in names else ("checkpoint", "algorithm")
        if other in stored and own not in stored:
            what, command = ("a training", "train") if other == "algorithm" else ("an evaluation", "evaluate")
            raise ConfigError(
                f"{file.parent} holds {what}, to be continued with python {command}.py "
                f"{shell_word('resume', file.parent)}"
            )
        if unknown := sorted(map(str, stored.keys() - names)):
            raise ValueError(f"unknown settings {', '.join(unknown)}")
        groups = {group: registry for group, registry in Registry.by_group.items() if group in names}
        if without := sorted(group for group in groups if not OmegaConf.select(stored, f"{group}.kind")):
            raise ValueError(f"{', '.join(f'{group}.kind' for group in without)} missing")
        chosen = {group: registry[stored[group].kind].settings() for group, registry in groups.items()}
        settings = schema(**chosen)
        if OmegaConf.select(stored, "trainer.accelerator") not in (None, *Accelerator):
            stored.trainer.accelerator = str(Accelerator.auto)  # it was any name of Lightning's before
        for key, value in values_before(settings):
            if OmegaConf.select(stored, key, default=_ABSENT) is _ABSENT:
                OmegaConf.update(stored, key, value)
        typed = OmegaConf.merge(OmegaConf.structured(settings), stored)
        if missing := sorted(OmegaConf.missing_keys(typed)):
            raise ValueError(f"{', '.join(missing)} missing")
        found = OmegaConf.to_object(typed)
    except (YAMLError, OSError, OmegaConfBaseException, ValueError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"{file} is damaged, or was written by another version of medr1: {why}") from error
    assert isinstance(found, schema)
    return found
