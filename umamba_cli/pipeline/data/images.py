"""Reading and writing images and label maps.

NIfTI, MHA, NRRD and whatever else SimpleITK knows; PNG, BMP and TIFF through imageio. Arrays are (channels, z, y, x)
and (z, y, x); a 2D file gets a z axis of one voxel.
"""

from __future__ import annotations

import gzip
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.files import replacing
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import FLAT_SPACING_MM, Grid

PICTURE_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
"""Files that are pictures: pixels and colours, no spacing."""


@dataclass(frozen=True)
class Image:
    """All channels of one case, float32 (channels, z, y, x), on one grid."""

    voxels: NDArray[np.float32]
    grid: Grid


@dataclass(frozen=True)
class LabelMap:
    """A label map as the file holds it, (z, y, x), on its grid; `labels` may be of a floating type."""

    labels: NDArray[Any]
    grid: Grid


class UnreadableImage(InputError):
    """A file is no image, truncated, or of a kind that cannot be used. The problem names the file."""


def file_ending(path: Path, known: str | None = None) -> str:
    """The part of a file's name that tells its format: `.nii.gz`, `.png`, ...; `known` wins where the name ends so."""
    name = path.name.lower()
    if known and name.endswith(known.lower()):
        return name[-len(known) :]
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def read_image(paths: Sequence[Path]) -> Image:
    """Read one case: a file for each channel, or one file that holds several.

    Returns:
        float32 voxels (channels, z, y, x) in the order of `paths`, and the grid that all the files share.

    Raises:
        UnreadableImage: a file cannot be read, or the channels lie on different grids.
    """
    parts = [_read_channels(path) for path in paths]
    grid = parts[0][1]
    for path, (_, other) in zip(paths[1:], parts[1:], strict=True):
        if differences := grid.differences(other):
            raise UnreadableImage(
                f"{paths[0].name} and {path.name} do not fit together: {'; '.join(differences)}",
                next_step="resample the channels of this case onto one grid",
            )
    voxels = np.concatenate([channels for channels, _ in parts])
    return Image(voxels.astype(np.float32, copy=False), grid)


def read_label_map(path: Path) -> LabelMap:
    """Read a label map.

    Raises:
        UnreadableImage: the file cannot be read, or holds more than one channel.
    """
    channels, grid = _read_channels(path)
    if len(channels) > 1 and not (channels == channels[:1]).all():
        raise UnreadableImage(
            f"{path.name} has {len(channels)} different channels, a label map has one",
            next_step="store the labels as one number a pixel, not as colours",
        )
    return LabelMap(channels[0], grid)


def write_label_map(path: Path, labels: NDArray[Any], grid: Grid) -> None:
    """Write a label map (z, y, x) on `grid`, in the format that the file's ending names; whole or not at all.

    The smallest of uint8, uint16 and int32 that holds the labels is written.

    Raises:
        WorkError: the file cannot be written.
    """
    highest = int(labels.max(initial=0))
    kind = np.uint8 if highest < 2**8 else np.uint16 if highest < 2**16 else np.int32
    _write(path, labels.astype(kind), grid)


def write_volume(path: Path, voxels: NDArray[np.float32], grid: Grid) -> None:
    """Write one channel (z, y, x) as float32 on `grid`; whole or not at all.

    Raises:
        WorkError: the file cannot be written.
    """
    _write(path, voxels.astype(np.float32, copy=False), grid)


def _write(path: Path, array: NDArray[Any], grid: Grid) -> None:
    with replacing(path) as temporary:
        if file_ending(path) in PICTURE_ENDINGS:
            import imageio.v3 as imageio

            imageio.imwrite(temporary, array[0])
            return
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(array[0] if grid.is_2d_file else array)
        axes = slice(1, None) if grid.is_2d_file else slice(None)
        image.SetSpacing(tuple(reversed(grid.spacing_mm[axes])))
        image.SetOrigin(grid.origin_mm)
        image.SetDirection(grid.direction)
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:  # SimpleITK wraps "no space left" and the like in its own exception
            raise OSError(_last_line(error)) from error


def _read_channels(path: Path) -> tuple[NDArray[Any], Grid]:
    """Voxels (channels, z, y, x) in the file's own type, and the grid."""
    if not path.is_file():
        raise UnreadableImage(f"{path} does not exist", next_step="check the path")
    if path.stat().st_size == 0:
        raise UnreadableImage(f"{path.name} is empty (0 bytes)", next_step="copy the file again from its source")
    if file_ending(path) in PICTURE_ENDINGS:
        return _read_picture(path)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UnreadableImage(f"{path.name!a} has a name that is not in UTF-8", next_step="rename the file") from error
    return _read_with_simpleitk(path)


def _read_picture(path: Path) -> tuple[NDArray[Any], Grid]:
    import imageio.v3 as imageio

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns about truncated or absurdly large files
            pixels = np.asarray(imageio.imread(path))
    except Exception as error:  # each of imageio's plugins raises exceptions of its own
        raise _unreadable(path, error) from error
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3:
        raise UnreadableImage(
            f"{path.name} has {pixels.ndim - 1} axes, a picture has two", next_step="split it into 2D files"
        )
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    channels = np.moveaxis(pixels, -1, 0)[:, None]
    grid = Grid((1, *pixels.shape[:2]), (FLAT_SPACING_MM, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    return channels, grid


def _read_with_simpleitk(path: Path) -> tuple[NDArray[Any], Grid]:
    import SimpleITK as sitk

    _check_gzip(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    _check_size(path, image)
    array = sitk.GetArrayFromImage(image)
    axes = image.GetDimension()
    if axes not in (2, 3):
        raise UnreadableImage(
            f"{path.name} has {axes} axes {tuple(reversed(image.GetSize()))}, two or three can be used",
            next_step="split it into one 3D file for each channel (CASE_0000, CASE_0001, ...)",
        )
    array = np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array[None]
    spacing = tuple(reversed(image.GetSpacing()))
    if axes == 2:
        array, spacing = array[:, None], (FLAT_SPACING_MM * max(spacing), *spacing)
    return array, Grid(array.shape[1:], spacing, tuple(image.GetOrigin()), tuple(image.GetDirection()))


def _check_size(path: Path, image: Any) -> None:
    # What is missing from an uncompressed NIfTI is filled with zeros, too, and there is no checksum.
    if path.suffix.lower() != ".nii" or not image.HasMetaDataKey("bitpix"):
        return
    needed = image.GetNumberOfPixels() * int(image.GetMetaData("bitpix")) // 8
    if path.stat().st_size < needed:
        raise _unreadable(path, EOFError(f"{path.stat().st_size} bytes are there, {needed} are needed"))


def _check_gzip(path: Path) -> None:
    # ITK's NIfTI reader fills what is missing from a truncated .nii.gz with zeros and only prints a warning. The gzip
    # trailer holds a checksum; reading to the end verifies it.
    if not path.name.lower().endswith(".gz"):
        return
    try:
        with gzip.open(path) as file:
            while file.read(1 << 22):
                pass
    except (EOFError, zlib.error, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UnreadableImage:
    return UnreadableImage(
        f"{path.name} cannot be read as an image: {_last_line(error)}",
        next_step="copy the file again from its source, or convert it",
    )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].removeprefix("ITK ERROR: ") if lines else type(error).__name__
