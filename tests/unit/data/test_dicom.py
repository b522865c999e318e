"""DICOM files: windows, colour, frames and their errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medr1.data.dicom import read_numbers
from medr1.data.image_index import check_images, group_by_content
from medr1.data.images import FileImage, decode, decode_image
from medr1.domain.records import BadRecord, Reason
from medr1.errors import DataError
from tests.dicom_files import RESCALED, item, raw, write_dicom

pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra [dicom]")


def greys(path: Path, **arguments: object) -> list[int]:
    return [int(v) for v in np.asarray(decode_image(path, **arguments).image)[..., 0].ravel()]  # type: ignore[arg-type]


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
    assert np.array_equal(np.asarray(decode_image(colour).image), rgb)
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
            decode_image(path, **arguments)  # type: ignore[arg-type]
        assert words in str(error.value)


def minmax(values: np.ndarray) -> list[int]:
    values = values.astype(float)
    return np.rint(255 * (values - values.min()) / (values.max() - values.min())).astype(int).ravel().tolist()


def linear(values: np.ndarray, center: float, width: float) -> list[int]:
    shown = 255 * np.clip((values.astype(float) - center + 0.5) / (width - 1) + 0.5, 0, 1)
    return np.rint(shown).astype(int).ravel().tolist()


# Spellings of a number in a header, and what they mean; None is absent.
NUMBERS: list[tuple[bytes, float | None]] = [
    (b"2", 2.0),
    (b" +2.50 ", 2.5),
    (b"2,5", 2.5),
    (b",5", 0.5),
    (b".5", 0.5),
    (b"2.", 2.0),
    (b"25e-1", 2.5),
    (b"2,5E+0", 2.5),
    (b"2.5\0", 2.5),
    (b"2.5 HU", 2.5),
    (b"2.5HU", 2.5),
    (b"2.5 g/cm3", 2.5),
    (b"50%", 50.0),
    (b"2.5\\7", 2.5),
    (b"\\2.5", 2.5),
    (b"none\\2.5", 2.5),
    (b"nan\\2.5", 2.5),
    (b"", None),
    (b"  ", None),
    (b"\\", None),
    (b"\0\0", None),
]
UNUSABLE = [
    b"abc",
    b"nan",
    b"inf",
    b"1e999",
    b"1.2.3",
    b"0x10",
    b"1 000",
    b"--2",
    b"1,234.5",
    b"HU 2",
    b"a\\b",
    b"\xff",
]


@pytest.mark.parametrize(("spelling", "number"), NUMBERS)
def test_numbers_are_read_as_devices_write_them(tmp_path: Path, spelling: bytes, number: float | None) -> None:
    path = write_dicom(tmp_path / "x.dcm", CT, RescaleSlope=spelling, RescaleIntercept=b"-100,5")
    header = pydicom.dcmread(path)
    assert read_numbers(header, "RescaleSlope")[:1] == ([] if number is None else [number])
    values = CT * (1.0 if number is None else number) - 100.5
    assert greys(path, window=(40.0, 400.0)) == linear(values, 40, 400)


@pytest.mark.parametrize("spelling", UNUSABLE)
@pytest.mark.parametrize(
    ("keyword", "tag"),
    [
        ("RescaleSlope", "(0028,1053)"),
        ("RescaleIntercept", "(0028,1052)"),
        ("WindowCenter", "(0028,1050)"),
        ("WindowWidth", "(0028,1051)"),
        ("NumberOfFrames", "(0028,0008)"),
    ],
)
def test_an_unusable_number_is_named_by_tag_and_file(tmp_path: Path, keyword: str, tag: str, spelling: bytes) -> None:
    path = write_dicom(tmp_path / "x.dcm", CT, **{"WindowCenter": b"40", "WindowWidth": b"400", keyword: spelling})
    with pytest.raises(DataError) as error:
        decode_image(path)
    assert all(word in str(error.value) for word in (keyword, tag, str(path)))
    with pytest.raises(BadRecord) as bad:
        decode(tmp_path, "x.dcm", 10_000)
    assert all(word in str(bad.value) for word in (keyword, tag, "x.dcm"))
    assert bad.value.reason is Reason.UNDECODABLE_IMAGE


@pytest.mark.parametrize(("keyword", "value"), [("Rows", b"2 px"), ("Columns", b"4,0"), ("BitsStored", b"16\\12")])
def test_counts_written_as_text_are_read(tmp_path: Path, keyword: str, value: bytes) -> None:
    path = tmp_path / "x.dcm"
    write_dicom(path, CT)
    expected = greys(path)
    header = pydicom.dcmread(path)
    raw(header, keyword, value, "IS")
    header.save_as(path)
    assert greys(path) == expected


@pytest.mark.parametrize("value", [b"-2", b"2.5", b"99999999999", b"many"])
@pytest.mark.parametrize("keyword", ["Rows", "Columns", "NumberOfFrames", "BitsAllocated", "SamplesPerPixel"])
def test_impossible_counts_are_named(tmp_path: Path, keyword: str, value: bytes) -> None:
    path = write_dicom(tmp_path / "x.dcm", CT)
    header = pydicom.dcmread(path)
    raw(header, keyword, value, "IS")
    header.save_as(path)
    with pytest.raises(DataError, match=keyword):
        decode_image(path)


@given(
    st.one_of(st.binary(max_size=24), st.from_regex(r"[0-9.,eE+\- \\HU]{0,16}", fullmatch=True).map(str.encode)),
    st.sampled_from(["RescaleSlope", "WindowWidth", "NumberOfFrames", "PixelPaddingValue", "Rows", "LUTDescriptor"]),
    st.sampled_from(["DS", "IS", "LO", "US", "SS", "FD", "UN", "OW", None]),
)
def test_any_bytes_are_numbers_or_absent_or_named_by_tag(value: bytes, keyword: str, vr: str | None) -> None:
    header = pydicom.Dataset()
    header.PixelRepresentation = 0
    raw(header, keyword, value, vr)  # type: ignore[arg-type]
    try:
        numbers = read_numbers(header, keyword)
    except BadRecord as bad:
        assert keyword in str(bad) and str(pydicom.tag.Tag(keyword)) in str(bad)
    else:
        assert all(isinstance(number, float) and np.isfinite(number) for number in numbers)


def group(slope: object = None, center: object = None) -> object:
    """A functional group with a rescale slope, a window of width 1000, or both."""
    macros: dict[str, object] = {}
    if slope is not None:
        macros["PixelValueTransformationSequence"] = [item(RescaleSlope=slope, RescaleIntercept=b"-100")]
    if center is not None:
        macros["FrameVOILUTSequence"] = [item(WindowCenter=center, WindowWidth=b"1000")]
    return item(**macros)


@pytest.mark.parametrize(
    ("root", "shared", "frames", "slopes"),
    [
        ({"RescaleSlope": b"2", "RescaleIntercept": b"-100"}, None, None, [2, 2]),
        ({}, b"2", None, [2, 2]),
        ({}, None, [b"2", b"3"], [2, 3]),
        ({}, b"4", [b"2", b"3"], [2, 3]),
        ({}, b"4", [b"2", None], [2, 4]),
        ({"RescaleSlope": b"5", "RescaleIntercept": b"-100"}, b"4", [b"2"], [2, 4]),
        ({"RescaleSlope": b"5", "RescaleIntercept": b"-100"}, None, [b"2,0", None], [2, 5]),
        ({}, b"2,5 HU", [None, b"3"], [2.5, 3]),
    ],
)
@pytest.mark.parametrize("attribute", ["slope", "center"])
def test_rescale_and_window_are_those_of_the_frame(
    tmp_path: Path, root: dict, shared: bytes | None, frames: list | None, slopes: list[float], attribute: str
) -> None:
    groups: dict[str, object] = {}
    if attribute == "center" and root:
        root = {"WindowCenter": root["RescaleSlope"], "WindowWidth": b"1000"}
    if shared is not None:
        groups["SharedFunctionalGroupsSequence"] = [group(**{attribute: shared})]
    if frames is not None:
        groups["PerFrameFunctionalGroupsSequence"] = [group(**{attribute: value}) for value in frames]
    path = write_dicom(tmp_path / "x.dcm", np.stack([CT, CT[::-1]]), **root, **groups)
    for frame, slope in enumerate(slopes):
        values = np.stack([CT, CT[::-1]])[frame]
        if attribute == "slope":
            assert greys(path, frame=frame, window=(40.0, 400.0)) == linear(values * slope - 100.0, 40, 400)
        else:
            assert greys(path, frame=frame) == linear(values, slope, 1000)


PADDED = np.array([[-2000, -2000, 0, 10], [20, 30, 43, -2000]], dtype=np.int16)


@pytest.mark.parametrize(
    ("attributes", "padding"),
    [
        ({"PixelPaddingValue": -2000}, -2000),
        ({"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1900}, -1950),
        ({"PixelPaddingValue": -1900, "PixelPaddingRangeLimit": -2000}, -1950),
        ({"PixelPaddingValue": b"-2000 HU"}, -2000),
    ],
)
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_left_out_of_minimum_and_maximum(tmp_path: Path, attributes: dict, padding: int, kind: str) -> None:
    values = np.where(PADDED == -2000, padding, PADDED).astype(np.int16)
    path = write_dicom(tmp_path / "x.dcm", values, kind, **attributes, RescaleSlope=b"2", RescaleIntercept=b"7")
    expected = np.rint(255 * np.clip(PADDED / 43, 0, 1)).astype(int).ravel()
    assert greys(path) == (expected if kind == "MONOCHROME2" else 255 - expected).tolist()


def test_padding_written_as_unsigned_is_that_of_signed_pixels(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "x.dcm", PADDED, PixelPaddingValue=b"63536")
    assert greys(path) == np.rint(255 * np.clip(PADDED / 43, 0, 1)).astype(int).ravel().tolist()


def test_an_image_of_padding_alone_is_black(tmp_path: Path) -> None:
    assert set(greys(write_dicom(tmp_path / "x.dcm", np.full((2, 2), 7, np.int16), PixelPaddingValue=7))) == {0}


@pytest.mark.parametrize(
    ("dtype", "bits"), [(np.uint8, 8), (np.uint8, 7), (np.uint16, 16), (np.uint16, 12), (np.uint16, 10)]
)
def test_colour_is_scaled_by_the_bits_stored(tmp_path: Path, dtype: type, bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (3, 4, 3)).astype(dtype)
    values[0, 0] = 2**bits - 1
    path = write_dicom(tmp_path / "x.dcm", values, "RGB", BitsStored=bits, HighBit=bits - 1)
    assert np.array_equal(np.asarray(decode_image(path).image), np.rint(values / (2**bits - 1) * 255))


def lut(table: list[int], first: int, bits: int, packed: bool = False) -> object:
    data = np.array(table, np.uint8 if packed else "<u2").tobytes()
    lut = item(LUTDescriptor=[len(table), first, bits])
    lut.add_new("LUTData", "OW", data)  # type: ignore[attr-defined]
    return lut


@pytest.mark.parametrize(("bits", "packed"), [(8, False), (8, True), (10, False), (12, False), (16, False)])
def test_lookup_tables_are_applied(tmp_path: Path, bits: int, packed: bool) -> None:
    """12-bit values to tables of several depths, before and after the ends of the table, with the modality's own."""
    values = np.array([[0, 99, 100, 101], [399, 499, 500, 4095]], dtype=np.uint16)
    table = np.linspace(2**bits - 1, 0, 400).astype(int)  # inverts
    voi = lut(table.tolist(), 100, bits, packed)
    path = write_dicom(tmp_path / "x.dcm", values, VOILUTSequence=[voi], WindowCenter=b"1", WindowWidth=b"2")
    looked_up = table[np.clip(values.astype(int) - 100, 0, 399)]
    expected = np.rint(looked_up * 255 / (2**bits - 1)).astype(int).ravel().tolist()
    assert greys(path) == expected
    assert greys(path, window=(300.0, 200.0)) == linear(values, 300, 200)
    inverted = write_dicom(tmp_path / "i.dcm", values, "MONOCHROME1", VOILUTSequence=[voi])
    assert greys(inverted) == [255 - g for g in expected]
    double = lut(list(range(0, 1000, 2)), 0, 16)
    both = write_dicom(tmp_path / "b.dcm", values, ModalityLUTSequence=[double], VOILUTSequence=[voi])
    doubled = 2 * np.clip(values.astype(int), 0, 499)
    assert (
        greys(both) == np.rint(table[np.clip(doubled - 100, 0, 399)] * 255 / (2**bits - 1)).astype(int).ravel().tolist()
    )


