"""NIfTI files as they may come: their voxels are read by us, their headers by ITK."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from umamba_cli.pipeline.data.images import UnreadableImage, read_image
from umamba_cli.pipeline.data.nifti import read_voxels

SHAPE = (3, 4, 5)
NUMBERS = np.arange(60).reshape(SHAPE)
CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024, "u8": 1280}


def nifti(content: bytes, code: int, bits: int, *, order: str = "<", sizes: tuple[int, ...] = (3, 5, 4, 3)) -> bytes:
    """A file of x 5, y 4 and z 3 voxels, by hand."""
    header = bytearray(352)
    struct.pack_into(f"{order}i", header, 0, 348)
    struct.pack_into(f"{order}8h", header, 40, *sizes, *[1] * (8 - len(sizes)))
    struct.pack_into(f"{order}hh", header, 70, code, bits)
    struct.pack_into(f"{order}8f", header, 76, *[1.0] * 8)
    struct.pack_into(f"{order}f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    return bytes(header) + content


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", CODES)
def test_every_kind_of_number(tmp_path: Path, kind: str, order: str, ending: str) -> None:
    numbers = NUMBERS.astype(order + kind)
    path = write(tmp_path / f"a{ending}", nifti(numbers.tobytes(), CODES[kind], 8 * numbers.itemsize, order=order))
    np.testing.assert_array_equal(read_image([path]).voxels[0], NUMBERS)


@pytest.mark.parametrize(("code", "colours"), [(128, 3), (2304, 4)])
def test_colours(tmp_path: Path, code: int, colours: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*SHAPE, colours), dtype=np.uint8)
    path = write(tmp_path / "a.nii", nifti(pixels.tobytes(), code, 8 * colours))
    np.testing.assert_array_equal(read_image([path]).voxels, np.moveaxis(pixels, -1, 0))
    write(path, nifti(pixels.tobytes()[:-1], code, 8 * colours))
    with pytest.raises(UnreadableImage, match="too short"):
        read_image([path])


def with_spacing(spacing: tuple[float, ...], *, order: str = "<", sizes: tuple[int, ...] = (3, 5, 4, 3)) -> bytes:
    """A file with a spacing (x, y, z)."""
    content = bytearray(nifti(NUMBERS.astype(f"{order}i2").tobytes(), 4, 16, order=order, sizes=sizes))
    struct.pack_into(f"{order}{len(spacing)}f", content, 80, *spacing)
    return bytes(content)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("spacing", "said"), [((1, 0, 1), "1 0 1"), ((np.nan, 1, 1), "nan 1 1"), ((1, 1, -np.inf), "1 1 -inf")]
)
def test_a_spacing_that_cannot_be_is_not_taken_for_1_mm(
    tmp_path: Path, spacing: tuple[float, ...], said: str, order: str
) -> None:
    for ending in (".nii", ".nii.gz"):
        path = write(tmp_path / f"a{ending}", with_spacing(spacing, order=order))
        with pytest.raises(UnreadableImage, match=rf"a{ending} .*its header has a spacing of {said} mm \(x, y, z\)"):
            read_image([path])


@pytest.mark.parametrize(
    ("spacing", "sizes"),
    [((1, 1, 0), (3, 12, 5, 1)), ((2, 0, 3), (3, 20, 1, 3)), ((1, 1, 0), (2, 12, 5)), ((1, 1, 1, 0), (4, 4, 5, 3, 1))],
)
def test_an_axis_of_one_voxel_needs_no_spacing(
    tmp_path: Path, spacing: tuple[float, ...], sizes: tuple[int, ...]
) -> None:
    assert read_image([write(tmp_path / "a.nii", with_spacing(spacing, sizes=sizes))]).voxels.size == 60


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_several_components(tmp_path: Path, ending: str) -> None:
    vectors = np.stack([NUMBERS, NUMBERS + 100], axis=-1).astype("f4")
    vectors[1, 1, 1] = np.nan, np.inf
    sitk.WriteImage(sitk.GetImageFromArray(vectors, isVector=True), str(tmp_path / f"a{ending}"))
    np.testing.assert_array_equal(read_image([tmp_path / f"a{ending}"]).voxels, np.moveaxis(vectors, -1, 0))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_damaged_size_asks_for_no_memory(tmp_path: Path, ending: str) -> None:
    content = nifti(NUMBERS.astype("f8").tobytes(), 64, 64, sizes=(3, 32767, 32767, 32767))
    with pytest.raises(UnreadableImage, match=f"too short for {8 * 32767**3} bytes"):
        read_image([write(tmp_path / f"a{ending}", content)])


def test_a_scale_that_makes_numbers_infinite_is_left_to_the_checks(tmp_path: Path) -> None:
    content = bytearray(nifti(NUMBERS.astype("i2").tobytes(), 4, 16))
    struct.pack_into("<f", content, 112, 1e38)
    assert np.isinf(read_image([write(tmp_path / "a.nii", bytes(content))]).voxels).sum() == 56


def test_a_whole_zip_of_a_truncated_file(tmp_path: Path) -> None:
    content = nifti(NUMBERS.astype("i2").tobytes()[:-2], 4, 16)
    with pytest.raises(UnreadableImage, match="118 bytes of voxels are there, 120 are needed"):
        read_image([write(tmp_path / "a.nii.gz", content)])


def test_another_size_than_the_header_says_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", nifti(NUMBERS.astype("i2").tobytes(), 4, 16))
    with pytest.raises(ValueError, match="its header names"):
        read_voxels(path, (1, 3, 4, 4))


def test_a_checksum_that_is_wrong_is_found(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(300_000)  # what follows the voxels is read as well
    much = nifti(NUMBERS.astype("i2").tobytes() + noise, 4, 16)
    content = bytearray(gzip.compress(much))
    content[-8] ^= 1  # of the checksum
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(UnreadableImage, match="CRC"):
        read_image([tmp_path / "a.nii.gz"])


def damaged_files(folder: Path) -> list[Path]:
    """Damaged files of which C libraries complain on standard error."""
    noise: NDArray[Any] = np.random.default_rng(0).integers(0, 255, (20, 20, 20), dtype=np.uint8)
    for name in ("a.mha", "b.nrrd", "c.nii", "d.tif"):
        sitk.WriteImage(sitk.GetImageFromArray(noise), str(folder / name))
    paths = sorted(folder.iterdir())
    for path in paths:
        path.write_bytes(path.read_bytes()[: 4000 if path.suffix != ".nii" else 200])
    return paths


def test_nothing_is_printed_about_damaged_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from umamba_cli.pipeline.data.dataset import Case
    from umamba_cli.pipeline.data.sizes import case_shape

    for path in damaged_files(tmp_path):
        with pytest.raises(UnreadableImage):
            read_image([path])
        case_shape(Case("a", (path,)))
    assert capfd.readouterr() == ("", "")
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(tmp_path / "a.mha"))
    assert "MetaImage" in capfd.readouterr().err
