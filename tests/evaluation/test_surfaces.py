from __future__ import annotations

import itertools
import math
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import astuple
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from umamba_cli.pipeline.evaluation.surfaces import SurfaceMetrics, surface_areas, surface_metrics

Mask = NDArray[np.bool_]
MM = (1.0, 1.0, 1.0)
SPACINGS = ((1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (0.9, 2.5, 1.3), (0.4, 0.4, 8.0))


def mask_of(shape: tuple[int, ...], *voxels: tuple[int, ...]) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def noisy_pair(generator: np.random.Generator, axes: int) -> tuple[Mask, Mask]:
    """Two blobs, or crumbs, that are more or less alike; they touch the border where they are large."""
    shape, blur = generator.integers(3, 24, axes), generator.uniform(0, 2.5)
    one = gaussian_filter(generator.normal(size=shape), blur)
    other = one + generator.choice([0.2, 1]) * gaussian_filter(generator.normal(size=shape), blur)
    share = generator.choice([0.3, 0.6, 0.9, 0.97])
    return one >= np.quantile(one, share), other >= np.quantile(other, share)


def test_one_voxel_against_itself() -> None:
    mask = mask_of((3, 3, 3), (1, 1, 1))
    assert surface_metrics(mask, mask, (2.0, 1.0, 0.5), 0) == SurfaceMetrics(surface_dice=1, hd95=0, hd=0, asd=0)


@pytest.mark.parametrize(("axis", "voxels"), [(0, 1), (1, 2), (2, 4)])
def test_two_voxels_two_millimetres_apart(axis: int, voxels: int) -> None:
    # Four corners of each are 2 mm from the other voxel's, the four between them nearer by the voxel's own size.
    spacing = (2.0, 1.0, 0.5)
    prediction, reference = mask_of((7, 7, 7), (1, 1, 1)), np.zeros((7, 7, 7), dtype=bool)
    reference[tuple(1 + voxels * (other == axis) for other in range(3))] = True
    nearer = 2 - spacing[axis]
    for tolerance, met in ((2, 1), (1.999, 0.5), (nearer, 0.5)):
        metrics = surface_metrics(prediction, reference, spacing, tolerance)
        assert astuple(metrics) == pytest.approx((met, 2, 2, (2 + nearer) / 2))
    if nearer:
        assert surface_metrics(prediction, reference, spacing, nearer - 0.001).surface_dice == 0


def test_plates_one_voxel_thick() -> None:
    # 3 voxels of 2 mm apart: the sides that face each other are 2 voxels away, those that look away 3.
    prediction, reference = np.zeros((2, 8, 5, 6), dtype=bool)
    prediction[2], reference[5] = True, True
    assert astuple(surface_metrics(prediction, reference, (2.0, 1.0, 0.7), 4)) == pytest.approx((0.5, 6, 6, 5))


def test_far_apart_in_every_direction() -> None:
    # From (0, 0, 0) to (60, 50, 40) in voxels: of the 8 corners, the farthest are 60 * 3, 50 * 2 and 40 * 1 mm away.
    prediction, reference = mask_of((61, 51, 41), (0, 0, 0)), mask_of((61, 51, 41), (60, 50, 40))
    distances = [
        math.hypot(3 * z, 2 * y, x) for z, y, x in itertools.product((59, 60), (49, 50), (39, 40))
    ]  # of a voxel's corners to the nearest corner of the other, all of the same area
    metrics = surface_metrics(prediction, reference, (3.0, 2.0, 1.0), float(np.median(distances)))
    assert astuple(metrics) == pytest.approx((0.5, max(distances), max(distances), np.mean(distances)))


def test_percentile_counts_area_and_not_elements() -> None:
    # The cube's surface is 98 elements of 81.2 mm2, a far voxel's 8 of 1.7: 2 % of the area, 7.5 % of the elements.
    reference = np.zeros((8, 8, 40), dtype=bool)
    reference[2:6, 2:6, 2:6] = True
    prediction = reference.copy()
    prediction[3, 3, 30] = True
    metrics = surface_metrics(prediction, reference, MM, 1)
    far, near = 8 * math.sqrt(3) / 8, 54 + 36 / math.sqrt(2) + math.sqrt(3)
    assert (metrics.hd95, metrics.hd) == (0, 25)
    assert metrics.surface_dice == pytest.approx(2 * near / (2 * near + far))
    assert metrics.asd == pytest.approx(24.5 * far / (2 * near + far))


@pytest.mark.parametrize(("missing", "hd95"), [(1, 0), (2, 2), (3, 4)])
def test_percentile_is_the_first_distance_that_95_percent_lie_within(missing: int, hd95: float) -> None:
    # Twenty pixels with gaps of one. Without the first, 95 % are met. Without two, their corners are 4, 3, 2 and 1 off,
    # 2.5 % each, after 90 % that are met; without three 6 to 1, after 85 %.
    pixels = [(2 * i, 0) for i in range(20)]
    prediction, reference = mask_of((40, 1), *pixels), mask_of((40, 1), *pixels[missing:])
    assert surface_metrics(prediction, reference, (1.0, 1.0), 0).hd95 == hd95
    assert surface_metrics(reference, prediction, (1.0, 1.0), 0).hd95 == hd95


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5)])
def test_empty_masks(shape: tuple[int, ...]) -> None:
    empty, full = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    spacing = MM[: len(shape)]
    assert np.isnan(astuple(surface_metrics(empty, empty, spacing, 1))).all()
    for prediction, reference in ((empty, full), (full, empty)):
        metrics = surface_metrics(prediction, reference, spacing, 1)
        assert metrics.surface_dice == 0
        assert np.isnan(astuple(metrics)[1:]).all()