@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian"])
@pytest.mark.parametrize("name", ["x.dcm", "x", "x.png"])
def test_files_without_preamble_are_read(tmp_path: Path, syntax: str, name: str) -> None:
    expected = greys(write_dicom(tmp_path / "whole.dcm", CT, WindowCenter=b"900", WindowWidth=b"900"))
    path = write_dicom(tmp_path / name, CT, syntax=syntax, preamble=False, WindowCenter=b"900", WindowWidth=b"900")
    assert path.read_bytes()[128:132] != b"DICM"
    assert greys(path) == expected
    assert np.array_equal(np.asarray(decode(tmp_path, name, 10_000).image)[..., 0].ravel(), expected)


def deflated(path: Path) -> None:
    write_dicom(path, np.zeros((50, 50), np.uint16), syntax="DeflatedExplicitVRLittleEndian")
    content = bytearray(path.read_bytes())
    content[-30:] = b"\xff" * 30
    path.write_bytes(content)


NOISE = np.random.default_rng(0).bytes(500)
BROKEN: dict[str, Callable[[Path], object]] = {
    "zlib": deflated,
    "short pixel data": lambda path: write_dicom(path, CT) and shorten(path),
    "other rows": lambda path: write_dicom(path, CT, Rows=3),
    "no rows": lambda path: write_dicom(path, CT, remove=("Rows",)),
    "zero columns": lambda path: write_dicom(path, CT, Columns=0),
    "no pixel data": lambda path: write_dicom(path, CT, remove=("PixelData",)),
    "no photometric interpretation": lambda path: write_dicom(path, CT, remove=("PhotometricInterpretation",)),
    "no bits allocated": lambda path: write_dicom(path, CT, remove=("BitsAllocated",)),
    "no samples per pixel": lambda path: write_dicom(path, CT, remove=("SamplesPerPixel",)),
    "odd bits allocated": lambda path: write_dicom(path, CT, BitsAllocated=13),
    "more bits stored than allocated": lambda path: write_dicom(path, CT, BitsStored=40),
    "unknown photometric interpretation": lambda path: write_dicom(path, CT, PhotometricInterpretation="SEPIA"),
    "grey with three samples": lambda path: write_dicom(
        path, np.zeros((4, 4, 3), np.uint8), "RGB", PhotometricInterpretation="MONOCHROME2"
    ),
    "palette without table": lambda path: write_dicom(path, CT, PhotometricInterpretation="PALETTE COLOR"),
    "empty table": lambda path: write_dicom(path, CT, VOILUTSequence=[lut([], 0, 16)]),
    "table of 40 bits": lambda path: write_dicom(path, CT, VOILUTSequence=[lut([1, 2], 0, 40)]),
    "compressed": lambda path: write_dicom(path, CT, syntax="ExplicitVRLittleEndian") and mislabel(path),
    "text": lambda path: path.write_text("no DICOM at all " * 20),
    "preamble only": lambda path: path.write_bytes(b"\0" * 128 + b"DICM"),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(500)),
    "noise after the preamble": lambda path: path.write_bytes(
        b"\0" * 128 + b"DICM" + np.random.default_rng(0).bytes(500)
    ),
}


