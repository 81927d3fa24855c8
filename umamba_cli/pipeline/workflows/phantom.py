"""Drawn datasets: bodies with organs that no intensity threshold can tell apart, for the demo and for tests.

A case is a torso: a body with a layer of fat, and in it a liver with lesions, two kidneys and a vessel to be found.
What is to be left alone looks alike: fat and spine are as bright as kidneys, a spleen and bowel as bright as the liver,
cysts as dark as the lesions, another vein as bright as the vessel. Only place, shape and surroundings tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.dataset import Dataset, open_dataset
from umamba_cli.pipeline.data.files import replacing, write_json
from umamba_cli.pipeline.data.images import write_label_map
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Grid, Shape, Spacing

LABELS = {"background": 0, "liver": 1, "kidneys": 2, "vessel": 3, "lesion": 4}

_ENDING = ".nii.gz"
_SUBSLICES = 3  # a slice is drawn as so many thin ones and averaged: the partial volume of thick slices
_FULL_SCALE = 200.0  # what an intensity of 1 becomes at scale 1; 100 times that still fits int16
_LESION_SHARE = (0.0020, 0.0045)  # volume of a lesion as a share of the field of view's: 125 to 282 voxels of 20x56x56

Coordinates = NDArray[np.float32]
"""(3, z, y, x): z, y, x of every voxel in units of half the field of view, 0 at its centre."""


@dataclass(frozen=True)
class _Blob:
    """An ellipsoid (or, with an infinite semi-axis, a cylinder) along the axes; units as of `Coordinates`."""

    centre: tuple[float, float, float]
    axes: tuple[float, float, float]

    def level(self, points: NDArray[Any]) -> NDArray[Any]:
        """Below 1 inside; `points` are (3, ...)."""
        squares = [((p - c) / a) ** 2 for p, c, a in zip(points, self.centre, self.axes, strict=True)]
        return np.asarray(sum(squares))

    def holds(self, point: Sequence[float]) -> bool:
        """Whether one point lies inside."""
        return bool(self.level(np.asarray(point)) < 1)


def draw_phantom_dataset(
    folder: Path,
    *,
    cases: int = 16,
    test_cases: int = 0,
    shape: Shape = (20, 56, 56),
    spacing_mm: Spacing = (3.0, 1.2, 1.2),
    seed: int = 0,
) -> Dataset:
    """Write a dataset of drawn cases in nnU-Net raw layout and open it.

    The same arguments give the same files; with more cases the first ones stay the same. `dataset.json` comes last.

    Args:
        folder: where to; made where it is not there.
        cases: training cases.
        test_cases: further cases, written to imagesTs and labelsTs.
        shape: voxels along z, y, x; cases differ from it by a few.
        spacing_mm: along z, y, x; cases differ from it by some percent.
        seed: of the random numbers.

    Raises:
        InputError: there is no case, or the shape is too small to draw in.
        WorkError: the folder cannot be written to.
    """
    if cases < 1 or test_cases < 0:
        raise InputError(f"{cases} and {test_cases} cases cannot be drawn", next_step="draw at least one case")
    for split, count, stream in (("Tr", cases, 0), ("Ts", test_cases, 1)):
        for index in range(count):
            rng = np.random.default_rng([seed, stream, index])
            voxels, labels, grid = phantom_case(rng, shape=shape, spacing_mm=spacing_mm)
            name = f"phantom_{index + (0 if split == 'Tr' else cases):03d}"
            _write_image(folder / f"images{split}" / f"{name}_0000{_ENDING}", voxels, grid)
            write_label_map(folder / f"labels{split}" / f"{name}{_ENDING}", labels, grid)
    description = {
        "name": "Phantom",
        "description": "drawn torsos; no patient's data",
        "channel_names": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": _ENDING,
    }
    write_json(folder / "dataset.json", description)
    return open_dataset(folder)


def phantom_case(
    rng: np.random.Generator, *, shape: Shape = (20, 56, 56), spacing_mm: Spacing = (3.0, 1.2, 1.2)
) -> tuple[NDArray[Any], NDArray[np.uint8], Grid]:
    """Draw one case.

    Args:
        rng: all that differs between cases is drawn from it.
        shape: voxels along z, y, x; the case differs from it by a few.
        spacing_mm: along z, y, x; the case differs from it by some percent.

    Returns:
        voxels (z, y, x) of type int16, uint16 or float32, at an intensity scale of its own; labels (z, y, x) with the
        values of `LABELS`; and the grid that both lie on.

    Raises:
        InputError: the shape is too small to draw in.
    """
    if len(shape) != 3 or len(spacing_mm) != 3 or min(shape) < 8:
        raise InputError(f"a phantom of shape {shape} cannot be drawn", next_step="give three sizes, each at least 8")
    grid = _draw_grid(rng, shape, spacing_mm)
    half_mm = np.array(shape) * np.array(spacing_mm) / 2
    points = _anatomical_points(rng, grid, half_mm)
    intensities, fine_labels = _draw_anatomy(rng, points)
    slices = intensities.reshape(grid.shape[0], _SUBSLICES, *grid.shape[1:]).mean(axis=1)
    labels = fine_labels[_SUBSLICES // 2 :: _SUBSLICES]
    return _acquire(rng, slices), np.ascontiguousarray(labels), grid


def _draw_grid(rng: np.random.Generator, shape: Shape, spacing_mm: Spacing) -> Grid:
    jitter = np.minimum(np.array([1, 3, 3]), np.array(shape) // 16)
    sizes = np.array(shape) + rng.integers(-jitter, jitter + 1)
    in_plane, through = rng.uniform(0.96, 1.04, size=2)
    spacing = np.round(np.array(spacing_mm) * [through, in_plane, in_plane], 3)
    angle = np.radians(rng.uniform(5, 15))
    turned = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    direction = [np.eye(3), np.diag([-1.0, -1.0, 1.0]), turned][rng.choice(3, p=[0.6, 0.2, 0.2])]
    return Grid(
        shape=tuple(int(n) for n in sizes),
        spacing_mm=tuple(float(s) for s in spacing),
        origin_mm=tuple(float(o) for o in np.round(rng.uniform(-100, 100, size=3), 2)),
        direction=tuple(float(d) for d in direction.ravel()),
    )


def _anatomical_points(rng: np.random.Generator, grid: Grid, half_mm: NDArray[Any]) -> Coordinates:
    """Where each voxel of the thin slices lies in the undeformed body: shifted, turned, scaled and bent."""
    sizes = (grid.shape[0] * _SUBSLICES, *grid.shape[1:])
    steps = (grid.spacing_mm[0] / _SUBSLICES, *grid.spacing_mm[1:])
    axes = [
        ((np.arange(n) - (n - 1) / 2) * step / half).astype(np.float32)
        for n, step, half in zip(sizes, steps, half_mm, strict=True)
    ]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    turn = _rotation(np.radians(rng.uniform([-14, -5, -5], [14, 5, 5])))
    scaled = turn / rng.uniform(0.94, 1.06, size=(3, 1))
    moved = np.tensordot(scaled.astype(np.float32), points, axes=1)
    moved += rng.uniform(-0.06, 0.06, size=(3, 1, 1, 1)).astype(np.float32)
    bend = np.stack([_waves(rng, points, count=3, frequency=0.55) for _ in range(3)])
    bent: Coordinates = moved + np.float32(0.055) * bend
    return bent


def _draw_anatomy(rng: np.random.Generator, points: Coordinates) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Intensities (1 is the brightest tissue) and labels of the thin slices; what is drawn later covers the earlier."""
    intensities = np.full(points.shape[1:], 0.02, dtype=np.float32)
    labels = np.zeros(points.shape[1:], dtype=np.uint8)
    texture = 0.035 * _waves(rng, points, count=5, frequency=2.0)

    def fill(inside: NDArray[np.bool_], intensity: float, label: str = "background") -> None:
        level = intensity * rng.normal(1, 0.03)
        intensities[inside] = level + texture[inside]
        labels[inside] = LABELS[label]

    body = _Blob((0, 0, 0), (1.8, 0.82, 0.93)).level(points)
    fill(body < 1, 0.70)  # fat
    fill(body < rng.uniform(0.68, 0.74), 0.44)  # muscle and the rest
    liver, spleen, kidneys, spine = _organs(rng)
    organs = [liver, spleen, *kidneys]
    vessel = _tube_level(rng, points, (0.18, 0.07), (0.14, 0.17))
    vein = _tube_level(rng, points, (-0.48, 0.24), (0.11, 0.14))
    for intensity, blob in _look_alikes(rng, organs):
        fill((blob.level(points) < 1) & (body < 0.9), intensity)
    fill(vein < 1, 0.95)
    fill(spine.level(points) < 1, 0.76)
    fill(spleen.level(points) < 1, 0.64)
    fill(liver.level(points) < 1, 0.64, "liver")
    for kidney in kidneys:
        fill(kidney.level(points) < 1, 0.76, "kidneys")
    fill(vessel < 1, 0.95, "vessel")
    for blob in _blobs_inside(rng, spleen, int(rng.integers(0, 2))):
        fill(blob.level(points) < 1, 0.30)
    for blob in _blobs_inside(rng, liver, int(rng.choice([1, 2, 3, 4], p=[0.1, 0.2, 0.35, 0.35]))):
        # A lesion keeps to the liver, whose rim a kidney or the vessel may have covered.
        fill((blob.level(points) < 1) & (labels == LABELS["liver"]), 0.30, "lesion")
    return intensities, labels


