"""What DICOM files without an image hold, as their first part names it.

Source: DICOM PS3.4, B.5 (SOP classes); PS3.10, 7.1 (the first part of a file).
"""

from __future__ import annotations

import struct
from pathlib import Path

_META_AT = 132
_SOP_CLASS = (0x0002, 0x0002)

_NO_IMAGES = {
    "1.2.840.10008.1.3.10": "index (DICOMDIR)",
    "1.2.840.10008.5.1.4.1.1.88.": "structured report",
    "1.2.840.10008.5.1.4.1.1.481.3": "RT structure set (RTSTRUCT)",
    "1.2.840.10008.5.1.4.1.1.481.": "radiotherapy plan or record",
    "1.2.840.10008.5.1.4.1.1.11.": "presentation state",
    "1.2.840.10008.5.1.4.1.1.9.": "waveform",
    "1.2.840.10008.5.1.4.1.1.104.": "document",
    "1.2.840.10008.5.1.4.1.1.66": "registration, fiducials, surfaces or raw data",
    "1.2.840.10008.5.1.4.1.1.4.2": "spectroscopy",
}
"""What files hold that SimpleITK finds no image in, by the beginning of their SOP class."""

_STANDARD = "1.2.840.10008."
"""All of DICOM's own SOP classes; others are a manufacturer's."""


def no_image(path: Path) -> str:
    """What a DICOM file without an image holds, in words; empty where its kind should have one."""
    name = _sop_class(path)
    if name and not name.startswith(_STANDARD):
        return "object of a manufacturer's own kind"
    return next((kind for start, kind in _NO_IMAGES.items() if name.startswith(start)), "")


def _sop_class(path: Path) -> str:
    """The SOP class that the first part of a file names, which is little-endian with explicit types in all of them."""
    try:
        with path.open("rb") as file:
            content = file.read(_META_AT + 1024)
    except OSError:
        return ""
    at = _META_AT
    while at + 12 <= len(content):
        group, element, kind, length = struct.unpack_from("<HH2sH", content, at)
        at += 8
        if group != _SOP_CLASS[0]:
            break
        if kind in (b"OB", b"UN"):  # of a longer form
            (length,) = struct.unpack_from("<I", content, at)
            at += 4
        if (group, element) == _SOP_CLASS:
            return content[at : at + length].decode("ascii", "replace").strip(" \0")
        at += length
    return ""
