"""One picture that a user names: PNG, JPEG, TIFF and what else Pillow reads, or DICOM, always handed out as RGB."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from medr1.data.dicom import is_dicom, read_dicom
from medr1.data.images import DEFAULT_MAX_PIXELS, read_rgb
from medr1.domain.records import BadRecord
from medr1.errors import DataError


def read_image(
    path: Path,
    *,
    window: tuple[float, float] | None = None,
    frame: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Image.Image:
    """The picture in its own size. ``window`` (center, width) and ``frame`` (from 0) are for DICOM, see ``read_dicom``.

    Unlike the paths in a downloaded question file, this one is the user's own: it may lie anywhere and be a link.

    Raises:
        DataError: names the file and what is wrong: missing, empty, damaged, of an unknown format, too large, several
            pages, or a window where grey levels have no unit.
    """
    path = path.absolute()
    if path.is_file() and is_dicom(path):
        return read_dicom(path, window=window, frame=frame, max_pixels=max_pixels)
    target = path.resolve()
    try:
        picture = read_rgb(target.parent, target.name, max_pixels, limit="max_pixels")
    except BadRecord as error:
        raise DataError(f"{path}: {error.detail}") from error
    if window is not None or frame is not None:
        given = "window" if window is not None else "frame"
        raise DataError(f"{path} is no DICOM file, so it has no {given} to choose; leave it out")
    with Image.open(target) as image:
        pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise DataError(f"{path} holds {pages} pictures; save the one that is meant as a file of its own")
    return picture
