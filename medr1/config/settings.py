"""Every setting as a plain typed dataclass. Packages below ``workflows`` take these, not the whole config; exceptions:
``Algorithm`` and ``RecordBatches``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from medr1.config.enums import (
    Accelerator,
    Attention,
    CheckpointChoice,
    Curriculum,
    Distribution,
    ImportanceSamplingLevel,
    ImportanceSamplingMode,
    KLLossType,
    LoraTargets,
    LossAggMode,
    LossMode,
    LRSchedulerType,
    Precision,
    Quantization,
    Resize,
    ScaleRewards,
    TableAxis,
    Tuning,
)

# Metadata of a setting. Settings of a run keep their values when it is resumed, and enter the hash that names a run of
# a sweep, unless they are marked.
UNHASHED = {"is_hashed": False}
MOVABLE = {"may_change": True}  # where something lies; that it has the same content is checked by its fingerprint
NEUTRAL = {**UNHASHED, **MOVABLE}  # cannot change an answer
BEFORE = "before"  # see ``added``
SAME_RECORDS = {"same_records": True}  # a setting of the data that leaves the validation and the test records the same
OTHER_TEST = {"other_test": True}  # a setting of the data with which each value has other test records


def added(before: Any) -> dict[str, Any]:
    """Metadata of a setting that was added to a group: the value with which a run does what it did without it.

    Configs that were stored before it are read with this value, and it does not enter the hash that names a run, so
    that repeating the command of an older sweep finds its runs.
    """
    return {BEFORE: before}


# By which a checkpoint can be chosen. Those of the second line need evaluation.blank_image.
VALIDATION_METRICS = ("validation/accuracy", "validation/format_rate", "validation/completion_length")
BLIND_VALIDATION_METRICS = ("validation/blank_image_accuracy", "validation/image_dependence")


def greater_is_better(metric: str) -> bool:
    """Whether a larger value of a validation metric is better: always, except for lengths."""
    return not metric.endswith("length")


ALL = "all"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass
class RecipeConfig:
    """Defaults that depend on the size of the model. The algorithms and trainers interpolate them."""

    max_steps: int = MISSING
    """Default of ``trainer.max_steps``."""
    train_batch_size: int = MISSING
    """Default of ``trainer.train_batch_size``."""
    num_generations: int = MISSING
    """Default of ``algorithm.num_generations``."""
    rl_learning_rate: float = MISSING
    """Default of ``algorithm.learning_rate`` for GRPO and its variants."""
    sft_learning_rate: float = MISSING
    """Default of ``algorithm.learning_rate`` for SFT."""
    max_completion_length: int = MISSING
    """Default of the maximum completion length, in training and in evaluation."""


@dataclass
class LoraConfig:
    """Low-rank adapters (peft)."""

    r: int = 16
    """Rank of the adapters.

    TRL: lora_r. verl: actor_rollout_ref.model.lora_rank."""
    lora_alpha: int = 32
    """Scale of the adapters: their output is multiplied by ``lora_alpha / r``.

    TRL: lora_alpha. verl: actor_rollout_ref.model.lora_alpha."""
    target_modules: LoraTargets = LoraTargets.language
    """Which linear layers get adapters: those of the language model, of the vision tower, or of both.

    TRL: lora_target_modules. verl: actor_rollout_ref.model.target_modules."""


@dataclass
class ModelConfig:
    """A checkpoint in Hugging Face format: a local directory or a hub id."""

    kind: str = "hf"
    """Component that serves the model: ``hf`` loads it, ``server`` is a chat server."""
    name: str = MISSING
    """Name of the model in run directories, tables and MLflow."""
    path: str = field(default=MISSING, metadata=MOVABLE)
    """Directory or hub id of the checkpoint.

    TRL: model_name_or_path. verl: actor_rollout_ref.model.path."""
    image_token_size: int = 28
    """Side of one image token in pixels. ``data.image_size`` must be a multiple of it."""
    image_size: int = MISSING
    """Default of ``data.image_size``."""
    dtype: Precision = Precision.float32
    """Precision of the weights and of the computation.

    TRL: dtype. verl: actor_rollout_ref.actor.fsdp_config.model_dtype."""
    attn_implementation: Attention = Attention.auto
    """Attention implementation of transformers. ``auto`` takes FlashAttention 2 where it is installed and the dtype
    allows it, else PyTorch's own (``sdpa``).

    TRL: attn_implementation. verl: -."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, which needs less memory and more time.

    TRL: gradient_checkpointing. verl: actor_rollout_ref.model.enable_gradient_checkpointing."""
    freeze_vision_tower: bool = False
    """Do not train the vision tower. Each image is then encoded only once per step.

    TRL: -. verl: actor_rollout_ref.actor.freeze_vision_tower."""
    tuning: Tuning = Tuning.full
    """Train all weights (``full``) or LoRA adapters (``lora``).

    TRL: use_peft. verl: -."""
    quantization: Quantization = Quantization.none
    """Store the linear layers of the base model in 4 bits (``nf4``). Adapters on them are trained (QLoRA).

    TRL: load_in_4bit. verl: -."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapters of ``model.tuning=lora``."""
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    """Defaults for this size of model."""


