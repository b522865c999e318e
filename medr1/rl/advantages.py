"""Advantages of the completions of a step: ``algorithm.adv_estimator``.

r_i is the reward of completion i, the weighted sum sum_k w_k r_ik of K reward functions. mean and std without index are
over the group of completions of a prompt, G of them; std is the unbiased standard deviation.

    grpo                            (r_i - mean(r)) / (std + 1e-4); ``scale_rewards``: std of the group, of the batch,
                                    or no division. arXiv 2402.03300, equation 3 and section 4.1.2
    gdpo                            S_i = sum_k w_k (r_ik - mean(r_k)) / (std(r_k) + 1e-4), then S_i / (std_batch(S) +
                                    1e-4). arXiv 2601.05242, section 3
    rloo                            r_i - mean of the other r_j of the group = G / (G - 1) (r_i - mean(r)).
                                    arXiv 2402.14740; TRL's RLOOTrainer
    reinforce_plus_plus_baseline    a_i = r_i - mean(r), then (a_i - mean_tokens(a)) / sqrt(var_tokens(a) + 1e-8), over
                                    all tokens of the batch. REINFORCE++ with baseline, arXiv 2501.03262; verl
    drpo                            grpo's A_i / max(sqrt(N_d) mu_d, 1e-6), then divided by (std_batch + 1e-6). N_d and
                                    mu_d: number and mean reward of the prompts of domain d so far. arXiv 2506.00711

The batch mean that GDPO also subtracts is 0, because each term of S has the mean 0 in each group. A reward that is
equal for a whole group, or whose weight is 0, gives 0.

DRPO also divides by sqrt(N_c) mu_c of a cluster c of prompts inside the domain, found by k-means over all prompts so
far. That is left out: its history grows without bound, and its clusters depend on the library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-4  # as in the released Med-R1 code
_DRPO_EPSILON = 1e-6  # as in the authors' code


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What the advantages of the R = B*G completions of a step are computed from, of all processes.

    scores [R]: see ``scores``. lengths [R]: tokens of the completions. domains [B]: index of the domain of each prompt.
    domain_counts, domain_means [D]: number and mean reward of the prompts of each domain so far, with this step.
    """

    scores: Tensor
    lengths: Tensor
    num_generations: int
    scale_rewards: str
    domains: Tensor
    domain_counts: Tensor
    domain_means: Tensor


def group_advantages(rewards: Tensor, num_generations: int, scale_rewards: str) -> Tensor:
    """Advantages [B*G] from rewards [B*G].

    A_i = (r_i - mean(r)) / (std(r) + 1e-4), with the mean over the group and the *unbiased* standard deviation of

        group   the group
        batch   all rewards of the step
        none    no division (Dr. GRPO, arXiv 2503.20783)

    Groups whose rewards are all equal have advantages of exactly 0.
    """
    groups = rewards.view(-1, num_generations)
    centered = groups - groups.mean(1, keepdim=True)
    # In float32 the mean of eight rewards of 1.2 is not exactly 1.2. Dividing by EPSILON would give an advantage of
    # 0.001.
    centered = centered.masked_fill(zero_std_groups(rewards, num_generations).unsqueeze(1), 0.0)
    if scale_rewards == "none":
        return centered.flatten()
    std = groups.std(1, keepdim=True) if scale_rewards == "group" else rewards.std()
    return (centered / (std + EPSILON)).flatten()


def gdpo_scores(rewards: Tensor, weights: Tensor, num_generations: int) -> Tensor:
    """GDPO's sums S [B*G] from the rewards [K, B*G] of K functions and their weights [K].

    Groups in which the terms cancel out, so that no completion is preferred, have sums of exactly 0.
    """
    terms = torch.stack([group_advantages(reward, num_generations, "group") for reward in rewards])
    scores = (weights.unsqueeze(1) * terms).sum(0).view(-1, num_generations)
    # Terms that cancel out leave errors of rounding, which the deviation of the batch could make advantages of.
    cancels = scores.abs().amax(1) <= 1e-5 * weights.max()
    return scores.masked_fill(cancels.unsqueeze(1), 0.0).flatten()


def scores(estimator: str, total: Tensor, parts: Tensor, weights: Tensor, num_generations: int) -> Tensor:
    """What an estimator takes as rewards [B*G]: their weighted sums ``total``, or GDPO's of ``parts`` [K, B*G]."""
    return gdpo_scores(parts, weights, num_generations) if estimator == "gdpo" else total


def _rloo(step: Outcomes) -> Tensor:
    G = step.num_generations
    return group_advantages(step.scores, G, "none") * (G / (G - 1))


def _reinforce_plus_plus_baseline(step: Outcomes) -> Tensor:
    centered = group_advantages(step.scores, step.num_generations, "none")
    tokens = step.lengths.sum()
    deviations = centered - (centered * step.lengths).sum() / tokens
    variance = (deviations.square() * step.lengths).sum() / (tokens - 1)
    return deviations / (variance + 1e-8).sqrt()


def _drpo(step: Outcomes) -> Tensor:
    temperatures = (step.domain_counts.sqrt() * step.domain_means).clamp(min=_DRPO_EPSILON)
    of_completion = temperatures[step.domains].repeat_interleave(step.num_generations)
    scaled = group_advantages(step.scores, step.num_generations, "group") / of_completion
    return scaled / (scaled.std() + _DRPO_EPSILON)


_ESTIMATORS: dict[str, Callable[[Outcomes], Tensor]] = {
    "grpo": lambda step: group_advantages(step.scores, step.num_generations, step.scale_rewards),
    "gdpo": lambda step: group_advantages(step.scores, step.num_generations, "batch"),
    "rloo": _rloo,
    "reinforce_plus_plus_baseline": _reinforce_plus_plus_baseline,
    "drpo": _drpo,
}


def advantages(estimator: str, step: Outcomes) -> Tensor:
    """The advantages [R] of the completions of a step."""
    return _ESTIMATORS[estimator](step)


def zero_std_groups(rewards: Tensor, num_generations: int) -> Tensor:
    """Mask [B], True for prompts whose rewards have zero variance, from rewards [B*G]."""
    groups = rewards.view(-1, num_generations)
    highest, lowest = groups.amax(1), groups.amin(1)
    # Sums of the same parts in another order differ by a few roundings of float32.
    return highest - lowest <= 1e-6 * torch.maximum(highest.abs(), lowest.abs())
