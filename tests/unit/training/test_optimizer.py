"""The learning rate over the steps, and the parameters of the optimizer."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medr1.config.enums import LRSchedulerType
from medr1.config.settings import AlgorithmConfig
from medr1.training.optimizer import build_optimizer, learning_rate_factor

SCHEDULES = list(LRSchedulerType)


@pytest.mark.parametrize(
    ("lr_scheduler_type", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0]),
    ],
)
def test_by_hand(lr_scheduler_type: str, expected: list[float]) -> None:
    assert [learning_rate_factor(step, 6, 1 / 3, lr_scheduler_type) for step in range(7)] == pytest.approx(expected)


@pytest.mark.parametrize("lr_scheduler_type", SCHEDULES)
def test_without_warm_up_the_first_step_has_the_full_rate(lr_scheduler_type: str) -> None:
    assert learning_rate_factor(0, 10, 0.0, lr_scheduler_type) == 1.0


@given(st.integers(1, 200), st.floats(0, 1), st.sampled_from(SCHEDULES))
def test_rises_to_one_then_never_rises_again(steps: int, warmup_ratio: float, lr_scheduler_type: str) -> None:
    factors = [learning_rate_factor(step, steps, warmup_ratio, lr_scheduler_type) for step in range(steps + 5)]
    top = factors.index(1.0)
    assert abs(top + 1 - steps * warmup_ratio) <= 1
    assert all(0 < f <= 1 for f in factors[:steps])  # no step is lost to a rate of zero
    assert all(a < b for a, b in pairwise(factors[: top + 1]))
    assert all(a >= b for a, b in pairwise(factors[top:]))
    if lr_scheduler_type != "constant" and top + 1 < steps:
        assert factors[steps:] == pytest.approx([0.0] * 5, abs=1e-12)


def test_only_trained_parameters_are_optimized_at_the_scheduled_rate() -> None:
    trained = torch.nn.Parameter(torch.ones(2))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    settings = AlgorithmConfig(
        learning_rate=0.4,
        weight_decay=0.1,
        adam_beta2=0.95,
        lr_scheduler_type=LRSchedulerType.linear,
        warmup_ratio=0.5,
    )
    optimizer, scheduler = build_optimizer([trained, frozen], settings, total_steps=4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        trained.grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.2, 0.4, 0.4, 0.2])
    assert [p for group in optimizer.param_groups for p in group["params"]] == [trained]
    assert optimizer.param_groups[0]["weight_decay"] == 0.1 and optimizer.param_groups[0]["betas"][1] == 0.95
    assert frozen.tolist() == [1, 1] and trained.tolist() != [1, 1]
