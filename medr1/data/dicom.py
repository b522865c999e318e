"""Reads DICOM files as RGB images, rendered as a DICOM viewer would. Needs pydicom, from the extra ``[dicom]``."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medr1.errors import DataError

Grey = NDArray[np.float64]

# What pydicom and its decoders raise on damaged or unsupported pixel data.
_DECODER_ERRORS = (OSError, ValueError, AttributeError, KeyError, RuntimeError, NotImplementedError, struct.error)


def is_dicom(path: Path) -> bool:
    """Whether ``DICM`` follows the preamble of 128 bytes, or the suffix is ``.dcm`` or ``.dicom``."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom")


def read_dicom(path: Path, *, window: tuple[float, float] | None, frame: int | None, max_pixels: int) -> Image.Image:
    """Reads one frame in RGB and its own size.

    Stored grey values are rescaled as the file defines (CT: to Hounsfield units) and mapped to 0-255 by ``window``
    (center and width in those units), else by the first window of the file, else from minimum to maximum. MONOCHROME1
    is inverted, colour and palette images are converted to RGB. Overlays and VOI lookup tables are not applied.

    Raises:
        DataError: pydicom is not installed, the file is not DICOM or has no pixel data, the image is too large
            (according to the header), several frames without ``frame``, a window for a colour image, or pixel data
            that cannot be decoded.
    """
    try:
        import pydicom
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
        from pydicom.pixels.utils import pixel_array
    except ImportError as error:
        raise DataError(f'{path} is a DICOM file; install pydicom to read it: pip install "medr1[dicom]"') from error
    if window is not None and window[1] < 1:
        raise DataError(f"window {window[0]:g} {window[1]:g}: the width must be at least 1")
    try:
        header: Any = pydicom.dcmread(path)
    except (pydicom.errors.InvalidDicomError, *_DECODER_ERRORS) as error:
        raise DataError(f"{path} cannot be read as DICOM: {error}") from error
    if not {"Rows", "Columns", "PhotometricInterpretation", "PixelData"} <= set(header.dir()):
        raise DataError(f"{path} is a DICOM file without an image")
    if int(header.Rows) * int(header.Columns) > max_pixels:
        raise DataError(
            f"{path} is too large: {header.Columns} x {header.Rows}; the limit is {max_pixels} pixels (max_pixels)"
        )
    frames = int(header.get("NumberOfFrames") or 1)
    if frame is None and frames > 1:
        raise DataError(f"{path} has {frames} frames; choose one with frame=0 to {frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise DataError(f"{path} has no frame {frame}; it has {frames}, counted from 0")
    kind = str(header.PhotometricInterpretation)
    try:
        values = pixel_array(header, index=frame or 0)
        if kind == "PALETTE COLOR":
            values = apply_color_lut(values, header)
        elif kind.startswith("MONOCHROME"):
            values = apply_modality_lut(values, header)
    except _DECODER_ERRORS as error:
        raise DataError(f"{path}: the pixel data cannot be decoded: {error}") from error
    if not kind.startswith("MONOCHROME"):
        if window is not None:
            raise DataError(f"{path} is a colour image ({kind}); remove window, which applies to grey levels only")
        return Image.fromarray((values >> 8 * (values.dtype.itemsize - 1)).astype(np.uint8), "RGB")
    function = "LINEAR" if window else str(header.get("VOILUTFunction") or "LINEAR")
    grey = _apply_window(np.asarray(values, np.float64), window or _first_window(header), function)
    if kind == "MONOCHROME1":
        grey = 255 - grey
    return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")


def _first_window(header: Any) -> tuple[float, float] | None:
    """Center and width of the first window in the file: further ones are alternatives."""
    center, width = header.get("WindowCenter"), header.get("WindowWidth")
    if center is None or width is None:
        return None
    center, width = (float(value if isinstance(value, float | int) else value[0]) for value in (center, width))
    return (center, width) if width >= 1 else None


def _apply_window(values: Grey, window: tuple[float, float] | None, function: str) -> Grey:
    """Maps grey values to 0-255 with a VOI LUT function of DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3."""
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
