"""From the config to the LightningModule of the chosen algorithm, and to what makes its batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf, read_write

from medr1.config.settings import RewardConfig
from medr1.data.image_loader import ImageLoader
from medr1.data.sources.phantoms.base_mixture import BaseMixture
from medr1.data.sources.registry import Dataset
from medr1.domain.reasoning import ReasoningMode
from medr1.generation.engines import ENGINES
from medr1.generation.sampling import Sampling
from medr1.models.adapters import make_reference
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.training.batches import BaseBatches, RecordBatches
from medr1.training.grpo import GRPOModule, GRPOSettings
from medr1.training.sft import SFTModule


def count_steps(cfg: DictConfig, records: int) -> None:
    """Sets the steps of a config that gives epochs; the stored config, by which a run is resumed, has them."""
    if cfg.trainer.max_steps is None:
        with read_write(cfg):
            cfg.trainer.max_steps = math.ceil(cfg.trainer.num_train_epochs * records / cfg.trainer.train_batch_size)


def build_algorithm(
    cfg: DictConfig, data: Dataset, policy: Policy, processor: Processor, load: ImageLoader
) -> tuple[GRPOModule | SFTModule, Callable[[int, int, int], Any]]:
    """The LightningModule of the chosen algorithm, and what makes its batch of a step, rank and world size."""
    a, mode = cfg.algorithm, ReasoningMode(cfg.reasoning.mode)
    optimizer = {
        "learning_rate": a.learning_rate,
        "weight_decay": a.weight_decay,
        "lr_scheduler_type": str(a.lr_scheduler_type),
        "warmup_ratio": a.warmup_ratio,
        "adam_beta2": a.adam_beta2,
        "steps": cfg.trainer.max_steps * int(a.get("num_iterations", 1)),
    }
    if a.name == "pretrain":
        mixture = BaseMixture(
            seed=cfg.seed,
            images_per_modality=a.images_per_modality,
            binding_steps=a.binding_steps,
            text_steps=a.text_steps,
            ramp=a.ramp,
            text_batch=a.text_batch,
            described=a.described,
            pictures=a.pictures,
            words=a.words,
            careless=a.careless,
        )
        base = BaseBatches(mixture, processor, load, a.letter_weight)
        return SFTModule(policy, optimizer, a.max_grad_norm, cfg.trainer.max_tokens_per_device), base.supervised
    batches = RecordBatches(
        records=data.train,
        processor=processor,
        mode=mode,
        load=load,
        train_batch_size=cfg.trainer.train_batch_size,
        seed=cfg.seed,
        rationale=bool(a.get("rationale", False)),
    )
    if "sampling" not in a:
        return SFTModule(policy, optimizer, a.max_grad_norm, cfg.trainer.max_tokens_per_device), batches.supervised
    settings = GRPOSettings(
        mode=mode,
        reward=RewardConfig(cfg.reward.name, OmegaConf.to_container(cfg.reward.functions)),  # type: ignore[arg-type]
        num_generations=a.num_generations,
        num_iterations=a.num_iterations,
        sampling=Sampling.from_config(a.sampling, processor),
        engine=ENGINES[cfg.rollout.kind](cfg.rollout),
        objective=OmegaConf.to_object(a.objective),  # type: ignore[arg-type]
        scale_rewards=str(a.objective.scale_rewards),
        optimizer=optimizer,
        max_grad_norm=a.max_grad_norm,
        seed=cfg.seed,
        max_tokens_per_device=cfg.trainer.max_tokens_per_device,
        mask_truncated_completions=a.objective.mask_truncated_completions,
        filter_groups=a.filter_groups,
    )
    reference = make_reference(policy) if a.objective.beta > 0 else None
    return GRPOModule(policy, processor, settings, reference), batches.rollout
