"""Black patches and noise, in pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from medr1.data.distortions import add_gaussian_noise, annealed, blacken_patches

IMAGE = Image.fromarray(np.random.default_rng(0).integers(1, 256, (31, 45, 3), dtype=np.uint8))


@pytest.mark.parametrize("image", [IMAGE, IMAGE.convert("L")], ids=["RGB", "L"])
@pytest.mark.parametrize("patch_size", [1, 14, 100])
def test_each_patch_is_black_or_as_it_was(image: Image.Image, patch_size: int) -> None:
    before = np.array(image)
    found = np.array(blacken_patches(image, np.random.default_rng(1), patch_size, 0.6))
    assert found.shape == before.shape and (np.array(image) == before).all(), "the image itself stays"
    rng = np.random.default_rng(1)
    for y in range(0, before.shape[0], patch_size):
        for x in range(0, before.shape[1], patch_size):
            place = np.s_[y : y + patch_size, x : x + patch_size]
            assert (found[place] == (0 if rng.random() < 0.6 else before[place])).all()


def test_the_share_of_black_patches_is_the_probability() -> None:
    large = Image.new("RGB", (1400, 1400), "white")
    found = np.array(blacken_patches(large, np.random.default_rng(0), 14, 0.6))
    assert (found == 0).mean() == pytest.approx(0.6, abs=0.02)
    for probability, value in ((0.0, 255), (1.0, 0)):
        assert (np.array(blacken_patches(large, np.random.default_rng(0), 14, probability)) == value).all()


def slow_signal(step: int) -> float:
    """Share of the image's variance that is left, by the schedule of the authors."""
    signal = 1.0
    for i in range(step + 1):
        signal *= 1 - (1e-5 + (5e-3 - 1e-5) / (1 + math.exp(-(-6 + 12 * i / 999))))
    return signal


@pytest.mark.parametrize("step", [0, 250, 500, 999])
def test_noise_has_the_deviation_of_its_step(step: int) -> None:
    gray = Image.new("RGB", (200, 200), (128, 128, 128))
    found = np.array(add_gaussian_noise(gray, np.random.default_rng(0), step)) / 255
    inside = (found > 0) & (found < 1)
    signal = slow_signal(step)
    expected = np.random.default_rng(0).standard_normal(found.shape) * math.sqrt(1 - signal)
    expected += math.sqrt(signal) * 128 / 255
    assert np.abs(found - expected)[inside].max() < 0.6 / 255
    assert found.std() == pytest.approx(expected.clip(0, 1).std(), abs=2e-3)


def test_noise_falls_to_half_in_the_middle_of_its_decay() -> None:
    steps = [annealed(500, done, 30.0, 0.667) for done in (0.0, 0.3, 0.667, 0.9, 1.0)]
    assert steps == sorted(steps, reverse=True)
    assert (steps[0], steps[2], steps[4]) == (499, 250, 0)
