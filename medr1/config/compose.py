"""The config of a command, composed without its command line."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from medr1.config.paths import CONF
from medr1.config.schema import register, register_sweeps


def model_names() -> list[str]:
    """What ``model=`` can be, but for ``hf`` and ``hf_lora``, which are no model yet."""
    return sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem not in ("hf", "hf_lora"))


def evaluation_config(overrides: Sequence[str]) -> DictConfig:
    """As ``python evaluate.py`` with these overrides has it."""
    return _composed("evaluate", overrides)


def train_config(overrides: Sequence[str]) -> DictConfig:
    """As ``python train.py`` with these overrides has it."""
    register_sweeps()
    return _composed("train", overrides)


def _composed(command: str, overrides: Sequence[str]) -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base=None):
        return compose(command, list(overrides))
