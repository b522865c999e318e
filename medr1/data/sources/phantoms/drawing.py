"""Draws the phantoms: made images that look like their modality and whose every attribute is known.

All drawing happens on [S, S] or [S, S, 3] float arrays in [0, 1], in coordinates u (left to right) and v (top to
bottom) from -1 to 1, so one phantom can be drawn at any size. The order is that of real imaging: anatomy, the finding
in it, the acquisition technique, and last the scanner, which changes texture and contrast and never the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medr1.data.sources.phantoms.techniques import TECHNIQUES
from medr1.domain.records import Modality

Array = NDArray[np.float64]

# Each value is one word, so that a narrow model can match an option to what it sees by one token.
FINDINGS = ("nodule", "cyst", "calcification", "fissure")
GRADES = ("mild", "moderate", "severe")
LOCATIONS = ("top", "bottom", "left", "right")
# The last scanner is held out: no training image is ever taken with it.
SCANNERS = ("A", "B", "C", "D", "E")
_CENTRE = {"top": (0.0, -0.45), "bottom": (0.0, 0.45), "left": (-0.45, 0.0), "right": (0.45, 0.0)}
_RADIUS = {"mild": 0.12, "moderate": 0.2, "severe": 0.3}  # of the half width


@dataclass(frozen=True, slots=True)
class Canvas:
    """The pixel grid, the width of a soft edge, and the randomness of one phantom."""

    size: int
    u: Array
    v: Array
    edge: float
    rng: np.random.Generator

    @classmethod
    def blank(cls, size: int, rng: np.random.Generator) -> Canvas:
        axis = (np.arange(size) + 0.5) / size * 2 - 1
        v, u = np.meshgrid(axis, axis, indexing="ij")
        return cls(size, u, v, 3.0 / size, rng)

    def inside(self, distance: Array) -> Array:
        """Soft mask of the region where the signed distance is negative."""
        return np.clip(0.5 - distance / self.edge, 0.0, 1.0)

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> Array:
        radius = np.sqrt(((self.u - x) / rx) ** 2 + ((self.v - y) / ry) ** 2)
        return self.inside((radius - 1) * min(rx, ry))

    def ring(self, x: float, y: float, rx: float, ry: float, width: float) -> Array:
        return self.ellipse(x, y, rx, ry) * (1 - self.ellipse(x, y, rx - width, ry - width))

    def box(self, x: float, y: float, rx: float, ry: float) -> Array:
        return self.inside(np.maximum(np.abs(self.u - x) - rx, np.abs(self.v - y) - ry))

    def line(self, x0: float, y0: float, x1: float, y1: float, width: float) -> Array:
        """A stroke from one point to the other, ``width`` being half its thickness."""
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((self.u - x0) * dx + (self.v - y0) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
        return self.inside(np.hypot(self.u - x0 - along * dx, self.v - y0 - along * dy) - width)

    def clouds(self, cells: int) -> Array:
        """Smooth noise in [-1, 1] with about ``cells`` bumps across the picture."""
        coarse = Image.fromarray(self.rng.uniform(-1, 1, (cells, cells)).astype(np.float32), mode="F")
        return np.asarray(coarse.resize((self.size, self.size), Image.Resampling.BICUBIC), dtype=np.float64)

    def grain(self) -> Array:
        """Fine noise of unit variance, drawn on a fixed grid so that it does not depend on the size."""
        fine = Image.fromarray(self.rng.standard_normal((96, 96)).astype(np.float32), mode="F")
        return np.asarray(fine.resize((self.size, self.size), Image.Resampling.BILINEAR), dtype=np.float64)


def _paint(base: Array, mask: Array, value: float) -> Array:
    return base * (1 - mask) + value * mask


def _ct(c: Canvas, anatomy: str) -> Array:
    if anatomy == "brain":
        g = _paint(np.zeros_like(c.u), c.ellipse(0, 0, 0.78, 0.92), 1.0)
        g = _paint(g, c.ellipse(0, 0, 0.68, 0.82), 0.5)
        g = _paint(g, c.ellipse(-0.12, -0.05, 0.07, 0.3), 0.2)
        return _paint(g, c.ellipse(0.12, -0.05, 0.07, 0.3), 0.2)
    g = _paint(np.zeros_like(c.u), c.ellipse(0, 0, 0.95, 0.76), 0.45)
    if anatomy == "chest":
        for x in (-0.45, 0.45):
            g = _paint(g, c.ellipse(x, -0.05, 0.36, 0.55), 0.1)
        g = _paint(g, c.ellipse(0.08, -0.1, 0.2, 0.28), 0.6)
        return _paint(g, c.ellipse(0, 0.55, 0.13, 0.13), 1.0)
    if anatomy == "abdomen":
        g = _paint(g, c.ellipse(-0.42, -0.12, 0.42, 0.45), 0.62)
        for x in (-0.4, 0.4):
            g = _paint(g, c.ellipse(x, 0.42, 0.15, 0.2), 0.72)
        return _paint(g, c.ellipse(0, 0.5, 0.14, 0.14), 1.0)
    for x in (-0.58, 0.58):  # pelvis
        g = _paint(g, c.ring(x, 0.0, 0.27, 0.5, 0.1), 1.0)
    return _paint(g, c.ellipse(0, -0.05, 0.25, 0.3), 0.25)


def _mri(c: Canvas, anatomy: str) -> Array:
    if anatomy == "brain":
        g = _paint(np.zeros_like(c.u), c.ellipse(0, 0, 0.78, 0.92), 0.85)
        g = _paint(g, c.ellipse(0, 0, 0.72, 0.86), 0.08)
        folds = 0.5 + 0.12 * np.sin(9 * np.arctan2(c.v, c.u)) + 0.06 * c.clouds(12)
        brain = c.ellipse(0, 0, 0.66, 0.8)
        g = g * (1 - brain) + folds * brain
        return _paint(g, c.line(0, -0.75, 0, 0.75, 0.02), 0.15)
    if anatomy == "knee":
        g = _paint(np.zeros_like(c.u), c.box(0, 0, 0.62, 0.97), 0.3)
        g = _paint(g, c.box(0, -0.6, 0.36, 0.52) + c.ellipse(0, -0.2, 0.52, 0.22), 0.75)
        g = _paint(g, np.minimum(c.box(0, 0.62, 0.36, 0.5) + c.ellipse(0, 0.28, 0.52, 0.2), 1), 0.75)
        return _paint(g, c.box(0, 0.04, 0.52, 0.05), 0.05)
    if anatomy == "spine":
        g = _paint(np.zeros_like(c.u), c.box(0, 0, 0.9, 1.0), 0.28)
        for y in np.linspace(-0.9, 0.9, 6):
            g = _paint(g, c.box(-0.1 + 0.1 * float(y) ** 2, float(y), 0.2, 0.12), 0.75)
        return _paint(g, c.box(0.24, 0, 0.06, 1.0), 0.95)
    g = _paint(np.zeros_like(c.u), c.ellipse(0, 0, 0.95, 0.85), 0.3)  # heart
    g = _paint(g, c.ellipse(0.12, 0.05, 0.5, 0.5), 0.5)
    g = _paint(g, c.ellipse(0.16, 0.05, 0.3, 0.3), 0.9)
    return _paint(g, c.ellipse(-0.42, 0.0, 0.2, 0.38), 0.85)


def _xray(c: Canvas, anatomy: str) -> Array:
    if anatomy == "chest":
        g = np.full_like(c.u, 0.62)
        for x in (-0.42, 0.42):
            g = _paint(g, c.ellipse(x, -0.02, 0.34, 0.72), 0.18)
        ribs = c.inside(0.5 - np.abs(np.sin(7 * (c.v + 0.35 * c.u**2)))) * 0.16
        g = g + ribs * c.box(0, -0.05, 0.85, 0.75)
        return _paint(g, c.ellipse(0.12, 0.3, 0.28, 0.38), 0.72)
    if anatomy == "hand":
        g = _paint(np.full_like(c.u, 0.04), c.ellipse(0, 0.5, 0.5, 0.48), 0.35)
        for x, tip in zip((-0.72, -0.36, 0.0, 0.36, 0.7), (-0.15, -0.75, -0.9, -0.78, -0.3), strict=True):
            g = _paint(g, c.line(0.55 * x, 0.6, x, tip, 0.13), 0.35)
            g = _paint(g, c.line(0.55 * x, 0.6, x, tip + 0.03, 0.06), 0.85)
        return g
    if anatomy == "pelvis":
        g = np.full_like(c.u, 0.3)
        g = _paint(g, c.ring(0, 0.0, 0.8, 0.62, 0.24), 0.8)
        for x in (-0.7, 0.7):
            g = _paint(g, c.ellipse(x, 0.5, 0.2, 0.2), 0.95)
            g = _paint(g, c.line(x, 0.55, 1.15 * x, 1.0, 0.13), 0.85)
        return g
    g = np.full_like(c.u, 0.25)  # spine
    for y in np.linspace(-0.85, 0.85, 6):
        g = _paint(g, c.box(0, float(y), 0.24, 0.12), 0.85)
        g = _paint(g, c.box(0, float(y), 0.42, 0.03), 0.75)
    return g


def _us(c: Canvas, anatomy: str) -> Array:
    if anatomy == "liver":
        g = np.full_like(c.u, 0.42)
        g = _paint(g, c.inside(np.abs(np.hypot(c.u, c.v + 1.1) - 1.85) - 0.05), 0.95)
        return _paint(g, c.line(-0.2, 0.1, 0.25, 0.2, 0.06), 0.08)
    if anatomy == "thyroid":
        g = np.full_like(c.u, 0.3)
        for x in (-0.45, 0.45):
            g = _paint(g, c.ellipse(x, 0.0, 0.33, 0.42), 0.6)
        return _paint(g, c.ellipse(0, 0.15, 0.17, 0.3), 0.05)
    if anatomy == "kidney":
        g = np.full_like(c.u, 0.4)
        g = _paint(g, c.ellipse(0, 0.05, 0.75, 0.5), 0.2)
        return _paint(g, c.ellipse(0, 0.05, 0.42, 0.2), 0.85)
    layers = 0.35 + 0.22 * np.sign(np.sin(9 * c.v + 0.6 * c.clouds(4)))  # breast
    return np.asarray(layers, dtype=np.float64)


def _der(c: Canvas, anatomy: str) -> Array:
    g = 0.72 + 0.05 * c.clouds(5)
    if anatomy == "face":
        for x, y in c.rng.uniform(-1, 1, (60, 2)):
            g = _paint(g, c.ellipse(float(x), float(y), 0.045, 0.045), 0.5)
        return g
    if anatomy == "palm":
        return g + 0.14 * np.sin(26 * (c.v + 0.3 * c.u + 0.06 * c.clouds(4)))
    count, width = (34, 0.018) if anatomy == "scalp" else (4, 0.018)
    for x, y, lean in c.rng.uniform(-1, 1, (count, 3)):
        g = _paint(g, c.line(float(x), float(y) - 0.5, float(x + 0.4 * lean), float(y) + 0.5, width), 0.2)
    return g


def _fp(c: Canvas, anatomy: str) -> Array:
    g = 0.5 + 0.06 * c.clouds(4)
    if anatomy == "periphery":
        for y in np.linspace(-1.2, 1.2, 8):
            g = _paint(g, c.line(-1.1, 0.25 * float(y), 1.1, float(y), 0.03), 0.25)
        return g
    x = {"macula": 0.72, "disc": 0.0, "arcade": -0.72}[anatomy]
    for bend in (-1, 1):
        g = _paint(g, c.inside(np.abs(c.v - bend * 0.75 * np.sqrt(np.abs(c.u - x) + 1e-6)) - 0.045), 0.22)
        g = _paint(g, c.inside(np.abs(c.v - bend * 0.3 * np.sqrt(np.abs(c.u - x) + 1e-6)) - 0.025), 0.28)
    if anatomy == "macula":
        g = _paint(g, c.ellipse(0, 0, 0.24, 0.24), 0.28)
    disc = 0.3 if anatomy == "disc" else 0.2
    return _paint(g, c.ellipse(x, 0, disc, disc), 0.98)


def _oct(c: Canvas, anatomy: str) -> Array:
    if anatomy == "cornea":
        depth = np.hypot(c.u * 0.9, c.v - 1.0) - 1.2
        wall = c.inside(np.abs(depth) - 0.2)
        return 0.06 + 0.75 * wall
    dip = {"fovea": 0.45, "nerve": 1.5, "retina": 0.0}[anatomy]
    width = 0.05 if anatomy == "fovea" else 0.03
    top = -0.68 + dip * np.exp(-(c.u**2) / width)
    depth = (c.v - top) / np.maximum(0.72 - top, 0.05)
    bands = 0.5 + 0.3 * np.sin(15 * depth)
    return np.where((depth > 0) & (depth < 1), np.clip(bands, 0.1, 1), 0.05)


def _micro(c: Canvas, anatomy: str) -> Array:
    if anatomy == "blood":
        g = np.full_like(c.u, 0.1)
        for i in range(5):
            for j in range(5):
                x, y = (i - 2 + 0.5 * (j % 2)) * 0.44, (j - 2) * 0.42
                x, y = x + float(c.rng.uniform(-0.06, 0.06)), y + float(c.rng.uniform(-0.06, 0.06))
                g = _paint(g, c.ellipse(x, y, 0.17, 0.17), 0.55)
                g = _paint(g, c.ellipse(x, y, 0.07, 0.07), 0.25)
        return g
    if anatomy == "muscle":
        return 0.45 + 0.25 * np.sin(13 * (c.u + 0.35 * c.v) + 0.8 * c.clouds(3))
    if anatomy == "fat":
        g = np.full_like(c.u, 0.75)
        for i in range(3):
            for j in range(3):
                x, y = (i - 1 + 0.3 * (j % 2)) * 0.7, (j - 1) * 0.68
                g = _paint(g, c.ellipse(x, y, 0.3, 0.29), 0.05)
        return g
    points = c.rng.uniform(-1.1, 1.1, (40, 2))  # epithelium: cells with nuclei
    distance = np.hypot(c.u[..., None] - points[:, 0], c.v[..., None] - points[:, 1])
    nearest = np.sort(distance, axis=-1)[..., :2]
    g = _paint(np.full_like(c.u, 0.4), c.inside(nearest[..., 1] - nearest[..., 0] - 0.04), 0.65)
    return _paint(g, c.inside(nearest[..., 0] - 0.07), 0.9)


ANATOMIES: dict[Modality, tuple[str, ...]] = {
    Modality.CT: ("brain", "chest", "abdomen", "pelvis"),
    Modality.MRI: ("brain", "knee", "spine", "heart"),
    Modality.XRAY: ("chest", "hand", "pelvis", "spine"),
    Modality.US: ("liver", "thyroid", "kidney", "breast"),
    Modality.DER: ("face", "palm", "scalp", "back"),
    Modality.FP: ("macula", "disc", "arcade", "periphery"),
    Modality.OCT: ("fovea", "nerve", "retina", "cornea"),
    Modality.MICRO: ("blood", "muscle", "fat", "epithelium"),
}
_DRAW: dict[Modality, Callable[[Canvas, str], Array]] = {
    Modality.CT: _ct,
    Modality.MRI: _mri,
    Modality.XRAY: _xray,
    Modality.US: _us,
    Modality.DER: _der,
    Modality.FP: _fp,
    Modality.OCT: _oct,
    Modality.MICRO: _micro,
}


def _field(c: Canvas, modality: Modality) -> Array:
    """What the device sees: the fan of an ultrasound probe, the disc of a fundus camera, everything otherwise."""
    if modality is Modality.US:
        angle = np.abs(np.arctan2(c.u, c.v + 1.9))
        return c.inside(
            np.maximum(angle - 0.62, np.maximum(np.hypot(c.u, c.v + 1.9) - 2.85, 1.02 - np.hypot(c.u, c.v + 1.9)))
        )
    if modality is Modality.FP:
        return c.ellipse(0, 0, 0.97, 0.97)
    return np.ones_like(c.u)


def _finding(c: Canvas, finding: str, grade: str, location: str) -> tuple[Array, Array]:
    """Soft masks of the finding's body and of its core."""
    x, y = _CENTRE[location]
    x, y = x + float(c.rng.uniform(-0.06, 0.06)), y + float(c.rng.uniform(-0.06, 0.06))
    r = _RADIUS[grade] * float(c.rng.uniform(0.95, 1.05))
    nothing = np.zeros_like(c.u)
    if finding == "nodule":
        return c.ellipse(x, y, r, r), nothing
    if finding == "cyst":
        return c.ellipse(x, y, r, r), c.ellipse(x, y, 0.62 * r, 0.62 * r)
    if finding == "calcification":
        body = nothing
        for k in range(6):
            dx, dy = 0.8 * r * np.cos(k * np.pi / 3), 0.8 * r * np.sin(k * np.pi / 3)
            body = np.maximum(body, c.ellipse(x + dx, y + dy, 0.27 * r + 0.01, 0.27 * r + 0.01))
        return body, c.ellipse(x, y, 0.4 * r, 0.4 * r)
    lean = float(c.rng.choice([-1.0, 1.0])) * 0.8  # fissure: a dark crack between bright lips
    ends = (x - 1.2 * r, y - 1.2 * r * lean, x + 1.2 * r, y + 1.2 * r * lean)
    return c.line(*ends, 0.035 + 0.3 * r), c.line(*ends, 0.02 + 0.13 * r)