@dataclass
class ServerConfig(ModelConfig):
    """A model behind an OpenAI-compatible chat server. It is evaluated, never trained."""

    kind: str = "server"
    path: str = MISSING
    """The model's name at the server."""
    url: str = field(default=MISSING, metadata=NEUTRAL)
    """Address of the chat API, without ``/chat/completions``: ``http://HOST:PORT/v1``."""
    api_key_variable: str | None = field(default="OPENAI_API_KEY", metadata=NEUTRAL)
    """Environment variable with the API key. null sends no key. The key itself is never stored."""
    concurrency: int = field(default=8, metadata=NEUTRAL)
    """Number of requests at a time."""
    timeout: float = field(default=300.0, metadata=NEUTRAL)
    """Seconds without data from the server after which a request has failed."""
    max_retries: int = field(default=5, metadata=NEUTRAL)
    """Number of times that a failed request is repeated."""
    repetition_penalty: float | None = None
    """Repetition penalty that is sent with each request. null: that of the server. 1.0 is none."""


@dataclass
class FilterConfig:
    """Difficulty of the training records: the pass rate of the model that training starts from, ``model.path``."""

    pass_rate: list[float] | None = None
    """Smallest and largest pass rate of the records that are trained on, such as ``[0.1,0.9]``. null: all records.

    TRL: -. verl: -."""
    num_generations: int = 16
    """Completions of each training record from which its pass rate is computed, for the filter and the curriculum.

    TRL: -. verl: -."""
    temperature: float | None = None
    """Temperature of these completions. null: that of training, ``algorithm.sampling.temperature``; 1.0 if the
    algorithm samples nothing.

    TRL: -. verl: -."""
    seed: int = 0
    """Seed of these completions. It is not that of the run, so that runs with different seeds have the same
    records.

    TRL: -. verl: -."""


