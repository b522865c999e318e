"""Statistics against values derived by hand or printed in the literature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr1.evaluation.statistics import Estimate, effective_n, holm, mcnemar_exact, rueger, wilson


def test_wilson_with_the_formula_by_hand() -> None:
    # k=8, n=10, z=1.959964, z^2=3.841459:
    # centre = (0.8 + z^2/20) / (1 + z^2/10) = 0.99207295 / 1.3841459 = 0.716740
    # half = z / (1 + z^2/10) * sqrt(0.8*0.2/10 + z^2/400) = 1.416010 * sqrt(0.02560365) = 0.226578
    found = wilson(0.8, 10)
    assert found.value == 0.8
    assert found.low == pytest.approx(0.716740 - 0.226578, abs=2e-6)
    assert found.high == pytest.approx(0.716740 + 0.226578, abs=2e-6)


def test_wilson_of_no_success_and_of_success_only() -> None:
    # p=0: the interval is [0, z^2 / (n + z^2)] = [0, 3.841459 / 13.841459]; p=1 mirrors it.
    none, all_of_them = wilson(0, 10), wilson(1, 10)
    assert (none.value, none.low, none.high) == pytest.approx((0.0, 0.0, 0.2775328), abs=1e-6)
    assert (all_of_them.value, all_of_them.low, all_of_them.high) == pytest.approx((1.0, 1 - 0.2775328, 1.0), abs=1e-6)


def test_wilson_of_newcombe() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3: 81 of 263.
    found = wilson(81 / 263, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_narrows_with_a_lower_level() -> None:
    # z of 90 % is 1.644854, z^2 = 2.705543; p=0: z^2 / (10 + z^2) = 0.212942
    assert wilson(0, 10, level=0.9).high == pytest.approx(0.212942, abs=1e-6)


@pytest.mark.parametrize(("share", "n", "level"), [(0, 0, 0.95), (1.5, 2, 0.95), (-0.5, 2, 0.95), (1, 2, 95.0)])
def test_wilson_refuses_what_is_not_a_proportion(share: float, n: int, level: float) -> None:
    with pytest.raises(ValueError, match=r"proportion|level"):
        wilson(share, n, level)


def test_the_effective_number_of_correlated_trials() -> None:
    # Four pairs of equal outcomes, two of them correct. Residuals of the clusters: 1, -1, 1, -1; variance of the share
    # 4 * 4/3 / 8^2 = 1/12, of independent trials 1/4 / 8 = 1/32; 8 / (32/12) = 3.
    pairs = ["a", "a", "b", "b", "c", "c", "d", "d"]
    assert effective_n([1, 1, 0, 0, 1, 1, 0, 0], pairs) == pytest.approx(3)
    # Each pair has one success: the share varies less than that of independent trials, which is not relied on.
    assert effective_n([1, 0] * 4, pairs) == 8
    assert effective_n([1, 0] * 4, list("abcdefgh")) == 8
    # How correlated they are cannot be seen.
    assert effective_n([1] * 8, pairs) == effective_n([0] * 8, pairs) == 4
    assert effective_n([1, 0, 0, 0], ["a"] * 4) == 1
    with pytest.raises(ValueError, match="at least one trial"):
        effective_n([], [])


def test_the_interval_covers_the_share_of_correlated_trials() -> None:
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(60), 10)
    covered = {True: 0, False: 0}
    for _ in range(300):  # patients differ: beta(2, 2) has mean 1/2
        outcomes = rng.random(600) < np.repeat(rng.beta(2, 2, 60), 10)
        for aware, n in ((True, effective_n(outcomes, clusters)), (False, 600)):
            found = wilson(float(outcomes.mean()), n)
            covered[aware] += found.low <= 0.5 <= found.high
    assert 0.9 <= covered[True] / 300 <= 0.99
    assert covered[False] / 300 < 0.8


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [
        (0, 5, 2 / 32),  # both tails: 2 * (1/2)^5
        (1, 9, 2 * (1 + 10) / 1024),  # 2 * (C(10,0) + C(10,1)) / 2^10 = .021484
        (9, 1, 2 * (1 + 10) / 1024),  # the direction does not matter
        (3, 7, 2 * (1 + 10 + 45 + 120) / 1024),  # .34375
        (4, 4, 1.0),  # 2 * P(X <= 4) > 1
        (0, 0, 1.0),  # nothing discordant
    ],
)
def test_mcnemar_by_counting(b: int, c: int, p: float) -> None:
    assert mcnemar_exact(b, c) == pytest.approx(p, abs=1e-12)


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="counts"):
        mcnemar_exact(-1, 2)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_equals_the_doubled_tail(b: int, c: int) -> None:
    n = b + c
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    assert mcnemar_exact(b, c) == pytest.approx(min(1.0, 2 * tail), abs=1e-9)


def test_an_interval_contains_its_ends() -> None:
    assert Estimate(0.1, 0.0, 0.2).is_inconclusive and Estimate(-0.1, -0.2, 0.0).is_inconclusive
    assert Estimate(0.1, 0.1, 0.1).is_inconclusive, "a bootstrap of one image"
    assert not Estimate(0.1, 0.01, 0.2).is_inconclusive and not Estimate(-0.1, -0.2, -0.01).is_inconclusive


def test_holm_by_hand() -> None:
    # Sorted .005, .01, .03, .04 times 4, 3, 2, 1 = .02, .03, .06, .04; the running maximum lifts .04 to .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_is_capped_at_one_and_takes_an_empty_family() -> None:
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1])
def test_holm_refuses_invalid_p_values(bad: float) -> None:
    with pytest.raises(ValueError, match="p-values"):
        holm([0.1, bad])


def test_rueger_by_hand() -> None:
    assert rueger([0.03]) == 0.03  # one test needs no correction
    assert rueger([0.01, 0.5, 0.02]) == pytest.approx(0.04)  # twice the middle one
    assert rueger([0.01, 0.03]) == pytest.approx(0.04)  # twice the mean of the middle two
    assert rueger([0.9, 0.6, 0.001]) == 1.0


def test_rueger_holds_its_level_where_a_plain_median_would_not() -> None:
    # The dependence that is worst for three tests at the 5 % level: with probability .075 two of them, drawn anew each
    # time, are at .05 or below. Each alone is then so with probability .05, as a valid p-value may be, and a plain
    # median in 7.5 % of all cases.
    rng = np.random.default_rng(0)
    medians, ruegers = [], []
    for _ in range(2000):
        p = np.array([0.04, 0.04, 0.9])[rng.permutation(3)] if rng.random() < 0.075 else rng.uniform(0.1, 1, 3)
        medians.append(np.median(p) <= 0.05)
        ruegers.append(rueger(p.tolist()) <= 0.05)
    assert np.mean(medians) > 0.06
    assert np.mean(ruegers) <= 0.05


@pytest.mark.parametrize("bad", [[], [0.1, math.nan], [0.1, 1.1]])
def test_rueger_refuses_invalid_p_values(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="p-values"):
        rueger(bad)
