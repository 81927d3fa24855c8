from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK as sitk

from umamba_cli.pipeline.data.images import UnreadableImage, read_image, read_label_map, write_label_map
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
