"""Label maps of CTs, drawn: fourteen organs, from a nodule of twenty voxels to a liver, and what a model made of them.

Everything follows from the number of the CT; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHAPE = (200, 512, 512)
"""Voxels along z, y, x."""

SPACINGS_MM = ((1.5, 0.8, 0.8), (2.0, 0.7, 0.7), (1.0, 0.9, 0.9), (2.5, 0.78, 0.78), (1.25, 0.85, 0.85))
"""Of the CTs, along z, y, x."""

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Organ:
    """An ellipsoid, bent and dented where it is drawn."""

    name: str

    centre: Triple
    """Along z, y, x, as shares of the CT's size."""

    radii_mm: Triple

    bend_mm: float = 0.0
    """How far the middle of its length along z lies to the side of its ends."""


ORGANS = (
    Organ("liver", (0.55, 0.42, 0.33), (75, 70, 85)),
    Organ("stomach", (0.60, 0.38, 0.62), (45, 35, 55)),
    Organ("spleen", (0.60, 0.58, 0.74), (45, 35, 25)),
    Organ("right kidney", (0.38, 0.62, 0.36), (50, 26, 28)),
    Organ("left kidney", (0.40, 0.62, 0.65), (50, 26, 28)),
    Organ("bladder", (0.12, 0.45, 0.50), (22, 28, 30)),
    Organ("gallbladder", (0.47, 0.36, 0.40), (14, 12, 22)),
    Organ("pancreas", (0.47, 0.48, 0.53), (12, 14, 50)),
    Organ("duodenum", (0.42, 0.45, 0.44), (30, 12, 16), 8),
    Organ("aorta", (0.50, 0.57, 0.51), (140, 11, 11), 6),
    Organ("vena cava", (0.50, 0.56, 0.45), (130, 11, 13), 5),
    Organ("oesophagus", (0.85, 0.55, 0.52), (40, 7, 9), 6),
    Organ("right adrenal gland", (0.50, 0.57, 0.41), (9, 8, 4)),
    Organ("nodule", (0.50, 0.42, 0.27), (2.2, 1.4, 1.4)),
)

_MOVED_MM, _RESIZED, _DENTED, _ROUGH = 1.5, 0.04, 0.05, 0.06
"""Deviations of a prediction: place; size, dents and voxels at the edge as shares of the radius."""

_FAR_RADII_MM: Triple = (4.0, 3.0, 3.0)
"""Of findings that are none, of which every other organ has one far from where it is."""


def draw_case(number: int, shape: Sequence[int] = SHAPE) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Triple]:
    """A CT's label map, what a model made of it, and its spacing in mm along z, y, x.

    Args:
        number: of the CT, which is another for each.
        shape: voxels along z, y, x; the organs keep their size and are cut off where they reach out.
    """
    generator = np.random.default_rng(number)
    spacing = SPACINGS_MM[number % len(SPACINGS_MM)]
    size = np.array(shape) * spacing
    reference, prediction = np.zeros(shape, dtype=np.uint8), np.zeros(shape, dtype=np.uint8)
    for label, organ in enumerate(ORGANS, 1):
        centre = np.array(organ.centre) * size + generator.normal(0, 4, 3)
        radii = np.array(organ.radii_mm) * generator.uniform(0.85, 1.15, 3)
        waves = generator.normal(0, 0.06, 3)
        _fill(reference, spacing, (centre, radii, waves), organ.bend_mm, label, None)
        small = min(1.0, radii.min() / 10)
        moved = centre + generator.normal(0, _MOVED_MM * small, 3)
        resized = radii * generator.normal(1, _RESIZED, 3)
        _fill(
            prediction,
            spacing,
            (moved, resized, waves + generator.normal(0, _DENTED, 3)),
            organ.bend_mm,
            label,
            generator,
        )
        if label % 2:
            far = generator.uniform(0.1, 0.9, 3) * size
            _fill(prediction, spacing, (far, np.array(_FAR_RADII_MM), np.zeros(3)), 0.0, label, generator)
    return reference, prediction, spacing


def write_cases(folder: Path, count: int, shape: Sequence[int] = SHAPE) -> tuple[Path, Path]:
    """Write label maps of some CTs to two folders that are made, and return them: predictions, references."""
    predictions, references = folder / "predictions", folder / "references"
    for made in (predictions, references):
        made.mkdir()
    for number in range(count):
        reference, prediction, spacing = draw_case(number, shape)
        for labels, path in ((reference, references), (prediction, predictions)):
            _write(path / f"ct_{number}.nii.gz", labels, spacing)
    return predictions, references


def _write(path: Path, labels: NDArray[np.uint8], spacing: Triple) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=1)


def _fill(
    labels: NDArray[np.uint8],
    spacing: Triple,
    form: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    bend_mm: float,
    label: int,
    rough: np.random.Generator | None,
) -> None:
    """Draw one organ over what is there.

    Args:
        labels: are changed.
        spacing: in mm along z, y, x.
        form: centre and radii in mm, and how strong the dents are along each axis.
        bend_mm: see `Organ`.
        label: its value.
        rough: draws which voxels at the edge are on the wrong side; None: none are.
    """
    centre, radii, waves = form
    reach = 1.25 * radii + (0, 0, abs(bend_mm))
    box = tuple(
        slice(max(0, int((middle - far) / step)), min(count, int((middle + far) / step) + 2))
        for middle, far, step, count in zip(centre, reach, spacing, labels.shape, strict=True)
    )
    z, y, x = (
        ((np.arange(part.start, part.stop) + 0.5) * step - middle) / radius
        for part, step, middle, radius in zip(box, spacing, centre, radii, strict=True)
    )
    shift = bend_mm / radii[2] * np.cos(np.pi * z / 2)
    for plane, depth, aside in zip(labels[box], z, shift, strict=True):
        level = np.sqrt(depth**2 + y[:, None] ** 2 + (x - aside) ** 2)
        for wave, phase in zip(waves, _phases(depth, y, x), strict=True):
            level += wave * np.sin(3.7 * phase)
        if rough is not None:
            level += _ROUGH * rough.standard_normal(level.shape) * min(1.0, 10 / radii.min())
        plane[level < 1] = label


def _phases(depth: float, y: NDArray[np.float64], x: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    yield depth + y[:, None] + 0.3 * x
    yield y[:, None] + x - 0.5 * depth
    yield x + depth - 0.7 * y[:, None]
