"""Reading and writing images and label maps.

NIfTI, MHA, NRRD and whatever else SimpleITK knows; PNG and BMP through imageio, TIFF through tifffile. Arrays are
(channels, z, y, x) and (z, y, x); a 2D file gets a z axis of one voxel.
"""

from __future__ import annotations

import gzip
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data import itk, nifti, tiff
from umamba_cli.pipeline.data.files import replacing
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import FLAT_SPACING_MM, Grid, numbers_text

PICTURE_ENDINGS = (".png", ".bmp", ".jpg", ".jpeg")
"""Files that are pictures: pixels and colours, no spacing. TIFF files can be pictures or volumes."""


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
    first, grid = _read_channels(paths[0])
    if len(paths) == 1:
        return Image(_as_float32(first), grid)
    voxels = np.empty((len(first) * len(paths), *grid.shape), dtype=np.float32)
    voxels[: len(first)] = _as_float32(first)
    for index, path in enumerate(paths[1:], start=1):
        channels, other = _read_channels(path)
        differences = grid.differences(other)
        if len(channels) != len(first):
            differences = [f"they hold {len(first)} and {len(channels)} channels"]
        if differences:
            raise UnreadableImage(
                f"{paths[0].name} and {path.name} do not fit together: {'; '.join(differences)}",
                next_step="resample the channels of this case onto one grid",
            )
        voxels[index * len(first) : (index + 1) * len(first)] = _as_float32(channels)
    return Image(voxels, grid)


def _as_float32(channels: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what becomes infinite is for the checks to say
        return channels.astype(np.float32, copy=False)


def read_label_map(path: Path, image: Grid | None = None) -> LabelMap:
    """Read a label map.

    Args:
        path: the file.
        image: grid of its image; a TIFF volume without a spacing of its own takes this one's, and a single page is a
            volume where the image is one.

    Raises:
        UnreadableImage: the file cannot be read, or holds more than one channel.
    """
    channels, grid = _read_channels(path, is_volume=image is not None and not image.is_2d_file)
    if len(channels) > 1 and not (channels == channels[:1]).all():
        raise UnreadableImage(
            f"{path.name} has {len(channels)} different channels, a label map has one",
            next_step="store the labels as one number a pixel, not as colours",
        )
    if image is not None and file_ending(path) in tiff.ENDINGS and not tiff.spacing_file(path).is_file():
        grid = replace(grid, spacing_mm=image.spacing_mm)
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
    ending = file_ending(path)
    if ending in tiff.ENDINGS and not grid.is_2d_file:
        tiff.write_spacing(path, grid.spacing_mm)
    with replacing(path) as temporary:
        if ending in tiff.ENDINGS and not grid.is_2d_file:
            tiff.write_volume(temporary, array)
            return
        if ending in (*PICTURE_ENDINGS, *tiff.ENDINGS):
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
            raise OSError(itk.reason(error)) from error


def _read_channels(path: Path, *, is_volume: bool = False) -> tuple[NDArray[Any], Grid]:
    """Voxels (channels, z, y, x) in the file's own type, and the grid; see `tiff.read_pixels` for `is_volume`."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UnreadableImage(f"{path} {what}", next_step="check the path")
    if path.stat().st_size == 0:
        raise UnreadableImage(f"{path.name} is empty (0 bytes)", next_step="copy the file again from its source")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UnreadableImage(f"{path.name!a} has a name that is not in UTF-8", next_step="rename the file") from error
    ending = file_ending(path)
    if ending in tiff.ENDINGS:
        channels, grid = _read_tiff(path, is_volume)
    elif ending in PICTURE_ENDINGS:
        channels, grid = _read_picture(path)
    else:
        channels, grid = _read_with_simpleitk(path)
    if channels.dtype.kind not in "biuf":
        raise UnreadableImage(f"{path.name} holds no real numbers", next_step="convert it to real numbers")
    numbers = np.array([*grid.spacing_mm, *grid.origin_mm, *grid.direction])
    if min(grid.spacing_mm) <= 0 or not np.isfinite(numbers).all():
        raise UnreadableImage(
            f"{path.name} has a spacing of {numbers_text(grid.spacing_mm)} mm (z, y, x) and its origin at "
            f"{numbers_text(grid.origin_mm)} mm (x, y, z), which cannot be",
            next_step="correct its header",
        )
    return channels.astype(np.uint8) if channels.dtype == bool else channels, grid


def _read_picture(path: Path) -> tuple[NDArray[Any], Grid]:
    import imageio.v3 as imageio

    try:
        with warnings.catch_warnings(), itk.messages_hidden():
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
    return _picture(np.moveaxis(pixels, -1, 0))


def _picture(channels: NDArray[Any]) -> tuple[NDArray[Any], Grid]:
    """Pixels (channels, y, x) as those of a slice, and the grid of a picture."""
    grid = Grid((1, *channels.shape[1:]), (FLAT_SPACING_MM, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    return channels[:, None], grid


def _read_tiff(path: Path, is_volume: bool) -> tuple[NDArray[Any], Grid]:
    try:
        with warnings.catch_warnings(), itk.messages_hidden():
            warnings.simplefilter("error")
            pixels = tiff.read_pixels(path, is_volume=is_volume)
    except Exception as error:  # as above
        raise _unreadable(path, error) from error
    if pixels.ndim == 3:
        return _picture(pixels)
    try:
        spacing = tiff.read_spacing(path)
    except InputError as error:
        raise UnreadableImage(error.problem, next_step=error.next_step) from error
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    return pixels, Grid(pixels.shape[1:], spacing or (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), identity)


def _read_with_simpleitk(path: Path) -> tuple[NDArray[Any], Grid]:
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                file.read(1)  # says more about a file that is not what its name says than ITK does
        reader = itk.read_header(path)
        size, components = reader.GetSize(), reader.GetNumberOfComponents()
        axes = 3 if set(size[3:]) == {1} else len(size)  # one step of time is no axis
        if axes not in (2, 3):
            raise UnreadableImage(
                f"{path.name} has {axes} axes {tuple(reversed(size))}, two or three can be used",
                next_step="split it into one 3D file for each channel (CASE_0000, CASE_0001, ...)",
            )
        shape = size[axes - 1 :: -1]
        if path.name.lower().endswith(nifti.ENDINGS):
            array = nifti.read_voxels(path, (components, *shape))
        else:
            array = itk.read_voxels(reader).reshape(*shape, components)
            array = np.moveaxis(array, -1, 0)
    except (RuntimeError, EOFError, OSError, ValueError, zlib.error) as error:
        raise _unreadable(path, error) from error
    spacing = reader.GetSpacing()[axes - 1 :: -1]
    if axes == 2:
        array, spacing = array[:, None], (FLAT_SPACING_MM * max(spacing), *spacing)
    directions = np.array(reader.GetDirection()).reshape(len(size), len(size))[:axes, :axes] + 0.0  # no -0
    return array, Grid(array.shape[1:], spacing, reader.GetOrigin()[:axes], tuple(directions.ravel().tolist()))


def _unreadable(path: Path, error: Exception) -> UnreadableImage:
    return UnreadableImage(
        f"{path.name} cannot be read as an image: {itk.reason(error)}",
        next_step="copy the file again from its source, or convert it",
    )
