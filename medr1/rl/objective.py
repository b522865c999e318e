"""The objective of GRPO and its relatives, as terms that are chosen independently.

With the log-ratio l_t = logp_t - old_t of a token, A the advantage of its completion o_i, and sg = stop gradient:

    importance_sampling_level
        token       r_t = exp(l_t)
        sequence    r_t = exp(1/|o_i| sum_t l_t) for all its tokens          GSPO (arXiv 2507.18071, equation 7)
    loss_mode
        clip        min(r_t A, clip(r_t, 1 - epsilon, 1 + epsilon_high) A)   PPO; epsilon_high > epsilon is DAPO's
        cispo       sg(min(r_t, epsilon_high)) A logp_t                      MiniMax-M1 (arXiv 2506.13585, equation 4)
    delta           where A < 0, the clip surrogate is at least delta A      dual clip (arXiv 1912.09729, equation 5)

The loss of a token is -surrogate + beta kl_t (``divergence``). ``loss_agg_mode`` reduces the tokens of all completions
(R completions and N tokens in the whole step) to one number:

    token_mean                  1/N sum_i sum_t           DAPO (arXiv 2503.14476, equation 8), CISPO
    seq_mean_token_mean         1/R sum_i 1/|o_i| sum_t   GRPO (arXiv 2402.03300, equation 3), GSPO, Med-R1
    seq_mean_token_sum_norm     1/(R Cmax) sum_i sum_t    Dr. GRPO (arXiv 2503.20783)

R, N and Cmax are those of the whole optimizer step, over all processes and micro-batches, so that the losses of
micro-batches sum to the loss of the step. A completion whose loss is masked because it was truncated (DAPO's overlong
filtering) has an empty mask: it counts in R, and its tokens do not count in N.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Objective:
    """Settings of the loss; see the module's docstring for the equations. ``delta`` None is off."""

    loss_agg_mode: str
    importance_sampling_level: str
    loss_mode: str
    epsilon: float
    epsilon_high: float
    delta: float | None
    beta: float
    kl_loss_type: str


@dataclass(frozen=True, slots=True)
class LossNormalizer:
    """Size of the whole optimizer step: completions R, their tokens N, and the longest a completion may be."""

    completions: float
    tokens: float
    max_length: int


@dataclass(frozen=True, slots=True)
class Loss:
    """loss, a share of the step's loss that adds up; and sums over this part's tokens, detached, for the curves:
    the divergence from the reference, and the tokens whose gradient a bound of the ratio took away or cut."""

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


def aggregate(per_token: Tensor, mask: Tensor, loss_agg_mode: str, normalizer: LossNormalizer) -> Tensor:
    """One number of per-token values [R', C]: this part's share of the step's aggregate."""
    kept = per_token * mask
    if loss_agg_mode == "seq_mean_token_mean":
        return (kept.sum(1) / mask.sum(1).clamp_min(1)).sum() / normalizer.completions
    if loss_agg_mode == "token_mean":
        return kept.sum() / max(normalizer.tokens, 1.0)
    return kept.sum() / (normalizer.completions * normalizer.max_length)


def _surrogate(logprobs: Tensor, ratio: Tensor, advantages: Tensor, o: Objective) -> tuple[Tensor, Tensor]:
    """What is to be made large [R', C], and where a bound acts on it. ``ratio`` and ``gain`` broadcast to [R', C]."""
    if o.loss_mode == "cispo":
        weight = ratio.detach().clamp(max=o.epsilon_high)
        return weight * advantages * logprobs, (ratio > o.epsilon_high).expand_as(logprobs)
    free, bounded = ratio * advantages, ratio.clamp(1 - o.epsilon, 1 + o.epsilon_high) * advantages
    surrogate, clipped = torch.minimum(free, bounded), free > bounded
    if o.delta is not None:
        floor = o.delta * advantages
        clipped = clipped | ((advantages < 0) & (surrogate < floor))
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, floor), surrogate)
    return surrogate.expand_as(logprobs), clipped.expand_as(logprobs)


def grpo_loss(
    logprobs: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    objective: Objective,
    normalizer: LossNormalizer,
) -> Loss:
    """Loss of R' completions of a step.

    logprobs, old and reference [R', C], advantages [R'], mask [R', C]. ``old`` are the log-probabilities under the
    policy that sampled, without gradient; at one update for each rollout they equal ``logprobs`` and the gradient is
    that of the policy gradient. ``reference`` may be None only at beta = 0.
    """
    log_ratio = logprobs - old.detach()
    if objective.importance_sampling_level == "sequence":
        log_ratio = (log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1)
    surrogate, clipped = _surrogate(logprobs, log_ratio.exp(), advantages.unsqueeze(1), objective)
    per_token, kl = -surrogate, torch.zeros_like(logprobs)
    if reference is not None:
        kl = divergence(logprobs, reference.detach(), objective.kl_loss_type)
        per_token = per_token + objective.beta * kl
    elif objective.beta > 0:
        raise ValueError("beta > 0 needs the log-probabilities of a reference policy")
    return Loss(
        loss=aggregate(per_token, mask, objective.loss_agg_mode, normalizer),
        kl=(kl.detach() * mask).sum(),
        clipped=(clipped & mask).sum(),
    )