def test_outside_the_image_there_is_nothing() -> None:
    prediction, reference = np.ones((2, 3, 4), dtype=bool), mask_of((2, 3, 4), (0, 0, 0), (1, 0, 0))
    inside = surface_metrics(np.pad(prediction, 3), np.pad(reference, 3), (2.0, 1.0, 0.5), 1)
    assert surface_metrics(prediction, reference, (2.0, 1.0, 0.5), 1) == inside
    assert inside.hd == pytest.approx(math.hypot(2, 1.5))


def test_picture() -> None:
    # A row of two pixels and one of three: only the two corners at the end are a pixel from the nearest. The end's
    # corners are half a pixel's diagonal long, as all corners are, the longer row's sides two pixels, the other's one.
    prediction, reference = mask_of((3, 5), (1, 1), (1, 2)), mask_of((3, 5), (1, 1), (1, 2), (1, 3))
    diagonal = math.sqrt(0.5)
    whole, off = (4 * diagonal + 2) + (4 * diagonal + 4), 2 * diagonal
    metrics = surface_metrics(prediction, reference, (1.0, 1.0), 0.5)
    assert astuple(metrics) == pytest.approx((1 - off / whole, 1, 1, off / whole))


def test_long_columns() -> None:
    prediction, reference = mask_of((301, 2), (0, 0)), mask_of((301, 2), (300, 1))
    metrics = surface_metrics(prediction, reference, (0.5, 1.0), 149.6)
    assert astuple(metrics)[:3] == pytest.approx((0.5, math.hypot(150, 1), math.hypot(150, 1)))


@pytest.mark.parametrize("chunk", [1, 60])
@pytest.mark.parametrize("axes", [2, 3])
def test_work_in_small_parts(monkeypatch: pytest.MonkeyPatch, axes: int, chunk: int) -> None:
    prediction, reference = noisy_pair(np.random.default_rng(5), axes)
    whole = surface_metrics(prediction, reference, MM[:axes], 1)
    monkeypatch.setattr("umamba_cli.pipeline.evaluation.surfaces._CHUNK", chunk)
    assert surface_metrics(prediction, reference, MM[:axes], 1) == whole


@pytest.mark.parametrize("spacing", SPACINGS)
def test_axes_are_alike(spacing: tuple[float, ...]) -> None:
    prediction, reference = noisy_pair(np.random.default_rng(1), 3)
    metrics = surface_metrics(prediction, reference, spacing, 1)
    for axes in itertools.permutations(range(3)):
        turned = [np.flip(mask, axes[0]).transpose(axes) for mask in (prediction, reference)]
        there = surface_metrics(*turned, [spacing[axis] for axis in axes], 1)
        assert astuple(there) == pytest.approx(astuple(metrics))
    assert astuple(surface_metrics(reference, prediction, spacing, 1)) == pytest.approx(astuple(metrics))


