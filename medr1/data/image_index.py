"""Validates stored images, caches the results, and groups images with the same content.

Two images have the same content if their thumbnails (16 x 16, grey, zero mean, unit variance) differ by at most
``MAX_CONTENT_DISTANCE`` root mean square. The normalisation ignores brightness and contrast; the square shape ignores
a changed aspect ratio.

The threshold of 0.14 was chosen on the 1,194 images of the OmniMedVQA sample (712,221 pairs). The 61 pairs at or below
0.119 are all duplicates: converted formats, copies in other data sets, frames saved twice. The next pairs, from 0.167,
are neighbouring OCT slices, different fundi (0.170) and neighbouring MR slices (0.188), so slices of one patient are
not grouped. Among many thousand fundi, a few different ones may be. Saving as JPEG of quality 75, resizing to 224 x 224
and reducing the contrast change no image by more than 0.122. Strong compression of low-contrast images and cropping by
3 % on each side exceed the threshold and are not detected. Larger thumbnails separate no better.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.progress import track
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from medr1.atomic_write import write_text
from medr1.data.image_paths import ImagePaths
from medr1.data.images import DecodedImage, FileImage, can_read_dicom
from medr1.domain.records import BadRecord, ImageSource, Reason
from medr1.errors import DataError

log = logging.getLogger(__name__)

MAX_CONTENT_DISTANCE = 0.14
_SIDE = 16
# Grey levels. Images of lower contrast are not amplified further: their noise would look like content.
_CONTRAST_FLOOR = 1.0
# Thumbnails are stored as signed bytes in steps of 1/16, with a rounding error of 0.018 root mean square.
_STEPS = 16.0
_FORMAT = 3  # 1: without EXIF orientation; 2: turned grey TIFFs were scrambled, and those with WhiteIsZero inverted
_PROGRESS_FROM = 500


class StoredImage(ImageSource, Protocol):
    """An image in a file of its own, or in a file with many."""

    @property
    def path(self) -> str:
        """Names the image below its data root."""

    def state(self) -> tuple[int, int]:
        """Size and modification time (ns) of the file. OSError if there is none any more."""

    def content(self) -> bytes:
        """The bytes of the image file, not decoded."""

    def decoded(self) -> DecodedImage:
        """The image in its own size. BadRecord if it cannot be decoded."""

    def with_content_id(self, content_id: str, sha256: str) -> StoredImage:
        """This image with the id of its content, see ``group_by_content``, and the hash of ``content()``."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """One stored image: state of its file, and either SHA-256 and thumbnail or the reason for rejection.

    ``path`` is that of the image, or as a record names it if there is no such file.
    ``notes``: see ``DecodedImage``.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str = ""
    thumbnail: bytes = b""
    reason: Reason | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()
    # In pixels. 0 in a cache of an earlier version, and for a rejected file.
    width: int = 0
    height: int = 0


def check_images(
    root: Path, paths: Iterable[str], cache_dir: Path, *, max_pixels: int, workers: int = 4
) -> dict[str, ImageFacts]:
    """Checks the image file that each path below ``root`` names, see ``ImagePaths.find`` and ``index_images``.

    Returns the facts of the files by the paths as they are given.

    Raises:
        DataError: the cache cannot be written.
    """
    places = ImagePaths(root)
    found: dict[str, str] = {}
    rejected: dict[str, ImageFacts] = {}
    for path in dict.fromkeys(paths):
        try:
            found[path] = places.find(path)
        except BadRecord as bad:
            rejected[path] = ImageFacts(path, 0, 0, reason=bad.reason, detail=bad.detail)
    images = (FileImage(root, file, max_pixels=max_pixels) for file in found.values())
    facts = index_images(images, root, cache_dir, max_pixels=max_pixels, workers=workers)
    return rejected | {path: facts[file] for path, file in found.items()}


def index_images(
    images: Iterable[StoredImage], root: Path, cache_dir: Path, *, max_pixels: int, workers: int = 4
) -> dict[str, ImageFacts]:
    """The facts of images below ``root``, by path. Decodes only those whose files are new or have changed.

    The cache is one JSON Lines file per root in ``cache_dir``. Its first line has the format, ``max_pixels`` and
    whether DICOM can be read. A damaged cache, or one with another first line, is rebuilt. An image that could not be
    read for lack of memory, or because the storage failed, is tried again the next time.

    Raises:
        DataError: the cache cannot be written.
    """
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    cache = cache_dir / f"images-{name}.jsonl"
    # With DICOM, so that files that were rejected for lack of pydicom are read once it is there.
    header = {"format": _FORMAT, "max_pixels": max_pixels, "dicom": int(can_read_dicom())}
    cached = _read_cache(cache, header)
    facts: dict[str, ImageFacts] = {}
    todo: list[tuple[StoredImage, tuple[int, int]]] = []
    for path, image in {image.path: image for image in images}.items():
        try:
            state = image.state()
        except OSError as error:  # removed since it was found
            detail = f"image {path!r} cannot be read: {error}"
            facts[path] = ImageFacts(path, 0, 0, reason=Reason.NO_IMAGE, detail=detail)
            continue
        previous = cached.get(path)
        if previous is not None and (previous.size, previous.mtime_ns) == state:
            facts[path] = previous
        else:
            todo.append((image, state))
    if todo:
        decoded: dict[str, ImageFacts] = {}
        try:
            with ThreadPoolExecutor(workers) as pool:
                results = pool.map(lambda item: _decode(*item), todo)
                console, hide = Console(stderr=True), len(todo) < _PROGRESS_FROM
                for fact, stays in track(results, "Checking images", total=len(todo), console=console, disable=hide):
                    facts[fact.path] = fact
                    if stays:
                        decoded[fact.path] = fact
        finally:  # also after an interrupt, because decoding a large release takes hours
            _write_cache(cache, header, cached | decoded)
    return facts


