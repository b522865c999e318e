"""Image files: every mode becomes RGB, every fault has its own reason."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from medr1.data.images import (
    BACKGROUND,
    FileImage,
    decode,
    decode_image,
    read_rgb,
    resolve_inside,
    to_rgb,
)
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
def test_every_mode_becomes_rgb_of_its_size(tmp_path: Path, mode: str) -> None:
    suffix = {"CMYK": "jpg", "I": "tif", "F": "tif"}.get(mode, "png")
    if mode == "I;16":
        image = Image.fromarray((noise()[..., 0].astype(np.uint16)) * 200)
    else:
        image = Image.fromarray(noise()).convert("L").convert(mode) if mode in "IF" else Image.fromarray(noise())
        image = image.convert(mode)
    assert image.mode == mode
    image.save(tmp_path / f"x.{suffix}")
    loaded = FileImage(tmp_path, f"x.{suffix}").load(32)
    assert (loaded.mode, loaded.size) == ("RGB", image.size)
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
    assert reason_of(tmp_path, "text.png") == (
        Reason.UNDECODABLE_IMAGE,
        "image 'text.png' cannot be decoded: it has no known image format",
    )


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
        ("pages.tif", {"frame": 2}, "no frame 2; it has 2, counted from 0"),
        ("pages.tif", {"frame": -1}, "no frame -1"),
        ("grey.png", {"max_pixels": 599}, "30 x 20; the limit is 599 pixels (max_pixels)"),
        ("grey.png", {"window": (40.0, 400.0)}, "remove window"),
        ("grey.png", {"frame": 0}, "remove frame"),
    ):
        with pytest.raises(DataError) as error:
            decode_image(tmp_path / name, **arguments)  # type: ignore[arg-type]
        assert words in str(error.value) and name in str(error.value)
    (tmp_path / "link.png").symlink_to(tmp_path / "grey.png")
    assert decode_image(tmp_path / "link.png").image.size == (30, 20)


UPRIGHT = Image.fromarray(noise(8)).resize((48, 32), Image.Resampling.BICUBIC)
STORED = {  # how an image is turned that is upright after the turn that its orientation asks for
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def save_turned(path: Path, orientation: int, stored: int | None = None, **arguments: object) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = STORED[orientation if stored is None else stored]
    (UPRIGHT if turn is None else UPRIGHT.transpose(turn)).save(path, exif=exif, **arguments)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_images_are_turned_as_their_exif_data_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    lossless = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(suffix, {})
    path = save_turned(tmp_path / f"x.{suffix}", orientation, **lossless)
    tolerance = 12 if suffix == "jpg" else 0
    expected = np.asarray(UPRIGHT, int)
    for image in (read_rgb(tmp_path, path.name, LIMIT), decode_image(path).image):
        assert image.size == UPRIGHT.size
        assert np.abs(np.asarray(image, int) - expected).max() <= tolerance
    assert np.abs(np.asarray(FileImage(tmp_path, path.name).load(16), int) - expected).max() <= tolerance


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16", "1"])
def test_every_mode_is_turned(tmp_path: Path, mode: str, suffix: str) -> None:
    """TIFFs without compression, too."""
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 40
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray(values.astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / f"x.{suffix}")
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / f"turned.{suffix}", exif=exif)
    one, other = (np.asarray(read_rgb(tmp_path, f"{name}.{suffix}", LIMIT)) for name in ("x", "turned"))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_low_numbers_are_bright_where_a_tiff_says_so(tmp_path: Path, kind: str) -> None:
    shown = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    stored = 255 - shown if kind == "uint8" else (255 - shown.astype(np.uint16)) * 256
    Image.fromarray(stored).save(tmp_path / "x.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "x.tif") as written:
        assert written.tag_v2[262] == 0
    expected = 255 - shown if kind == "uint8" else shown  # Pillow inverts what it writes with 8 bits
    assert np.array_equal(np.asarray(read_rgb(tmp_path, "x.tif", LIMIT))[..., 0], expected)


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_an_orientation_that_does_not_exist_changes_nothing(tmp_path: Path, orientation: int) -> None:
    save_turned(tmp_path / "x.png", orientation, stored=1)
    assert np.array_equal(read_rgb(tmp_path, "x.png", LIMIT), UPRIGHT)


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0no TIFF at all", b"x" * 50])
def test_damaged_exif_data_does_not_lose_the_image(tmp_path: Path, exif: bytes) -> None:
    UPRIGHT.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_rgb(tmp_path, "x.png", LIMIT), UPRIGHT)


def transparent(mode: str, content: int) -> Image.Image:
    """A square of the grey level ``content`` on a transparent background."""
    alpha = np.zeros((20, 20), np.uint8)
    alpha[5:15, 5:15] = 255
    if mode in ("RGBA", "LA"):
        image = Image.new(mode[:-1], (20, 20), (content,) * (len(mode) - 1))
        image.putalpha(Image.fromarray(alpha))
        return image
    grey = Image.fromarray(np.where(alpha, content, 77).astype(np.uint8))
    image = grey.convert("P" if mode == "P" else "RGB")
    image.info["transparency"] = image.getpixel((0, 0))
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
@pytest.mark.parametrize("content", [0, 200])
def test_an_image_that_is_empty_on_the_background_is_reported(tmp_path: Path, mode: str, content: int) -> None:
    transparent(mode, content).save(tmp_path / "x.png")
    decoded = decode(tmp_path, "x.png", LIMIT)
    assert np.asarray(decoded.image)[0, 0].tolist() == list(BACKGROUND)
    assert np.asarray(decoded.image)[10, 10].tolist() == [content] * 3
    assert len(decoded.notes) == (content == 0) and all("empty" in note for note in decoded.notes)


@pytest.mark.parametrize(
    "image", [Image.new("L", (9, 9)), Image.new("RGBA", (9, 9), (7, 7, 7, 255)), Image.new("P", (9, 9))]
)
def test_an_opaque_image_of_one_colour_is_not_reported(tmp_path: Path, image: Image.Image) -> None:
    image.save(tmp_path / "x.png")
    assert decode(tmp_path, "x.png", LIMIT).notes == ()


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png", "mpo"])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_several_frames_are_reported_and_can_be_chosen(tmp_path: Path, suffix: str, frames: int) -> None:
    pages = [Image.new("RGB", (16, 16), (50 * i, 50 * i, 50 * i)) for i in range(frames)]
    path = tmp_path / f"x.{suffix}"
    pages[0].save(path, save_all=True, append_images=pages[1:], **({"lossless": True} if suffix == "webp" else {}))
    decoded = decode(tmp_path, path.name, LIMIT)
    assert np.asarray(decoded.image).max() <= 3
    assert [f"{frames} frames" in note for note in decoded.notes] == [True] * (frames > 1)
    assert decode_image(path, window=None, frame=None, max_pixels=LIMIT).notes == decoded.notes
    for frame in range(frames) if frames > 1 else ():
        chosen = decode_image(path, window=None, frame=frame, max_pixels=LIMIT)
        assert np.abs(np.asarray(chosen.image, int) - 50 * frame).max() <= 3 and chosen.notes == ()


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "bmp", "webp", "mpo"])
@given(data=st.data())
def test_no_damaged_file_gives_anything_but_an_image_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged", numbered=True)
    path = folder / f"x.{suffix}"
    UPRIGHT.save(path, **({"save_all": True, "append_images": [UPRIGHT]} if suffix in ("gif", "mpo") else {}))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        assert decode(folder, path.name, LIMIT).image.mode == "RGB"
    except BadRecord as bad:
        assert path.name in str(bad)