@pytest.mark.parametrize("seed", range(12))
def test_against_the_definition_worked_out_slowly(seed: int) -> None:
    generator = np.random.default_rng(seed)
    prediction, reference = noisy_pair(generator, 2 + seed % 2)
    spacing = SPACINGS[seed % len(SPACINGS)][: prediction.ndim]
    metrics = surface_metrics(prediction, reference, spacing, 1.3)
    assert astuple(metrics) == pytest.approx(slow_metrics(prediction, reference, spacing, 1.3), abs=1e-9)


def slow_metrics(prediction: Mask, reference: Mask, spacing: tuple[float, ...], tolerance: float) -> tuple[float, ...]:
    """What the definition says, with all distances between all surface elements."""
    surfaces = []
    for mask in (prediction, reference):
        padded, corners = np.pad(mask, 1).astype(int), np.array(mask.shape) + 1
        code = np.zeros(corners, dtype=int)
        for offset in itertools.product((0, 1), repeat=mask.ndim):
            code = 2 * code + padded[tuple(slice(o, o + n) for o, n in zip(offset, corners, strict=True))]
        mixed = (code > 0) & (code < 2**2**mask.ndim - 1)
        surfaces.append((np.argwhere(mixed) * spacing, surface_areas(spacing)[code[mixed]]))
    (one, one_area), (other, other_area) = surfaces
    between = cdist(one, other)
    sides = [(between.min(1), one_area), (between.min(0), other_area)]
    distances, areas = (np.concatenate(both) for both in zip(*sides, strict=True))
    percentiles = [
        min(near for near in distance if area[distance <= near].sum() >= (0.95 - 1e-12) * area.sum())
        for distance, area in sides
    ]
    near = areas[distances <= tolerance].sum() / areas.sum()
    return near, max(percentiles), distances.max(), np.average(distances, weights=areas)


def test_areas_by_hand() -> None:
    areas = surface_areas((1.0, 1.0, 1.0))
    assert areas[0b00000000] == areas[0b11111111] == 0
    assert areas[0b00000001] == pytest.approx(math.sqrt(3) / 8)  # a triangle between midpoints
    assert areas[0b00000011] == pytest.approx(math.sqrt(2) / 2)  # a rectangle across two faces
    assert areas[0b00001111] == 1  # a plane
    assert areas[0b10000001] == pytest.approx(2 * math.sqrt(3) / 8)  # two voxels that touch in a corner
    assert areas[0b00010111] == pytest.approx(3 * math.sqrt(3) / 4)  # a regular hexagon
    flat = surface_areas((3.0, 2.0, 1.0))
    assert [flat[0b00001111], flat[0b00110011], flat[0b01010101]] == pytest.approx([2, 3, 6])
    assert flat[0b00000011] == pytest.approx(math.sqrt(13) / 2)  # the edge lies along the last axis


def test_lengths_by_hand() -> None:
    lengths = surface_areas((1.0, 2.0))
    diagonal = math.sqrt(5) / 2
    for code, length in ((0b0001, diagonal), (0b0011, 2), (0b0101, 1), (0b0110, 2 * diagonal), (0b0111, diagonal)):
        assert lengths[code] == lengths[0b1111 - code] == pytest.approx(length)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_areas_are_those_of_marching_cubes(spacing: tuple[float, ...]) -> None:
    from skimage.measure import marching_cubes, mesh_surface_area

    areas = surface_areas(spacing)
    for code in range(1, 255):
        cube = np.array([code >> bit & 1 for bit in reversed(range(8))], dtype=float).reshape(2, 2, 2)
        if cube.sum() <= 4:  # with more, skimage joins what lies across a face
            vertices, faces, *_ = marching_cubes(cube, 0.5, spacing=spacing, method="lorensen")
            assert areas[code] == pytest.approx(mesh_surface_area(vertices, faces), rel=1e-5)
            assert areas[255 - code] == pytest.approx(areas[code])


