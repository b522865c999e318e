"""The bootstrap: enumerated by hand, compared with plain loops over images and seeds, and checked for coverage."""

from __future__ import annotations

import numpy as np
import pytest

from medr1.evaluation import bootstrap
from medr1.evaluation.bootstrap import (
    FloatArray,
    Scores,
    bootstrap_ratio,
    bootstrap_sums,
    column_means,
    estimate,
    paired_difference,
    score,
    seed_weights,
    sums_by_cluster,
)
from medr1.evaluation.statistics import Estimate, wilson


def test_difference_is_b_minus_a() -> None:
    # a answers 1 of 4, b answers 3 of 4: +.5
    result = paired_difference([True, False, False, False], [False, True, True, True], list("wxyz"))
    assert result.value == 0.5
    assert result.low <= 0.5 <= result.high


def test_difference_of_two_clusters_by_enumeration() -> None:
    # Image x: 1 question, gain 1. Image y: 3 questions, gain 0. A resample of two images is xx (1/4): 2/2 = 1,
    # xy or yx (1/2): 1/4, yy (1/4): 0. So at level .4 (quantiles .3 and .7) both ends are 1/4,
    # at level .8 (quantiles .1 and .9) they are 0 and 1. Resampling questions would give neither.
    a, b, images = [False, True, True, True], [True, True, True, True], ["x", "y", "y", "y"]
    assert paired_difference(a, b, images, level=0.4) == Estimate(0.25, 0.25, 0.25)
    assert paired_difference(a, b, images, level=0.8) == Estimate(0.25, 0.0, 1.0)


