"""Resampling images and label maps to another number of voxels.

A spline on a regular grid is a product of splines along its axes, so that a volume is resampled by one small matrix for
each axis, built once for a pair of sizes. The numbers are those of scikit-image's `resize` (edge padding, clipped to
the input's range) at orders 0, 1 and 3.

Source: nnU-Net's default resampling: cubic splines in general; along an axis that is more than three times coarser than
another, nearest neighbour, because a spline through thick slices invents what lies between them. The B-splines and
their prefilter are those of Unser, Aldroubi and Eden 1993, as scipy.ndimage has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import ANISOTROPY_THRESHOLD, Shape

ORDERS = (0, 1, 3)
"""Splines that can be resampled with: nearest neighbour, linear, cubic."""

_EDGE = 12
"""Voxels that the edge is repeated for before the spline filter: what lies beyond has a weight below 1e-6."""

_NEGLIGIBLE = 1e-10
"""Weights below are left out of an operator: a cubic spline's influence falls to a quarter with each voxel."""

_ROWS = 32
"""Output voxels along an axis that are made at once: few enough to leave most of a long axis out, enough for a fast
matrix product."""

_SLAB_VOXELS = 1 << 17
"""Voxels of a label map that are looked at together: what is worked out about them stays in the cache."""


def thick_axis(
    spacing_mm: Sequence[float], new_spacing_mm: Sequence[float], *, separate: bool | None = None
) -> int | None:
    """The axis to resample apart: the single coarsest one where the old or the new grid has thick slices, else None.

    Args:
        spacing_mm: of the grid at hand; it is looked at first.
        new_spacing_mm: of the new grid.
        separate: True: the old grid's coarsest axis, thick or not; False: none; None: by the rule.

    Source: nnU-Net's `determine_do_sep_z_and_axis`; two equally coarse axes are none.
    """
    if separate is False:
        return None
    for spacing in (spacing_mm, new_spacing_mm):
        coarsest = max(spacing)
        if separate or coarsest / min(spacing) > ANISOTROPY_THRESHOLD:
            axes = [axis for axis, value in enumerate(spacing) if value == coarsest]
            return axes[0] if len(axes) == 1 else None
    return None


def resample_image(
    voxels: NDArray[np.float32],
    new_shape: Shape,
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
    *,
    order: int = 3,
    separate: bool | None = None,
) -> NDArray[np.float32]:
    """Resample an image, or logits, to `new_shape`.

    Memory: the result, and little besides.

    Args:
        voxels: (channels, z, y, x); it is not changed.
        new_shape: voxels along z, y, x.
        spacing_mm: of the grid at hand, z, y, x; with the next one it decides which axis is resampled apart.
        new_spacing_mm: of the new grid.
        order: of the splines, one of `ORDERS`.
        separate: as for `thick_axis`.

    Returns:
        float32 (channels, *new_shape), each channel within its own range; the array itself where the shape stays.

    Raises:
        InputError: there is no such order.
    """
    if order not in ORDERS:
        raise InputError(f"splines of order {order}", next_step=f"choose one of {', '.join(map(str, ORDERS))}")
    if voxels.shape[1:] == tuple(new_shape):
        return voxels
    axis = thick_axis(spacing_mm, new_spacing_mm, separate=separate)
    resized = np.empty((len(voxels), *new_shape), dtype=np.float32)
    for channel, result in zip(voxels, resized, strict=True):
        _resize_apart(_resize, channel, result, axis, order)
    return resized


def resample_labels(
    labels: NDArray[np.integer[Any]],
    new_shape: Shape,
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
    *,
    order: int = 1,
    separate: bool | None = None,
) -> NDArray[np.integer[Any]]:
    """Resample a label map (z, y, x): each label is interpolated linearly, and the one with the largest share wins.

    At order 0 the nearest voxel's label is taken. Other arguments are those of `resample_image`.

    Raises:
        InputError: the order is neither 0 nor 1.

    Source: `resize_segmentation` of batchgenerators 0.25.5, which nnU-Net uses: where labels tie, the nearest voxel's
    label wins if it is one of them, otherwise the lowest. Labels are the same to the voxel.
    """
    if order not in (0, 1):
        raise InputError(
            f"labels resampled at order {order}", next_step="choose 0 (nearest voxel) or 1 (largest share)"
        )
    if labels.shape == tuple(new_shape):
        return labels
    axis = thick_axis(spacing_mm, new_spacing_mm, separate=separate)
    resized = np.empty(new_shape, dtype=labels.dtype)
    _resize_apart(_resize_labels, labels, resized, axis, order)
    return resized


