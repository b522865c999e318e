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
    """Settings of every algorithm. Each algorithm adds its own, see ``medr1.training.algorithms``."""

    name: str = MISSING
    """Name of this choice of the group, in run directories, tables and MLflow."""
    kind: str = MISSING
    """Component that trains, set by the schema of the choice.

    TRL: -. verl: algorithm.adv_estimator."""
    learning_rate: float = MISSING
    """Learning rate of AdamW after the warm-up.

    TRL: learning_rate. verl: actor_rollout_ref.actor.optim.lr."""
    weight_decay: float = 0.0
    """Weight decay of AdamW. 0: none.

    TRL: weight_decay. verl: actor_rollout_ref.actor.optim.weight_decay."""
    lr_scheduler_type: LRSchedulerType = LRSchedulerType.constant
    """Course of the learning rate after the warm-up: constant, or linear or cosine decay to 0 in the last step.

    TRL: lr_scheduler_type. verl: actor_rollout_ref.actor.optim.lr_scheduler_type."""
    warmup_ratio: float = 0.0
    """Share of the optimizer steps over which the learning rate rises linearly. 0: no warm-up.

    TRL: warmup_steps. verl: actor_rollout_ref.actor.optim.lr_warmup_steps_ratio."""
    max_grad_norm: float = 1.0
    """Norm to which the gradient is clipped.

    TRL: max_grad_norm. verl: actor_rollout_ref.actor.grad_clip."""
    adam_beta2: float = 0.999
    """Decay of AdamW's second moment.

    TRL: adam_beta2. verl: actor_rollout_ref.actor.optim.betas."""


@dataclass
class SamplingConfig:
    """How completions are sampled in training."""

    temperature: float = 1.0
    """Temperature of the softmax, in sampling and in scoring.

    TRL: temperature. verl: actor_rollout_ref.rollout.temperature."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probabilities sum to at least ``top_p``. 1: from all.

    TRL: top_p. verl: actor_rollout_ref.rollout.top_p."""
    top_k: int = 0
    """Sample from the ``top_k`` most likely tokens. 0: from all.

    TRL: top_k. verl: actor_rollout_ref.rollout.top_k."""
    max_completion_length: int = MISSING
    """Maximum number of tokens of a completion, its end token included.

    TRL: max_completion_length. verl: data.max_response_length."""


@dataclass
class ObjectiveConfig:
    """The terms of the loss; their equations are in ``medr1.rl.objective``."""

    loss_agg_mode: LossAggMode = MISSING
    """How the losses of the tokens are reduced to one number.

    TRL: loss_type. verl: actor_rollout_ref.actor.loss_agg_mode."""
    importance_sampling_level: ImportanceSamplingLevel = ImportanceSamplingLevel.token
    """Whether each token has its own importance ratio, or all tokens of a completion share one (``sequence``, GSPO).

    TRL: importance_sampling_level. verl: actor_rollout_ref.actor.policy_loss.loss_mode."""
    loss_mode: LossMode = LossMode.clip
    """PPO's clipped surrogate (``clip``), or a bounded weight that keeps every token's gradient (``cispo``).

    TRL: loss_type. verl: actor_rollout_ref.actor.policy_loss.loss_mode."""
    scale_rewards: ScaleRewards = MISSING
    """Standard deviation that advantages are divided by: of the group, of the batch, or none.

    TRL: scale_rewards. verl: algorithm.norm_adv_by_std_in_grpo."""
    epsilon: float = MISSING
    """Lower clip bound: the ratio is clipped at 1 - ``epsilon``.

    TRL: epsilon. verl: actor_rollout_ref.actor.clip_ratio_low."""
    epsilon_high: float = MISSING
    """Upper clip bound: the ratio is clipped at 1 + ``epsilon_high``; with ``cispo``, at ``epsilon_high``.

    TRL: epsilon_high. verl: actor_rollout_ref.actor.clip_ratio_high."""
    delta: float | None = None
    """Dual clip: bound of the ratio where the advantage is negative. null: no bound.

    TRL: delta. verl: actor_rollout_ref.actor.clip_ratio_c."""
    beta: float = MISSING
    """Weight of the KL divergence from the reference policy. 0: no reference policy is kept.

    TRL: beta. verl: actor_rollout_ref.actor.kl_loss_coef."""
    kl_loss_type: KLLossType = KLLossType.k3
    """Estimator of the KL divergence.

    TRL: -. verl: actor_rollout_ref.actor.kl_loss_type."""
    mask_truncated_completions: bool = False
    """Exclude completions that reach ``max_completion_length`` without an end token from the loss.

    TRL: mask_truncated_completions. verl: -."""


@dataclass
class TrainerConfig:
    """Devices, number of steps and batch size."""

    name: str = MISSING
    """Name of this choice of the group."""
    accelerator: str = "auto"
    """Lightning's accelerator: ``auto``, ``cpu`` or ``gpu``.

    TRL: use_cpu. verl: trainer.device."""
    devices: int = 1
    """Devices of each node, one process for each.

    TRL: -. verl: trainer.n_gpus_per_node."""
    num_nodes: int = 1
    """Number of nodes.

    TRL: -. verl: trainer.nnodes."""
    strategy: Distribution = Distribution.auto
    """One process (``auto``), or several that each hold the whole model (``ddp``) or a shard of it (``fsdp``).

    TRL: fsdp. verl: actor_rollout_ref.actor.strategy."""
    max_steps: int | None = MISSING
    """Training steps, each with ``num_iterations`` optimizer steps. null: computed from ``num_train_epochs``.

    TRL: max_steps. verl: trainer.total_training_steps."""
    num_train_epochs: float | None = None
    """Passes over the training records, if ``max_steps`` is null.

    TRL: num_train_epochs. verl: trainer.total_epochs."""
    train_batch_size: int = MISSING
    """Prompts of a training step, over all devices.

    TRL: per_device_train_batch_size. verl: data.train_batch_size."""
    max_tokens_per_device: int = 0
    """Maximum number of tokens, of prompts and completions, in a micro-batch. A larger step is split, with the same
    result. 0: never split; with GRPO each prompt is then encoded only once.

    TRL: gradient_accumulation_steps. verl: actor_rollout_ref.actor.ppo_max_token_len_per_gpu."""
    save_steps: int = 25
    """Training steps between two checkpoints.

    TRL: save_steps. verl: trainer.save_freq."""
    logging_steps: int = 1
    """Training steps between two points of the logged curves.

    TRL: logging_steps. verl: -."""


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