def shorten(path: Path) -> None:
    header = pydicom.dcmread(path)
    header.PixelData = header.PixelData[:6]
    header.save_as(path)


def mislabel(path: Path) -> None:
    """Raw pixel data under the name of a compression."""
    content = path.read_bytes()
    header = pydicom.dcmread(path)
    old = str(header.file_meta.TransferSyntaxUID).encode()
    path.write_bytes(content.replace(old + b"\0", b"1.2.840.10008.1.2.5"[: len(old) + 1].ljust(len(old) + 1, b"\0")))


@pytest.mark.parametrize("broken", BROKEN)
def test_no_broken_file_gives_a_traceback(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "x.dcm"
    BROKEN[broken](path)
    with pytest.raises(DataError, match=r"x\.dcm"):
        decode_image(path)
    with pytest.raises(BadRecord, match=r"x\.dcm") as bad:
        decode(tmp_path, path.name, 10_000)
    assert bad.value.reason is Reason.UNDECODABLE_IMAGE


@given(data=st.data())
def test_no_damaged_file_gives_anything_but_an_image_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("dicom", numbered=True)
    shared = [group(b"2", b"40")]
    path = write_dicom(folder / "x.dcm", CT, SharedFunctionalGroupsSequence=shared, VOILUTSequence=[lut([1, 2], 0, 8)])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        assert decode(folder, path.name, 10_000).image.mode == "RGB"
    except BadRecord as bad:
        assert path.name in str(bad)


def test_a_dicom_file_is_an_image_of_a_dataset(tmp_path: Path) -> None:
    write_dicom(tmp_path / "one.dcm", CT, WindowCenter=b"900", WindowWidth=b"900")
    write_dicom(tmp_path / "film.dcm", np.stack([CT, CT[::-1]]))
    decode_image(tmp_path / "one.dcm").image.save(tmp_path / "one.png")
    names = ["one.dcm", "film.dcm", "one.png"]
    facts = check_images(tmp_path, names, tmp_path / "cache", max_pixels=100)
    assert [facts[name].reason for name in names] == [None] * 3
    assert [bool(facts[name].notes) for name in names] == [False, True, False] and "2 frames" in facts[
        "film.dcm"
    ].notes[0]
    groups = group_by_content(facts.values())
    assert groups["one.dcm"] == groups["one.png"] != groups["film.dcm"]
    assert np.array_equal(FileImage(tmp_path, "one.dcm").load(8), FileImage(tmp_path, "one.png").load(8))
    assert check_images(tmp_path, names, tmp_path / "cache", max_pixels=7)["one.dcm"].reason is Reason.IMAGE_TOO_LARGE