@dataclass
class DataConfig:
    """Settings of every data source. Each source adds its own, see ``medr1.data.sources``."""

    name: str = MISSING
    """Name of the choice, shown in MLflow and in reports."""
    kind: str = MISSING
    """Data source, set by the schema of the choice."""
    image_size: int = field(default=MISSING, metadata=SAME_RECORDS)
    """Side length in pixels to which every image is resized. A multiple of model.image_token_size. For
    resize=square."""
    resize: Resize = Resize.square
    """square: every image has the same size; native: images keep their aspect ratio, in whole image tokens."""
    min_pixels: int = field(default=3136, metadata=SAME_RECORDS)
    """Smaller images are enlarged to about so many pixels, for resize=native. The default is 56 x 56."""
    max_pixels: int = field(default=200704, metadata=SAME_RECORDS)
    """Larger images are reduced to at most so many pixels, for resize=native. The default is 448 x 448."""
    dataloader_num_workers: int = field(default=1, metadata=NEUTRAL)
    """Threads that read and encode the images and questions of the next steps, or of the next batches of an evaluation,
    while the current one is computed. As many batches are kept in main memory. 0: each batch when it is needed.

    TRL: dataloader_num_workers. verl: data.dataloader_num_workers."""
    max_images: int = 8
    """Largest number of images of a record. A record with more is refused."""
    validation_fraction: float = 0.0
    """Share of the training images that are used for validation and not for training. 0: none.

    Phantoms are made for it in addition: the training records stay the same."""
    max_train_images: int | None = field(default=None, metadata=SAME_RECORDS)
    """Trains on the records of at most so many images of each modality, a sample. null: on all.

    The sample is taken after the validation records, so that these stay the same, and depends on the contents of the
    records alone. A smaller sample is part of a larger one.

    TRL: -. verl: data.train_max_samples."""
    filter: FilterConfig = field(default_factory=FilterConfig, metadata=SAME_RECORDS)
    """Which training records are trained on, by their difficulty."""
    curriculum: Curriculum = field(default=Curriculum.none, metadata=SAME_RECORDS)
    """Order of the training records in each epoch: shuffled (``none``), or from easy to hard, by falling pass rate.

    TRL: -. verl: data.sampler.class_name."""

    @property
    def needs_pass_rates(self) -> bool:
        """Whether training records are chosen or ordered by their pass rates."""
        return self.filter.pass_rate is not None or self.curriculum is Curriculum.pass_rate


@dataclass
class ModalityConfig:
    """Modality of the training records; the test covers all."""

    name: str = MISSING
    """Modality of the training records, a value of the data, or ``all``. The test records have all modalities."""


@dataclass
class QuestionTypeConfig:
    """Question type of the training records; the test covers all."""

    name: str = MISSING
    """Question type of the training records, a value of the data, or ``all``. The test records have all types."""


@dataclass
class ReasoningConfig:
    """Where the reasoning stands. It determines prompt, format and parser."""

    mode: str = MISSING
    """Reasoning mode, which determines the prompt, the format of completions and the parser."""


