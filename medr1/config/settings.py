"""Every setting as a plain typed dataclass. Packages below ``workflows`` take these and never the whole config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from medr1.config.enums import (
    Attention,
    Distribution,
    ImportanceSamplingLevel,
    KLLossType,
    LoraTargets,
    LossAggMode,
    LossMode,
    LRSchedulerType,
    OnBadRecord,
    Precision,
    ReleasedAxis,
    ScaleRewards,
    Split,
    TableAxis,
    Tuning,
)

ALL = "all"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass
class RecipeConfig:
    """The numbers that change with the size of the model; the algorithms refer to them."""

    max_steps: int = MISSING
    train_batch_size: int = MISSING
    num_generations: int = MISSING
    rl_learning_rate: float = MISSING
    sft_learning_rate: float = MISSING
    max_completion_length: int = MISSING


@dataclass
class LoraConfig:
    """Low-rank adapters (peft)."""

    r: int = 16
    lora_alpha: int = 32
    target_modules: LoraTargets = LoraTargets.language


@dataclass
class ModelConfig:
    """A checkpoint in the format of Hugging Face: a directory or a hub id.

    ``image_token_size``: side of one image token in pixels; ``image_size`` is a multiple of it.
    """

    name: str = MISSING
    path: str = MISSING
    image_token_size: int = 28
    image_size: int = MISSING
    dtype: Precision = Precision.float32
    attn_implementation: Attention = Attention.auto
    gradient_checkpointing: bool = False
    freeze_vision_tower: bool = False
    tuning: Tuning = Tuning.full
    lora: LoraConfig = field(default_factory=LoraConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)


@dataclass
class ServerConfig(ModelConfig):
    """A model behind an OpenAI-compatible chat server: ``path`` is its name there. Only asked, never trained.

    ``timeout`` and ``backoff`` in seconds. The key itself is in no config, only the name of its variable.
    """

    url: str = MISSING
    api_key_variable: str | None = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 300.0
    max_retries: int = 6
    backoff: float = 1.0
    repetition_penalty: float | None = None


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
    """Reward functions by name, each with its ``weight`` and its own settings. The reward is their weighted sum."""

    name: str = MISSING
    functions: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class RolloutConfig:
    """How completions are generated. ``kind`` is a file of ``medr1.generation.engines``."""

    name: str = MISSING
    kind: str = "local"


@dataclass
class AlgorithmConfig:
    """What every algorithm has."""

    name: str = MISSING
    learning_rate: float = MISSING
    weight_decay: float = 0.0
    lr_scheduler_type: LRSchedulerType = LRSchedulerType.constant
    warmup_ratio: float = 0.0
    max_grad_norm: float = 1.0
    adam_beta2: float = 0.999


@dataclass
class SamplingConfig:
    """How completions are drawn. top_k = 0 means no limit."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_completion_length: int = MISSING


@dataclass
class ObjectiveConfig:
    """The terms of the objective; each is an equation in ``medr1.rl.objective``.

    ``delta`` null: no dual clip. ``mask_truncated_completions``: completions that reach max_completion_length without an
    end token have no loss.
    """

    loss_agg_mode: LossAggMode = MISSING
    importance_sampling_level: ImportanceSamplingLevel = ImportanceSamplingLevel.token
    loss_mode: LossMode = LossMode.clip
    scale_rewards: ScaleRewards = MISSING
    epsilon: float = MISSING
    epsilon_high: float = MISSING
    delta: float | None = None
    beta: float = MISSING
    kl_loss_type: KLLossType = KLLossType.k3
    mask_truncated_completions: bool = False


@dataclass
class GRPOConfig(AlgorithmConfig):
    """Group relative policy optimization.

    ``filter_groups``: so many times a step, prompts whose completions all earned the same are replaced (DAPO).
    """

    num_generations: int = MISSING
    num_iterations: int = 1
    filter_groups: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)


