"""The names of labels in files of every format: read back, with the voxels as they were, and for other programs too."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from umamba_cli.pipeline.data import itk, nifti
from umamba_cli.pipeline.data.images import read_image, read_label_map, write_label_map
from umamba_cli.pipeline.data.label_names import read_label_names
from umamba_cli.pipeline.errors import InputError, WorkError
from umamba_cli.pipeline.geometry import FLAT_SPACING_MM, Grid

OBLIQUE = (0.8, 0.0, 0.6, 0.0, -1.0, 0.0, 0.6, 0.0, -0.8)
GRID = Grid((4, 5, 6), (3.0, 0.7, 0.9), (1.5, -2.0, 30.0), OBLIQUE)
FLAT = Grid((1, 5, 6), (FLAT_SPACING_MM, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
NAMES = {1: "liver", 2: 'a < b & "c" ]]>', 7: "Schädel, 肝臓", 300: "it's {1: 'x'} = y := z #"}
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".tif")
PICTURES = (".nii.gz", ".nii", ".nrrd", ".mha", ".tif", ".tiff", ".png")


def drawn(grid: Grid, highest: int = 3) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, highest + 1, grid.shape)


@pytest.mark.parametrize("highest", [3, 300, 70_000])
@pytest.mark.parametrize(
    ("grid", "ending"), [*((GRID, ending) for ending in VOLUMES), *((FLAT, ending) for ending in PICTURES)]
)
def test_names_come_back_and_voxels_are_unchanged(tmp_path: Path, grid: Grid, ending: str, highest: int) -> None:
    if ending == ".png":  # which holds 16 bit
        highest = min(highest, 65_535)
    if ending.startswith(".tif") and not grid.is_2d_file:
        grid = Grid(grid.shape, grid.spacing_mm, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    labels = drawn(grid, highest)
    named, plain = tmp_path / f"named{ending}", tmp_path / f"plain{ending}"
    write_label_map(named, labels, grid, names={0: "background", **NAMES})
    write_label_map(plain, labels, grid)
    for path in (named, plain):
        read = read_label_map(path)
        np.testing.assert_array_equal(read.labels, labels)
        assert grid.differences(read.grid) == []
    assert read_label_map(named).labels.dtype == read_label_map(plain).labels.dtype
    assert read_label_names(named) == NAMES
    assert read_label_names(plain) == {}
    beside = {"named.json", "plain.json"} if ending == ".tif" and not grid.is_2d_file else set()
    assert {path.name for path in tmp_path.iterdir()} == {named.name, plain.name} | beside


def test_bmp_and_gipl_hold_no_names(tmp_path: Path) -> None:
    for grid, ending in ((FLAT, ".bmp"), (GRID, ".gipl")):
        path = tmp_path / f"a{ending}"
        write_label_map(path, drawn(grid).astype(np.uint8), grid, names=NAMES)
        np.testing.assert_array_equal(read_label_map(path).labels, drawn(grid))
        assert read_label_names(path) == {}


@pytest.mark.parametrize("ending", VOLUMES)
def test_hundreds_of_long_names_are_kept(tmp_path: Path, ending: str) -> None:
    names = {value: f"{value} vertebra and what lies beside it, \u00e4{value}" for value in range(1, 400)}
    write_label_map(tmp_path / f"a{ending}", drawn(GRID, 400), GRID, names=names)
    assert read_label_names(tmp_path / f"a{ending}") == names
    np.testing.assert_array_equal(read_label_map(tmp_path / f"a{ending}").labels, drawn(GRID, 400))


@pytest.mark.parametrize("ending", [*VOLUMES, ".png"])
def test_what_no_header_holds_is_left_out_of_names(tmp_path: Path, ending: str) -> None:
    grid = FLAT if ending == ".png" else GRID
    write_label_map(tmp_path / f"a{ending}", drawn(grid), grid, names={1: "a\x00\n b\ud800\uffff", 2: " ", 3: "c"})
    assert read_label_names(tmp_path / f"a{ending}") == {1: "a b", 2: "", 3: "c"}


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 5, 6), (4, 5, 1), (1, 1, 1), (1, 1, 7)])
@pytest.mark.parametrize("is_2d", [False, True])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_nifti_header_is_that_of_simpleitk_but_for_the_extension(
    tmp_path: Path, ending: str, is_2d: bool, shape: tuple[int, ...]
) -> None:
    if is_2d:
        shape = (1, *shape[1:])
        grid = Grid(shape, (FLAT_SPACING_MM, 0.7, 0.9), (1.5, -2.0), (0.6, -0.8, 0.8, 0.6))
    else:
        grid = Grid(shape, (3.0, 0.7, 0.9), (1.5, -2.0, 30.0), OBLIQUE)
    labels = drawn(grid, 300).astype(np.uint16)
    for name, names in (("named", NAMES), ("plain", None)):
        write_label_map(tmp_path / f"{name}{ending}", labels, grid, names=names)
    contents = {}
    for name in ("named", "plain"):
        content = (tmp_path / f"{name}{ending}").read_bytes()
        contents[name] = gzip.decompress(content) if ending == ".nii.gz" else content
    (start,) = struct.unpack_from("<f", contents["named"], 108)
    assert start % 16 == 0
    assert contents["named"][348:352] == b"\1\0\0\0"
    assert struct.unpack_from("<ii", contents["named"], 352) == (start - 352, 30)
    assert contents["named"][int(start) :] == contents["plain"][352:] == labels.tobytes()
    header = bytearray(contents["named"][:348])
    struct.pack_into("<f", header, 108, 352)
    assert header == contents["plain"][:348]


def test_other_readers_see_the_image(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.nii.gz", drawn(GRID), GRID, names=NAMES)
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), drawn(GRID))
    assert read_image([tmp_path / "a.nii.gz"]).voxels.sum() == drawn(GRID).sum()


def test_the_extension_is_a_label_table_of_workbench(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.nii.gz", drawn(GRID), GRID, names={0: "background", **NAMES})
    (extension,) = nifti.read_extensions(tmp_path / "a.nii.gz")
    root = ElementTree.fromstring(extension.content)
    assert root.tag == "CaretExtension"
    labels = root.findall("./VolumeInformation[@Index='0']/LabelTable/Label")
    assert {int(label.attrib["Key"]): label.text for label in labels} == NAMES
    assert root.findtext("./VolumeInformation/VolumeType") == "Label"
    colours = [tuple(float(label.attrib[key]) for key in ("Red", "Green", "Blue")) for label in labels]
    assert len(set(colours)) == len(NAMES)
    assert all(0 <= part <= 1 for colour in colours for part in colour)


def test_names_that_totalsegmentator_wrote_are_read(tmp_path: Path) -> None:
    """It uses the code 0 and CDATA."""
    xml = '<?xml version="1.0" encoding="UTF-8"?> <CaretExtension>  <VolumeInformation Index="0">   <LabelTable>'
    xml += '<Label Key="1" Red="0.1" Green="0.2" Blue="0.3" Alpha="1"><![CDATA[spleen]]></Label>\n'
    xml += "  </LabelTable>  <VolumeType><![CDATA[Label]]></VolumeType>   </VolumeInformation></CaretExtension>"
    path = tmp_path / "a.nii.gz"
    nifti.write(path, drawn(GRID).astype(np.uint8), GRID, nifti.Extension(0, xml.encode()))
    assert read_label_names(path) == {1: "spleen"}


@pytest.mark.parametrize(
    "content",
    [
        b"no XML",
        b"<CaretExtension><LabelTable><Label Key='1'>a</Label>",
        b"<CaretExtension><LabelTable><Label Key='one'>a</Label></LabelTable></CaretExtension>",
        b"<!DOCTYPE a [<!ENTITY x 'y'>]><a><LabelTable><Label Key='1'>&x;</Label></LabelTable></a>",
    ],
)
def test_extensions_of_others_are_no_names(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.nii"
    nifti.write(path, drawn(GRID).astype(np.uint8), GRID, nifti.Extension(30, content))
    assert read_label_names(path) == {}
    np.testing.assert_array_equal(read_label_map(path).labels, drawn(GRID))


@pytest.mark.parametrize("size", [0, 7, 100_000, -5])
def test_an_extension_of_a_wrong_size_is_no_name(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.nii"
    write_label_map(path, drawn(GRID), GRID, names=NAMES)
    content = bytearray(path.read_bytes())
    struct.pack_into("<i", content, 352, size)
    path.write_bytes(content)
    assert read_label_names(path) == {}


@pytest.mark.parametrize(("ending", "size"), [*((ending, 30) for ending in (*VOLUMES, ".png")), (".nii", 400)])
def test_a_damaged_file_is_refused(tmp_path: Path, ending: str, size: int) -> None:
    path = tmp_path / f"a{ending}"
    write_label_map(path, drawn(FLAT if ending == ".png" else GRID), FLAT if ending == ".png" else GRID, names=NAMES)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=f"a{ending} cannot be read as a label map"):
        read_label_names(path)


def test_slicer_finds_segments(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.nrrd", drawn(GRID), GRID, names=NAMES)
    reader = itk.read_header(tmp_path / "a.nrrd")
    entries = {
        key.removeprefix("Segment1_"): reader.GetMetaData(key) for key in reader.GetMetaDataKeys() if "t1_" in key
    }
    assert len(entries.pop("Color").split()) == 3
    assert entries == {
        "ID": "Segment_2",
        "Name": NAMES[2],
        "LabelValue": "2",
        "Layer": "0",
        "Extent": "0 5 0 4 0 3",
    }
    assert b"Segment1_Name:=" + NAMES[2].encode() in (tmp_path / "a.nrrd").read_bytes()


def test_labels_that_do_not_compress_are_written_too(tmp_path: Path) -> None:
    grid = Grid((40, 300, 301), (3.0, 0.7, 0.9), (1.5, -2.0, 30.0), OBLIQUE)
    labels = np.random.default_rng(0).integers(0, 2**16, grid.shape, dtype=np.uint16)
    write_label_map(tmp_path / "a.nii.gz", labels, grid, names=NAMES)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.nii.gz").labels, labels)


@pytest.mark.parametrize("ending", VOLUMES)
def test_nothing_is_left_where_writing_fails(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    import tifffile

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for module, name in ((shutil, "copyfileobj"), (tifffile, "imwrite"), (sitk, "WriteImage")):
        if (ending, name) == (".nii.gz", "WriteImage"):
            continue  # so that the copy fails, when two files are there
        monkeypatch.setattr(module, name, full)
    grid = Grid(GRID.shape, GRID.spacing_mm, (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    with pytest.raises(WorkError, match="No space left"):
        write_label_map(tmp_path / f"a{ending}", drawn(grid), grid, names=NAMES)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == ({"a.json"} if ending == ".tif" else set())


def test_names_of_png_are_json_in_a_text_chunk(tmp_path: Path) -> None:
    from PIL import Image

    write_label_map(tmp_path / "a.png", drawn(FLAT), FLAT, names=NAMES)
    with Image.open(tmp_path / "a.png") as picture:
        assert json.loads(picture.info["LabelNames"]) == {str(value): name for value, name in NAMES.items()}