@pytest.fixture
def surface_distance(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """DeepMind's package, which is from before numpy 2."""
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield pytest.importorskip("surface_distance")


def their_metrics(package: Any, prediction: Mask, reference: Mask, spacing: Any, tolerance: float) -> tuple[float, ...]:
    found = package.compute_surface_distances(reference, prediction, spacing)
    sides = ("gt_to_pred", "gt"), ("pred_to_gt", "pred")
    distances = np.concatenate([found[f"distances_{name}"] for name, _ in sides])
    areas = np.concatenate([found[f"surfel_areas_{name}"] for _, name in sides])
    return (
        package.compute_surface_dice_at_tolerance(found, tolerance),
        package.compute_robust_hausdorff(found, 95),
        package.compute_robust_hausdorff(found, 100),
        np.average(distances, weights=areas),
    )


@pytest.mark.parametrize("seed", range(40))
def test_equal_to_surface_distance(surface_distance: ModuleType, seed: int) -> None:
    generator = np.random.default_rng(seed)
    axes = 2 + seed % 2
    prediction, reference = noisy_pair(generator, axes)
    if seed % 5 == 0:
        prediction = mask_of(prediction.shape, tuple(generator.integers(prediction.shape)))
    if seed % 10 == 0:
        reference = mask_of(prediction.shape, *(tuple(generator.integers(prediction.shape)) for _ in range(2)))
    spacing = generator.choice([0.5, 0.7, 1.0, 2.3, 5.0], axes)
    tolerance = generator.choice([0.5, 1.0, 1.4, 2.3])
    theirs = their_metrics(surface_distance, prediction, reference, spacing, tolerance)
    assert astuple(surface_metrics(prediction, reference, spacing, tolerance)) == pytest.approx(theirs, abs=1e-9)


def test_areas_equal_those_of_surface_distance(surface_distance: ModuleType) -> None:
    tables = surface_distance.metrics.lookup_tables
    for spacing in SPACINGS:
        theirs = tables.create_table_neighbour_code_to_surface_area(spacing)
        assert np.allclose(surface_areas(spacing), theirs, rtol=1e-12)
        theirs = tables.create_table_neighbour_code_to_contour_length(spacing[:2])
        assert np.allclose(surface_areas(spacing[:2]), theirs, rtol=1e-12)


def test_large_box_takes_little_memory() -> None:
    # An organ, and a wrong finding at the other end of the CT.
    prediction, reference = np.zeros((2, 80, 200, 250), dtype=bool)
    prediction[2:30, 20:60, 20:60] = reference[3:33, 22:61, 20:58] = prediction[78, 190:, 240:] = True
    tracemalloc.start()
    metrics = surface_metrics(prediction, reference, (1.5, 0.8, 0.8), 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert metrics.hd > 200
    assert peak < 4 * prediction.size


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: {**a, "reference": a["reference"][1:]}, "differ in shape"),
        (lambda a: {**a, "reference": a["reference"].astype(int)}, "masks are boolean"),
        (lambda a: {**a, "prediction": np.ones(4, dtype=bool), "reference": np.ones(4, dtype=bool)}, "2 or 3 axes"),
        (lambda a: {**a, "spacing": (1.0, 1.0)}, "spacing along each"),
        (lambda a: {**a, "spacing": (1.0, 0.0, 1.0)}, "spacing along each"),
        (lambda a: {**a, "spacing": (1.0, math.nan, 1.0)}, "spacing along each"),
        (lambda a: {**a, "tolerance": -1.0}, "tolerance"),
        (lambda a: {**a, "tolerance": math.nan}, "tolerance"),
    ],
)
def test_arguments_that_cannot_be(change: Callable[[dict[str, Any]], dict[str, Any]], said: str) -> None:
    mask = np.ones((2, 3, 4), dtype=bool)
    with pytest.raises(ValueError, match=said):
        surface_metrics(**change({"prediction": mask, "reference": mask, "spacing": MM, "tolerance": 1.0}))
