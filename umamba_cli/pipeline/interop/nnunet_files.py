"""The files that nnU-Net's preprocessing leaves of a case, and what is in them.

For each configuration nnU-Net keeps `CASE.b2nd` (image), `CASE_seg.b2nd` (labels) and `CASE.pkl` (properties); older
versions keep `CASE.npz` (`data` and `seg`) and `CASE.pkl`. Arrays are (channels, z, y, x) in the plans' transposed
axes, and labels are -1 outside the nonzero mask, as in our own store.

Source: nnU-Net 2.8.1, what its preprocessor, its dataset classes and its image readers write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field

from umamba_cli.pipeline.data import tiff
from umamba_cli.pipeline.data.blosc import open_array
from umamba_cli.pipeline.data.dataset import Case
from umamba_cli.pipeline.data.files import to_plain, validated
from umamba_cli.pipeline.data.images import PICTURE_ENDINGS
from umamba_cli.pipeline.errors import InputError, UmambaError
from umamba_cli.pipeline.geometry import FLAT_SPACING_MM, Box, Grid
from umamba_cli.pipeline.interop.unpickle import load_pickle
from umamba_cli.pipeline.planning.plans import Count, Number, Size
from umamba_cli.pipeline.preprocessing.case import source_state

_AGAIN = "preprocess the case again in nnU-Net"

_MOST_PROPERTIES = 1000  # values in the properties that are used; about fifty are usual

Start = Annotated[int, Field(ge=0)]


class _SimpleITKGrid(pydantic.BaseModel):
    """What nnU-Net's reader noted with SimpleITK, in x, y, z."""

    origin: tuple[Number, ...]
    direction: tuple[Number, ...]

    original_orientation: str | None = None
    """Where the reader turns images to RAS: how this one lay in its file."""


class _NibabelGrid(pydantic.BaseModel):
    original_affine: list[list[Number]]

    reoriented_affine: list[list[Number]] | None = None
    """Where the reader turns images to RAS."""


class CaseProperties(pydantic.BaseModel):
    """What is used of `CASE.pkl`. The spacing is in the image's axes, z, y, x; all else is in the transposed axes."""

    spacing: tuple[Size, Size, Size]
    shape_before_cropping: tuple[Count, Count, Count]
    bbox_used_for_cropping: tuple[tuple[Start, Count], tuple[Start, Count], tuple[Start, Count]]
    shape_after_cropping_and_before_resampling: tuple[Count, Count, Count]
    sitk_stuff: _SimpleITKGrid | None = None
    nibabel_stuff: _NibabelGrid | None = None

    @pydantic.model_validator(mode="after")
    def _crop_fits(self) -> CaseProperties:
        sizes = zip(self.crop.stop, self.shape_before_cropping, strict=True)
        if any(stop > size for stop, size in sizes):
            raise ValueError("bbox_used_for_cropping reaches out of shape_before_cropping")
        if self.crop.shape != self.shape_after_cropping_and_before_resampling:
            raise ValueError("bbox_used_for_cropping is not shape_after_cropping_and_before_resampling large")
        return self

    @property
    def crop(self) -> Box:
        """What was kept, in the transposed axes."""
        start, stop = zip(*self.bbox_used_for_cropping, strict=True)
        return Box(start, stop)

    @property
    def was_turned(self) -> bool:
        """True where nnU-Net's reader turned the image, so that it does not lie as in its file."""
        if self.sitk_stuff is not None and self.sitk_stuff.original_orientation is not None:
            return self.sitk_stuff.original_orientation != "RAS"
        affines = self.nibabel_stuff
        if affines is None or affines.reoriented_affine is None:
            return False
        return not np.allclose(affines.original_affine, affines.reoriented_affine)

    def grid(self, transpose: Sequence[int], ending: str) -> Grid:
        """The image's own grid; without origin and direction, where they were not noted.

        Args:
            transpose: the plans' `transpose_forward`.
            ending: of the dataset's files.
        """
        shape = tuple(self.shape_before_cropping[transpose.index(axis)] for axis in range(3))
        if self.sitk_stuff is not None:
            return Grid(shape, self.spacing, self.sitk_stuff.origin, self.sitk_stuff.direction)
        is_picture = ending.lower() in (*PICTURE_ENDINGS, *tiff.ENDINGS) and self.spacing[0] == FLAT_SPACING_MM
        axes = 2 if is_picture else 3
        return Grid(shape, self.spacing, (0.0,) * axes, tuple(np.eye(axes).ravel().tolist()))


