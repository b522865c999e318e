"""Which tokens keep their policy gradient, against slow loops over the tokens of a step."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from torch import Tensor

from medr1.rl.token_masks import high_entropy_tokens, low_covariance_tokens


def case(seed: int, rows: int = 5, width: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    values = torch.rand(3, rows, width, generator=generator).unbind()
    return (*values, torch.arange(width) < lengths)


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.2, 0.5, 0.99, 1.0])
def test_tokens_of_high_entropy_are_the_slow_loop(quantile: float) -> None:
    for seed in range(5):
        entropy, _, _, mask = case(seed)
        values = [float(entropy[i, t]) for i in range(5) for t in range(6) if mask[i, t]]
        threshold = float(np.quantile(values, 1 - quantile))
        expected = [[bool(mask[i, t]) and float(entropy[i, t]) >= threshold - 1e-7 for t in range(6)] for i in range(5)]
        found = high_entropy_tokens(entropy, mask, quantile)
        assert found.tolist() == expected
        assert found.sum() >= max(1, int(quantile * len(values)))


@pytest.mark.parametrize("ratio", [1e-4, 0.1, 0.3, 1.0])
def test_clip_cov_drops_the_tokens_of_the_slow_loop(ratio: float) -> None:
    dropped = 0
    for seed in range(5):
        logprobs, advantages, draws, mask = case(seed)
        advantages = advantages[:, :1].expand_as(mask)  # one number for each completion
        tokens = [(i, t) for i in range(5) for t in range(6) if mask[i, t]]
        mean_a = statistics.mean(float(advantages[i, t]) for i, t in tokens)
        mean_l = statistics.mean(float(logprobs[i, t]) for i, t in tokens)
        covariances = {(i, t): float((advantages[i, t] - mean_a) * (logprobs[i, t] - mean_l)) for i, t in tokens}
        candidates = sorted((k for k, c in covariances.items() if 0.01 < c < 0.1), key=lambda k: float(draws[k]))
        chosen = candidates[: max(int(ratio * len(tokens)), 1)]
        found = low_covariance_tokens(logprobs, advantages, mask, draws, ratio, 0.01, 0.1)
        expected = mask.clone()
        for place in chosen:
            expected[place] = False
        assert torch.equal(found, expected)
        dropped += len(chosen)
    assert dropped


def test_without_candidates_or_tokens_nothing_is_dropped() -> None:
    logprobs, advantages, draws, mask = case(0)
    assert torch.equal(low_covariance_tokens(logprobs, advantages, mask, draws, 0.5, 1e6, 2e6), mask)
    nothing = torch.zeros_like(mask)
    assert not low_covariance_tokens(logprobs, advantages, nothing, draws, 0.5, 0.0, 1.0).any()
    assert not high_entropy_tokens(logprobs, nothing, 0.2).any()
