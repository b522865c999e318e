"""Advantages by hand: the standard deviation is the unbiased one, and groups never mix."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medr1.rl.advantages import EPSILON, group_advantages, zero_std_groups

GROUPS = st.integers(2, 9).flatmap(
    lambda size: st.lists(
        st.lists(st.sampled_from([0.0, 0.1, 0.3, 1.0, 1.2, 2.0]), min_size=size, max_size=size), min_size=1, max_size=5
    )
)


def test_the_standard_deviation_is_unbiased() -> None:
    """(1, 0, 0, 0) has the unbiased standard deviation 0.5; that of the population is 0.433."""
    found = group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4, "group")
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25]) / (0.5 + 1e-4)
    torch.testing.assert_close(found, expected)


def test_no_scaling_only_centres() -> None:
    found = group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 0.0]), 4, "none")
    assert found.tolist() == [0.75, -0.25, -0.25, -0.25, 0.5, 0.5, 0.5, -1.5]


def test_batch_scaling_divides_by_one_deviation_but_centres_in_the_group() -> None:
    rewards = [1.0, 0.0, 2.0, 2.0, 0.0, 1.0]
    deviation = statistics.stdev(rewards) + EPSILON
    expected = [0.5, -0.5, 0.0, 0.0, -0.5, 0.5]
    found = group_advantages(torch.tensor(rewards), 2, "batch")
    assert found.tolist() == pytest.approx([a / deviation for a in expected], abs=1e-6)


def test_batch_deviation_of_several_processes_is_used_where_given() -> None:
    found = group_advantages(torch.tensor([1.0, 0.0]), 2, "batch", batch_std=torch.tensor(2.0))
    assert found.tolist() == pytest.approx([0.5 / 2.0001, -0.5 / 2.0001])


@given(GROUPS)
def test_every_group_is_centred_and_scaled_by_itself(groups: list[list[float]]) -> None:
    rewards = torch.tensor(groups)
    found = group_advantages(rewards.flatten(), rewards.shape[1], "group").view_as(rewards)
    for row, group in zip(found.tolist(), groups, strict=True):
        mean, deviation = statistics.mean(group), statistics.stdev(group)
        assert row == pytest.approx([(r - mean) / (deviation + EPSILON) for r in group], abs=2e-3)


@given(GROUPS, st.sampled_from(["group", "none", "batch"]))
def test_a_group_without_variance_has_exactly_no_advantage(groups: list[list[float]], scaling: str) -> None:
    rewards = torch.tensor([*groups, [groups[0][0]] * len(groups[0])])
    found = group_advantages(rewards.flatten(), rewards.shape[1], scaling).view_as(rewards)
    zero_std = zero_std_groups(rewards.flatten(), rewards.shape[1])
    assert zero_std.tolist() == [len(set(group)) == 1 for group in rewards.tolist()]
    assert not found[zero_std].any()
    assert found[~zero_std].any(1).all()
    assert all(math.isfinite(a) for a in found.flatten().tolist())


@pytest.mark.parametrize("num_generations", [3, 6, 7, 8, 16])
@pytest.mark.parametrize("reward", [0.1, 0.7, 0.9, 1.1, 1.2])
def test_rounding_of_the_mean_makes_no_advantage(num_generations: int, reward: float) -> None:
    """In float32 the mean of eight times 1.2 is not 1.2."""
    assert not group_advantages(torch.full((2 * num_generations,), reward), num_generations, "group").any()
