from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import (
    ENHANCED_MR,
    OBLIQUE,
    REPORT,
    STRUCTURES,
    X_RAY,
    write_dicom,
    write_series,
    write_without_image,
)

from umamba_cli.pipeline.data.dicom import find_series, holds_dicom, read_series, series_of_file
from umamba_cli.pipeline.data.images import UnreadableImage, read_image
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import FLAT_SPACING_MM, Grid

VOLUME = np.random.default_rng(0).integers(-1000, 3000, (6, 20, 30)).astype(np.int16)
FRAMES = VOLUME.clip(0).astype(np.uint16)


def only(folder: Path) -> tuple[np.ndarray, Grid]:
    (series,) = find_series(folder)
    return read_series(series)


def change(path: Path, old: bytes, new: bytes) -> None:
    """Other bytes in a file, of which there is one place."""
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_series_is_the_volume_that_was_written(tmp_path: Path, is_reversed: bool) -> None:
    write_series(tmp_path, VOLUME, orientation=OBLIQUE, is_reversed=is_reversed)
    voxels, grid = only(tmp_path)
    np.testing.assert_array_equal(voxels, VOLUME[None])
    assert voxels.dtype == np.int16
    direction = (0.8, 0.0, 0.6, 0.0, -1.0, 0.0, 0.6, 0.0, -0.8)
    assert grid.differences(Grid(VOLUME.shape, (2.0, 0.8, 0.7), (1.5, -2.0, 30.0), direction)) == []


