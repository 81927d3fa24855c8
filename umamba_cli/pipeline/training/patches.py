"""Drawing patches from preprocessed cases.

Every patch is decided by numbers alone: the seed, what it is for, and its position in the training. So the same
training draws the same patches whatever the number of workers and however often it was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.store import Store, StoredArray, StoredCase
from umamba_cli.pipeline.geometry import Box, Shape
from umamba_cli.pipeline.preprocessing.case import OUTSIDE

Purpose = Literal["training", "validation"]
_STREAM: dict[Purpose, int] = {"training": 0, "validation": 1}


@dataclass(frozen=True)
class Patch:
    """A piece of one case, padded where it reaches beyond the image."""

    image: NDArray[np.float32]
    """(channels, [z,] y, x), zeros outside the image."""

    labels: NDArray[np.int16]
    """([z,] y, x), -1 outside the image and its nonzero mask."""

    previous: NDArray[np.int16] | None = None
    """([z,] y, x), what a cascade's previous stage found here, background outside the image; None without a cascade."""


@dataclass(frozen=True)
class PreviousStage:
    """The label maps that the previous stage of a cascade predicted, on the preprocessed grid of this one."""

    files: Mapping[str, Path]
    """A `.b2nd` file for each case: labels (1, z, y, x)."""

    def labels(self, identifier: str) -> StoredArray:
        """A case's label map (1, z, y, x), read lazily."""
        return StoredArray(self.files[identifier])


@dataclass(frozen=True)
class PatchSampler:
    """Where the patches of one purpose come from."""

    store: Store
    identifiers: tuple[str, ...]

    network_size: Shape
    """What the network gets: (z, y, x) or (y, x). Patches are placed so that this reaches every corner of the image."""

    read_size: Shape
    """What is read: larger where augmentation will rotate it, otherwise the same."""

    foreground_share: float
    seed: int
    purpose: Purpose

    regions: tuple[tuple[int, ...], ...] = ()
    """The labels of each region, where the network learns regions; empty where labels exclude one another."""

    previous: PreviousStage | None = None
    """What a cascade's network gets besides the image."""

    def draw(self, index: int) -> tuple[Patch, np.random.Generator]:
        """The patch of a position in the training, and the generator for what is done to it next.

        Cases come in turn, in an order shuffled anew each time round; every 1/foreground_share-th patch is centred on
        a voxel of a foreground class.
        """
        case = self.store.case(self.identifier(index))
        generator = self._generator(1, index)
        forced = int((index + 1) * self.foreground_share + 1e-9) > int(index * self.foreground_share + 1e-9)
        centre = self._centre(case, generator, forced)
        box = self._place(case.shape, centre, generator)
        return Patch(
            image=_cut(case.image, box, 0.0, self._flat),
            labels=_cut(case.labels, box, OUTSIDE, self._flat)[0],
            previous=self._cut_previous(case.identifier, box),
        ), generator

    def identifier(self, index: int) -> str:
        """The case of a position in the training."""
        turn, position = divmod(index, len(self.identifiers))
        return self.identifiers[int(self._generator(0, turn).permutation(len(self.identifiers))[position])]

    def _centre(self, case: StoredCase, generator: np.random.Generator, forced: bool) -> tuple[int, ...] | None:
        """The voxel to place a patch around; None: anywhere.

        Where a dataset has an ignore label, every patch is to hold something annotated. Source: nnU-Net's data loader.
        """
        voxels = _foreground_voxels(case, self.regions, generator) if forced else None
        if voxels is None:
            voxels = case.annotated_voxels()
        if voxels is None or not len(voxels):
            return None
        return tuple(int(i) for i in np.unravel_index(int(generator.choice(voxels)), case.shape))

    def _cut_previous(self, identifier: str, box: Box) -> NDArray[np.int16] | None:
        return None if self.previous is None else _cut(self.previous.labels(identifier), box, 0, self._flat)[0]

    @property
    def _flat(self) -> bool:
        return len(self.read_size) == 2

    def _generator(self, use: int, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, _STREAM[self.purpose], use, index))

    def _place(self, shape: Shape, centre: Sequence[int] | None, generator: np.random.Generator) -> Box:
        """A box of `read_size` (a single slice for 2D), anywhere, or around `centre` as far as it stays in bounds.

        Source: nnU-Net's data loader. The box may reach out of the image by as much as it is larger than the
        network's patch; where the image is smaller than the patch, by as much as it takes, on both sides alike.
        """
        read = (1, *self.read_size) if self._flat else self.read_size
        network = (1, *self.network_size) if self._flat else self.network_size
        start = []
        for axis, (size, wide, narrow) in enumerate(zip(shape, read, network, strict=True)):
            spare = max(wide - narrow, wide - size)
            lowest, highest = -(spare // 2), size + (spare + 1) // 2 - wide
            if centre is None:
                start.append(int(generator.integers(lowest, highest + 1)))
            else:
                start.append(min(max(centre[axis] - wide // 2, lowest), highest))
        return Box(tuple(start), tuple(a + n for a, n in zip(start, read, strict=True)))


def _foreground_voxels(
    case: StoredCase, regions: Sequence[Sequence[int]], generator: np.random.Generator
) -> NDArray[np.int64] | None:
    """Voxels of a random class among those that the case holds, raveled; None where it holds none.

    With regions, one that the case holds is drawn first, then one of its classes in proportion to their voxels.
    """
    if not case.classes:
        return None
    if not regions:
        return case.class_voxels(int(generator.choice(case.classes)))
    held = [sorted(set(region).intersection(case.classes)) for region in regions]
    present = [classes for classes in held if classes]
    classes = present[int(generator.integers(len(present)))]
    counts = case.class_counts[classes]
    return case.class_voxels(int(generator.choice(classes, p=counts / counts.sum())))


def _cut(stored: Any, box: Box, outside: float, flat: bool) -> NDArray[Any]:
    """Read a box (z, y, x) of a stored (channels, z, y, x) array; what lies outside of it is filled."""
    inside = box.clipped_to(stored.shape[1:])
    read = np.asarray(stored[inside.slices_of_channels])
    padding = [(0, 0)]
    for axis, size in enumerate(inside.shape):
        before = min(max(inside.start[axis] - box.start[axis], 0), box.shape[axis] - size)
        padding.append((before, box.shape[axis] - size - before))
    if any(before or after for before, after in padding):
        read = np.pad(read, padding, constant_values=outside)
    kind = np.float32 if read.dtype.kind == "f" else np.int16
    return (read[:, 0] if flat else read).astype(kind, copy=False)
