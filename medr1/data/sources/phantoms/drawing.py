"""Draws phantoms: the anatomy, the finding in it, the colours of the acquisition technique, and last the scanner.

Images are float arrays [S, S] or [S, S, 3] in [0, 1], drawn in coordinates u (left to right) and v (top to bottom) from
-1 to 1, so that a phantom can be drawn at any size S. Position, size, tilt and outlines vary between images of the
same attributes, and borders are soft, as partial volume makes them: a model has to learn what a value looks like, and
cannot remember the pixels of one template. The scanner changes texture and contrast, never an attribute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medr1.data.sources.phantoms.techniques import TECHNIQUES
from medr1.domain.records import Modality

if TYPE_CHECKING:
    from medr1.data.sources.phantoms.records import Phantom

Array = NDArray[np.float64]

# Each value is one word: the tiny model then has one token to match.
FINDINGS = ("nodule", "cyst", "calcification", "fissure")
GRADES = ("mild", "moderate", "severe")
LOCATIONS = ("top", "bottom", "left", "right")
# No training image comes from the last scanner.
SCANNERS = ("A", "B", "C", "D", "E")
_CENTRE = {"top": (0.0, -0.45), "bottom": (0.0, 0.45), "left": (-0.45, 0.0), "right": (0.45, 0.0)}
_RADIUS = {"mild": 0.12, "moderate": 0.2, "severe": 0.31}
# Width of a border, the same at every size: at 84 pixels, where the tiny model looks, two pixels.
_SOFTNESS = 0.05
# Strength of the tissue's grain relative to its brightness. Coherent waves (ultrasound, OCT) give speckle.
_SPECKLE = {Modality.US: 0.35, Modality.OCT: 0.2}
_GRAIN = 0.05


@dataclass(frozen=True, slots=True)
class Canvas:
    """The pixel grid of one phantom, the width of its soft edges, and its random generator."""

    size: int
    u: Array
    v: Array
    edge: float
    rng: np.random.Generator

    @classmethod
    def blank(cls, size: int, rng: np.random.Generator) -> Canvas:
        axis = (np.arange(size) + 0.5) / size * 2 - 1
        v, u = np.meshgrid(axis, axis, indexing="ij")
        return cls(size, u, v, max(3.0 / size, _SOFTNESS), rng)

    def softened(self, edge: float) -> Canvas:
        """The same canvas with borders of at least this width."""
        return replace(self, edge=max(self.edge, edge))

    def bent(self, cells: int, amount: float) -> Canvas:
        """The same canvas with smoothly displaced coordinates, so that straight and round borders become irregular."""
        return replace(self, u=self.u + amount * self.clouds(cells), v=self.v + amount * self.clouds(cells))

    def posed(self) -> Canvas:
        """The same canvas with coordinates of a body that lies a little differently in every image."""
        x, y, tilt = self.rng.uniform(-1, 1, 3) * (0.04, 0.04, 0.08)
        wide, high = self.rng.uniform(0.95, 1.07, 2)
        u, v = self.u - x, self.v - y
        u, v = np.cos(tilt) * u + np.sin(tilt) * v, np.cos(tilt) * v - np.sin(tilt) * u
        return replace(self, u=wide * u, v=high * v).bent(5, 0.022)

    def inside(self, distance: Array) -> Array:
        """Soft mask of the region with negative signed distance."""
        return np.clip(0.5 - distance / self.edge, 0.0, 1.0)

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> Array:
        radius = np.sqrt(((self.u - x) / rx) ** 2 + ((self.v - y) / ry) ** 2)
        return self.inside((radius - 1) * min(rx, ry))

    def ring(self, x: float, y: float, rx: float, ry: float, width: float) -> Array:
        return self.ellipse(x, y, rx, ry) * (1 - self.ellipse(x, y, rx - width, ry - width))

    def box(self, x: float, y: float, rx: float, ry: float) -> Array:
        return self.inside(np.maximum(np.abs(self.u - x) - rx, np.abs(self.v - y) - ry))

    def line(self, x0: float, y0: float, x1: float, y1: float, width: float) -> Array:
        """Line from one point to the other. ``width`` is half its thickness."""
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((self.u - x0) * dx + (self.v - y0) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
        return self.inside(np.hypot(self.u - x0 - along * dx, self.v - y0 - along * dy) - width)

    def paint(self, base: Array | float, *layers: tuple[Array, Array | float]) -> Array:
        """Paints layers of (mask, grey value) over ``base``, a grey image or a constant."""
        image = base if isinstance(base, np.ndarray) else np.full_like(self.u, base)
        for mask, value in layers:
            image = image * (1 - mask) + value * mask
        return image

    def clouds(self, cells: int) -> Array:
        """Smooth noise in [-1, 1] with about ``cells`` bumps across the image."""
        coarse = Image.fromarray(self.rng.uniform(-1, 1, (cells, cells)).astype(np.float32), mode="F")
        return np.asarray(coarse.resize((self.size, self.size), Image.Resampling.BICUBIC), dtype=np.float64)

    def grain(self) -> Array:
        """Fine noise of unit variance, drawn on a fixed grid to be independent of the image size."""
        fine = Image.fromarray(self.rng.standard_normal((96, 96)).astype(np.float32), mode="F")
        return np.asarray(fine.resize((self.size, self.size), Image.Resampling.BILINEAR), dtype=np.float64)


def _ct(c: Canvas, anatomy: str) -> Array:
    if anatomy == "brain":
        ventricles = [(c.ellipse(x, -0.05, 0.07, 0.3), 0.2) for x in (-0.12, 0.12)]
        return c.paint(0.0, (c.ellipse(0, 0, 0.78, 0.92), 1.0), (c.ellipse(0, 0, 0.68, 0.82), 0.5), *ventricles)
    body = c.paint(0.0, (c.ellipse(0, 0, 0.95, 0.76), 0.45))
    if anatomy == "chest":
        lungs = [(c.ellipse(x, -0.05, 0.36, 0.55), 0.1) for x in (-0.45, 0.45)]
        return c.paint(body, *lungs, (c.ellipse(0.08, -0.1, 0.2, 0.28), 0.6), (c.ellipse(0, 0.55, 0.13, 0.13), 1.0))
    if anatomy == "abdomen":
        liver, spine = (c.ellipse(-0.42, -0.12, 0.42, 0.45), 0.62), (c.ellipse(0, 0.5, 0.14, 0.14), 1.0)
        return c.paint(body, liver, *[(c.ellipse(x, 0.42, 0.15, 0.2), 0.72) for x in (-0.4, 0.4)], spine)
    hips = [(c.ring(x, 0.0, 0.27, 0.5, 0.1), 1.0) for x in (-0.58, 0.58)]  # pelvis
    return c.paint(body, *hips, (c.ellipse(0, -0.05, 0.25, 0.3), 0.25))


def _mri(c: Canvas, anatomy: str) -> Array:
    if anatomy == "brain":
        skull = c.paint(0.0, (c.ellipse(0, 0, 0.78, 0.92), 0.85), (c.ellipse(0, 0, 0.72, 0.86), 0.08))
        folds = 0.5 + 0.15 * np.sin(8 * c.clouds(8))
        return c.paint(skull, (c.ellipse(0, 0, 0.66, 0.8), folds), (c.line(0, -0.75, 0, 0.75, 0.02), 0.15))
    if anatomy == "knee":
        femur = np.minimum(c.box(0, -0.6, 0.36, 0.52) + c.ellipse(0, -0.2, 0.52, 0.22), 1)
        tibia = np.minimum(c.box(0, 0.62, 0.36, 0.5) + c.ellipse(0, 0.28, 0.52, 0.2), 1)
        leg = (c.box(0, 0, 0.62, 1.1), 0.38)
        return c.paint(0.0, leg, (femur, 0.75), (tibia, 0.75), (c.box(0, 0.04, 0.52, 0.05), 0.05))
    if anatomy == "spine":
        levels = [float(y) for y in np.linspace(-0.9, 0.9, 6)]
        vertebrae = [(c.box(-0.1 + 0.1 * y**2, y, 0.2, 0.12), 0.75) for y in levels]
        return c.paint(0.0, (c.box(0, 0, 0.9, 1.0), 0.28), *vertebrae, (c.box(0.24, 0, 0.06, 1.0), 0.95))
    chest, muscle = (c.ellipse(0, 0, 0.95, 0.85), 0.3), (c.ellipse(0.12, 0.05, 0.5, 0.5), 0.5)  # heart
    return c.paint(0.0, chest, muscle, (c.ellipse(0.16, 0.05, 0.3, 0.3), 0.9), (c.ellipse(-0.42, 0.0, 0.2, 0.38), 0.85))


def _xray(c: Canvas, anatomy: str) -> Array:
    if anatomy == "chest":
        g = c.paint(0.62, *[(c.ellipse(x, -0.02, 0.34, 0.72), 0.18) for x in (-0.42, 0.42)])
        ribs = c.inside(0.5 - np.abs(np.sin(7 * (c.v + 0.35 * c.u**2)))) * 0.16
        cage = c.softened(0.3).ellipse(0, -0.02, 0.9, 0.85)
        return c.paint(g + ribs * cage, (c.ellipse(0.12, 0.3, 0.28, 0.38), 0.72))
    if anatomy == "hand":
        g = c.paint(0.04, (c.ellipse(0, 0.5, 0.5, 0.48), 0.35))
        for x, tip in zip((-0.72, -0.36, 0.0, 0.36, 0.7), (-0.15, -0.75, -0.9, -0.78, -0.3), strict=True):
            finger, bone = c.line(0.55 * x, 0.6, x, tip, 0.13), c.line(0.55 * x, 0.6, x, tip + 0.03, 0.06)
            g = c.paint(g, (finger, 0.35), (bone, 0.85))
        return g
    if anatomy == "pelvis":
        g = c.paint(0.3, (c.ring(0, 0.0, 0.8, 0.62, 0.24), 0.8))
        for x in (-0.7, 0.7):
            g = c.paint(g, (c.ellipse(x, 0.5, 0.2, 0.2), 0.95), (c.line(x, 0.55, 1.15 * x, 1.0, 0.13), 0.85))
        return g
    g = c.paint(0.25)  # spine
    for y in np.linspace(-0.85, 0.85, 6):
        g = c.paint(g, (c.box(0, float(y), 0.24, 0.12), 0.85), (c.box(0, float(y), 0.42, 0.03), 0.75))
    return g


def _us(c: Canvas, anatomy: str) -> Array:
    if anatomy == "liver":
        diaphragm = c.inside(np.abs(np.hypot(c.u, c.v + 1.1) - 1.85) - 0.05)
        return c.paint(0.42, (diaphragm, 0.95), (c.line(-0.2, 0.1, 0.25, 0.2, 0.06), 0.08))
    if anatomy == "thyroid":
        lobes = [(c.ellipse(x, 0.0, 0.33, 0.42), 0.6) for x in (-0.45, 0.45)]
        return c.paint(0.3, *lobes, (c.ellipse(0, 0.15, 0.17, 0.3), 0.05))
    if anatomy == "kidney":
        return c.paint(0.4, (c.ellipse(0, 0.05, 0.75, 0.5), 0.2), (c.ellipse(0, 0.05, 0.42, 0.2), 0.85))
    layers = np.sin(9 * c.v + 0.6 * c.clouds(4))  # breast: fat and glands
    return np.asarray(0.35 + 0.22 * np.tanh(4 * layers), dtype=np.float64)


def _der(c: Canvas, anatomy: str) -> Array:
    skin = 0.72 + 0.05 * c.clouds(5)
    if anatomy == "face":
        pores = [(c.ellipse(float(x), float(y), 0.05, 0.05), 0.42) for x, y in c.rng.uniform(-1, 1, (60, 2))]
        return c.paint(skin, *pores)
    if anatomy == "palm":
        # Ridges in arches, which no scanner has.
        return skin - 0.03 + 0.19 * np.sin(24 * (np.hypot(c.u - 0.3, 0.8 * c.v - 1.0) + 0.05 * c.clouds(4)))
    hairs = c.rng.uniform(-1, 1, (34 if anatomy == "scalp" else 4, 3)).tolist()
    return c.paint(skin, *[(c.line(x, y - 0.5, x + 0.4 * lean, y + 0.5, 0.018), 0.2) for x, y, lean in hairs])


def _fp(c: Canvas, anatomy: str) -> Array:
    g = 0.5 + 0.06 * c.clouds(4)
    if anatomy == "periphery":
        ends = [float(y) for y in np.linspace(-1.2, 1.2, 8)]
        return c.paint(g, *[(c.line(-1.1, 0.25 * y, 1.1, y, 0.03), 0.25) for y in ends])
    x = {"macula": 0.72, "disc": 0.0, "arcade": -0.72}[anatomy]
    arch = np.sqrt(np.abs(c.u - x) + 1e-6)
    for bend in (-1, 1):
        g = c.paint(g, (c.inside(np.abs(c.v - bend * 0.75 * arch) - 0.045), 0.22))
        g = c.paint(g, (c.inside(np.abs(c.v - bend * 0.3 * arch) - 0.025), 0.28))
    if anatomy == "macula":
        g = c.paint(g, (c.ellipse(0, 0, 0.24, 0.24), 0.28))
    disc = 0.3 if anatomy == "disc" else 0.2
    return c.paint(g, (c.ellipse(x, 0, disc, disc), 0.98))


def _oct(c: Canvas, anatomy: str) -> Array:
    if anatomy == "cornea":
        return 0.06 + 0.75 * c.inside(np.abs(np.hypot(c.u * 0.9, c.v - 1.0) - 1.2) - 0.2)
    dip = {"fovea": 0.45, "nerve": 1.5, "retina": 0.0}[anatomy]
    # The dip of the fovea is wider than a severe finding.
    width = 0.11 if anatomy == "fovea" else 0.035
    hollow = dip * np.exp(-(c.u**2) / width)
    top = -0.68 + hollow
    thickness = np.maximum(0.72 - top, 0.05)
    layers = np.clip(0.5 + 0.3 * np.sin(15 * (c.v - top) / thickness), 0.1, 1)
    above = (top - c.v) / np.hypot(1, 2 * c.u / width * hollow)  # the distance to a surface of this slope
    return c.paint(0.05, (c.inside(np.maximum(above, c.v - 0.72)), layers))


def _micro(c: Canvas, anatomy: str) -> Array:
    if anatomy == "blood":
        g = c.paint(0.1)
        for i in range(5):
            for j in range(5):
                x, y = (i - 2 + 0.5 * (j % 2)) * 0.44, (j - 2) * 0.42
                x, y = x + float(c.rng.uniform(-0.06, 0.06)), y + float(c.rng.uniform(-0.06, 0.06))
                g = c.paint(g, (c.ellipse(x, y, 0.17, 0.17), 0.55), (c.ellipse(x, y, 0.07, 0.07), 0.25))
        return g
    if anatomy == "muscle":
        return 0.45 + 0.25 * np.sin(13 * (c.u + 0.35 * c.v) + 0.8 * c.clouds(3))
    if anatomy == "fat":
        cells = [((i - 1 + 0.3 * (j % 2)) * 0.7, (j - 1) * 0.68) for i in range(3) for j in range(3)]
        return c.paint(0.75, *[(c.ellipse(x, y, 0.3, 0.29), 0.05) for x, y in cells])
    nuclei = c.rng.uniform(-1.1, 1.1, (40, 2))  # epithelium
    distance = np.hypot(c.u[..., None] - nuclei[:, 0], c.v[..., None] - nuclei[:, 1])
    first, second = np.moveaxis(np.partition(distance, 1, axis=-1)[..., :2], -1, 0)
    return c.paint(0.4, (c.inside(second - first - 0.04), 0.65), (c.inside(first - 0.07), 0.9))


_ANATOMY: dict[Modality, tuple[Callable[[Canvas, str], Array], tuple[str, ...]]] = {
    Modality.CT: (_ct, ("brain", "chest", "abdomen", "pelvis")),
    Modality.MRI: (_mri, ("brain", "knee", "spine", "heart")),
    Modality.XRAY: (_xray, ("chest", "hand", "pelvis", "spine")),
    Modality.US: (_us, ("liver", "thyroid", "kidney", "breast")),
    Modality.DER: (_der, ("face", "palm", "scalp", "back")),
    Modality.FP: (_fp, ("macula", "disc", "arcade", "periphery")),
    Modality.OCT: (_oct, ("fovea", "nerve", "retina", "cornea")),
    Modality.MICRO: (_micro, ("blood", "muscle", "fat", "epithelium")),
}
ANATOMIES = {modality: names for modality, (_, names) in _ANATOMY.items()}


def _field_of_view(c: Canvas, modality: Modality) -> Array:
    """Mask of the visible region: a fan for ultrasound, a disc for fundus photography, otherwise the whole image."""
    if modality is Modality.US:
        angle, radius = np.abs(np.arctan2(c.u, c.v + 1.9)), np.hypot(c.u, c.v + 1.9)
        return c.inside(np.maximum(angle - 0.62, np.maximum(radius - 2.85, 1.02 - radius)))
    if modality is Modality.FP:
        return c.ellipse(0, 0, 0.97, 0.97)
    return np.ones_like(c.u)


def _finding(c: Canvas, finding: str, grade: str, location: str) -> tuple[Array, Array, Array]:
    """Soft masks [S, S] of the finding's halo, body and core.

    Halo and core share a colour that contrasts with the body: the halo separates the body from tissue as bright as it.
    """
    x, y = np.array(_CENTRE[location]) + c.rng.uniform(-0.07, 0.07, 2)
    r = _RADIUS[grade] * float(c.rng.uniform(0.94, 1.06))
    c = c.bent(9, 0.022)
    nothing = np.zeros_like(c.u)
    if finding == "nodule":
        return *_nodule(c, x, y, r), nothing
    if finding == "cyst":
        return c.softened(0.12).ellipse(x, y, r + 0.05, r + 0.05), *_cyst(c, x, y, r)
    if finding == "calcification":
        return c.softened(0.15).ellipse(x, y, 1.2 * r + 0.04, 1.2 * r + 0.04), _specks(c, x, y, r), nothing
    # Fissure: a dark line between bright edges.
    angle = float(c.rng.choice([-1.0, 1.0])) * float(c.rng.uniform(0.6, 0.95))
    dx, dy = 1.65 * r * np.cos(angle), 1.65 * r * np.sin(angle)
    ends = (x - dx, y - dy, x + dx, y + dy)
    width = 0.035 + 0.28 * r
    return c.softened(0.12).line(*ends, width + 0.04), c.line(*ends, width), c.line(*ends, 0.015 + 0.14 * r)


def _nodule(c: Canvas, x: float, y: float, r: float) -> tuple[Array, Array]:
    """Halo and body of a solid mass with lobes and a blurred border."""
    du, dv = c.u - x, c.v - y
    angle, phases = np.arctan2(dv, du), c.rng.uniform(0, 2 * np.pi, 3)
    distance = np.hypot(du, dv) - r
    for lobes, phase in zip((2, 3, 7), phases, strict=True):
        distance -= 0.16 / lobes * r * np.cos(lobes * angle + phase)
    return c.softened(0.12).inside(distance - 0.06), c.softened(0.05 + 0.2 * r).inside(distance)


def _cyst(c: Canvas, x: float, y: float, r: float) -> tuple[Array, Array]:
    """Body and core of a cyst: a wall of uneven thickness and its content."""
    flat = float(c.rng.uniform(0.92, 1.08))
    dx, dy = c.rng.uniform(-0.06, 0.06, 2) * r
    return c.ellipse(x, y, r * flat, r / flat), c.ellipse(x + dx, y + dy, 0.66 * r * flat, 0.66 * r / flat)


def _specks(c: Canvas, x: float, y: float, r: float) -> Array:
    """A cluster of uneven specks. In a mild one, more than five could not be told apart at 84 pixels."""
    body, turn = np.zeros_like(c.u), float(c.rng.uniform(0, 2 * np.pi))
    places = [(0.4 * k, 0.92, 0.26) for k in range(5)]
    if r > 0.15:
        places += [(0.2 + 0.667 * k, 0.36, 0.16) for k in range(3)]
    uneven = c.rng.uniform(-1, 1, (len(places), 4)).tolist()
    for (angle, far, size), (ahead, out, wide, high) in zip(places, uneven, strict=True):
        angle, far = turn + np.pi * (angle + 0.06 * ahead), (far + 0.12 * out) * r
        rx, ry = (0.012 + size * (1 + 0.2 * way) * r for way in (wide, high))
        body = np.maximum(body, c.ellipse(x + far * np.cos(angle), y + far * np.sin(angle), rx, ry))
    return body


def _scan(c: Canvas, image: Array, scanner: str) -> Array:
    """Adds the scanner's noise, lines and shading, and applies its contrast curve."""
    noise = 0.03 * c.grain()
    if scanner == "A":
        out = image
    elif scanner == "B":
        out = image * 0.9 + 0.07 * np.sign(np.sin(40 * c.v))[..., None]
    elif scanner == "C":
        out = np.clip(image, 0, 1) ** 1.35 * (1.08 - 0.3 * (c.u**2 + c.v**2))[..., None]
    elif scanner == "D":
        out = np.clip(image, 0, 1) ** 0.75 + 0.07 * np.sin(28 * (c.u + c.v))[..., None]
    else:  # E, held out from training
        out = 0.08 + 0.82 * image + 0.06 * np.sin(36 * c.u)[..., None]
        noise = 0.05 * c.grain()
    return np.clip(out + noise[..., None], 0, 1)