def test_the_grid_is_that_of_simpleitk(tmp_path: Path) -> None:
    """For what it reads well: slices that come in order, without a gap."""
    write_series(tmp_path, VOLUME, orientation=OBLIQUE)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path), "1.2.3.4"))
    expected = reader.Execute()
    voxels, grid = only(tmp_path)
    np.testing.assert_array_equal(voxels[0], sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(grid.spacing_mm, expected.GetSpacing()[::-1])
    np.testing.assert_allclose(grid.origin_mm, expected.GetOrigin())
    np.testing.assert_allclose(grid.direction, expected.GetDirection(), atol=1e-12)


def test_what_a_series_is_called(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME, uid="1.2.1", number=12, description="scout \u00e4")
    write_series(tmp_path, VOLUME[:1], uid="1.2.5", number=3, description="")
    write_without_image(tmp_path / "dose.dcm", REPORT, "SR")
    (tmp_path / "VERSION").write_text("3")
    first, second = find_series(tmp_path)
    assert (first.uid, first.number, first.description, first.modality) == ("1.2.5", 3, "", "CT")
    assert first.title == "3 CT, 1 file"
    assert second.title == "12 'scout \u00e4' CT, 6 files"
    np.testing.assert_array_equal(read_series(second)[0][0], VOLUME)


def test_a_description_in_latin_1_is_read(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, VOLUME[:1], description="Sch?del")
    path.write_bytes(path.read_bytes().replace(b"Sch?del", b"Sch\xe4del"))
    assert find_series(tmp_path)[0].description == "Sch\u00e4del"


def test_a_folder_holds_dicom_where_a_file_has_its_mark(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("none")
    assert not holds_dicom(tmp_path)
    assert find_series(tmp_path) == []
    (path,) = write_series(tmp_path / "series", VOLUME[:1])
    assert not holds_dicom(tmp_path)  # those below it are not looked at
    shutil.copy(path, tmp_path / ".hidden")
    shutil.copy(path, tmp_path / "a.nii.gz")
    assert not holds_dicom(tmp_path)
    shutil.copy(path, tmp_path / "IM0001")
    assert holds_dicom(tmp_path)
    assert find_series(tmp_path)[0].files == (tmp_path / "IM0001",)
    with pytest.raises(InputError, match="missing"):
        holds_dicom(tmp_path / "missing")


def test_slope_and_intercept_of_each_file_are_applied(tmp_path: Path) -> None:
    stored = np.arange(2 * 4 * 5, dtype=np.int16).reshape(2, 4, 5)
    paths = write_series(tmp_path, 2 * stored - 10, x0028_1053="2", x0028_1052="-10")
    assert only(tmp_path)[0].tolist() == [(2 * stored - 10).tolist()]
    change(paths[1], b"\x28\0\x53\x10\2\0\0\x002 ", b"\x28\0\x53\x10\2\0\0\0.5")
    voxels, _ = only(tmp_path)
    np.testing.assert_array_equal(voxels[0], np.stack([2.0 * stored[0] - 10, 0.5 * stored[1] - 10]))


def test_a_missing_slice_is_named(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME)[3].unlink()
    with pytest.raises(InputError, match=r"3 'T1 axial' CT, 5 files: 4 mm lie between .*002.dcm and .*004.dcm, 2 mm"):
        only(tmp_path)


def test_gaps_that_differ_by_rounding_are_none(tmp_path: Path) -> None:
    paths = write_series(tmp_path, VOLUME, origin=(0, 0, 10.06), spacing=(0.5, 0.8, 0.7))
    change(paths[3], b"0\\0\\11.56", b"0\\0\\11.55")
    assert only(tmp_path)[1].spacing_mm[0] == pytest.approx(0.5)
    change(paths[3], b"0\\0\\11.55", b"0\\0\\11.36")
    with pytest.raises(InputError, match=r"0.3 mm lie between .* and 1 more such place"):
        only(tmp_path)


def test_two_slices_at_one_position_are_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path, VOLUME)
    shutil.copy(paths[2], tmp_path / "copy.dcm")
    with pytest.raises(InputError, match=r"(002.dcm and copy.dcm|copy.dcm and .*002.dcm) are both at 1.5 -2 34 mm"):
        only(tmp_path)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"volume": VOLUME[:1, :10]}, "size is 20x30 in .* and 10x30 in"),
        ({"orientation": OBLIQUE}, "orientation is"),
        ({"spacing": (2.0, 0.9, 0.7)}, "spacing"),
        ({"x0020_0032": "9\\9\\9"}, "does not say where its slice lies"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, other: dict, expected: str) -> None:
    write_series(tmp_path, VOLUME)
    odd = write_series(tmp_path / "odd", **{"volume": VOLUME[:1], **other})[0]
    if "x0020_0032" in other:  # SimpleITK writes a position always
        change(odd, b"\x20\0\x32\0", b"\x20\0\x31\0")
    shutil.move(odd, tmp_path / "0_odd.dcm")
    with pytest.raises(InputError, match=expected) as caught:
        only(tmp_path)
    assert "0_odd.dcm" in caught.value.problem


def test_a_tilted_gantry_is_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path, VOLUME, origin=(0, 0, 10.0))
    for index, path in enumerate(paths):
        change(path, b"0\\0\\%d" % (10 + 2 * index), b"0\\%d\\%d" % (index, 10 + 2 * index))
    with pytest.raises(InputError, match=r"by up to 5 mm .* tilted by 27 degrees"):
        only(tmp_path)


def test_files_without_an_image_are_told_apart_from_damaged_ones(tmp_path: Path) -> None:
    write_without_image(tmp_path / "a.dcm", STRUCTURES, "RTSTRUCT")
    write_without_image(tmp_path / "b.dcm", "1.3.12.2.1107.5.9.1", "MR")
    with pytest.raises(InputError, match=r"2 DICOM files and no image: RT structure set \(RTSTRUCT\) \(1\), object"):
        find_series(tmp_path)
    with pytest.raises(UnreadableImage, match=r"a.dcm holds no image: it is a DICOM RT structure set"):
        read_image([tmp_path / "a.dcm"])
    paths = write_series(tmp_path, VOLUME)
    assert len(find_series(tmp_path)) == 1
    paths[-1].write_bytes(paths[-1].read_bytes()[:700])  # the last one: its absence would leave no gap
    with pytest.raises(InputError, match="1 of 8 DICOM files") as caught:
        find_series(tmp_path)
    assert caught.value.details[0].startswith("'1.2.3.4_005.dcm'")


