"""Keys of version 0.1 and what they are called now. An old key is refused with its new name."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

_RECIPE = {
    "steps": "max_steps",
    "prompts_per_step": "train_batch_size",
    "group_size": "num_generations",
    "max_new_tokens": "max_completion_length",
}
RENAMED = {
    **{f"model.recipe.{old}": f"model.recipe.{new}" for old, new in _RECIPE.items()},
    "model.precision": "model.dtype",
    "model.attention": "model.attn_implementation",
    "model.freeze_vision": "model.freeze_vision_tower",
    "model.image_token": "model.image_token_size",
    "model.lora.rank": "model.lora.r",
    "model.lora.alpha": "model.lora.lora_alpha",
    "model.lora.targets": "model.lora.target_modules",
    "model.attempts": "model.max_retries",
    "algorithm.group_size": "algorithm.num_generations",
    "algorithm.updates_per_rollout": "algorithm.num_iterations",
    "algorithm.dynamic_sampling": "algorithm.filter_groups",
    "algorithm.schedule": "algorithm.lr_scheduler_type",
    "algorithm.warmup_fraction": "algorithm.warmup_ratio",
    "algorithm.picture_steps": "algorithm.image_steps",
    "algorithm.pictures": "algorithm.images",
    "algorithm.sampling.max_new_tokens": "algorithm.sampling.max_completion_length",
    "algorithm.objective.aggregation": "algorithm.objective.loss_agg_mode",
    "algorithm.objective.ratio_level": "algorithm.objective.importance_sampling_level",
    "algorithm.objective.surrogate": "algorithm.objective.loss_mode",
    "algorithm.objective.reward_scaling": "algorithm.objective.scale_rewards",
    "algorithm.objective.clip_low": "algorithm.objective.epsilon",
    "algorithm.objective.clip_high": "algorithm.objective.epsilon_high",
    "algorithm.objective.dual_clip": "algorithm.objective.delta",
    "algorithm.objective.ratio_cap": "algorithm.objective.epsilon_high",
    "algorithm.objective.kl_estimator": "algorithm.objective.kl_loss_type",
    "algorithm.objective.mask_truncated": "algorithm.objective.mask_truncated_completions",
    "reward.accuracy": "reward.functions.accuracy.weight",
    "reward.format": "reward.functions.format.weight",
    "trainer.steps": "trainer.max_steps",
    "trainer.epochs": "trainer.num_train_epochs",
    "trainer.prompts_per_step": "trainer.train_batch_size",
    "trainer.token_budget": "trainer.max_tokens_per_device",
    "trainer.checkpoint_every": "trainer.save_steps",
    "trainer.log_every": "trainer.logging_steps",
    "evaluation.max_new_tokens": "evaluation.max_completion_length",
    "tracking.completions_every": "tracking.log_completions_steps",
    "tracking.completions": "tracking.num_completions",
}


def renamed_keys(cfg: DictConfig) -> Iterator[str]:
    """``old is called new`` for every old key that a config has."""
    for old, new in RENAMED.items():
        group, _, key = old.rpartition(".")
        node = OmegaConf.select(cfg, group)
        if isinstance(node, DictConfig) and key in node:
            yield f"{old} is called {new}"
