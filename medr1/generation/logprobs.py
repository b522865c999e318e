"""Log-probabilities of given completions. The G completions of a prompt share one prefill."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medr1.models.policy import Policy
from medr1.models.tensors import Prefix


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities [R, C] of the tokens and entropies [R, C] of their distributions, 0 at padding."""

    logprobs: Tensor
    entropy: Tensor


def completion_hidden(policy: Policy, prefix: Prefix, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states [R, C, H] that predict each token of completions [R, C] after a prefix of B rows.

    The prompt predicts the first token and each token the next, so the forward pass is over C-1 tokens. Gradients
    reach the prompt through the keys and values of the prefix.
    """
    num_generations = ids.shape[0] // prefix.hidden.shape[0]
    rows = prefix.repeat(num_generations)
    first = rows.hidden.unsqueeze(1)
    if ids.shape[1] == 1:
        return first
    hidden = policy.extend(rows, ids[:, :-1], mask[:, :-1])
    return torch.cat([first, hidden], dim=1)


def score(
    policy: Policy,
    hidden: Tensor,
    ids: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    suppress_tokens: Tensor | None = None,
    chunk_size: int = 1024,
    entropy_grad: bool = False,
) -> Scores:
    """Log-probabilities and entropies of tokens [R, C] from hidden states [R, C, H].

    Logits are computed for real tokens only, ``chunk_size`` tokens at a time. ``temperature`` and ``suppress_tokens``
    [n] must be those of the rollout, so that both refer to one distribution. ``entropy_grad``: whether the entropies
    have gradients.
    """
    states, tokens = hidden[mask], ids[mask]

    def score_chunk(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = policy.logits(states)
        if suppress_tokens is not None:
            logits = logits.index_fill(-1, suppress_tokens, float("-inf"))
        log_p = torch.log_softmax(logits / temperature, dim=-1)
        # p log p is 0 where p is 0. Without gradients, what is only logged keeps no memory.
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            entropy = -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)
        return log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), entropy

    chunks = list(zip(torch.split(states, chunk_size), torch.split(tokens, chunk_size), strict=True))
    if len(chunks) == 1:
        scores = [score_chunk(states, tokens)]
    else:  # recomputes the logits of a chunk in the backward pass, so that those of one chunk exist at a time
        scores = [checkpoint(score_chunk, *each, use_reentrant=False) for each in chunks]
    logprobs, entropy = (torch.cat(values) for values in zip(*scores, strict=True))
    zeros = torch.zeros(mask.shape, dtype=logprobs.dtype, device=logprobs.device)
    return Scores(zeros.masked_scatter(mask, logprobs), zeros.masked_scatter(mask, entropy))
