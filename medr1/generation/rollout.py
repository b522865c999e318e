"""Rollout: G completions of every prompt from one encoding of it, sampled or greedy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medr1.models.tensors import Completions, Prefix, SequenceModel

_LEAVE = 0.8  # ended rows leave when no more than this share goes on: to leave, the caches of the others are copied


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 is no limit; ``banned`` ids are never drawn."""

    max_completion_length: int
    eos_token_id: int
    suppress_tokens: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def warped_log_probs(logits: Tensor, sampling: Sampling, suppress_tokens: Tensor) -> Tensor:
    """Log-probabilities [R, V] of the distribution that is really sampled: banned, tempered, top-k, then top-p."""
    logits = logits.index_fill(-1, suppress_tokens, float("-inf"))
    if sampling.temperature == 0:
        return torch.log_softmax(logits, -1)
    log_p = torch.log_softmax(logits / sampling.temperature, -1)
    if 0 < sampling.top_k < log_p.shape[-1]:
        kth = log_p.topk(sampling.top_k, -1).values[..., -1:]
        log_p = log_p.masked_fill(log_p < kth, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = log_p.softmax(-1).sort(-1, descending=True)
        # A token stays while the mass before it is below top_p, so the most likely one always stays.
        drop = ordered.cumsum(-1) - ordered >= sampling.top_p
        log_p = log_p.masked_fill(drop.scatter(-1, order, drop), float("-inf"))
    return torch.log_softmax(log_p, -1)


def sample_inverse_cdf(log_p: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens [R] by the inverse of the cumulative distribution [R, V] at ``uniforms`` [R] in [0, 1).

    One uniform number a token, given from outside, makes a sample a function of its seed and its prompt alone: the
    same whatever the batch, the number of processes, or a restart in between.
    """
    cumulative = log_p.double().exp().cumsum(-1)
    threshold = uniforms.double().unsqueeze(-1) * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    # Rounding may point one past the end, or at a token of probability zero behind the last possible one.
    last_possible = (log_p > float("-inf")).long().cumsum(-1).argmax(-1)
    return torch.minimum(token, last_possible)


@torch.no_grad()
def rollout(
    model: SequenceModel, prefix: Prefix, sampling: Sampling, num_generations: int = 1, uniforms: Tensor | None = None
) -> Completions:
    """Decodes all prompts of ``prefix`` (B rows) together, ``num_generations`` times each.

    ``uniforms`` [B*G, max_completion_length] decide the draws; greedy decoding needs none. Rows that have ended leave the
    batch, some at a time. Returns completions as wide as the longest.
    """
    if sampling.temperature > 0 and uniforms is None:
        raise ValueError("sampling needs uniforms; greedy decoding is temperature=0")
    hidden = prefix.hidden.repeat_interleave(num_generations, 0)
    rows, width, device = hidden.shape[0], sampling.max_completion_length, hidden.device
    decoder = model.decoder(prefix, num_generations, width)
    suppress_tokens = torch.tensor(sampling.suppress_tokens, dtype=torch.long, device=device)
    ids = torch.full((rows, width), sampling.eos_token_id, dtype=torch.long, device=device)
    mask = torch.zeros(rows, width, dtype=torch.bool, device=device)
    logprobs = torch.zeros(rows, width, device=device)
    places = torch.arange(rows, device=device)  # of the rows that are run
    going = torch.ones_like(places, dtype=torch.bool)  # those of them that have not ended
    for step in range(width):
        log_p = warped_log_probs(model.logits(hidden), sampling, suppress_tokens)
        if sampling.temperature == 0:
            token = log_p.argmax(-1)
        else:
            assert uniforms is not None
            token = sample_inverse_cdf(log_p, uniforms[places, step])
        alive = places[going]
        ids[alive, step], mask[alive, step] = token[going], True
        logprobs[alive, step] = log_p.gather(-1, token.unsqueeze(-1)).squeeze(-1)[going]
        going = going & (token != sampling.eos_token_id)
        left = int(going.sum())
        if step == width - 1 or not left:
            break
        if left <= _LEAVE * len(going):
            decoder.select(going)
            places, token, going = places[going], token[going], going[going]
        hidden = decoder.step(token)
    # Two at least: what is scored then runs the model after the prompt on every process, or on none.
    longest = max(2, int(mask.sum(-1).max()))
    ended = (ids == sampling.eos_token_id) & mask
    return Completions(ids[:, :longest], mask[:, :longest], logprobs[:, :longest], ~ended.any(-1))
