"""From logits on the preprocessed grid to labels on the image's own grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.geometry import Shape, Spacing
from umamba_cli.pipeline.planning.plans import Configuration
from umamba_cli.pipeline.preprocessing.case import CaseGeometry
from umamba_cli.pipeline.preprocessing.resampling import resample_image


def labels_on_image_grid(
    logits: NDArray[np.float32], geometry: CaseGeometry, configuration: Configuration, dataset: DatasetDescription
) -> NDArray[np.integer[Any]]:
    """The most likely label of each voxel of the image.

    Regions that are likelier than not are written one after the other, each with its value of `regions_class_order`.

    Args:
        logits: float32 (outputs, z, y, x) as the network sees the case.
        geometry: how the case was preprocessed.
        configuration: of the plans; says how probabilities are resampled.
        dataset: says what the outputs are.

    Returns:
        (z, y, x) on `geometry.grid`; background outside the crop.
    """
    return geometry.labels_on_image_grid(labels_of_logits(_on_crop(logits, geometry, configuration), dataset))


def labels_of_logits(logits: NDArray[np.float32], dataset: DatasetDescription) -> NDArray[np.uint16]:
    """The label map (z, y, x) of logits (outputs, z, y, x); see `labels_on_image_grid`."""
    if not dataset.has_regions:
        most_likely: NDArray[np.uint16] = logits.argmax(0).astype(np.uint16)
        return most_likely
    labels = np.zeros(logits.shape[1:], dtype=np.uint16)
    for value, region in zip(dataset.regions_class_order or (), logits, strict=True):
        labels[region > 0] = value  # the sigmoid is above 1/2
    return labels


def probabilities_on_image_grid(
    logits: NDArray[np.float32], geometry: CaseGeometry, configuration: Configuration, dataset: DatasetDescription
) -> NDArray[np.float32]:
    """The probability of each output at each voxel of the image, float32 (outputs, z, y, x).

    Outside the crop the background has probability 1, and every region 0. Arguments as for `labels_on_image_grid`.
    """
    resampled = _on_crop(logits, geometry, configuration)
    if dataset.has_regions:
        from scipy.special import expit

        probabilities = expit(resampled)
    else:
        probabilities = np.exp(resampled - resampled.max(0))
        probabilities /= probabilities.sum(0)
    whole = np.zeros((len(logits), *(geometry.grid.shape[axis] for axis in geometry.transpose)), dtype=np.float32)
    if not dataset.has_regions:
        whole[0] = 1
    whole[geometry.crop.slices_of_channels] = probabilities
    back: NDArray[np.float32] = whole.transpose(0, *(np.argsort(geometry.transpose) + 1))
    return back


def resample_logits(
    logits: NDArray[np.float32],
    configuration: Configuration,
    spacing_mm: Spacing,
    new_shape: Shape,
    new_spacing_mm: Spacing,
) -> NDArray[np.float32]:
    """Logits of a configuration on another grid of the same extent, as its plans say for probabilities."""
    resampling = configuration.resampling_fn_probabilities_kwargs
    return resample_image(
        logits, new_shape, spacing_mm, new_spacing_mm, order=resampling.order, separate=resampling.force_separate_z
    )


def _on_crop(logits: NDArray[np.float32], geometry: CaseGeometry, configuration: Configuration) -> NDArray[np.float32]:
    """The logits at the image's own spacing, over the part that was kept of it."""
    return resample_logits(logits, configuration, geometry.new_spacing_mm, geometry.crop.shape, geometry.spacing_mm)