def _decode(image: StoredImage, state: tuple[int, int]) -> tuple[ImageFacts, bool]:
    """The facts, and whether they stay true as long as the file does not change."""
    try:
        decoded = image.decoded()
        content = image.content()
    except BadRecord as bad:
        return ImageFacts(image.path, *state, reason=bad.reason, detail=bad.detail), not _may_pass(bad)
    sha256, thumbnail = hashlib.sha256(content).hexdigest(), make_thumbnail(decoded.image)
    width, height = decoded.image.size
    return ImageFacts(image.path, *state, sha256, thumbnail, notes=decoded.notes, width=width, height=height), True


def _may_pass(error: BaseException) -> bool:
    """Whether the cause is the machine and not the file."""
    cause: BaseException | None = error
    while cause is not None:
        # Errors of the operating system have a number; those of Pillow's decoders have none.
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None):
            return True
        cause = cause.__cause__
    return False


def _read_cache(file: Path, header: dict[str, int]) -> dict[str, ImageFacts]:
    if not file.is_file():
        return {}
    try:
        with file.open(encoding="utf-8") as lines:
            if json.loads(next(lines, "null")) == header:
                return {facts.path: facts for facts in map(_from_json, lines)}
        log.info("%s has another format, pixel limit or DICOM support: all images are checked again", file)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is damaged (%s): all images are checked again", file, error)
    return {}


def _write_cache(file: Path, header: dict[str, int], facts: dict[str, ImageFacts]) -> None:
    """Replaces the cache atomically, so that neither a crash nor a second process leaves a partial file."""
    lines = [json.dumps(header), *(_to_json(facts[path]) for path in sorted(facts))]
    try:
        write_text(file, "\n".join(lines) + "\n")
    except OSError as error:
        raise DataError(f"the image cache {file} cannot be written: {error}. Remedy: a writable folder") from error


def make_thumbnail(image: Image.Image) -> bytes:
    """The normalised 16 x 16 thumbnail, one signed byte per pixel."""
    # Mode F first: averaging in integer grey levels would change a low-contrast thumbnail by 0.1.
    small = image.convert("L").convert("F").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.float64)
    normal = (grey - grey.mean()) / max(float(grey.std()), _CONTRAST_FLOOR)
    return bytes(np.clip(np.rint(normal * _STEPS), -127, 127).astype(np.int8).tobytes())


def group_by_content(facts: Iterable[ImageFacts]) -> dict[str, str]:
    """Maps each usable path to its content id: the first path, in sorted order, with the same image content.

    Groups are transitive: if a matches b and b matches c, all three are one group. For splits that errs on the safe
    side.

    Candidate pairs come from a k-d tree over the 15 lowest frequencies of the thumbnails' cosine transforms. Their
    distance never exceeds that of the thumbnails, so no pair is missed. 1,194 images take 0.03 s, 120,000 take 17 s.
    """
    usable = sorted((fact for fact in facts if fact.reason is None), key=lambda fact: fact.path)
    if not usable:
        return {}
    raw = np.frombuffer(b"".join(fact.thumbnail for fact in usable), dtype=np.int8).reshape(len(usable), -1)
    # Exact copies are merged first: a thousand of them would be half a million pairs.
    unique, inverse = np.unique(raw, axis=0, return_inverse=True)
    labels = _connected_components(unique.astype(np.float32) / np.float32(_STEPS))[inverse.ravel()]
    first: dict[int, str] = {}
    return {fact.path: first.setdefault(int(label), fact.path) for fact, label in zip(usable, labels, strict=True)}


def _connected_components(thumbnails: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Component of each thumbnail [N, 256] when pairs within ``MAX_CONTENT_DISTANCE`` are connected. Returns [N]."""
    count, pixels = thumbnails.shape
    radius = MAX_CONTENT_DISTANCE * pixels**0.5
    spectrum = dctn(thumbnails.reshape(count, _SIDE, _SIDE), axes=(1, 2), norm="ortho")[:, :4, :4]
    low = spectrum.reshape(count, 16)[:, 1:]
    pairs = cKDTree(low).query_pairs(radius, output_type="ndarray")
    close = np.zeros(len(pairs), dtype=bool)
    for start in range(0, len(pairs), 100_000):
        left, right = pairs[start : start + 100_000].T
        close[start : start + 100_000] = np.linalg.norm(thumbnails[left] - thumbnails[right], axis=1) <= radius
    left, right = pairs[close].T
    graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(count, count))
    labels: npt.NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return labels


def _to_json(facts: ImageFacts) -> str:
    return json.dumps(asdict(facts) | {"thumbnail": base64.b64encode(facts.thumbnail).decode("ascii")})


def _from_json(line: str) -> ImageFacts:
    """Inverse of ``_to_json``. Raises ValueError, KeyError or TypeError for any other line."""
    values: dict[str, Any] = json.loads(line)
    values["thumbnail"] = base64.b64decode(str(values["thumbnail"]), validate=True)
    if values["reason"] is not None:
        values["reason"] = Reason(str(values["reason"]))
    elif len(values["thumbnail"]) != _SIDE * _SIDE:
        raise ValueError(f"thumbnail of {len(values['thumbnail'])} bytes")
    values["notes"] = tuple(str(note) for note in values["notes"])
    if not isinstance(values["size"], int) or not isinstance(values["mtime_ns"], int):
        raise TypeError("size and mtime_ns must be integers")
    return ImageFacts(**values)
