"""Resampling images and label maps to another number of voxels.

Source: nnU-Net's default resampling: cubic splines in general; along an axis that is more than three times coarser than
another, nearest neighbour, because a spline through thick slices invents what lies between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.geometry import ANISOTROPY_THRESHOLD, Shape

IMAGE_ORDER = 3
LABEL_ORDER = 1
PROBABILITY_ORDER = 1


def thick_axis(spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]) -> int | None:
    """The axis to resample apart: the single coarsest one where the old or the new grid has thick slices, else None.

    Source: nnU-Net's `determine_do_sep_z_and_axis`: the old grid is looked at first; two equally coarse axes are none.
    """
    for spacing in (spacing_mm, new_spacing_mm):
        coarsest = max(spacing)
        if coarsest / min(spacing) > ANISOTROPY_THRESHOLD:
            axes = [axis for axis, value in enumerate(spacing) if value == coarsest]
            return axes[0] if len(axes) == 1 else None
    return None


def resample_image(
    voxels: NDArray[np.float32],
    new_shape: Shape,
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
    *,
    order: int = IMAGE_ORDER,
) -> NDArray[np.float32]:
    """Resample an image, or logits, to `new_shape`.

    Args:
        voxels: (channels, z, y, x).
        new_shape: voxels along z, y, x.
        spacing_mm: of the grid at hand, z, y, x; with the next one it decides which axis is resampled apart.
        new_spacing_mm: of the new grid.
        order: of the splines, 0 to 3.

    Returns:
        float32 (channels, *new_shape); the array itself where the shape does not change.
    """
    if voxels.shape[1:] == tuple(new_shape):
        return voxels
    axis = thick_axis(spacing_mm, new_spacing_mm)
    resized = [_resize(channel, new_shape, axis, partial(_spline, order=order)) for channel in voxels]
    return np.stack(resized).astype(np.float32, copy=False)


def resample_labels(
    labels: NDArray[np.integer[Any]], new_shape: Shape, spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]
) -> NDArray[np.integer[Any]]:
    """Resample a label map (z, y, x): each label is interpolated linearly, and the one with the largest share wins.

    Source: `resize_segmentation` of batchgenerators 0.25.5, which nnU-Net uses: where labels tie, the nearest voxel's
    label wins if it is one of them, otherwise the lowest.
    """
    if labels.shape == tuple(new_shape):
        return labels
    return _resize(labels, new_shape, thick_axis(spacing_mm, new_spacing_mm), _by_label)


def _resize(array: NDArray[Any], new_shape: Shape, axis: int | None, resize: Any) -> NDArray[Any]:
    if axis is None:
        resized: NDArray[Any] = resize(array, new_shape)
        return resized
    in_plane = tuple(n for i, n in enumerate(new_shape) if i != axis)
    slices = [resize(plane, in_plane) for plane in np.moveaxis(array, axis, 0)]
    return np.stack([slices[i] for i in _nearest(len(slices), new_shape[axis])], axis=axis)


def _nearest(old: int, new: int) -> NDArray[np.int64]:
    """For each of `new` positions the nearest of `old`, both grids covering the same extent."""
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    indices: NDArray[np.int64] = np.clip(np.floor(centres + 0.5), 0, old - 1).astype(np.int64)
    return indices


def _spline(array: NDArray[Any], shape: Shape, order: int) -> NDArray[Any]:
    from skimage.transform import resize

    resized: NDArray[Any] = resize(array.astype(np.float64), shape, order=order, mode="edge", anti_aliasing=False)
    return resized


def _by_label(labels: NDArray[np.integer[Any]], shape: Shape) -> NDArray[np.integer[Any]]:
    values = np.unique(labels)
    nearest = _spline(labels, shape, 0).astype(labels.dtype)
    winner = np.full(shape, values[0], dtype=labels.dtype)
    best = np.zeros(shape)
    for value in values:
        share = _spline(labels == value, shape, LABEL_ORDER)
        wins = (share > best) | ((share == best) & (nearest == value))
        winner[wins], best[wins] = value, share[wins]
    return winner
