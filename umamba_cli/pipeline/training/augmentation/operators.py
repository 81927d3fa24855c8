"""Blur and low resolution are linear along each axis: one matrix an axis says all of them.

The matrices are what scipy and scikit-image do to the columns of an identity, so the results are theirs.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WIDEST_BLUR = 4
"""Voxels to either side: scipy cuts the Gaussian off at 4 standard deviations, of which the largest is 1 voxel."""


@lru_cache(maxsize=64)
def neighbour_sums(size: int) -> Tensor:
    """For each distance from 0 to 4, the matrix that adds up the voxels at that distance, reflected at the ends.

    Returns:
        Float32 (5, size, size).
    """
    from scipy.ndimage import correlate1d

    sums = []
    for distance in range(_WIDEST_BLUR + 1):
        window = np.zeros(2 * _WIDEST_BLUR + 1)
        window[[_WIDEST_BLUR - distance, _WIDEST_BLUR + distance]] = 1.0
        sums.append(correlate1d(np.eye(size), window, axis=0, mode="reflect"))
    return torch.from_numpy(np.stack(sums).astype(np.float32))


def gaussian_weights(sigma: float) -> NDArray[np.float64]:
    """The weight of a voxel at each distance from 0 to 4 in `scipy.ndimage.gaussian_filter`."""
    distance = np.arange(_WIDEST_BLUR + 1)
    weights = np.exp(-0.5 * (distance / sigma) ** 2) * (distance <= int(4 * sigma + 0.5))
    normalised: NDArray[np.float64] = weights / (weights[0] + 2 * weights[1:].sum())
    return normalised


def lower_size(size: int, zoom: float) -> int:
    """Voxels along an axis after the zoom; half to even, as numpy rounds."""
    return int(np.round(size * zoom))


@lru_cache(maxsize=1024)
def lower_resolution(size: int, lower: int, mirrored: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """An axis brought to a lower size by the nearest voxel, and back by cubic splines, as `skimage.transform.resize`.

    Args:
        size: voxels along the axis.
        lower: voxels in between.
        mirrored: the axis comes mirrored already, although batchgenerators mirrors it later.

    Returns:
        Which voxels are kept (lower,), and the matrix (size, lower) that makes the axis from them.
    """
    from skimage.transform import resize

    voxels = np.arange(size, dtype=np.float64)
    kept = np.round(resize(voxels, (lower,), order=0, mode="edge", anti_aliasing=False)).astype(np.int64)
    back = resize(np.eye(lower), (size, lower), order=3, mode="edge", anti_aliasing=False, clip=False)
    if mirrored:
        kept, back = size - 1 - kept[::-1], back[::-1, ::-1]
    return np.ascontiguousarray(kept), np.ascontiguousarray(back, dtype=np.float32)


def along_all_axes(rows: Tensor, matrices: list[Tensor]) -> Tensor:
    """Apply a matrix (r, n, m) along each axis of `rows` (r, m, ...), one after the other."""
    rest = list(rows.shape[1:])
    for matrix in matrices:
        # The first axis leaves as the last one, so that after a turn all are back in their place.
        rows = rows.reshape(rows.shape[0], rest[0], math.prod(rest[1:])).transpose(1, 2) @ matrix.transpose(1, 2)
        rest = [*rest[1:], matrix.shape[1]]
        rows = rows.reshape(rows.shape[0], *rest)
    return rows
