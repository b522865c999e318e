"""Checks what no type can express: ranges, and settings that contradict each other. Imports nothing heavy."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from medr1.config.enums import Attention, LoraTargets, Precision, Resize, Tuning
from medr1.config.image_tokens import fitting
from medr1.config.messages import explain, nearest
from medr1.config.renamed import RENAMED
from medr1.config.settings import (
    BLIND_VALIDATION_METRICS,
    LOOPBACK,
    VALIDATION_METRICS,
    CommonConfig,
    EvaluationConfig,
    FilterConfig,
    ServerConfig,
    TrainConfig,
)
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import AXES, axis_problem
from medr1.errors import ConfigError

T = TypeVar("T", bound=CommonConfig)


def typed(cfg: DictConfig, schema: type[T]) -> T:
    """The config of a command as typed settings, checked but for what its components check themselves.

    Raises:
        ConfigError: names the key, the value and the remedy.
    """
    try:
        return _typed(cfg, schema)
    except InterpolationKeyError as error:
        raise ConfigError(explain(error, schema)) from error


def _typed(cfg: DictConfig, schema: type[T]) -> T:
    _check_keys(cfg)
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        group = missing[0].split(".")[0]
        chosen = f"{group}={cfg[group].name}" if "." in missing[0] else "this command"
        raise ConfigError(f"{chosen} needs {' and '.join(f'{key}=...' for key in missing)}")
    _check_names(cfg)
    _check_ranges(cfg)
    settings = OmegaConf.to_object(cfg)
    assert isinstance(settings, schema)
    _check_images(settings)
    _check_filter(settings.data.filter)
    _check_evaluation(settings.evaluation)
    if isinstance(settings, TrainConfig):
        _check_training(settings)
    return settings


def _check_keys(cfg: DictConfig, prefix: str = "") -> None:
    """Refuses keys that no schema has: Hydra lets ``+key=value`` add them, and nothing reads them."""
    known = [item.name for item in fields(OmegaConf.get_type(cfg))]  # type: ignore[arg-type]
    for key in map(str, cfg):
        path = f"{prefix}{key}"
        if key not in known:
            if path in RENAMED:
                raise ConfigError(f"+{path} is called {RENAMED[path]}")
            raise ConfigError(f"+{path}: no such setting; {prefix.rstrip('.') or 'the config'} has {', '.join(known)}")
        if OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, key):
            continue
        for place, value in _structured(cfg[key], path):
            _check_keys(value, f"{place}.")


def _structured(value: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    """Configs with a schema: the value itself, or those in a plain mapping, with their dotted keys."""
    if isinstance(value, DictConfig) and is_dataclass(OmegaConf.get_type(value)):
        yield path, value
    elif isinstance(value, DictConfig):
        for name in map(str, value):
            yield from _structured(value[name], f"{path}.{name}")


def _check_names(cfg: DictConfig) -> None:
    for axis in AXES:
        if problem := axis_problem(cfg[axis].name):
            raise ConfigError(f"{axis}.name={cfg[axis].name!r}: {problem}")
    if cfg.reasoning.mode not in list(ReasoningMode):
        raise ConfigError(f"reasoning.mode={cfg.reasoning.mode}: use one of {', '.join(ReasoningMode)}")


_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "data.shortcut": (0, 1),
    "data.question_version": (1, 2),
    "data.train_images_per_modality": (1, 1e6),
    "data.test_images_per_modality": (1, 1e6),
    "data.test_fraction": (0.01, 0.99),
    "data.max_image_pixels": (1, 1e10),
    "data.min_pixels": (1, 1e10),
    "data.max_pixels": (1, 1e10),
    "data.max_images": (1, 1000),
    "data.dataloader_num_workers": (0, 256),
    "data.validation_fraction": (0, 0.9),
    "data.max_train_images": (1, 1e9),
    "data.filter.num_generations": (1, 256),
    "data.filter.temperature": (1e-3, 100),
    "data.filter.seed": (0, 2**32 - 1),
    "algorithm.learning_rate": (0, 1),
    "algorithm.warmup_ratio": (0, 1),
    "algorithm.max_grad_norm": (1e-9, 1e9),
    "algorithm.adam_beta2": (0, 0.999999),
    "algorithm.weight_decay": (0, math.inf),
    "algorithm.num_generations": (2, 4096),
    "algorithm.num_iterations": (1, 1000),
    "algorithm.sampling.temperature": (1e-3, 100),
    "algorithm.sampling.top_p": (1e-6, 1),
    "algorithm.sampling.top_k": (0, 1e9),
    "algorithm.sampling.max_completion_length": (1, 100_000),
    "algorithm.objective.epsilon": (0, 1),
    "algorithm.objective.epsilon_high": (0, 100),
    "algorithm.objective.delta": (0, 1000),
    "algorithm.objective.beta": (0, 100),
    "algorithm.objective.sapo_temperature_pos": (1e-3, 1000),
    "algorithm.objective.sapo_temperature_neg": (1e-3, 1000),
    "algorithm.objective.clip_cov_ratio": (1e-9, 1),
    "algorithm.objective.top_entropy_quantile": (0, 1),
    "algorithm.objective.entropy_coef": (0, 100),
    "algorithm.objective.kl_prcp_coef": (0, 100),
    "algorithm.objective.ori_entropy_loss_coef": (0, 100),
    "algorithm.objective.aug_entropy_loss_coef": (0, 100),
    "algorithm.objective.black_prob": (0, 1),
    "algorithm.objective.patch_size": (1, 10_000),
    "algorithm.noisy_rollout.gaussian_noise_step": (0, 999),
    "algorithm.noisy_rollout.decay_coef": (0, 100),
    "algorithm.noisy_rollout.decay_sig_mid": (0, 1),
    "algorithm.filter_groups": (0, 100),
    "trainer.max_steps": (1, 1e9),
    "trainer.num_train_epochs": (1e-6, 1e6),
    "trainer.train_batch_size": (1, 1e6),
    "trainer.max_tokens_per_device": (0, 1e9),
    "trainer.devices": (1, 4096),
    "trainer.num_nodes": (1, 4096),
    "trainer.save_steps": (1, 1e9),
    "trainer.logging_steps": (1, 1e9),
    "trainer.eval_steps": (0, 1e9),
    "trainer.early_stopping_patience": (0, 1e9),
    "trainer.early_stopping_threshold": (0, 1e9),
    "rollout.concurrency": (1, 4096),
    "rollout.timeout": (0.1, 1e6),
    "rollout.gpu_memory_utilization": (0.01, 1),
    "rollout.max_model_length": (2, 1e9),
    "rollout.importance_sampling_clip_max": (1e-6, 1e6),
    "rollout.importance_sampling_clip_min": (0, 1e6),
    "rollout.max_logp_difference": (1e-9, 1e6),
    "tracking.log_completions_steps": (0, 1e9),
    "tracking.num_completions": (1, 4096),
    "plan_memory": (0.001, 1e6),
    "sweep.trials": (1, 1e6),
    "sweep.trials_at_once": (1, 1e6),
    "algorithm.binding_steps": (0, 1e9),
    "algorithm.text_steps": (1, 1e9),
    "algorithm.ramp": (1, 1e9),
    "evaluation.batch_size": (1, 1e6),
    "evaluation.max_completion_length": (1, 100_000),
    "evaluation.num_generations": (1, 256),
    "evaluation.temperature": (1e-3, 100),
    "evaluation.limit": (1, 1e9),
    "evaluation.validation_limit": (1, 1e9),
    "model.lora.r": (1, 4096),
    "model.lora.lora_alpha": (1e-6, 1e6),
    "model.image_token_size": (1, 1024),
    "model.concurrency": (1, 1024),
    "model.timeout": (0.1, 86_400),
    "model.max_retries": (0, 100),
    "model.repetition_penalty": (0.01, 100),
}


def _check_ranges(cfg: DictConfig) -> None:
    for key in _RANGES:
        check_range(key, OmegaConf.select(cfg, key))


def check_range(key: str, value: float | None, name: str | None = None) -> None:
    """Checks a value against the range of the setting ``key``, if it has one. Messages call it ``name``.

    Raises:
        ConfigError: the value is outside the range.
    """
    low, high = _RANGES.get(key, (-math.inf, math.inf))
    if key in _RANGES and value is not None and not low <= value <= high:
        raise ConfigError(f"{name or key}={value}: must lie between {low:g} and {high:g}")


def _check_images(cfg: CommonConfig) -> None:
    size, token, data = cfg.data.image_size, cfg.model.image_token_size, cfg.data
    if data.resize == Resize.native:
        if data.min_pixels > data.max_pixels:
            raise ConfigError(
                f"data.min_pixels={data.min_pixels} is more than data.max_pixels={data.max_pixels}; use "
                f"data.min_pixels={data.max_pixels} or less"
            )
        if data.max_pixels < token**2:
            raise ConfigError(
                f"data.max_pixels={data.max_pixels} is less than one image token of {token} x {token} pixels; use "
                f"data.max_pixels={token**2} or more"
            )
    elif size % token or size <= 0:
        raise ConfigError(
            f"data.image_size={size} is no multiple of model.image_token_size={token}, the side of an image token in "
            f"pixels; use data.image_size={fitting(size, token)}"
        )
    if cfg.model.attn_implementation == Attention.flash_attention_2 and cfg.model.dtype == Precision.float32:
        raise ConfigError(
            "model.attn_implementation=flash_attention_2 needs half precision; use model.dtype=bfloat16 or "
            "model.attn_implementation=sdpa"
        )


def _check_filter(cfg: FilterConfig) -> None:
    """Checks that there are pass rates that ``data.filter.pass_rate`` lets through."""
    if cfg.pass_rate is None:
        return
    if len(cfg.pass_rate) != 2 or not 0 <= cfg.pass_rate[0] <= cfg.pass_rate[1] <= 1:
        raise ConfigError(
            f"data.filter.pass_rate={cfg.pass_rate}: give the smallest and the largest pass rate, two numbers between "
            "0 and 1 in this order, such as [0.1,0.9], or null"
        )
    (low, high), n = cfg.pass_rate, cfg.num_generations
    if not any(low <= correct / n <= high for correct in range(n + 1)):
        raise ConfigError(
            f"data.filter.pass_rate={cfg.pass_rate}: no share of data.filter.num_generations={n} completions lies "
            "between these; use a wider interval or more completions"
        )


def _check_evaluation(cfg: EvaluationConfig) -> None:
    if cfg.k is None:
        return
    if cfg.num_generations is None:
        raise ConfigError(
            f"evaluation.k={cfg.k} has no effect without samples; add evaluation.num_generations={max([1, *cfg.k])}"
        )
    if not cfg.k or min(cfg.k) < 1 or len(set(cfg.k)) < len(cfg.k):
        raise ConfigError(f"evaluation.k={cfg.k}: give one or more different numbers from 1, or null")
    if max(cfg.k) > cfg.num_generations:
        raise ConfigError(
            f"evaluation.k={cfg.k}: k={max(cfg.k)} needs at least as many samples, and evaluation.num_generations="
            f"{cfg.num_generations}; use evaluation.num_generations={max(cfg.k)} or a smaller k"
        )


def api_key(model: ServerConfig) -> str | None:
    """The API key in the environment variable ``model.api_key_variable``, or None.

    Raises:
        ConfigError: the key has characters that cannot be sent in a header.
    """
    key = os.environ.get(model.api_key_variable, "").strip() if model.api_key_variable else ""
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"the environment variable {model.api_key_variable} holds no API key: it must be printable ASCII"
        )
    return key or None


def check_address(key: str, url: str, form: str) -> SplitResult:
    """The parts of the setting ``key``, the address of an HTTP server. ``form``: how it should look, for messages.

    Raises:
        ConfigError: it is no such address, or contains a name and password, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{key}={url}: {error}; {form}") from error
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"{key}={url}: not the address of a server; {form}")
    if "@" in parts.netloc:  # the message must not show the URL, which may contain a password
        raise ConfigError(f"{key}: leave out name and password, which would be stored with the config; {form}")
    if parts.query or parts.fragment:
        raise ConfigError(f"{key}={url}: it cannot have a query (?) or a fragment (#); {form}")
    return parts


