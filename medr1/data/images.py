"""Pictures from files: found inside the data root, checked before they are decoded, always handed out as RGB."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image

from medr1.domain.records import BadRecord, Reason

# 64 megapixels: far above any picture of OmniMedVQA, and 192 MB as decoded RGB.
DEFAULT_MAX_PIXELS = 64_000_000

# What Pillow's decoders raise on damaged files; anything else is a fault of this program and is not caught.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error, zlib.error)


@dataclass(frozen=True, slots=True)
class FileImage:
    """A picture in a file below ``root``, decoded only when it is asked for.

    ``picture`` names the group of files that show the same picture (see ``image_index``); ``max_pixels`` bounds what
    is decoded.
    """

    root: Path
    relative: str
    picture: str = ""
    max_pixels: int = DEFAULT_MAX_PIXELS

    @property
    def key(self) -> str:
        """Name of the picture: equal for all files that show it, the path itself while nothing was compared."""
        return self.picture or self.relative

    def load(self, size: int) -> Image.Image:
        """The picture as RGB, ``size`` x ``size`` pixels, aspect ratio not kept.

        Raises:
            BadRecord: see ``read_rgb``.
        """
        image = read_rgb(self.root, self.relative, self.max_pixels)
        return image.resize((size, size), Image.Resampling.BICUBIC)


def resolve_inside(root: Path, relative: str) -> Path:
    """The file that ``relative`` names, with every symbolic link followed, if it lies below ``root``.

    Split files are downloaded, so their paths are not trusted: absolute paths (also those of Windows), ``..`` and
    links that lead out of the root are refused even where they would come back in.

    Raises:
        BadRecord: PATH_LEAVES_ROOT, or MALFORMED for a path that no file system takes.
    """

    def refuse(reason: Reason, why: str) -> BadRecord:
        return BadRecord(str(root), relative, reason, f"image path {relative!r} {why}")

    if not relative or "\0" in relative:
        raise refuse(Reason.MALFORMED, "is empty or contains a null character")
    windows = PureWindowsPath(relative)
    if PurePosixPath(relative).is_absolute() or windows.drive or windows.root:
        raise refuse(Reason.PATH_LEAVES_ROOT, "is absolute; it must be relative to the data root")
    if ".." in windows.parts:
        raise refuse(Reason.PATH_LEAVES_ROOT, "contains '..'; it must stay below the data root")
    # realpath of a link loop ends at the loop itself, which then fails as a file that cannot be opened.
    base = os.path.realpath(root)
    target = os.path.realpath(os.path.join(base, relative))
    if os.path.commonpath((base, target)) != base:
        raise refuse(Reason.PATH_LEAVES_ROOT, f"is a link to {target}, outside the data root")
    return Path(target)


def read_rgb(root: Path, relative: str, max_pixels: int, limit: str = "data.max_image_pixels") -> Image.Image:
    """Decodes one file completely, as RGB in its own size. ``limit`` is what the user calls ``max_pixels``.

    Raises:
        BadRecord: PATH_LEAVES_ROOT, NO_IMAGE, IMAGE_TOO_LARGE (known from the header, nothing is decoded) or
            UNDECODABLE_IMAGE (empty, truncated, damaged, of an unknown format).
    """
    path = resolve_inside(root, relative)

    def refuse(reason: Reason, why: str) -> BadRecord:
        return BadRecord(str(root), relative, reason, f"image {relative!r} {why}")

    if not path.is_file():
        raise refuse(Reason.NO_IMAGE, f"does not exist below {root}")
    if path.stat().st_size == 0:
        raise refuse(Reason.UNDECODABLE_IMAGE, "has 0 bytes")
    try:
        with Image.open(path) as image:
            pixels = image.width * image.height
            if pixels > max_pixels:
                raise refuse(Reason.IMAGE_TOO_LARGE, _too_large(f"{image.width} x {image.height}", max_pixels, limit))
            image.load()
            return to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own, fixed limit, met while the header was read.
        raise refuse(Reason.IMAGE_TOO_LARGE, _too_large(str(error), max_pixels, limit)) from error
    except _DECODER_ERRORS as error:
        raise refuse(Reason.UNDECODABLE_IMAGE, f"cannot be decoded: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: deep greyscale is stretched from its minimum to its maximum, transparency laid over black."""
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


def _too_large(what: str, max_pixels: int, limit: str) -> str:
    return f"is too large: {what}; the limit is {max_pixels} pixels ({limit})"
