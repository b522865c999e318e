"""Supervised fine-tuning as a LightningModule; pretraining of the tiny base is the same with weighted tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from medr1.generation.logprobs import completion_hidden, score
from medr1.models.policy import Policy
from medr1.models.sharding import is_sharded
from medr1.models.tensors import PromptBatch, Targets
from medr1.training.optimization import (
    all_reduce_max,
    all_reduce_sum,
    build_optimizer,
    check_state,
    micro_batches,
    split_to_count,
    take_step,
)


@dataclass(frozen=True, slots=True)
class SupervisedBatch:
    """The prompts of one step on one process with the completions to imitate. Labels cover the completions only."""

    step: int
    prompts: PromptBatch
    targets: Targets


class SFTModule(pl.LightningModule):
    """Cross-entropy of the target completions, a weighted mean over the tokens of the whole step."""

    def __init__(
        self, policy: Policy, optimizer: Mapping[str, Any], max_grad_norm: float, max_tokens_per_device: int = 0
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds what is trained; check_state sees that it holds all of it
        self.policy, self.optimizer_settings, self.max_grad_norm = policy, optimizer, max_grad_norm
        self.max_tokens_per_device = max_tokens_per_device

    @property
    def policies(self) -> tuple[Policy, ...]:
        return (self.policy,)

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build_optimizer(self.policy.parameters(), **self.optimizer_settings)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def transfer_batch_to_device(
        self, batch: SupervisedBatch, device: torch.device, dataloader_idx: int
    ) -> SupervisedBatch:
        return replace(batch, prompts=batch.prompts.to(device), targets=batch.targets.to(device))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.policy.trained_state("policy.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_state(self, checkpoint)

    def training_step(self, batch: SupervisedBatch, batch_idx: int) -> None:
        start, targets = time.perf_counter(), batch.targets
        size, length = (
            all_reduce_sum(self, (targets.weights * targets.mask).sum()),
            all_reduce_sum(self, targets.mask.sum()),
        )
        tokens = batch.prompts.mask.sum(1) + targets.mask.sum(1)
        parts = micro_batches(tokens.tolist(), self.max_tokens_per_device)
        if is_sharded(self.policy):
            cut = split_to_count([len(part) for part in parts], all_reduce_max(self, len(parts)))
            parts = [[part[row] for row in rows] for part, each in zip(parts, cut, strict=True) for rows in each]
        done: list[tuple[Tensor, Tensor]] = []  # loss and entropy of each part

        def losses() -> Iterator[Tensor]:
            for part in parts:
                loss, entropy = self._part(batch.prompts.select(part), targets.select(part))
                done.append((loss.detach() / size, entropy))
                yield loss / size

        norm = take_step(self, losses(), len(parts), self.max_grad_norm)
        values = {
            "train/loss": torch.stack([loss for loss, _ in done]).sum() * self.trainer.world_size,
            "train/entropy": torch.stack([entropy for _, entropy in done]).sum() * self.trainer.world_size / length,
            "train/completions/mean_length": targets.mask.sum(1).float().mean(),
            "train/grad_norm": norm,
            "train/learning_rate": torch.tensor(self.lr_schedulers().get_last_lr()[0]),  # type: ignore[union-attr]
            "time/step": torch.tensor(time.perf_counter() - start),
        }
        for name, value in values.items():
            self.log(
                name,
                value.to(self.device, torch.float32),
                prog_bar=name == "train/loss",
                sync_dist=self.trainer.world_size > 1,
                batch_size=1,
            )

    def _part(self, prompts: PromptBatch, targets: Targets) -> tuple[Tensor, Tensor]:
        """Weighted sum of the tokens' cross-entropies, and the sum of their entropies, which carries no gradient."""
        if self.policy.gradient_checkpointing:
            hidden = self.policy.hidden_without_cache(prompts, targets.ids, targets.mask)
        else:
            hidden = completion_hidden(self.policy, self.policy.prefill(prompts), targets.ids, targets.mask)
        scores = score(self.policy, hidden, targets.ids, targets.mask)
        return -(scores.logprobs * targets.weights * targets.mask).sum(), scores.entropy.sum()
