"""Small DICOM files for tests, written by SimpleITK; those without an image by hand."""

from __future__ import annotations

import locale
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

CT, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4.1"
X_RAY, REPORT, STRUCTURES = (
    "1.2.840.10008.5.1.4.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.88.67",
    "1.2.840.10008.5.1.4.1.1.481.3",
)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.8, 0.0, 0.6, 0.0, -1.0, 0.0)


def write_dicom(path: Path, image: sitk.Image, **tags: str) -> Path:
    """One DICOM file; `tags` by number, as `x0008_103e`."""
    for key, value in tags.items():
        image.SetMetaData(key[1:].replace("_", "|"), value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.SetFileName(str(path))
    before = locale.setlocale(locale.LC_ALL)
    writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # which writing DICOM, though not reading it, changes for the whole process
    return path


def write_series(
    folder: Path,
    volume: NDArray[Any],
    *,
    uid: str = "1.2.3.4",
    number: int = 3,
    description: str = "T1 axial",
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (1.5, -2.0, 30.0),
    spacing: Sequence[float] = (2.0, 0.8, 0.7),
    is_reversed: bool = False,
    **tags: str,
) -> list[Path]:
    """A CT series of a volume (z, y, x) along the normal of its orientation; returns the files by slice.

    `is_reversed` numbers and names the files from the last slice to the first one.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    paths = []
    for index, plane in enumerate(volume):
        at = len(volume) - 1 - index if is_reversed else index
        place = {
            "x0008_0016": CT,
            "x0008_0018": f"{uid}.{at + 1}",
            "x0008_0060": "CT",
            "x0008_103e": description,
            "x0020_000e": uid,
            "x0020_0011": str(number),
            "x0020_0013": str(at + 1),
            "x0020_0032": _numbers(np.array(origin) + index * spacing[0] * normal),
            "x0020_0037": _numbers(orientation),
        }
        image = sitk.GetImageFromArray(plane)
        image.SetSpacing((spacing[2], spacing[1]))
        paths.append(write_dicom(folder / f"{uid}_{at:03d}.dcm", image, **{**place, **tags}))
    return paths


def _numbers(values: Sequence[float]) -> str:
    return "\\".join(f"{value:.8g}" for value in values)


def write_without_image(path: Path, sop_class: str, modality: str) -> Path:
    """A DICOM file of header alone, as a structured report."""
    meta = b"".join(
        [
            _element(2, 1, b"OB", b"\0\1"),
            _element(2, 2, b"UI", sop_class.encode()),
            _element(2, 3, b"UI", b"1.2.3.4.5"),
            _element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1"),
        ]
    )
    rest = _element(8, 0x16, b"UI", sop_class.encode()) + _element(8, 0x60, b"CS", modality.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + _element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + rest)
    return path


def _element(group: int, element: int, kind: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if kind == b"UI" else b" "
    length = struct.pack("<HI", 0, len(value)) if kind == b"OB" else struct.pack("<H", len(value))
    return struct.pack("<HH2s", group, element, kind) + length + value
