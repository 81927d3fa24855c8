"""The weighted sum of the tiles of one image, plane by plane, in memory that does not grow with the image.

Tiles come in rows along the first axis. Once a row is done, the planes before the next row's start are final and leave;
no more planes than a tile has are held at a time.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umamba_cli.pipeline.devices import free_device_bytes
from umamba_cli.pipeline.errors import InputError, WorkError
from umamba_cli.pipeline.geometry import Box, Shape
from umamba_cli.pipeline.inference.tiles import padding_to, tile_boxes
from umamba_cli.pipeline.resources import free_memory_bytes

PLACES = ("device", "memory", "file")
"""Where sums may lie: beside the network, in the machine's memory, in a temporary file."""

_SLAB_BYTES = 1 << 26
"""Of the planes that leave together."""

_ADDED_BYTES = 1 << 24
"""Of a tile's planes that a CPU adds at once: more only take new memory, which costs more than the sum."""

_SPARE = 0.6
"""Share of the free memory that sums may take; tiles, images and label maps need the rest."""


@dataclass(frozen=True)
class Slab:
    """Some planes of an image whose sums are final."""

    start: int
    """The first one's place in the image."""

    values: Tensor
    """float32 (planes, y, x, outputs); to be used before the next slab is asked for, which may overwrite it."""

    place: str = "memory"
    """Where the sums lie, one of `PLACES`."""

    @property
    def planes(self) -> slice:
        """Which planes of the image they are."""
        return slice(self.start, self.start + len(self.values))


class TiledImage:
    """An image, its tiles, and the sum of what networks answer to them."""

    def __init__(
        self,
        image: NDArray[np.float32],
        tile: Shape,
        step: float,
        weight: Tensor,
        *,
        place: str = "auto",
    ) -> None:
        """An image to be looked at.

        Args:
            image: float32 (channels, z, y, x).
            tile: (z, y, x); the first is 1 for networks that look at slices.
            step: see `tile_starts`.
            weight: of each voxel of a tile, float32.
            place: where sums lie, one of `PLACES`, or `auto`: by what is free.

        Raises:
            InputError: there is no such place.
        """
        self.shape: Shape = image.shape[1:]
        if place not in ("auto", *PLACES):
            raise InputError(f"there is no place {place!r} for sums", next_step=f"choose auto, {', '.join(PLACES)}")
        target, padding = padding_to(self.shape, tile)
        self._image = np.pad(image, [(0, 0), *padding]) if target != self.shape else image
        self._padding = tuple(before for before, _ in padding)
        self.boxes: Sequence[Box] = tuple(tile_boxes(target, tile, step))
        self._depth = tile[0]
        self._end = target[0]
        self._added = 0  # tiles
        self._final = 0  # planes before are gone
        self._ring = (tile[0], *target[1:])
        self._place = place
        self._weight = weight[..., None]
        self._sums = self._weights = torch.empty(0)  # until the first answer says how large they are

    def tile(self, box: Box) -> Tensor:
        """The voxels (channels, z, y, x) of a tile."""
        return torch.from_numpy(self._image[box.slices_of_channels])

    def add(self, box: Box, values: Tensor) -> Iterator[Slab]:
        """Add what networks answered to a tile, then hand over the planes that no further tile touches.

        Args:
            box: the next one of `boxes`.
            values: (z, y, x, outputs) of any floating type. Nothing here keeps them while planes are handed over; to
                save memory, the caller should not either.

        Yields:
            Slabs, to the end of which the iterator must be used.

        Raises:
            WorkError: there is no room for a file.
        """
        if not self._sums.numel():
            self._make_room(values)
        rows, columns = box.slices[1:]
        few = _planes_in(_ADDED_BYTES, self._sums[0, rows, columns]) if self._sums.is_cpu else self._depth
        for ring, part in self._pieces(box.start[0], box.stop[0], few):
            self._sums[ring, rows, columns] += values[part].to(self._sums.device) * self._weight[part]
            self._weights[ring, rows, columns] += self._weight[part]
        del values
        self._added += 1
        yield from self._leave(self.boxes[self._added].start[0] if self._added < len(self.boxes) else self._end)

    def _make_room(self, values: Tensor) -> None:
        """For sums of values like these."""
        shape = (*self._ring, values.shape[-1])
        if self._place == "auto":
            self._place = choose_place(shape, values.device)
        self._sums = _zeros(shape, self._place, values.device)
        self._weights = torch.zeros((*self._ring, 1), device=self._sums.device)
        self._weight = self._weight.to(self._sums.device)

    def _leave(self, stop: int) -> Iterator[Slab]:
        begin = self._final
        for ring, part in self._pieces(begin, stop, _planes_in(_SLAB_BYTES, self._sums[0])):
            values = self._sums[ring].div_(self._weights[ring])
            slab = self._inside(begin + part.start, values)
            if slab is not None:
                yield slab
            values.zero_()
            self._weights[ring] = 0
            self._final = begin + part.stop

    def _pieces(self, start: int, stop: int, most: int) -> Iterator[tuple[slice, slice]]:
        """Planes of the image as slices of the ring, `most` at a time, each with which of the planes they are."""
        done = 0
        while start + done < stop:
            first = (start + done) % self._depth
            count = min(stop - start - done, self._depth - first, most)
            yield slice(first, first + count), slice(done, done + count)
            done += count

    def _inside(self, start: int, values: Tensor) -> Slab | None:
        """Without what was padded."""
        (z, y, x), (planes, rows, columns) = self._padding, self.shape
        first, last = max(start, z), min(start + len(values), z + planes)
        if first >= last:
            return None
        inside = values[first - start : last - start, y : y + rows, x : x + columns]
        return Slab(first - z, inside, self._place)


def _planes_in(size: int, plane: Tensor) -> int:
    """How many planes like this one make so many bytes; at least one."""
    return max(1, size // (plane.numel() * plane.element_size()))


def choose_place(shape: Shape, device: torch.device) -> str:
    """Where sums of a shape may lie, by what is free now: one of `PLACES`; `device` is the networks'."""
    needed = 4 * math.prod(shape)
    if device.type != "cpu" and needed < _SPARE * free_device_bytes(device):
        return "device"
    return "memory" if needed < _SPARE * free_memory_bytes() else "file"


def _zeros(shape: tuple[int, ...], place: str, device: torch.device) -> Tensor:
    if place == "device":
        return torch.zeros(shape, device=device)
    return torch.zeros(shape) if place == "memory" else torch.from_numpy(array_in_file(shape, np.float32))


def array_in_file(shape: Sequence[int], kind: type[np.generic]) -> NDArray[Any]:
    """Zeros in a temporary file, which is gone with the array.

    Raises:
        WorkError: there is no room for it.
    """
    size = math.prod(shape) * np.dtype(kind).itemsize
    try:
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
            return np.memmap(file, dtype=kind, mode="r+", shape=tuple(shape))
    except OSError as error:
        raise WorkError(
            f"there is no room in {tempfile.gettempdir()} for {size / 2**30:.1f} GiB: {error.strerror or error}",
            next_step="make room there, or name another folder with the environment variable TMPDIR",
        ) from error
