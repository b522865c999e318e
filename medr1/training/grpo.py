"""GRPO as a LightningModule: one rollout and its updates for each batch. Thin: the mathematics stands in medr1.rl."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from medr1.policy.encoding import Encoder
from medr1.policy.policy import Policy
from medr1.reasoning import ReasoningMode
from medr1.records import Record
from medr1.rewards.rules import Rewards, score_completions
from medr1.rl.advantages import group_advantages, zero_variance
from medr1.rl.logprobs import Scores, completion_hidden, score
from medr1.rl.objective import Objective, Total, grpo_loss
from medr1.rl.rollout import Sampling, rollout
from medr1.tensors import Completions, PromptBatch
from medr1.training.optimization import build_optimizer, check_state, summed, take_step


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """The prompts of one step on one process. ``first`` is the place of the first of them in the global batch."""

    step: int
    first: int
    records: list[Record]
    prompts: PromptBatch


@dataclass(frozen=True, slots=True)
class GRPOSettings:
    """Everything that GRPO adds to a policy; see ``medr1.config`` for the meaning of each."""

    mode: ReasoningMode
    reward_weights: Mapping[str, float]
    group_size: int
    updates_per_rollout: int
    sampling: Sampling
    objective: Objective
    reward_scaling: str
    optimizer: Mapping[str, Any]
    max_grad_norm: float
    seed: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """One rollout as text, kept for the table of completions: the G rows of a prompt beside each other."""

    step: int
    records: list[Record]
    texts: list[str]
    rewards: Rewards
    advantages: list[float]


class GRPOModule(pl.LightningModule):
    """Policy, reference policy and reward computation.

    The reference is the policy with its adapter switched off, or a frozen copy of its own (``reference``); it is not
    part of the checkpoint, because it never changes.
    """

    def __init__(self, policy: Policy, encoder: Encoder, settings: GRPOSettings, reference: Policy | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds what is trained; check_state sees that it holds all of it
        self.policy, self.encoder, self.settings = policy, encoder, settings
        # In a tuple, so that Lightning neither trains, saves nor synchronizes it.
        self._reference = (reference,)
        self.sampled: Sampled | None = None

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build_optimizer(self.policy.parameters(), **self.settings.optimizer)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def transfer_batch_to_device(self, batch: RolloutBatch, device: torch.device, dataloader_idx: int) -> RolloutBatch:
        return replace(batch, prompts=batch.prompts.to(device))

    def on_fit_start(self) -> None:
        if self._reference[0] is not None:
            self._reference[0].to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.policy.trained_state("policy.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_state(self, checkpoint)

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        s, start = self.settings, time.perf_counter()
        prefix = None if self.policy.recomputes else self.policy.prefill(batch.prompts)
        completions = self._rollout(batch, prefix)
        texts = self.encoder.decode(completions.ids, completions.mask)
        rewards = score_completions(
            texts,
            [record for record in batch.records for _ in range(s.group_size)],
            s.mode,
            s.reward_weights,
        )
        total_reward = torch.tensor(rewards.total, device=self.device)
        advantages = group_advantages(total_reward, s.group_size, s.reward_scaling, self._batch_std(total_reward))
        rolled = time.perf_counter()
        reference = self._reference_logprobs(batch.prompts, completions)
        referred = time.perf_counter()
        total = self._total(completions)
        old: Tensor | None = None
        for update in range(s.updates_per_rollout):
            if update > 0 and prefix is not None:
                prefix = self.policy.prefill(batch.prompts)
            scores = self._scores(self.policy, batch.prompts, completions, prefix)
            old = scores.logprobs.detach() if old is None else old
            loss = grpo_loss(scores.logprobs, old, reference, advantages, completions.mask, s.objective, total)
            norm = take_step(self, loss.loss, s.max_grad_norm)
        self.sampled = Sampled(batch.step, batch.records, texts, rewards, advantages.tolist())
        tokens = completions.mask.sum()
        self._log(
            {
                "train/reward": total_reward.mean(),
                **{f"train/reward/{name}": torch.tensor(values).mean() for name, values in rewards.parts.items()},
                "train/loss": loss.loss.detach() * self.trainer.world_size,
                "train/kl": loss.kl,
                "train/clipped": loss.clipped,
                "train/entropy": scores.entropy.sum() / tokens,
                "train/completion_length": completions.mask.sum(1).float().mean(),
                "train/truncated": completions.truncated.float().mean(),
                "train/zero_variance_groups": zero_variance(total_reward, s.group_size).float().mean(),
                "train/grad_norm": norm,
                "train/learning_rate": torch.tensor(self.lr_schedulers().get_last_lr()[0]),  # type: ignore[union-attr]
                "time/rollout": torch.tensor(rolled - start),
                "time/reference": torch.tensor(referred - rolled),
                "time/update": torch.tensor(time.perf_counter() - referred),
                "time/step": torch.tensor(time.perf_counter() - start),
            }
        )

    @torch.no_grad()
    def _rollout(self, batch: RolloutBatch, prefix: Any) -> Completions:
        s = self.settings
        prefix = prefix or self.policy.prefill(batch.prompts)
        return rollout(self.policy, prefix, s.sampling, s.group_size, self._uniforms(batch))

    def _uniforms(self, batch: RolloutBatch) -> Tensor:
        """The draws [B*G, C] of this step: a function of seed, step and the prompt's place in the global batch."""
        s = self.settings
        shape = (s.group_size, s.sampling.max_new_tokens)
        places = range(batch.first, batch.first + len(batch.records))
        draws = [np.random.default_rng((s.seed, batch.step, place)).random(shape) for place in places]
        return torch.from_numpy(np.concatenate(draws)).to(self.device)

    def _scores(self, model: Policy, prompts: PromptBatch, completions: Completions, prefix: Any) -> Scores:
        if prefix is None:
            hidden = model.recomputed_hidden(prompts, completions.ids, completions.mask)
        else:
            hidden = completion_hidden(model, prefix, completions.ids, completions.mask)
        banned = torch.tensor(self.settings.sampling.banned, dtype=torch.long, device=self.device)
        temperature = self.settings.sampling.temperature
        return score(model, hidden, completions.ids, completions.mask, temperature=temperature, banned=banned)

    @torch.no_grad()
    def _reference_logprobs(self, prompts: PromptBatch, completions: Completions) -> Tensor | None:
        if self.settings.objective.beta == 0:
            return None
        model = self._reference[0] or self.policy
        with model.without_adapter():
            return self._scores(model, prompts, completions, model.prefill(prompts)).logprobs

    def _batch_std(self, rewards: Tensor) -> Tensor:
        """Of the rewards of all processes."""
        gathered = self.all_gather(rewards) if self.trainer.world_size > 1 else rewards
        return torch.as_tensor(gathered).flatten().std()

    def _total(self, completions: Completions) -> Total:
        rows = completions.ids.shape[0] * self.trainer.world_size
        tokens = float(summed(self, completions.mask.sum().float()))
        return Total(rows, tokens, self.settings.sampling.max_new_tokens)

    def _log(self, values: dict[str, Tensor]) -> None:
        shown = {"train/reward", "train/reward/accuracy"}
        for name, value in values.items():
            self.log(
                name,
                value.to(self.device, torch.float32),
                prog_bar=name in shown,
                sync_dist=self.trainer.world_size > 1,
                batch_size=1,
            )
