"""The typed schema of every setting, and the checks that no type can express.

Imported before anything heavy: a misspelt or impossible value must fail within a second or two, so nothing here may
import torch. Every number of a recipe stands once, in conf/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from medr1.errors import ConfigError
from medr1.reasoning import ReasoningMode
from medr1.records import Modality, QuestionType

ALL = "all"
PATCH = 28  # pixels of one image token of the Qwen-VL families: 14 x 14 patches, merged 2 x 2


class Tuning(StrEnum):
    """Which weights are trained: all of them, or LoRA adapters."""

    full = "full"
    lora = "lora"


class Precision(StrEnum):
    """Precision of the weights and the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Attention(StrEnum):
    """Attention implementation of transformers."""

    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


class Schedule(StrEnum):
    """Learning rate after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Split(StrEnum):
    """How OmniMedVQA's records are divided into training and test."""

    released = "released"
    image_grouped = "image_grouped"
    test_only = "test_only"


class ReleasedAxis(StrEnum):
    """Which of Med-R1's two families of released splits is read; ``auto`` takes the axis that is narrowed."""

    auto = "auto"
    modality = "modality"
    question_type = "question_type"


class OnBadRecord(StrEnum):
    """What happens to records that cannot be used. They are counted and reported either way."""

    error = "error"
    skip = "skip"


class Aggregation(StrEnum):
    """How the losses of tokens become one number; see ``medr1.rl.objective``."""

    sequence_mean = "sequence_mean"
    token_mean = "token_mean"
    constant = "constant"


class RewardScaling(StrEnum):
    """What advantages are divided by."""

    group = "group"
    batch = "batch"
    none = "none"


class KLEstimator(StrEnum):
    """Estimator of the divergence from the reference policy (Schulman's k1, k2, k3)."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class LoraTargets(StrEnum):
    """Which half of the model carries adapters."""

    language = "language"
    vision = "vision"
    both = "both"


@dataclass
class RecipeConfig:
    """The numbers that change with the size of the model; the algorithms refer to them."""

    steps: int = MISSING
    prompts_per_step: int = MISSING
    group_size: int = MISSING
    rl_learning_rate: float = MISSING
    sft_learning_rate: float = MISSING
    max_new_tokens: int = MISSING


@dataclass
class LoraConfig:
    """Low-rank adapters (peft)."""

    rank: int = 16
    alpha: int = 32
    targets: LoraTargets = LoraTargets.language


@dataclass
class ModelConfig:
    """One checkpoint in the format of Hugging Face: a directory or a hub id."""

    name: str = MISSING
    path: str = MISSING
    image_size: int = MISSING
    precision: Precision = Precision.float32
    attention: Attention = Attention.sdpa
    gradient_checkpointing: bool = False
    freeze_vision: bool = False
    tuning: Tuning = Tuning.full
    lora: LoraConfig = field(default_factory=LoraConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)


@dataclass
class DataConfig:
    """What every data source has: pictures are shown to the model at image_size x image_size pixels."""

    name: str = MISSING
    image_size: int = MISSING


@dataclass
class PhantomsConfig(DataConfig):
    """The embedded world."""

    seed: int = 0
    train_images_per_modality: int = 400
    test_images_per_modality: int = 80
    shortcut: float = 0.0


@dataclass
class OmniMedVQAConfig(DataConfig):
    """OmniMedVQA's release layout under ``root``; ``splits`` defaults to its Splits folder."""

    root: str = MISSING
    splits: str | None = None
    split: Split = Split.released
    axis: ReleasedAxis = ReleasedAxis.auto
    on_bad_record: OnBadRecord = OnBadRecord.skip
    test_fraction: float = 0.2
    seed: int = 0
    max_image_pixels: int = 50_000_000
    cache_dir: str = MISSING


@dataclass
class ModalityConfig:
    """Modality of the training records; the test covers all."""

    name: str = MISSING


@dataclass
class QuestionTypeConfig:
    """Question type of the training records; the test covers all."""

    name: str = MISSING


@dataclass
class ReasoningConfig:
    """Where the reasoning stands: prompt, grammar and reader follow from it."""

    mode: str = MISSING


@dataclass
class RewardConfig:
    """Weights of the named parts; the reward of a completion is their weighted sum."""

    accuracy: float = MISSING
    format: float = MISSING


@dataclass
class AlgorithmConfig:
    """What every algorithm has."""

    name: str = MISSING
    learning_rate: float = MISSING
    weight_decay: float = 0.0
    schedule: Schedule = Schedule.constant
    warmup_fraction: float = 0.0
    max_grad_norm: float = 1.0
    adam_beta2: float = 0.999


@dataclass
class SamplingConfig:
    """How completions are drawn. top_k = 0 means no limit."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = MISSING


@dataclass
class ObjectiveConfig:
    """The terms of the objective; each is an equation in ``medr1.rl.objective``."""

    aggregation: Aggregation = MISSING
    reward_scaling: RewardScaling = MISSING
    clip_low: float = MISSING
    clip_high: float = MISSING
    beta: float = MISSING
    kl_estimator: KLEstimator = KLEstimator.k3


@dataclass
class GRPOConfig(AlgorithmConfig):
    """Group relative policy optimization."""

    group_size: int = MISSING
    updates_per_rollout: int = 1
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)


@dataclass
class SFTConfig(AlgorithmConfig):
    """Supervised fine-tuning. ``rationale``: train on the data's rationale where it has one and the mode thinks."""

    rationale: bool = True


