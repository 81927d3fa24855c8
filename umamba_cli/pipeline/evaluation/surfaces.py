"""How far two surfaces lie apart: normalised surface Dice, Hausdorff and average distances of two masks.

**Definition.** As DeepMind's surface-distance has it (Nikolov et al. 2021). A corner of the voxel grid, where 8 voxels
meet (4 pixels in pictures), is a surface element of a mask that holds some of them but not all; outside the image there
is nothing. Its distance is the one to the nearest surface element of the other mask, in the units of the spacing; its
area (in pictures: its length) follows from which of the voxels are held, and the spacing. So thick slices count for
as much as they cover, and the number of voxels along an edge does not matter.

**Areas.** Those of marching cubes (Lorensen & Cline 1987) in the cube between the 8 voxels' centres; see
`surface_areas`.

**Speed.** Only the box around both masks is looked at. Along the axis with the finest spacing, two sweeps give every
corner's distance to the nearest surface element in its column. From there each surface element of the other mask
looks into the columns around its own, nearest first, until no column can hold anything nearer: most surfaces nearly
meet, so a few looks do. What is farther than `_LOOKS` columns is searched for in a k-d tree. Beside lists of surface
elements this takes two bytes for each voxel of the box, where a distance transform takes eight and more.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.evaluation.masks import box_of, require_masks

PERCENT = 95
"""Of the surface that lies within `SurfaceMetrics.hd95` of the other."""

_LOOKS = 512
"""Columns that are looked into around each surface element; beyond, a k-d tree is faster."""

_CHUNK = 2**16
"""Surface elements, or four times as many voxels, that are worked on at once: they stay in the processor's cache."""

_ROUNDING = 1e-12
"""Shares of an area that differ by less are the same."""

Corner = tuple[int, ...]


@dataclass(frozen=True)
class SurfaceMetrics:
    """Distances between the surfaces of a predicted and a reference mask, in the units of the spacing."""

    surface_dice: float
    """Normalised surface Dice: the share of both surfaces that lies within the tolerance of the other.

    NaN where both masks are empty, 0 where one is.
    """

    hd95: float
    """The larger of the two sides' 95th percentiles; NaN where a mask is empty.

    The percentile of a side is the least distance within which 95 % of its area lie; nothing is interpolated.
    """

    hd: float
    """Hausdorff distance: the largest distance; NaN where a mask is empty."""

    asd: float
    """Average symmetric surface distance: the mean over the area of both surfaces; NaN where a mask is empty."""


@dataclass(frozen=True)
class _Surface:
    """The surface elements of a mask in a grid of corners."""

    places: NDArray[np.intp]
    """Positions in the flattened grid, rising."""

    codes: NDArray[np.uint8]
    """Which of the voxels around the corner the mask holds; see `surface_areas`."""


def surface_metrics(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float], tolerance: float
) -> SurfaceMetrics:
    """Distances between the surfaces of two masks; the definition is at the top of this file.

    Args:
        prediction: mask (z, y, x) or (y, x).
        reference: mask of the same shape.
        spacing: the distance between voxels along each axis: millimetres, or pixels.
        tolerance: surfaces no farther apart than this, in the units of the spacing, count as met.

    Raises:
        ValueError: the arrays are no masks of one shape with 2 or 3 axes, or another argument is out of its range.

    Source: Nikolov et al. 2021, Journal of Medical Internet Research 23(7):e26151; its package surface-distance 0.1.
    """
    require_masks(prediction, reference, spacing)
    if not tolerance >= 0:
        raise ValueError(f"a tolerance is 0 or more, not {tolerance}")
    boxes = [box_of(mask) for mask in (prediction, reference)]
    if boxes[0] is None or boxes[1] is None:
        nothing_met = math.nan if boxes == [None, None] else 0.0
        return SurfaceMetrics(nothing_met, math.nan, math.nan, math.nan)
    box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(boxes[0], boxes[1], strict=True))
    finest = min(range(len(spacing)), key=lambda axis: spacing[axis])
    order = (finest, *(axis for axis in range(len(spacing)) if axis != finest))
    steps = tuple(float(spacing[axis]) for axis in order)
    looks = _looks(steps[1:])
    masks = (mask[box].transpose(order) for mask in (prediction, reference))
    (predicted, wanted), shape = _surfaces(masks, looks.reach)
    areas = surface_areas(steps)
    sides = (
        (_distances(predicted, wanted, shape, steps, looks), areas[predicted.codes]),
        (_distances(wanted, predicted, shape, steps, looks), areas[wanted.codes]),
    )
    whole = sum(float(area.sum()) for _, area in sides)
    return SurfaceMetrics(
        surface_dice=sum(float(area[distance <= tolerance].sum()) for distance, area in sides) / whole,
        hd95=max(_percentile(distance, area) for distance, area in sides),
        hd=max(float(distance.max()) for distance, _ in sides),
        asd=sum(float((distance * area).sum()) for distance, area in sides) / whole,
    )


