from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK as sitk

from umamba_cli.pipeline.data import itk
from umamba_cli.pipeline.data.images import (
    IMAGE_ENDINGS,
    UnreadableImage,
    file_ending,
    float_ending,
    label_ending,
    read_image,
    read_label_map,
    write_label_map,
    write_volume,
)
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import FLAT_SPACING_MM, Grid

OBLIQUE = (0.8, 0.0, 0.6, 0.0, -1.0, 0.0, 0.6, 0.0, -0.8)


def _write(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    if array.ndim == 3:
        image.SetDirection(OBLIQUE)
        image.SetOrigin((1.5, -2.0, 30.0))
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_a_label_map_comes_back_on_its_grid(tmp_path: Path, ending: str) -> None:
    grid = Grid((4, 5, 6), (3.0, 0.7, 0.9), (1.5, -2.0, 30.0), OBLIQUE)
    labels = np.random.default_rng(0).integers(0, 4, grid.shape)
    write_label_map(tmp_path / f"labels{ending}", labels, grid)
    read = read_label_map(tmp_path / f"labels{ending}")
    np.testing.assert_array_equal(read.labels, labels)
    assert read.labels.dtype == np.uint8
    assert grid.differences(read.grid) == []


def test_many_labels_take_a_wider_type(tmp_path: Path) -> None:
    grid = Grid((1, 1, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    write_label_map(tmp_path / "a.nii.gz", np.array([[[0, 300]]]), grid)
    assert read_label_map(tmp_path / "a.nii.gz").labels.tolist() == [[[0, 300]]]


def test_axes_are_z_y_x(tmp_path: Path) -> None:
    path = _write(tmp_path / "a_0000.nii.gz", np.zeros((2, 3, 4), np.float32), spacing=(0.5, 0.6, 5.0))
    image = read_image([path])
    assert image.voxels.shape == (1, 2, 3, 4)
    np.testing.assert_allclose(image.grid.spacing_mm, (5.0, 0.6, 0.5), rtol=1e-6)


def test_a_picture_gets_a_flat_axis_and_its_colours_become_channels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    imageio.imwrite(tmp_path / "a_0000.png", pixels)
    image = read_image([tmp_path / "a_0000.png"])
    np.testing.assert_array_equal(image.voxels[:, 0], np.moveaxis(pixels, -1, 0))
    assert image.grid.spacing_mm == (FLAT_SPACING_MM, 1.0, 1.0)
    write_label_map(tmp_path / "b.png", pixels[None, ..., 0], image.grid)
    np.testing.assert_array_equal(read_label_map(tmp_path / "b.png").labels[0], pixels[..., 0])


def test_a_flat_nifti_stays_flat(tmp_path: Path) -> None:
    path = _write(tmp_path / "a_0000.nii.gz", np.arange(12, dtype=np.float32).reshape(3, 4), spacing=(0.5, 0.7))
    image = read_image([path])
    assert image.voxels.shape == (1, 1, 3, 4)
    assert image.grid.is_2d_file
    write_label_map(tmp_path / "b.nii.gz", np.ones((1, 3, 4), int), image.grid)
    written = sitk.ReadImage(str(tmp_path / "b.nii.gz"))
    assert written.GetSize() == (4, 3)
    np.testing.assert_allclose(written.GetSpacing(), (0.5, 0.7), rtol=1e-6)


def test_channels_on_different_grids_are_refused(tmp_path: Path) -> None:
    first = _write(tmp_path / "a_0000.nii.gz", np.zeros((2, 3, 4), np.float32))
    second = _write(tmp_path / "a_0001.nii.gz", np.zeros((2, 3, 5), np.float32))
    with pytest.raises(UnreadableImage, match="a_0001"):
        read_image([first, second])


def test_a_4d_image_is_refused_with_what_to_do(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image([4, 4, 4, 2], sitk.sitkFloat32), str(tmp_path / "a_0000.nii.gz"))
    with pytest.raises(UnreadableImage, match="4 axes"):
        read_image([tmp_path / "a_0000.nii.gz"])


def write_4d(path: Path, dtype: type = np.float32, components: int = 1) -> np.ndarray:
    """Five volumes (z, y, x) of 2, 3 and 4 voxels, obliquely in space."""
    voxels = np.random.default_rng(0).integers(0, 100, (5, 2, 3, 4, components)).astype(dtype)
    image = sitk.GetImageFromArray(voxels if components > 1 else voxels[..., 0], isVector=components > 1)
    image.SetSpacing((0.5, 0.6, 3.0, 2.0))
    image.SetOrigin((1.5, -2.0, 30.0, 7.0))
    image.SetDirection(
        np.block([[np.reshape(OBLIQUE, (3, 3)), np.zeros((3, 1))], [np.zeros((1, 3)), 1]]).ravel().tolist()
    )
    sitk.WriteImage(image, str(path))
    return voxels[..., 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_volumes_of_a_4d_file_are_channels_where_that_is_asked_for(tmp_path: Path, ending: str, dtype: type) -> None:
    path = tmp_path / f"a{ending}"
    voxels = write_4d(path, dtype)
    image = read_image([path], volumes_are_channels=True)
    np.testing.assert_array_equal(image.voxels, voxels)
    assert image.grid.differences(Grid((2, 3, 4), (3.0, 0.6, 0.5), (1.5, -2.0, 30.0), OBLIQUE)) == []
    with pytest.raises(UnreadableImage, match="4 axes"):
        read_image([path])
    with pytest.raises(UnreadableImage, match="4 axes"):
        read_label_map(path)


def test_a_4d_file_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    write_4d(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnreadableImage, match="too short"):
        read_image([path], volumes_are_channels=True)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_a_4d_file_of_vectors_is_refused(tmp_path: Path, ending: str) -> None:
    write_4d(tmp_path / f"a{ending}", components=2)
    with pytest.raises(UnreadableImage, match=r"axes"):
        read_image([tmp_path / f"a{ending}"], volumes_are_channels=True)


def test_several_4d_files_follow_each_other(tmp_path: Path) -> None:
    voxels = write_4d(tmp_path / "a.nii.gz")
    write_4d(tmp_path / "b.nrrd")
    image = read_image([tmp_path / "a.nii.gz", tmp_path / "b.nrrd"], volumes_are_channels=True)
    np.testing.assert_array_equal(image.voxels, np.concatenate([voxels, voxels]))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_volumes_of_3d_files_are_as_without_asking(tmp_path: Path, ending: str) -> None:
    path = _write(tmp_path / f"a{ending}", np.random.default_rng(0).random((2, 3, 4)))
    np.testing.assert_array_equal(read_image([path], volumes_are_channels=True).voxels, read_image([path]).voxels)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".png", ".tif"])
@pytest.mark.parametrize(
    ("given", "highest", "written"),
    [
        (np.uint16, 3, np.uint16),
        (np.uint8, 3, np.uint8),
        (">u2", 3, np.uint8),
        (np.int64, 3, np.uint8),
        (np.int16, 300, np.uint16),
    ],
)
def test_unsigned_labels_are_written_as_they_come(
    tmp_path: Path, ending: str, given: type, highest: int, written: type
) -> None:
    grid = Grid((1, 2, 3), (FLAT_SPACING_MM, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    labels = np.array([[[0, 1, 2], [3, 0, highest]]]).astype(given)
    write_label_map(tmp_path / f"a{ending}", labels, grid)
    read = read_label_map(tmp_path / f"a{ending}")
    assert read.labels.dtype == written
    np.testing.assert_array_equal(read.labels, labels)


def test_a_bmp_holds_bytes(tmp_path: Path) -> None:
    grid = Grid((1, 2, 3), (FLAT_SPACING_MM, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    labels = np.array([[[0, 1, 2], [3, 0, 255]]], dtype=np.uint16)
    write_label_map(tmp_path / "a.bmp", labels, grid)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.bmp").labels, labels)


@pytest.mark.parametrize(
    ("ending", "labels", "floats"),
    [
        (".nii.gz", ".nii.gz", ".nii.gz"),
        (".nii", ".nii", ".nii"),
        (".mha", ".mha", ".mha"),
        (".mhd", ".mha", ".mha"),
        (".nrrd", ".nrrd", ".nrrd"),
        (".nhdr", ".nrrd", ".nrrd"),
        (".hdr", ".nii.gz", ".nii.gz"),
        (".img", ".nii.gz", ".nii.gz"),
        (".dcm", ".nii.gz", ".nii.gz"),
        ("", ".nii.gz", ".nii.gz"),
        (".png", ".png", ".tif"),
        (".PNG", ".PNG", ".tif"),
        (".bmp", ".bmp", ".tif"),
        (".jpg", ".png", ".tif"),
        (".JPEG", ".png", ".tif"),
        (".tif", ".tif", ".tif"),
        (".tiff", ".tiff", ".tiff"),
    ],
)
def test_what_maps_are_written_as(ending: str, labels: str, floats: str) -> None:
    assert label_ending(ending, 255) == labels
    assert label_ending(ending, 256) == (".png" if ending == ".bmp" else labels)
    assert float_ending(ending) == floats


@pytest.mark.parametrize("is_2d", [False, True])
def test_every_ending_has_one_for_labels_and_floats_that_can_be_read(tmp_path: Path, is_2d: bool) -> None:
    shape = (1, 3, 4) if is_2d else (2, 3, 4)
    identity = (1.0, 0.0, 0.0, 1.0) if is_2d else (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    grid = Grid(shape, (FLAT_SPACING_MM if is_2d else 2.0, 1.0, 1.0), (0.0,) * (2 if is_2d else 3), identity)
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    labels = np.round(300 * values).astype(np.uint16)
    for index, ending in enumerate(["", *IMAGE_ENDINGS]):
        if not is_2d and label_ending(ending, 300) in (".png", ".bmp"):
            continue
        floats, maps = (tmp_path / f"{index}{end}" for end in (float_ending(ending), label_ending(ending, 300)))
        write_volume(floats, values, grid)
        np.testing.assert_array_equal(read_image([floats]).voxels[0], values)
        assert file_ending(maps) in IMAGE_ENDINGS
        write_label_map(maps, labels, grid, names={1: "a"})
        np.testing.assert_array_equal(read_label_map(maps).labels, labels)


@pytest.mark.parametrize("size", [0, 40, 0.5, 0.98])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_a_truncated_file_is_refused(tmp_path: Path, ending: str, size: float) -> None:
    noise = np.random.default_rng(0).standard_normal((20, 20, 20)).astype(np.float32)
    path = _write(tmp_path / f"a_0000{ending}", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(size if size > 1 else size * len(content))])
    with pytest.raises(UnreadableImage, match="a_0000"):
        read_image([path])


def test_a_text_file_is_no_image(tmp_path: Path) -> None:
    for name in ("a_0000.nii.gz", "a_0000.nii", "a_0000.png", "a_0000.mha"):
        (tmp_path / name).write_text("hello")
        with pytest.raises(UnreadableImage, match=name):
            read_image([tmp_path / name])


@pytest.mark.parametrize("ending", [".mhd", ".nhdr", ".hdr", ".img", ".jpg", ".JPEG"])
def test_formats_of_two_files_and_those_that_change_values_are_not_written(tmp_path: Path, ending: str) -> None:
    grid = Grid((1, 2, 3), (FLAT_SPACING_MM, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    with pytest.raises(InputError, match=f"a{ending} cannot be written"):
        write_label_map(tmp_path / f"a{ending}", np.ones(grid.shape, np.uint8), grid)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".gipl"])
@pytest.mark.parametrize("name", ["a\udce9", "folder\udce9/a"])
def test_a_path_that_is_not_utf_8_is_refused_where_simpleitk_writes(tmp_path: Path, ending: str, name: str) -> None:
    grid = Grid((2, 2, 3), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    with pytest.raises(InputError, match="not in UTF-8"):
        write_label_map(tmp_path / f"{name}{ending}", np.ones(grid.shape, np.uint8), grid)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_through_simpleitk_under_a_name_that_ends_the_process(tmp_path: Path) -> None:
    grid = Grid((2, 2, 3), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    with pytest.raises(InputError, match="UTF-8"):
        itk.write(tmp_path / "a\udce9.mha", np.ones(grid.shape, np.uint8), grid)


@pytest.mark.parametrize(
    ("ending", "labels", "said"),
    [
        (".nii.gz", [-1, 2], "label -1"),
        (".nii.gz", [0, 2**31], "label 2147483648, only 0 to 2147483647"),
        (".png", [0, 65_536], "label 65536, only 0 to 65535"),
        (".bmp", [0, 256], "label 256, only 0 to 255"),
    ],
)
def test_labels_that_a_format_cannot_hold_are_refused(
    tmp_path: Path, ending: str, labels: list[int], said: str
) -> None:
    grid = Grid((1, 1, 2), (FLAT_SPACING_MM, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    with pytest.raises(InputError, match=said):
        write_label_map(tmp_path / f"a{ending}", np.array([[labels]]), grid)
    assert not list(tmp_path.iterdir())
