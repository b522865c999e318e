"""Composes configs as the command line does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from medr1.config.paths import CONF
from medr1.config.settings import EvaluateConfig, TrainConfig
from medr1.runs.run_directory import RunDirectory
from medr1.workflows.components import checked
from medr1.workflows.stored_options import stored_options


def check(cfg: DictConfig) -> Any:
    """The typed settings of a composed config, checked."""
    return checked(cfg, OmegaConf.get_type(cfg))  # type: ignore[arg-type]


def composed(command: str, *overrides: str) -> Any:
    """The typed settings that a command runs with; with ``resume=`` those that the run stores."""
    if overrides[:1] and overrides[0].startswith("resume="):
        run = RunDirectory(Path(overrides[0].removeprefix("resume=")))
        stored: Any = run.stored_config(TrainConfig if command == "train" else EvaluateConfig)
        stored.resume = str(run.path)
        return stored
    for override in overrides:
        if override.startswith("run="):  # it starts from the settings of the run, as on the command line
            run = RunDirectory(Path(override.removeprefix("run=")))
            typed = [text.partition("=")[0] for text in overrides]
            overrides = (*stored_options(run.stored_config(TrainConfig), EvaluateConfig, typed), *overrides)
    with initialize_config_dir(str(CONF), version_base=None):
        return check(compose(command, list(overrides)))
