"""Advantages within the group of completions of a prompt (GRPO: arXiv 2402.03300, equation 3 and section 4.1.2)."""

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


def zero_std_groups(rewards: Tensor, num_generations: int) -> Tensor:
    """Prompts [B] whose rewards have zero variance, from rewards [B*G]."""
    groups = rewards.view(-1, num_generations)
    return torch.isclose(groups.amax(1), groups.amin(1))