def _tissue(c: Canvas, modality: Modality, anatomy: str, grain: Array) -> Array:
    """Grey values of the anatomy with the uneven brightness and the grain of the acquisition."""
    tissue = _ANATOMY[modality][0](c.posed(), anatomy) * (float(c.rng.uniform(0.92, 1.08)) + 0.08 * c.clouds(3))
    return (tissue + 0.05 * c.clouds(8)) * (1 + _SPECKLE.get(modality, _GRAIN) * grain)


def draw(size: int, seed: tuple[int, ...], phantom: Phantom) -> Image.Image:
    """Draws a phantom in RGB, ``size`` x ``size`` pixels. The same arguments give the same pixels."""
    canvas = Canvas.blank(size, np.random.default_rng(seed))
    style = TECHNIQUES[phantom.modality][phantom.technique]
    halo, body, core = _finding(canvas, phantom.finding, phantom.grade, phantom.location)
    grain = canvas.grain()
    image = style.colour(_tissue(canvas, phantom.modality, phantom.anatomy, grain))
    uneven = np.clip(0.92 + (0.04 + 0.3 * _SPECKLE.get(phantom.modality, 0)) * grain, 0, 1)
    for mask, colour in ((0.5 * halo, style.core), (body * uneven, style.body), (core * uneven, style.core)):
        image += (np.array(colour) - image) * mask[..., None]
    image *= _field_of_view(canvas, phantom.modality)[..., None]
    return Image.fromarray((_scan(canvas, image, phantom.scanner) * 255).round().astype(np.uint8), mode="RGB")
