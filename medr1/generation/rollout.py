"""Decodes completions in this process. The G completions of a prompt share one prefill."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from medr1.generation.sampling import Sampling, sample_inverse_cdf, warped_log_probs
from medr1.models.cuda_graph import CudaGraph
from medr1.models.policy import Policy
from medr1.models.tensors import Completions, Prefix

# Finished sequences are removed once at most this share of the rows is unfinished; not earlier, because removal copies
# the KV cache.
_COMPACT_AT = 0.8
# With CUDA graphs: steps between two checks whether all sequences are finished. Each makes Python wait for the GPU.
_CHECK_EVERY = 8


@torch.no_grad()
def rollout(
    policy: Policy,
    prefix: Prefix,
    sampling: Sampling,
    num_generations: int = 1,
    uniforms: Tensor | None = None,
    *,
    cuda_graphs: bool = False,
    first_step: int = 0,
) -> Completions:
    """Samples ``num_generations`` completions of each prompt of ``prefix`` (B rows), padded to the longest.

    ``uniforms`` [B*G, max_completion_length] in [0, 1) determine the samples; greedy decoding needs none.
    ``cuda_graphs``: replay the kernels of a token as a CUDA graph. Finished sequences are then decoded on to the end.
    ``first_step``: index of the first token to decode; earlier ones are skipped (memory planning only).

    Raises:
        ValueError: sampling without uniforms, or ``first_step`` with ``cuda_graphs``.
    """
    if cuda_graphs and first_step:
        raise ValueError("first_step is for memory planning, which has no CUDA graphs")
    if sampling.temperature > 0 and uniforms is None:
        raise ValueError("sampling needs uniforms; greedy decoding is temperature=0")
    hidden = prefix.hidden.repeat_interleave(num_generations, 0)
    rows, width, device = hidden.shape[0], sampling.max_completion_length, hidden.device
    sample = partial(_sample, policy, sampling, torch.tensor(sampling.suppress_tokens, dtype=torch.long, device=device))
    if uniforms is None:
        uniforms = torch.zeros(rows, width, device=device)
    ids = torch.full((rows, width), sampling.eos_token_id, dtype=torch.long, device=device)
    mask = torch.zeros(rows, width, dtype=torch.bool, device=device)
    logprobs = torch.zeros(rows, width, device=device)
    decoded = torch.arange(rows, device=device)  # the rows that the decoder still holds
    unfinished = torch.ones_like(decoded, dtype=torch.bool)  # which of them have no EOS token yet
    if cuda_graphs:
        static = policy.static_decoder(prefix, num_generations, width)
        replayed = CudaGraph(lambda token, index, uniform: sample(static.step_at(token, index), uniform))
        steps = torch.arange(width, device=device)
    else:
        decoder = policy.decoder(prefix, num_generations, width)
    if first_step:
        decoder.skip(first_step)
        mask[:, :first_step] = True
    token, logprob = sample(hidden, uniforms[decoded, first_step])
    for step in range(first_step, width):
        ids[decoded, step] = token.where(unfinished, sampling.eos_token_id)
        logprobs[decoded, step] = logprob.where(unfinished, 0.0)
        mask[decoded, step] = unfinished
        unfinished = unfinished & (token != sampling.eos_token_id)
        if step == width - 1:
            break
        if cuda_graphs:
            if step % _CHECK_EVERY == 0 and not unfinished.any():
                break
            token, logprob = replayed(token, steps[step : step + 1], uniforms[decoded, step + 1])
            continue
        left = int(unfinished.sum())
        if not left:
            break
        if left <= _COMPACT_AT * len(unfinished):
            decoder.select(unfinished)
            decoded, token, unfinished = decoded[unfinished], token[unfinished], unfinished[unfinished]
        token, logprob = sample(decoder.step(token), uniforms[decoded, step + 1])
    # At least 2 tokens: with C = 1, ``completion_hidden`` skips the forward pass, which FSDP needs in all processes.
    longest = max(2, int(mask.sum(-1).max()))
    finished = ((ids == sampling.eos_token_id) & mask).any(-1)
    return Completions(ids[:, :longest], mask[:, :longest], logprobs[:, :longest], ~finished)


def _sample(
    policy: Policy, sampling: Sampling, suppress_tokens: Tensor, hidden: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens [R] and their log-probabilities [R] after hidden states [R, H], drawn by uniforms [R]."""
    log_p = warped_log_probs(policy.logits(hidden), sampling, suppress_tokens)
    token = log_p.argmax(-1) if sampling.temperature == 0 else sample_inverse_cdf(log_p, uniforms)
    return token, log_p.gather(-1, token.unsqueeze(-1)).squeeze(-1)
