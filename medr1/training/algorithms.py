"""From the config to the LightningModule of the chosen algorithm, and to what makes its batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, read_write

from medr1.config.enums import Tuning
from medr1.data.image_loader import Load
from medr1.data.sources.phantoms.base_mixture import BaseMixture
from medr1.data.sources.registry import Dataset
from medr1.domain.reasoning import ReasoningMode
from medr1.generation.rollout import Sampling
from medr1.models.loading import reference_of
from medr1.models.policy import Policy
from medr1.models.processor import Encoder
from medr1.rl.objective import Objective
from medr1.training.batches import BaseBatches, RecordBatches
from medr1.training.grpo import GRPOModule, GRPOSettings
from medr1.training.sft import SFTModule


def count_steps(cfg: DictConfig, records: int) -> None:
    """Sets the steps of a config that gives epochs; the stored config, by which a run is resumed, has them."""
    if cfg.trainer.steps is None:
        with read_write(cfg):
            cfg.trainer.steps = math.ceil(cfg.trainer.epochs * records / cfg.trainer.prompts_per_step)


def lora_of(cfg: DictConfig) -> tuple[int, int, str] | None:
    """Rank, alpha and targets of the adapters that training makes, for ``choose_trained``; None in full tuning."""
    lora = cfg.model.lora
    return (lora.rank, lora.alpha, str(lora.targets)) if cfg.model.tuning == Tuning.lora else None


def build_algorithm(
    cfg: DictConfig, data: Dataset, policy: Policy, encoder: Encoder, load: Load
) -> tuple[GRPOModule | SFTModule, Callable[[int, int, int], Any]]:
    """The LightningModule of the chosen algorithm, and what makes its batch of a step, rank and world size."""
    a, mode = cfg.algorithm, ReasoningMode(cfg.reasoning.mode)
    optimizer = {
        "learning_rate": a.learning_rate,
        "weight_decay": a.weight_decay,
        "schedule": str(a.schedule),
        "warmup_fraction": a.warmup_fraction,
        "adam_beta2": a.adam_beta2,
        "steps": cfg.trainer.steps * int(a.get("updates_per_rollout", 1)),
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
        base = BaseBatches(mixture, encoder, load, a.letter_weight)
        return SFTModule(policy, optimizer, a.max_grad_norm, cfg.trainer.token_budget), base.supervised
    batches = RecordBatches(
        records=data.train,
        encoder=encoder,
        mode=mode,
        load=load,
        prompts_per_step=cfg.trainer.prompts_per_step,
        seed=cfg.seed,
        rationale=bool(a.get("rationale", False)),
    )
    if "sampling" not in a:
        return SFTModule(policy, optimizer, a.max_grad_norm, cfg.trainer.token_budget), batches.supervised
    settings = GRPOSettings(
        mode=mode,
        reward_weights={"accuracy": cfg.reward.accuracy, "format": cfg.reward.format},
        group_size=a.group_size,
        updates_per_rollout=a.updates_per_rollout,
        sampling=Sampling(
            max_new_tokens=a.sampling.max_new_tokens,
            end_id=encoder.end_id,
            banned=tuple(encoder.banned_ids()),
            temperature=a.sampling.temperature,
            top_p=a.sampling.top_p,
            top_k=a.sampling.top_k,
        ),
        objective=Objective(
            aggregation=str(a.objective.aggregation),
            ratio_level=str(a.objective.ratio_level),
            surrogate=str(a.objective.surrogate),
            clip_low=a.objective.clip_low,
            clip_high=a.objective.clip_high,
            dual_clip=a.objective.dual_clip,
            ratio_cap=a.objective.ratio_cap,
            beta=a.objective.beta,
            kl_estimator=str(a.objective.kl_estimator),
        ),
        reward_scaling=str(a.objective.reward_scaling),
        optimizer=optimizer,
        max_grad_norm=a.max_grad_norm,
        seed=cfg.seed,
        token_budget=cfg.trainer.token_budget,
        mask_truncated=a.objective.mask_truncated,
        dynamic_sampling=a.dynamic_sampling,
    )
    reference = reference_of(policy) if a.objective.beta > 0 else None
    return GRPOModule(policy, encoder, settings, reference), batches.rollout
