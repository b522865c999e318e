"""The learning rate over the steps, and what the optimizer is given."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medr1.errors import CheckpointError
from medr1.training.optimization import build_optimizer, check_state, micro_batches, rate_factor, split_to_count

SCHEDULES = ["constant", "linear", "cosine"]


@pytest.mark.parametrize(
    ("lr_scheduler_type", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0]),
    ],
)
def test_by_hand(lr_scheduler_type: str, expected: list[float]) -> None:
    assert [rate_factor(step, 6, 1 / 3, lr_scheduler_type) for step in range(7)] == pytest.approx(expected)


@pytest.mark.parametrize("lr_scheduler_type", SCHEDULES)
def test_without_warm_up_the_first_step_has_the_full_rate(lr_scheduler_type: str) -> None:
    assert rate_factor(0, 10, 0.0, lr_scheduler_type) == 1.0


@given(st.integers(1, 200), st.floats(0, 1), st.sampled_from(SCHEDULES))
def test_rises_to_one_then_never_rises_again(steps: int, warmup_ratio: float, lr_scheduler_type: str) -> None:
    factors = [rate_factor(step, steps, warmup_ratio, lr_scheduler_type) for step in range(steps + 5)]
    top = factors.index(1.0)
    assert abs(top + 1 - steps * warmup_ratio) <= 1
    assert all(0 < f <= 1 for f in factors[:steps])  # no step is lost to a rate of zero
    assert all(a < b for a, b in pairwise(factors[: top + 1]))
    assert all(a >= b for a, b in pairwise(factors[top:]))
    if lr_scheduler_type != "constant" and top + 1 < steps:
        assert factors[steps:] == pytest.approx([0.0] * 5, abs=1e-12)


def test_only_what_is_trained_is_optimized_at_the_scheduled_rate() -> None:
    trained = torch.nn.Parameter(torch.ones(2))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer, scheduler = build_optimizer(
        [trained, frozen],
        learning_rate=0.4,
        weight_decay=0.1,
        adam_beta2=0.95,
        lr_scheduler_type="linear",
        warmup_ratio=0.5,
        steps=4,
    )
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


def test_a_checkpoint_must_hold_exactly_what_is_trained() -> None:
    module = torch.nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    check_state(module, {"state_dict": {"weight": module.weight}})  # type: ignore[arg-type]
    for state in ({}, {"weight": 0, "bias": 0}, {"other": 0}):
        with pytest.raises(CheckpointError, match="trained weights"):
            check_state(module, {"state_dict": state})  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(0, 120))
def test_micro_batches_hold_every_item_once_in_order_and_fit(sizes: list[int], budget: int) -> None:
    parts = micro_batches(sizes, budget)
    assert [index for part in parts for index in part] == list(range(len(sizes)))
    if not budget:
        assert len(parts) <= 1
        return
    assert all(len(part) == 1 or sum(sizes[i] for i in part) <= budget for part in parts)
    for part, following in pairwise(parts):  # none could have been joined to the one before
        assert sum(sizes[i] for i in part) + sizes[following[0]] > budget


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 40))
def test_parts_are_cut_into_as_many_pieces_as_asked_for(sizes: list[int], more: int) -> None:
    count = min(len(sizes) + more, sum(sizes))
    cut = split_to_count(sizes, count)
    assert sum(map(len, cut)) == count
    for size, part in zip(sizes, cut, strict=True):
        assert [row for piece in part for row in piece] == list(range(size)) and all(part)
    if more == 0:
        assert all(len(part) == 1 for part in cut)
