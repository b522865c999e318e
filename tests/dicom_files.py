"""Writes small DICOM files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

RESCALED = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def raw(data: object, keyword: str, value: bytes, vr: str = "DS") -> None:
    """Puts bytes into a dataset as they stand in a file, also such that pydicom itself refuses."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    value += b" " * (len(value) % 2)
    data[keyword] = RawDataElement(Tag(keyword), vr, len(value), value, 0, False, True, True)  # type: ignore[index]


def item(**attributes: object) -> object:
    """An item of a sequence. Bytes are written raw."""
    import pydicom

    data = pydicom.Dataset()
    fill(data, attributes)
    return data


def fill(data: object, attributes: dict[str, object]) -> None:
    for name, value in attributes.items():
        if isinstance(value, bytes) and name != "LUTData":
            raw(data, name, value)
        else:
            setattr(data, name, value)


def write_dicom(
    path: Path,
    values: np.ndarray,
    kind: str = "MONOCHROME2",
    *,
    syntax: str = "ExplicitVRLittleEndian",
    preamble: bool = True,
    remove: tuple[str, ...] = (),
    **attributes: object,
) -> Path:
    """Writes ``values`` [frames, rows, columns, samples], of which frames and samples may be missing.

    ``attributes`` that are bytes are written raw, as decimal strings. Without ``preamble`` there is no file meta
    information either.
    """
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra [dicom]")
    from pydicom import uid
    from pydicom.uid import CTImageStorage

    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, "1.2.3"
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3"
    data.file_meta.TransferSyntaxUID = getattr(uid, syntax)
    colour = kind == "RGB"
    frames = values.ndim - 2 - colour
    data.Rows, data.Columns = values.shape[frames : frames + 2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 3 if colour else 1, kind
    if colour:
        data.PlanarConfiguration = 0
    if frames:
        data.NumberOfFrames = values.shape[0]
    data.BitsAllocated = data.BitsStored = 8 * values.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(values.dtype.kind == "i")
    data.add_new("PixelData", "OW", values.tobytes())
    fill(data, attributes)
    for name in remove:
        del data[name]
    if preamble:
        data.save_as(path, enforce_file_format=True)
    else:
        del data.file_meta
        implicit, little = syntax.startswith("Implicit"), not syntax.endswith("BigEndian")
        data.save_as(path, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    return path