def test_the_same_difference_on_all_images_has_the_interval_of_a_share() -> None:
    few, some = (paired_difference([False] * n, [True] * n, list(map(str, range(n)))) for n in (5, 6))
    assert few.is_inconclusive and not some.is_inconclusive  # as the exact test: 2 / 2^5 = .063 and 2 / 2^6 = .031
    assert some == Estimate(1, pytest.approx(2 * 0.025 ** (1 / 6) - 1), pytest.approx(1))
    worse = paired_difference([True, True] * 50, [True, False] * 50, [str(i // 2) for i in range(100)])
    q = 0.025 ** (1 / 50)
    assert worse == Estimate(-0.5, pytest.approx(-0.5 * q - (1 - q)), pytest.approx(-0.5 * q + 1 - q))


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


def test_seed_weights_give_the_mean_its_unbiased_variance() -> None:
    seeds = np.array([0.1, 0.5, 0.6])
    weights = seed_weights(3, 40_000, np.random.default_rng(0))
    assert weights.shape == (3, 40_000)
    assert weights.sum(axis=0) == pytest.approx(1.0)
    assert set(np.unique(weights)) == {0.0, 0.5, 1.0}  # two of three are drawn
    # s^2 / 3 with s^2 = ((.3)^2 + (.1)^2 + (.2)^2) / 2 = .07; drawing three of three would give two thirds of that.
    assert (seeds @ weights).mean() == pytest.approx(0.4, abs=0.003)
    assert (seeds @ weights).var() == pytest.approx(0.07 / 3, rel=0.03)


def test_one_seed_has_nothing_to_resample() -> None:
    assert seed_weights(1, 5, np.random.default_rng(0)).tolist() == [[1.0] * 5]


@pytest.mark.parametrize("grouped", [False, True])
def test_bootstrap_sums_draw_as_many_rows_as_there_are(grouped: bool) -> None:
    sums = bootstrap_sums(np.eye(5), 4000, np.random.default_rng(0), grouped=grouped)  # the sums are the weights
    assert set(sums.sum(axis=1)) == {5.0}
    # Multinomial: mean 1, variance 5 * 1/5 * 4/5, covariance -5 * 1/25.
    assert sums.mean(axis=0) == pytest.approx(1.0, abs=0.06)
    assert np.cov(sums.T) == pytest.approx(np.eye(5) - 0.2, abs=0.06)


def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = bootstrap_sums(np.eye(5), 4000, np.random.default_rng(0))
    monkeypatch.setattr(bootstrap, "_BLOCK", 33)  # blocks of six resamples, the last one short
    assert np.array_equal(bootstrap_sums(np.eye(5), 4000, np.random.default_rng(0)), sums)


def test_grouped_draws_have_the_distribution_of_single_draws() -> None:
    values = np.random.default_rng(3).integers(0, 3, (60, 2)).astype(float)  # nine distinct rows
    single, grouped = (bootstrap_sums(values, 8000, np.random.default_rng(1), grouped=g) for g in (False, True))
    assert single.mean(axis=0) == pytest.approx(grouped.mean(axis=0), rel=0.01)
    assert np.cov(single.T) == pytest.approx(np.cov(grouped.T), rel=0.06, abs=1.0)


def test_a_ratio_is_of_the_sums_over_images() -> None:
    sums = sums_by_cluster(["y", "x", "y"], [1, 2, 3], [2, 2, 4])
    assert sums.tolist() == [[2, 2], [4, 6]]
    # Two images: xx gives 1, xy and yx 6/8, yy 4/6; at level .4 both ends are the middle one.
    assert bootstrap_ratio(sums, level=0.4) == Estimate(0.75, 0.75, 0.75)


def test_column_means_by_hand() -> None:
    values = np.array([[True, False, True, True], [False, False, False, True]])
    column = np.array([0, 0, 1, 1])
    assert column_means(values, column).tolist() == [[0.5, 1.0, 0.75], [0.0, 0.5, 0.25]]


def _world(seeds: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outcomes of ``seeds`` vectors on 40 images with 1 to 3 records each, in two columns that share no image."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(40), rng.integers(1, 4, 40))
    ease = rng.random(40)[image] + rng.normal(0, 0.15, (seeds, 1))
    return rng.random((seeds, len(image))) < ease, (image >= 25).astype(np.intp), image


def test_score_equals_a_loop_over_images_and_seeds() -> None:
    correct, column, image = _world(3)
    pooled = score(correct, column, image, 8000, np.random.default_rng(0)).over_seeds(np.random.default_rng(1))
    rng = np.random.default_rng(2)
    looped: list[list[float]] = []
    for _ in range(3000):
        seeds = rng.integers(3, size=2)
        images = [*rng.integers(0, 25, 25), *rng.integers(25, 40, 15)]
        records = np.concatenate([np.flatnonzero(image == k) for k in images])
        drawn = correct[seeds][:, records]
        looped.append([drawn[:, column[records] == c].mean() for c in (0, 1)] + [drawn.mean()])
    assert pooled.value == pytest.approx([*(correct[:, column == c].mean() for c in (0, 1)), correct.mean()])
    # The Monte Carlo error of a 2.5 % quantile at 3,000 resamples is some .004.
    ends = np.quantile(pooled.resampled, [0.025, 0.975], axis=1)
    assert ends == pytest.approx(np.quantile(looped, [0.025, 0.975], axis=0), abs=0.015)
    assert pooled.resampled.std(axis=1) == pytest.approx(np.std(looped, axis=0), rel=0.06)


def test_scores_of_one_resample_stand_on_the_same_images() -> None:
    correct, column, image = _world(1)
    scores = score(np.concatenate([correct, ~correct]), column, image, 200, np.random.default_rng(0))
    # Right and wrong add up to one in every resample, which separate draws would not do.
    assert scores.resampled.sum(axis=0) == pytest.approx(1.0)
    assert (scores.select([0]) - scores.select([0])).resampled == pytest.approx(0.0)


def test_difference_of_scores_agrees_with_paired_difference() -> None:
    correct, _, image = _world(2)
    scores = score(correct, np.zeros_like(image), image, 8000, np.random.default_rng(0))
    difference = (scores.select([1]) - scores.select([0])).over_seeds(np.random.default_rng(0))
    plain = paired_difference(correct[0].tolist(), correct[1].tolist(), [str(k) for k in image], resamples=8000)
    assert (estimate(float(difference.value[0]), difference.resampled[0])) == Estimate(
        pytest.approx(plain.value), pytest.approx(plain.low, abs=0.015), pytest.approx(plain.high, abs=0.015)
    )


def test_no_resample_leaves_a_column_empty() -> None:
    # Column 1 has a single image, which a plain draw of ten images misses in a third of the resamples.
    image = np.arange(10)
    scores = score(np.ones((1, 10), dtype=bool), (image == 9).astype(np.intp), image, 500, np.random.default_rng(0))
    assert scores.resampled == pytest.approx(1.0)


def test_an_image_in_several_columns_is_drawn_with_all_its_records() -> None:
    # Two records on each image, one in each column, right or wrong together: the columns move as one.
    outcomes = np.arange(30) % 3 == 0
    image = np.repeat(np.arange(30), 2)
    scores = score(np.repeat(outcomes, 2)[None], np.tile([0, 1], 30), image, 300, np.random.default_rng(0))
    assert np.array_equal(scores.resampled[0, 0], scores.resampled[0, 1])
    assert len(np.unique(scores.resampled[0, 0])) > 5


def test_crossed_interval_covers_what_other_images_and_seeds_would_give() -> None:
    rng = np.random.default_rng(7)

    def probabilities(seeds: int, images: int) -> FloatArray:
        logits = 0.4 + rng.normal(0, 1, images)[None] + rng.normal(0, 0.3, seeds)[:, None]
        return 1 / (1 + np.exp(-logits))

    truth = (1 / (1 + np.exp(-0.4 - rng.normal(0, np.sqrt(1 + 0.3**2), 400_000)))).mean()
    covered = {True: 0, False: 0}
    for _ in range(120):
        outcomes = rng.random((5, 300)) < np.repeat(probabilities(5, 60), 5, axis=1)
        scores = score(outcomes, np.zeros(300, dtype=np.intp), np.repeat(np.arange(60), 5), 200, rng)
        pooled = scores.over_seeds(rng)
        interval = estimate(float(pooled.value[0]), pooled.resampled[0])
        covered[True] += interval.low <= truth <= interval.high
        naive = wilson(float(outcomes.mean()), outcomes.size)
        covered[False] += naive.low <= truth <= naive.high
    assert 0.89 <= covered[True] / 120 <= 0.99
    assert covered[False] / 120 < 0.7  # 1,500 predictions are not 1,500 independent ones


def test_degenerate_scores_are_points() -> None:
    rng = np.random.default_rng(0)
    always = score(np.ones((3, 6), dtype=bool), np.zeros(6, dtype=np.intp), np.arange(6), 50, rng).over_seeds(rng)
    assert estimate(float(always.value[0]), always.resampled[0]) == Estimate(1.0, 1.0, 1.0)
    single = score(np.array([[True, False, False]]), np.zeros(3, dtype=np.intp), np.zeros(3, dtype=np.intp), 50, rng)
    assert estimate(float(single.value[0, 0]), single.resampled[0, 0]) == Estimate(*[pytest.approx(1 / 3)] * 3)


def test_rounding_noise_does_not_decide_about_zero() -> None:
    noisy = Scores(np.array([[0.1], [0.2], [-0.3]]), np.array([[[0.1]], [[0.2]], [[-0.3]]]).repeat(9, axis=2))
    mean = noisy.resampled.mean(axis=0)[0]
    assert mean[0] != 0.0
    assert estimate(float(mean[0]), mean) == Estimate(0.0, 0.0, 0.0)