def _organs(rng: np.random.Generator) -> tuple[_Blob, _Blob, list[_Blob], _Blob]:
    """Liver, spleen, kidneys and spine, each somewhat elsewhere and of another size in every case."""

    def place(centre: Sequence[float], axes: Sequence[float], jitter: float = 0.03) -> _Blob:
        z, y, x = np.array(centre) + rng.uniform(-jitter, jitter, size=3)
        a, b, c = np.array(axes) * rng.uniform(0.9, 1.1, size=3)
        return _Blob((z, y, x), (a, b, c))

    liver = place((-0.05, -0.18, -0.32), (0.75, 0.45, 0.42))
    spleen = place((0.10, -0.05, 0.55), (0.45, 0.26, 0.16))
    kidneys = [place((0.12, 0.40, -0.38), (0.62, 0.20, 0.22)), place((0.00, 0.40, 0.40), (0.62, 0.20, 0.22))]
    spine = place((0.0, 0.54, 0.0), (1e3, 0.14, 0.14))
    return liver, spleen, kidneys, spine


def _tube_level(
    rng: np.random.Generator, points: Coordinates, centre: tuple[float, float], radii: tuple[float, float]
) -> NDArray[Any]:
    """A winding tube along z about a centre (y, x); below 1 inside."""
    z, y, x = points
    phase_y, phase_x = rng.uniform(0, 2 * np.pi, size=2)
    winding_y = centre[0] + rng.uniform(-0.03, 0.03) + 0.04 * np.sin(2.5 * z + phase_y)
    winding_x = centre[1] + rng.uniform(-0.03, 0.03) + 0.05 * np.sin(2.5 * z + phase_x)
    return np.asarray(((y - winding_y) ** 2 + (x - winding_x) ** 2) / rng.uniform(*radii) ** 2)


