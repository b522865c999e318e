"""The training step of GRPO and its variants. The mathematics is in ``medr1.rl``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from medr1.config.enums import AdvEstimator, LossMode
from medr1.config.settings import ExternalRolloutConfig
from medr1.domain.records import Record
from medr1.errors import ServerError
from medr1.generation.engines import Engine
from medr1.generation.logprobs import Scores, completion_hidden, score
from medr1.generation.sampling import Sampling
from medr1.models.policy import Policy
from medr1.models.sharding import generation
from medr1.models.tensors import Completions, Prefix, PromptBatch
from medr1.rewards import Rewards
from medr1.rl.advantages import Outcomes, advantages, scores, zero_std_groups
from medr1.rl.importance_sampling import importance_weights
from medr1.rl.objective import LossNormalizer, grpo_loss
from medr1.rl.token_masks import high_entropy_tokens, low_covariance_tokens
from medr1.training.algorithms.grpo import GRPOConfig
from medr1.training.batches import RolloutBatch
from medr1.training.micro_batches import split_by_tokens
from medr1.training.module import PolicyModule

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RolloutMicroBatch:
    """A micro-batch: B' prompts and their R' = B'*G completions.

    loss_mask [R', C]: True where a token enters the loss. prefix: KV cache of the prompts with its autograd graph, so
    that rollout and first update share one prefill; None with several micro-batches, gradient checkpointing or FSDP.
    advantages [R'], reference_logprobs, old_logprobs, policy_mask, importance_weights and logp_difference [R', C] are
    set in the course of the step. policy_mask: True where a token has a policy gradient, None if all have.
    importance_weights, logp_difference: see ``medr1.rl.importance_sampling``, None if the engine is the policy itself.
    masked_image: the prompts with masked images (PAPO).
    """

    prompts: PromptBatch
    completions: Completions
    texts: list[str]
    loss_mask: Tensor
    prefix: Prefix | None = None
    advantages: Tensor | None = None
    reference_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    policy_mask: Tensor | None = None
    importance_weights: Tensor | None = None
    logp_difference: Tensor | None = None
    masked_image: PromptBatch | None = None

    def select(self, rows: list[int], num_generations: int) -> RolloutMicroBatch:
        """The given prompts, in order, with their completions. The prefix keeps its columns of padding."""
        if len(rows) == len(self.prompts.ids):
            return self
        indices = completion_rows(rows, num_generations)
        index = torch.tensor(indices, device=self.loss_mask.device)
        return RolloutMicroBatch(
            self.prompts.select(rows),
            self.completions.select(index),
            [self.texts[i] for i in indices],
            self.loss_mask[index],
            None if self.prefix is None else self.prefix.select(torch.tensor(rows, device=index.device)),
            masked_image=None if self.masked_image is None else self.masked_image.select(rows),
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

    ``prompt_indices``: positions in the global batch. ``scores`` [B*G]: what the advantages are computed from, see
    ``medr1.rl.advantages``. ``zero_std``: share of the prompts whose scores had zero variance, before any of them was
    replaced.
    """

    records: list[Record]
    prompt_indices: list[int]
    micro_batches: list[RolloutMicroBatch]
    rewards: Rewards
    scores: Tensor
    zero_std: float


def completion_rows(prompts: Sequence[int], num_generations: int) -> list[int]:
    """The rows of the completions of these prompts, in order: those of a prompt are adjacent."""
    return [prompt * num_generations + i for prompt in prompts for i in range(num_generations)]


class GRPOModule(PolicyModule):
    """Group relative policy optimization.

    ``reference``: None if beta is 0, or with LoRA, see ``Policy.as_reference``. ``decode``: completions (ids, mask) ->
    texts. ``reward``: ``compute_rewards`` with its config. ``reward_weights``: the weights of the rewards by name.
    ``domains``: the modalities of the training records (DRPO). ``seed``: of the sampling.
    """

    on_progress_bar: ClassVar[tuple[str, ...]] = ("train/reward", "train/accuracy_reward")

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
        reward_weights: Mapping[str, float],
        domains: Sequence[str],
        total_steps: int,
        max_tokens_per_device: int = 0,
        gather_for_generation: bool = False,
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
        self.decode, self.reward, self.reward_weights = decode, reward, reward_weights
        self.gather_for_generation = gather_for_generation
        self.rollout_log: RolloutLog | None = None
        self.domains = list(domains)
        # DRPO: number of the prompts of each domain so far, and the sum of their mean rewards.
        self._domain_counts, self._domain_sums = (torch.zeros(len(domains), dtype=torch.float64) for _ in range(2))
        self._warned_of: set[str] = set()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["domains"] = {"counts": self._domain_counts.tolist(), "sums": self._domain_sums.tolist()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "domains" in checkpoint:
            self._domain_counts, self._domain_sums = (
                torch.tensor(checkpoint["domains"][key], dtype=torch.float64) for key in ("counts", "sums")
            )

    def step(self, batch: RolloutBatch) -> dict[str, Tensor]:
        s = self.settings
        with self.phase("rollout"):
            rollout = self._rollout(batch)
            micro_batches = rollout.micro_batches
            rewards = torch.tensor([rollout.rewards.total, *rollout.rewards.parts.values()], device=self.device)
            lengths = torch.cat([micro.completions.mask.sum(1) for micro in micro_batches]).float()
            truncated = torch.cat([micro.completions.truncated for micro in micro_batches]).float()
            gathered = self.gather(torch.stack([rollout.scores.to(self.device), lengths, truncated, *rewards]))
            all_scores, all_lengths, all_truncated, *all_rewards = gathered
            all_advantages = self.advantages(self._outcomes(all_scores, all_lengths, rollout.records))
            own_advantages = self._own(all_advantages)
            sizes = [len(micro.texts) for micro in micro_batches]
            for micro, of_micro in zip(micro_batches, torch.split(own_advantages, sizes), strict=True):
                micro.advantages = of_micro
        with self.phase("reference"):
            if s.objective.beta > 0:
                for micro in micro_batches:
                    micro.reference_logprobs = self._reference_logprobs(micro)
            if s.objective.top_entropy_quantile < 1 or s.objective.loss_mode == LossMode.clip_cov:
                self._choose_tokens(batch.step, rollout)
        with self.phase("update"):
            normalizer = self._normalizer(micro_batches)
            for _ in range(s.num_iterations):
                sums: list[Tensor] = []
                grad_norm = self.update(self._losses(micro_batches, normalizer, sums), len(micro_batches))
            sampler_metrics = self._sampler_metrics(micro_batches)
        texts = [text for micro in micro_batches for text in micro.texts]
        self.rollout_log = RolloutLog(batch.step, rollout.records, texts, rollout.rewards, own_advantages.tolist())

        zero_std = torch.tensor([rollout.zero_std / self.runtime.world_size], device=self.device)
        local_sums = torch.cat([torch.stack(sums, dim=1).sum(1), zero_std])
        loss, kl, clipped, entropy, kl_prcp, zero_std_share = self.all_reduce_sum(local_sums)
        tokens = max(normalizer.tokens, 1.0)
        return {
            **sampler_metrics,
            **_reward_metrics(torch.stack(all_rewards), list(rollout.rewards.parts), s.num_generations),
            "frac_reward_zero_std": zero_std_share,
            "policy_loss": loss,
            "kl": kl / tokens,
            "clip_ratio": clipped / tokens,
            **({"kl_prcp": kl_prcp / tokens} if self._masks_images else {}),
            "entropy": entropy / all_lengths.sum(),
            "completion_length": all_lengths.mean(),
            "completion_clipped_ratio": all_truncated.mean(),
            "grad_norm": grad_norm,
        }

    def advantages(self, outcomes: Outcomes) -> Tensor:
        """The advantages [R] of the completions of all processes. A variant of GRPO overrides this."""
        return advantages(self.settings.adv_estimator, outcomes)

    @property
    def _masks_images(self) -> bool:
        return self.settings.objective.kl_prcp_coef > 0

    def _own(self, values: Tensor) -> Tensor:
        """The part of this process of gathered values [W*R]."""
        return values.view(self.runtime.world_size, -1)[self.global_rank]

    def _outcomes(self, all_scores: Tensor, all_lengths: Tensor, records: list[Record]) -> Outcomes:
        """The outcomes of the step in all processes. Adds its prompts to the statistics of the domains."""
        s = self.settings
        own = [self.domains.index(record.modality) for record in records]
        domains = self.gather(torch.tensor(own, device=self.device)).cpu()
        means = all_scores.view(-1, s.num_generations).mean(1).cpu().double()
        if domains.numel():
            self._domain_counts.index_add_(0, domains, torch.ones_like(means))
            self._domain_sums.index_add_(0, domains, means)
        counts = self._domain_counts.clamp(min=1)
        if s.adv_estimator is AdvEstimator.drpo:
            self._check_domain_means()
        statistics = (domains, counts.float(), (self._domain_sums / counts).float())
        domains, counts, means = (values.to(self.device) for values in statistics)
        return Outcomes(all_scores, all_lengths, s.num_generations, s.objective.scale_rewards, domains, counts, means)

    def _check_domain_means(self) -> None:
        """Says once for each domain that DRPO's temperature, its mean reward, is not positive."""
        for domain, count, total in zip(self.domains, self._domain_counts, self._domain_sums, strict=True):
            if count and total <= 0 and domain not in self._warned_of:
                self._warned_of.add(domain)
                log.warning(
                    "algorithm.adv_estimator=drpo: the mean reward of %s is %.3g, and DRPO divides by it: the others "
                    "hardly learn. Use rewards that are not negative, or another estimator",
                    domain,
                    total / count,
                )

    @torch.no_grad()
    def _choose_tokens(self, step: int, rollout: Rollout) -> None:
        """Sets the ``policy_mask`` of micro-batches from the tokens of all processes (``medr1.rl.token_masks``)."""
        o, width = self.settings.objective, self.sampling.max_completion_length
        columns: list[list[Tensor]] = []
        with generation(self.policy):
            for micro in rollout.micro_batches:
                found = self._score(self.policy, micro)
                assert micro.advantages is not None
                values = (found.logprobs, found.entropy, micro.advantages.unsqueeze(1).expand_as(found.logprobs))
                padding = (0, width - micro.loss_mask.shape[1])
                columns.append([torch.nn.functional.pad(value, padding) for value in (*values, micro.loss_mask)])
        logprobs, entropy, of_token, mask = (torch.cat(parts) for parts in zip(*columns, strict=True))
        draws = self._uniforms(step, rollout.prompt_indices, 0, 3).to(logprobs)
        shape = mask.shape
        logprobs, entropy, of_token, draws = self.gather(torch.stack([logprobs, entropy, of_token, draws]).flatten(1))
        chosen = mask = self.gather(mask.flatten().int()).bool()
        if o.loss_mode == LossMode.clip_cov:
            ratio, lower, upper = o.clip_cov_ratio, o.clip_cov_lb, o.clip_cov_ub
            chosen = low_covariance_tokens(logprobs, of_token, mask, draws, ratio, lower, upper)
        if o.top_entropy_quantile < 1:
            chosen = chosen & high_entropy_tokens(entropy, mask, o.top_entropy_quantile)
        sizes = [len(micro.texts) for micro in rollout.micro_batches]
        for micro, rows in zip(rollout.micro_batches, torch.split(self._own(chosen).view(shape), sizes), strict=True):
            micro.policy_mask = rows[:, : micro.loss_mask.shape[1]]

    def _rollout(self, batch: RolloutBatch) -> Rollout:
        """Generates and rewards completions.

        Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): up to ``filter_groups`` times, prompts whose rewards
        have zero variance are replaced by others. Those that still have zero variance then stay.
        """
        records, prompt_indices = batch.records, batch.prompt_indices
        with generation(self.policy, gather=self.gather_for_generation):
            micro_batches = self._generate(batch, attempt=0)
            rewards = self._rewards(records, micro_batches)
            found, zero_std = self._scores(rewards)
            initial_share = zero_std.float().mean().item()
            for attempt in range(1, self.settings.filter_groups + 1):
                if batch.resample is None or not zero_std.any():
                    break
                dropped = [index for index, zero in zip(prompt_indices, zero_std.tolist(), strict=True) if zero]
                for micro in micro_batches:
                    micro.prefix = None  # its graph holds the activations of all prompts, and of those that are dropped
                others = batch.resample(attempt, dropped).to(self.device)
                masks = torch.split(zero_std, [len(micro.prompts.ids) for micro in micro_batches])
                row_lists = [[(~mask).nonzero().flatten().tolist()] if not mask.all() else [] for mask in masks]
                generated = self._generate(others, attempt)
                micro_batches = self._regroup(micro_batches, row_lists) + generated
                rows = (~zero_std).nonzero().flatten().tolist()
                records = [records[row] for row in rows] + others.records
                prompt_indices = [prompt_indices[row] for row in rows] + others.prompt_indices
                remaining = rewards.select(completion_rows(rows, self.settings.num_generations))
                rewards = remaining + self._rewards(others.records, generated)
                found, zero_std = self._scores(rewards)
        self.engine.sleep()
        micro_batches = self._regroup(micro_batches, self.equal_split([len(m.prompts.ids) for m in micro_batches]))
        return Rollout(records, prompt_indices, micro_batches, rewards, found, initial_share)

    def _regroup(
        self, micro_batches: list[RolloutMicroBatch], row_lists: list[list[list[int]]]
    ) -> list[RolloutMicroBatch]:
        """Splits micro-batches: ``row_lists[i]`` lists the rows of each new one made from ``micro_batches[i]``."""
        G = self.settings.num_generations
        return [micro.select(rows, G) for micro, lists in zip(micro_batches, row_lists, strict=True) for rows in lists]

    def _generate(self, batch: RolloutBatch, attempt: int) -> list[RolloutMicroBatch]:
        """Completions of all prompts, in micro-batches of at most ``max_tokens_per_device`` tokens."""
        s, G = self.settings, self.settings.num_generations
        lengths = batch.prompts.mask.sum(1).tolist()
        longest = [G * self.sampling.max_completion_length] * len(lengths)
        row_lists = split_by_tokens(lengths, longest, self.max_tokens_per_device)
        # Keeping the graphs of several prefills at once would exceed the memory that max_tokens_per_device allows.
        is_only_one = len(row_lists) == 1 and attempt == 0
        shares_prefill = (
            is_only_one
            and not self.policy.gradient_checkpointing
            and not self.runtime.is_sharded
            and self._external is None  # it computes prefills of its own, and needs the memory of this one's graph
        )
        uniforms, micro_batches = self._uniforms(batch.step, batch.prompt_indices, attempt), []
        generated: Completions | None = None
        if self._external is not None:  # all at once: its memory and its parallel requests are its own
            generated = self._sample(batch.prompts, None if self._masks_images else batch.distorted, uniforms, None)
        for rows in row_lists:
            prompts = self.policy.precompute_image_features(batch.prompts.select(rows))
            distorted = None
            if batch.distorted is not None:
                distorted = self.policy.precompute_image_features(batch.distorted.select(rows))
            prefix = self.policy.prefill(prompts) if shares_prefill else None
            own = slice(rows[0] * G, (rows[-1] + 1) * G)
            if generated is not None:
                completions = generated.trimmed(own)
            else:
                noisy = None if self._masks_images else distorted
                completions = self._sample(prompts, noisy, uniforms[own], prefix)
            loss_mask = completions.mask
            if s.objective.mask_truncated_completions:
                loss_mask = loss_mask & ~completions.truncated.unsqueeze(1)
            texts = self.decode(completions.ids, completions.mask)
            micro = RolloutMicroBatch(prompts, completions, texts, loss_mask, prefix)
            micro.masked_image = distorted if self._masks_images else None
            micro_batches.append(micro)
        return micro_batches

    def _sample(
        self, prompts: PromptBatch, noisy: PromptBatch | None, draws: Tensor, prefix: Prefix | None
    ) -> Completions:
        """G completions of each prompt, half of them with the noisy images of ``noisy`` (NoisyRollout)."""
        G = self.settings.num_generations
        if noisy is None:
            return self.engine.generate(self.policy, prompts, self.sampling, G, draws, prefix)
        count, clean = len(prompts.ids), G - G // 2
        of_prompt = draws.view(count, G, -1)
        first, second = of_prompt[:, :clean].flatten(0, 1), of_prompt[:, clean:].flatten(0, 1)
        completions = self.engine.generate(self.policy, prompts, self.sampling, clean, first, prefix)
        others = self.engine.generate(self.policy, noisy, self.sampling, G // 2, second)
        return completions.interleave(others, count)

    def _uniforms(self, step: int, prompt_indices: list[int], *purpose: int) -> Tensor:
        """Uniform numbers [B*G, max_completion_length].

        Those of a prompt depend only on the seed, the step, its position in the global batch and the purpose.
        """
        shape = (self.settings.num_generations, self.sampling.max_completion_length)
        seeds = [(self.seed, step, index, *purpose) for index in prompt_indices]
        draws = [np.random.default_rng(seed).random(shape) for seed in seeds]
        return torch.from_numpy(np.concatenate(draws)).to(self.device)

    def _rewards(self, records: list[Record], micro_batches: list[RolloutMicroBatch]) -> Rewards:
        """The rewards of all completions of the records."""
        texts = [text for micro in micro_batches for text in micro.texts]
        repeated = [record for record in records for _ in range(self.settings.num_generations)]
        return self.reward(
            texts,
            repeated,
            completion_ids=[ids for micro in micro_batches for ids in micro.completions.token_ids()],
            truncated=[cut for micro in micro_batches for cut in micro.completions.truncated.tolist()],
        )

    def _scores(self, rewards: Rewards) -> tuple[Tensor, Tensor]:
        """What the advantages are computed from [B*G], and which prompts [B] have scores of zero variance."""
        s, total = self.settings, torch.tensor(rewards.total)
        weights = torch.tensor([self.reward_weights[name] for name in rewards.parts])
        found = scores(s.adv_estimator, total, torch.tensor(list(rewards.parts.values())), weights, s.num_generations)
        return found, zero_std_groups(found, s.num_generations)

    @torch.no_grad()
    def _reference_logprobs(self, micro_batch: RolloutMicroBatch) -> Tensor:
        reference = self._references[0] if self._references else self.policy
        with generation(reference), reference.as_reference():
            return self._score(reference, micro_batch).logprobs

    def _normalizer(self, micro_batches: list[RolloutMicroBatch]) -> LossNormalizer:
        completions = sum(len(micro.texts) for micro in micro_batches) * self.runtime.world_size
        tokens = self.all_reduce_sum(torch.stack([micro.loss_mask.sum() for micro in micro_batches]).sum().float())
        return LossNormalizer(completions, float(tokens), self.sampling.max_completion_length)

    def _losses(
        self, micro_batches: list[RolloutMicroBatch], normalizer: LossNormalizer, sums: list[Tensor]
    ) -> Iterator[Tensor]:
        """The loss of each micro-batch. For logging, appends (loss, sum of KL, clipped tokens, sum of entropies,
        sum of the KL between image and masked image) to ``sums``."""
        with_entropy = self.settings.objective.entropy_coef > 0
        for micro in micro_batches:
            prefix, micro.prefix = micro.prefix, None  # stale after the first iteration, which changes the weights
            found = self._score(self.policy, micro, prefix, entropy_grad=with_entropy)
            masked_image = None
            if micro.masked_image is not None:
                masked_image = self._score(self.policy, micro, masked=True).logprobs
            if micro.old_logprobs is None:
                micro.old_logprobs = found.logprobs.detach()
                self._compare_with_sampler(micro)
            assert micro.advantages is not None
            loss = grpo_loss(
                found.logprobs,
                micro.old_logprobs,
                micro.reference_logprobs,
                micro.advantages,
                micro.loss_mask,
                self.settings.objective,
                normalizer,
                policy_mask=micro.policy_mask,
                importance_weights=micro.importance_weights,
                entropy=found.entropy if with_entropy else None,
                masked_image=masked_image,
            )
            entropy = found.entropy.detach().sum()
            sums.append(torch.stack([loss.loss.detach(), loss.kl, loss.clipped.float(), entropy, loss.kl_prcp]))
            yield loss.loss

    @property
    def _external(self) -> ExternalRolloutConfig | None:
        """The settings of an engine whose log-probabilities differ from those of training."""
        config = self.engine.config
        return config if isinstance(config, ExternalRolloutConfig) else None

    def _compare_with_sampler(self, micro: RolloutMicroBatch) -> None:
        """Sets the importance weights of the tokens of an external engine."""
        if (settings := self._external) is None:
            return
        assert micro.old_logprobs is not None
        completions = micro.completions
        weights, differences = importance_weights(micro.old_logprobs, completions.logprobs, completions.mask, settings)
        micro.importance_weights, micro.logp_difference = weights, differences

    def _sampler_metrics(self, micro_batches: list[RolloutMicroBatch]) -> dict[str, Tensor]:
        """How the log-probabilities of an external engine differ from those of training, in this step.

        Raises:
            ServerError: they differ so much that the engine cannot have sampled from the policy.
        """
        if (settings := self._external) is None:
            return {}
        pairs = [(m.logp_difference, m.importance_weights, m.completions.mask) for m in micro_batches]
        differences = torch.cat([d[mask] for d, _, mask in pairs if d is not None])
        found = {"sampling_logp_difference": differences}
        if settings.importance_sampling_correction:
            found["importance_sampling_ratio"] = torch.cat([w[mask] for _, w, mask in pairs if w is not None])
        metrics: dict[str, Tensor] = {}
        for name, values in found.items():
            total, count = self.all_reduce_sum(torch.stack([values.sum(), torch.tensor(float(len(values))).to(values)]))
            metrics |= {name: total / count, f"{name}_max": self.runtime.all_gather(values.max()).max()}
        mean, limit = float(metrics["sampling_logp_difference"]), settings.max_logp_difference
        if limit is not None and not mean <= limit:
            raise ServerError(
                f"step {self._step}: the log-probabilities of the completions under rollout={settings.name} differ "
                f"from those of training by {mean:.3g} nats a token, more than rollout.max_logp_difference={limit:g}. "
                "Its model, precision or sampling settings are not those of the policy. If the difference is intended, "
                "add a higher rollout.max_logp_difference to the command"
            )
        return metrics

    def _score(
        self,
        model: Policy,
        micro_batch: RolloutMicroBatch,
        prefix: Prefix | None = None,
        *,
        masked: bool = False,
        entropy_grad: bool = False,
    ) -> Scores:
        """``masked``: with the masked images (PAPO)."""
        prompts = micro_batch.prompts
        if masked:
            assert micro_batch.masked_image is not None
            prompts = micro_batch.masked_image
        ids, mask = micro_batch.completions.ids, micro_batch.completions.mask
        if self.policy.gradient_checkpointing and torch.is_grad_enabled():
            hidden = model.hidden_without_cache(prompts, ids, mask)
        else:
            hidden = completion_hidden(model, prefix or model.prefill(prompts), ids, mask)
        suppress_tokens = torch.tensor(self.sampling.suppress_tokens, dtype=torch.long, device=self.device)
        return score(
            model,
            hidden,
            ids,
            mask,
            temperature=self.sampling.temperature,
            suppress_tokens=suppress_tokens,
            entropy_grad=entropy_grad,
        )


def _reward_metrics(rewards: Tensor, names: list[str], num_generations: int) -> dict[str, Tensor]:
    """Metrics of all rewards of a step: their weighted sum in the first row, one row for each reward function."""
    total, *parts = rewards
    metrics = {"train/reward": total.mean(), "reward_std": total.view(-1, num_generations).std(1).mean()}
    return metrics | {f"train/{name}_reward": values.mean() for name, values in zip(names, parts, strict=True)}
