"""Pictures from DICOM files, as a viewer shows them. Needs the extra ``[dicom]`` (pydicom), imported only when used."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medr1.errors import DataError

Grey = NDArray[np.float64]

_SUFFIXES = (".dcm", ".dicom")
# What pydicom and its decoders raise on damaged or unsupported pixel data.
_DECODER_ERRORS = (OSError, ValueError, AttributeError, KeyError, RuntimeError, NotImplementedError, struct.error)


def is_dicom(path: Path) -> bool:
    """By its mark behind a preamble of 128 bytes; by its name where it has none."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or path.suffix.lower() in _SUFFIXES


def read_dicom(path: Path, *, window: tuple[float, float] | None, frame: int | None, max_pixels: int) -> Image.Image:
    """One frame as RGB in its own size.

    Grey levels go through the file's rescaling (CT: to Hounsfield units) and then through ``window`` (center, width in
    those units), else the file's first window with its function, else from minimum to maximum. MONOCHROME1 is
    inverted. Colour and palettes become RGB. Overlays and VOI lookup tables are not applied.

    Raises:
        DataError: no pydicom, no DICOM, no picture in it, too large (known from the header), several frames and none
            chosen, a window for a colour picture, pixels that cannot be decoded.
    """
    try:
        import pydicom
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
        from pydicom.pixels.utils import pixel_array
    except ImportError as error:
        raise DataError(f'{path} is a DICOM file; reading it needs pydicom: pip install "medr1[dicom]"') from error
    if window is not None and window[1] < 1:
        raise DataError(f"window {window[0]:g} {window[1]:g}: the width must be at least 1")
    try:
        header: Any = pydicom.dcmread(path)
    except (pydicom.errors.InvalidDicomError, *_DECODER_ERRORS) as error:
        raise DataError(f"{path} cannot be read as DICOM: {error}") from error
    if not {"Rows", "Columns", "PhotometricInterpretation", "PixelData"} <= set(header.dir()):
        raise DataError(f"{path} is a DICOM file without a picture in it")
    frames = int(header.get("NumberOfFrames") or 1)
    size = int(header.Rows) * int(header.Columns)
    if size > max_pixels:
        raise DataError(
            f"{path} is too large: {header.Columns} x {header.Rows}; the limit is {max_pixels} pixels (max_pixels)"
        )
    if frame is None and frames > 1:
        raise DataError(f"{path} holds {frames} frames; choose one with frame=0 to {frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise DataError(f"{path} has no frame {frame}; it holds {frames}, counted from 0")
    kind = str(header.PhotometricInterpretation)
    try:
        values = pixel_array(header, index=frame or 0)
        if kind == "PALETTE COLOR":
            values = apply_color_lut(values, header)
        elif kind.startswith("MONOCHROME"):
            values = apply_modality_lut(values, header)
    except _DECODER_ERRORS as error:
        raise DataError(f"{path}: its pixels cannot be decoded: {error}") from error
    if not kind.startswith("MONOCHROME"):
        if window is not None:
            raise DataError(f"{path} is a colour picture ({kind}), so it has no window to choose; leave it out")
        shift = 8 * (values.dtype.itemsize - 1)
        return Image.fromarray((values >> shift).astype(np.uint8), "RGB")
    grey = _shown(np.asarray(values, np.float64), window or _first_window(header), _function(header, window))
    if kind == "MONOCHROME1":
        grey = 255 - grey
    return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")


def _first_window(header: Any) -> tuple[float, float] | None:
    """The file's own window; several are alternatives, of which the first is the maker's default."""
    center, width = header.get("WindowCenter"), header.get("WindowWidth")
    if center is None or width is None:
        return None
    first = [float(value if isinstance(value, float | int) else value[0]) for value in (center, width)]
    return (first[0], first[1]) if first[1] >= 1 else None


def _function(header: Any, window: tuple[float, float] | None) -> str:
    return "LINEAR" if window is not None else str(header.get("VOILUTFunction") or "LINEAR")


def _shown(values: Grey, window: tuple[float, float] | None, function: str) -> Grey:
    """Grey levels from 0 to 255. The functions of DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3."""
    if window is None:
        low, high = float(values.min()), float(values.max())
        return (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    center, width = window
    if function == "SIGMOID":
        return np.asarray(255 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return np.asarray(255 * np.clip((values - center) / width + 0.5, 0, 1))
    if width == 1:
        return np.where(values > center - 0.5, 255.0, 0.0)
    return np.asarray(255 * np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1))
