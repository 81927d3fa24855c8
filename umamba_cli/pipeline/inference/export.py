"""From logits on the preprocessed grid to labels on the image's own grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.planning.plans import Configuration
from umamba_cli.pipeline.preprocessing.case import CaseGeometry
from umamba_cli.pipeline.preprocessing.resampling import resample_image


def labels_on_image_grid(
    logits: NDArray[np.float32], geometry: CaseGeometry, configuration: Configuration
) -> NDArray[np.integer[Any]]:
    """The most likely label of each voxel of the image.

    Args:
        logits: float32 (classes, z, y, x) as the network sees the case.
        geometry: how the case was preprocessed.
        configuration: of the plans; says how probabilities are resampled.

    Returns:
        (z, y, x) on `geometry.grid`; background outside the crop.
    """
    resampled = _on_crop(logits, geometry, configuration)
    return geometry.labels_on_image_grid(resampled.argmax(0).astype(np.uint16))


def probabilities_on_image_grid(
    logits: NDArray[np.float32], geometry: CaseGeometry, configuration: Configuration
) -> NDArray[np.float32]:
    """The probability of each class at each voxel of the image, float32 (classes, z, y, x).

    Outside the crop the background has probability 1.
    """
    resampled = _on_crop(logits, geometry, configuration)
    exponentials = np.exp(resampled - resampled.max(0))
    exponentials /= exponentials.sum(0)
    whole = np.zeros((len(logits), *(geometry.grid.shape[axis] for axis in geometry.transpose)), dtype=np.float32)
    whole[0] = 1
    whole[geometry.crop.slices_of_channels] = exponentials
    back: NDArray[np.float32] = whole.transpose(0, *(np.argsort(geometry.transpose) + 1))
    return back


def _on_crop(logits: NDArray[np.float32], geometry: CaseGeometry, configuration: Configuration) -> NDArray[np.float32]:
    """The logits at the image's own spacing, over the part that was kept of it."""
    resampling = configuration.resampling_fn_probabilities_kwargs
    return resample_image(
        logits,
        geometry.crop.shape,
        geometry.new_spacing_mm,
        geometry.spacing_mm,
        order=resampling.order,
        separate=resampling.force_separate_z,
    )
