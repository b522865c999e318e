"""The distribution that tokens are sampled from, and draws from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from medr1.config.settings import SamplingConfig
from medr1.generation.sampling import Sampling, sample_inverse_cdf, warped_log_probs


def sampling(**changes: object) -> Sampling:
    return replace(Sampling(max_completion_length=10, eos_token_id=0, suppress_tokens=()), **changes)  # type: ignore[arg-type]


def uniforms_of(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((rows, width)))


def test_settings_of_a_config_are_completed_by_those_of_the_model(tiny) -> None:
    _, processor = tiny("qwen2_vl")
    config = SamplingConfig(temperature=0.7, top_p=0.9, top_k=5, max_completion_length=12)
    suppress_tokens = tuple(processor.suppressed_token_ids())
    assert Sampling.from_config(config, processor) == Sampling(12, processor.eos_token_id, suppress_tokens, 0.7, 0.9, 5)
    assert Sampling.greedy(12, processor) == Sampling(12, processor.eos_token_id, suppress_tokens, 0.0)


def slow_distribution(logits: list[float], s: Sampling) -> list[float]:
    """Suppressed tokens, temperature, top-k, top-p, one token after the other from the most likely."""
    weights = {i: float(np.exp(x / s.temperature)) for i, x in enumerate(logits) if i not in s.suppress_tokens}
    order = sorted(weights, key=lambda i: -weights[i])
    if s.top_k:
        order = order[: s.top_k]
    mass, kept = sum(weights[i] for i in order), []
    for i in order:
        if sum(weights[j] for j in kept) / mass >= s.top_p:
            break
        kept.append(i)
    mass = sum(weights[i] for i in kept)
    return [weights[i] / mass if i in kept else 0.0 for i in range(len(logits))]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"suppress_tokens": (0, 5)},
        {"top_k": 1},
        {"top_k": 3, "suppress_tokens": (2,)},
        {"top_k": 100},
        {"top_p": 0.6},
        {"top_p": 1e-6},
        {"temperature": 1.7, "top_k": 5, "top_p": 0.8, "suppress_tokens": (1,)},
    ],
    ids=str,
)
def test_distribution_equals_a_slow_reference(changes: dict[str, object]) -> None:
    s = sampling(**changes)
    logits = torch.randn(20, 9, generator=torch.Generator().manual_seed(0)) * 2
    found = warped_log_probs(logits, s, torch.tensor(s.suppress_tokens, dtype=torch.long)).exp()
    expected = torch.tensor([slow_distribution(row.tolist(), s) for row in logits])
    torch.testing.assert_close(found, expected)
    assert not found[:, list(s.suppress_tokens)].any()


def test_frequencies_of_draws_are_the_probabilities() -> None:
    log_p = warped_log_probs(
        torch.tensor([[2.0, 0.0, -1.0, 1.0, 3.0]]), sampling(suppress_tokens=(3,)), torch.tensor([3])
    )
    n = 20_000
    even = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # evenly spread, so that only rounding changes the counts
    counts = sample_inverse_cdf(log_p.expand(n, -1), even).bincount(minlength=5)
    torch.testing.assert_close(counts.double(), n * log_p[0].double().exp(), atol=1.0, rtol=0)
    by_chance = sample_inverse_cdf(log_p.expand(n, -1), uniforms_of(n, 1)[:, 0]).bincount(minlength=5)
    torch.testing.assert_close(by_chance / n, log_p[0].exp(), atol=0.015, rtol=0)


@given(
    st.lists(st.sampled_from([float("-inf"), -80.0, -3.0, 0.0, 1.0, 40.0]), min_size=2, max_size=8),
    st.sampled_from([0.0, 1e-300, 0.25, 0.5, 1 - 2**-24, 1 - 2**-53, 1.0]),
)
@example([0.0, 1.0, float("-inf"), float("-inf")], 1.0)
@example([float("-inf"), 0.0], 0.0)
def test_an_impossible_token_is_never_drawn(logits: list[float], uniform: float) -> None:
    """Neither at the ends of the range nor at a uniform that was rounded to 1."""
    if max(logits) == float("-inf"):
        logits[0] = 0.0
    log_p = torch.log_softmax(torch.tensor([logits]), -1)
    token = int(sample_inverse_cdf(log_p, torch.tensor([uniform], dtype=torch.float64)))
    assert log_p[0, token] > float("-inf")