@dataclass
class PretrainConfig(AlgorithmConfig):
    """Makes the tiny base model from nothing; see ``medr1.data.base_mixture``."""

    images_per_modality: int = MISSING
    binding_steps: int = MISSING
    text_steps: int = MISSING
    ramp: int = MISSING
    picture_steps: int = MISSING
    text_batch: int = MISSING
    pictures: int = MISSING
    words: int = MISSING
    careless: float = MISSING
    letter_weight: float = MISSING
    vocab_size: int = MISSING


@dataclass
class TrainerConfig:
    """Handed to Lightning's Trainer. ``steps`` optimizer steps of ``prompts_per_step`` prompts over all devices."""

    name: str = MISSING
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    steps: int = MISSING
    prompts_per_step: int = MISSING
    checkpoint_every: int = 25
    log_every: int = 1


@dataclass
class TrackingConfig:
    """MLflow. ``uri`` is a SQLite file or a server; ``completions_every`` steps a table of samples is logged."""

    name: str = MISSING
    enabled: bool = True
    uri: str = MISSING
    experiment: str = "medr1"
    completions_every: int = 25
    completions: int = 8


@dataclass
class EvaluationConfig:
    """Greedy evaluation over the test records of all modalities and question types."""

    batch_size: int = 128
    max_new_tokens: int = MISSING
    blank_image: bool = True
    limit: int | None = None


@dataclass
class CommonConfig:
    """What training and evaluation share."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    modality: ModalityConfig = MISSING
    question_type: QuestionTypeConfig = MISSING
    reasoning: ReasoningConfig = MISSING
    tracking: TrackingConfig = MISSING
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    output_dir: str = "runs"


@dataclass
class TrainConfig(CommonConfig):
    """``python train.py``. ``resume`` continues a run from its own stored config."""

    reward: RewardConfig = MISSING
    algorithm: AlgorithmConfig = MISSING
    trainer: TrainerConfig = MISSING
    resume: str | None = None


@dataclass
class EvaluateConfig(CommonConfig):
    """``python evaluate.py``. ``run`` evaluates a finished run; without it the model stands for itself (zero-shot)."""

    run: str | None = None


SCHEMAS: dict[tuple[str | None, str], type] = {
    (None, "train_schema"): TrainConfig,
    (None, "evaluate_schema"): EvaluateConfig,
    ("model", "schema"): ModelConfig,
    ("data", "phantoms_schema"): PhantomsConfig,
    ("data", "omnimedvqa_schema"): OmniMedVQAConfig,
    ("modality", "schema"): ModalityConfig,
    ("question_type", "schema"): QuestionTypeConfig,
    ("reasoning", "schema"): ReasoningConfig,
    ("reward", "schema"): RewardConfig,
    ("algorithm", "grpo_schema"): GRPOConfig,
    ("algorithm", "sft_schema"): SFTConfig,
    ("algorithm", "pretrain_schema"): PretrainConfig,
    ("trainer", "schema"): TrainerConfig,
    ("tracking", "schema"): TrackingConfig,
}


def run_directory(output_dir: str, given: str | None, *parts: Any) -> str:
    """The directory of a job: the one given (a run that is resumed), or a new one named by time and settings."""
    if given:
        return str(Path(given).absolute())
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", "_".join(str(p) for p in parts))
    return str(Path(output_dir).absolute() / f"{stamp}_{name}")


def register() -> None:
    """Makes schemas and resolvers known to Hydra; call before composing."""
    store = ConfigStore.instance()
    for (group, name), schema in SCHEMAS.items():
        store.store(group=group, name=name, node=schema)
    OmegaConf.register_new_resolver("run_directory", run_directory, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("absolute", lambda path: str(Path(path).absolute()), replace=True)
    OmegaConf.register_new_resolver("package", lambda path: str(Path(__file__).parent / path), replace=True)
    OmegaConf.register_new_resolver("sum", lambda *numbers: sum(numbers), replace=True)
    OmegaConf.register_new_resolver("ratio", lambda part, whole: part / whole, replace=True)


def key_paths(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema; used to name the nearest valid one to a misspelt key."""
    for item in fields(schema):
        path = f"{prefix}{item.name}"
        yield path
        for candidate in _schemas_of(item.name, item.type):
            yield from key_paths(candidate, f"{path}.")


def _schemas_of(name: str, annotation: Any) -> list[type]:
    groups = [schema for (group, _), schema in SCHEMAS.items() if group == name]
    own = globals().get(annotation if isinstance(annotation, str) else getattr(annotation, "__name__", ""))
    return groups or ([own] if isinstance(own, type) and is_dataclass(own) else [])


