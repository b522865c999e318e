"""Which tokens have a policy gradient, chosen once for each rollout from the policy that sampled.

    top_entropy_quantile    tokens whose entropy is at least the (1 - top_entropy_quantile) quantile of the entropies of
                            all tokens of the step. "Beyond the 80/20 Rule", arXiv 2506.01939; TRL
    clip_cov                all tokens but max(clip_cov_ratio N, 1) of the N tokens of the step, drawn at random from
                            those with clip_cov_lb < cov < clip_cov_ub, where cov = (A - mean(A)) (logp - mean(logp)),
                            means over the tokens of the step. Clip-Cov, arXiv 2505.22617; verl

verl computes cov anew in each update and for each micro-batch, and passes over tokens that are clipped already. With
one update for each rollout and one micro-batch the choice is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def high_entropy_tokens(entropy: Tensor, mask: Tensor, top_entropy_quantile: float) -> Tensor:
    """The tokens of highest entropy, as a mask like ``entropy`` [...]; ``mask``: the tokens of the loss."""
    ordered = entropy[mask].sort().values
    if not len(ordered):
        return mask
    position = (1 - top_entropy_quantile) * (len(ordered) - 1)  # between two tokens, as in torch.quantile
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    threshold = ordered[below] + (position - below) * (ordered[above] - ordered[below])
    return mask & (entropy >= threshold)


def low_covariance_tokens(
    logprobs: Tensor, advantages: Tensor, mask: Tensor, draws: Tensor, ratio: float, lower: float, upper: float
) -> Tensor:
    """The tokens that Clip-Cov keeps, as a mask like ``logprobs`` [...].

    All arguments have this shape. ``mask``: the tokens of the loss. ``draws``: random numbers; among the tokens with a
    covariance between ``lower`` and ``upper`` those with the smallest numbers are dropped.
    """
    tokens = int(mask.sum())
    if not tokens:
        return mask
    mean_logprob, mean_advantage = ((values * mask).sum() / tokens for values in (logprobs, advantages))
    covariance = (advantages - mean_advantage) * (logprobs - mean_logprob)
    candidates = mask & (covariance > lower) & (covariance < upper)
    ordered = draws.masked_fill(~candidates, torch.inf).flatten().sort().values
    last = ordered[max(int(ratio * tokens), 1) - 1]
    return mask & ~(candidates & (draws <= last))
