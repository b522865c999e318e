"""The training step of GRPO and its variants. The mathematics is in ``medr1.rl``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from medr1.config.enums import ScaleRewards
from medr1.domain.records import Record
from medr1.generation.engines import Engine
from medr1.generation.logprobs import Scores, completion_hidden, score
from medr1.generation.sampling import Sampling
from medr1.models.policy import Policy
from medr1.models.sharding import reshard, unsharded_params
from medr1.models.tensors import Completions, Prefix, PromptBatch
from medr1.rewards import Rewards
from medr1.rl.advantages import gdpo_scores, group_advantages, zero_std_groups
from medr1.rl.objective import LossNormalizer, grpo_loss
from medr1.training.algorithms.grpo import GRPOConfig
from medr1.training.batches import RolloutBatch
from medr1.training.micro_batches import split_by_tokens
from medr1.training.module import PolicyModule, length_metrics


@dataclass(slots=True)
class RolloutMicroBatch:
    """A micro-batch: B' prompts and their R' = B'*G completions.

    loss_mask [R', C]: True where a token enters the loss. prefix: KV cache of the prompts with its autograd graph, so
    that rollout and first update share one prefill; None with several micro-batches, gradient checkpointing or FSDP.
    advantages [R'], reference_logprobs and old_logprobs [R', C] are set in the course of the step.
    """

    prompts: PromptBatch
    completions: Completions
    texts: list[str]
    loss_mask: Tensor
    prefix: Prefix | None = None
    advantages: Tensor | None = None
    reference_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None

    def select(self, rows: list[int], num_generations: int) -> RolloutMicroBatch:
        """The given prompts, in order, with their completions. The prefix keeps its columns of padding."""
        if len(rows) == len(self.prompts.ids):
            return self
        indices = [row * num_generations + i for row in rows for i in range(num_generations)]
        index = torch.tensor(indices, device=self.loss_mask.device)
        return RolloutMicroBatch(
            self.prompts.select(rows),
            self.completions.select(index),
            [self.texts[i] for i in indices],
            self.loss_mask[index],
            None if self.prefix is None else self.prefix.select(torch.tensor(rows, device=index.device)),
        )


@dataclass(frozen=True, slots=True)
class RolloutLog:
    """One rollout as text, for the table of completions: completions of a prompt in adjacent rows."""

    step: int
    records: list[Record]
    texts: list[str]
    rewards: Rewards
    advantages: list[float]


@dataclass(frozen=True, slots=True)
class Rollout:
    """The prompts of a step with their completions and rewards.

    ``scores`` [B*G]: what the advantages are computed from, see ``GRPOModule.scores``. ``zero_std``: share of the
    prompts whose scores had zero variance, before any of them was replaced.
    """

    records: list[Record]
    micro_batches: list[RolloutMicroBatch]
    rewards: Rewards
    scores: Tensor
    zero_std: float


class GRPOModule(PolicyModule):
    """Group relative policy optimization.

    ``reference``: None if beta is 0, or with LoRA, see ``Policy.as_reference``. ``decode``:
    completions (ids, mask) -> texts. ``reward``: ``compute_rewards`` with its config. ``gdpo_weights``: the weights of
    the rewards by name, if they are normalized one by one (GDPO). ``seed``: of the sampling.
    """

    on_progress_bar: ClassVar[tuple[str, ...]] = ("train/reward", "train/rewards/accuracy/mean")

    def __init__(
        self,
        policy: Policy,
        reference: Policy | None,
        settings: GRPOConfig,
        *,
        sampling: Sampling,
        engine: Engine,
        decode: Callable[[Tensor, Tensor], list[str]],
        reward: Callable[..., Rewards],
        gdpo_weights: Mapping[str, float] | None = None,
        total_steps: int,
        max_tokens_per_device: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            policy,
            settings,
            total_steps=total_steps,
            max_tokens_per_device=max_tokens_per_device,
            reference=reference,
        )
        self.settings, self.sampling, self.engine, self.seed = settings, sampling, engine, seed
        self.decode, self.reward, self.gdpo_weights = decode, reward, gdpo_weights
        self.rollout_log: RolloutLog | None = None

    def step(self, batch: RolloutBatch) -> dict[str, Tensor]:
        s = self.settings
        with self.phase("rollout"):
            rollout = self._rollout(batch)
            micro_batches = rollout.micro_batches
            rewards = torch.tensor([rollout.rewards.total, *rollout.rewards.parts.values()], device=self.device)
            scores = rollout.scores.to(self.device)
            all_scores, *all_rewards = self.gather(torch.stack([scores, *rewards]))
            scale = s.objective.scale_rewards if self.gdpo_weights is None else ScaleRewards.batch
            advantages = group_advantages(scores, s.num_generations, scale, all_scores.std())
            sizes = [len(micro.texts) for micro in micro_batches]
            for micro, own_advantages in zip(micro_batches, torch.split(advantages, sizes), strict=True):
                micro.advantages = own_advantages
        with self.phase("reference"):
            if s.objective.beta > 0:
                for micro in micro_batches:
                    micro.reference_logprobs = self._reference_logprobs(micro)
        with self.phase("update"):
            normalizer = self._normalizer(micro_batches)
            for _ in range(s.num_iterations):
                sums: list[Tensor] = []
                grad_norm = self.update(self._losses(micro_batches, normalizer, sums), len(micro_batches))
        texts = [text for micro in micro_batches for text in micro.texts]
        self.rollout_log = RolloutLog(batch.step, rollout.records, texts, rollout.rewards, advantages.tolist())

        lengths = torch.cat([micro.completions.mask.sum(1) for micro in micro_batches]).float()
        truncated = torch.cat([micro.completions.truncated for micro in micro_batches]).float()
        lengths, truncated = self.gather(torch.stack([lengths, truncated]))
        zero_std = torch.tensor([rollout.zero_std / self.runtime.world_size], device=self.device)
        local_sums = torch.cat([torch.stack(sums, dim=1).sum(1), zero_std])
        loss, kl, clipped, entropy, zero_std_share = self.all_reduce_sum(local_sums)
        tokens = max(normalizer.tokens, 1.0)
        return {
            **_reward_metrics(torch.stack(all_rewards), list(rollout.rewards.parts), s.num_generations),
            "train/frac_reward_zero_std": zero_std_share,
            "train/loss": loss,
            "train/kl": kl / tokens,
            "train/clip_ratio": clipped / tokens,
            "train/entropy": entropy / lengths.sum(),
            **length_metrics(lengths),
            "train/completions/clipped_ratio": truncated.mean(),
            "train/grad_norm": grad_norm,
        }

    def _rollout(self, batch: RolloutBatch) -> Rollout:
        """Generates and rewards completions.

        Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): up to ``filter_groups`` times, prompts whose rewards
        have zero variance are replaced by others. Those that still have zero variance then stay.
        """
        records, prompt_indices = batch.records, batch.prompt_indices
        with unsharded_params(self.policy):
            micro_batches = self._generate(batch, attempt=0)
            rewards, scores, zero_std = self._rewards(records, micro_batches)
            initial_share = zero_std.float().mean().item()
            for attempt in range(1, self.settings.filter_groups + 1):
                if batch.resample is None or not zero_std.any():
                    break
                dropped = [index for index, zero in zip(prompt_indices, zero_std.tolist(), strict=True) if zero]
                others = batch.resample(attempt, dropped).to(self.device)
                masks = torch.split(zero_std, [len(micro.prompts.ids) for micro in micro_batches])
                row_lists = [[(~mask).nonzero().flatten().tolist()] if not mask.all() else [] for mask in masks]
                micro_batches = self._regroup(micro_batches, row_lists) + self._generate(others, attempt)
                rows = (~zero_std).nonzero().flatten().tolist()
                records = [records[row] for row in rows] + others.records
                prompt_indices = [prompt_indices[row] for row in rows] + others.prompt_indices
                rewards, scores, zero_std = self._rewards(records, micro_batches)
        micro_batches = self._regroup(micro_batches, self.equal_split([len(m.prompts.ids) for m in micro_batches]))
        return Rollout(records, micro_batches, rewards, scores, initial_share)

    def _regroup(
        self, micro_batches: list[RolloutMicroBatch], row_lists: list[list[list[int]]]
    ) -> list[RolloutMicroBatch]:
        """Splits micro-batches: ``row_lists[i]`` lists the rows of each new one made from ``micro_batches[i]``."""
        G = self.settings.num_generations
        return [micro.select(rows, G) for micro, lists in zip(micro_batches, row_lists, strict=True) for rows in lists]

    def _generate(self, batch: RolloutBatch, attempt: int) -> list[RolloutMicroBatch]:
        """Completions of all prompts, in micro-batches of at most ``max_tokens_per_device`` tokens."""
        s, G = self.settings, self.settings.num_generations
        sizes = (batch.prompts.mask.sum(1) + G * self.sampling.max_completion_length).tolist()
        row_lists = split_by_tokens(sizes, self.max_tokens_per_device)
        # Keeping the graphs of several prefills at once would exceed the memory that max_tokens_per_device allows.
        shares_prefill = len(row_lists) == 1 and not self.policy.gradient_checkpointing and not self.runtime.is_sharded
        uniforms, micro_batches = self._uniforms(batch, attempt), []
        for rows in row_lists:
            prompts = self.policy.precompute_image_features(batch.prompts.select(rows))
            prefix = self.policy.prefill(prompts) if shares_prefill else None
            draws = uniforms[rows[0] * G : (rows[-1] + 1) * G]
            completions = self.engine.generate(self.policy, prompts, self.sampling, G, draws, prefix)
            loss_mask = completions.mask
            if s.objective.mask_truncated_completions:
                loss_mask = loss_mask & ~completions.truncated.unsqueeze(1)
            texts = self.decode(completions.ids, completions.mask)
            micro_batches.append(RolloutMicroBatch(prompts, completions, texts, loss_mask, prefix))
        return micro_batches

    def _uniforms(self, batch: RolloutBatch, attempt: int) -> Tensor:
        """Uniform numbers [B*G, max_completion_length] for sampling.

        Those of a prompt depend only on the seed, the step, its position in the global batch and the attempt.
        """
        shape = (self.settings.num_generations, self.sampling.max_completion_length)
        seeds = [(self.seed, batch.step, index, attempt) for index in batch.prompt_indices]
        draws = [np.random.default_rng(seed).random(shape) for seed in seeds]
        return torch.from_numpy(np.concatenate(draws)).to(self.device)

    def scores(self, rewards: Rewards) -> Tensor:
        """What advantages are computed from [B*G], on the CPU: the weighted sums of the rewards, or GDPO's sums."""
        if self.gdpo_weights is None:
            return torch.tensor(rewards.total)
        weights = torch.tensor([self.gdpo_weights[name] for name in rewards.parts])
        return gdpo_scores(torch.tensor(list(rewards.parts.values())), weights, self.settings.num_generations)

    def _rewards(self, records: list[Record], micro_batches: list[RolloutMicroBatch]) -> tuple[Rewards, Tensor, Tensor]:
        """The rewards, their scores [B*G], and which prompts [B] have scores of zero variance."""
        texts = [text for micro in micro_batches for text in micro.texts]
        repeated = [record for record in records for _ in range(self.settings.num_generations)]
        rewards = self.reward(
            texts,
            repeated,
            completion_ids=[ids for micro in micro_batches for ids in micro.completions.token_ids()],
            truncated=[cut for micro in micro_batches for cut in micro.completions.truncated.tolist()],
        )
        scores = self.scores(rewards)
        return rewards, scores, zero_std_groups(scores, self.settings.num_generations)

    @torch.no_grad()
    def _reference_logprobs(self, micro_batch: RolloutMicroBatch) -> Tensor:
        reference = self._references[0] if self._references else self.policy
        with reference.as_reference():
            logprobs = self._score(reference, micro_batch).logprobs
        reshard(reference)
        return logprobs

    def _normalizer(self, micro_batches: list[RolloutMicroBatch]) -> LossNormalizer:
        completions = sum(len(micro.texts) for micro in micro_batches) * self.runtime.world_size
        tokens = self.all_reduce_sum(torch.stack([micro.loss_mask.sum() for micro in micro_batches]).sum().float())
        return LossNormalizer(completions, float(tokens), self.sampling.max_completion_length)

    def _losses(
        self, micro_batches: list[RolloutMicroBatch], normalizer: LossNormalizer, sums: list[Tensor]
    ) -> Iterator[Tensor]:
        """The loss of each micro-batch. For logging, appends (loss, sum of KL, clipped tokens, sum of entropies) to
        ``sums``."""
        for micro in micro_batches:
            prefix, micro.prefix = micro.prefix, None  # stale after the first iteration, which changes the weights
            scores = self._score(self.policy, micro, prefix)
            if micro.old_logprobs is None:
                micro.old_logprobs = scores.logprobs.detach()
            assert micro.advantages is not None
            loss = grpo_loss(
                scores.logprobs,
                micro.old_logprobs,
                micro.reference_logprobs,
                micro.advantages,
                micro.loss_mask,
                self.settings.objective,
                normalizer,
            )
            sums.append(torch.stack([loss.loss.detach(), loss.kl, loss.clipped.float(), scores.entropy.sum()]))
            yield loss.loss

    def _score(self, model: Policy, micro_batch: RolloutMicroBatch, prefix: Prefix | None = None) -> Scores:
        prompts, ids, mask = micro_batch.prompts, micro_batch.completions.ids, micro_batch.completions.mask
        if self.policy.gradient_checkpointing and torch.is_grad_enabled():
            hidden = model.hidden_without_cache(prompts, ids, mask)
        else:
            hidden = completion_hidden(model, prefix or model.prefill(prompts), ids, mask)
        suppress_tokens = torch.tensor(self.sampling.suppress_tokens, dtype=torch.long, device=self.device)
        return score(model, hidden, ids, mask, temperature=self.sampling.temperature, suppress_tokens=suppress_tokens)


def _reward_metrics(rewards: Tensor, names: list[str], num_generations: int) -> dict[str, Tensor]:
    """Metrics of all rewards of a step: their weighted sum in the first row, one row for each reward function."""
    total, *parts = rewards
    metrics = {"train/reward": total.mean(), "train/reward_std": total.view(-1, num_generations).std(1).mean()}
    for name, values in zip(names, parts, strict=True):
        metrics |= {f"train/rewards/{name}/mean": values.mean(), f"train/rewards/{name}/std": values.std()}
    return metrics
