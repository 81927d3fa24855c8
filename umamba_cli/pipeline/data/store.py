"""Preprocessed cases on disk: `CASE.b2nd`, `CASE_seg.b2nd` and `CASE.json`, compressed in chunks and read by patch.

The JSON file is written last: a case that has one is complete. Voxels of each class, for oversampling the foreground,
are kept beside the labels as metadata of `CASE_seg.b2nd`, one entry a class: a patch reads only the one it needs. So
are, where a dataset has an ignore label, voxels of any other label.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.blosc import blosc2, open_array
from umamba_cli.pipeline.data.files import link_or_copy, read_json, replacing, write_json
from umamba_cli.pipeline.errors import InputError, WorkError
from umamba_cli.pipeline.geometry import Shape

# A block is the unit of decompression and should stay in a core's cache, a chunk the unit of reading.
_BLOCK_BYTES = 256 * 1024

# Smaller arrays are compressed in memory and written at once, which takes half the time.
_IN_MEMORY_BYTES = 8 * 1024**2

_ANNOTATED = "annotated"
"""The metadata's entry of voxels that are not ignored."""


class StoredArray:
    """An array on disk, sliced like numpy's: what is asked for is read.

    Raises:
        WorkError: the file is not there or damaged; raised by every method.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._reading():
            self._array = open_array(path)
        self.shape: Shape = tuple(self._array.shape)
        self.chunks: Shape = tuple(self._array.chunks)
        self.dtype: np.dtype[Any] = self._array.dtype

    def __getitem__(self, index: Any) -> NDArray[Any]:
        with self._reading():
            return np.asarray(self._array[index])

    @property
    def metadata(self) -> list[str]:
        """Names of what is kept beside the array."""
        with self._reading():
            names = list(self._array.schunk.vlmeta)
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names]

    def read_metadata(self, name: str) -> bytes:
        """What is kept beside the array under a name."""
        with self._reading():
            content: bytes = self._array.schunk.vlmeta[name]
            return content

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:  # blosc2 has several words for a damaged file
            raise WorkError(
                f"{self._path} is damaged: {str(error) or type(error).__name__}",
                next_step="remove this file, then run `umamba preprocess` again: it makes what is missing",
            ) from error


@dataclass(frozen=True)
class StoredCase:
    """One preprocessed case, read lazily."""

    folder: Path
    identifier: str

    @cached_property
    def properties(self) -> dict[str, Any]:
        """What preprocessing noted: grids, crop, the plans' digest."""
        content: dict[str, Any] = read_json(self.folder / f"{self.identifier}.json")
        return content

    @cached_property
    def image(self) -> StoredArray:
        """float32 (channels, z, y, x)."""
        return StoredArray(self.folder / f"{self.identifier}.b2nd")

    @cached_property
    def labels(self) -> StoredArray:
        """Labels (1, z, y, x), -1 outside the nonzero mask."""
        return StoredArray(self.folder / f"{self.identifier}_seg.b2nd")

    @property
    def shape(self) -> Shape:
        """Voxels along z, y, x."""
        return tuple(self.image.shape[1:])

    @cached_property
    def classes(self) -> tuple[int, ...]:
        """The classes whose voxels were noted, those of the foreground that the case holds."""
        names = [name.removeprefix("class_") for name in self.labels.metadata if name.startswith("class_")]
        return tuple(sorted(int(name) for name in names))

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Voxels of each class, the background first, as `properties` hold them."""
        return np.array(self.properties["class_counts"], dtype=np.int64)

    def class_voxels(self, label: int) -> NDArray[np.int64]:
        """Some voxels of one class, as indices into the raveled (z, y, x) volume."""
        return np.frombuffer(self.labels.read_metadata(f"class_{label}"), dtype=np.int64)

    def annotated_voxels(self) -> NDArray[np.int64] | None:
        """Some voxels that are not ignored, as indices into the raveled (z, y, x) volume.

        None where the dataset has no ignore label; no index where all of the case is ignored.
        """
        if _ANNOTATED not in self.labels.metadata:
            return None
        return np.frombuffer(self.labels.read_metadata(_ANNOTATED), dtype=np.int64)


@dataclass(frozen=True)
class Store:
    """The preprocessed cases of one configuration."""

    folder: Path

    def case(self, identifier: str) -> StoredCase:
        """A case; nothing is read yet."""
        return StoredCase(self.folder, identifier)

    def origin(self, identifier: str) -> tuple[Any, Any] | None:
        """Digest and source of a complete case, as its properties hold them; None where it is not complete."""
        case = self.case(identifier)
        try:
            properties = case.properties
            assert isinstance(properties, dict)
            assert case.image.shape[1:] == case.labels.shape[1:] == tuple(properties["shape"])
        except (InputError, WorkError, OSError, AssertionError, KeyError, TypeError):
            return None  # never made, or damaged: in both cases it is to be made (again)
        return properties.get("digest"), properties.get("source")

    def class_frequencies(self, identifiers: Sequence[str]) -> tuple[float, ...]:
        """The share of each class among all voxels of these cases that are not ignored, the background first.

        Nothing where all are ignored.
        """
        counts = np.sum([self.case(name).class_counts for name in identifiers], axis=0)
        return tuple(float(share) for share in counts / counts.sum()) if counts.any() else ()

    def write(
        self,
        identifier: str,
        image: NDArray[np.float32] | Path,
        labels: NDArray[np.integer[Any]],
        class_voxels: Mapping[int, NDArray[np.int64]],
        properties: Mapping[str, Any],
        *,
        patch_size: Sequence[int],
        annotated_voxels: NDArray[np.int64] | None = None,
    ) -> None:
        """Write a case, its JSON file last.

        Args:
            identifier: the case.
            image: float32 (channels, z, y, x), or a `.b2nd` file that holds such an array; it is linked.
            labels: (1, z, y, x), -1 outside the nonzero mask.
            class_voxels: raveled indices of some voxels of each class.
            properties: what the JSON file shall hold.
            patch_size: what training reads at a time, (z, y, x) or (y, x); chunks are as large.
            annotated_voxels: raveled indices of some voxels that are not ignored, where the dataset has an ignore
                label.

        Raises:
            WorkError: the disk is full or the folder cannot be written to.
        """
        done = self.folder / f"{identifier}.json"
        done.unlink(missing_ok=True)
        target = self.folder / f"{identifier}.b2nd"
        link_or_copy(image, target) if isinstance(image, Path) else write_array(target, image, patch_size, {})
        metadata = {f"class_{label}": indices.tobytes() for label, indices in class_voxels.items()}
        if annotated_voxels is not None:
            metadata[_ANNOTATED] = annotated_voxels.tobytes()
        kind = np.int8 if labels.max(initial=0) < 128 else np.int16
        write_array(self.folder / f"{identifier}_seg.b2nd", labels.astype(kind), patch_size, metadata)
        write_json(done, properties)


def chunk_shape(shape: Shape, patch_size: Sequence[int]) -> Shape:
    """A chunk of an array (channels, z, y, x): all channels of one patch, clipped to the array."""
    patch = (1,) * (len(shape) - 1 - len(patch_size)) + tuple(patch_size)
    return (shape[0], *(min(n, p) for n, p in zip(shape[1:], patch, strict=True)))


def block_shape(chunk: Shape, itemsize: int) -> Shape:
    """A block of a chunk: one channel, halved along its longest axis until it fits the cache."""
    block = [1, *chunk[1:]]
    while math.prod(block) * itemsize > _BLOCK_BYTES:
        longest = block.index(max(block))
        block[longest] = math.ceil(block[longest] / 2)
    return tuple(block)


def write_array(path: Path, array: NDArray[Any], patch_size: Sequence[int], metadata: Mapping[str, bytes]) -> None:
    """Write an array (channels, z, y, x) for `StoredArray` to read, whole or not at all.

    Args:
        path: the file, `.b2nd`.
        array: of numbers.
        patch_size: what is read at a time, (z, y, x) or (y, x); chunks are as large.
        metadata: what is kept beside it, by name.

    Raises:
        WorkError: the disk is full or the folder cannot be written to.
    """
    package = blosc2()
    chunks = chunk_shape(array.shape, patch_size)
    with replacing(path) as temporary:
        is_large = array.nbytes > _IN_MEMORY_BYTES
        if is_large:
            temporary.unlink()  # blosc2 makes the file itself
        try:
            stored = package.asarray(
                np.ascontiguousarray(array),
                urlpath=str(temporary) if is_large else None,
                chunks=chunks,
                blocks=block_shape(chunks, array.dtype.itemsize),
                cparams={"codec": package.Codec.ZSTD, "clevel": 1, "nthreads": 1},
            )
            for name, content in metadata.items():
                stored.schunk.vlmeta[name] = content
            if not is_large:
                temporary.write_bytes(stored.to_cframe())
            del stored
        except RuntimeError as error:  # blosc2's word for a full disk and for too little memory
            if shutil.disk_usage(path.parent).free > array.nbytes:
                raise MemoryError(str(error)) from error
            raise OSError(f"{str(error) or 'blosc2 failed'} (is the disk full?)") from error
