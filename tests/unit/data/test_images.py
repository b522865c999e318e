"""Image files: every mode becomes RGB, every fault has its own reason."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from medr1.data.images import FileImage, read_image, read_rgb, resolve_inside, to_rgb
from medr1.domain.records import BadRecord, Reason
from medr1.errors import DataError

LIMIT = 1_000_000


def noise(side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def reason_of(root: Path, relative: str) -> tuple[Reason, str]:
    with pytest.raises(BadRecord) as caught:
        read_rgb(root, relative, LIMIT)
    assert caught.value.record == relative
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_rgb_of_the_asked_size(tmp_path: Path, mode: str) -> None:
    suffix = {"CMYK": "jpg", "I": "tif", "F": "tif"}.get(mode, "png")
    if mode == "I;16":
        image = Image.fromarray((noise()[..., 0].astype(np.uint16)) * 200)
    else:
        image = Image.fromarray(noise()).convert("L").convert(mode) if mode in "IF" else Image.fromarray(noise())
        image = image.convert(mode)
    assert image.mode == mode
    image.save(tmp_path / f"x.{suffix}")
    loaded = FileImage(tmp_path, f"x.{suffix}").load(32)
    assert (loaded.mode, loaded.size) == ("RGB", (32, 32))
    assert np.asarray(loaded).std() > 1, "the image content is lost"


def test_sixteen_bit_grey_is_stretched_not_clipped() -> None:
    ramp = np.linspace(1000, 5000, 256).astype(np.uint16).reshape(16, 16)
    grey = np.asarray(to_rgb(Image.fromarray(ramp)))[..., 0].ravel()
    assert (grey[0], grey[-1]) == (0, 255)
    assert len(set(grey.tolist())) > 250


def test_flat_sixteen_bit_image_is_black() -> None:
    assert np.asarray(to_rgb(Image.fromarray(np.full((4, 4), 700, np.uint16)))).max() == 0


def test_transparent_pixels_are_black_whatever_their_colour() -> None:
    image = Image.new("RGBA", (2, 1), (255, 255, 255, 0))
    image.putpixel((1, 0), (10, 200, 30, 255))
    assert np.asarray(to_rgb(image)).tolist() == [[[0, 0, 0], [10, 200, 30]]]


def test_key_is_the_content_id_or_the_path(tmp_path: Path) -> None:
    assert FileImage(tmp_path, "a.png").key == "a.png"
    assert FileImage(tmp_path, "a.png", "b.jpg").key == "b.jpg"


@pytest.mark.parametrize(
    "relative", ["/etc/hostname", "C:\\x.png", "\\\\host\\x.png", "../x.png", "a/../../x.png", "a\\..\\x.png"]
)
def test_paths_that_leave_the_root_are_rejected(tmp_path: Path, relative: str) -> None:
    with pytest.raises(BadRecord, match="path that") as caught:
        resolve_inside(tmp_path, relative)
    assert caught.value.reason is Reason.PATH_LEAVES_ROOT


@pytest.mark.parametrize("link_to_folder", [False, True])
def test_links_are_followed_out_of_the_root(tmp_path: Path, link_to_folder: bool) -> None:
    root, outside = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    outside.mkdir()
    Image.fromarray(noise()).save(outside / "x.png")
    (root / "link").symlink_to(outside if link_to_folder else outside / "x.png")
    assert read_rgb(root, "link/x.png" if link_to_folder else "link", LIMIT).size == (64, 64)
    assert reason_of(root, "../elsewhere/x.png")[0] is Reason.PATH_LEAVES_ROOT


@pytest.mark.parametrize("relative", ["", "a\0b.png", "\ud800.png"])
def test_impossible_paths_are_malformed(tmp_path: Path, relative: str) -> None:
    assert reason_of(tmp_path, relative)[0] is Reason.MALFORMED


def test_missing_folder_and_link_loop_are_no_image(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.symlink(tmp_path / "loop.png", tmp_path / "loop.png")
    for relative in ("absent.png", "folder", "loop.png", "loop.png/x.png", 300 * "x"):
        assert reason_of(tmp_path, relative)[0] is Reason.NO_IMAGE


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_truncated_files_are_undecodable(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(noise()).save(path)
    assert read_rgb(tmp_path, path.name, LIMIT).size == (64, 64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reason, detail = reason_of(tmp_path, path.name)
    assert reason is Reason.UNDECODABLE_IMAGE and path.name in detail
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_empty_and_foreign_files_are_undecodable(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    assert reason_of(tmp_path, "empty.png") == (Reason.UNDECODABLE_IMAGE, "image 'empty.png' has 0 bytes")
    assert reason_of(tmp_path, "text.png")[0] is Reason.UNDECODABLE_IMAGE


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [1001, 10_000, 60_000])
def test_bombs_are_rejected_by_their_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    reason, detail = reason_of(tmp_path, "bomb.png")
    assert reason is Reason.IMAGE_TOO_LARGE and "data.max_image_pixels" in detail


def test_pixel_limit_is_inclusive(tmp_path: Path) -> None:
    Image.fromarray(noise(64)).save(tmp_path / "x.png")
    assert read_rgb(tmp_path, "x.png", 64 * 64).size == (64, 64)
    with pytest.raises(BadRecord):
        read_rgb(tmp_path, "x.png", 64 * 64 - 1)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    grey = Image.new("L", (30, 20))
    grey.save(tmp_path / "grey.png")
    grey.save(tmp_path / "pages.tif", save_all=True, append_images=[grey])
    for name, arguments, words in (
        ("nowhere.png", {}, "does not exist"),
        ("text.png", {}, "cannot be decoded"),
        ("empty.png", {}, "0 bytes"),
        ("pages.tif", {}, "2 pages"),
        ("grey.png", {"max_pixels": 599}, "30 x 20; the limit is 599 pixels (max_pixels)"),
        ("grey.png", {"window": (40.0, 400.0)}, "remove window"),
        ("grey.png", {"frame": 0}, "remove frame"),
    ):
        with pytest.raises(DataError) as error:
            read_image(tmp_path / name, **arguments)  # type: ignore[arg-type]
        assert words in str(error.value) and name in str(error.value)
    (tmp_path / "link.png").symlink_to(tmp_path / "grey.png")
    assert read_image(tmp_path / "link.png").size == (30, 20)
