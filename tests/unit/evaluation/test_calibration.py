"""Calibration against a loop over records and bins, and the file of probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medr1.errors import DataError
from medr1.evaluation.calibration import (
    NUM_BINS,
    OptionProbabilities,
    calibrate,
    read_option_probabilities,
    write_option_probabilities,
)


def line(number: int, answer: str, probabilities: dict[str, float] | None) -> OptionProbabilities:
    return OptionProbabilities(f"r{number}", f"image {number // 2}", answer, probabilities)


def random_lines(n: int, seed: int) -> list[OptionProbabilities]:
    rng = np.random.default_rng(seed)
    drawn = rng.dirichlet([0.6] * 4, size=n)
    return [
        line(i, "ABCD"[rng.integers(4)], dict(zip("ABCD", map(float, p), strict=True))) for i, p in enumerate(drawn)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_error_is_that_of_a_loop_over_bins(seed: int) -> None:
    lines = random_lines(200, seed)
    found = calibrate([*lines, line(200, "A", None)])
    assert found is not None and (found.n, found.without) == (200, 1)
    error = 0.0
    for number in range(NUM_BINS):
        inside = [x for x in lines if number / NUM_BINS < max(x.probabilities.values()) <= (number + 1) / NUM_BINS]  # type: ignore[union-attr]
        assert found.bins[number].n == len(inside)
        if inside:
            best = [max(x.probabilities, key=x.probabilities.get) for x in inside]  # type: ignore[arg-type, union-attr]
            accuracy = np.mean([letter == x.answer for letter, x in zip(best, inside, strict=True)])
            confidence = np.mean([max(x.probabilities.values()) for x in inside])  # type: ignore[union-attr]
            assert found.bins[number].accuracy == pytest.approx(accuracy)
            assert found.bins[number].confidence == pytest.approx(confidence)
            error += len(inside) / 200 * abs(accuracy - confidence)
    estimate = found.expected_calibration_error
    assert estimate.value == pytest.approx(error, abs=1e-12)
    assert 0 <= estimate.low < estimate.high <= 1
    truth = [np.eye(4)["ABCD".index(x.answer)] for x in lines]
    distances = [((np.array(list(x.probabilities.values())) - y) ** 2).sum() for x, y in zip(lines, truth, strict=True)]  # type: ignore[union-attr]
    assert found.brier_score.value == pytest.approx(np.mean(distances))


@pytest.mark.parametrize(
    ("probabilities", "answers", "error", "brier"),
    [
        ({"A": 1.0, "B": 0.0}, "AAAA", 0.0, 0.0),  # sure and correct
        ({"A": 1.0, "B": 0.0}, "BBBB", 1.0, 2.0),  # sure and wrong
        ({"A": 1.0, "B": 0.0}, "ABAB", 0.5, 1.0),
        ({"A": 0.75, "B": 0.25}, "AAAB", 0.0, 0.375),  # correct as often as it says
        ({"A": 0.5, "B": 0.5}, "AAAA", 0.5, 0.5),
    ],
)
def test_known_errors(probabilities: dict[str, float], answers: str, error: float, brier: float) -> None:
    found = calibrate([line(i, answer, probabilities) for i, answer in enumerate(answers)])
    assert found is not None
    assert found.expected_calibration_error.value == pytest.approx(error, abs=1e-12)
    assert found.brier_score.value == pytest.approx(brier)
    assert found.accuracy.value == answers.count("A") / 4 and found.images == 2


def test_without_probabilities_there_is_no_calibration() -> None:
    assert calibrate([]) is None and calibrate([line(0, "A", None)]) is None


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    lines = [*random_lines(3, 0), line(3, "A", None)]
    write_option_probabilities(tmp_path / "x.jsonl", lines)
    assert read_option_probabilities(tmp_path / "x.jsonl") == lines


@pytest.mark.parametrize(
    "change",
    [
        {"probabilities": {"A": 0.6, "B": 0.6}},
        {"probabilities": {"A": 1.5, "B": -0.5}},
        {"probabilities": {"A": "0.5", "B": 0.5}},
        {"probabilities": {"B": 0.5, "C": 0.5}},
        {"probabilities": [0.5, 0.5]},
        {"answer": None},
        {"other": 1},
        "torn",
    ],
    ids=str,
)
def test_a_damaged_line_is_named(change: Any, tmp_path: Path) -> None:
    good = {"record": "r", "image": "i", "answer": "A", "probabilities": {"A": 0.5, "B": 0.5}}
    file = tmp_path / "x.jsonl"
    bad = json.dumps({**good, **change}) if isinstance(change, dict) else json.dumps(good)[:-9]
    file.write_text(f"{json.dumps(good)}\n{bad}\n")
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: "):
        read_option_probabilities(file)
    with pytest.raises(DataError, match=r"y\.jsonl"):
        read_option_probabilities(tmp_path / "y.jsonl")
