"""DICOM files: windows, colour, frames and their errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medr1.data.images import read_image
from medr1.errors import DataError
from tests.dicom_files import RESCALED, write_dicom


def greys(path: Path, **arguments: object) -> list[int]:
    return [int(v) for v in np.asarray(read_image(path, **arguments))[..., 0].ravel()]  # type: ignore[arg-type]


CT = np.array([[0, 824, 1064, 1304], [2000, 3000, 1023, 1025]], dtype=np.int16)  # -1024 to 1976 HU


def test_the_window_of_the_file_or_the_given_one(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "ct.dcm", CT, **RESCALED, WindowCenter=[40, -600], WindowWidth=[400, 1500])
    hounsfield = CT.astype(float) - 1024

    def linear(center: float, width: float) -> list[int]:
        return (
            np.rint(255 * np.clip((hounsfield - center + 0.5) / (width - 1) + 0.5, 0, 1)).astype(int).ravel().tolist()
        )

    assert greys(path) == linear(40, 400)
    assert greys(path, window=(-600.0, 1500.0)) == linear(-600, 1500) != linear(40, 400)
    bare = write_dicom(tmp_path / "bare", CT, **RESCALED)  # recognised by its content
    assert (min(greys(bare)), max(greys(bare))) == (0, 255)
    negative = write_dicom(tmp_path / "n.dcm", CT, "MONOCHROME1", **RESCALED, WindowCenter=40, WindowWidth=400)
    assert greys(negative) == [255 - g for g in linear(40, 400)]
    exact = write_dicom(
        tmp_path / "e.dcm", CT, **RESCALED, WindowCenter=40, WindowWidth=400, VOILUTFunction="LINEAR_EXACT"
    )
    assert greys(exact) == np.rint(255 * np.clip((hounsfield - 40) / 400 + 0.5, 0, 1)).astype(int).ravel().tolist()


def test_colour_and_frames(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    colour = write_dicom(tmp_path / "c.dcm", rgb, "RGB")
    assert np.array_equal(np.asarray(read_image(colour)), rgb)
    film = write_dicom(tmp_path / "f.dcm", np.stack([CT, CT[::-1]]), **RESCALED)
    assert greys(film, frame=0) != greys(film, frame=1)
    (tmp_path / "text.dcm").write_text("no DICOM")
    for path, arguments, words in (
        (colour, {"window": (40.0, 400.0)}, "colour image (RGB)"),
        (film, {}, "2 frames; choose one with frame=0 to 1"),
        (film, {"frame": 2}, "no frame 2"),
        (film, {"frame": 0, "window": (40.0, 0.0)}, "width must be at least 1"),
        (film, {"frame": 0, "max_pixels": 7}, "4 x 2; the limit is 7 pixels"),
        (tmp_path / "text.dcm", {}, "cannot be read as DICOM"),
    ):
        with pytest.raises(DataError) as error:
            read_image(path, **arguments)  # type: ignore[arg-type]
        assert words in str(error.value)
