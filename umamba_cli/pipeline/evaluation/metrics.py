"""How well a predicted label map covers a reference, for one label or region: pure functions of two arrays."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.dataset import Label, values_of
from umamba_cli.pipeline.geometry import Spacing

_MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class OverlapMetrics:
    """Overlap of one label, or of the labels of one region taken together, in a prediction and its reference."""

    dice: float
    """2 TP / (2 TP + FP + FN); NaN where the label is in neither, 0 where it is in one alone."""

    iou: float
    """TP / (TP + FP + FN); NaN where the label is in neither, 0 where it is in one alone."""

    tp: int
    """Voxels with the label in both."""

    fp: int
    """Voxels with the label in the prediction alone."""

    fn: int
    """Voxels with the label in the reference alone."""

    prediction_ml: float
    """Volume in the prediction, in millilitres; NaN for pictures, which have no thickness."""

    reference_ml: float
    """Volume in the reference, in millilitres; NaN for pictures, which have no thickness."""


def overlap(
    prediction: NDArray[Any], reference: NDArray[Any], label: Label, spacing_mm: Spacing | None
) -> OverlapMetrics:
    """Overlap of one label, or region, in two label maps.

    Both maps without the label: Dice and IoU are NaN, for nothing was to be found and nothing was. One map without it:
    they are 0.

    Args:
        prediction: labels of any shape and number type.
        reference: labels of the same shape.
        label: the label's value, or the values of a region.
        spacing_mm: millimetres between voxels along z, y, x; None for pictures.

    Raises:
        ValueError: the shapes differ.

    Source: Dice 1945; Jaccard 1912.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    predicted, wanted = _voxels_of(label, prediction), _voxels_of(label, reference)
    tp = int(np.count_nonzero(predicted & wanted))
    fp = int(np.count_nonzero(predicted)) - tp
    fn = int(np.count_nonzero(wanted)) - tp
    voxel_ml = math.prod(spacing_mm) / _MM3_PER_ML if spacing_mm is not None else math.nan
    return OverlapMetrics(
        dice=_ratio(2 * tp, 2 * tp + fp + fn),
        iou=_ratio(tp, tp + fp + fn),
        tp=tp,
        fp=fp,
        fn=fn,
        prediction_ml=(tp + fp) * voxel_ml,
        reference_ml=(tp + fn) * voxel_ml,
    )


def _voxels_of(label: Label, labels: NDArray[Any]) -> NDArray[np.bool_]:
    return functools.reduce(np.logical_or, (labels == value for value in values_of(label)))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