def _scan(c: Canvas, picture: Array, scanner: str) -> Array:
    """What the scanner adds: noise, lines, shading, and a contrast curve of its own."""
    noise = 0.03 * c.grain()
    if scanner == "A":
        out = picture
    elif scanner == "B":
        out = picture * 0.9 + 0.07 * np.sign(np.sin(40 * c.v))[..., None]
    elif scanner == "C":
        out = np.clip(picture, 0, 1) ** 1.35 * (1.08 - 0.3 * (c.u**2 + c.v**2))[..., None]
    elif scanner == "D":
        out = np.clip(picture, 0, 1) ** 0.75 + 0.07 * np.sin(28 * (c.u + c.v))[..., None]
    else:  # the held-out one
        out = 0.08 + 0.82 * picture + 0.06 * np.sin(36 * c.u)[..., None]
        noise = 0.05 * c.grain()
    return np.clip(out + noise[..., None], 0, 1)


def draw(
    size: int,
    seed: tuple[int, ...],
    *,
    modality: Modality,
    anatomy: str,
    technique: str,
    finding: str,
    grade: str,
    location: str,
    scanner: str,
) -> Image.Image:
    """One phantom as an RGB picture of ``size`` x ``size`` pixels; the same arguments give the same pixels."""
    canvas = Canvas.blank(size, np.random.default_rng(seed))
    style = TECHNIQUES[modality][technique]
    body, core = _finding(canvas, finding, grade, location)
    tissue = _DRAW[modality](canvas, anatomy) * float(canvas.rng.uniform(0.92, 1.08)) + 0.04 * canvas.clouds(7)
    if modality is Modality.US:  # speckle multiplies
        tissue = tissue * (1 + 0.35 * canvas.grain())
    picture = style.colour(tissue)
    for mask, colour in ((body, style.body), (core, style.core)):
        picture = picture * (1 - mask[..., None]) + np.array(colour) * mask[..., None]
    picture = picture * _field(canvas, modality)[..., None]
    return Image.fromarray((_scan(canvas, picture, scanner) * 255).round().astype(np.uint8), mode="RGB")