@dataclass
class SFTConfig(AlgorithmConfig):
    """Supervised fine-tuning. ``rationale``: train on the data's rationale where it has one and the mode thinks."""

    rationale: bool = True


@dataclass
class PretrainConfig(AlgorithmConfig):
    """Makes the tiny base model from nothing; see ``medr1.data.sources.phantoms.base_mixture``."""

    images_per_modality: int = MISSING
    binding_steps: int = MISSING
    text_steps: int = MISSING
    ramp: int = MISSING
    image_steps: int = MISSING
    text_batch: int = MISSING
    described: int = MISSING
    images: int = MISSING
    words: int = MISSING
    careless: float = MISSING
    letter_weight: float = MISSING
    vocab_size: int = MISSING


@dataclass
class ZeroShotConfig(AlgorithmConfig):
    """No training: the model as it is."""


@dataclass
class TrainerConfig:
    """Settings of Lightning's Trainer and of the optimizer step.

    ``train_batch_size``: prompts per optimizer step over all devices (verl: data.train_batch_size). ``max_steps`` null:
    as many steps as ``num_train_epochs`` passes over the training records take.

    ``max_tokens_per_device``: tokens of prompts and completions in one micro-batch (verl: ppo_max_token_len_per_gpu). A
    larger step is split into micro-batches, with the same result. 0: no split; each prompt is then encoded only once.
    """

    name: str = MISSING
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: Distribution = Distribution.auto
    max_steps: int | None = MISSING
    num_train_epochs: float | None = None
    train_batch_size: int = MISSING
    max_tokens_per_device: int = 0
    save_steps: int = 25
    logging_steps: int = 1


@dataclass
class TrackingConfig:
    """MLflow. ``uri`` is a SQLite file or a server; ``log_completions_steps`` steps a table of samples is logged."""

    name: str = MISSING
    enabled: bool = True
    uri: str = MISSING
    experiment: str = "medr1"
    log_completions_steps: int = 25
    num_completions: int = 8


@dataclass
class EvaluationConfig:
    """Greedy evaluation over the test records of all modalities and question types."""

    batch_size: int = 128
    max_completion_length: int = MISSING
    blank_image: bool = True
    shuffled_image: bool = True
    limit: int | None = None


@dataclass
class SweepConfig:
    """Several runs and their table: what its rows and columns are. ``name`` is null in a single run or a plain -m.

    ``stop_on_failure``: the first run that fails ends the sweep; otherwise the others go on.
    """

    name: str | None = None
    rows: str | None = None
    columns: TableAxis = TableAxis.modality
    stop_on_failure: bool = False


@dataclass
class CommonConfig:
    """What training and evaluation share."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    modality: ModalityConfig = MISSING
    question_type: QuestionTypeConfig = MISSING
    reasoning: ReasoningConfig = MISSING
    rollout: RolloutConfig = MISSING
    tracking: TrackingConfig = MISSING
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    output_dir: str = "runs"


@dataclass
class TrainConfig(CommonConfig):
    """``python train.py``. ``resume`` continues a run from its own stored config. ``plan`` says what the run needs
    instead of running it, on this machine or on a GPU of ``plan_memory`` GiB."""

    reward: RewardConfig = MISSING
    algorithm: AlgorithmConfig = MISSING
    trainer: TrainerConfig = MISSING
    sweep: SweepConfig = field(default_factory=SweepConfig)
    resume: str | None = None
    plan: bool = False
    plan_memory: float | None = None


@dataclass
class EvaluateConfig(CommonConfig):
    """``python evaluate.py``. ``run`` evaluates a finished run again, ``sweep`` makes the tables of a sweep again,
    ``audit`` examines the question files of a place, ``resume`` continues an evaluation that was stopped; without any
    the model stands for itself (zero-shot). ``export`` writes the model of ``run`` into a new directory, with ``merge``
    as one checkpoint, without as a LoRA adapter."""

    resume: str | None = None
    run: str | None = None
    sweep: str | None = None
    audit: str | None = None
    export: str | None = None
    merge: bool = True
