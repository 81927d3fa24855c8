"""Which voxel spacing to work at, and in which order of axes.

Source: nnU-Net (Isensee et al. 2021, supplementary note 2, "Target image resampling").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from umamba_cli.pipeline.geometry import ANISOTROPY_THRESHOLD, FLAT_SPACING_MM, Shape, Spacing, resampled_shape

LOWRES_STEP = 1.03
"""3d_lowres is sought in steps of 3 % coarser spacing."""

LOWRES_SIMILAR = 2.0
"""Axes more than this many times finer than the coarsest are coarsened first."""

THICK_SLICE_PERCENTILE = 10.0


@dataclass(frozen=True)
class TargetSpacing:
    """The spacing of 3d_fullres in the images' own axis order, and why."""

    spacing_mm: Spacing
    reason: str


def target_spacing(spacings_mm: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]) -> TargetSpacing:
    """The spacing that all cases are resampled to: the median along each axis, but finer across thick slices.

    The median asks the least interpolation of a typical case. Where one axis is more than 3 times coarser than the
    others and has fewer than a third of their voxels, resampling thinner slices to the median would blur away what
    little there is along that axis, so the 10th percentile is taken there, though nothing finer than the other axes.

    Args:
        spacings_mm: of each case, along z, y, x.
        shapes: voxels of each case along the same axes, cropped.
    """
    spacings = np.array(spacings_mm, dtype=float)
    target = [float(value) for value in np.percentile(spacings, 50, axis=0)]
    sizes = np.percentile(np.array(shapes), 50, axis=0)
    worst = int(np.argmax(target))
    coarsest_other = max(value for axis, value in enumerate(target) if axis != worst)
    fewest_other = min(float(size) for axis, size in enumerate(sizes) if axis != worst)
    thick = target[worst] > ANISOTROPY_THRESHOLD * coarsest_other
    few = float(sizes[worst]) * ANISOTROPY_THRESHOLD < fewest_other
    if not (thick and few):
        return TargetSpacing(tuple(target), f"median of {len(spacings)} cases along each axis")
    median = target[worst]
    finest = float(np.percentile(spacings[:, worst], THICK_SLICE_PERCENTILE))
    target[worst] = finest if finest >= coarsest_other else coarsest_other + 1e-5
    if median >= FLAT_SPACING_MM:
        return TargetSpacing(tuple(target), f"median of {len(spacings)} pictures along each axis")
    axis = "zyx"[worst]
    reason = (
        f"median of {len(spacings)} cases; along {axis}, thick slices (median {median:.4g} mm), the 10th percentile"
    )
    return TargetSpacing(tuple(target), reason)


def transpose_axes(spacing_mm: Spacing) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Axis order to work in, and its inverse: the coarsest axis first, so that 2D slices have the best resolution.

    Source: nnU-Net's planner. The first of several equals counts as the coarsest.
    """
    coarsest = spacing_mm.index(max(spacing_mm))
    first, second = (axis for axis in range(3) if axis != coarsest)
    forward = (coarsest, first, second)
    return forward, (forward.index(0), forward.index(1), forward.index(2))


def median_shape(
    spacings_mm: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]], target_mm: Spacing
) -> tuple[float, ...]:
    """Median size of the cases after resampling to the target spacing; an even number of cases can give halves."""
    resampled: list[Shape] = [resampled_shape(n, s, target_mm) for n, s in zip(shapes, spacings_mm, strict=True)]
    return tuple(float(value) for value in np.median(resampled, axis=0))


def coarser(spacing_mm: Spacing) -> Spacing:
    """The next spacing to try for 3d_lowres.

    Axes more than 2 times finer than the coarsest are coarsened alone until they are similar, then all of them: low
    resolution comes at the price of detail that only some axes had.

    Source: nnU-Net's planner.
    """
    coarsest = max(spacing_mm)
    fine = [coarsest / value > LOWRES_SIMILAR for value in spacing_mm]
    return tuple(v * LOWRES_STEP if alone or not any(fine) else v for v, alone in zip(spacing_mm, fine, strict=True))
