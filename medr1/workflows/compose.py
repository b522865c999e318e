"""Composes the config of a command without its command line."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from medr1.config.paths import CONF
from medr1.config.schema import register_sweeps
from medr1.workflows import components  # noqa: F401  (registers every schema)

_ABSTRACT_MODELS = ("hf", "hf_lora")  # they have no path


def model_names() -> list[str]:
    """The options of ``model=`` that name a model."""
    return sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem not in _ABSTRACT_MODELS)


def evaluation_config(overrides: Sequence[str]) -> DictConfig:
    """The config of ``python evaluate.py`` with these overrides."""
    return _composed("evaluate", overrides)


def train_config(overrides: Sequence[str]) -> DictConfig:
    """The config of ``python train.py`` with these overrides."""
    register_sweeps()
    return _composed("train", overrides)


def _composed(command: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base=None):
        return compose(command, list(overrides))
