from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image as Pillow

from umamba_cli.pipeline.data import tiff
from umamba_cli.pipeline.data.images import UnreadableImage, read_image, read_label_map
from umamba_cli.pipeline.geometry import FLAT_SPACING_MM

GREY = np.random.default_rng(0).integers(0, 255, (20, 21), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 255, (20, 21, 3), dtype=np.uint8)
STACK = np.random.default_rng(2).integers(0, 255, (6, 20, 21), dtype=np.uint8)
FIVE_AXES = np.random.default_rng(3).integers(0, 255, (6, 2, 20, 21), dtype=np.uint8)
"""(z, channels, y, x)."""

CHANNELS = np.moveaxis(FIVE_AXES, 1, 0)
PICTURE_OF_COLOURS = np.moveaxis(COLOURS, -1, 0)[:, None]
GREY_ARGUMENTS = {"photometric": "minisblack"}
COMPRESSIONS = ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate")


def by_tifffile(array: NDArray[Any], **arguments: Any) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, array, **arguments)


def by_pillow(pages: Sequence[NDArray[Any]], **arguments: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        first, *others = (Pillow.fromarray(page) for page in pages)
        first.save(path, save_all=bool(others), append_images=others, **arguments)

    return write


def page_by_page(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        for page in STACK:
            file.write(page, contiguous=False, photometric="minisblack", metadata=None)


def by_each_compression(name: str, pages: Sequence[NDArray[Any]], expected: NDArray[Any]) -> dict[str, Any]:
    return {f"Pillow, {name}, {kind}": (by_pillow(pages, compression=kind), expected) for kind in COMPRESSIONS}


THIRDS, LARGE = GREY / np.float32(3), GREY.astype("u2") * 200

PICTURES = {
    "grey": (by_tifffile(GREY, **GREY_ARGUMENTS), GREY[None, None]),
    "colours by pixel": (by_tifffile(COLOURS, photometric="rgb"), PICTURE_OF_COLOURS),
    "colours by plane": (
        by_tifffile(PICTURE_OF_COLOURS[:, 0], photometric="rgb", planarconfig="separate"),
        PICTURE_OF_COLOURS,
    ),
    "channels of ImageJ": (by_tifffile(FIVE_AXES[0], imagej=True, metadata={"axes": "CYX"}), FIVE_AXES[0][:, None]),
    "bool": (by_tifffile(GREY > 99, **GREY_ARGUMENTS), (GREY > 99)[None, None]),
    "16 bit": (by_tifffile(LARGE, **GREY_ARGUMENTS), LARGE[None, None]),
    "16 bit, big-endian": (by_tifffile(LARGE, byteorder=">", **GREY_ARGUMENTS), LARGE[None, None]),
    "float": (by_tifffile(THIRDS, **GREY_ARGUMENTS), THIRDS[None, None]),
    "bits, as a fax": (by_pillow([GREY > 99], compression="group4"), (GREY > 99)[None, None]),
    **by_each_compression("grey", [GREY], GREY[None, None]),
    **by_each_compression("colours", [COLOURS], PICTURE_OF_COLOURS),
    **by_each_compression("float", [THIRDS], THIRDS[None, None]),
    **by_each_compression("16 bit", [LARGE], LARGE[None, None]),
}

VOLUMES = {
    "plain": (by_tifffile(STACK, **GREY_ARGUMENTS), STACK[None]),
    "without metadata": (by_tifffile(STACK, metadata=None, **GREY_ARGUMENTS), STACK[None]),
    "page by page": (page_by_page, STACK[None]),
    "ImageJ": (by_tifffile(STACK, imagej=True, metadata={"axes": "ZYX"}), STACK[None]),
    "ImageJ, channels": (by_tifffile(FIVE_AXES, imagej=True, metadata={"axes": "ZCYX"}), CHANNELS),
    "OME, channels": (by_tifffile(CHANNELS, ome=True, metadata={"axes": "CZYX"}), CHANNELS),
    "bool": (by_tifffile(STACK > 99, **GREY_ARGUMENTS), (STACK > 99)[None]),
    "float": (by_tifffile(STACK / np.float32(3), **GREY_ARGUMENTS), STACK[None] / np.float32(3)),
    "tiled": (by_tifffile(STACK, tile=(16, 16), **GREY_ARGUMENTS), STACK[None]),
    "deflated": (by_tifffile(STACK, compression="zlib", **GREY_ARGUMENTS), STACK[None]),
    "three slices": (by_tifffile(STACK[:3], **GREY_ARGUMENTS), STACK[None, :3]),
    **by_each_compression("six slices", STACK, STACK[None]),
    **by_each_compression("three slices", STACK[:3], STACK[None, :3]),
    **by_each_compression("colours", [COLOURS, COLOURS], np.repeat(PICTURE_OF_COLOURS, 2, axis=1)),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures(tmp_path: Path, kind: str) -> None:
    write, expected = PICTURES[kind]
    write(tmp_path / "a_0000.tif")
    image = read_image([tmp_path / "a_0000.tif"])
    np.testing.assert_array_equal(image.voxels, expected)
    assert image.grid.is_2d_file
    assert image.grid.spacing_mm == (FLAT_SPACING_MM, 1.0, 1.0)


@pytest.mark.parametrize("kind", VOLUMES)
def test_volumes(tmp_path: Path, kind: str) -> None:
    write, expected = VOLUMES[kind]
    write(tmp_path / "a_0000.tif")
    image = read_image([tmp_path / "a_0000.tif"])
    np.testing.assert_array_equal(image.voxels, expected)
    assert not image.grid.is_2d_file
    assert image.grid.spacing_mm == (1.0, 1.0, 1.0)
    (tmp_path / "a.json").write_text(json.dumps({"spacing": [3, 0.5, 2]}))
    image = read_image([tmp_path / "a_0000.tif"])
    np.testing.assert_array_equal(image.voxels, expected)
    assert image.grid.spacing_mm == (3.0, 0.5, 2.0)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (by_tifffile(FIVE_AXES, imagej=True, metadata={"axes": "TZYX"}), "axes TZYX"),
        (by_tifffile(np.stack([STACK] * 3, axis=-1), imagej=True, metadata={"axes": "CYXS"}), "axes CYXS"),
        (by_pillow([GREY, GREY[:5]]), "2 pictures of different sizes"),
        (by_tifffile(STACK.astype("c8"), **GREY_ARGUMENTS), "no real numbers"),
    ],
)
def test_what_is_neither_picture_nor_volume_is_refused(
    tmp_path: Path, write: Callable[[Path], None], expected: str
) -> None:
    write(tmp_path / "a_0000.tif")
    with pytest.raises(UnreadableImage, match=expected):
        read_image([tmp_path / "a_0000.tif"])


def test_one_page_is_a_slice_of_a_volume_where_the_image_is_one(tmp_path: Path) -> None:
    for name in ("a_0000.tif", "a_label.tif"):
        tifffile.imwrite(tmp_path / name, GREY, photometric="minisblack", metadata=None)
    (tmp_path / "a.json").write_text(json.dumps({"spacing": [3, 0.5, 2]}))
    image = read_image([tmp_path / "a_0000.tif"])
    assert image.grid.spacing_mm == (3.0, 0.5, 2.0)
    assert read_label_map(tmp_path / "a_label.tif").grid.is_2d_file
    assert read_label_map(tmp_path / "a_label.tif", image.grid).grid == image.grid


def test_colours_that_lie_plane_by_plane_are_put_right_where_pillow_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a_0000.tif"
    tifffile.imwrite(path, np.moveaxis(COLOURS, -1, 0), photometric="rgb", planarconfig="separate", compression="zlib")

    def needs_codecs(_: object) -> None:
        raise ValueError("this compression requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", needs_codecs)
    np.testing.assert_array_equal(read_image([path]).voxels, PICTURE_OF_COLOURS)


def test_the_spacing_of_a_volume_is_in_its_own_file_or_in_that_of_its_case(tmp_path: Path) -> None:
    own, shared = tmp_path / "scan_2019.json", tmp_path / "scan.json"
    path = tmp_path / "scan_2019.tif"
    assert tiff.read_spacing(path) is None
    shared.write_text('{"spacing": [1, 2, 3]}')
    assert tiff.read_spacing(path) == (1.0, 2.0, 3.0)
    own.write_text('{"spacing": [4, 5, 6]}')
    assert tiff.read_spacing(path) == (4.0, 5.0, 6.0)
