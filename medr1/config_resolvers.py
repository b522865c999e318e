"""What a YAML file can compute: ``${name:arguments}``. Imported before anything heavy."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from medr1 import config_names, config_pictures


def register() -> None:
    """Makes the resolvers known to OmegaConf."""
    OmegaConf.register_new_resolver("job_name", lambda *, _root_: config_names.job_name(_root_), replace=True)
    OmegaConf.register_new_resolver("run_directory", config_names.run_directory, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("evaluate_directory", config_names.evaluate_directory, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("absolute", lambda path: str(Path(path).absolute()), replace=True)
    OmegaConf.register_new_resolver("package", lambda path: str(Path(__file__).parent / path), replace=True)
    OmegaConf.register_new_resolver("image_token", _image_token, replace=True)
    OmegaConf.register_new_resolver("fitting", config_pictures.fitting, replace=True)
    OmegaConf.register_new_resolver("sum", lambda *numbers: sum(numbers), replace=True)
    OmegaConf.register_new_resolver("ratio", lambda part, whole: part / whole, replace=True)


def _image_token(*, _parent_: DictConfig) -> int:
    """Of the model whose setting this is; its path may still be missing."""
    return config_pictures.image_token(None if OmegaConf.is_missing(_parent_, "path") else str(_parent_.path))
