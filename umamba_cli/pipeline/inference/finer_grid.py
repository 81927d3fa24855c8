"""Logits of one grid on another of the same extent, slab by slab.

Between voxels logits are interpolated linearly, so that a voxel of the new grid has a mean of those around it. Where
all of these have the same label, the mean has it too, whatever its values; it is worked out for the other voxels only,
which are few: those along the borders of what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from umamba_cli.pipeline.geometry import Shape
from umamba_cli.pipeline.inference.tile_sums import Slab
from umamba_cli.pipeline.preprocessing.resampling import Neighbours, nearest_voxels, neighbours

LabelsOf = Callable[[Tensor], Tensor]
"""Logits (..., outputs) to labels, integers (...)."""

_BYTES_AT_ONCE = 1 << 26
"""Of logits that are interpolated together."""


class FinerGrid:
    """Hands on slabs of a coarse grid as planes of a finer one."""

    def __init__(self, shape: Shape, new_shape: Shape, *, thick_axis: int | None, linear: bool = True) -> None:
        """Two grids of the same extent.

        Args:
            shape: of the logits' grid, (z, y, x).
            new_shape: of the other one.
            thick_axis: along which the nearest plane is taken, see `resampling.thick_axis`.
            linear: False: the nearest voxel along all axes.
        """
        self._axes = [
            _between(old, new, linear=linear and axis != thick_axis)
            for axis, (old, new) in enumerate(zip(shape, new_shape, strict=True))
        ]
        self._new_shape = new_shape
        self._done = 0  # planes of the new grid
        self._held: Tensor | None = None  # the last plane of the slab before

    def labels(self, slab: Slab, labels_of: LabelsOf) -> Iterator[tuple[slice, NDArray[np.integer]]]:
        """The labels of the planes of the new grid that can be made now.

        Args:
            slab: the next one.
            labels_of: of which a mean of logits that all have one label has that label too.

        Yields:
            Which planes, and their labels (planes, y, x).
        """
        for planes, start, values in self._ready(slab):
            coarse = labels_of(values).cpu().numpy()
            z, y, x = (_part(axis, planes) if i == 0 else axis for i, axis in enumerate(self._axes))
            z = Neighbours(z.lower - start, z.upper - start, *z[2:])
            labels = coarse[np.ix_(z.lower, y.lower, x.lower)]
            mixed = np.flatnonzero(_differ(coarse, (z, y, x)))
            _, *across = values.shape
            flat = values.reshape(-1, across[-1])
            at_once = max(1, _BYTES_AT_ONCE // (4 * 8 * across[-1]))
            for first in range(0, len(mixed), at_once):
                some = mixed[first : first + at_once]
                corners, weights = _corners(np.unravel_index(some, labels.shape), (z, y, x), coarse.shape)
                means = F.embedding_bag(
                    torch.from_numpy(corners).to(flat.device),
                    flat,
                    mode="sum",
                    per_sample_weights=torch.from_numpy(weights).to(flat.device),
                )
                labels.reshape(-1)[some] = labels_of(means).cpu().numpy()
            yield planes, labels

    def values(self, slab: Slab) -> Iterator[tuple[slice, Tensor]]:
        """The interpolated logits of the planes of the new grid that can be made now, a few planes at a time.

        Yields:
            Which planes, and their values, float32 (planes, y, x, outputs).
        """
        for planes, start, values in self._ready(slab):
            a_plane = 4 * self._new_shape[1] * self._new_shape[2] * values.shape[-1]
            at_once = max(1, _BYTES_AT_ONCE // a_plane)
            for first in range(planes.start, planes.stop, at_once):
                some = slice(first, min(first + at_once, planes.stop))
                z = _part(self._axes[0], some)
                z = Neighbours(z.lower - start, z.upper - start, *z[2:])
                result = values
                for axis, between in enumerate((z, *self._axes[1:])):
                    result = _interpolated(result, axis, between)
                yield some, result

    def _ready(self, slab: Slab) -> Iterator[tuple[slice, int, Tensor]]:
        """Which planes of the new grid can be made, where the logits that they need begin, and these."""
        start, values = slab.start, slab.values
        if self._held is not None:
            start, values = start - 1, torch.cat([self._held, values])
        stop = int(np.searchsorted(self._axes[0].upper, slab.planes.stop))
        if stop > self._done:
            yield slice(self._done, stop), start, values
        self._done = stop
        self._held = values[-1:].clone()


def _between(old: int, new: int, *, linear: bool) -> Neighbours:
    if linear and old != new:
        return neighbours(old, new)
    nearest = nearest_voxels(old, new)
    return Neighbours(nearest, nearest, np.ones(new), np.zeros(new))


def _part(axis: Neighbours, planes: slice) -> Neighbours:
    lower, upper, weight_lower, weight_upper = axis
    return Neighbours(lower[planes], upper[planes], weight_lower[planes], weight_upper[planes])


def _interpolated(values: Tensor, axis: int, between: Neighbours) -> Tensor:
    def side(voxels: NDArray[np.int64], weight: NDArray[np.float64]) -> Tensor:
        picked = values.index_select(axis, torch.from_numpy(voxels).to(values.device))
        shape = [-1 if i == axis else 1 for i in range(values.dim())]
        return picked * torch.from_numpy(weight.astype(np.float32)).to(values.device).view(shape)

    if np.array_equal(between.lower, between.upper):
        return values.index_select(axis, torch.from_numpy(between.lower).to(values.device))
    return side(between.lower, between.weight_lower).add_(side(between.upper, between.weight_upper))


def _differ(labels: NDArray[np.integer], axes: Sequence[Neighbours]) -> NDArray[np.bool_]:
    """Whether the voxels that each voxel of the new grid lies between differ in their labels."""
    lowest, highest = labels, labels
    for i, axis in enumerate(axes):
        lower, upper = lowest.take(axis.lower, axis=i), highest.take(axis.lower, axis=i)
        if not np.array_equal(axis.lower, axis.upper):
            lower = np.minimum(lower, lowest.take(axis.upper, axis=i))
            upper = np.maximum(upper, highest.take(axis.upper, axis=i))
        lowest, highest = lower, upper
    differ: NDArray[np.bool_] = lowest != highest
    return differ


def _corners(
    places: tuple[NDArray[np.int64], ...], axes: Sequence[Neighbours], shape: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each place of the new grid the voxels that it lies between, as indices into the flat array, and weights."""
    corners, weights = np.zeros((len(places[0]), 1), dtype=np.int64), np.ones((len(places[0]), 1))
    for place, axis, size in zip(places, axes, shape, strict=True):
        sides = [(axis.lower[place], axis.weight_lower[place])]
        if not np.array_equal(axis.lower, axis.upper):
            sides.append((axis.upper[place], axis.weight_upper[place]))
        corners = np.concatenate([corners * size + side[:, None] for side, _ in sides], axis=1)
        weights = np.concatenate([weights * weight[:, None] for _, weight in sides], axis=1)
    return np.ascontiguousarray(corners), np.ascontiguousarray(weights, dtype=np.float32)
