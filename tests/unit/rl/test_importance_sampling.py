"""The weights of completions that another engine has sampled, against slow loops over their tokens."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from medr1.config.enums import ImportanceSamplingMode, LossAggMode, ScaleRewards
from medr1.config.settings import ExternalRolloutConfig, ObjectiveConfig
from medr1.rl.importance_sampling import importance_weights
from medr1.rl.objective import LossNormalizer, grpo_loss

BOUNDS = [(None, 3.0), (None, None), (0.5, 1.5), (0.9, None), (None, 1.0)]


def case(seed: int, rows: int = 5, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    trained, sampled = -3 * torch.rand(2, rows, width, generator=generator)
    return trained, sampled, torch.arange(width) < lengths


def slow(
    trained: Tensor, sampled: Tensor, mask: Tensor, mode: str, low: float | None, high: float | None
) -> list[list[float]]:
    rows = []
    for p, s, real in zip(trained.tolist(), sampled.tolist(), mask.tolist(), strict=True):
        differences = [a - b for a, b, is_real in zip(p, s, real, strict=True) if is_real]
        if mode.startswith("sequence"):
            ratios = [math.exp(math.fsum(differences))] * len(differences)
        else:
            ratios = [math.exp(d) for d in differences]
        weights = []
        for ratio in ratios:
            outside = (low is not None and ratio < low) or (high is not None and ratio > high)
            if outside and mode.endswith("mask"):
                ratio = 0.0
            elif low is not None and ratio < low:
                ratio = low
            elif high is not None and ratio > high:
                ratio = high
            weights.append(ratio)
        rows.append(weights + [0.0] * (len(real) - len(weights)))
    return rows


@pytest.mark.parametrize(("mode", "bounds"), list(itertools.product(ImportanceSamplingMode, BOUNDS)), ids=str)
def test_weights_are_those_of_the_slow_loop(
    mode: ImportanceSamplingMode, bounds: tuple[float | None, float | None]
) -> None:
    low, high = bounds
    settings = ExternalRolloutConfig(
        "x", importance_sampling_mode=mode, importance_sampling_clip_min=low, importance_sampling_clip_max=high
    )
    changed = 0
    for seed in range(5):
        trained, sampled, mask = case(seed)
        weights, differences = importance_weights(trained, sampled, mask, settings)
        expected = torch.tensor(slow(trained, sampled, mask, mode, low, high))
        torch.testing.assert_close(weights, expected)
        torch.testing.assert_close(differences, (trained - sampled).abs() * mask)
        unbounded = torch.tensor(slow(trained, sampled, mask, mode, None, None))
        changed += int((weights - unbounded).abs().max() > 1e-3)
    assert changed == (5 if bounds != (None, None) else 0)


def test_without_correction_all_weights_are_one() -> None:
    trained, sampled, mask = case(0)
    weights, differences = importance_weights(
        trained, sampled, mask, ExternalRolloutConfig("x", importance_sampling_correction=False)
    )
    assert torch.equal(weights, mask.float()) and differences.max() > 0


def test_the_default_is_truncation_of_each_token() -> None:
    trained, sampled, mask = torch.tensor([[0.0, 0.0]]), torch.tensor([[-9.0, 0.5]]), torch.ones(1, 2).bool()
    weights, _ = importance_weights(trained, sampled, mask, ExternalRolloutConfig("x"))
    torch.testing.assert_close(weights, torch.tensor([[3.0, math.exp(-0.5)]]))


def test_a_ratio_beyond_all_bounds_stays_finite() -> None:
    trained, sampled, mask = torch.full((1, 3), 50.0), torch.zeros(1, 3), torch.tensor([[True, True, False]])
    settings = ExternalRolloutConfig(
        "x", importance_sampling_mode=ImportanceSamplingMode.sequence_truncate, importance_sampling_clip_max=None
    )
    weights, _ = importance_weights(trained, sampled, mask, settings)
    torch.testing.assert_close(weights, torch.tensor([[math.exp(20), math.exp(20), 0.0]]))


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_policy_loss_is_weighted_and_the_divergence_is_not(beta: float) -> None:
    trained, sampled, mask = case(1)
    weights, _ = importance_weights(trained, sampled, mask, ExternalRolloutConfig("x"))
    advantages = torch.linspace(-1, 1, 5)
    objective = ObjectiveConfig(
        loss_agg_mode=LossAggMode.token_mean, scale_rewards=ScaleRewards.group, epsilon=0.2, epsilon_high=0.2, beta=beta
    )
    normalizer = LossNormalizer(5, float(mask.sum()), 6)
    logprobs = trained.clone().requires_grad_()
    loss = grpo_loss(
        logprobs, trained, sampled, advantages, mask, objective, normalizer, importance_weights=weights
    ).loss
    (gradient,) = torch.autograd.grad(loss, logprobs)
    for i, t in itertools.product(range(5), range(6)):
        kl = math.exp(float(sampled[i, t] - trained[i, t])) - 1  # k3: the derivative is 1 - exp(reference - policy)
        expected = (-float(weights[i, t] * advantages[i]) - beta * kl) / float(mask.sum()) if mask[i, t] else 0.0
        assert float(gradient[i, t]) == pytest.approx(expected, abs=1e-6)