@dataclass
class RewardConfig:
    """Reward functions by name, each with its ``weight`` and its own settings."""

    name: str = MISSING
    """Name of this choice of rewards."""
    functions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Reward functions by name, each with its ``weight`` and its own settings. ``function`` names a function of your
    own, as ``my_file.py:my_reward`` or ``my_package.my_reward``.

    TRL: reward_weights. verl: reward.custom_reward_function."""


@dataclass
class RolloutConfig:
    """How completions are generated. ``kind`` is a file of ``medr1.generation.engines``."""

    name: str = MISSING
    """Name of this choice of rollout engine."""
    kind: str = "local"
    """Rollout engine, set by the schema of the choice.

    TRL: use_vllm. verl: actor_rollout_ref.rollout.name."""


@dataclass
class ExternalRolloutConfig(RolloutConfig):
    """Settings of engines that sample outside of the training process, where the log-probabilities of a token differ
    slightly from those that training computes."""

    importance_sampling_correction: bool = True
    """Multiply the policy loss by the ratio of the probabilities that training and sampling give to the completion.

    TRL: vllm_importance_sampling_correction. verl: algorithm.rollout_correction.rollout_is."""
    importance_sampling_mode: ImportanceSamplingMode = ImportanceSamplingMode.token_truncate
    """Whether each token has its own ratio (``token``), or a completion has one (``sequence``). A ratio outside of the
    bounds is set to the bound (``truncate``) or to 0 (``mask``).

    TRL: vllm_importance_sampling_mode. verl: algorithm.rollout_correction.rollout_is."""
    importance_sampling_clip_max: float | None = 3.0
    """Upper bound of the ratio. null: none.

    TRL: vllm_importance_sampling_clip_max. verl: algorithm.rollout_correction.rollout_is_threshold."""
    importance_sampling_clip_min: float | None = None
    """Lower bound of the ratio. null: none.

    TRL: vllm_importance_sampling_clip_min. verl: -."""
    max_logp_difference: float | None = field(default=0.5, metadata=NEUTRAL)
    """Largest mean difference between the log-probabilities of training and of sampling, in nats. If that of a step
    exceeds it, the training ends with an error. null: no limit.

    TRL: -. verl: -."""


@dataclass
class AlgorithmConfig:
    """Settings of every algorithm. Each algorithm adds its own, see ``medr1.training.algorithms``."""

    name: str = MISSING
    """Name of this choice of the group, in run directories, tables and MLflow."""
    kind: str = MISSING
    """Component that trains, set by the schema of the choice.

    TRL: -. verl: -."""
    learning_rate: float = MISSING
    """Learning rate of AdamW after the warm-up.

    TRL: learning_rate. verl: actor_rollout_ref.actor.optim.lr."""
    weight_decay: float = 0.0
    """Weight decay of AdamW. 0: none.

    TRL: weight_decay. verl: actor_rollout_ref.actor.optim.weight_decay."""
    lr_scheduler_type: LRSchedulerType = LRSchedulerType.constant
    """Course of the learning rate after the warm-up: constant, or linear or cosine decay to 0 after the last step.

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
    """Maximum number of tokens of a completion, its EOS token included.

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
    """PPO's clipped surrogate (``clip``), the same without the tokens of large covariance (``clip_cov``), a bounded
    weight that keeps every token's gradient (``cispo``), or a smooth gate (``sapo``).

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
    """Dual clip: bound of the ratio where the advantage is negative, above 1 + ``epsilon_high``. null: no bound.

    TRL: delta. verl: actor_rollout_ref.actor.clip_ratio_c."""
    sapo_temperature_pos: float = 1.0
    """Temperature of the gate of ``sapo`` for completions with a positive advantage.

    TRL: sapo_temperature_pos. verl: actor_rollout_ref.actor.tau_pos."""
    sapo_temperature_neg: float = 1.05
    """Temperature of the gate of ``sapo`` for the other completions.

    TRL: sapo_temperature_neg. verl: actor_rollout_ref.actor.tau_neg."""
    clip_cov_ratio: float = 2e-4
    """Share of the tokens of a step, at least one token, whose gradient ``clip_cov`` removes.

    TRL: -. verl: actor_rollout_ref.actor.policy_loss.clip_cov_ratio."""
    clip_cov_lb: float = 1.0
    """``clip_cov`` draws these tokens from those with a larger covariance.

    TRL: -. verl: actor_rollout_ref.actor.policy_loss.clip_cov_lb."""
    clip_cov_ub: float = 5.0
    """``clip_cov`` draws these tokens from those with a smaller covariance.

    TRL: -. verl: actor_rollout_ref.actor.policy_loss.clip_cov_ub."""
    top_entropy_quantile: float = 1.0
    """Share of the tokens, those of the highest entropy, that have a policy gradient. 1: all tokens.

    TRL: top_entropy_quantile. verl: -."""
    entropy_coef: float = 0.0
    """Weight of the mean entropy of the tokens, which is subtracted from the loss. 0: no entropy bonus.

    TRL: entropy_coef. verl: actor_rollout_ref.actor.entropy_coeff."""
    kl_prcp_coef: float = 0.0
    """PAPO: weight of the KL divergence between the policy with the image and with a masked image, which is subtracted
    from the loss. 0: no masked image.

    TRL: -. verl: -."""
    ori_entropy_loss_coef: float = 0.0
    """PAPO: weight of the entropy of the policy with the image, estimated by the sampled tokens.

    TRL: -. verl: -."""
    aug_entropy_loss_coef: float = 0.0
    """PAPO: weight of the entropy of the policy with the masked image, estimated by the sampled tokens.

    TRL: -. verl: -."""
    black_prob: float = 0.6
    """PAPO: probability with which a patch of the image is made black in the masked image.

    TRL: -. verl: -."""
    patch_size: int = 14
    """PAPO: side of these patches in pixels.

    TRL: -. verl: -."""
    beta: float = MISSING
    """Weight of the KL divergence from the reference policy. 0: no reference policy is kept.

    TRL: beta. verl: actor_rollout_ref.actor.kl_loss_coef."""
    kl_loss_type: KLLossType = KLLossType.k3
    """Estimator of the KL divergence.

    TRL: -. verl: actor_rollout_ref.actor.kl_loss_type."""
    mask_truncated_completions: bool = False
    """Exclude completions that reach ``max_completion_length`` without an EOS token from the loss.

    TRL: mask_truncated_completions. verl: -."""


