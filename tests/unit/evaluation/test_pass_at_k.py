"""pass@k and maj@k against a count over all subsets of k samples."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest

from medr1.evaluation.bootstrap import bootstrap_ratio
from medr1.evaluation.pass_at_k import default_ks, maj_at_k, pass_at_k, summarise_samples
from tests.unit.evaluation.test_metrics import line

SAMPLES = [(n, k) for n in range(1, 9) for k in range(1, n + 1)]


@pytest.mark.parametrize(("samples", "k"), SAMPLES)
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(samples: int, k: int) -> None:
    for correct in range(samples + 1):
        subsets = list(combinations([True] * correct + [False] * (samples - correct), k))
        assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def majority(answers: tuple[str | None, ...]) -> Fraction:
    """The share of A among the options with the most votes."""
    votes = {letter: answers.count(letter) for letter in set(answers) - {None}}
    most = [letter for letter, count in votes.items() if count == max(votes.values())]
    return Fraction(int("A" in most), max(1, len(most)))


@pytest.mark.parametrize(("samples", "k"), SAMPLES)
def test_maj_at_k_is_the_mean_over_subsets_with_ties_shared(samples: int, k: int) -> None:
    rng = np.random.default_rng((samples, k))
    for _ in range(6):
        answers = [("A", "B", "C", "D", None)[i] for i in rng.integers(5, size=samples)]
        expected = fmean(map(majority, combinations(answers, k)))
        others = tuple(answers.count(letter) for letter in "BCD")
        assert maj_at_k(answers.count("A"), others, answers.count(None), k) == pytest.approx(float(expected), abs=1e-13)


@pytest.mark.parametrize(
    ("counts", "k", "expected"),
    [
        ((3, (2, 2), 1), 8, 1.0),
        ((2, (2, 2), 0), 6, 1 / 3),  # a tie of three
        ((0, (1,), 7), 8, 0.0),
        ((1, (), 7), 8, 1.0),  # samples without an answer do not vote
        ((0, (), 8), 8, 0.0),
        ((2, (3,), 3), 8, 0.0),
    ],
)
def test_the_vote_of_all_samples(counts: tuple[int, tuple[int, ...], int], k: int, expected: float) -> None:
    assert maj_at_k(*counts, k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [0, 9, -1])
def test_a_k_beyond_the_samples_is_refused(k: int) -> None:
    for call in (lambda: pass_at_k(8, 2, k), lambda: maj_at_k(2, (6,), 0, k)):
        with pytest.raises(ValueError, match=f"k={k} .* 8"):
            call()


def test_the_largest_number_of_samples_can_be_counted() -> None:
    assert 0 < pass_at_k(256, 1, 128) < maj_at_k(120, (100, 36), 0, 128) < 1
    # k = 1 is one sample, whatever the number of samples.
    assert maj_at_k(64, (100, 92), 0, 1) == pass_at_k(256, 64, 1) == pytest.approx(0.25)


@pytest.mark.parametrize(("samples", "expected"), [(1, [1]), (2, [1, 2]), (7, [1, 2, 4]), (8, [1, 2, 4, 8])])
def test_the_default_k_are_powers_of_two(samples: int, expected: list[int]) -> None:
    assert default_ks(samples) == expected


GROUPS = [
    [line("1", parsed, image="x", condition=f"base.sample_{i}") for i, parsed in enumerate("AABC")],
    [line("2", parsed, image="x", options=2, condition=f"base.sample_{i}") for i, parsed in enumerate("BBBB")],
    [line("3", parsed, image="y", condition=f"base.sample_{i}") for i, parsed in enumerate(["A", None, "A", "A"])],
]


def test_a_summary_has_means_over_records_with_images_as_clusters() -> None:
    found = summarise_samples(GROUPS, [1, 2, 4])
    assert (found.n, found.images, found.num_generations) == (3, 2, 4)
    assert found.pass_at_k[1].value == found.maj_at_k[1].value == pytest.approx((0.5 + 0 + 0.75) / 3)
    assert found.pass_at_k[2].value == pytest.approx((1 - 1 / 6 + 0 + 1) / 3)
    assert found.pass_at_k[4].value == found.maj_at_k[4].value == pytest.approx(2 / 3)
    assert found.pass_at_k[4] == bootstrap_ratio(np.array([[1.0, 2.0], [1.0, 1.0]]))
    assert found.pass_at_k_chance[2] == pytest.approx((2 * (1 - 9 / 16) + 3 / 4) / 3)


def test_what_cannot_be_summarised_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        summarise_samples([GROUPS[0], GROUPS[1][:3]], [1])
    with pytest.raises(ValueError, match="k=8"):
        summarise_samples(GROUPS, [1, 8])
    with pytest.raises(ValueError, match=r"\[\]"):
        summarise_samples([], [1])
