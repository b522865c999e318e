"""Reads DICOM files as RGB images, rendered as a DICOM viewer would. Needs pydicom, from the extra ``[dicom]``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medr1.domain.records import BadRecord, Reason

Grey = NDArray[np.float64]

# The first element of a file without preamble, in little endian: group 0002 or 0008, then two letters or a length.
_FIRST_ELEMENT = re.compile(rb"[\x02\x08]\0..(?:[A-Z]{2}|[\x02-\xfe][\0-\3]\0\0)", re.DOTALL)
# A number with a decimal point or comma, perhaps with a unit. A unit with digits needs a blank before it.
_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?)(?:\s*[^\W\d_]*[.%°]?|\s+[^\W\d_].*)\s*")
_BINARY_VRS = ("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GEOMETRY = (
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)


def is_dicom(source: Path | bytes) -> bool:
    """Whether ``DICM`` follows the preamble of 128 bytes, the file begins with an element, or its suffix is DICOM's."""
    if isinstance(source, bytes):
        head, suffix = source[:132], False
    else:
        with source.open("rb") as file:
            head = file.read(132)
        suffix = source.suffix.lower() in (".dcm", ".dicom")
    return head[128:] == b"DICM" or _FIRST_ELEMENT.match(head) is not None or suffix


def opened(source: Path | bytes) -> Path | BytesIO:
    """What a decoder reads: the path of a file, or the content of one as a stream."""
    return BytesIO(source) if isinstance(source, bytes) else source


