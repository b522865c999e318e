"""Reads image files as RGB: PNG, JPEG, TIFF and other formats of Pillow, and DICOM."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from medr1.data.dicom import is_dicom, read_dicom
from medr1.domain.records import BadRecord, Reason
from medr1.domain.texts import UNENCODABLE
from medr1.errors import DataError

# 64 megapixels: far above any image of OmniMedVQA, and 192 MB as decoded RGB.
DEFAULT_MAX_PIXELS = 64_000_000

# Transparent images are composed on this colour (RGB): scans are dark outside the body.
BACKGROUND = (0, 0, 0)

# Values of the EXIF orientation, and how the stored image is turned to be upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PHOTOMETRIC, _WHITE_IS_ZERO = 0x0106, 0  # a tag of TIFF and its value where low numbers are bright


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image in RGB and its own size, and what a user should know about it: "has 3 frames; frame 0 is used"."""

    image: Image.Image
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image file below ``root``, decoded when it is loaded. Implements ``ImageSource``.

    ``content_id`` is the same for all files with the same image content (see ``image_index.group_by_content``);
    ``sha256`` is that of the bytes of the file, empty if they were not read.
    Images of more than ``max_pixels`` pixels are not decoded.
    """

    root: Path
    path: str
    content_id: str = ""
    max_pixels: int = DEFAULT_MAX_PIXELS
    sha256: str = ""

    @property
    def key(self) -> str:
        """The content id, or the path if the content was not compared."""
        return self.content_id or self.path

    def load(self, side: int) -> Image.Image:
        """The image in RGB and its own size; ``side`` is not needed.

        Raises:
            BadRecord: see ``read_rgb``.
        """
        return self.decoded().image

    def state(self) -> tuple[int, int]:
        """Size in bytes and modification time in nanoseconds: a file whose state is the same has not changed."""
        status = (self.root / self.path).stat()
        return status.st_size, status.st_mtime_ns

    def content(self) -> bytes:
        """The bytes of the file."""
        return (self.root / self.path).read_bytes()

    def decoded(self) -> DecodedImage:
        """The image in its own size. Raises BadRecord, see ``decode``."""
        return decode(self.root, self.path, self.max_pixels)

    def with_content_id(self, content_id: str, sha256: str) -> FileImage:
        """This image with the id of its content and the hash of its file."""
        return dataclasses.replace(self, content_id=content_id, sha256=sha256)


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
        remedy = f"it must be relative to {root} (data.root, or the folder of the file)"
        raise _rejected(root, relative, Reason.PATH_LEAVES_ROOT, f"has a path that is absolute; {remedy}")
    if ".." in (part.strip() for part in windows.parts):
        raise _rejected(root, relative, Reason.PATH_LEAVES_ROOT, "has a path that contains '..'")
    return root / relative


def read_rgb(root: Path, relative: str, max_pixels: int, limit: str = "data.max_image_pixels") -> Image.Image:
    """Decodes one file below ``root`` completely, in RGB and its own size: see ``decode``."""
    return decode(root, relative, max_pixels, limit).image


def decode(root: Path, relative: str, max_pixels: int, limit: str = "data.max_image_pixels") -> DecodedImage:
    """Decodes one file below ``root`` completely. The first frame is used if there are several.

    ``limit`` is the name of the setting that ``max_pixels`` comes from, for the error message.

    Raises:
        BadRecord: PATH_LEAVES_ROOT, NO_IMAGE, IMAGE_TOO_LARGE (according to the header, before decoding) or
            UNDECODABLE_IMAGE (empty, truncated, damaged or of an unknown format; DICOM: see ``read_dicom``).
    """
    path = resolve_inside(root, relative)
    if not os.path.isfile(path):  # unlike Path.is_file(), also False for a name that is too long
        raise _rejected(root, relative, Reason.NO_IMAGE, f"does not exist below {root}")
    try:
        return _decode(path, max_pixels, limit, default_frame=0)
    except BadRecord as bad:
        raise _rejected(root, relative, bad.reason, bad.detail) from bad


def decode_content(content: bytes, name: str, max_pixels: int, limit: str = "data.max_image_pixels") -> DecodedImage:
    """Decodes the content of an image file completely. ``name`` is what an error calls the image.

    Raises:
        BadRecord: as ``decode``.
    """
    try:
        return _decode(content, max_pixels, limit, default_frame=0)
    except BadRecord as bad:
        raise BadRecord(bad.reason, f"image {name!r} {bad.detail}") from bad


def decode_image(
    path: Path,
    *,
    window: tuple[float, float] | None = None,
    frame: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> DecodedImage:
    """Decodes one image file that the user names. It may lie anywhere and may be a link.

    ``window`` (center, width) is for DICOM files, see ``read_dicom``. ``frame`` (counted from 0) chooses a frame or
    page; DICOM files with several frames need it, other files show the first one.

    Raises:
        DataError: a file that is missing, empty, damaged, too large, of an unknown format or without this frame, or a
            ``window`` or ``frame`` that the file has no use for.
    """
    path = path.absolute()
    if not path.is_file():
        raise DataError(f"{path}: image {path.name!r} does not exist below {path.parent}")
    try:
        return _decode(path, max_pixels, "max_pixels", window, frame)
    except BadRecord as bad:
        raise DataError(f"{path} {bad.detail}") from bad


def can_read_dicom() -> bool:
    """Whether the extra ``[dicom]`` is installed."""
    return importlib.util.find_spec("pydicom") is not None


def _decode(
    source: Path | bytes,
    max_pixels: int,
    limit: str,
    window: tuple[float, float] | None = None,
    frame: int | None = None,
    default_frame: int | None = None,
) -> DecodedImage:
    """Decodes a file, or the content of one. ``default_frame`` is for DICOM files with several.

    Raises:
        BadRecord: without the path in it.
    """
    try:
        if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
            raise BadRecord(Reason.UNDECODABLE_IMAGE, "has 0 bytes")
        if is_dicom(source):
            # A frame that the user chose needs no note.
            chosen = default_frame if frame is None else frame
            rgb, frames = read_dicom(source, window=window, frame=chosen, max_pixels=max_pixels, limit=limit)
            return DecodedImage(rgb, _frame_notes(frames, frame))
        if window is not None:
            raise BadRecord(Reason.UNDECODABLE_IMAGE, "is not a DICOM file; remove window, which applies to DICOM only")
        # Never by its path: Pillow would map an uncompressed file into memory with the sides of the turned image.
        with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file, Image.open(file) as image:
            return _decode_opened(image, frame, max_pixels, limit)
    except BadRecord:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow applies a fixed limit of its own while it reads the header.
        detail = f"is too large: {error}; the limit is {max_pixels} pixels ({limit})"
        raise BadRecord(Reason.IMAGE_TOO_LARGE, detail) from error
    except UnidentifiedImageError as error:
        raise BadRecord(Reason.UNDECODABLE_IMAGE, "cannot be decoded: it has no known image format") from error
    # Damaged files raise nearly any error in Pillow's decoders: OSError, SyntaxError, struct's, zlib's, TypeError, ...
    except Exception as error:
        raise BadRecord(Reason.UNDECODABLE_IMAGE, f"cannot be decoded: {error}") from error


def _decode_opened(image: Image.Image, frame: int | None, max_pixels: int, limit: str) -> DecodedImage:
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height}"
        raise BadRecord(Reason.IMAGE_TOO_LARGE, f"is too large: {size}; the limit is {max_pixels} pixels ({limit})")
    frames = int(getattr(image, "n_frames", 1))
    if frame is not None and frames == 1:
        raise BadRecord(Reason.UNDECODABLE_IMAGE, "has one frame; remove frame, which applies to files with several")
    if frame is not None and frame not in range(frames):
        raise BadRecord(Reason.UNDECODABLE_IMAGE, f"has no frame {frame}; it has {frames}, counted from 0")
    image.seek(frame or 0)
    image.load()
    notes = _frame_notes(frames, frame)
    try:  # not before load(), which turns a TIFF itself
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # see _decode; the pixels are not affected
        turn, notes = None, (*notes, f"has damaged EXIF data ({error}) and is shown as it is stored")
    # Of more than 8 bits, Pillow leaves TIFF's WhiteIsZero as it is stored.
    tags = getattr(image, "tag_v2", {})
    is_inverted = image.mode.startswith("I") and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    rgb = to_rgb(image if turn is None else image.transpose(turn), is_inverted=is_inverted)
    if _is_transparent(image) and rgb.getcolors(1):
        notes = (*notes, "is empty on the black background of transparent images; save it without transparency")
    return DecodedImage(rgb, notes)


def _is_transparent(image: Image.Image) -> bool:
    return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def _frame_notes(frames: int, frame: int | None) -> tuple[str, ...]:
    """None if the user chose the frame."""
    return (f"has {frames} frames; the first is used",) if frames > 1 and frame is None else ()


def _rejected(root: Path, relative: str, reason: Reason, detail: str) -> BadRecord:
    return BadRecord(reason, f"image {relative!r} {detail}", str(root), relative)


def to_rgb(image: Image.Image, *, is_inverted: bool = False) -> Image.Image:
    """Converts any mode to RGB.

    16-bit, 32-bit and float grey levels are rescaled from their minimum and maximum; ``is_inverted``: the minimum is
    white. Transparent images are composed on ``BACKGROUND``.
    """
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's convert() clips such values at 255, which turns a 16-bit radiograph white.
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
        values = -values if is_inverted else values
        low, high = float(values.min()), float(values.max())
        scaled = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
        return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")
    return image.convert("RGB")
