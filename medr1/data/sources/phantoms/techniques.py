"""Acquisition techniques of the phantoms: four colour maps for each modality."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medr1.domain.records import Modality

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Technique:
    """RGB colours at tissue values 0, 0.5 and 1, and of a finding's body and core."""

    low: tuple[float, float, float]
    middle: tuple[float, float, float]
    high: tuple[float, float, float]
    body: tuple[float, float, float]
    core: tuple[float, float, float]

    def colour(self, grey: Array) -> Array:
        """Maps tissue values [S, S] to colours [S, S, 3]."""
        stops = zip(self.low, self.middle, self.high, strict=True)
        # Whole colour planes in memory: later steps are then faster than with the three colours of each pixel.
        return np.moveaxis(np.stack([np.interp(grey, [0.0, 0.5, 1.0], values) for values in stops]), 0, -1)


def _grey(low: float, middle: float, high: float, body: float, core: float) -> Technique:
    return Technique((low,) * 3, (middle,) * 3, (high,) * 3, (body,) * 3, (core,) * 3)


TECHNIQUES: dict[Modality, dict[str, Technique]] = {
    Modality.CT: {
        "native": _grey(0.0, 0.36, 0.85, 0.95, 0.05),
        # Air is grey, so that a scanner of low contrast does not make it look like native.
        "contrast": _grey(0.18, 0.78, 0.95, 1.0, 0.08),
        "angiography": _grey(0.0, 0.15, 1.0, 0.9, 0.0),
        "spectral": Technique((0, 0, 0.1), (0.3, 0.35, 0.6), (0.7, 0.8, 1), (1, 1, 1), (0, 0, 0.15)),
    },
    Modality.MRI: {
        "STIR": _grey(0.02, 0.35, 0.7, 0.95, 0.0),
        "perfusion": Technique((0, 0, 0.25), (0.1, 0.5, 0.6), (0.75, 0.9, 0.35), (1, 1, 0.85), (0, 0, 0.15)),
        # Fluid and fat are dark, unlike in STIR: brightness alone would not survive the contrast of every scanner.
        "FLAIR": _grey(0.02, 0.5, 0.03, 0.95, 0.0),
        "diffusion": Technique((0.05, 0, 0.1), (0.5, 0.1, 0.35), (0.95, 0.6, 0.2), (1, 1, 0.8), (0.05, 0, 0.2)),
    },
    Modality.XRAY: {
        "digital": _grey(0.03, 0.45, 0.9, 1.0, 0.0),
        "fluoroscopy": _grey(0.95, 0.55, 0.15, 0.0, 1.0),
        "analog": Technique((0.0, 0.02, 0.1), (0.2, 0.4, 0.6), (0.7, 0.9, 1), (0.95, 1, 1), (0, 0, 0.1)),
        "subtraction": _grey(0.32, 0.48, 0.66, 0.98, 0.05),
    },
    Modality.US: {
        "greyscale": _grey(0.02, 0.4, 0.9, 0.95, 0.0),
        "Doppler": Technique((0.0, 0.0, 0.35), (0.35, 0.35, 0.4), (0.95, 0.25, 0.1), (1, 0.95, 0.6), (0, 0, 0.2)),
        "elastography": Technique((0.1, 0.1, 0.7), (0.15, 0.7, 0.3), (0.9, 0.8, 0.1), (0.9, 0.1, 0.05), (0.05, 0, 0.3)),
        "harmonic": Technique((0.1, 0.05, 0), (0.45, 0.32, 0.15), (1, 0.85, 0.55), (1, 0.95, 0.8), (0.05, 0, 0)),
    },
    Modality.DER: {
        "polarized": Technique(
            (0.25, 0.14, 0.1), (0.75, 0.5, 0.42), (0.98, 0.82, 0.74), (0.4, 0.2, 0.12), (0.95, 0.85, 0.7)
        ),
        "unpolarized": Technique((0.4, 0.3, 0.28), (0.8, 0.7, 0.66), (0.99, 0.95, 0.93), (0.5, 0.3, 0.25), (1, 1, 1)),
        "ultraviolet": Technique(
            (0.1, 0.05, 0.2), (0.42, 0.32, 0.75), (0.7, 0.62, 1), (0.12, 0.05, 0.25), (0.9, 0.85, 1)
        ),
        "immersion": Technique(
            (0.2, 0.05, 0.05), (0.7, 0.3, 0.28), (0.92, 0.5, 0.45), (0.28, 0.05, 0.08), (1, 0.75, 0.6)
        ),
    },
    Modality.FP: {
        "colour": Technique((0.3, 0.04, 0.0), (0.85, 0.35, 0.12), (1, 0.9, 0.5), (1, 0.95, 0.55), (0.3, 0, 0)),
        "monochrome": Technique((0.02, 0.12, 0.02), (0.2, 0.5, 0.2), (0.7, 1, 0.7), (0.9, 1, 0.8), (0, 0.1, 0)),
        "autofluorescence": _grey(0.05, 0.5, 0.1, 1.0, 0.0),
        "angiography": Technique((0.95, 0.95, 0.7), (0.22, 0.25, 0.12), (0.1, 0.12, 0), (1, 1, 0.75), (0, 0.05, 0)),
    },
    Modality.OCT: {
        "spectral": _grey(0.0, 0.4, 0.95, 1.0, 0.0),
        "temporal": _grey(1.0, 0.6, 0.1, 0.0, 1.0),
        "polarization": Technique((0, 0, 0.35), (0.1, 0.75, 0.4), (1, 0.3, 0.05), (1, 1, 0.9), (0, 0, 0.3)),
        "swept": Technique((0.1, 0.06, 0), (0.5, 0.38, 0.2), (0.98, 0.85, 0.6), (1, 0.98, 0.85), (0.05, 0, 0)),
    },
    Modality.MICRO: {
        "eosin": Technique((0.97, 0.9, 0.94), (0.9, 0.55, 0.75), (0.4, 0.12, 0.5), (0.3, 0.05, 0.4), (1, 0.95, 1)),
        "Giemsa": Technique((0.9, 0.92, 0.98), (0.5, 0.6, 0.9), (0.12, 0.15, 0.6), (0.05, 0.05, 0.45), (1, 1, 1)),
        "fluorescence": Technique((0, 0.04, 0.02), (0.05, 0.5, 0.15), (0.4, 1, 0.4), (0.95, 1, 0.6), (0, 0.05, 0)),
        "phase": _grey(0.3, 0.55, 0.85, 1.0, 0.05),
    },
}
