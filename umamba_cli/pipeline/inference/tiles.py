"""Cutting an image into overlapping tiles and putting their logits together again.

Source: nnU-Net (Isensee et al. 2021, online methods, "inference"): half-patch steps, and a Gaussian weight that trusts
a tile's centre more than its border.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from umamba_cli.pipeline.geometry import Box, Shape

GAUSSIAN_SIGMA = 1 / 8
"""Of the weight, as a share of the tile's size."""

GAUSSIAN_PEAK = 10.0
"""Weight of a tile's centre; only ratios matter, but it keeps the smallest weights off the limits of half precision."""


def tile_starts(size: int, tile: int, step: float) -> list[int]:
    """Where tiles start along one axis: first at 0, last at the end, evenly spread, at most `step` tiles apart.

    Args:
        size: voxels of the image, at least `tile`.
        tile: voxels of a tile.
        step: the largest distance between tiles, as a share of a tile.
    """
    count = math.ceil((size - tile) / (tile * step)) + 1
    if count == 1:
        return [0]
    spread = (size - tile) / (count - 1)
    # In a tile of few voxels steps round to the same place; slices are tiles of one.
    return list(dict.fromkeys(int(np.round(spread * index)) for index in range(count)))


def tile_boxes(shape: Sequence[int], tile: Sequence[int], step: float) -> Iterator[Box]:
    """The tiles of an image, row by row; see `tile_starts`."""
    starts = [tile_starts(n, t, step) for n, t in zip(shape, tile, strict=True)]
    for start in itertools.product(*starts):
        yield Box(start, tuple(a + t for a, t in zip(start, tile, strict=True)))


def gaussian_weight(tile: Shape) -> Tensor:
    """The weight of each voxel of a tile, float32, nowhere zero."""
    impulse = np.zeros(tile)
    impulse[tuple(n // 2 for n in tile)] = 1
    weight = ndimage.gaussian_filter(impulse, [n * GAUSSIAN_SIGMA for n in tile], mode="constant", cval=0)
    weight *= GAUSSIAN_PEAK / weight.max()
    weight[weight == 0] = weight[weight > 0].min()
    return torch.from_numpy(weight.astype(np.float32))


def padding_to(shape: Sequence[int], tile: Sequence[int]) -> tuple[Shape, list[tuple[int, int]]]:
    """What an image smaller than a tile must grow to, and the padding (before, after) along each axis, centred."""
    target = tuple(max(n, t) for n, t in zip(shape, tile, strict=True))
    return target, [((g - n) // 2, (g - n) - (g - n) // 2) for n, g in zip(shape, target, strict=True)]