@functools.lru_cache(maxsize=64)
def surface_areas(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """The area (in pictures: length) of a surface element by its code, in the units of the spacing, squared in 3D.

    A code has a bit for each voxel around the corner, the highest for the one before the corner along all axes, the
    lowest for the one behind it. Voxels that share a face belong together; each such group is cut off from the others
    by a surface through the midpoints between what is inside and what is not. Where more than half of the voxels are
    inside, those outside are cut off instead, so that a mask and its complement have the same surface. How a surface
    with a crease is cut into triangles does not follow from that: see `_group_normals`.
    """
    axes = len(spacing)
    corners = list(itertools.product((0, 1), repeat=axes))
    faces = np.prod(spacing) / np.array(spacing)
    areas = np.zeros(2 ** len(corners))
    for code in range(1, len(areas) - 1):
        inside = {corner for bit, corner in enumerate(reversed(corners)) if code >> bit & 1}
        outside = set(corners) - inside
        for group in _groups(min(inside, outside, key=len)):
            areas[code] += np.linalg.norm(np.array(_group_normals(group)) * faces, axis=1).sum()
    areas.flags.writeable = False
    return areas


def _groups(corners: set[Corner]) -> list[list[Corner]]:
    """Corners of a cube or square, put into one group where edges join them."""
    left, groups = set(corners), []
    while left:
        group = [left.pop()]
        for corner in group:
            near = {other for other in left if _axes_between(corner, other) == 1}
            left -= near
            group.extend(sorted(near))
        groups.append(group)
    return groups


def _group_normals(group: Sequence[Corner]) -> list[list[float]]:
    """Normals of the pieces of the surface around a group of a cube's, or square's, corners; as long as their areas.

    In a unit cube, and without their signs, of which areas do not depend. The pieces are:

    - one corner: a triangle;
    - two: a rectangle;
    - three: the triangle between the ends of the three edges that stand on their plane, and the trapezoid left of the
      pentagon;
    - four in a plane: a square;
    - four around one: a regular hexagon;
    - four in a row: a hexagon with a crease; of its planar quadrilaterals the one that faces the cube's diagonal, and
      the two triangles that it leaves.
    """
    axes = len(group[0])
    flat = [float(len({corner[axis] for corner in group}) == 1) for axis in range(axes)]
    """1 along the axes that the group does not extend along."""
    if axes == 2:
        return [[0.5, 0.5]] if len(group) == 1 else [flat]
    if len(group) == 1:
        return [[1 / 8] * 3]
    if len(group) == 2:
        return [[side / 2 for side in flat]]
    if len(group) == 3:
        return [[side / 2 for side in flat], [3 / 8] * 3]
    if any(flat):
        return [flat]
    neighbours = {corner: sum(_axes_between(corner, other) == 1 for other in group) for corner in group}
    if max(neighbours.values()) == 3:
        return [[6 / 8] * 3]
    first, second = (corner for corner, count in neighbours.items() if count == 2)
    middle = next(axis for axis in range(axes) if first[axis] != second[axis])
    triangles = [[0.0 if axis == end else 1 / 4 for axis in range(axes)] for end in range(axes) if end != middle]
    return [[1 / 2] * 3, *triangles]


def _axes_between(one: Corner, other: Corner) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class _Looks:
    """Columns to look into, by their place relative to a surface element's own, nearest first."""

    reach: tuple[int, ...]
    """The farthest along each axis but the first, in voxels."""

    rings: tuple[tuple[float, NDArray[np.intp]], ...]
    """Columns as far away as each other: the square of their distance, and (column, axis) in voxels."""

    end: float
    """The square of the distance that the next ring is not nearer than."""


@functools.lru_cache(maxsize=64)
def _looks(steps: tuple[float, ...]) -> _Looks:
    """The `_LOOKS` nearest columns, about.

    Args:
        steps: the spacing along all axes but that of the columns.
    """
    end = (_LOOKS * steps[0] / 2) ** 2 if len(steps) == 1 else _LOOKS * math.prod(steps) / math.pi
    reach = tuple(int(math.sqrt(end) / step) for step in steps)
    places = np.stack(np.meshgrid(*(np.arange(-most, most + 1) for most in reach), indexing="ij"), -1)
    places = places.reshape(-1, len(steps))
    squares = np.square(places * steps).sum(1)
    rings = tuple((float(square), places[squares == square]) for square in np.unique(squares[squares <= end]))
    return _Looks(reach, rings, end)


def _surfaces(masks: Iterable[NDArray[np.bool_]], reach: tuple[int, ...]) -> tuple[list[_Surface], tuple[int, ...]]:
    """The surface elements of masks of one shape in one grid of corners, and the grid's shape.

    Args:
        masks: as the axes are searched.
        reach: what the grid is wider by on each side along all axes but the first, so that no look falls out of it.
    """
    margins = [(1, 1), *((1 + most, 1 + most) for most in reach)]
    shape: tuple[int, ...] = ()
    found = []
    for mask in masks:
        voxels = np.pad(mask.view(np.uint8), margins)
        shape = tuple(size - 1 for size in voxels.shape)
        found.append(_surface(voxels))
    return found, shape


def _surface(voxels: NDArray[np.uint8]) -> _Surface:
    """The surface elements between voxels, a few planes at a time: no map of codes is kept."""
    planes = max(1, 4 * _CHUNK // voxels[0].size)
    corners_in_plane = math.prod(size - 1 for size in voxels.shape[1:])
    last = 2 ** (2**voxels.ndim) - 1
    places, codes = [], []
    for start in range(0, len(voxels) - 1, planes):
        code = voxels[start : start + planes + 1]
        for axis in range(voxels.ndim):
            before, behind = (_along(axis, part) for part in (slice(None, -1), slice(1, None)))
            code = (code[before] << 2 ** (voxels.ndim - 1 - axis)) | code[behind]
        code = code.ravel()
        mixed = np.flatnonzero((code != 0) & (code != last))
        codes.append(code[mixed])
        places.append(mixed + start * corners_in_plane)
    return _Surface(np.concatenate(places), np.concatenate(codes))


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, part)


def _distances(
    of: _Surface, to: _Surface, shape: tuple[int, ...], steps: tuple[float, ...], looks: _Looks
) -> NDArray[np.float64]:
    """The distance from each surface element of one mask to the nearest of the other.

    Args:
        of: where to measure from.
        to: where to measure to.
        shape: of the grid of both.
        steps: its spacing.
        looks: which columns to look into.
    """
    columns = _columns(to.places, shape)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(1, len(shape))]
    rings = [(square, offsets @ strides) for square, offsets in looks.rings]
    heights = np.square(np.arange(shape[0] + 1) * steps[0])
    heights[-1] = np.inf
    squares = np.concatenate(
        [
            _search(of.places[start : start + _CHUNK], columns, heights, rings, looks.end)
            for start in range(0, len(of.places), _CHUNK)
        ]
    )
    far = np.flatnonzero(np.isnan(squares))
    if far.size:
        squares[far] = _search_far(of.places[far], to.places, shape, steps)
    distances: NDArray[np.float64] = np.sqrt(squares)
    return distances


