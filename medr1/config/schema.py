"""Registers the typed settings with Hydra, and lists every dotted key."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from medr1.config import resolvers, settings
from medr1.config.paths import SWEEPS
from medr1.config.registry import Registry
from medr1.config.settings import (
    EvaluateConfig,
    ModalityConfig,
    ModelConfig,
    OmniMedVQAConfig,
    PhantomsConfig,
    QuestionTypeConfig,
    ReasoningConfig,
    RewardConfig,
    ServerConfig,
    TrackingConfig,
    TrainConfig,
    TrainerConfig,
)

SCHEMAS: dict[tuple[str | None, str], type] = {
    (None, "train_schema"): TrainConfig,
    (None, "evaluate_schema"): EvaluateConfig,
    ("model", "schema"): ModelConfig,
    ("model", "server_schema"): ServerConfig,
    ("data", "phantoms_schema"): PhantomsConfig,
    ("data", "omnimedvqa_schema"): OmniMedVQAConfig,
    ("modality", "schema"): ModalityConfig,
    ("question_type", "schema"): QuestionTypeConfig,
    ("reasoning", "schema"): ReasoningConfig,
    ("reward", "schema"): RewardConfig,
    ("trainer", "schema"): TrainerConfig,
    ("tracking", "schema"): TrackingConfig,
}


def schemas() -> dict[tuple[str | None, str], type]:
    """All schemas, including those of registered components."""
    components = {(r.group, f"{c.kind}_schema"): c.settings for r in Registry.by_group.values() for c in r}
    return SCHEMAS | components


def register() -> None:
    """Makes schemas and resolvers known to Hydra; call before composing."""
    importlib.import_module("medr1.generation.engines")  # STANDIN until components are imported elsewhere
    importlib.import_module("medr1.training.algorithms")
    store = ConfigStore.instance()
    for (group, name), schema in SCHEMAS.items():
        store.store(group=group, name=name, node=schema)
    resolvers.register()


def register_sweeps() -> None:
    """Makes the files in sweeps/ a group of train.py; not of evaluate.py, where ``sweep`` is a directory."""
    for file in SWEEPS.glob("*.yaml"):
        node = OmegaConf.load(file)
        ConfigStore.instance().store(group="sweep", name=file.stem, node=node, package="_global_")


def key_paths(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema; used to name the nearest valid one to a misspelt key."""
    for item in fields(schema):
        path = f"{prefix}{item.name}"
        yield path
        for candidate in _schemas_of(item.name, item.type):
            yield from key_paths(candidate, f"{path}.")


def _schemas_of(name: str, annotation: Any) -> list[type]:
    groups = [schema for (group, _), schema in schemas().items() if group == name]
    own = getattr(settings, annotation if isinstance(annotation, str) else getattr(annotation, "__name__", ""), None)
    return groups or ([own] if isinstance(own, type) and is_dataclass(own) else [])
