"""Reading and writing images and label maps.

NIfTI, MHA, NRRD, DICOM and whatever else SimpleITK knows; PNG and BMP through imageio, TIFF through tifffile. Arrays
are (channels, z, y, x) and (z, y, x); a 2D file gets a z axis of one voxel.
"""

from __future__ import annotations

import gzip
import math
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data import dicom, itk, label_names, nifti, tiff
from umamba_cli.pipeline.data.files import replacing
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import FLAT_SPACING_MM, Grid, numbers_text

PICTURE_ENDINGS = (".png", ".bmp", ".jpg", ".jpeg")
"""Files that are pictures: pixels and colours, no spacing. TIFF files can be pictures or volumes."""

IMAGE_ENDINGS = (*itk.ENDINGS, *tiff.ENDINGS, *PICTURE_ENDINGS, *dicom.ENDINGS)
"""Files that are images, as `file_ending` gives them. Of a pair `.hdr` and `.img` either is the whole image."""

_LABEL_ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", ".gipl", ".png", ".bmp", *tiff.ENDINGS)
_HIGHEST = {".bmp": 2**8 - 1, ".png": 2**16 - 1}
"""Labels that formats can hold, where that is less than 32 bit."""

_NOT_WRITTEN = {
    **dict.fromkeys((".mhd", ".nhdr", ".hdr", ".img"), "its format takes two files"),
    **dict.fromkeys((".jpg", ".jpeg"), "JPEG changes the values"),
}
_WRITTEN_AS = {".jpg": ".png", ".jpeg": ".png", ".mhd": ".mha", ".nhdr": ".nrrd"}


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


def label_ending(ending: str, highest: int) -> str:
    """What a label map is written as beside images of an ending, as `file_ending` gives it ("" of a DICOM folder).

    The same where it holds numbers unchanged, in one file: not as JPEG, as pairs of files or in DICOM, and no more than
    256 values as BMP.

    Args:
        ending: of the image.
        highest: label that the map may hold.
    """
    known = ending.lower()
    if known == ".bmp" and highest > np.iinfo(np.uint8).max:
        return ".png"
    return ending if known in _LABEL_ENDINGS else _WRITTEN_AS.get(known, ".nii.gz")


def float_ending(ending: str) -> str:
    """What one channel of float32 is written as beside images of an ending: TIFF for pictures, else as label maps."""
    return ".tif" if ending.lower() in PICTURE_ENDINGS else label_ending(ending, 0)


def read_image(sources: Sequence[Path | dicom.Series], *, volumes_are_channels: bool = False) -> Image:
    """Read one case: a file or a DICOM series for each channel, or one that holds several channels.

    Args:
        sources: files and series, in the order of the channels.
        volumes_are_channels: the volumes of a 4D file are channels; otherwise such a file is refused.

    Returns:
        float32 voxels (channels, z, y, x) in the order of `sources`, and the grid that all of them share.

    Raises:
        UnreadableImage: a file cannot be read, or the channels lie on different grids.
    """
    first, grid = _read_source(sources[0], volumes_are_channels)
    if len(sources) == 1:
        return Image(_as_float32(first), grid)
    voxels = np.empty((len(first) * len(sources), *grid.shape), dtype=np.float32)
    voxels[: len(first)] = _as_float32(first)
    for index, source in enumerate(sources[1:], start=1):
        channels, other = _read_source(source, volumes_are_channels)
        differences = grid.differences(other)
        if len(channels) != len(first):
            differences = [f"they hold {len(first)} and {len(channels)} channels"]
        if differences:
            raise UnreadableImage(
                f"{_name(sources[0])} and {_name(source)} do not fit together: {'; '.join(differences)}",
                next_step="resample the channels of this case onto one grid",
            )
        voxels[index * len(first) : (index + 1) * len(first)] = _as_float32(channels)
    return Image(voxels, grid)


def _name(source: Path | dicom.Series) -> str:
    return source.name if isinstance(source, Path) else f"DICOM series {source.title}"


def _read_source(source: Path | dicom.Series, volumes_are_channels: bool) -> tuple[NDArray[Any], Grid]:
    if isinstance(source, Path):
        return _read_channels(source, volumes_are_channels=volumes_are_channels)
    return _checked(*_read_dicom(source), _name(source))


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


def write_label_map(path: Path, labels: NDArray[Any], grid: Grid, *, names: Mapping[int, str] | None = None) -> None:
    """Write a label map (z, y, x) on `grid`, in the format that the file's ending names; whole or not at all.

    Arrays of uint8 and uint16 are written as they come, so that all maps of a folder can have one type; others as the
    smallest of uint8, uint16 and int32 that holds the labels. BMP holds uint8 alone.

    Args:
        path: the file.
        labels: a label for each voxel.
        grid: where the voxels lie.
        names: of the labels, by value; written where the format can hold them (see `label_names`).

    Raises:
        InputError: the format takes two files or changes the labels or cannot hold them, or the path is not in UTF-8.
        WorkError: the file cannot be written.
    """
    if labels.dtype not in (np.uint8, np.uint16) or (labels.dtype == np.uint16 and file_ending(path) == ".bmp"):
        highest = int(labels.max(initial=0))
        _require_room(path, int(labels.min(initial=0)), highest)
        kind = np.uint8 if highest < 2**8 else np.uint16 if highest < 2**16 else np.int32
        labels = labels.astype(kind)
    _write(path, labels, grid, label_names.usable_names(names))


