"""The part of an image that is not zero: what fingerprint, preprocessing and prediction all crop to.

Source: nnU-Net crops every case to the bounding box of its nonzero voxels (Isensee et al. 2021, supplementary note 2),
which takes the empty air off skull-stripped MR and changes nothing elsewhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from umamba_cli.pipeline.geometry import Box


def nonzero_mask(voxels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where any channel of (channels, z, y, x) is not zero, holes filled: (z, y, x).

    An image of zeros gives a mask that is true everywhere, so that such a case keeps its size.
    """
    mask = np.zeros(voxels.shape[1:], dtype=bool)
    for channel in voxels:
        mask |= channel != 0
    if mask.all() or not mask.any():
        return np.ones_like(mask)
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(mask)
    return filled


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """The smallest box that holds every true voxel; the whole array where there is none."""
    start, stop = [], []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        (hits,) = np.nonzero(mask.any(axis=others))
        start.append(int(hits[0]) if len(hits) else 0)
        stop.append(int(hits[-1]) + 1 if len(hits) else mask.shape[axis])
    return Box(tuple(start), tuple(stop))
