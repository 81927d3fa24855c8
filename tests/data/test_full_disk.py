"""Where a disk fills up, no file is taken for whole, and nothing is left of it: in every format that is written."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from umamba_cli.pipeline.data import nifti
from umamba_cli.pipeline.data.images import read_image, read_label_map, write_label_map, write_volume
from umamba_cli.pipeline.errors import InputError, WorkError
from umamba_cli.pipeline.geometry import FLAT_SPACING_MM, Grid

resource = pytest.importorskip("resource")

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
VOLUME = Grid((20, 40, 41), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
FLAT = Grid((1, 60, 61), (FLAT_SPACING_MM, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
NAMES = {1: "liver"}


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as on a disk that is full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def labels_on(grid: Grid) -> Any:
    return np.random.default_rng(0).integers(0, 200, grid.shape).astype(np.uint8)


def write_labels(path: Path) -> None:
    grid = FLAT if path.suffix in (".png", ".bmp") else VOLUME
    write_label_map(path, labels_on(grid), grid)


def write_named(path: Path) -> None:
    grid = FLAT if path.suffix in (".png", ".bmp") else VOLUME
    write_label_map(path, labels_on(grid), grid, names=NAMES)


def write_floats(path: Path) -> None:
    write_volume(path, np.random.default_rng(0).random(VOLUME.shape).astype(np.float32), VOLUME)


VOLUME_ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", ".gipl", ".tif")


@pytest.mark.parametrize("lacking", [1, 7, 100, 0.5])
@pytest.mark.parametrize(
    ("write", "ending"),
    [
        *((write_labels, ending) for ending in (*VOLUME_ENDINGS, ".png", ".bmp")),
        *((write_named, ending) for ending in (*VOLUME_ENDINGS, ".png", ".bmp")),
        *((write_floats, ending) for ending in VOLUME_ENDINGS),
    ],
)
def test_a_file_that_does_not_fit_is_not_there(
    tmp_path: Path, write: Callable[[Path], None], ending: str, lacking: float
) -> None:
    path = tmp_path / f"a{ending}"
    write(path)
    size = path.stat().st_size
    for file in tmp_path.iterdir():
        file.unlink()
    with room_for(int(size - lacking if lacking >= 1 else size * lacking)), pytest.raises(WorkError, match="cannot"):
        write(path)
    assert {file.suffix for file in tmp_path.iterdir()} <= {".json"}
    write(path)
    assert path.stat().st_size == size


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".gipl"])
def test_the_end_that_itk_lost_without_a_word_is_missed(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sitk.WriteImage

    def full(image: Any, name: str, *args: Any, **options: Any) -> None:
        real(image, name, *args, **options)
        os.truncate(name, Path(name).stat().st_size - 1)

    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(WorkError, match="not written to its end"):
        write_labels(tmp_path / f"a{ending}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, 1, 255, 256, 65_537, 3_000_001])
def test_the_checksum_of_two_pieces_is_joined(count: int) -> None:
    first, second = b"header", np.random.default_rng(0).bytes(count)
    joined = nifti._joined_crc(zlib.crc32(first), zlib.crc32(second), count)
    assert joined == zlib.crc32(first + second)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".gipl", ".mha"])
def test_voxels_in_another_order_are_written_as_they_are(tmp_path: Path, ending: str) -> None:
    values = np.asfortranarray(np.random.default_rng(0).random(VOLUME.shape).astype(np.float32))[::-1]
    write_volume(tmp_path / f"a{ending}", values, VOLUME)
    np.testing.assert_array_equal(read_image([tmp_path / f"a{ending}"]).voxels[0], values)
    labels = labels_on(VOLUME)[:, ::-1]
    write_label_map(tmp_path / f"b{ending}", labels, VOLUME)
    np.testing.assert_array_equal(read_label_map(tmp_path / f"b{ending}").labels, labels)


def test_a_nifti_without_names_is_that_of_simpleitk(tmp_path: Path) -> None:
    direction = (0.8, 0.0, 0.6, 0.0, -1.0, 0.0, 0.6, 0.0, -0.8)
    grid = Grid((4, 5, 6), (3.0, 0.7, 0.9), (1.5, -2.0, 30.0), direction)
    values = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    write_volume(tmp_path / "a.nii", values, grid)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction)
    sitk.WriteImage(image, str(tmp_path / "b.nii"))
    assert (tmp_path / "a.nii").read_bytes() == (tmp_path / "b.nii").read_bytes()


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_an_axis_too_long_for_nifti_is_refused(tmp_path: Path, ending: str) -> None:
    grid = Grid((1, 2, 32_768), VOLUME.spacing_mm, VOLUME.origin_mm, IDENTITY)
    with pytest.raises(InputError, match="1x2x32768 voxels does not fit into NIfTI"):
        write_label_map(tmp_path / f"a{ending}", np.zeros(grid.shape, np.uint8), grid)
    assert not list(tmp_path.iterdir())


def test_a_header_says_where_the_voxels_begin(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    assert struct.unpack_from("<f", content, 108) == (352,)
    assert content[352:] == labels_on(VOLUME).tobytes()