@dataclass(frozen=True)
class CaseFiles:
    """What nnU-Net wrote of one case for one configuration."""

    folder: Path
    identifier: str

    @property
    def properties(self) -> Path:
        """How the case was cropped, and its spacing."""
        return self.folder / f"{self.identifier}.pkl"

    @property
    def arrays(self) -> tuple[Path, ...]:
        """Image and labels, or one file that holds both."""
        image, packed = (self.folder / f"{self.identifier}{ending}" for ending in (".b2nd", ".npz"))
        if packed.is_file() and not image.is_file():
            return (packed,)
        return image, self.folder / f"{self.identifier}_seg.b2nd"

    @property
    def missing(self) -> list[str]:
        """Names of the files that should be there."""
        return [path.name for path in (*self.arrays, self.properties) if not path.is_file()]

    @property
    def state(self) -> list[list[Any]]:
        """Name, size and time of change of the files."""
        return source_state(Case(self.identifier, (*self.arrays, self.properties)))

    def read_properties(self) -> CaseProperties:
        """The properties.

        Raises:
            InputError: the file is damaged, asks for more than data, or does not hold what it must.
        """
        content = load_pickle(self.properties)
        if not isinstance(content, dict):
            raise InputError(f"{self.properties.name} holds no properties", next_step=_AGAIN)
        used = {key: content[key] for key in CaseProperties.model_fields if key in content}
        if _is_larger_than(used, _MOST_PROPERTIES):
            raise InputError(f"{self.properties.name} holds more than properties of a case", next_step=_AGAIN)
        used = {key: to_plain(value) for key, value in used.items()}
        return validated(CaseProperties.model_validate, used, source=self.properties.name)

    def open_image(self) -> Any:
        """The image (channels, z, y, x), to be sliced: a blosc2 array, or numpy's where there is an `.npz`.

        Raises:
            InputError: the file is damaged or holds no numbers.
        """
        return _open(self.arrays[0], "data")

    def read_labels(self) -> NDArray[Any]:
        """The labels (1, z, y, x), as they are in the file.

        Raises:
            InputError: the file is damaged or holds no numbers.
        """
        labels = _open(self.arrays[-1], "seg")
        with reading(self.arrays[-1]):
            return np.asarray(labels[:])


def find_identifiers(folder: Path) -> set[str]:
    """The cases of which there is any file in the folder of a configuration."""
    found = {path.stem for path in folder.glob("*.pkl")} | {path.stem for path in folder.glob("*.npz")}
    for path in folder.glob("*.b2nd"):
        is_image = path.with_name(f"{path.stem}_seg.b2nd").is_file() or path.with_suffix(".pkl").is_file()
        found.add(path.stem if is_image else path.stem.removesuffix("_seg"))
    return found


def _is_larger_than(content: Any, most: int) -> bool:
    """Whether containers hold more than `most` values; what they share, or hold in a circle, counts each time."""
    waiting = [content]
    for _ in range(most):
        if not waiting:
            return False
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
    return True


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever reading an array raises into an InputError that names the file."""
    try:
        yield
    except (UmambaError, MemoryError):
        raise
    except Exception as error:  # zip, numpy and blosc2 have many words for a damaged file
        problem = f"{path.name} is damaged: {str(error) or type(error).__name__}"
        raise InputError(problem, next_step=_AGAIN) from error


def _open(path: Path, key: str) -> Any:
    with reading(path):
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # np.load leaves bad ones open
                array = arrays[key]
        else:
            array = open_array(path)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"it holds {array.dtype}, not numbers")
        return array
