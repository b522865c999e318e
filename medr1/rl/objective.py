"""The objective of GRPO and its relatives, as terms that are chosen independently.

With ratio_t = exp(logp_t - old_t) and d_t = ref_t - logp_t, the loss of a token is

    -min(ratio_t A, clip(ratio_t, 1 - clip_low, 1 + clip_high) A) + beta kl_t

and ``aggregation`` makes one number of the tokens of all completions (R of them in the whole step, N tokens):

    sequence_mean   1/R sum_i 1/|o_i| sum_t   GRPO (arXiv 2402.03300, equation 3), Med-R1
    token_mean      1/N sum_i sum_t           DAPO (arXiv 2503.14476, equation 8)
    constant        1/(R Cmax) sum_i sum_t    Dr. GRPO (arXiv 2503.20783)

R, N and Cmax are those of the whole optimizer step, over all processes and micro-batches, so that parts add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Objective:
    """Settings of the loss; see the module's docstring for the equations."""

    aggregation: str
    clip_low: float
    clip_high: float
    beta: float
    kl_estimator: str


@dataclass(frozen=True, slots=True)
class Total:
    """Size of the whole optimizer step: completions R, their tokens N, and the longest a completion may be."""

    completions: float
    tokens: float
    max_length: int


@dataclass(frozen=True, slots=True)
class Loss:
    """loss, a share of the step's loss that adds up; and token means, detached, for the curves."""

    loss: Tensor
    kl: Tensor
    clipped: Tensor


def divergence(logprobs: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """Per-token estimate of KL(policy || reference) (Schulman, "Approximating KL divergence", 2020).

    With d = ref - logp: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1.
    """
    d = reference - logprobs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    return d.exp() - d - 1


def aggregate(per_token: Tensor, mask: Tensor, aggregation: str, total: Total) -> Tensor:
    """One number of per-token values [R', C]: this part's share of the step's aggregate."""
    kept = per_token * mask
    if aggregation == "sequence_mean":
        return (kept.sum(1) / mask.sum(1).clamp_min(1)).sum() / total.completions
    if aggregation == "token_mean":
        return kept.sum() / total.tokens
    return kept.sum() / (total.completions * total.max_length)


def grpo_loss(
    logprobs: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    objective: Objective,
    total: Total,
) -> Loss:
    """Loss of R' completions of a step.

    logprobs, old and reference [R', C], advantages [R'], mask [R', C]. ``old`` are the log-probabilities under the
    policy that sampled, without gradient; at one update for each rollout they equal ``logprobs`` and the gradient is
    that of the policy gradient. ``reference`` may be None only at beta = 0.
    """
    ratio = torch.exp(logprobs - old.detach())
    gain = advantages.unsqueeze(1)
    bounded = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    per_token = -torch.minimum(ratio * gain, bounded * gain)
    kl = torch.zeros_like(logprobs)
    if reference is not None:
        kl = divergence(logprobs, reference.detach(), objective.kl_estimator)
        per_token = per_token + objective.beta * kl
    elif objective.beta > 0:
        raise ValueError("beta > 0 needs the log-probabilities of a reference policy")
    tokens = mask.sum().clamp_min(1)
    clipped = ((ratio * gain) > (bounded * gain)) & mask
    return Loss(
        loss=aggregate(per_token, mask, objective.aggregation, total),
        kl=(kl.detach() * mask).sum() / tokens,
        clipped=clipped.sum() / tokens,
    )