def named(folder: Path, ending: str) -> list[Path]:
    """A series whose files have another ending."""
    return [path.rename(path.with_suffix(ending)) for path in write_series(folder, VOLUME)]


@pytest.mark.parametrize(
    ("ending", "content", "said"),
    [
        (".dcm", b"", "it is empty"),
        ("", b"", "it is empty"),
        (".5", bytes(90), "it is truncated, or no DICOM file"),
        (".MR", bytes(90), "truncated"),
        (".img", bytes(1000), "truncated"),
        (".dcm", b"<html>503 Service Unavailable</html>", "no DICOM file"),
        (".ima", b"<html>" + bytes(1000), "no DICOM file"),
        ("", b"\1\2\xff" * 30, "truncated"),
    ],
)
def test_a_file_of_which_the_mark_is_lost_is_damaged(tmp_path: Path, ending: str, content: bytes, said: str) -> None:
    last = named(tmp_path, ending)[-1]  # its absence would leave no gap
    last.write_bytes(content)
    with pytest.raises(InputError, match="1 of 6 DICOM files") as caught:
        find_series(tmp_path)
    assert caught.value.details[0].startswith(f"{last.name!r}: ")
    assert said in caught.value.details[0]


def test_a_file_that_cannot_be_opened_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = named(tmp_path, "")
    real = Path.open

    def refused(path: Path, *args: Any, **options: Any) -> Any:
        if path == paths[-1]:
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refused)
        with pytest.raises(InputError, match="1 of 6 DICOM files") as caught:
            find_series(tmp_path)
    assert caught.value.details == (f"'{paths[-1].name}': it cannot be opened: Permission denied",)
    paths[-1].unlink()
    paths[-1].symlink_to(tmp_path / "not here")
    with pytest.raises(InputError, match="1 of 6 DICOM files") as caught:
        find_series(tmp_path)
    assert "No such file" in caught.value.details[0]


