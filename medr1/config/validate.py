"""Checks of the config that no type can express: ranges, and settings that do not go together.

They run before anything is loaded, so nothing here may import torch.
"""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from medr1.config.enums import Attention, LoraTargets, Precision, Split, Tuning
from medr1.config.image_tokens import fitting
from medr1.config.registry import Registry
from medr1.config.settings import ALL, LOOPBACK, ServerConfig
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Modality, QuestionType
from medr1.errors import ConfigError


def check(cfg: DictConfig) -> None:
    """Checks what no type can express, before anything is loaded.

    Raises:
        ConfigError: names the key, the value and what to do.
    """
    _check_keys(cfg)
    _check_names(cfg)
    _check_ranges(cfg)
    if is_server(cfg):
        _check_server(cfg.model)
    if OmegaConf.is_missing(cfg.model, "path"):
        raise ConfigError(f"model={cfg.model.name} needs model.path=DIRECTORY_OR_HUB_ID")
    size, token = int(cfg.data.image_size), int(cfg.model.image_token_size)
    if size % token or size <= 0:
        raise ConfigError(
            f"data.image_size={size}: pictures are cut into {token} x {token} pixel tokens (model.image_token_size); "
            f"use data.image_size={fitting(size, token)}"
        )
    if cfg.model.attn_implementation == Attention.flash_attention_2 and cfg.model.dtype == Precision.float32:
        raise ConfigError(
            "model.attn_implementation=flash_attention_2 computes in half precision only; use model.dtype=bfloat16, or "
            "model.attn_implementation=sdpa"
        )
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
        if not plain and isinstance(cfg[key], DictConfig) and is_dataclass(OmegaConf.get_type(cfg[key])):
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
    "algorithm.warmup_ratio": (0, 1),
    "algorithm.max_grad_norm": (1e-9, 1e9),
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
    "algorithm.filter_groups": (0, 100),
    "trainer.max_steps": (1, 1e9),
    "trainer.num_train_epochs": (1e-6, 1e6),
    "trainer.train_batch_size": (1, 1e6),
    "trainer.max_tokens_per_device": (0, 1e9),
    "trainer.devices": (1, 4096),
    "trainer.save_steps": (1, 1e9),
    "trainer.logging_steps": (1, 1e9),
    "plan_memory": (0.001, 1e6),
    "algorithm.binding_steps": (0, 1e9),
    "algorithm.text_steps": (1, 1e9),
    "algorithm.ramp": (1, 1e9),
    "evaluation.batch_size": (1, 1e6),
    "evaluation.max_completion_length": (1, 100_000),
    "evaluation.limit": (1, 1e9),
    "model.lora.r": (1, 4096),
    "model.image_token_size": (1, 1024),
    "model.concurrency": (1, 1024),
    "model.timeout": (0.1, 86_400),
    "model.max_retries": (1, 100),
    "model.backoff": (0, 3600),
    "model.repetition_penalty": (0.01, 100),
}


def _check_ranges(cfg: DictConfig) -> None:
    for key, (low, high) in _RANGES.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{key}={value}: must lie between {low:g} and {high:g}")


def is_server(cfg: DictConfig) -> bool:
    """Whether the model is behind a chat server: asked from here, loaded elsewhere."""
    return OmegaConf.get_type(cfg.model) is ServerConfig


def api_key(model: DictConfig) -> str | None:
    """The key for the server, from the environment; None where none is set.

    Raises:
        ConfigError: a key that cannot be sent in a header.
    """
    key = os.environ.get(model.api_key_variable, "").strip() if model.api_key_variable else ""
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"the environment variable {model.api_key_variable} holds more than a key; set it again")
    return key or None


def _check_server(model: DictConfig) -> None:
    if OmegaConf.is_missing(model, "url") or OmegaConf.is_missing(model, "path"):
        raise ConfigError(
            "model=server needs model.url=http://HOST:PORT/v1 and model.path=NAME, its name at the server"
        )
    url, form = str(model.url), "use http://HOST:PORT/v1 or https://HOST/v1"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"model.url={url}: {error}; {form}") from error
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"model.url={url}: no address of a server; {form}")
    if "@" in parts.netloc:  # not repeated: what stands there may be a password
        raise ConfigError(f"model.url: no name and password before the host, they would be stored; {form}")
    if parts.query or parts.fragment:
        raise ConfigError(f"model.url={url}: neither ? nor # can stand in it; {form}")
    if parts.path.rstrip("/").endswith("/completions"):
        raise ConfigError(f"model.url={url}: leave out /chat/completions, which is added; {form}")
    if api_key(model) and parts.scheme == "http" and host not in LOOPBACK:
        raise ConfigError(
            f"model.url={url}: the key in {model.api_key_variable} would cross the network in the clear; use https, or "
            "model.api_key_variable=null to send none"
        )


def _check_root(cfg: DictConfig) -> None:
    if OmegaConf.is_missing(cfg.data, "root"):
        raise ConfigError("data=omnimedvqa needs data.root=DIR, the folder that holds Images/ and QA_information/")
    for key in ("root", "splits"):
        value = cfg.data[key]
        if value is not None and not Path(value).exists():
            raise ConfigError(f"data.{key}={value}: no such file or folder (looked from {Path.cwd()})")


def _check_training(cfg: DictConfig) -> None:
    if cfg.plan_memory is not None and not cfg.plan:
        raise ConfigError(f"plan_memory={cfg.plan_memory:g} says for which GPU to plan; give plan=true too")
    if cfg.plan and is_server(cfg):
        raise ConfigError("model=server loads no model here: there is nothing to plan; leave out plan=true")
    if is_server(cfg) and cfg.algorithm.name != "zero_shot":
        raise ConfigError(
            f"model=server can only be asked, not trained by algorithm={cfg.algorithm.name}; use "
            "algorithm=zero_shot, or evaluate.py"
        )
    if cfg.data.name == "omnimedvqa" and cfg.data.split == Split.test_only:
        raise ConfigError("data.split=test_only leaves nothing to train on; use evaluate.py, or another data.split")
    if cfg.trainer.train_batch_size % (cfg.trainer.devices * cfg.trainer.num_nodes):
        raise ConfigError(
            f"trainer.train_batch_size={cfg.trainer.train_batch_size} cannot be shared evenly by "
            f"{cfg.trainer.devices * cfg.trainer.num_nodes} processes"
        )
    if cfg.trainer.max_steps is None and cfg.trainer.num_train_epochs is None:
        raise ConfigError("trainer.max_steps=null needs trainer.num_train_epochs; give one of the two")
    algorithm: Any = Registry.by_group["algorithm"][cfg.algorithm.kind]
    algorithm.check(OmegaConf.to_object(cfg))
    if (
        cfg.model.tuning == Tuning.lora
        and cfg.model.freeze_vision_tower
        and cfg.model.lora.target_modules == LoraTargets.vision
    ):
        raise ConfigError(
            "model.freeze_vision_tower=true with model.lora.target_modules=vision leaves nothing to train"
        )
