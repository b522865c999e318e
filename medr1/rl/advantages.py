"""Advantages within the group of completions of a prompt (GRPO: arXiv 2402.03300, equation 3 and section 4.1.2).

With K reward functions of weights w_k, ``reward.normalization`` says what is normalized:

    sum     r_i = sum_k w_k r_ik, then ``group_advantages`` of r
    gdpo    S_i = sum_k w_k (r_ik - mean(r_k)) / (std(r_k) + 1e-4), mean and std over the group; A_i = S_i / (std(S) +
            1e-4), std over the batch (arXiv 2601.05242, section 3; TRL: normalize_then_sum)

The batch mean that GDPO also subtracts is 0, because each term of S has the mean 0 in each group. So GDPO is
``group_advantages`` of S, scaled by the batch. A reward that is equal for a whole group, or whose weight is 0, gives 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4  # as in the released Med-R1 code


def group_advantages(
    rewards: Tensor, num_generations: int, scale_rewards: str, batch_std: Tensor | None = None
) -> Tensor:
    """Advantages [B*G] from rewards [B*G].

    A_i = (r_i - mean(r)) / (std(r) + 1e-4), with the mean over the group and the *unbiased* standard deviation of

        group   the group
        batch   all rewards of the step: ``batch_std``, or that of ``rewards`` if it is not given
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
    if scale_rewards == "group":
        return (centered / (groups.std(1, keepdim=True) + EPSILON)).flatten()
    return (centered / ((rewards.std() if batch_std is None else batch_std) + EPSILON)).flatten()


def gdpo_scores(rewards: Tensor, weights: Tensor, num_generations: int) -> Tensor:
    """GDPO's sums S [B*G] from the rewards [K, B*G] of K functions and their weights [K].

    Groups in which the terms cancel out, so that no completion is preferred, have sums of exactly 0.
    """
    terms = torch.stack([group_advantages(reward, num_generations, "group") for reward in rewards])
    scores = (weights.unsqueeze(1) * terms).sum(0).view(-1, num_generations)
    # Terms that cancel out leave errors of rounding, which the deviation of the batch could make advantages of.
    cancels = scores.abs().amax(1) <= 1e-5 * weights.max()
    return scores.masked_fill(cancels.unsqueeze(1), 0.0).flatten()


def zero_std_groups(rewards: Tensor, num_generations: int) -> Tensor:
    """Mask [B], True for prompts whose rewards have zero variance, from rewards [B*G]."""
    groups = rewards.view(-1, num_generations)
    return torch.isclose(groups.amax(1), groups.amin(1))
