"""Cells or other single objects in predicted and reference label maps: detection F1 and panoptic quality.

U-Mamba's cell images have the labels interior and boundary, as the NeurIPS 2022 cell segmentation challenge has them
(Ma et al. 2024, Nature Methods 21:1103): each cell is an interior inside a boundary that keeps it from its neighbours.
`instances_of` makes single cells of them, `instance_metrics` compares the cells of two maps.

**Not the same as the published numbers.** The code that goes with U-Mamba (arXiv 2401.04722) compares the bare
interiors of a prediction with the cells that were drawn; here both sides are interiors grown into their boundaries,
because label maps are what there is. It also leaves out cells within 2 pixels of the picture's border and takes an IoU
of exactly the threshold as a match. Compare figures of this file with each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""An instance is found where its IoU with a predicted one is greater than this."""

PANOPTIC_THRESHOLD = 0.5


@dataclass(frozen=True)
class Matches:
    """Pairs of a predicted and a reference instance at one IoU threshold. Those of several cases add up."""

    tp: int = 0
    """Instances of the reference that were found: pairs."""

    fp: int = 0
    """Predicted instances without a partner."""

    fn: int = 0
    """Reference instances without a partner."""

    iou_sum: float = 0.0
    """The IoU of the pairs, added up."""

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); NaN without instances in either map, 0 where they are in one alone."""
        whole = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / whole if whole else math.nan

    @property
    def sq(self) -> float:
        """Segmentation quality: the mean IoU of the pairs; NaN where there are none."""
        return self.iou_sum / self.tp if self.tp else math.nan

    @property
    def rq(self) -> float:
        """Recognition quality, TP / (TP + FP / 2 + FN / 2), which is the F1."""
        return self.f1

    @property
    def pq(self) -> float:
        """Panoptic quality, SQ x RQ; NaN without instances in either map, 0 where there are no pairs."""
        whole = self.tp + self.fp / 2 + self.fn / 2
        return self.iou_sum / whole if whole else math.nan

    def __add__(self, other: Matches) -> Matches:
        return Matches(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou_sum + other.iou_sum)


@dataclass(frozen=True)
class InstanceMetrics:
    """Instances of one case, or the sum of several cases."""

    by_threshold: Mapping[float, Matches]
    """By IoU threshold, in the order asked for."""

    panoptic: Matches
    """At the threshold 0.5, which panoptic quality is defined for, whether asked for or not."""

    @property
    def f1(self) -> dict[float, float]:
        """F1 by IoU threshold."""
        return {threshold: matches.f1 for threshold, matches in self.by_threshold.items()}

    @property
    def pq(self) -> float:
        """Panoptic quality; see `Matches.pq`."""
        return self.panoptic.pq

    @property
    def sq(self) -> float:
        """Segmentation quality; see `Matches.sq`."""
        return self.panoptic.sq

    @property
    def rq(self) -> float:
        """Recognition quality; see `Matches.rq`."""
        return self.panoptic.rq

    def __add__(self, other: InstanceMetrics) -> InstanceMetrics:
        if tuple(self.by_threshold) != tuple(other.by_threshold):
            raise ValueError(f"thresholds {tuple(self.by_threshold)} and {tuple(other.by_threshold)} differ")
        both = {threshold: matches + other.by_threshold[threshold] for threshold, matches in self.by_threshold.items()}
        return InstanceMetrics(both, self.panoptic + other.panoptic)


def instances_of(labels: NDArray[Any], interior: int, boundary: int) -> NDArray[np.int32]:
    """Single objects, numbered from 1, of a label map of interiors and boundaries; 0 is background.

    An object is a connected component of the interior (voxels touch in a corner at least, as U-Mamba's evaluation has
    it) with the boundary around it. A boundary voxel goes to the component that is the fewest steps away; steps lead
    through boundary alone, and to any neighbour, in a corner too. Of several equally near ones it gets one, always the
    same. It is a watershed over flat ground: expanding by straight distance would jump over background into a cell
    that the boundary does not belong to. Boundary that reaches no interior stays background. Steps do not know the
    spacing.

    Args:
        labels: label map with 2 or 3 axes.
        interior: the value of the interiors.
        boundary: the value of the boundaries.

    Raises:
        ValueError: the two values are the same, or the map has other than 2 or 3 axes.

    Source: Vincent and Soille 1991; Ma et al. 2024.
    """
    from scipy.ndimage import binary_dilation, label
    from skimage.segmentation import watershed

    if interior == boundary:
        raise ValueError(f"interior and boundary have the same value, {interior}")
    if labels.ndim not in {2, 3}:
        raise ValueError(f"label maps of instances have 2 or 3 axes, not {labels.ndim}")
    corners = np.ones((3,) * labels.ndim)
    inside, edge = labels == interior, labels == boundary
    components: NDArray[np.int32] = label(inside, corners, output=np.int32)[0]
    # The flood sets out from the interior's rim, not from all of it: in half the time and with less memory.
    rim = inside & binary_dilation(edge, corners)
    ground = np.zeros(labels.shape, dtype=np.uint8)
    flooded = watershed(ground, np.where(rim, components, 0), connectivity=labels.ndim, mask=rim | edge)
    components[edge] = flooded[edge]
    return components


def instance_metrics(
    predicted: NDArray[np.integer[Any]], reference: NDArray[np.integer[Any]], thresholds: Sequence[float] = THRESHOLDS
) -> InstanceMetrics:
    """Pairs of predicted and reference instances whose IoU is greater than each threshold.

    Greater, not equal: above one half an instance can have one partner only (Kirillov et al. 2019), so the pairs need
    no choice, whereas an IoU of exactly one half can be had by two. The rule is the same at every threshold.

    Args:
        predicted: instances by number, of any shape; 0 is background.
        reference: instances of the same shape; numbers need not agree.
        thresholds: from 0.5 to below 1.

    Raises:
        ValueError: the shapes differ, a number is negative, or a threshold is out of its range.

    Source: Kirillov et al. 2019, "Panoptic Segmentation"; Caicedo et al. 2019, Nature Methods 16:1247 (F1 by IoU).
    """
    if predicted.shape != reference.shape:
        raise ValueError(f"predicted {predicted.shape} and reference {reference.shape} differ in shape")
    if not thresholds or not all(PANOPTIC_THRESHOLD <= threshold < 1 for threshold in thresholds):
        raise ValueError(
            f"IoU thresholds are at least 0.5, where pairs are unique, and below 1, not {tuple(thresholds)}"
        )
    ious, instances = _ious(predicted, reference)
    by_threshold = {float(threshold): _matches(ious, threshold, instances) for threshold in thresholds}
    return InstanceMetrics(by_threshold, _matches(ious, PANOPTIC_THRESHOLD, instances))


def _ious(
    predicted: NDArray[np.integer[Any]], reference: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """The IoU of every pair that has a voxel in common, and how many instances are predicted and in the reference."""
    (predicted_numbers, predicted_sizes), (reference_numbers, reference_sizes) = _sizes(predicted), _sizes(reference)
    both = (predicted != 0) & (reference != 0)
    first = np.searchsorted(predicted_numbers, predicted[both])
    second = np.searchsorted(reference_numbers, reference[both])
    # One number for a pair, so that only pairs that occur are counted: all of them would be a table of millions.
    base = len(reference_numbers)
    pairs, common = np.unique(first * base + second, return_counts=True)
    first, second = np.divmod(pairs, base)
    ious: NDArray[np.float64] = common / (predicted_sizes[first] + reference_sizes[second] - common)
    return ious, (len(predicted_numbers), base)


def _sizes(instances: NDArray[np.integer[Any]]) -> tuple[NDArray[np.integer[Any]], NDArray[np.intp]]:
    """The numbers of the instances, and the voxels of each."""
    numbers, sizes = np.unique(instances[instances != 0], return_counts=True)
    if numbers.size and numbers[0] < 0:
        raise ValueError(f"instances have positive numbers, not {numbers[0]}")
    return numbers, sizes


def _matches(ious: NDArray[np.float64], threshold: float, instances: tuple[int, int]) -> Matches:
    """The pairs above a threshold, of so many predicted and reference instances."""
    met = ious[ious > threshold]
    predicted, reference = instances
    return Matches(met.size, predicted - met.size, reference - met.size, float(met.sum()))
