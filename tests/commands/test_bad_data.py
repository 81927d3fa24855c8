"""Each kind of bad data is refused by name, by `check`, `plan` and `preprocess`, and nothing of it is written."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from raw_datasets import SHAPE, RawDataset, bad_cases, write_array

Spoil = Callable[[RawDataset], Any]

VOLUMES = (".nii.gz", ".nii", ".mha", ".nrrd")
ENDINGS = (*VOLUMES, ".png", ".bmp", ".tif")
UNREADABLE = "cannot be read as an image"
LEFT_HANDED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def compressed(raw: RawDataset) -> None:
    write_array(raw.image(), raw.good_image(), compressed=True)
    assert b"ompress" in raw.image().read_bytes()[:400] or b"gzip" in raw.image().read_bytes()[:400]


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_truncated_image(refused: Callable, ending: str, share: float) -> None:
    assert UNREADABLE in refused(lambda raw: cut(raw.image(), share), ending)


def test_a_spacing_of_0_is_named(refused: Callable) -> None:
    def spoil(raw: RawDataset) -> None:
        for path in (raw.image(), raw.label()):
            content = bytearray(path.read_bytes())
            struct.pack_into("<f", content, 80, 0.0)
            path.write_bytes(content)

    assert "b_0000.nii cannot be read as an image: its header has a spacing of 0 " in refused(spoil, ".nii")


@pytest.mark.parametrize("share", [0.6, 0.9])
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_a_truncated_image_that_is_compressed_inside(refused: Callable, ending: str, share: float) -> None:
    assert UNREADABLE in refused(lambda raw: (compressed(raw), cut(raw.image(), share)), ending)


@pytest.mark.parametrize("share", [0.3, 0.6])
@pytest.mark.parametrize("write", [{}, {"imagej": True}, {"metadata": None}, {"compression": "zlib"}])
def test_a_truncated_tiff_of_several_pages(refused: Callable, write: dict[str, Any], share: float) -> None:
    def spoil(raw: RawDataset) -> None:
        tifffile.imwrite(raw.image(), np.concatenate([raw.good_image()] * 5), photometric="minisblack", **write)
        cut(raw.image(), share)

    assert UNREADABLE in refused(spoil, ".tif")


def test_a_truncated_tiff_whose_first_pages_are_whole(refused: Callable) -> None:
    def spoil(raw: RawDataset) -> None:
        with tifffile.TiffWriter(raw.image()) as file:
            for page in np.concatenate([raw.good_image()] * 5):
                file.write(page, contiguous=False, photometric="minisblack", metadata=None)
        with tifffile.TiffFile(raw.image()) as file:
            where = file.pages[1].offset
        raw.image().write_bytes(raw.image().read_bytes()[:where])

    assert "invalid page offset" in refused(spoil, ".tif")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_truncated_nifti_of_several_channels_in_one_file(refused: Callable, ending: str) -> None:
    def spoil(raw: RawDataset) -> None:
        for channel in (0, 1):
            raw.image(channel=channel).unlink()
        write_array(raw.image(channel=None), np.stack([raw.good_image()] * 2, axis=-1).astype("f4"))
        cut(raw.image(channel=None), 0.9)

    assert UNREADABLE in refused(spoil, ending, channels=2)


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_empty_file(refused: Callable, ending: str) -> None:
    assert refused(lambda raw: raw.image().write_bytes(b""), ending) == f"b_0000{ending} is empty (0 bytes)"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_text_file_with_the_name_of_an_image(refused: Callable, ending: str) -> None:
    assert UNREADABLE in refused(lambda raw: raw.image().write_text("patient,age\nb,41\n"), ending)


@pytest.mark.parametrize("ending", [".nii.gz", ".png", ".tif"])
def test_a_label_map_that_cannot_be_read(refused: Callable, ending: str) -> None:
    assert UNREADABLE in refused(lambda raw: cut(raw.label(), 0.5), ending)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("ending", [*VOLUMES, ".tif"])
def test_voxels_that_are_not_finite(refused: Callable, ending: str, kind: type) -> None:
    def spoil(raw: RawDataset) -> None:
        voxels = raw.good_image().astype(kind)
        voxels[0, 0, :3] = [np.nan, np.inf, -np.inf]
        write_array(raw.image(), voxels)

    voxels = np.prod(SHAPE) // (6 if ending == ".tif" else 1)
    assert refused(spoil, ending) == f"image has 3 of {voxels} voxels that are not finite"


def test_a_voxel_that_is_not_finite_in_one_of_several_channels_in_one_file(refused: Callable) -> None:
    def spoil(raw: RawDataset) -> None:
        voxels = np.stack([raw.good_image()] * 2, axis=-1).astype("f4")
        voxels[0, 0, 0, 1] = np.nan
        raw.image(channel=0).unlink()
        raw.image(channel=1).unlink()
        write_array(raw.image(channel=None), voxels)

    assert "image has 1 of" in refused(spoil, ".nii", channels=2)


@pytest.mark.parametrize("value", [3e38, 1e300])
def test_a_mark_of_missing_values_is_no_intensity(refused: Callable, value: float) -> None:
    def spoil(raw: RawDataset) -> None:
        voxels = raw.good_image().astype(np.float64)
        voxels[0, 0, :4] = value
        write_array(raw.image(), voxels)

    assert "too large" in refused(spoil) or value > 1e38


@pytest.mark.parametrize(
    ("ending", "kind", "value", "expected"),
    [
        (".nii.gz", np.float32, 0.5, "label holds 0.5, labels are whole numbers"),
        (".tif", np.float32, 1.25, "label holds 1.25, labels are whole numbers"),
        (".nrrd", np.float64, np.nan, "label has 1 of 2880 voxels that are not finite"),
        (".nii.gz", np.uint8, 3, "label holds 3, dataset.json knows 0, 1, 2"),
        (".mha", np.int16, -1, "label holds -1, dataset.json knows 0, 1, 2"),
        (".png", np.uint8, 255, "label holds 255, dataset.json knows 0, 1, 2"),
    ],
)
def test_values_that_are_no_labels(refused: Callable, ending: str, kind: type, value: float, expected: str) -> None:
    def spoil(raw: RawDataset) -> None:
        labels = raw.good_labels().astype(kind)
        labels[0, 0, 0] = value
        write_array(raw.label(), labels)

    assert refused(spoil, ending) == expected


def test_colours_are_no_labels(refused: Callable) -> None:
    def spoil(raw: RawDataset) -> None:
        imageio.imwrite(raw.label(), np.stack([raw.good_labels()[0]] * 2 + [raw.good_image()[0]], axis=-1))

    assert "3 different channels, a label map has one" in refused(spoil, ".png")


GRIDS = {
    "spacing": ({"spacing": (3.0, 1.0, 0.9)}, "spacing is"),
    "direction": ({"direction": LEFT_HANDED}, "direction is"),
    "origin": ({"origin": (0.0, 0.0, 5.0)}, "origin is"),
}


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_an_image_and_its_label_on_different_grids(refused: Callable, ending: str, kind: str) -> None:
    grid, expected = GRIDS[kind]
    said = refused(lambda raw: write_array(raw.label(), raw.good_labels(), **grid), ending)
    assert said.startswith(f"image and label differ: {expected}")


@pytest.mark.parametrize("ending", [".nii.gz", ".png", ".tif"])
def test_an_image_and_its_label_of_different_sizes(refused: Callable, ending: str) -> None:
    said = refused(lambda raw: write_array(raw.label(), raw.good_labels()[:, :-1]), ending)
    assert "image is" in said
    assert "label is" in said


@pytest.mark.parametrize("kind", [*GRIDS, "size"])
def test_two_channels_on_different_grids(refused: Callable, kind: str) -> None:
    grid, expected = GRIDS.get(kind, ({}, "size is 6x20x24 and 6x20x23"))

    def spoil(raw: RawDataset) -> None:
        voxels = raw.good_image()
        write_array(raw.image(channel=1), voxels[..., :-1] if kind == "size" else voxels, **grid)

    assert refused(spoil, channels=2).startswith(f"b_0000.nii.gz and b_0001.nii.gz do not fit together: {expected}")


def colours(raw: RawDataset, count: int) -> None:
    write_array(raw.image(), np.stack([raw.good_image()] * count, axis=-1))


@pytest.mark.parametrize(
    ("spoil", "ending", "channels", "expected"),
    [
        (lambda raw: raw.image(channel=1).unlink(), ".nii.gz", 2, "channel 0001 is missing"),
        (lambda raw: raw.image().unlink(), ".png", 3, "channel 0000 is missing"),
        (
            lambda raw: shutil.copy(raw.image(), raw.image(channel=1)),
            ".mha",
            1,
            "channel 0001 is not in dataset.json",
        ),
        (lambda raw: colours(raw, 3), ".png", 1, "image holds 3 channels, dataset.json knows 1"),
        (lambda raw: colours(raw, 3), ".tif", 1, "image holds 3 channels, dataset.json knows 1"),
        (lambda raw: colours(raw, 2), ".nrrd", 1, "image holds 2 channels, dataset.json knows 1"),
        (lambda raw: raw.image().unlink(), ".nii.gz", 1, "no image in imagesTr"),
        (lambda raw: raw.label().unlink(), ".tif", 1, "no label in labelsTr"),
    ],
)
def test_files_and_channels_that_are_missing_or_too_many(
    refused: Callable, spoil: Spoil, ending: str, channels: int, expected: str
) -> None:
    assert refused(spoil, ending, channels) == expected


def test_a_grey_picture_among_coloured_ones(umamba: Callable, tmp_path: Path) -> None:
    raw = RawDataset(tmp_path / "Dataset001_Bad", ".png", channels=3, cases=("a", "b", "c"))
    for case in raw.cases:
        for channel in (1, 2):
            raw.image(case, channel).unlink()
    colours(raw, 3)
    raw.image("c").rename(raw.image("c", channel=None))
    assert bad_cases(umamba("check", raw.folder, "-j", 1)) == {
        "a": "channel 0001 is missing; channel 0002 is missing",
        "c": "image holds 1 channel, dataset.json knows 3",
    }


@pytest.mark.parametrize("ending", VOLUMES)
def test_an_image_of_several_time_steps(refused: Callable, ending: str) -> None:
    def spoil(raw: RawDataset) -> None:
        sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(raw.good_image())] * 2), str(raw.image()))

    assert "has 4 axes (2, 6, 20, 24), two or three can be used" in refused(spoil, ending)


def patch_header(path: Path, form: str, at: int, *values: float) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, at, *values)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda raw: patch_header(raw.image(), "<3h", 42, 32767, 32767, 32767), "too short"),
        (lambda raw: patch_header(raw.image(), "<h", 42, -5), UNREADABLE),
        (lambda raw: patch_header(raw.image(), "<f", 108, 0.0), "voxels begin at byte 0"),
        (lambda raw: patch_header(raw.image(), "<f", 80, -1.0), "spacing of 3 1 -1 mm"),
        (lambda raw: patch_header(raw.image(), "<hh", 70, 32, 64), "no real numbers"),
        (lambda raw: patch_header(raw.image(), "<hh", 70, 1, 1), UNREADABLE),
    ],
)
def test_a_nifti_header_that_says_what_cannot_be(refused: Callable, spoil: Spoil, expected: str) -> None:
    assert expected in refused(spoil, ".nii")


def test_complex_numbers(refused: Callable) -> None:
    def spoil(raw: RawDataset) -> None:
        image = sitk.GetImageFromArray(raw.good_image())
        sitk.WriteImage(sitk.Cast(image, sitk.sitkComplexFloat32), str(raw.image()))

    assert "complex numbers" in refused(spoil, ".nrrd")
