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
from medr1.config.settings import (
    EvaluateConfig,
    GRPOConfig,
    ModalityConfig,
    ModelConfig,
    OmniMedVQAConfig,
    PhantomsConfig,
    PretrainConfig,
    QuestionTypeConfig,
    ReasoningConfig,
    RewardConfig,
    ServerConfig,
    SFTConfig,
    TrackingConfig,
    TrainConfig,
    TrainerConfig,
    ZeroShotConfig,
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
    ("algorithm", "grpo_schema"): GRPOConfig,
    ("algorithm", "sft_schema"): SFTConfig,
    ("algorithm", "pretrain_schema"): PretrainConfig,
    ("algorithm", "zero_shot_schema"): ZeroShotConfig,
    ("trainer", "schema"): TrainerConfig,
    ("tracking", "schema"): TrackingConfig,
}


def register() -> None:
    """Makes schemas and resolvers known to Hydra; call before composing."""
    importlib.import_module("medr1.generation.engines")  # STANDIN until components are imported elsewhere
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
    groups = [schema for (group, _), schema in SCHEMAS.items() if group == name]
    own = getattr(settings, annotation if isinstance(annotation, str) else getattr(annotation, "__name__", ""), None)
    return groups or ([own] if isinstance(own, type) and is_dataclass(own) else [])