def _look_alikes(rng: np.random.Generator, organs: Sequence[_Blob]) -> list[tuple[float, _Blob]]:
    """Intensities and shapes of what lies about in the body and is no organ: bowel, cysts, calcium."""
    found = []
    kinds = [(0.64, 2, (0.13, 0.20)), (0.30, 3, (0.10, 0.14)), (0.95, 4, (0.09, 0.14)), (0.76, 2, (0.12, 0.18))]
    for intensity, count, radii in kinds:
        for _ in range(count):
            for _ in range(50):
                centre = tuple(rng.uniform([-0.9, -0.6, -0.7], [0.9, 0.6, 0.7]))
                if not any(organ.holds(centre) for organ in organs):
                    break
            z, y, x = centre
            a, b, c = rng.uniform(*radii) * rng.uniform(0.8, 1.25, size=3)
            found.append((intensity, _Blob((z, y, x), (a, b, c))))
    return found


def _blobs_inside(rng: np.random.Generator, organ: _Blob, count: int) -> list[_Blob]:
    """Up to `count` small blobs within an organ, apart from each other."""
    blobs: list[_Blob] = []
    for _ in range(30 * count):
        if len(blobs) == count:
            break
        radius = (rng.uniform(*_LESION_SHARE) * 8 * 3 / (4 * np.pi)) ** (1 / 3)
        room = np.maximum(np.array(organ.axes) - radius, 0.0)
        step = rng.normal(size=3)
        z, y, x = np.array(organ.centre) + room * step / np.linalg.norm(step) * rng.uniform() ** (1 / 3)
        stretch = rng.uniform(0.88, 1.14, size=3)
        a, b, c = radius * stretch / np.prod(stretch) ** (1 / 3)
        if all(np.linalg.norm(np.array(other.centre) - [z, y, x]) > 2.4 * radius for other in blobs):
            blobs.append(_Blob((z, y, x), (a, b, c)))
    return blobs


