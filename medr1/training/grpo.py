"""GRPO as a LightningModule: one rollout and its updates for each batch. Thin: the mathematics stands in medr1.rl."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from medr1.config.settings import ObjectiveConfig, RewardConfig
from medr1.domain.reasoning import ReasoningMode
from medr1.domain.records import Record
from medr1.generation.engines import Engine
from medr1.generation.logprobs import Scores, completion_hidden, score
from medr1.generation.sampling import Sampling
from medr1.models.policy import Policy
from medr1.models.processor import Processor
from medr1.models.sharding import is_sharded, reshard, unsharded_params
from medr1.models.tensors import Completions, Prefix, PromptBatch
from medr1.rewards import Rewards, compute_rewards
from medr1.rl.advantages import group_advantages, zero_std_groups
from medr1.rl.objective import Loss, LossNormalizer, grpo_loss
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
class RolloutBatch:
    """The prompts of one step on one process, and the place of each in the global batch."""

    step: int
    prompt_indices: list[int]
    records: list[Record]
    prompts: PromptBatch
    resample: Callable[[int, list[int]], RolloutBatch] | None = (
        None  # (turn, places) -> others for them, to replace these
    )


@dataclass(frozen=True, slots=True)
class GRPOSettings:
    """Everything that GRPO adds to a policy; see ``medr1.config.schema`` for the meaning of each."""

    mode: ReasoningMode
    reward: RewardConfig
    num_generations: int
    num_iterations: int
    sampling: Sampling
    engine: Engine
    objective: ObjectiveConfig
    scale_rewards: str
    optimizer: Mapping[str, Any]
    max_grad_norm: float
    seed: int
    max_tokens_per_device: int = 0
    mask_truncated_completions: bool = False
    filter_groups: int = 0


@dataclass(frozen=True, slots=True)
class RolloutMicroBatch:
    """A micro-batch after its rollout. ``mask`` [R', C]: the tokens whose loss counts. ``prefix`` is kept, with its
    graph, where the part is the whole step: the one encoding then serves rollout, loss and backward pass."""

    prompts: PromptBatch
    completions: Completions
    texts: list[str]
    mask: Tensor
    prefix: Prefix | None

    def select(self, rows: list[int], num_generations: int) -> RolloutMicroBatch:
        """The given prompts with their completions."""
        each = [row * num_generations + i for row in rows for i in range(num_generations)]
        index = torch.tensor(each, device=self.mask.device)
        prefix = None if self.prefix is None else self.prefix.select(torch.tensor(rows, device=self.mask.device))
        # The prefix keeps the padding of the whole part, and goes on serving as what it is: an encoding.
        texts = [self.texts[i] for i in each]
        return RolloutMicroBatch(
            self.prompts.select(rows), self.completions.select(index), texts, self.mask[index], prefix
        )


@dataclass(frozen=True, slots=True)
class RolloutLog:
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

    def __init__(self, policy: Policy, processor: Processor, settings: GRPOSettings, reference: Policy | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds what is trained; check_state sees that it holds all of it
        self.policy, self.processor, self.settings = policy, processor, settings
        # In a tuple, so that Lightning neither trains, saves nor synchronizes it.
        self._reference = (reference,)
        self.rollout_log: RolloutLog | None = None

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policy, and the reference where it is a copy."""
        return (self.policy, *(copy for copy in self._reference if copy is not None))

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build_optimizer(self.policy.parameters(), **self.settings.optimizer)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def transfer_batch_to_device(self, batch: RolloutBatch, device: torch.device, dataloader_idx: int) -> RolloutBatch:
        return replace(batch, prompts=batch.prompts.to(device))

    def on_fit_start(self) -> None:
        if self._reference[0] is not None and not is_sharded(self._reference[0]):
            self._reference[0].to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.policy.trained_state("policy.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_state(self, checkpoint)

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        s, start = self.settings, time.perf_counter()
        with unsharded_params(self.policy):
            records, parts, rewards, zero_std = self._sample(batch)
        parts = self._as_many_as_others(parts)
        total_reward = torch.tensor(rewards.total, device=self.device)
        advantages = group_advantages(total_reward, s.num_generations, s.scale_rewards, self._batch_std(total_reward))
        rolled = time.perf_counter()
        references = [self._reference_logprobs(part) for part in parts]
        referred = time.perf_counter()
        normalizer = self._total(parts)
        shares = torch.split(advantages, [p.completions.ids.shape[0] for p in parts])
        old: list[Tensor] = []
        for update in range(s.num_iterations):
            curves: list[tuple[Loss, Tensor]] = []  # loss and entropy of each part

            def losses(first: bool = update == 0, curves: list[tuple[Loss, Tensor]] = curves) -> Iterator[Tensor]:
                for index, part in enumerate(parts):
                    prefix = part.prefix if first else None
                    scores = self._scores(self.policy, part.prompts, part.completions, prefix)
                    if first:
                        old.append(scores.logprobs.detach())
                    loss = grpo_loss(
                        scores.logprobs,
                        old[index],
                        references[index],
                        shares[index],
                        part.mask,
                        s.objective,
                        normalizer,
                    )
                    curves.append((replace(loss, loss=loss.loss.detach()), scores.entropy.sum()))
                    yield loss.loss

            norm = take_step(self, losses(), len(parts), s.max_grad_norm)
        texts = [text for part in parts for text in part.texts]
        self.rollout_log = RolloutLog(batch.step, records, texts, rewards, advantages.tolist())
        lengths = torch.cat([p.completions.mask.sum(1) for p in parts]).float()
        # Of a sum over all processes, what makes of each one's summand a share whose mean over them is the sum.
        world = self.trainer.world_size
        counted, generated = max(normalizer.tokens, 1.0) / world, all_reduce_sum(self, lengths.sum()) / world
        self._log(
            {
                "train/reward": total_reward.mean(),
                **{f"train/reward/{name}": torch.tensor(values).mean() for name, values in rewards.parts.items()},
                "train/loss": torch.stack([loss.loss for loss, _ in curves]).sum() * world,
                "train/kl": torch.stack([loss.kl for loss, _ in curves]).sum() / counted,
                "train/clip_ratio": torch.stack([loss.clipped for loss, _ in curves]).sum() / counted,
                "train/entropy": torch.stack([entropy for _, entropy in curves]).sum() / generated,
                "train/completions/mean_length": lengths.mean(),
                "train/completions/clipped_ratio": torch.cat([p.completions.truncated for p in parts]).float().mean(),
                "train/frac_reward_zero_std": zero_std,
                "train/grad_norm": norm,
                "train/learning_rate": torch.tensor(self.lr_schedulers().get_last_lr()[0]),  # type: ignore[union-attr]
                "time/rollout": torch.tensor(rolled - start),
                "time/reference": torch.tensor(referred - rolled),
                "time/update": torch.tensor(time.perf_counter() - referred),
                "time/step": torch.tensor(time.perf_counter() - start),
            }
        )

    def _sample(self, batch: RolloutBatch) -> tuple[list[Record], list[RolloutMicroBatch], Rewards, Tensor]:
        """The step's prompts with their completions and rewards, and the share of prompts that taught nothing at first.

        Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): up to so many times, prompts whose completions all
        earned the same make way for others. What is still without variance then stays.
        """
        s = self.settings
        records, prompt_indices, parts = batch.records, batch.prompt_indices, self._rollouts(batch, 0)
        rewards = self._rewards(records, parts)
        zero_std = zero_std_groups(torch.tensor(rewards.total), s.num_generations)
        share = zero_std.float().mean()
        for turn in range(1, s.filter_groups + 1):
            if batch.resample is None or not zero_std.any():
                break
            free = [place for place, gone in zip(prompt_indices, zero_std.tolist(), strict=True) if gone]
            resample = self.transfer_batch_to_device(batch.resample(turn, free), self.device, 0)
            kept = []
            for part, gone in zip(parts, torch.split(zero_std, [p.prompts.ids.shape[0] for p in parts]), strict=True):
                rows = (~gone).nonzero().flatten().tolist()
                kept += [part if len(rows) == len(gone) else part.select(rows, s.num_generations)] if rows else []
            records = [r for r, gone in zip(records, zero_std.tolist(), strict=True) if not gone] + resample.records
            prompt_indices = [place for place in prompt_indices if place not in free] + resample.prompt_indices
            parts = kept + self._rollouts(resample, turn)
            rewards = self._rewards(records, parts)
            zero_std = zero_std_groups(torch.tensor(rewards.total), s.num_generations)
        return records, parts, rewards, share

    def _as_many_as_others(self, parts: list[RolloutMicroBatch]) -> list[RolloutMicroBatch]:
        """Where the policy is in shards: the parts cut further, until there are as many as on any process."""
        if not is_sharded(self.policy):
            return parts
        cut = split_to_count([part.prompts.ids.shape[0] for part in parts], all_reduce_max(self, len(parts)))
        size = self.settings.num_generations
        return [part.select(rows, size) for part, each in zip(parts, cut, strict=True) for rows in each]

    def _rewards(self, records: list[Record], parts: list[RolloutMicroBatch]) -> Rewards:
        s = self.settings
        texts = [text for part in parts for text in part.texts]
        each = [record for record in records for _ in range(s.num_generations)]
        return compute_rewards(s.reward, texts, each, s.mode)

    def _rollouts(self, batch: RolloutBatch, turn: int) -> list[RolloutMicroBatch]:
        s = self.settings
        longest = s.num_generations * s.sampling.max_completion_length
        chosen = micro_batches((batch.prompts.mask.sum(1) + longest).tolist(), s.max_tokens_per_device)
        uniforms, parts = self._uniforms(batch, turn), []
        for rows in chosen:
            prompts = self.policy.precompute_image_features(batch.prompts.select(rows))
            keep = len(chosen) == 1 and not self.policy.gradient_checkpointing and not is_sharded(self.policy)
            with nullcontext() if keep else torch.no_grad():
                prefix = self.policy.prefill(prompts)
            draws = uniforms[rows[0] * s.num_generations : (rows[-1] + 1) * s.num_generations]
            completions = s.engine.generate(self.policy, prompts, s.sampling, s.num_generations, draws, prefix)
            mask = (
                completions.mask & ~completions.truncated.unsqueeze(1)
                if s.mask_truncated_completions
                else completions.mask
            )
            texts = self.processor.decode(completions.ids, completions.mask)
            parts.append(RolloutMicroBatch(prompts, completions, texts, mask, prefix if keep else None))
        return parts

    def _uniforms(self, batch: RolloutBatch, turn: int) -> Tensor:
        """The draws [B*G, C] of a turn of this step: a function of seed, step, the prompt's place in the global batch,
        and the turn."""
        s = self.settings
        shape = (s.num_generations, s.sampling.max_completion_length)
        draws = [
            np.random.default_rng((s.seed, batch.step, place, turn)).random(shape) for place in batch.prompt_indices
        ]
        return torch.from_numpy(np.concatenate(draws)).to(self.device)

    def _scores(self, model: Policy, prompts: PromptBatch, completions: Completions, prefix: Prefix | None) -> Scores:
        if self.policy.gradient_checkpointing and torch.is_grad_enabled():
            hidden = model.hidden_without_cache(prompts, completions.ids, completions.mask)
        else:
            hidden = completion_hidden(model, prefix or model.prefill(prompts), completions.ids, completions.mask)
        suppress_tokens = torch.tensor(self.settings.sampling.suppress_tokens, dtype=torch.long, device=self.device)
        temperature = self.settings.sampling.temperature
        return score(
            model, hidden, completions.ids, completions.mask, temperature=temperature, suppress_tokens=suppress_tokens
        )

    @torch.no_grad()
    def _reference_logprobs(self, part: RolloutMicroBatch) -> Tensor | None:
        if self.settings.objective.beta == 0:
            return None
        model = self._reference[0] or self.policy
        with model.without_adapter():
            logprobs = self._scores(model, part.prompts, part.completions, None).logprobs
        reshard(model)
        return logprobs

    def _batch_std(self, rewards: Tensor) -> Tensor:
        """Of the rewards of all processes."""
        full_tensor = self.all_gather(rewards) if self.trainer.world_size > 1 else rewards
        return torch.as_tensor(full_tensor).flatten().std()

    def _total(self, parts: list[RolloutMicroBatch]) -> LossNormalizer:
        rows = sum(p.mask.shape[0] for p in parts) * self.trainer.world_size
        tokens = float(all_reduce_sum(self, torch.stack([p.mask.sum() for p in parts]).sum().float()))
        return LossNormalizer(rows, tokens, self.settings.sampling.max_completion_length)

    def _log(self, values: dict[str, Tensor]) -> None:
        image_index = {"train/reward", "train/rewards/accuracy/mean"}
        for name, value in values.items():
            self.log(
                name,
                value.to(self.device, torch.float32),
                prog_bar=name in image_index,
                sync_dist=self.trainer.world_size > 1,
                batch_size=1,
            )