def check_server(model: ServerConfig) -> None:
    if find_spec("openai") is None:
        raise ConfigError('model=server needs the openai library: pip install "medr1[server]"')
    url, form = str(model.url), "use http://HOST:PORT/v1 or https://HOST/v1"
    parts = check_address("model.url", url, form)
    if parts.path.rstrip("/").endswith("/completions"):
        raise ConfigError(f"model.url={url}: leave out /chat/completions; {form}")
    if api_key(model) and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ConfigError(
            f"model.url={url}: the API key in {model.api_key_variable} would be sent unencrypted; use https, or "
            "model.api_key_variable=null to send none"
        )


def _check_training(cfg: TrainConfig) -> None:
    if cfg.plan_memory is not None and not cfg.plan:
        raise ConfigError(f"plan_memory={cfg.plan_memory:g} is a setting of plan=true, which is not given")
    processes = cfg.trainer.processes
    if cfg.trainer.train_batch_size % processes:
        raise ConfigError(
            f"trainer.train_batch_size={cfg.trainer.train_batch_size} is no multiple of the {processes} processes "
            f"(trainer.devices x trainer.num_nodes); use {_multiple(cfg.trainer.train_batch_size, processes)}"
        )
    if cfg.trainer.max_steps is None and cfg.trainer.num_train_epochs is None:
        raise ConfigError("trainer.max_steps=null needs trainer.num_train_epochs; give one of the two")
    name = cfg.tracking.registered_model_name
    if name is not None and (not name.strip() or set(name) & set("/:")):
        raise ConfigError(f"tracking.registered_model_name={name!r}: MLflow takes a name without / and :")
    _check_best_model(cfg)
    lora = cfg.model.tuning == Tuning.lora
    if lora and cfg.model.freeze_vision_tower and cfg.model.lora.target_modules == LoraTargets.vision:
        raise ConfigError(
            "model.freeze_vision_tower=true with model.lora.target_modules=vision leaves nothing to train"
        )