@dataclass
class TrainerConfig:
    """Devices, number of steps and batch size."""

    name: str = MISSING
    """Name of this choice of the group."""
    accelerator: Accelerator = Accelerator.auto
    """The kind of device: a GPU if there is one (``auto``), the CPU, or a GPU (``gpu``, ``cuda``).

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
    """Maximum number of tokens, of prompts and completions, in a micro-batch, padding included. A larger step is split,
    with the same result. A prompt counts once, also where gradient checkpointing computes it for each of its
    completions. 0: never split; with GRPO, rollout and first update then share the prefill, except with gradient
    checkpointing, FSDP or vLLM.

    TRL: gradient_accumulation_steps. verl: actor_rollout_ref.actor.ppo_max_token_len_per_gpu."""
    gather_for_generation: bool = False
    """With ``strategy=fsdp``, gather all weights in each process for rollouts and evaluations, which is faster for
    models that fit. false: one group of weights at a time.

    TRL: ds3_gather_for_generation. verl: -."""
    optimizer_offload: bool = field(default=False, metadata=added(False))
    """Keep the state of AdamW, 12 bytes per trained weight, in host memory and update the weights there: for full
    fine-tuning on one GPU that has too little memory. A step takes longer.

    TRL: -. verl: actor_rollout_ref.actor.fsdp_config.optimizer_offload."""
    save_steps: int = field(default=25, metadata=NEUTRAL)
    """Training steps between two checkpoints.

    TRL: save_steps. verl: trainer.save_freq."""
    save_model_steps: list[int] = field(default_factory=list, metadata=NEUTRAL)
    """Training steps after which the model is stored too, in ``models/step-N`` of the run directory. Such a state is a
    model like any other: ``model.path=RUN/models/step-N``. For full fine-tuning without sharding."""
    logging_steps: int = field(default=1, metadata=NEUTRAL)
    """Training steps between two points of the logged curves.

    TRL: logging_steps. verl: -."""
    eval_steps: int = 0
    """Training steps between two evaluations on the validation records. The first is before training, the last after
    it. 0: none.

    TRL: eval_steps. verl: trainer.test_freq."""
    metric_for_best_model: str | None = None
    """Validation metric by which the best checkpoint is chosen, such as ``validation/accuracy``. null: only the last
    checkpoint is kept.

    TRL: metric_for_best_model. verl: -."""
    greater_is_better: bool | None = None
    """Whether a larger value of ``metric_for_best_model`` is better. null: yes, except for lengths.

    TRL: greater_is_better. verl: -."""
    load_best_model_at_end: bool = False
    """Evaluate, and store as the trained model, the best checkpoint instead of the last one.

    TRL: load_best_model_at_end. verl: -."""
    early_stopping_patience: int = 0
    """Stop after so many evaluations in a row in which ``metric_for_best_model`` has not improved. 0: never.

    TRL: -. verl: -."""
    early_stopping_threshold: float = 0.0
    """How much ``metric_for_best_model`` must improve to count as better, for ``early_stopping_patience``.

    TRL: -. verl: -."""

    @property
    def processes(self) -> int:
        return self.devices * self.num_nodes

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a shard of the weights."""
        return self.strategy is Distribution.fsdp


