"""`validation_patch.png`: a patch of a held-back case while a training goes on, image, reference and prediction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.geometry import Spacing
from umamba_cli.pipeline.reporting.overlay import draw_side_by_side


def draw_validation_patch(
    path: Path,
    image: NDArray[Any],
    labels: NDArray[Any],
    prediction: NDArray[Any],
    *,
    spacing_mm: Spacing,
    label_names: Mapping[int, str],
    title: str = "",
) -> None:
    """Write a PNG of one slice of a patch: the image, the image with the reference, the image with the prediction.

    Voxels that count nowhere are striped in the reference: those outside the image (-1), and those of a label that has
    no name (`ignore`). What is predicted for an ignored voxel is shown; outside the image there is nothing to predict.

    Args:
        path: the picture, written whole or not at all.
        image: ([channels,] [z,] y, x); of several channels the first is shown.
        labels: the reference ([z,] y, x).
        prediction: a label map ([z,] y, x).
        spacing_mm: along [z,] y, x.
        label_names: label value to name, of all labels besides the background.
        title: stands above.

    Raises:
        ValueError: the shapes do not fit.
        WorkError: the file cannot be written.
    """
    if image.ndim == labels.ndim + 1:
        image = image[0]
    if not image.shape == labels.shape == prediction.shape:
        raise ValueError(f"image {image.shape}, labels {labels.shape} and prediction {prediction.shape} differ")
    if labels.ndim == 2:
        image, labels, prediction = image[None], labels[None], prediction[None]
    outside = labels < 0
    left_out = ~np.isin(labels, [0, *label_names])
    draw_side_by_side(
        path,
        image,
        np.where(left_out, 0, labels),
        np.where(outside, 0, prediction),
        spacing_mm=spacing_mm,
        label_names=label_names,
        title=title,
        left_out=left_out,
    )
