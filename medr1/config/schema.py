"""Registers the settings that have no component of their own with Hydra, and lists every dotted key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from medr1.config import resolvers
from medr1.config.paths import SWEEPS
from medr1.config.registry import Registry
from medr1.config.settings import (
    BEFORE,
    EvaluateConfig,
    ModalityConfig,
    QuestionTypeConfig,
    ReasoningConfig,
    RewardConfig,
    TrackingConfig,
    TrainConfig,
    TrainerConfig,
)

_SCHEMAS: dict[tuple[str | None, str], type] = {
    (None, "train_schema"): TrainConfig,
    (None, "evaluate_schema"): EvaluateConfig,
    ("modality", "schema"): ModalityConfig,
    ("question_type", "schema"): QuestionTypeConfig,
    ("reasoning", "schema"): ReasoningConfig,
    ("reward", "schema"): RewardConfig,
    ("trainer", "schema"): TrainerConfig,
    ("tracking", "schema"): TrackingConfig,
}


def schemas() -> dict[tuple[str | None, str], type]:
    """Every schema by (group, name); group None holds the two commands."""
    components = {
        (group, f"{component.kind}_schema"): component.settings
        for group, registry in Registry.by_group.items()
        for component in registry
    }
    return _SCHEMAS | components


def register() -> None:
    """Registers schemas and resolvers with Hydra. Components register theirs when they are imported."""
    store = ConfigStore.instance()
    for (group, name), schema in _SCHEMAS.items():
        store.store(group=group, name=name, node=schema)
    resolvers.register()


def register_sweeps() -> None:
    """Registers the files of sweeps/ as a group of train.py. In evaluate.py, ``sweep`` is a directory."""
    for file in SWEEPS.glob("*.yaml"):
        node = OmegaConf.load(file)
        ConfigStore.instance().store(group="sweep", name=file.stem, node=node, package="_global_")


def groups(schema: type) -> list[str]:
    """The config groups of a command that have a schema."""
    chosen = {group for group, _ in schemas()}
    return [item.name for item in fields(schema) if item.name in chosen]


def marked_keys(settings: Any, mark: str, value: bool = True) -> Iterator[str]:
    """The dotted keys of settings whose metadata has ``mark`` as ``value``."""
    return (key for key, found in _marks(settings, mark) if found is value)


def values_before(settings: Any) -> Iterator[tuple[str, Any]]:
    """The dotted keys of settings that were added to their group, each with the value that stands for its absence."""
    return _marks(settings, BEFORE)


def _marks(settings: Any, mark: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of settings whose metadata has ``mark``, each with what it says."""
    for item in fields(settings):
        if mark in item.metadata:
            yield f"{prefix}{item.name}", item.metadata[mark]
        elif is_dataclass(nested := getattr(settings, item.name)):
            yield from _marks(nested, mark, f"{prefix}{item.name}.")


def key_paths(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema, including those of all components of its groups."""
    return (path for path, _ in key_types(schema, prefix))


def key_types(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The same, each with its type."""
    hints = get_type_hints(schema)
    for item in fields(schema):
        path = f"{prefix}{item.name}"
        annotation = hints[item.name]
        yield path, annotation
        choices = [found for (group, _), found in schemas().items() if group == item.name]
        if not choices and isinstance(annotation, type) and is_dataclass(annotation):
            choices = [annotation]
        for nested in choices:
            yield from key_types(nested, f"{path}.")
