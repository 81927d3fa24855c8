"""The names of labels inside the file of a label map, where its format can hold them.

| format | where | read by |
| --- | --- | --- |
| NIfTI | header extension 30 (CARET), XML | Connectome Workbench, TotalSegmentator's tools |
| NRRD | `Segment0_Name`, `Segment0_LabelValue`, ... | 3D Slicer, as a segmentation |
| MHA, PNG, TIFF | `LabelNames`, JSON: in the header, as a text chunk, in the description | - |

BMP and others hold none. The background, 0, is no label to these programs and is not named.

Source: NIfTI-1's extensions (https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields/nifti1fields_pages/
extension.html), Workbench's label table in a volume, Slicer's segmentation node (Slicer's developer guide).
"""

from __future__ import annotations

import colorsys
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from umamba_cli.pipeline.data import itk, nifti, tiff
from umamba_cli.pipeline.errors import InputError

KEY = "LabelNames"
"""Key of the names where a format has no custom of its own."""

_CARET = 30
_XML_START = b'<?xml version="1.0" encoding="UTF-8"?>\n'
_SEGMENT = re.compile(r"Segment[0-9]+_LabelValue")
_HUE_STEP = (5**0.5 - 1) / 2  # neighbours differ most, however many there are


def usable_names(names: Mapping[int, str] | None) -> dict[int, str]:
    """Names by value as they are written: above 0, in order, on one line, in characters that a file can hold."""
    chosen = {int(value): name for value, name in (names or {}).items() if value > 0}
    return {value: _printable(chosen[value]) for value in sorted(chosen)}


def _printable(name: str) -> str:
    """The name without what XML and a line of a header cannot hold."""
    text = re.sub(r"[^\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+", " ", name)
    return " ".join(text.split())


def as_json(names: Mapping[int, str]) -> str:
    """The names in ASCII, on one line."""
    return json.dumps({str(value): name for value, name in names.items()})


def as_caret_xml(names: Mapping[int, str]) -> bytes:
    """The content of a NIfTI header extension: Workbench's label table."""
    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    for value, name in names.items():
        colours = dict(zip(("Red", "Green", "Blue"), _colour(value), strict=True))
        ElementTree.SubElement(table, "Label", {"Key": str(value), **colours, "Alpha": "1"}).text = name
    ElementTree.SubElement(volume, "StudyMetaDataLinkSet")
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    return _XML_START + ElementTree.tostring(root, encoding="unicode").encode()


def as_extension(names: Mapping[int, str]) -> nifti.Extension:
    """The names as a NIfTI header extension."""
    return nifti.Extension(_CARET, as_caret_xml(names))


def as_segments(names: Mapping[int, str], shape: Sequence[int]) -> dict[str, str]:
    """Slicer's keys for the header of a NRRD file of `shape` (z, y, x)."""
    entries = {}
    extent = " ".join(f"0 {size - 1}" for size in reversed(shape))
    for index, (value, name) in enumerate(names.items()):
        segment = {
            "ID": f"Segment_{value}",
            "Name": name,
            "LabelValue": str(value),
            "Layer": "0",
            "Color": " ".join(_colour(value)),
            "Extent": extent,
        }
        entries.update({f"Segment{index}_{key}": content for key, content in segment.items()})
    return entries


def _colour(value: int) -> tuple[str, ...]:
    """Red, green and blue from 0 to 1, the same for a value in every file."""
    strength = (0.9, 0.65)[value // 12 % 2]
    return tuple(f"{part:.4f}" for part in colorsys.hsv_to_rgb(value * _HUE_STEP % 1, 0.75, strength))


def read_label_names(path: Path) -> dict[int, str]:
    """The names that a label map's file holds, by value; empty where it holds none.

    Raises:
        InputError: the file cannot be read.
    """
    name = path.name.lower()
    try:
        if name.endswith(nifti.ENDINGS):
            return _from_extensions(nifti.read_extensions(path))
        if name.endswith(".png"):
            from PIL import Image

            with Image.open(path) as picture:
                return _from_json(picture.info.get(KEY))
        if name.endswith(tiff.ENDINGS):
            return _from_json(tiff.read_metadata(path).get(KEY))
        if name.endswith((".bmp", ".jpg", ".jpeg")):
            return {}
        reader = itk.read_header(path)
    except (OSError, RuntimeError, ValueError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path.name} cannot be read as a label map: {itk.reason(error)}",
            next_step="copy the file again from its source",
        ) from error
    entries = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
    return _from_segments(entries) or _from_json(entries.get(KEY))


def _from_extensions(extensions: Sequence[nifti.Extension]) -> dict[int, str]:
    for extension in extensions:
        if b"<LabelTable" not in extension.content or b"<!DOCTYPE" in extension.content:  # which may expand without end
            continue
        try:
            root = ElementTree.fromstring(extension.content)
            return {int(label.get("Key", "")): label.text or "" for label in root.iter("Label")}
        except (ElementTree.ParseError, ValueError):
            continue
    return {}


def _from_segments(entries: Mapping[str, str]) -> dict[int, str]:
    found = {}
    for key, value in entries.items():
        if _SEGMENT.fullmatch(key) and value.strip().isdecimal():
            found[int(value)] = entries.get(key.removesuffix("LabelValue") + "Name", "")
    return dict(sorted(found.items()))


def _from_json(text: object) -> dict[int, str]:
    try:
        return {int(value): str(name) for value, name in json.loads(str(text)).items()}
    except (ValueError, AttributeError):  # no JSON, or of another program
        return {}