def _check_best_model(cfg: TrainConfig) -> None:
    """Checks by which metric the best checkpoint is chosen. Only validation metrics can be, never those of the test."""
    trainer, metric = cfg.trainer, cfg.trainer.metric_for_best_model
    if metric is None:
        for key in ("load_best_model_at_end", "early_stopping_patience"):
            if value := getattr(trainer, key):
                raise ConfigError(
                    f"trainer.{key}={str(value).lower()} needs the metric by which checkpoints are compared: "
                    f"trainer.metric_for_best_model={VALIDATION_METRICS[0]}"
                )
        return
    check_validation_metric(cfg, "trainer.metric_for_best_model", metric)


def check_validation_metric(cfg: TrainConfig, key: str, metric: str) -> None:
    """Checks that a training computes the validation metric that the setting ``key`` names.

    Raises:
        ConfigError: it does not; names the key and the remedy.
    """
    known = (*VALIDATION_METRICS, *BLIND_VALIDATION_METRICS)
    if metric not in known:
        raise ConfigError(f"{key}={metric}: no validation metric. {nearest(metric, known)}")
    if metric in BLIND_VALIDATION_METRICS and not cfg.evaluation.blank_image:
        raise ConfigError(f"{key}={metric} needs evaluation.blank_image=true")
    if not cfg.trainer.eval_steps:
        raise ConfigError(f"{key}={metric} needs evaluations during training: trainer.eval_steps=25")


def _multiple(size: int, of: int) -> int:
    """The multiple of ``of`` nearest to ``size``, at least ``of``."""
    return max(of, round(size / of) * of)