def read_dicom(
    source: Path | bytes, *, window: tuple[float, float] | None, frame: int | None, max_pixels: int, limit: str
) -> tuple[Image.Image, int]:
    """Reads one frame of a file, or of the content of one, in RGB and its own size, and counts the frames.

    Stored grey values are rescaled as the file defines for the frame (CT: to Hounsfield units), by a modality lookup
    table or slope and intercept. They are mapped to 0-255 by ``window`` (center and width in those units), else by the
    VOI lookup table of the file, else by the first window that the file gives for the frame, else from minimum to
    maximum without padding. MONOCHROME1 is inverted. Colours are scaled by the bits stored; palettes are applied.
    Overlays are not. Files without preamble are read. ``limit``: the name of ``max_pixels`` for the message.

    Raises:
        BadRecord: without the path in its detail. IMAGE_TOO_LARGE (according to the header), or UNDECODABLE_IMAGE:
            pydicom is not installed, the file is not DICOM or has no pixel data, several frames without ``frame``, a
            window for a colour image, a number in the header that cannot be read (named by its tag), or pixel data that
            cannot be decoded.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise _undecodable('is a DICOM file; install pydicom to read it: pip install "medr1[dicom]"') from error
    if window is not None and window[1] < 1:
        raise _undecodable(f"cannot have a window {window[0]:g} {window[1]:g}: the width must be at least 1")
    try:
        return _read(source, window, frame, max_pixels, limit)
    except BadRecord:
        raise
    # pydicom parses an element when it is first used, so that each access to a damaged file may fail, and neither
    # pydicom nor its decoders say with which errors: zlib's, numpy's and struct's are among them.
    except Exception as error:
        raise _undecodable(f"cannot be read as DICOM: {type(error).__name__}: {error}") from error


def read_numbers(data: Any, keyword: str) -> list[float]:
    """The usable numbers of an element of a dataset, in their order; empty if the element is absent or empty.

    Devices write decimal commas, units, and empty or unreadable values beside others, which pydicom itself refuses.

    Raises:
        BadRecord: the element has a value but no number; names keyword, tag and value.
    """
    from pydicom.datadict import dictionary_VR
    from pydicom.tag import Tag

    tag = Tag(keyword)
    if tag not in data:
        return []
    element = data.get_item(tag)  # not yet converted: pydicom fails on "1,5"
    value = element.value
    if isinstance(value, bytes):
        vr = dictionary_VR(tag) if element.VR in (None, "UN") else element.VR
        if str(vr).startswith(_BINARY_VRS):
            try:
                value = data[tag].value
            except Exception as error:  # see read_dicom
                raise _undecodable(f"has no usable number in {keyword} {tag}: {error}") from error
        else:
            value = value.decode("latin-1")
    if isinstance(value, str):
        values: Sequence[Any] = value.replace("\0", " ").split("\\")
    else:
        values = value if isinstance(value, Sequence) else [value]
    numbers = [number for item in values if (number := _to_number(item)) is not None]
    if not numbers and any(item is not None and str(item).strip() for item in values):
        raise _undecodable(f"has no usable number in {keyword} {tag}: {str(value)[:80]!r}")
    return numbers


def _to_number(value: Any) -> float | None:
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        number = float(match[1].replace(",", ".")) if match else math.nan
    else:
        number = float(value) if isinstance(value, int | float | Decimal) else math.nan
    return number if math.isfinite(number) else None


def _number(data: Any, keyword: str) -> float | None:
    return next(iter(read_numbers(data, keyword)), None)


def _read(
    source: Path | bytes, window: tuple[float, float] | None, frame: int | None, max_pixels: int, limit: str
) -> tuple[Image.Image, int]:
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    header = _header(source)
    for keyword in _GEOMETRY:
        _make_integer(header, keyword)
    if missing := [k for k in ("Rows", "Columns", "PhotometricInterpretation") if not header.get(k)]:
        raise _undecodable(f"is a DICOM file whose image has no {' or '.join(missing)}")
    if header.Rows * header.Columns > max_pixels:
        detail = f"is too large: {header.Columns} x {header.Rows}; the limit is {max_pixels} pixels ({limit})"
        raise BadRecord(Reason.IMAGE_TOO_LARGE, detail)
    frames = int(header.get("NumberOfFrames", 1))
    if frame is None and frames > 1:
        raise _undecodable(f"has {frames} frames; choose one with frame=0 to {frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        raise _undecodable(f"has no frame {frame}; it has {frames}, counted from 0")
    kind = str(header.PhotometricInterpretation).strip().upper()
    stored = pixel_array(header, index=frame or 0)
    if kind.startswith("MONOCHROME"):
        if stored.ndim != 2:
            raise _undecodable(f"is {kind} but has {header.SamplesPerPixel} samples per pixel")
        grey = _render_grey(stored, header, frame or 0, window)
        if kind == "MONOCHROME1":
            grey = 255 - grey
        return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB"), frames
    if window is not None:
        raise _undecodable(f"is a colour image ({kind}); remove window, which applies to grey levels only")
    if kind == "PALETTE COLOR":
        stored = apply_color_lut(stored, header)
        bits = 8 * stored.dtype.itemsize
    else:
        bits = int(header.get("BitsStored", 8 * stored.dtype.itemsize))
    if stored.ndim != 3 or stored.shape[2] != 3:
        raise _undecodable(f"is a colour image ({kind}) of shape {stored.shape}, not three samples per pixel")
    scaled = np.clip(stored.astype(np.float64) / (2**bits - 1), 0, 1)
    return Image.fromarray(np.rint(255 * scaled).astype(np.uint8), "RGB"), frames


def _header(source: Path | bytes) -> Any:
    """The dataset of a file, with a transfer syntax also if the file has no preamble."""
    import pydicom
    from pydicom import uid

    try:
        header: Any = pydicom.dcmread(opened(source))
    except pydicom.errors.InvalidDicomError:
        header = pydicom.dcmread(opened(source), force=True)
        if not any(keyword in header for keyword in _PIXELS):
            raise _undecodable("cannot be read as DICOM: it has neither a preamble nor an image") from None
    if not any(keyword in header for keyword in _PIXELS):
        raise _undecodable("is a DICOM file without an image")
    if "TransferSyntaxUID" not in header.file_meta:
        implicit, little = header.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return header


def _make_integer(header: Any, keyword: str) -> None:
    """Replaces an element by its number, so that pydicom's decoders can use it. Removes it if it is empty or 0 frames.

    Raises:
        BadRecord: no whole number from 0.
    """
    from pydicom.tag import Tag

    number = _number(header, keyword)
    if number is not None and (number < 0 or number != int(number) or number >= 2**31):
        raise _undecodable(f"has no usable number in {keyword} {Tag(keyword)}: {number:g} is no count")
    if number is None or (number == 0 and keyword == "NumberOfFrames"):
        if keyword in header:
            del header[keyword]
    else:
        setattr(header, keyword, int(number))


def _scopes(header: Any, frame: int, macro: str) -> list[Any]:
    """Where the attributes of a frame may stand: its own functional group, the shared one and the root, in this order.

    ``macro`` is the sequence in a functional group that holds the attributes.
    """
    own = _items(header, "PerFrameFunctionalGroupsSequence")[frame : frame + 1]
    shared = _items(header, "SharedFunctionalGroupsSequence")[:1]
    return [*(item for group in (*own, *shared) for item in _items(group, macro)[:1]), header]


def _items(data: Any, keyword: str) -> list[Any]:
    return list(data.get(keyword) or [])


def _render_grey(stored: Any, header: Any, frame: int, window: tuple[float, float] | None) -> Grey:
    """Maps stored grey values to 0-255."""
    values = np.nan_to_num(np.asarray(stored, np.float64), posinf=0.0, neginf=0.0)
    if modality := _items(header, "ModalityLUTSequence"):
        values, _ = _apply_lut(values, modality[0], header)
    else:
        values = _rescale(values, header, frame)
    if window is not None:
        return _apply_window(values, window, "LINEAR")
    if voi := _items(header, "VOILUTSequence"):
        values, highest = _apply_lut(values, voi[0], header)
        return values * (255 / highest)
    for scope in _scopes(header, frame, "FrameVOILUTSequence"):
        center, width = _number(scope, "WindowCenter"), _number(scope, "WindowWidth")
        function = str(scope.get("VOILUTFunction") or "LINEAR").strip().upper()
        if center is not None and width is not None and (width >= 1 or (width > 0 and function != "LINEAR")):
            return _apply_window(values, (center, width), function)
    shown = values[~_padding(stored, header)]
    low, high = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 0.0)
    return np.clip((values - low) * (255 / (high - low)), 0, 255) if high > low else np.zeros_like(values)


def _rescale(values: Grey, header: Any, frame: int) -> Grey:
    for scope in _scopes(header, frame, "PixelValueTransformationSequence"):
        slope, intercept = _number(scope, "RescaleSlope"), _number(scope, "RescaleIntercept")
        if slope is not None or intercept is not None:
            return values * (slope or 1.0) + (intercept or 0.0)  # a slope of 0 would leave an empty image
    return values


def _apply_lut(values: Grey, item: Any, header: Any) -> tuple[Grey, int]:
    """The values of a lookup table (PS3.3, C.11.1 and C.11.2) and the highest that its bits allow.

    pydicom's own ``apply_voi`` overflows where a table maps more than 8 bits to 8.
    """
    descriptor, data = read_numbers(item, "LUTDescriptor"), item.LUTData
    if len(descriptor) != 3 or not 1 <= descriptor[2] <= 16:
        raise _undecodable(f"has no usable number in LUTDescriptor (0028,3002): {descriptor}")
    first, bits = descriptor[1], int(descriptor[2])
    if isinstance(data, bytes):
        entries = int(descriptor[0]) or 2**16
        order = "<" if header.original_encoding[1] else ">"
        table = np.frombuffer(data, np.uint8 if len(data) < 2 * entries else f"{order}u2")
    else:
        table = np.atleast_1d(np.asarray(data))
    if table.size == 0:
        raise _undecodable("has an empty LUTData (0028,3006)")
    if first >= 2**15 and values.min() < 0:  # a signed number that was written as unsigned
        first -= 2**16
    index = np.clip(np.rint(values) - first, 0, table.size - 1).astype(np.int64)
    return table.astype(np.float64)[index], max(2**bits - 1, int(table.max()))


def _padding(stored: Any, header: Any) -> NDArray[np.bool_]:
    """Which pixels lie outside the image."""
    first, last = _number(header, "PixelPaddingValue"), _number(header, "PixelPaddingRangeLimit")
    if first is None or stored.dtype.kind not in "iu":
        return np.zeros(stored.shape, dtype=np.bool_)
    # Through the type of the pixels, because -2000 is often written as 63536.
    ends = np.array([first, first if last is None else last]).astype(np.int64).astype(stored.dtype)
    return np.asarray((stored >= ends.min()) & (stored <= ends.max()))


def _apply_window(values: Grey, window: tuple[float, float], function: str) -> Grey:
    """Maps grey values to 0-255 with a VOI LUT function of DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3."""
    center, width = window
    if function == "SIGMOID":
        return np.asarray(255 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return np.asarray(255 * np.clip((values - center) / width + 0.5, 0, 1))
    if width <= 1:
        return np.where(values > center - 0.5, 255.0, 0.0)
    return np.asarray(255 * np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1))


def _undecodable(detail: str) -> BadRecord:
    return BadRecord(Reason.UNDECODABLE_IMAGE, detail)