def _acquire(rng: np.random.Generator, slices: NDArray[np.float32]) -> NDArray[Any]:
    """What a scanner makes of it: a bias field, Rician noise, and an intensity scale and number type of its own.

    Source: Gudbjartsson & Patz 1995, the Rician distribution of noise in magnitude images.
    """
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in slices.shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    bias = np.exp(0.12 * _waves(rng, points, count=3, frequency=0.4))
    noise = rng.uniform(0.025, 0.045) * rng.standard_normal((2, *slices.shape), dtype=np.float32)
    magnitude = np.hypot(slices * bias + noise[0], noise[1])
    scaled = magnitude * _FULL_SCALE * 10 ** rng.uniform(-1, 2)
    kind = [np.int16, np.uint16, np.float32][rng.integers(3)]
    acquired: NDArray[Any] = scaled.astype(np.float32)
    if kind is not np.float32:
        acquired = np.clip(np.round(acquired), 0, np.iinfo(np.int16).max).astype(kind)
    return acquired


def _waves(rng: np.random.Generator, points: NDArray[Any], *, count: int, frequency: float) -> NDArray[np.float32]:
    """A smooth random field of about unit variance: a sum of `count` plane waves of up to `frequency` (per unit)."""
    field: NDArray[np.float32] = np.zeros(points.shape[1:], dtype=np.float32)
    for _ in range(count):
        wave = 2 * np.pi * rng.uniform(0.3, 1.0) * frequency * _unit_vector(rng)
        phase = np.tensordot(wave.astype(np.float32), points, axes=1) + np.float32(rng.uniform(0, 2 * np.pi))
        field += np.sin(phase)
    field *= np.float32(np.sqrt(2 / count))
    return field


def _unit_vector(rng: np.random.Generator) -> NDArray[Any]:
    vector = rng.normal(size=3)
    return np.asarray(vector / np.linalg.norm(vector))


def _rotation(angles: Sequence[float] | NDArray[Any]) -> NDArray[Any]:
    """The rotation matrix about z, y and x (in z, y, x order), one after the other."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("zyx", np.asarray(angles)).as_matrix()[::-1, ::-1])


def _write_image(path: Path, voxels: NDArray[Any], grid: Grid) -> None:
    """Write one channel in its own number type; whole or not at all."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(tuple(reversed(grid.spacing_mm)))
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction)
    with replacing(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise OSError(str(error).strip().splitlines()[-1]) from error
