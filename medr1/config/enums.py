"""Settings with a fixed set of values."""

from __future__ import annotations

from enum import StrEnum


class Tuning(StrEnum):
    """Which weights are trained: all of them, or LoRA adapters."""

    full = "full"
    lora = "lora"


class Accelerator(StrEnum):
    """The kind of device: a GPU if there is one (auto), the CPU, or a GPU (gpu, cuda)."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"
    cuda = "cuda"


class Distribution(StrEnum):
    """How several processes share a training: the whole model in each (ddp), or a shard of it in each (fsdp)."""

    auto = "auto"
    ddp = "ddp"
    fsdp = "fsdp"


class CheckpointChoice(StrEnum):
    """A checkpoint of a training: the best by a validation metric, or the last."""

    best = "best"
    last = "last"


class Curriculum(StrEnum):
    """Order of the training records: shuffled, or from easy to hard by the pass rate of the model before training."""

    none = "none"
    pass_rate = "pass_rate"


class Precision(StrEnum):
    """Precision of the weights and the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Quantization(StrEnum):
    """In how many bits the linear layers of the base model are stored: as loaded, or in 4 (NF4)."""

    none = "none"
    nf4 = "nf4"


class WeightTransfer(StrEnum):
    """How a vLLM server gets weights: through files that it sees, or over a process group of gloo or NCCL."""

    files = "files"
    gloo = "gloo"
    nccl = "nccl"


class Resize(StrEnum):
    """Images are resized to one square size, or keep their aspect ratio as in the families' processors."""

    square = "square"
    native = "native"


class Attention(StrEnum):
    """Attention implementation of transformers; ``auto`` is the fastest that machine and precision allow."""

    auto = "auto"
    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


class LRSchedulerType(StrEnum):
    """Learning rate after the warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class LossAggMode(StrEnum):
    """How the losses of tokens become one number; see ``medr1.rl.objective``."""

    token_mean = "token_mean"
    seq_mean_token_mean = "seq_mean_token_mean"
    seq_mean_token_sum_norm = "seq_mean_token_sum_norm"


class ImportanceSamplingLevel(StrEnum):
    """Whether the importance ratio is a token's, or one for the whole completion (GSPO)."""

    token = "token"
    sequence = "sequence"


class ImportanceSamplingMode(StrEnum):
    """How the ratio of trainer to sampler probabilities is bounded; see ``medr1.rl.importance_sampling``."""

    token_truncate = "token_truncate"
    token_mask = "token_mask"
    sequence_truncate = "sequence_truncate"
    sequence_mask = "sequence_mask"


class LossMode(StrEnum):
    """How a large change of a token's probability is bounded; see ``medr1.rl.objective``."""

    clip = "clip"
    clip_cov = "clip_cov"
    cispo = "cispo"
    sapo = "sapo"


class ScaleRewards(StrEnum):
    """What advantages are divided by."""

    group = "group"
    batch = "batch"
    none = "none"


class AdvEstimator(StrEnum):
    """How advantages are computed from rewards; see ``medr1.rl.advantages``."""

    grpo = "grpo"
    gdpo = "gdpo"
    rloo = "rloo"
    reinforce_plus_plus_baseline = "reinforce_plus_plus_baseline"
    drpo = "drpo"


class KLLossType(StrEnum):
    """Estimator of the divergence from the reference policy: Schulman's k2 or k3, whose gradients depend on it."""

    k2 = "k2"
    k3 = "k3"


class LoraTargets(StrEnum):
    """Which half of the model carries adapters."""

    language = "language"
    vision = "vision"
    both = "both"


class TableAxis(StrEnum):
    """What the columns of a sweep's table are: the test records by modality, question type, scanner or benchmark."""

    modality = "modality"
    question_type = "question_type"
    scanner = "scanner"
    benchmark = "benchmark"
