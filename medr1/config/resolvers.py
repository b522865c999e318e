"""Functions for YAML files: ``${name:arguments}``."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from medr1.config import image_tokens, naming
from medr1.config.enums import Tuning
from medr1.config.paths import PACKAGE


def register() -> None:
    """Registers the resolvers with OmegaConf."""
    OmegaConf.register_new_resolver("job_name", lambda *, _root_: naming.job_name(_root_), replace=True)
    OmegaConf.register_new_resolver("run_directory", naming.run_directory, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("evaluate_directory", naming.evaluate_directory, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("absolute", lambda path: str(Path(path).absolute()), replace=True)
    OmegaConf.register_new_resolver("package", lambda path: str(PACKAGE / path), replace=True)
    OmegaConf.register_new_resolver("image_token_size", _image_token_size, replace=True)
    OmegaConf.register_new_resolver("fitting", image_tokens.fitting, replace=True)
    OmegaConf.register_new_resolver("by_tuning", _by_tuning, replace=True)
    OmegaConf.register_new_resolver("sum", lambda *numbers: sum(numbers), replace=True)
    OmegaConf.register_new_resolver("ratio", lambda part, whole: part / whole, replace=True)


def _by_tuning(full: float, lora: float, *, _root_: DictConfig) -> float:
    return lora if _root_.model.tuning == Tuning.lora else full


def _image_token_size(*, _parent_: DictConfig) -> int:
    """The image token size of the model whose setting this is. Its path may still be missing."""
    return image_tokens.image_token_size(None if OmegaConf.is_missing(_parent_, "path") else str(_parent_.path))
