"""Distorted images for training. They have the size of the image, so that a prompt has as many image tokens as before.

    blacken_patches       each square patch is made black with a probability. PAPO, arXiv 2507.06448
    add_gaussian_noise    sqrt(a_n) x + sqrt(1 - a_n) noise for pixels x in [0, 1], then cut to [0, 1]; a_n is the
                          product of 1 - beta_1 ... 1 - beta_n of a diffusion with 1,000 steps. NoisyRollout,
                          arXiv 2504.13055

NoisyRollout's noise step n falls in the course of the training: in step t of T it is noise_step (1 - sigmoid(decay_coef
(t / T - decay_sig_mid))), rounded down.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

_BETAS = 1e-5 + (5e-3 - 1e-5) / (1 + np.exp(-np.linspace(-6, 6, 1000)))  # as in the authors' code
_SIGNAL = np.cumprod(1 - _BETAS)


def blacken_patches(image: Image.Image, rng: np.random.Generator, patch_size: int, black_prob: float) -> Image.Image:
    """The image with some of its patches of ``patch_size`` pixels made black. Those at the borders may be smaller."""
    pixels = np.array(image)
    height, width = pixels.shape[:2]
    rows, columns = math.ceil(height / patch_size), math.ceil(width / patch_size)
    black = rng.random((rows, columns)) < black_prob
    pixels[black.repeat(patch_size, 0).repeat(patch_size, 1)[:height, :width]] = 0
    return Image.fromarray(pixels)


def add_gaussian_noise(image: Image.Image, rng: np.random.Generator, noise_step: int) -> Image.Image:
    """The image with the noise of step ``noise_step``, from 0 (hardly any) to 999 (little else)."""
    pixels = np.asarray(image, dtype=np.float64) / 255
    signal = _SIGNAL[noise_step]
    noisy = math.sqrt(signal) * pixels + math.sqrt(1 - signal) * rng.standard_normal(pixels.shape)
    return Image.fromarray((noisy.clip(0, 1) * 255).round().astype(np.uint8))


def annealed(noise_step: int, progress: float, decay_coef: float, decay_sig_mid: float) -> int:
    """The noise step when ``progress``, a share of the training, is done."""
    return int(noise_step * (1 - 1 / (1 + math.exp(-decay_coef * (progress - decay_sig_mid)))))
