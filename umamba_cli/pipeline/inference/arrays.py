"""What a program of one's own gives and wants: images as arrays or files, and a label map in a file of any name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.images import (
    PICTURE_ENDINGS,
    Image,
    file_ending,
    label_ending,
    read_image,
)
from umamba_cli.pipeline.data.inputs import choose_series, find_cases
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import FLAT_SPACING_MM, Grid, size_text
from umamba_cli.pipeline.inference.export import highest_label

_MOST_SHOWN = 60
_NEXT_FOR_ARRAYS = "give (channels, z, y, x) or (z, y, x) with three spacings above 0, or both without z"


def image_of_array(array: ArrayLike, spacing: Sequence[float]) -> Image:
    """An image from an array, or what numpy makes one of; see `Predictor.predict`.

    Raises:
        InputError: it holds no real numbers, or axes and spacing do not fit.
    """
    numbers, spacings = _real_numbers(array, "array"), _real_numbers(spacing, "spacing")
    axes = spacings.size
    if numbers.size == 0:
        raise InputError(f"the array holds no voxel, its shape is {numbers.shape}", next_step=_NEXT_FOR_ARRAYS)
    if (
        spacings.ndim != 1
        or axes not in (2, 3)
        or numbers.ndim not in (axes, axes + 1)
        or not all(0 < mm < math.inf for mm in spacings)
    ):
        raise InputError(
            f"an array of {numbers.ndim} axes and a spacing of {_shown(spacing)} mm do not fit together",
            next_step=_NEXT_FOR_ARRAYS,
        )
    with np.errstate(over="ignore"):  # what becomes infinite is for the checks to say
        voxels = numbers.astype(np.float32, copy=False)
    voxels = voxels if numbers.ndim == axes + 1 else voxels[None]
    voxels = voxels if axes == 3 else voxels[:, None]
    spacing_mm = (*([FLAT_SPACING_MM] if axes == 2 else []), *map(float, spacings))
    grid = Grid(voxels.shape[1:], spacing_mm, (0.0,) * axes, tuple(np.eye(axes).ravel().tolist()))
    return Image(voxels, grid)


def _real_numbers(given: object, name: str) -> NDArray[Any]:
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # lists of unequal lengths, tensors on a GPU
        raise InputError(
            f"the {name} cannot be made a numpy array: {str(error).splitlines()[0]}", next_step=_NEXT_FOR_ARRAYS
        ) from error
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"the {name} holds {array.dtype}, no real numbers: {_shown(given)}", next_step=_NEXT_FOR_ARRAYS
        )
    return array


def _shown(given: object) -> str:
    """On one line, not the whole of it where it is long."""
    text = " ".join(repr(given).split())
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def image_of_files(images: str | Path | Sequence[str | Path], dataset: DatasetDescription) -> tuple[Image, list[Path]]:
    """Read one case; see `Predictor.predict_file`.

    Args:
        images: a file, a folder or a list as `find_cases` takes them; or several files, the channels in their order.
        dataset: of the training.

    Returns:
        The image, and the files or the folder that it was read from.

    Raises:
        InputError: there is not exactly one case, or it cannot be read.
    """
    paths = [Path(images)] if isinstance(images, str | Path) else [Path(path) for path in images]
    if not paths:
        raise InputError("there is no file to predict", next_step="give an image, or a file for each of its channels")
    if len(paths) > 1:
        sources = [source for path in paths for source in (choose_series(path, ()) if path.is_dir() else [path])]
        return read_image(sources, volumes_are_channels=True), paths
    cases = find_cases(paths, dataset.file_ending).cases
    if len(cases) > 1:
        raise InputError(
            f"{paths[0]} holds {len(cases)} images, {cases[0].identifier} and {cases[1].identifier} among them",
            next_step="give one of them, or predict all with `umamba predict`",
        )
    return cases[0].read(dataset.num_channels), list(cases[0].sources)


def require_writable(path: Path, sources: Sequence[Path], shape: Sequence[int], dataset: DatasetDescription) -> None:
    """Refuse a file that a label map (z, y, x) cannot be written to.

    Args:
        path: the file.
        sources: what the image was read from.
        shape: of the label map.
        dataset: says which labels there are.

    Raises:
        InputError: it is the image itself or a folder, or its ending names no format that holds the labels.
    """
    ending = file_ending(path)
    if path.is_dir():
        raise InputError(f"the output {path} is a folder", next_step="give a file in it, labels.nii.gz")
    if path.resolve() in [source.resolve() for source in sources]:
        raise InputError(f"the output {path} is the image itself", next_step="choose another name")
    if label_ending(ending, highest_label(dataset)) != ending:
        what = f"as {ending}" if ending else "in a file without an ending"
        raise InputError(
            f"the label map cannot be written to {path}: labels are not stored {what}",
            next_step="name it .nii.gz, .mha, .nrrd or .tif, or .png for a picture",
        )
    if ending in PICTURE_ENDINGS and shape[0] > 1:
        raise InputError(
            f"the label map cannot be written to {path}: it is a volume of {size_text(shape)}, {ending} holds pictures",
            next_step="name it .nii.gz, .mha, .nrrd or .tif",
        )
