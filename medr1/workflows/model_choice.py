"""Which model is meant, and how it is to be asked: a run, an export, a name of conf/model or a checkpoint.

Only small files are read here, so that a mistake answers before torch is loaded.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from medr1.config.compose import evaluation_config, model_names
from medr1.config.image_tokens import fitting, known_image_token_size
from medr1.config.settings import TrainConfig
from medr1.domain.reasoning import ReasoningMode
from medr1.errors import CheckpointError, ConfigError
from medr1.runs.run_directory import ADAPTER_CONFIG, RunDirectory, read_json

if TYPE_CHECKING:
    import torch

    from medr1.models.loading import ModelSpec

HOW_TO_ASK = "medr1.json"  # in an export: what the weights alone do not say


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """``path`` is a checkpoint directory or hub id, ``adapter`` a trained PEFT adapter on it; the rest is how training
    asked: mode, side of the square picture in pixels, limit of the completion in tokens."""

    path: str
    adapter: Path | None
    dtype: str
    attn_implementation: str
    mode: ReasoningMode
    image_size: int
    max_completion_length: int

    @classmethod
    def of_run(cls, run: RunDirectory) -> ModelChoice:
        """The trained model of a run.

        Raises:
            ConfigError: no run there. CheckpointError: its training has not ended.
        """
        cfg = run.stored_config(TrainConfig)
        path, adapter = run.weights(str(cfg.model.path))
        return replace(_of_config(cfg), path=path, adapter=adapter)

    def spec(self, device: torch.device) -> ModelSpec:
        """How to load the model for a device."""
        from medr1.models.loading import ModelSpec, resolve_attn_implementation

        attention = resolve_attn_implementation(self.attn_implementation, self.dtype, device)
        return ModelSpec(self.path, self.dtype, attention, image_size=self.image_size, adapter=self.adapter)

    def how_to_ask(self) -> dict[str, Any]:
        """What an export stores, so that ``choose`` finds it again."""
        return {key: value for key, value in asdict(self).items() if key not in ("path", "adapter")}


def choose(
    model: str, *, mode: str | None = None, image_size: int | None = None, max_completion_length: int | None = None
) -> ModelChoice:
    """The model meant by ``model``; what is given otherwise goes before what the model itself says.

    In this order: a run directory; an export (a directory with medr1.json); a directory with a PEFT adapter; a name of
    conf/model; a checkpoint directory or hub id, asked as ``model=hf`` would be.

    Raises:
        ConfigError: an unknown mode, or a number that cannot be. CheckpointError: no model there.
    """
    choice = _found(model)
    if mode is not None:
        if mode not in list(ReasoningMode):
            raise ConfigError(f"reasoning {mode!r}: use one of {', '.join(ReasoningMode)}")
        choice = replace(choice, mode=ReasoningMode(mode))
    if image_size is not None:
        token = known_image_token_size(choice.path) or 1  # 1: unknown before it is loaded, and checked then
        if image_size <= 0 or image_size % token:
            near = fitting(image_size, token)
            raise ConfigError(f"image_size {image_size}: pictures are cut into tokens of {token} pixels; use {near}")
        choice = replace(choice, image_size=image_size)
    if max_completion_length is not None:
        if max_completion_length < 1:
            raise ConfigError(f"max_completion_length {max_completion_length}: must be at least 1")
        choice = replace(choice, max_completion_length=max_completion_length)
    return choice


def _found(model: str) -> ModelChoice:
    place = Path(model)
    if RunDirectory(place).config.is_file():
        return ModelChoice.of_run(RunDirectory(place.absolute()))
    if not place.is_dir():
        if model in model_names():
            return _of_config(evaluation_config([f"model={model}"]))
        if place.is_absolute() or model.startswith(".") or len(place.parts) > 2 or place.parts[:1] == ("runs",):
            raise CheckpointError(
                f"model {model}: there is no such directory (looked from {Path.cwd()}); give a run, a checkpoint, "
                f"a hub id or one of {', '.join(model_names())}"
            )
        return _any_checkpoint(model)
    checkpoint = str(place.absolute())
    base, adapter = (_base_of(place), place.absolute()) if (place / ADAPTER_CONFIG).is_file() else (checkpoint, None)
    if not (place / HOW_TO_ASK).is_file():
        return replace(_any_checkpoint(base), adapter=adapter)
    try:
        stored = read_json(place / HOW_TO_ASK)
        return ModelChoice(base, adapter, **{**stored, "mode": ReasoningMode(stored["mode"])})
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{place / HOW_TO_ASK} is damaged: {error}; export the run again") from error


def _any_checkpoint(path: str) -> ModelChoice:
    cfg = evaluation_config(["model=hf"])
    cfg.model.path = path  # not as an override, whose grammar a path may break
    return _of_config(cfg)


def _base_of(adapter: Path) -> str:
    try:
        return str(read_json(adapter / ADAPTER_CONFIG)["base_model_name_or_path"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{adapter / ADAPTER_CONFIG} is damaged: it names no base model ({error})") from error


def _of_config(cfg: DictConfig) -> ModelChoice:
    return ModelChoice(
        path=str(cfg.model.path),
        adapter=None,
        dtype=str(cfg.model.dtype),
        attn_implementation=str(cfg.model.attn_implementation),
        mode=ReasoningMode(cfg.reasoning.mode),
        image_size=int(cfg.data.image_size),
        max_completion_length=int(cfg.evaluation.max_completion_length),
    )
