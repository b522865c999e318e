"""The distribution that tokens are sampled from, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medr1.config.settings import SamplingConfig

if TYPE_CHECKING:
    from medr1.models.processor import Processor


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of sampling, for one model.

    ``temperature`` 0 is greedy decoding. ``top_k`` 0 is no limit. ``suppress_tokens`` are never sampled.
    """

    max_completion_length: int
    eos_token_id: int
    suppress_tokens: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def from_config(cls, config: SamplingConfig, processor: Processor) -> Sampling:
        """The settings of ``config``, with the model's special tokens suppressed, except EOS and reasoning tags."""
        return cls(
            config.max_completion_length,
            processor.eos_token_id,
            tuple(processor.suppressed_token_ids()),
            config.temperature,
            config.top_p,
            config.top_k,
        )

    @classmethod
    def greedy(cls, max_completion_length: int, processor: Processor) -> Sampling:
        """Greedy decoding, with the same suppressed tokens."""
        return cls.from_config(SamplingConfig(0.0, max_completion_length=max_completion_length), processor)


def warped_log_probs(logits: Tensor, sampling: Sampling, suppress_tokens: Tensor) -> Tensor:
    """Log-probabilities [R, V] of the distribution that is sampled.

    The logits [R, V] are processed in this order: suppressed tokens, temperature, top-k, top-p.
    """
    logits = logits.index_fill(-1, suppress_tokens, float("-inf"))
    if sampling.temperature == 0:
        return torch.log_softmax(logits, -1)
    log_p = torch.log_softmax(logits / sampling.temperature, -1)
    if 0 < sampling.top_k < log_p.shape[-1]:
        kth = log_p.topk(sampling.top_k, -1).values[..., -1:]
        log_p = log_p.masked_fill(log_p < kth, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = log_p.softmax(-1).sort(-1, descending=True)
        # A token is kept if the mass before it is below top_p, so the most likely one is always kept.
        drop = ordered.cumsum(-1) - ordered >= sampling.top_p
        log_p = log_p.masked_fill(drop.scatter(-1, order, drop), float("-inf"))
    return torch.log_softmax(log_p, -1)


def sample_inverse_cdf(log_p: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens [R]: the inverse of the cumulative distribution of ``log_p`` [R, V] at ``uniforms`` [R] in [0, 1).

    With one given uniform per token, a sample depends on its seed and its prompt alone, not on the batch, the number of
    processes, or a restart.
    """
    cumulative = log_p.double().exp().cumsum(-1)
    threshold = uniforms.double().unsqueeze(-1) * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    # Rounding may give an index past the end, or a token of probability zero after the last possible one.
    last_possible = log_p.shape[-1] - 1 - (log_p > float("-inf")).byte().flip(-1).argmax(-1)
    return torch.minimum(token, last_possible)
