"""Advantages within the group (GRPO: DeepSeekMath, arXiv 2402.03300, equation 3 and section 4.1.2)."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4  # the value of the released Med-R1 code


def group_advantages(rewards: Tensor, num_generations: int, scaling: str, batch_std: Tensor | None = None) -> Tensor:
    """Advantages [B*G] from rewards [B*G], the G of a prompt beside each other.

    A_i = (r_i - mean(r)) / (std(r) + 1e-4) with the *unbiased* standard deviation of the group (``scaling="group"``),
    that of all rewards of the step (``"batch"``, given as ``batch_std`` when it spans several processes), or no
    division (``"none"``, Dr. GRPO, arXiv 2503.20783). Groups whose rewards are all equal have exactly 0.
    """
    groups = rewards.view(-1, num_generations)
    centred = groups - groups.mean(1, keepdim=True)
    # In float32 the mean of eight times 1.2 is not 1.2, and EPSILON would make an advantage of 0.001 of that.
    centred = centred.masked_fill(zero_std_groups(rewards, num_generations).unsqueeze(1), 0.0)
    if scaling == "none":
        return centred.flatten()
    if scaling == "group":
        return (centred / (groups.std(1, keepdim=True) + EPSILON)).flatten()
    return (centred / ((rewards.std() if batch_std is None else batch_std) + EPSILON)).flatten()


def zero_std_groups(rewards: Tensor, num_generations: int) -> Tensor:
    """Which prompts [B] teach nothing because all their completions earned the same."""
    groups = rewards.view(-1, num_generations)
    return torch.isclose(groups.amax(1), groups.amin(1))
