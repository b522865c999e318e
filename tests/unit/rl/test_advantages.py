"""Advantages by hand and by slow loops: the standard deviation is the unbiased one, and groups never mix."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medr1.config.enums import AdvEstimator
from medr1.rl.advantages import EPSILON, Outcomes, advantages, gdpo_scores, group_advantages, scores, zero_std_groups

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


@pytest.mark.parametrize("low", [0.0, 1000.0, 100_000.0])
def test_a_difference_counts_whatever_is_added_to_all_rewards(low: float) -> None:
    """But not that of a sum of the same parts in another order."""
    rewards = torch.tensor([low, low + 1, low, low])
    assert group_advantages(rewards, 4, "group").tolist() == pytest.approx([-0.5, 1.5, -0.5, -0.5], abs=1e-3)
    assert zero_std_groups(torch.tensor([0.1 + 0.2, 0.3, 0.3 + 3e-8, 0.3]), 4).tolist() == [True]


@pytest.mark.parametrize("num_generations", [3, 6, 7, 8, 16])
@pytest.mark.parametrize("reward", [0.1, 0.7, 0.9, 1.1, 1.2])
def test_rounding_of_the_mean_makes_no_advantage(num_generations: int, reward: float) -> None:
    """In float32 the mean of eight times 1.2 is not 1.2."""
    assert not group_advantages(torch.full((2 * num_generations,), reward), num_generations, "group").any()


LENGTHS = [3, 1, 7, 2, 5, 4, 1, 6]
DOMAINS = [1, 0, 1, 1]
COUNTS, MEANS = [5.0, 9.0], [0.4, 0.9]


def estimate(name: str, rewards: list[float], num_generations: int, scale_rewards: str = "group") -> list[float]:
    lengths = torch.tensor([float(LENGTHS[i % 8]) for i in range(len(rewards))])
    domains = torch.tensor([DOMAINS[i % 4] for i in range(len(rewards) // num_generations)])
    statistics = (domains, torch.tensor(COUNTS), torch.tensor(MEANS))
    return advantages(
        name, Outcomes(torch.tensor(rewards), lengths, num_generations, scale_rewards, *statistics)
    ).tolist()


def slow_rloo(groups: list[list[float]]) -> list[float]:
    """Each reward minus the mean of the others."""
    return [r - statistics.mean(group[:i] + group[i + 1 :]) for group in groups for i, r in enumerate(group)]


def slow_reinforce_pp(groups: list[list[float]]) -> list[float]:
    """Every token of a completion has its centred reward; these values are normalized over all tokens."""
    centered = [r - statistics.mean(group) for group in groups for r in group]
    tokens = [a for i, a in enumerate(centered) for _ in range(LENGTHS[i % 8])]
    mean = statistics.mean(tokens)
    return [(a - mean) / math.sqrt(statistics.variance(tokens) + 1e-8) for a in centered]


def slow_drpo(groups: list[list[float]]) -> list[float]:
    """GRPO's advantages, each divided by the temperature of its domain, then by their common deviation."""
    scaled = []
    for i, group in enumerate(groups):
        domain = DOMAINS[i % 4]
        temperature = max(math.sqrt(COUNTS[domain]) * MEANS[domain], 1e-6)
        deviation = statistics.stdev(group) + EPSILON
        scaled += [(r - statistics.mean(group)) / deviation / temperature for r in group]
    return [a / (statistics.stdev(scaled) + 1e-6) for a in scaled]


SLOW = {"rloo": slow_rloo, "reinforce_plus_plus_baseline": slow_reinforce_pp, "drpo": slow_drpo}


@pytest.mark.parametrize("name", SLOW)
@given(GROUPS.filter(lambda groups: any(len(set(group)) > 1 for group in groups)))
def test_an_estimator_is_its_slow_loop(name: str, groups: list[list[float]]) -> None:
    found = estimate(name, [r for group in groups for r in group], len(groups[0]))
    assert found == pytest.approx(SLOW[name](groups), abs=2e-3)


@pytest.mark.parametrize("name", AdvEstimator)
def test_no_estimator_prefers_a_completion_where_all_rewards_are_equal(name: str) -> None:
    for reward in (0.0, 1.2, -0.5):
        found = scores(name, torch.full((8,), reward), torch.full((1, 8), reward), torch.ones(1), 4)
        assert estimate(name, found.tolist(), 4, "none") == [0.0] * 8


def test_drpo_raises_the_weight_of_rare_and_hard_domains() -> None:
    """Two equal groups: that of domain 0, which has fewer prompts and a lower mean, has the larger advantages."""
    of_common, of_rare = estimate("drpo", [1.0, 0.0, 1.0, 0.0], 2)[::2]
    assert of_rare / of_common == pytest.approx(math.sqrt(9) * 0.9 / (math.sqrt(5) * 0.4), rel=1e-4)


def test_a_domain_without_reward_does_not_change_the_sign() -> None:
    """Penalties can make the mean reward of a domain negative."""
    domain = (torch.tensor([0]), torch.tensor([3.0]), torch.tensor([-0.5]))
    worse, better = advantages("drpo", Outcomes(torch.tensor([-1.0, 0.0]), torch.ones(2), 2, "group", *domain)).tolist()
    assert worse < 0 < better


def gdpo(rewards: list[list[float]], weights: list[float], num_generations: int) -> list[float]:
    weighted = (torch.tensor(weights).unsqueeze(1) * torch.tensor(rewards)).sum(0)
    found = scores("gdpo", weighted, torch.tensor(rewards), torch.tensor(weights), num_generations)
    return estimate("gdpo", found.tolist(), num_generations)


def slow_gdpo(rewards: list[list[float]], weights: list[float], num_generations: int) -> list[float]:
    """The equations of the paper in loops, with the batch mean that is 0."""
    sums = [0.0] * len(rewards[0])
    for values, weight in zip(rewards, weights, strict=True):
        for start in range(0, len(values), num_generations):
            group = values[start : start + num_generations]
            for row, value in enumerate(group, start):
                sums[row] += weight * (value - statistics.mean(group)) / (statistics.stdev(group) + EPSILON)
    mean, deviation = statistics.mean(sums), statistics.stdev(sums)
    return [(score - mean) / (deviation + EPSILON) for score in sums]


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
    found = gdpo_scores(torch.tensor([up, [1.0 - value for value in up]]), torch.tensor([1.0, 1.0]), 4)
    assert found.tolist() == [0.0] * 4 and zero_std_groups(found, 4).tolist() == [True]
