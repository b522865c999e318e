"""Log-probabilities of given completions from one encoding of their prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medr1.models.tensors import Prefix, SequenceModel


@dataclass(frozen=True, slots=True)
class Scores:
    """logprobs [R, C] of the tokens and entropy [R, C] of the distributions they come from, 0 at padding."""

    logprobs: Tensor
    entropy: Tensor


def completion_hidden(model: SequenceModel, prefix: Prefix, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states [R, C, H] that predict each completion token.

    ``prefix`` has one row for each prompt, ids and mask [R, C] have R = B*G rows. The first token is predicted by the
    prompt itself, the others by their predecessors, so only C-1 tokens a row are run, and the prompt never again:
    gradients flow into it through the keys and values.
    """
    num_generations = ids.shape[0] // prefix.hidden.shape[0]
    rows = prefix.repeat(num_generations)
    first = rows.hidden.unsqueeze(1)
    if ids.shape[1] == 1:
        return first
    hidden = model.extend(rows, ids[:, :-1], mask[:, :-1])
    return torch.cat([first, hidden], dim=1)


def score(
    model: SequenceModel,
    hidden: Tensor,
    ids: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    suppress_tokens: Tensor | None = None,
    chunk: int = 1024,
) -> Scores:
    """Log-probabilities and entropies from hidden states [R, C, H]; logits are made of real tokens only, ``chunk`` of
    them at a time.

    ``temperature`` and ``banned`` [n] must be those of the rollout, or the two would speak of different distributions.
    """
    states, tokens = hidden[mask], ids[mask]

    def part(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = model.logits(states)
        if suppress_tokens is not None:
            logits = logits.index_fill(-1, suppress_tokens, float("-inf"))
        log_p = torch.log_softmax(logits / temperature, dim=-1)
        with torch.no_grad():  # for the curves only; p log p is 0 where p is 0
            surprise = -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)
        return log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), surprise

    chunks = list(zip(torch.split(states, chunk), torch.split(tokens, chunk), strict=True))
    if len(chunks) == 1:
        found = [part(states, tokens)]
    else:  # the logits of a chunk are made again in the backward pass, and never those of two chunks held at once
        found = [checkpoint(part, *each, use_reentrant=False) for each in chunks]
    chosen, surprise = (torch.cat(values) for values in zip(*found, strict=True))
    zeros = torch.zeros(mask.shape, dtype=chosen.dtype, device=chosen.device)
    return Scores(zeros.masked_scatter(mask, chosen), zeros.masked_scatter(mask, surprise))