@dataclass
class TrackingConfig:
    """Experiment tracking in MLflow."""

    name: str = MISSING
    """Name of this choice of the group."""
    enabled: bool = field(default=True, metadata=MOVABLE)
    """Whether the run is logged to MLflow. The run directory holds the same results either way.

    TRL: report_to. verl: trainer.logger."""
    uri: str = field(default=MISSING, metadata=MOVABLE)
    """``sqlite:///PATH`` or the address of an MLflow server, ``http://HOST:PORT``."""
    experiment: str = field(default="medr1", metadata=MOVABLE)
    """Name of the MLflow experiment.

    TRL: -. verl: trainer.project_name."""
    log_completions_steps: int = 25
    """Log a table of sampled completions with their images every so many steps, and in that of ``trainer.max_steps``.
    0: none.

    TRL: log_completions. verl: -."""
    num_completions: int = 8
    """Number of completions in that table, two of each prompt.

    TRL: num_completions_to_print. verl: -."""
    log_system_metrics: bool = True
    """Log the use of processor, memory, disk, network and GPU every ten seconds, as MLflow's system metrics."""
    registered_model_name: str | None = None
    """Register the trained weights in MLflow's model registry under this name. null: do not."""


@dataclass
class EvaluationConfig:
    """Greedy decoding of the test records of all modalities and question types, and further measures."""

    batch_size: int = field(default=128, metadata=NEUTRAL)
    """Records that are decoded together.

    TRL: per_device_eval_batch_size. verl: data.val_batch_size."""
    max_completion_length: int = MISSING
    """Maximum number of tokens of a completion in evaluation."""
    blank_image: bool = True
    """Run the blank-image control: the evaluated model with a uniform grey image in place of the record's image.

    Also in the evaluations on validation records."""
    shuffled_image: bool = True
    """Run the shuffled-image control: the evaluated model with another record's image of the same modality.

    Of another modality, if it has no other image."""
    num_generations: int | None = None
    """Completions that are sampled for each test record beside the greedy one, for pass@k and maj@k. null: none. They
    depend on ``seed``. This and the further measures are taken of the base model and of the trained one.

    TRL: num_generations_eval. verl: actor_rollout_ref.rollout.val_kwargs.n."""
    temperature: float = 1.0
    """Temperature of these samples.

    TRL: -. verl: actor_rollout_ref.rollout.val_kwargs.temperature."""
    k: list[int] | None = None
    """The k of pass@k and maj@k, each at most ``evaluation.num_generations``. null: 1, 2, 4, ... up to it."""
    circular: bool = False
    """Circular evaluation: each question is also asked with every cyclic rotation of its options. Measures consistency
    and letter bias."""
    option_probabilities: bool = False
    """Store the probability of each option where the greedy completion has its answer. Measures calibration."""
    limit: int | None = None
    """Evaluate a sample of at most so many records of each benchmark, modality and question type. null: all.

    The sample is the same for all seeds and models. It is spread over data sets and images.

    TRL: -. verl: data.val_max_samples."""
    validation_limit: int | None = None
    """The same for the validation records."""


@dataclass
class SweepConfig:
    """A sweep: several runs and the matrix made of them."""

    name: str | None = None
    """Name of the sweep; null in a single run and in a plain ``-m``."""
    rows: str | None = None
    """Setting that distinguishes the rows of the matrix, such as ``modality`` or ``data.shortcut``."""
    columns: TableAxis = TableAxis.modality
    """Split of the test records that makes the columns of the matrix."""
    stop_on_failure: bool = False
    """Start no further runs after one has failed."""
    chain: str | None = None
    """Setting whose values are stages, such as ``algorithm``: a run begins with the trained model of the run with the
    value before it. null: every run begins with ``model.path``."""
    select: str | None = None
    """Validation metric by which the report chooses among the values of settings other than the rows, the algorithm and
    the seed, such as ``validation/accuracy``. null: the report shows all runs."""
    trials: int | None = None
    """Search for the settings that are best by ``sweep.select`` with so many trials: Optuna's TPE sampler chooses the
    values of all varied settings other than the rows, the algorithm and the seed, among ``interval(LOW,HIGH)``,
    ``tag(log,interval(LOW,HIGH))``, ``int(interval(LOW,HIGH))``, ``choice(A,B)`` or ``range(START,STOP)``. A trial has
    a run for each seed. Each row and each algorithm has its own trials. null: a run for each combination of values."""
    trials_at_once: int = 1
    """Number of trials that are chosen together and handed to the launcher, of each row and algorithm. The sampler
    knows the values of all trials before these."""