def _columns(places: NDArray[np.intp], shape: tuple[int, ...]) -> NDArray[Any]:
    """How far each place of a flattened grid is from the nearest of some places along the first axis, in voxels.

    Where there is none, it is the axis' length, which no distance is.
    """
    flat: NDArray[Any] = np.full(math.prod(shape), shape[0], np.min_scalar_type(shape[0] + 1))
    flat[places] = 0
    planes = flat.reshape(shape[0], -1)
    farther = np.empty_like(planes[0])
    count = len(planes)
    forth, back = ((i, i - 1) for i in range(1, count)), ((i, i + 1) for i in reversed(range(count - 1)))
    for here, beside in itertools.chain(forth, back):
        np.add(planes[beside], 1, out=farther)
        np.minimum(planes[here], farther, out=planes[here])
    return flat


def _search(
    places: NDArray[np.intp],
    columns: NDArray[Any],
    heights: NDArray[np.float64],
    rings: Sequence[tuple[float, NDArray[np.intp]]],
    end: float,
) -> NDArray[np.float64]:
    """Squared distances from some places to the nearest surface element; NaN where it may lie beyond the last ring.

    Args:
        places: in the flattened grid.
        columns: see `_columns`.
        heights: the squared distance of so many voxels along the first axis.
        rings: the squared distance of columns, and their positions relative to a place in the flattened grid.
        end: the squared distance that columns in no ring are not nearer than.
    """
    found = np.full(len(places), np.nan)
    left, nearest = np.arange(len(places)), np.full(len(places), np.inf)
    for number, (square, shifts) in enumerate(rings):
        least = columns[places + shifts[0]]
        for shift in shifts[1:]:
            np.minimum(least, columns[places + shift], out=least)
        np.minimum(nearest, heights[least] + square, out=nearest)
        sure = nearest <= (rings[number + 1][0] if number + 1 < len(rings) else end)
        found[left[sure]] = nearest[sure]
        left, places, nearest = (values[~sure] for values in (left, places, nearest))
        if not left.size:
            break
    return found


def _search_far(
    places: NDArray[np.intp], to: NDArray[np.intp], shape: tuple[int, ...], steps: tuple[float, ...]
) -> NDArray[np.float64]:
    """Squared distances from some places of a flattened grid to the nearest of others, however far that is."""
    from scipy.spatial import cKDTree

    here, there = (np.stack(np.unravel_index(flat, shape), axis=1) for flat in (places, to))
    tree = cKDTree(there * steps, balanced_tree=False, compact_nodes=False)
    _, nearest = tree.query(here * steps)
    # From whole numbers of voxels again, as near ones are: n * step is no difference of two products.
    squares: NDArray[np.float64] = np.square((there[nearest] - here) * steps).sum(axis=1)
    return squares


def _percentile(distances: NDArray[np.float64], areas: NDArray[np.float64]) -> float:
    """The least distance within which `PERCENT` of the area lie."""
    order = np.argsort(distances)
    share = np.cumsum(areas[order])
    index = np.searchsorted(share, share[-1] * (PERCENT / 100 - _ROUNDING))
    return float(distances[order[index]])
