"""Writes small DICOM files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

RESCALED = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def write_dicom(path: Path, values: np.ndarray, kind: str = "MONOCHROME2", **attributes: object) -> Path:
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra [dicom]")
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
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
    data.PixelData = values.tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path