def _resize_apart(
    resize: Callable[[NDArray[Any], NDArray[Any], int], None],
    volume: NDArray[Any],
    result: NDArray[Any],
    axis: int | None,
    order: int,
) -> None:
    """`resize` a volume into `result`: whole, or plane by plane across `axis`, each to where it is the nearest."""
    if axis is None:
        resize(volume, result, order)
        return
    planes, results = np.moveaxis(volume, axis, 0), np.moveaxis(result, axis, 0)
    nearest = nearest_voxels(len(planes), len(results))
    for index in np.unique(nearest):
        first, last = np.searchsorted(nearest, [index, index + 1])
        resize(planes[index][None], results[first : first + 1], order)
        results[first + 1 : last] = results[first]


def _centres(old: int, new: int) -> NDArray[np.float64]:
    """Where the centres of `new` voxels lie among those of `old` that fill the same extent."""
    centres: NDArray[np.float64] = (np.arange(new, dtype=np.float64) + 0.5) * (old / new) - 0.5
    return centres


def nearest_voxels(old: int, new: int) -> NDArray[np.int64]:
    """For each of `new` voxels along an axis the nearest of `old` ones that fill the same extent."""
    indices: NDArray[np.int64] = np.clip(np.floor(_centres(old, new) + 0.5), 0, old - 1).astype(np.int64)
    return indices


# Images


class _Block(NamedTuple):
    """A part of an operator: `weights` (rows, columns) make some voxels of the new axis out of some of the old."""

    rows: slice
    columns: slice
    weights: NDArray[np.float32]


def axis_operator(old: int, new: int, order: int) -> NDArray[np.float64]:
    """The matrix (new, old) that resamples an axis of `old` voxels to `new`, at order 0, 1 or 3.

    At order 3 it is the product of the prefilter (the spline that meets every voxel, the edge repeated) and of the
    spline's values at the new centres.
    """
    if order == 0:
        return np.eye(old)[nearest_voxels(old, new)]
    if order == 1:
        between, rows = neighbours(old, new), np.arange(new)
        operator = np.zeros((new, old))
        np.add.at(operator, (rows, between.lower), between.weight_lower)
        np.add.at(operator, (rows, between.upper), between.weight_upper)
        return operator
    from scipy.ndimage import spline_filter1d

    padded = np.pad(np.eye(old), ((_EDGE, _EDGE), (0, 0)), mode="edge")
    coefficients = spline_filter1d(padded, order, axis=0, mode="nearest")
    centres = _centres(old, new) + _EDGE
    first = np.floor(centres).astype(np.int64) - 1
    operator = np.zeros((new, old))
    for index in range(4):
        operator += _cubic_b_spline(centres - (first + index))[:, None] * coefficients[first + index]
    return operator


