"""Finds the model that a user names, and the settings it was trained with.

Reads small files only, so that a mistake is reported before torch is loaded.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medr1.atomic_write import read_json
from medr1.config.enums import CheckpointChoice, Resize
from medr1.config.image_tokens import fitting, known_image_token_size
from medr1.config.settings import CommonConfig, DataConfig, EvaluateConfig, ModelConfig, TrainConfig
from medr1.config.validate import typed
from medr1.data.image_size import ImageSize
from medr1.domain.reasoning import ReasoningMode
from medr1.errors import CheckpointError, ConfigError
from medr1.runs.run_directory import ADAPTER_CONFIG, RunDirectory
from medr1.workflows.compose import evaluation_config, model_names

if TYPE_CHECKING:
    import torch

    from medr1.models.loading import ModelSpec

PROMPT_SETTINGS = "medr1.json"  # in an export, beside the weights: mode, image size and the like


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model to load. ``path``: checkpoint or hub id; ``adapter``: PEFT adapter. The rest are the settings of its
    training: reasoning mode, size of the images, maximum completion length in tokens."""

    path: str
    adapter: Path | None
    dtype: str
    attn_implementation: str
    mode: ReasoningMode
    image_size: int
    max_completion_length: int
    # Exports of earlier versions do not have these.
    resize: Resize = Resize.square
    min_pixels: int = DataConfig.min_pixels
    max_pixels: int = DataConfig.max_pixels
    image_token_size: int = ModelConfig.image_token_size
    quantization: str = "none"

    @classmethod
    def of_run(
        cls, run: RunDirectory, base: str | None = None, checkpoint: CheckpointChoice | None = None
    ) -> ModelChoice:
        """The trained model of a run. ``base``, ``checkpoint``: see ``RunDirectory.weights``.

        Raises:
            ConfigError: no run there. CheckpointError: its training has not ended.
        """
        cfg = run.stored_config(TrainConfig)
        path, adapter = run.weights(base or cfg.model.path, checkpoint)
        return replace(_of_config(cfg), path=path, adapter=adapter)

    def spec(self, device: torch.device) -> ModelSpec:
        """How to load the model for a device."""
        from medr1.models.loading import ModelSpec, resolve_attn_implementation

        attention = resolve_attn_implementation(self.attn_implementation, self.dtype, device)
        square = self.resize == Resize.square
        return ModelSpec(
            self.path,
            self.dtype,
            attention,
            image_size=self.image_size if square else None,
            image_token_size=None if square else self.image_token_size,
            adapter=self.adapter,
            quantization=self.quantization,
        )

    @property
    def size(self) -> ImageSize:
        """The size to which images are resized."""
        return ImageSize(Resize(self.resize), self.image_size, self.min_pixels, self.max_pixels, self.image_token_size)

    def prompt_settings(self) -> dict[str, Any]:
        """What an export stores in medr1.json, for ``choose``."""
        return {key: value for key, value in asdict(self).items() if key not in ("path", "adapter")}


def choose(
    model: str, *, mode: str | None = None, image_size: int | None = None, max_completion_length: int | None = None
) -> ModelChoice:
    """The model that ``model`` names. The other arguments replace the settings it was trained with.

    ``model`` is the first of these that exists: a run directory; an export (a directory with medr1.json); a directory
    with a PEFT adapter; a name in conf/model; a checkpoint directory or hub id, with the settings of ``model=hf``.

    Raises:
        ConfigError: unknown mode, or a number out of range. CheckpointError: no such model.
    """
    choice = _found(model)
    if mode is not None:
        if mode not in list(ReasoningMode):
            raise ConfigError(f"reasoning {mode!r}: use one of {', '.join(ReasoningMode)}")
        choice = replace(choice, mode=ReasoningMode(mode))
    if image_size is not None:
        if choice.resize == Resize.native:
            raise ConfigError("image_size has no effect with the model's resize=native; leave it out")
        token = known_image_token_size(choice.path) or 1  # 1: unknown; checked when the model is loaded
        if image_size <= 0 or image_size % token:
            near = fitting(image_size, token)
            raise ConfigError(
                f"image_size {image_size}: not a multiple of {token}, the pixels of an image token; use {near}"
            )
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
            return _of_config(typed(evaluation_config([f"model={model}"]), EvaluateConfig))
        if place.is_absolute() or model.startswith(".") or len(place.parts) > 2 or place.parts[:1] == ("runs",):
            raise CheckpointError(
                f"model {model}: there is no such directory (looked from {Path.cwd()}); give a run, a checkpoint, "
                f"a hub id or one of {', '.join(model_names())}"
            )
        return _any_checkpoint(model)
    checkpoint = str(place.absolute())
    base, adapter = (_base_of(place), place.absolute()) if (place / ADAPTER_CONFIG).is_file() else (checkpoint, None)
    if not (place / PROMPT_SETTINGS).is_file():
        return replace(_any_checkpoint(base), adapter=adapter)
    try:
        stored = read_json(place / PROMPT_SETTINGS)
        return ModelChoice(base, adapter, **{**stored, "mode": ReasoningMode(stored["mode"])})
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{place / PROMPT_SETTINGS} is damaged: {error}; export the run again") from error


def _any_checkpoint(path: str) -> ModelChoice:
    cfg = evaluation_config(["model=hf"])
    cfg.model.path = path  # not as an override: a path may contain what their grammar does not allow
    return _of_config(typed(cfg, EvaluateConfig))


def _base_of(adapter: Path) -> str:
    try:
        return str(read_json(adapter / ADAPTER_CONFIG)["base_model_name_or_path"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{adapter / ADAPTER_CONFIG} is damaged: it names no base model ({error})") from error


def _of_config(cfg: CommonConfig) -> ModelChoice:
    return ModelChoice(
        path=cfg.model.path,
        adapter=None,
        dtype=str(cfg.model.dtype),
        attn_implementation=str(cfg.model.attn_implementation),
        mode=ReasoningMode(cfg.reasoning.mode),
        image_size=cfg.data.image_size,
        max_completion_length=cfg.evaluation.max_completion_length,
        resize=Resize(cfg.data.resize),
        min_pixels=cfg.data.min_pixels,
        max_pixels=cfg.data.max_pixels,
        image_token_size=cfg.model.image_token_size,
        quantization=str(cfg.model.quantization),
    )
