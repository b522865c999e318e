"""Statistics against values derived by hand or printed in the literature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr1.evaluation.statistics import holm, mcnemar_exact, paired_difference, wilson


def test_wilson_with_the_formula_by_hand() -> None:
    # k=8, n=10, z=1.959964, z^2=3.841459:
    # centre = (0.8 + z^2/20) / (1 + z^2/10) = 0.99207295 / 1.3841459 = 0.716740
    # half = z / (1 + z^2/10) * sqrt(0.8*0.2/10 + z^2/400) = 1.416010 * sqrt(0.02560365) = 0.226578
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.716740 - 0.226578, abs=2e-6)
    assert high == pytest.approx(0.716740 + 0.226578, abs=2e-6)


def test_wilson_of_no_success_and_of_success_only() -> None:
    # p=0: the interval is [0, z^2 / (n + z^2)] = [0, 3.841459 / 13.841459]; p=1 mirrors it.
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson(10, 10) == pytest.approx((1 - 0.2775328, 1.0), abs=1e-6)


def test_wilson_of_newcombe() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3: 81 of 263.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_narrows_with_a_lower_level() -> None:
    # z of 90 % is 1.644854, z^2 = 2.705543; p=0: z^2 / (10 + z^2) = 0.212942
    assert wilson(0, 10, level=0.9).high == pytest.approx(0.212942, abs=1e-6)


@pytest.mark.parametrize(("successes", "n", "level"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 95.0)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int, level: float) -> None:
    with pytest.raises(ValueError, match=r"no proportion|confidence level"):
        wilson(successes, n, level)


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


def test_difference_is_b_minus_a() -> None:
    # a answers 1 of 4, b answers 3 of 4: +.5
    result = paired_difference([True, False, False, False], [False, True, True, True], list("wxyz"))
    assert result.estimate == 0.5
    assert result.low <= 0.5 <= result.high


def test_difference_of_two_clusters_by_enumeration() -> None:
    # Image x: 1 question, gain 1. Image y: 3 questions, gain 0. A resample of two images is xx (1/4): 2/2 = 1,
    # xy or yx (1/2): 1/4, yy (1/4): 0. So at level .4 (quantiles .3 and .7) both ends are 1/4,
    # at level .8 (quantiles .1 and .9) they are 0 and 1. Resampling questions would give neither.
    a, b, images = [False, True, True, True], [True, True, True, True], ["x", "y", "y", "y"]
    assert paired_difference(a, b, images, level=0.4) == (0.25, 0.25, 0.25)
    assert paired_difference(a, b, images, level=0.8) == (0.25, 0.0, 1.0)


def test_difference_interval_equals_the_plain_bootstrap() -> None:
    rng = np.random.default_rng(5)
    images = [f"image {i // 3}" for i in range(240)]
    per_image = np.repeat(rng.random(80), 3)
    a, b = (rng.random(240) < 0.8 * per_image), (rng.random(240) < 0.3 + 0.6 * per_image)
    # The reference draws images one by one; both have a Monte Carlo error of some .002 at 20,000 resamples.
    gains = (b.astype(float) - a).reshape(80, 3)
    means = [gains[rng.integers(0, 80, 80)].mean() for _ in range(20_000)]
    low, high = np.quantile(means, [0.025, 0.975])
    result = paired_difference(a.tolist(), b.tolist(), images, resamples=20_000)
    assert result.low == pytest.approx(low, abs=0.006)
    assert result.high == pytest.approx(high, abs=0.006)


def test_difference_is_wider_when_questions_share_images() -> None:
    # 200 outcomes in blocks of ten that stand or fall together hold 20 observations: sqrt(10) = 3.2 times as wide.
    gains = [i // 10 % 2 == 0 for i in range(200)]
    none = [False] * 200
    single = paired_difference(none, gains, [str(i) for i in range(200)])
    shared = paired_difference(none, gains, [str(i // 10) for i in range(200)])
    assert 2.5 < (shared.high - shared.low) / (single.high - single.low) < 4


def test_difference_depends_on_the_seed_only() -> None:
    a, b, images = [i % 3 == 0 for i in range(60)], [i % 2 == 0 for i in range(60)], [str(i) for i in range(60)]
    assert paired_difference(a, b, images, seed=1) == paired_difference(a, b, images, seed=1)
    assert len({paired_difference(a, b, images, resamples=101, seed=seed) for seed in range(8)}) > 1


def test_difference_refuses_unequal_lengths_and_nothing() -> None:
    with pytest.raises(ValueError, match="lengths differ"):
        paired_difference([True], [True, False], ["x", "y"])
    with pytest.raises(ValueError, match="needs records"):
        paired_difference([], [], [])


def test_holm_by_hand() -> None:
    # Sorted .005, .01, .03, .04 times 4, 3, 2, 1 = .02, .03, .06, .04; the running maximum lifts .04 to .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_is_capped_at_one_and_takes_an_empty_family() -> None:
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1])
def test_holm_refuses_what_is_no_p_value(bad: float) -> None:
    with pytest.raises(ValueError, match="p-values"):
        holm([0.1, bad])
