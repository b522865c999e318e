"""The objective of GRPO and its variants, composed of independent terms (``ObjectiveConfig``).

For a token t of completion o_i with advantage A_i: log-ratio l_t = logp_t - old_t, sg = stop gradient.

    importance_sampling_level
        token       r_t = exp(l_t)
        sequence    r_t = exp(1/|o_i| sum_t l_t), the same for all tokens    GSPO (arXiv 2507.18071, equation 7)
    loss_mode
        clip        min(r_t A, clip(r_t, 1 - epsilon, 1 + epsilon_high) A)   PPO; DAPO with epsilon_high > epsilon
        clip_cov    clip, and 0 for some tokens (``token_masks``)            Clip-Cov (arXiv 2505.22617)
        cispo       sg(min(r_t, epsilon_high)) A logp_t                      MiniMax-M1 (arXiv 2506.13585, equation 4)
        sapo        4/tau sigmoid(tau (r_t - 1)) A                           SAPO (arXiv 2511.20347)
                    tau: sapo_temperature_pos where A > 0, else sapo_temperature_neg
    delta           where A < 0, the clip surrogate is at least delta A      dual clip (arXiv 1912.09729, equation 5)

With top_entropy_quantile < 1 the surrogate of tokens of low entropy is 0 (``token_masks``).

The loss of a token is -surrogate + beta kl_t (``kl_divergence``) + the terms of PAPO (arXiv 2507.06448, equation 2),
where m_t is logp_t with a masked image in place of the image:

    - kl_prcp_coef k3(m_t - logp_t) - ori_entropy_loss_coef logp_t - aug_entropy_loss_coef m_t

The estimator k3(m_t - logp_t) is that of the authors' code; the paper writes it with the inverse ratio.
The gradient goes through both logp_t and m_t, as the equation says. The authors' code does not compute m_t anew in each
update by default (RECOMPUTE_AUG_LOG_PROBS=False), so that there it has no gradient and the last term no effect.

loss_agg_mode reduces the N tokens of the R completions of an optimizer step to one number:

    token_mean                  1/N sum_i sum_t           DAPO (arXiv 2503.14476, equation 8), CISPO
    seq_mean_token_mean         1/R sum_i 1/|o_i| sum_t   GRPO (arXiv 2402.03300, equation 3), GSPO, Med-R1
    seq_mean_token_sum_norm     1/(R Cmax) sum_i sum_t    Dr. GRPO (arXiv 2503.20783); Cmax: max_completion_length

As in verl, the log-ratios and the exponent d of k3 (``kl_divergence``) are clamped to [-20, 20], and k3 to at most 10,
so that an outlier token cannot overflow ``exp``.

From this number entropy_coef / N sum_i sum_t H_t is subtracted, with the entropy H_t of the policy. As in TRL, it does
not depend on loss_agg_mode; unlike there, it is over all tokens also with top_entropy_quantile < 1.

R and N are counted over all processes and micro-batches, so that the losses of micro-batches add up to the loss of the
step. With ``mask_truncated_completions`` (DAPO's overlong filtering) a truncated completion has an empty mask: it
counts in R, but its tokens do not count in N.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from medr1.config.settings import ObjectiveConfig


@dataclass(frozen=True, slots=True)
class LossNormalizer:
    """Denominators of the loss, over the whole optimizer step: R completions, their N tokens, maximum length."""

    completions: float
    tokens: float
    max_length: int


@dataclass(frozen=True, slots=True)
class Loss:
    """The micro-batch's part of the loss (the parts sum to the loss of the step), and three sums for logging.

    kl: sum over tokens of the KL estimate. clipped: number of tokens at which a clip bound is active. kl_prcp: sum over
    tokens of the KL estimate between image and masked image.
    """

    loss: Tensor
    kl: Tensor
    clipped: Tensor
    kl_prcp: Tensor


MAX_LOG_RATIO, _MAX_K3 = 20.0, 10.0  # verl, core_algos: compute_policy_loss, kl_penalty


def _k3(d: Tensor) -> Tensor:
    d = d.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (d.exp() - d - 1).clamp(max=_MAX_K3)


_KL: dict[str, Callable[[Tensor], Tensor]] = {
    "k2": lambda d: d.square() / 2,
    "k3": _k3,
}


def kl_divergence(logprobs: Tensor, reference: Tensor, kl_loss_type: str) -> Tensor:
    """Per-token estimate of KL(policy || reference) (Schulman, "Approximating KL divergence", 2020).

    With d = reference - logprobs: k2 = d^2 / 2, k3 = exp(d) - d - 1 (bounded, see above). There is no k1 = -d: its
    gradient in a loss is that of logprobs, whatever the reference is.
    """
    return _KL[kl_loss_type](reference - logprobs)


def aggregate(per_token: Tensor, mask: Tensor, loss_agg_mode: str, normalizer: LossNormalizer) -> Tensor:
    """Reduces per-token values [R', C] of a micro-batch to its part of the loss of the step."""
    masked = per_token * mask
    if loss_agg_mode == "seq_mean_token_mean":
        return (masked.sum(1) / mask.sum(1).clamp_min(1)).sum() / normalizer.completions
    if loss_agg_mode == "token_mean":
        return masked.sum() / max(normalizer.tokens, 1.0)
    return masked.sum() / (normalizer.completions * normalizer.max_length)


def _cispo(logprobs: Tensor, ratio: Tensor, advantages: Tensor, o: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    weight = ratio.detach().clamp(max=o.epsilon_high)
    return weight * advantages * logprobs, ratio > o.epsilon_high


def _clip(logprobs: Tensor, ratio: Tensor, advantages: Tensor, o: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    unclipped, bounded = ratio * advantages, ratio.clamp(1 - o.epsilon, 1 + o.epsilon_high) * advantages
    surrogate, clipped = torch.minimum(unclipped, bounded), unclipped > bounded
    if o.delta is not None:
        floor = o.delta * advantages
        clipped = clipped | ((advantages < 0) & (surrogate < floor))
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, floor), surrogate)
    return surrogate, clipped


def _sapo(logprobs: Tensor, ratio: Tensor, advantages: Tensor, o: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    positive, negative = o.sapo_temperature_pos, o.sapo_temperature_neg
    temperature = torch.where(advantages > 0, positive, negative).to(ratio.dtype)
    gate = torch.sigmoid(temperature * (ratio - 1)) * (4 / temperature)
    return gate * advantages, torch.zeros_like(ratio, dtype=torch.bool)


# (logprobs [R', C], ratio [R', C] or [R', 1], advantages [R', 1]) -> surrogate, and mask of clipped tokens
_SURROGATE = {"clip": _clip, "clip_cov": _clip, "cispo": _cispo, "sapo": _sapo}


def grpo_loss(
    logprobs: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    objective: ObjectiveConfig,
    normalizer: LossNormalizer,
    *,
    policy_mask: Tensor | None = None,
    importance_weights: Tensor | None = None,
    entropy: Tensor | None = None,
    masked_image: Tensor | None = None,
) -> Loss:
    """Loss of the R' completions of a micro-batch.

    logprobs, old, reference, mask [R', C]; advantages [R']. ``old``: log-probabilities under the policy that sampled,
    computed by the training forward pass, not by the rollout engine: at the sampling temperature, without top-k and
    top-p. In the first update after a rollout they equal ``logprobs``, and the gradient is the policy gradient.
    ``reference``: log-probabilities under the reference policy. Each [R', C]: ``policy_mask``: the tokens with a policy
    gradient, None for all. ``importance_weights``: factors of the surrogate, see ``medr1.rl.importance_sampling``.
    ``entropy``: of the policy, needed if entropy_coef > 0. ``masked_image``: log-probabilities with a masked image,
    needed for PAPO.

    Raises:
        ValueError: beta > 0 without ``reference``.
    """
    o = objective
    log_ratio = logprobs - old.detach()
    if objective.importance_sampling_level == "sequence":
        log_ratio = (log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    surrogate, clipped = _SURROGATE[objective.loss_mode](logprobs, ratio, advantages.unsqueeze(1), objective)
    per_token, kl = -surrogate.expand_as(logprobs), torch.zeros_like(logprobs)
    kl_prcp = torch.zeros_like(logprobs)
    if policy_mask is not None:
        per_token = per_token * policy_mask
    if importance_weights is not None:
        per_token = per_token * importance_weights
    if reference is not None:
        kl = kl_divergence(logprobs, reference.detach(), objective.kl_loss_type)
        per_token = per_token + objective.beta * kl
    elif objective.beta > 0:
        raise ValueError("beta > 0 needs the log-probabilities of a reference policy")
    if masked_image is not None:
        kl_prcp = kl_divergence(logprobs, masked_image, "k3")
        entropies = o.ori_entropy_loss_coef * logprobs + o.aug_entropy_loss_coef * masked_image
        per_token = per_token - o.kl_prcp_coef * kl_prcp - entropies
    loss = aggregate(per_token, mask, o.loss_agg_mode, normalizer)
    if entropy is not None:
        loss = loss - o.entropy_coef * aggregate(entropy, mask, "token_mean", normalizer)
    return Loss(
        loss=loss,
        kl=(kl.detach() * mask).sum(),
        clipped=(clipped.expand_as(logprobs) & mask).sum(),
        kl_prcp=(kl_prcp.detach() * mask).sum(),
    )