def check(cfg: DictConfig) -> None:
    """Checks what no type can express, before anything is loaded.

    Raises:
        ConfigError: names the key, the value and what to do.
    """
    _check_keys(cfg)
    _check_names(cfg)
    _check_ranges(cfg)
    size = int(cfg.data.image_size)
    if size % PATCH or size <= 0:
        near = max(PATCH, round(size / PATCH) * PATCH)
        raise ConfigError(
            f"data.image_size={size}: pictures are cut into {PATCH} x {PATCH} pixel tokens; use data.image_size={near}"
        )
    if OmegaConf.is_missing(cfg.model, "path"):
        raise ConfigError(f"model={cfg.model.name} needs model.path=DIRECTORY_OR_HUB_ID")
    if cfg.data.name == "omnimedvqa":
        _check_root(cfg)
    if "trainer" in cfg:
        _check_training(cfg)


def _check_keys(cfg: DictConfig, prefix: str = "") -> None:
    """Hydra lets ``+key=value`` add what the schema does not have, and nothing would ever read it."""
    known = [item.name for item in fields(OmegaConf.get_type(cfg))]  # type: ignore[arg-type]
    for key in map(str, cfg):
        if key not in known:
            place = prefix.rstrip(".") or "the config"
            raise ConfigError(f"+{prefix}{key}: there is no such setting; {place} has {', '.join(known)}")
        plain = OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, key)
        if not plain and isinstance(cfg[key], DictConfig):
            _check_keys(cfg[key], f"{prefix}{key}.")


def _check_names(cfg: DictConfig) -> None:
    for key, allowed in (
        ("modality.name", [*Modality, ALL]),
        ("question_type.name", [*QuestionType, ALL]),
        ("reasoning.mode", list(ReasoningMode)),
    ):
        value = OmegaConf.select(cfg, key)
        if value not in allowed:
            raise ConfigError(f"{key}={value}: use one of {', '.join(map(str, allowed))}")


_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "data.shortcut": (0, 1),
    "data.train_images_per_modality": (1, 1e6),
    "data.test_images_per_modality": (1, 1e6),
    "data.test_fraction": (0.01, 0.99),
    "data.max_image_pixels": (1, 1e10),
    "algorithm.learning_rate": (0, 1),
    "algorithm.warmup_fraction": (0, 1),
    "algorithm.max_grad_norm": (1e-9, 1e9),
    "algorithm.group_size": (2, 4096),
    "algorithm.updates_per_rollout": (1, 1000),
    "algorithm.sampling.temperature": (1e-3, 100),
    "algorithm.sampling.top_p": (1e-6, 1),
    "algorithm.sampling.top_k": (0, 1e9),
    "algorithm.sampling.max_new_tokens": (1, 100_000),
    "algorithm.objective.clip_low": (0, 1),
    "algorithm.objective.clip_high": (0, 100),
    "algorithm.objective.beta": (0, 100),
    "reward.accuracy": (0, 1000),
    "reward.format": (0, 1000),
    "trainer.steps": (1, 1e9),
    "trainer.prompts_per_step": (1, 1e6),
    "trainer.devices": (1, 4096),
    "trainer.checkpoint_every": (1, 1e9),
    "trainer.log_every": (1, 1e9),
    "evaluation.batch_size": (1, 1e6),
    "evaluation.max_new_tokens": (1, 100_000),
    "evaluation.limit": (1, 1e9),
    "model.lora.rank": (1, 4096),
}


def _check_ranges(cfg: DictConfig) -> None:
    for key, (low, high) in _RANGES.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{key}={value}: must lie between {low:g} and {high:g}")


def _check_root(cfg: DictConfig) -> None:
    if OmegaConf.is_missing(cfg.data, "root"):
        raise ConfigError("data=omnimedvqa needs data.root=DIR, the folder that holds Images/ and QA_information/")
    for key in ("root", "splits"):
        value = cfg.data[key]
        if value is not None and not Path(value).exists():
            raise ConfigError(f"data.{key}={value}: no such file or folder (looked from {Path.cwd()})")


def _check_training(cfg: DictConfig) -> None:
    if cfg.data.name == "omnimedvqa" and cfg.data.split == Split.test_only:
        raise ConfigError("data.split=test_only leaves nothing to train on; use evaluate.py, or another data.split")
    if cfg.trainer.prompts_per_step % (cfg.trainer.devices * cfg.trainer.num_nodes):
        raise ConfigError(
            f"trainer.prompts_per_step={cfg.trainer.prompts_per_step} cannot be shared evenly by "
            f"{cfg.trainer.devices * cfg.trainer.num_nodes} processes"
        )
    if cfg.algorithm.name == "pretrain" and cfg.trainer.devices * cfg.trainer.num_nodes > 1:
        raise ConfigError("algorithm=pretrain runs in one process; use trainer.devices=1")
    if "sampling" in cfg.algorithm and cfg.reward.accuracy == cfg.reward.format == 0:
        raise ConfigError("reward.accuracy=0 and reward.format=0: every advantage would be zero; give one a weight")
    if cfg.model.tuning == Tuning.lora and cfg.model.freeze_vision and cfg.model.lora.targets == LoraTargets.vision:
        raise ConfigError("model.freeze_vision=true with model.lora.targets=vision leaves nothing to train")
