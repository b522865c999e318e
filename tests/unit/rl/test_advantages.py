"""Advantages by hand: the standard deviation is the unbiased one, and groups never mix."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medr1.rl.advantages import EPSILON, gdpo_scores, group_advantages, zero_std_groups

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


def gdpo(rewards: list[list[float]], weights: list[float], num_generations: int) -> list[float]:
    scores = gdpo_scores(torch.tensor(rewards), torch.tensor(weights), num_generations)
    return group_advantages(scores, num_generations, "batch").tolist()


def slow_gdpo(rewards: list[list[float]], weights: list[float], num_generations: int) -> list[float]:
    """The equations of the paper in loops, with the batch mean that is 0."""
    scores = [0.0] * len(rewards[0])
    for values, weight in zip(rewards, weights, strict=True):
        for start in range(0, len(values), num_generations):
            group = values[start : start + num_generations]
            for row, value in enumerate(group, start):
                scores[row] += weight * (value - statistics.mean(group)) / (statistics.stdev(group) + EPSILON)
    mean, deviation = statistics.mean(scores), statistics.stdev(scores)
    return [(score - mean) / (deviation + EPSILON) for score in scores]


@given(
    st.integers(2, 5).flatmap(
        lambda size: st.tuples(
            st.just(size),
            st.lists(
                st.lists(st.sampled_from([0.0, 0.25, 1.0, -1.0]), min_size=2 * size, max_size=2 * size),
                min_size=3,
                max_size=3,
            ),
            st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=3, max_size=3).filter(any),
        )
    )
)
def test_gdpo_is_the_slow_loop(drawn: tuple[int, list[list[float]], list[float]]) -> None:
    size, rewards, weights = drawn
    assert gdpo(rewards, weights, size) == pytest.approx(slow_gdpo(rewards, weights, size), abs=1e-3)


def test_gdpo_differs_from_the_sum_where_format_has_almost_saturated() -> None:
    """One of four completions is correct, in the first group another one has the wrong format; by hand.

    The sum (2, 1, 1, 0) has the standard deviation 0.8165: the correct completion has 1.22, the wrong format -1.22. In
    the second group (2, 1, 1, 1) the correct completion has 1.5. GDPO adds (1.5, -0.5, -0.5, -0.5) for the accuracy of
    both groups and (0.5, 0.5, 0.5, -1.5) for the format of the first: (2, 0, 0, -2) and (1.5, -0.5, -0.5, -0.5). The
    batch has the standard deviation sqrt(11 / 7) = 1.2536.
    """
    accuracy, format_ = [1.0, 0.0, 0.0, 0.0] * 2, [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    total = torch.tensor(accuracy) + torch.tensor(format_)
    summed = group_advantages(total, 4, "group").tolist()
    assert summed == pytest.approx([1.2247, 0, 0, -1.2247, 1.5, -0.5, -0.5, -0.5], abs=1e-3)
    sums = [2.0, 0.0, 0.0, -2.0, 1.5, -0.5, -0.5, -0.5]
    assert gdpo([accuracy, format_], [1.0, 1.0], 4) == pytest.approx([s / 1.2536 for s in sums], abs=1e-3)
    # The correct completion of the first group now counts for more than that of the second, which it did not before.
    assert summed[0] < summed[4] and sums[0] > sums[4]


@pytest.mark.parametrize("num_generations", [3, 4, 7, 8])
@pytest.mark.parametrize("constant", [0.1, 0.9, 1.0, 1.2])
def test_a_saturated_reward_or_one_of_zero_weight_gives_nothing(num_generations: int, constant: float) -> None:
    accuracy = [1.0, *[0.0] * (num_generations - 1)] * 2
    alone = gdpo([accuracy], [1.0], num_generations)
    saturated = [constant] * len(accuracy)
    assert gdpo([accuracy, saturated], [1.0, 5.0], num_generations) == alone
    assert gdpo([accuracy, accuracy[::-1]], [1.0, 0.0], num_generations) == alone
    assert gdpo([saturated, saturated], [1.0, 5.0], num_generations) == [0.0] * len(accuracy)


def test_rewards_that_cancel_out_prefer_no_completion() -> None:
    """Their sums are 0 but for rounding, which the batch's standard deviation must not turn into advantages."""
    up = [0.1, 0.7, 0.3, 0.9]
    scores = gdpo_scores(torch.tensor([up, [1.0 - value for value in up]]), torch.tensor([1.0, 1.0]), 4)
    assert scores.tolist() == [0.0] * 4 and zero_std_groups(scores, 4).tolist() == [True]