def _require_room(path: Path, lowest: int, highest: int) -> None:
    """Refuse labels that the file's format cannot hold: they would be others in it."""
    most = _HIGHEST.get(file_ending(path), np.iinfo(np.int32).max)
    if lowest < 0 or highest > most:
        raise InputError(
            f"{path.name} cannot hold label {lowest if lowest < 0 else highest}, only 0 to {most}",
            next_step="correct the labels, or choose another format",
        )


def write_volume(path: Path, voxels: NDArray[np.float32], grid: Grid) -> None:
    """Write one channel (z, y, x) as float32 on `grid`; whole or not at all.

    Raises:
        InputError: the format takes two files or changes the values, or the path is not in UTF-8.
        WorkError: the file cannot be written.
    """
    _write(path, voxels.astype(np.float32, copy=False), grid, {})


def _write(path: Path, array: NDArray[Any], grid: Grid, names: Mapping[int, str]) -> None:
    ending = file_ending(path)
    if ending in _NOT_WRITTEN:
        raise InputError(f"{path.name} cannot be written: {_NOT_WRITTEN[ending]}", next_step="choose .nii.gz or .png")
    if ending not in (*tiff.ENDINGS, *PICTURE_ENDINGS):
        itk.require_utf8(path)
    if ending in tiff.ENDINGS and not grid.is_2d_file:
        tiff.write_spacing(path, grid.spacing_mm)
    entries = {label_names.KEY: label_names.as_json(names)} if names else {}
    with replacing(path) as temporary:
        if ending in tiff.ENDINGS:
            if grid.is_2d_file:
                tiff.write_picture(temporary, array[0], metadata=entries)
            else:
                tiff.write_volume(temporary, array, metadata=entries)
        elif ending in PICTURE_ENDINGS:
            _write_picture(temporary, array[0], entries if ending == ".png" else {})
        elif ending in nifti.ENDINGS:
            nifti.write(temporary, array, grid, label_names.as_extension(names) if names else None)
        elif ending == ".nrrd":
            itk.write(temporary, array, grid, entries=label_names.as_segments(names, array.shape))
        else:
            itk.write(temporary, array, grid, entries=entries if ending == ".mha" else {})


def _write_picture(path: Path, pixels: NDArray[Any], texts: Mapping[str, str]) -> None:
    import imageio.v3 as imageio

    more: dict[str, Any] = {}
    if texts:
        from PIL.PngImagePlugin import PngInfo

        more["pnginfo"] = PngInfo()
        for key, text in texts.items():
            more["pnginfo"].add_text(key, text, zip=len(text) > 1000)
    # Pillow's own writing of a file does not say where a disk filled up.
    path.write_bytes(imageio.imwrite("<bytes>", pixels, extension=file_ending(path), **more))


def _read_channels(
    path: Path, *, is_volume: bool = False, volumes_are_channels: bool = False
) -> tuple[NDArray[Any], Grid]:
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
    elif ending not in itk.ENDINGS and dicom.is_dicom(path):
        channels, grid = _read_dicom(path)
    else:
        channels, grid = _read_with_simpleitk(path, volumes_are_channels)
    return _checked(channels, grid, path.name)


def _checked(channels: NDArray[Any], grid: Grid, name: str) -> tuple[NDArray[Any], Grid]:
    """The channels, numbers instead of truth values, and the grid."""
    if channels.dtype.kind not in "biuf":
        raise UnreadableImage(f"{name} holds no real numbers", next_step="convert it to real numbers")
    numbers = np.array([*grid.spacing_mm, *grid.origin_mm, *grid.direction])
    if min(grid.spacing_mm) <= 0 or not np.isfinite(numbers).all():
        raise UnreadableImage(
            f"{name} has a spacing of {numbers_text(grid.spacing_mm)} mm (z, y, x) and its origin at "
            f"{numbers_text(grid.origin_mm)} mm (x, y, z), which cannot be",
            next_step="correct its header",
        )
    return channels.astype(np.uint8) if channels.dtype == bool else channels, grid


def _read_dicom(source: Path | dicom.Series) -> tuple[NDArray[Any], Grid]:
    try:
        return dicom.read_series(dicom.series_of_file(source) if isinstance(source, Path) else source)
    except InputError as error:
        raise UnreadableImage(error.problem, details=error.details, next_step=error.next_step) from error


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


def _read_with_simpleitk(path: Path, volumes_are_channels: bool) -> tuple[NDArray[Any], Grid]:
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                file.read(1)  # says more about a file that is not what its name says than ITK does
        reader = itk.read_header(path)
        size, components = reader.GetSize(), reader.GetNumberOfComponents()
        axes = min(len(size), 3)
        volumes = math.prod(size[3:])  # one step of time is no axis
        if len(size) < 2 or (volumes > 1 and not (volumes_are_channels and len(size) == 4 and components == 1)):
            raise UnreadableImage(
                f"{path.name} has {len(size)} axes {tuple(reversed(size))}, two or three can be used",
                next_step="split it into one 3D file for each channel (CASE_0000, CASE_0001, ...)",
            )
        shape = size[axes - 1 :: -1]
        if path.name.lower().endswith(nifti.ENDINGS):  # volumes and components are stored one after the other
            array = nifti.read_voxels(path, (volumes * components, *shape))
        else:
            array = np.moveaxis(itk.read_voxels(reader).reshape(volumes, *shape, components), -1, 1)
            array = array.reshape(volumes * components, *shape) if volumes > 1 else array[0]
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