def _cubic_b_spline(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    far = np.abs(distance)
    values: NDArray[np.float64] = np.where(far < 1, 2 / 3 - far**2 + far**3 / 2, np.clip(2 - far, 0, None) ** 3 / 6)
    return values


@lru_cache(maxsize=64)
def _blocks(old: int, new: int, order: int) -> tuple[_Block, ...]:
    operator = axis_operator(old, new, order)
    found = []
    for start in range(0, new, _ROWS):
        rows = slice(start, min(start + _ROWS, new))
        (used,) = np.nonzero((np.abs(operator[rows]) > _NEGLIGIBLE).any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        found.append(_Block(rows, columns, operator[rows, columns].astype(np.float32)))
    return tuple(found)


def _resize(volume: NDArray[np.float32], result: NDArray[np.float32], order: int) -> None:
    """Resample a volume (z, y, x) into `result`, a slab of planes at a time."""
    low, high = volume.min(), volume.max()
    across, down, along = (_blocks(old, new, order) for old, new in zip(volume.shape, result.shape, strict=True))
    for block in across:
        source = volume[block.columns]
        if len(volume) != len(result):
            source = (block.weights @ source.reshape(len(source), -1)).reshape(-1, *volume.shape[1:])
        for plane, target in zip(source, result[block.rows], strict=True):
            rows = np.empty((target.shape[0], plane.shape[1]), dtype=np.float32)
            for part in down:
                np.matmul(part.weights, plane[part.columns], out=rows[part.rows])
            for part in along:
                target[:, part.rows] = rows[:, part.columns] @ part.weights.T
            np.clip(target, low, high, out=target)


# Label maps


class Neighbours(NamedTuple):
    """For each new voxel along an axis: the two old ones that it lies between, and their linear weights."""

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    weight_lower: NDArray[np.float64]
    weight_upper: NDArray[np.float64]


def neighbours(old: int, new: int) -> Neighbours:
    """Where `new` voxels along an axis lie between `old` ones that fill the same extent."""
    centres = np.clip(_centres(old, new), 0, old - 1)
    lower = np.floor(centres).astype(np.int64)
    weight_lower = 1 - (centres - lower)
    return Neighbours(lower, np.minimum(lower + 1, old - 1), weight_lower, 1 - weight_lower)


def _resize_labels(labels: NDArray[Any], result: NDArray[Any], order: int) -> None:
    """Resample a label map (z, y, x) into `result`, a slab of planes at a time.

    Most voxels lie between voxels of one label and have that label; the others are worked out one by one.
    """
    labels = np.ascontiguousarray(labels)
    nearest = [nearest_voxels(old, new) for old, new in zip(labels.shape, result.shape, strict=True)]
    between = [neighbours(old, new) for old, new in zip(labels.shape, result.shape, strict=True)]
    planes = max(1, _SLAB_VOXELS // math.prod(result.shape[1:]))
    for start in range(0, len(result), planes):
        slab = slice(start, start + planes)
        result[slab] = pick(labels, (nearest[0][slab], *nearest[1:]))
        if order == 0:
            continue
        lower, upper = between[0].lower[slab], between[0].upper[slab]
        source = slice(int(lower[0]), int(upper[-1]) + 1)
        mixed = pick(is_mixed(labels[source]), (lower - source.start, between[1].lower, between[2].lower))
        places = np.unravel_index(np.flatnonzero(mixed), mixed.shape)
        if len(places[0]):
            places = (places[0] + start, *places[1:])
            result[places] = _largest_share(labels, places, between, result[places])


def pick(array: NDArray[Any], indices: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
    """`array[numpy.ix_(*indices)]`, faster."""
    for axis, index in enumerate(indices):
        if not np.array_equal(index, np.arange(array.shape[axis])):
            array = array.take(index, axis=axis)
    return array


def is_mixed(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a voxel and its next ones along every axis, eight in all, differ in their labels."""
    lowest, highest = labels.copy(), labels.copy()
    for axis in range(labels.ndim):
        here = (slice(None),) * axis + (slice(None, -1),)
        following = (slice(None),) * axis + (slice(1, None),)
        np.minimum(lowest[here], lowest[following], out=lowest[here])
        np.maximum(highest[here], highest[following], out=highest[here])
    mixed: NDArray[np.bool_] = lowest != highest
    return mixed


def _largest_share(
    labels: NDArray[Any],
    places: tuple[NDArray[np.int64], ...],
    between: Sequence[Neighbours],
    nearest: NDArray[Any],
) -> NDArray[Any]:
    """The winning label at `places` of the new grid, given the nearest voxels' labels there."""
    found, weights = _corners(labels, places, between)
    first, second = np.min(found, axis=0), np.max(found, axis=0)
    of_first, others = np.zeros(len(nearest)), np.zeros(len(nearest))
    for label, weight in zip(found, weights, strict=True):
        of_first += np.where(label == first, weight, 0)
        others += np.where(label == first, 0, weight)
    winner: NDArray[Any] = np.where(of_first == others, nearest, np.where(of_first > others, first, second))
    (several,) = np.nonzero(((found != first) & (found != second)).any(axis=0))
    if len(several):
        winner[several] = _largest_of_several(found[:, several], weights[:, several], nearest[several])
    return winner


def _corners(
    labels: NDArray[Any], places: tuple[NDArray[np.int64], ...], between: Sequence[Neighbours]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Labels and weights (8, places) of the voxels that each of `places` of the new grid lies between.

    Weights are multiplied in the order in which scipy's `zoom` does it, and corners follow in its order: shares that
    are equal there are equal here.
    """
    offsets: list[Any] = [0]
    weights: list[Any] = [1.0]
    for axis, place, step in zip(between, places, np.cumprod((1, *labels.shape[:0:-1]))[::-1], strict=True):
        sides = [
            (axis.lower[place] * step, axis.weight_lower[place]),
            (axis.upper[place] * step, axis.weight_upper[place]),
        ]
        offsets = [offset + side for offset in offsets for side, _ in sides]
        weights = [weight * share for weight in weights for _, share in sides]
    flat = labels.reshape(-1)
    return np.stack([flat[offset] for offset in offsets]), np.stack(weights)


def _largest_of_several(found: NDArray[Any], weights: NDArray[np.float64], nearest: NDArray[Any]) -> NDArray[Any]:
    """The label with the largest share among labels and weights (8, places); `nearest` wins where it ties."""

    def share(label: NDArray[Any]) -> NDArray[np.float64]:
        total = np.zeros(len(nearest))
        for other, weight in zip(found, weights, strict=True):
            total += np.where(other == label, weight, 0)
        return total

    winner: NDArray[Any] = nearest.copy()
    best = share(nearest)
    is_nearest = np.ones(len(nearest), dtype=bool)
    for label in found:
        rival = share(label)
        wins = (rival > best) | ((rival == best) & ~is_nearest & (label < winner))
        winner[wins], best[wins], is_nearest[wins] = label[wins], rival[wins], False
    return winner