def test_what_lies_beside_dicom_files_does_not_refuse_them(tmp_path: Path) -> None:
    paths = named(tmp_path, "")
    (tmp_path / "VERSION").write_text("3\n")
    (tmp_path / "README").write_bytes("Radiologie S\u00fcd\r\n\tCD 1".encode())
    (tmp_path / "desktop.ini").write_bytes("[x]".encode("utf-16"))
    (tmp_path / "raw.bin").write_bytes(bytes(1000))
    (tmp_path / "LOG").write_bytes(b"\1\2\xff" * 300)
    (tmp_path / "folder.dcm").mkdir()
    index = tmp_path / "DICOMDIR"
    for content in (b"", bytes(128) + b"DICM" + b"cut short"):
        index.write_bytes(content)
        (series,) = find_series(tmp_path)
        assert series.files == tuple(paths)
    for path in paths:
        path.unlink()
    (tmp_path / "a.dcm").write_bytes(b"")
    assert not holds_dicom(tmp_path)
    assert find_series(tmp_path) == []


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_file_that_was_truncated_meanwhile_is_named(
    tmp_path: Path, part: float, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = write_series(tmp_path, VOLUME)
    (series,) = find_series(tmp_path)
    content = paths[2].read_bytes()
    paths[2].write_bytes(content[: int(len(content) * part)])
    with pytest.raises(UnreadableImage, match=r"_002.dcm of series 3 'T1 axial' CT, 6 files cannot be read"):
        read_image([series])
    assert capfd.readouterr() == ("", "")


def test_a_lone_slice_is_a_volume_as_thick_as_it_says(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME[:1], x0018_0050="4.5")
    voxels, grid = only(tmp_path)
    np.testing.assert_array_equal(voxels, VOLUME[None, :1])
    assert grid.spacing_mm == (4.5, 0.8, 0.7)


def test_an_x_ray_is_a_picture_with_a_spacing(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(FRAMES[0])
    image.SetSpacing((0.14, 0.15))
    path = write_dicom(tmp_path / "a.dcm", image, x0008_0016=X_RAY, x0008_0060="DX")
    read = read_image([path])
    np.testing.assert_array_equal(read.voxels, FRAMES[None, :1])
    assert read.grid.is_2d_file
    assert read.grid.spacing_mm == (pytest.approx(FLAT_SPACING_MM * 0.15), 0.15, 0.14)


def test_colours_are_channels(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    path = write_dicom(tmp_path / "a.dcm", sitk.GetImageFromArray(colours, isVector=True))
    path = path.rename(tmp_path / "IM0001")
    np.testing.assert_array_equal(read_image([path]).voxels[:, 0], np.moveaxis(colours, -1, 0))


@pytest.fixture
def enhanced(tmp_path: Path) -> Callable[..., Path]:
    """One file of six frames, 2 mm apart from z = 10 mm on; or at other positions, of two figures."""

    def write(*positions: int) -> Path:
        image = sitk.GetImageFromArray(FRAMES)
        image.SetSpacing((0.7, 0.8, 2.0))
        image.SetOrigin((1.0, 2.0, 10.0))
        path = write_dicom(tmp_path / "enhanced.dcm", image, x0008_0016=ENHANCED_MR, x0008_0060="MR")
        content = path.read_bytes()
        written = [b"1\\2\\%d" % (10 + 2 * index) for index in range(len(FRAMES))]
        assert all(content.count(text) == 1 for text in written)
        places = [content.index(text) for text in written]
        for place, position in zip(places, positions, strict=False):
            content = content[:place] + b"1\\2\\%d" % position + content[place + 6 :]
        path.write_bytes(content)
        return path

    return write


def test_frames_of_one_file_are_a_volume(enhanced: Callable[..., Path]) -> None:
    voxels, grid = read_series(series_of_file(enhanced()))
    np.testing.assert_array_equal(voxels, FRAMES[None])
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    assert grid.differences(Grid(FRAMES.shape, (2.0, 0.8, 0.7), (1.0, 2.0, 10.0), identity)) == []


def test_frames_against_their_normal_are_turned(enhanced: Callable[..., Path]) -> None:
    voxels, grid = read_series(series_of_file(enhanced(20, 18, 16, 14, 12, 10)))
    np.testing.assert_array_equal(voxels, FRAMES[None, ::-1])
    assert grid.spacing_mm == (2.0, 0.8, 0.7)
    assert grid.origin_mm == (1.0, 2.0, 10.0)


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ((10, 12, 14, 18, 20, 22), "4 mm lie between frame 3 and frame 4, 2 mm"),
        ((10, 10, 12, 12, 14, 14), "frame 1 and frame 2 are both at 1 2 10 mm .* and 2 more such pairs"),
        ((10, 14, 12, 16, 18, 20), "frame 3 is not in the order"),
    ],
)
def test_frames_that_are_no_volume_are_refused(
    enhanced: Callable[..., Path], positions: tuple[int, ...], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        read_series(series_of_file(enhanced(*positions)))


def test_frames_that_say_nothing_of_their_places(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", sitk.GetImageFromArray(FRAMES))
    assert read_image([path]).voxels.shape == (1, *FRAMES.shape)


def test_a_mosaic_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME[:1], x0008_0008="ORIGINAL\\PRIMARY\\M\\MOSAIC")
    with pytest.raises(InputError, match="mosaic"):
        only(tmp_path)


def test_series_are_channels_of_a_case(tmp_path: Path) -> None:
    write_series(tmp_path, VOLUME)
    write_series(tmp_path, VOLUME + 1, uid="1.2.5", number=4)
    write_series(tmp_path, VOLUME[1:], uid="1.2.6", number=5, description="short")
    first, second, third = find_series(tmp_path)
    image = read_image([first, second])
    np.testing.assert_array_equal(image.voxels, np.stack([VOLUME, VOLUME + 1]))
    assert math.isclose(image.grid.spacing_mm[0], 2)
    with pytest.raises(UnreadableImage, match=r"series 3 .* and DICOM series 5 'short' CT, 5 files do not fit"):
        read_image([first, third])
