"""Where the U-Net halves its feature maps, how its kernels are shaped, and which patches fit both.

Source: nnU-Net (Isensee et al. 2021, supplementary note 2, "Network topology").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Shape, Spacing, size_text

SHORTEST_EDGE = 4
"""Feature maps keep at least this many voxels along every axis that is halved."""

SIMILAR_SPACING = 2.0
"""Axes less than this many times coarser than the finest are treated like it."""


@dataclass(frozen=True)
class Topology:
    """The stages of a U-Net, from full resolution down, and the patch that it takes."""

    patch_size: Shape
    """Voxels along each axis, a multiple of `divisor`."""

    strides: tuple[Shape, ...]
    """Downsampling at the entry of each stage; 1 at the first."""

    kernel_sizes: tuple[Shape, ...]

    @property
    def n_stages(self) -> int:
        """Stages of the encoder, the bottleneck included."""
        return len(self.strides)

    @property
    def divisor(self) -> Shape:
        """The product of the strides along each axis."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))


def find_topology(spacing_mm: Sequence[float], size: Sequence[float]) -> Topology:
    """The topology for patches of about `size` voxels; the patch is enlarged to what the strides divide.

    A stage is added as long as some axis can be halved (`_axes_to_halve`). A kernel spans 3 voxels along an axis once
    that axis is similar in spacing to the finest one, and 1 before: on thick slices the first convolutions stay within
    the slice. The last stage always has 3.

    Args:
        spacing_mm: millimetres between voxels, two or three axes.
        size: voxels along the same axes; a median of shapes may hold halves.

    Source: nnU-Net's `get_pool_and_conv_props`.
    """
    axes = range(len(size))
    spacing = list(spacing_mm)
    left: list[float] = list(size)
    kernel = [1 for _ in axes]
    strides: list[Shape] = [tuple(1 for _ in axes)]
    kernels: list[Shape] = []
    while halved := _axes_to_halve(spacing, left):
        kernel = [
            3 if k == 3 or s / min(spacing) < SIMILAR_SPACING else 1 for k, s in zip(kernel, spacing, strict=True)
        ]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            spacing[axis] *= 2
            left[axis] = math.ceil(left[axis] / 2)
    kernels.append(tuple(3 for _ in axes))
    divisors = (math.prod(axis) for axis in zip(*strides, strict=True))
    patch = tuple(math.ceil(n / divisor) * divisor for n, divisor in zip(size, divisors, strict=True))
    return Topology(patch, tuple(strides), tuple(kernels))


def _axes_to_halve(spacing_mm: Sequence[float], size: Sequence[float]) -> list[int]:
    """The axes that the next stage halves; none where the network ends.

    An axis must be long enough that half of it keeps `SHORTEST_EDGE`, and among the long ones similar in spacing to
    the finest. A single axis is not worth a stage unless it has one more edge to spare: the same rule that makes the
    receptive field grow in all directions.
    """
    long = [axis for axis in range(len(size)) if size[axis] >= 2 * SHORTEST_EDGE]
    if not long:
        return []
    finest = min(spacing_mm[axis] for axis in long)
    halved = [axis for axis in long if spacing_mm[axis] / finest < SIMILAR_SPACING]
    if len(halved) == 1 and size[halved[0]] < 3 * SHORTEST_EDGE:
        return []
    return halved


def shrink(topology: Topology, spacing_mm: Sequence[float], median_shape: Sequence[float]) -> Topology:
    """The next smaller patch and its topology.

    The axis that is largest relative to the median image gives way, so that the patch takes on the image's aspect (the
    last of several equals). It gives way by the divisor that the smaller patch will have, which can be less than the
    present one: from 256 (a multiple of 64) to 224 (of 32), not to 192.

    Raises:
        InputError: the patch is down to one voxel.

    Source: nnU-Net's planner.
    """
    patch = topology.patch_size
    axis = max(range(len(patch)), key=lambda i: (patch[i] / median_shape[i], i))
    divisor = find_topology(spacing_mm, _less(patch, axis, topology.divisor[axis])).divisor[axis]
    return find_topology(spacing_mm, _less(patch, axis, divisor))


def _less(patch: Shape, axis: int, voxels: int) -> Shape:
    size = patch[axis] - voxels
    if size < 1:
        raise InputError(f"no patch fits the memory: {size_text(patch)} is still too large", next_step="raise --memory")
    return (*patch[:axis], size, *patch[axis + 1 :])


def initial_patch(spacing_mm: Spacing, median_shape: Sequence[float]) -> tuple[float, ...]:
    """The patch to start shrinking from: cubic in millimetres, far too large for memory, no larger than the images.

    Its volume before clipping is 256^3 voxels (2048^2 pixels in 2D). More than a median image is no use.

    Source: nnU-Net's planner.
    """
    volume = 256**3 if len(spacing_mm) == 3 else 2048**2
    voxels_per_mm = [1 / s for s in spacing_mm]
    scale = (volume / math.prod(voxels_per_mm)) ** (1 / len(spacing_mm))
    return tuple(min(max(1, round(v * scale)), n) for v, n in zip(voxels_per_mm, median_shape, strict=True))
