"""Images to predict, of all kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

SPACING = (0.9, 0.9, 2.0)
OBLIQUE = tuple(
    (np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, 0.96, -0.28], [0, 0.28, 0.96]]))
    .ravel()
    .tolist()
)
FLIPPED = (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)


def phantom(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rough = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    rough[(slice(None),) * (rough.ndim - 2) + (slice(2, -2), slice(2, -2))] += 3
    return rough


def write(
    path: Path, array: np.ndarray, *, spacing: tuple[float, ...] = SPACING, direction: tuple[float, ...] | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=False)
    image.SetSpacing(spacing)
    image.SetOrigin((-11.0, 20.5, 7.25, 0.0)[: image.GetDimension()])
    if direction:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path
