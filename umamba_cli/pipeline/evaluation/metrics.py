"""How well a predicted label map agrees with its reference: the figures of one label, or region, in one case."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.dataset import Label, values_of
from umamba_cli.pipeline.evaluation.lesions import DIAMETERS, LesionCounts, lesion_metrics
from umamba_cli.pipeline.evaluation.surfaces import surface_metrics
from umamba_cli.pipeline.geometry import Spacing

_MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class OverlapMetrics:
    """Overlap of one label, or of the labels of one region taken together, in a prediction and its reference."""

    dice: float
    """2 TP / (2 TP + FP + FN); NaN where the label is in neither, 0 where it is in one alone."""

    iou: float
    """TP / (TP + FP + FN); NaN where the label is in neither, 0 where it is in one alone."""

    sensitivity: float
    """TP / (TP + FN), the share of the reference that was found; NaN where the reference has none."""

    precision: float
    """TP / (TP + FP), the share of the prediction that is right; NaN where the prediction has none."""

    tp: float
    """Voxels with the label in both."""

    fp: float
    """Voxels with the label in the prediction alone."""

    fn: float
    """Voxels with the label in the reference alone."""

    prediction_ml: float
    """Volume in the prediction, in millilitres; NaN for pictures, which have no thickness."""

    reference_ml: float
    """Volume in the reference, in millilitres; NaN for pictures, which have no thickness."""

    volume_difference_ml: float
    """Predicted less reference volume, in millilitres; NaN for pictures."""

    volume_difference_share: float
    """The same as a share of the reference, of voxels, so that pictures have it too; NaN where the reference has none.
    """


@dataclass(frozen=True)
class Scores(OverlapMetrics):
    """All figures that are one number: of a label in a case, or their mean or another summary over cases.

    Distances are in millimetres; of pictures, which have no spacing, in pixels.
    """

    surface_dice: float
    """Share of both surfaces within the tolerance of the other; NaN where the label is in neither, 0 where in one."""

    hd95: float
    """95 % Hausdorff distance; NaN where the label is missing in either."""

    hd: float
    """Hausdorff distance; NaN where the label is missing in either."""

    asd: float
    """Average distance between the surfaces; NaN where the label is missing in either."""

    lesion_f1: float
    """Of finding connected components; NaN where there are none in either, 0 where in one alone."""

    lesion_sensitivity: float
    """Share of the reference's components that were found; NaN where there are none."""

    lesion_precision: float
    """Share of the predicted components that are no false ones; NaN where there are none."""

    lesion_false: float
    """Predicted components that the reference does not have."""

    lesions: float
    """Components in the reference."""

    lesions_found: float
    """Of these, how many were found."""

    lesions_predicted: float
    """Components in the prediction."""


SCORES = tuple(each.name for each in fields(Scores))
"""The names of all figures, in the order of tables."""

COUNTS = ("tp", "fp", "fn", "lesion_false", "lesions", "lesions_found", "lesions_predicted")
"""Those that are whole numbers, and 0 where a label is in neither."""


@dataclass(frozen=True)
class LabelMetrics(Scores):
    """The figures of one label, or region, in one case."""

    sizes: Mapping[str, LesionCounts] = field(default_factory=dict)
    """Connected components by class of size."""


@dataclass(frozen=True)
class Measures:
    """What surfaces and lesions are measured by."""

    tolerance: float = 1.0
    """Of surface Dice, in millimetres, of pictures in pixels."""

    tolerances: Mapping[Label, float] = field(default_factory=dict)
    """Of single labels."""

    diameters: tuple[float, ...] = DIAMETERS
    """Between the classes of size of lesions, in the same units; see `lesions.lesion_metrics`."""

    def tolerance_of(self, label: Label) -> float:
        """The tolerance of one label, or region."""
        return self.tolerances.get(label, self.tolerance)


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
    return _overlap(voxels_of(label, prediction), voxels_of(label, reference), spacing_mm)


def label_metrics(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    label: Label,
    spacing_mm: Spacing | None,
    measures: Measures,
    *,
    in_plane: bool = False,
) -> LabelMetrics:
    """All figures of one label, or region.

    Args:
        prediction: voxels with the label (z, y, x), or a part of the image that holds all of both maps.
        reference: of the same shape.
        label: has a tolerance of its own, perhaps.
        spacing_mm: along z, y, x; None for pictures.
        measures: what surfaces and lesions are measured by.
        in_plane: the image has a single slice, in whose plane surfaces and lesions are measured.
    """
    covered = _overlap(prediction, reference, spacing_mm)
    spacing: Sequence[float] = spacing_mm or (1.0,) * prediction.ndim
    if in_plane:
        prediction, reference, spacing = prediction[0], reference[0], spacing[1:]
    surface = surface_metrics(prediction, reference, spacing, measures.tolerance_of(label))
    lesions = lesion_metrics(prediction, reference, spacing, diameters=measures.diameters)
    total = lesions.total
    return LabelMetrics(
        **vars(covered),
        surface_dice=surface.surface_dice,
        hd95=surface.hd95,
        hd=surface.hd,
        asd=surface.asd,
        lesion_f1=total.f1,
        lesion_sensitivity=total.sensitivity,
        lesion_precision=total.precision,
        lesion_false=total.false,
        lesions=total.reference,
        lesions_found=total.found,
        lesions_predicted=total.predicted,
        sizes=lesions.by_size,
    )


def in_neither(*, of_pictures: bool) -> LabelMetrics:
    """The figures of a label that is in neither label map."""
    zeros = COUNTS if of_pictures else (*COUNTS, "prediction_ml", "reference_ml", "volume_difference_ml")
    numbers: dict[str, Any] = {name: 0 if name in zeros else math.nan for name in SCORES}
    return LabelMetrics(**numbers)


def voxels_of(label: Label, labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a label map holds a label, or any label of a region."""
    return functools.reduce(np.logical_or, (labels == value for value in values_of(label)))


def _overlap(prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_mm: Spacing | None) -> OverlapMetrics:
    tp = int(np.count_nonzero(prediction & reference))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(reference)) - tp
    voxel_ml = math.prod(spacing_mm) / _MM3_PER_ML if spacing_mm is not None else math.nan
    return OverlapMetrics(
        dice=_ratio(2 * tp, 2 * tp + fp + fn),
        iou=_ratio(tp, tp + fp + fn),
        sensitivity=_ratio(tp, tp + fn),
        precision=_ratio(tp, tp + fp),
        tp=tp,
        fp=fp,
        fn=fn,
        prediction_ml=(tp + fp) * voxel_ml,
        reference_ml=(tp + fn) * voxel_ml,
        volume_difference_ml=(fp - fn) * voxel_ml,
        volume_difference_share=_ratio(fp - fn, tp + fn),
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