@dataclass
class CommonConfig:
    """What training and evaluation share."""

    model: ModelConfig = MISSING
    """The model: a file of ``conf/model``."""
    data: DataConfig = MISSING
    """The data source: a file of ``conf/data``."""
    modality: ModalityConfig = MISSING
    """Modality of the training records: a file of ``conf/modality``, or another value of the data."""
    question_type: QuestionTypeConfig = MISSING
    """Question type of the training records: a file of ``conf/question_type``, or another value of the data."""
    reasoning: ReasoningConfig = MISSING
    """Reasoning mode: a file of ``conf/reasoning``."""
    rollout: RolloutConfig = MISSING
    """Rollout engine: a file of ``conf/rollout``."""
    tracking: TrackingConfig = field(default=MISSING, metadata=UNHASHED)
    """Experiment tracking: a file of ``conf/tracking``."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation on the test records."""
    seed: int = 0
    """Seed of the order of records, of sampling and of new weights.

    TRL: seed. verl: data.seed."""
    output_dir: str = field(default="runs", metadata=UNHASHED)
    """Directory under which run directories are created, relative to the working directory.

    TRL: output_dir. verl: trainer.default_local_dir."""
    plugins: str | None = field(default=None, metadata=NEUTRAL)
    """Folder with components of your own. Its Python files are imported, its YAML files are options of their groups."""
    resume: str | None = field(default=None, metadata=UNHASHED)
    """Run directory to resume, with the config that is stored in it.

    TRL: resume_from_checkpoint. verl: trainer.resume_from_path."""


@dataclass
class TrainConfig(CommonConfig):
    """Settings of ``train.py``."""

    reward: RewardConfig = MISSING
    """The reward functions and their weights: a file of ``conf/reward``."""
    algorithm: AlgorithmConfig = MISSING
    """The training algorithm: a file of ``conf/algorithm``."""
    trainer: TrainerConfig = MISSING
    """Devices, number of steps and batch size: a file of ``conf/trainer``."""
    sweep: SweepConfig = field(default_factory=SweepConfig, metadata=UNHASHED)
    """A sweep over several runs: a file of ``sweeps/``."""
    plan: bool = field(default=False, metadata=UNHASHED)
    """Print the memory and time that the run needs instead of running it."""
    plan_memory: float | None = field(default=None, metadata=UNHASHED)
    """Memory in GiB of the GPU to plan for. null: the device of this machine."""


@dataclass
class EvaluateConfig(CommonConfig):
    """Settings of ``evaluate.py``. Without ``resume``, ``run``, ``sweep``, ``audit`` and ``compare`` the model itself
    is evaluated (zero-shot)."""

    run: str | None = None
    """Run directory of a finished training run to evaluate again."""
    sweep: str | None = None
    """Directory of a sweep whose tables and report are made again."""
    audit: str | None = None
    """``data``: audit the data of this command. A directory: audit OmniMedVQA's question files in it."""
    compare: list[str] | None = None
    """Two run directories, ``[RUN_A,RUN_B]``, to compare on the records that both answered."""
    checkpoint: CheckpointChoice | None = None
    """Checkpoint of ``run`` that is evaluated or exported: ``best`` by ``trainer.metric_for_best_model``, or ``last``.

    null: that of the run's own evaluation, see ``trainer.load_best_model_at_end``."""
    export: str | None = None
    """New directory into which the model of ``run`` is exported."""
    merge: bool = True
    """Merge LoRA adapters into the exported model. false: export the adapter alone."""
