"""Corrects the loss for completions that another engine has sampled (truncated importance sampling).

The engine's log-probabilities s_t of the tokens of completion o_i differ from those of training, p_t, because its
kernels and precision do. The policy loss of a token is multiplied by a weight w_t:

    token       w_t = exp(p_t - s_t)
    sequence    w_t = exp(sum_t (p_t - s_t)), the same for all tokens
    truncate    w_t is clipped to [clip_min, clip_max]
    mask        w_t outside of [clip_min, clip_max] becomes 0

The exponent is clamped to [-20, 20], as that of the loss is.

Source: Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025). The modes are those
of TRL's ``vllm_importance_sampling_mode``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medr1.config.settings import ExternalRolloutConfig
from medr1.rl.objective import MAX_LOG_RATIO


@torch.no_grad()
def importance_weights(
    trained: Tensor, sampled: Tensor, mask: Tensor, settings: ExternalRolloutConfig
) -> tuple[Tensor, Tensor]:
    """The weights w_t [R, C] of the tokens of R completions, 1 without correction, and |p_t - s_t| [R, C].

    trained, sampled [R, C]: the log-probabilities p_t and s_t. mask [R, C]. Both results are 0 at padding.
    """
    difference = (trained - sampled) * mask
    if not settings.importance_sampling_correction:
        return mask.to(trained.dtype), difference.abs()
    level, bound = settings.importance_sampling_mode.split("_")
    exponent = difference.sum(1, keepdim=True).expand_as(difference) if level == "sequence" else difference
    weights = exponent.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    low, high = settings.importance_sampling_clip_min, settings.importance_sampling_clip_max
    low, high = 0.0 if low is None else low, math.inf if high is None else high
    if bound == "truncate":
        weights = weights.clamp(low, high)
    else:
        weights = weights.masked_fill((weights < low) | (weights > high), 0.0)
    return weights * mask, difference.abs()
