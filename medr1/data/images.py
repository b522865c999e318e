"""Reads image files as RGB: PNG, JPEG, TIFF and other formats of Pillow, and DICOM."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image

from medr1.data.dicom import is_dicom, read_dicom
from medr1.domain.records import BadRecord, Reason
from medr1.domain.texts import UNENCODABLE
from medr1.errors import DataError

# 64 megapixels: far above any image of OmniMedVQA, and 192 MB as decoded RGB.
DEFAULT_MAX_PIXELS = 64_000_000

# What Pillow's decoders raise on damaged files. Any other exception is a bug and is not caught.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error, zlib.error)


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image file below ``root``, decoded when it is loaded. Implements ``ImageSource``.

    ``content_id`` is the same for all files with the same image content (see ``image_index.group_by_content``).
    Images of more than ``max_pixels`` pixels are not decoded.
    """

    root: Path
    path: str
    content_id: str = ""
    max_pixels: int = DEFAULT_MAX_PIXELS

    @property
    def key(self) -> str:
        """The content id, or the path if the content was not compared."""
        return self.content_id or self.path

    def load(self, size: int) -> Image.Image:
        """The image in RGB, resized to ``size`` x ``size`` pixels without keeping its aspect ratio.

        Raises:
            BadRecord: see ``read_rgb``.
        """
        image = read_rgb(self.root, self.path, self.max_pixels)
        return image.resize((size, size), Image.Resampling.BICUBIC)


def resolve_inside(root: Path, relative: str) -> Path:
    """The place ``relative`` to ``root`` that a record names.

    Downloaded question files are not trusted: absolute paths (also those of Windows) and ``..`` are rejected, even if
    they lead back into the root. Links below the root were made by its owner. They are followed wherever they lead.

    Raises:
        BadRecord: PATH_LEAVES_ROOT, or MALFORMED for a path that no file system accepts.
    """
    if not relative or UNENCODABLE.search(relative):
        raise _rejected(root, relative, Reason.MALFORMED, "has a path that is empty or that no file system accepts")
    windows = PureWindowsPath(relative)
    if PurePosixPath(relative).is_absolute() or windows.drive or windows.root:
        raise _rejected(root, relative, Reason.PATH_LEAVES_ROOT, "has a path that is absolute; it must be relative")
    if ".." in (part.strip() for part in windows.parts):
        raise _rejected(root, relative, Reason.PATH_LEAVES_ROOT, "has a path that contains '..'")
    return root / relative


def read_rgb(root: Path, relative: str, max_pixels: int, limit: str = "data.max_image_pixels") -> Image.Image:
    """Decodes one file below ``root`` completely, in RGB and its own size.

    ``limit`` is the name of the setting that ``max_pixels`` comes from, for the error message.

    Raises:
        BadRecord: PATH_LEAVES_ROOT, NO_IMAGE, IMAGE_TOO_LARGE (according to the header, before decoding) or
            UNDECODABLE_IMAGE (empty, truncated, damaged or of an unknown format).
    """
    path = resolve_inside(root, relative)
    allowed = f"the limit is {max_pixels} pixels ({limit})"
    if not os.path.isfile(path):  # unlike Path.is_file(), also False for a name that is too long
        raise _rejected(root, relative, Reason.NO_IMAGE, f"does not exist below {root}")
    if path.stat().st_size == 0:
        raise _rejected(root, relative, Reason.UNDECODABLE_IMAGE, "has 0 bytes")
    try:
        with Image.open(path) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height}"
                raise _rejected(root, relative, Reason.IMAGE_TOO_LARGE, f"is too large: {size}; {allowed}")
            image.load()
            return to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow applies a fixed limit of its own while it reads the header.
        raise _rejected(root, relative, Reason.IMAGE_TOO_LARGE, f"is too large: {error}; {allowed}") from error
    except _DECODER_ERRORS as error:
        raise _rejected(root, relative, Reason.UNDECODABLE_IMAGE, f"cannot be decoded: {error}") from error


def _rejected(root: Path, relative: str, reason: Reason, detail: str) -> BadRecord:
    return BadRecord(reason, f"image {relative!r} {detail}", str(root), relative)


def read_image(
    path: Path,
    *,
    window: tuple[float, float] | None = None,
    frame: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Image.Image:
    """One image file that the user names, in RGB and its own size. It may lie anywhere and may be a link.

    ``window`` (center, width) and ``frame`` (counted from 0) are for DICOM files, see ``read_dicom``.

    Raises:
        DataError: a file that is missing, empty, damaged, too large, of an unknown format or with several pages, or a
            ``window`` or ``frame`` for a file that is not DICOM.
    """
    path = path.absolute()
    if path.is_file() and is_dicom(path):
        return read_dicom(path, window=window, frame=frame, max_pixels=max_pixels)
    target = path.resolve()
    try:
        rgb = read_rgb(target.parent, target.name, max_pixels, limit="max_pixels")
    except BadRecord as error:
        raise DataError(f"{path}: {error.detail}") from error
    if window is not None or frame is not None:
        setting = "frame" if window is None else "window"
        raise DataError(f"{path} is not a DICOM file; remove {setting}, which applies to DICOM only")
    with Image.open(target) as image:
        pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise DataError(f"{path} has {pages} pages; save the page to use as a separate file")
    return rgb


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode to RGB.

    16-bit, 32-bit and float grey levels are rescaled from their minimum and maximum. Transparent images are blended
    onto black.
    """
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's convert() clips such values at 255, which turns a 16-bit radiograph white.
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
        low, high = float(values.min()), float(values.max())
        scaled = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
        return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return image.convert("RGB")
