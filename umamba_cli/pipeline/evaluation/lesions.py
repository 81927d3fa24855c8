"""How many lesions of one label were found and how many are false: pure functions of two masks.

A lesion is a connected component of a mask; voxels that touch in a corner at least belong together, as in
postprocessing. In other labels the components may be cells or organs: the rules are the same.

**The rule.** A reference lesion is found where the prediction covers at least a tenth of its voxels, and one voxel at
least. A predicted lesion is false where the reference covers less than a tenth of it, or none. The two are counted
apart from each other, so that one predicted blob may find two lesions, and a lesion predicted in two parts is found
once and makes no false one. A blob that swallows the image finds everything, and is false.

**Where it comes from.** The tenth is the least overlap (alpha) of the MSSEG challenge (Commowick et al. 2018), whose
further conditions on what overlaps (beta, gamma) are left out for a rule that can be said in a sentence: the second
half of the rule limits blobs that are too large. In the words of Metrics Reloaded (Maier-Hein, Reinke et al. 2024), the
localisation criterion is the intersection over the reference, or over the prediction for false ones, and the
assignment is not one-to-one.

**Size classes.** U-Mamba is said to find very small objects. One number over all sizes cannot show that, so lesions are
counted by the diameter of the sphere (or circle, in pictures) with the same volume (or area).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.evaluation.masks import box_of, require_masks

DIAMETERS = (5.0, 10.0, 20.0)
"""Where one size class ends and the next begins, in the units of the spacing."""

LEAST_COVERED = 0.1
"""The share of a lesion's voxels that the other mask must cover."""


@dataclass(frozen=True)
class SizeClass:
    """Lesions with `at_least <= equivalent diameter < below`, in the units of the spacing."""

    name: str
    """Such as "< 5", "5 to 10" or "20 or more"."""

    at_least: float
    below: float


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of one size class, or of all. Counts of several cases add up; the rates follow from the sums.

    Reference lesions are counted in the class of their own size, predicted ones in the class of theirs.
    """

    reference: int = 0
    """Lesions in the reference."""

    found: int = 0
    """Those of them that the prediction covers."""

    predicted: int = 0
    """Lesions in the prediction."""

    false: int = 0
    """Those of them that the reference does not cover."""

    @property
    def sensitivity(self) -> float:
        """Found lesions of those in the reference; NaN where it has none."""
        return self.found / self.reference if self.reference else math.nan

    @property
    def precision(self) -> float:
        """Predicted lesions that are not false; NaN where none was predicted."""
        return 1 - self.false / self.predicted if self.predicted else math.nan

    @property
    def f1(self) -> float:
        """The harmonic mean of sensitivity and precision.

        NaN without lesions in either; 0 where lesions are in one alone, and wherever none is right. In a size class, a
        side may have no lesions while those of the other are met by lesions of other sizes: then there is one rate but
        no mean of two, and it is NaN.
        """
        if not self.reference and not self.predicted:
            return math.nan
        if not self.found and self.false == self.predicted:
            return 0.0
        sensitivity, precision = self.sensitivity, self.precision
        return 2 * sensitivity * precision / (sensitivity + precision)

    def __add__(self, other: LesionCounts) -> LesionCounts:
        return LesionCounts(
            reference=self.reference + other.reference,
            found=self.found + other.found,
            predicted=self.predicted + other.predicted,
            false=self.false + other.false,
        )


@dataclass(frozen=True)
class LesionMetrics:
    """Lesions of one label in one case, or the sum of several cases."""

    by_size: Mapping[str, LesionCounts]
    """By the name of the size class, smallest first; a class without lesions counts zeros."""

    @property
    def total(self) -> LesionCounts:
        """Lesions of all sizes."""
        return sum(self.by_size.values(), LesionCounts())

    def __add__(self, other: LesionMetrics) -> LesionMetrics:
        if tuple(self.by_size) != tuple(other.by_size):
            raise ValueError(f"size classes {tuple(self.by_size)} and {tuple(other.by_size)} differ")
        return LesionMetrics({name: counts + other.by_size[name] for name, counts in self.by_size.items()})


def size_classes(diameters: Sequence[float] = DIAMETERS) -> tuple[SizeClass, ...]:
    """The size classes between some diameters, smallest first.

    Raises:
        ValueError: there is no diameter, one is not positive and finite, or they do not rise.
    """
    if not diameters or not all(a < b for a, b in zip((0.0, *diameters), (*diameters, math.inf), strict=True)):
        raise ValueError(f"the diameters of size classes must be positive and rise, not {tuple(diameters)}")
    return (
        SizeClass(f"< {diameters[0]:g}", 0.0, diameters[0]),
        *(SizeClass(f"{low:g} to {high:g}", low, high) for low, high in itertools.pairwise(diameters)),
        SizeClass(f"{diameters[-1]:g} or more", diameters[-1], math.inf),
    )


def lesion_metrics(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing: Sequence[float],
    *,
    diameters: Sequence[float] = DIAMETERS,
    least_covered: float = LEAST_COVERED,
) -> LesionMetrics:
    """Lesions of one label that were found, missed and invented, by size; the rule is at the top of this file.

    Args:
        prediction: mask (z, y, x) or (y, x).
        reference: mask of the same shape.
        spacing: the distance between voxels along each axis: millimetres, or pixels.
        diameters: where size classes begin and end, rising, in the units of the spacing.
        least_covered: the share of a lesion's voxels that the other mask must cover, 0 to 1; it always covers one at
            least.

    Raises:
        ValueError: the arrays are no masks of one shape with 2 or 3 axes, or another argument is out of its range.

    Source: Commowick et al. 2018, Scientific Reports 8:13650; Maier-Hein, Reinke et al. 2024, Nature Methods 21:195.
    """
    require_masks(prediction, reference, spacing)
    if not 0 <= least_covered <= 1:
        raise ValueError(f"the share of a lesion that must be covered is between 0 and 1, not {least_covered}")
    classes = size_classes(diameters)
    reference_sizes, reference_covered = _sizes_and_covered(reference, prediction)
    predicted_sizes, predicted_covered = _sizes_and_covered(prediction, reference)
    found = _is_met(reference_sizes, reference_covered, least_covered)
    false = ~_is_met(predicted_sizes, predicted_covered, least_covered)
    reference_class = np.searchsorted(diameters, _diameters(reference_sizes, spacing), side="right")
    predicted_class = np.searchsorted(diameters, _diameters(predicted_sizes, spacing), side="right")
    columns = (reference_class, reference_class[found], predicted_class, predicted_class[false])
    table = np.stack([np.bincount(column, minlength=len(classes)) for column in columns], axis=1).tolist()
    return LesionMetrics({size.name: LesionCounts(*row) for size, row in zip(classes, table, strict=True)})


def _sizes_and_covered(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Voxels of each component of a mask, and how many of them the other mask covers."""
    from scipy.ndimage import label

    if (box := box_of(mask)) is None:
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp)
    mask, other = mask[box], other[box]
    components, count = label(mask, np.ones((3,) * mask.ndim))
    # Voxels outside are left out before counting: they are most of the box, and counting takes 8 bytes a voxel.
    sizes = np.bincount(components[mask], minlength=count + 1)[1:]
    covered = np.bincount(components[mask & other], minlength=count + 1)[1:]
    return sizes, covered


def _is_met(sizes: NDArray[np.intp], covered: NDArray[np.intp], least_covered: float) -> NDArray[np.bool_]:
    # The quotient, whose rounding is that of the share: 7 of 100 is 0.07, but 0.07 * 100 is more than 7.
    met: NDArray[np.bool_] = (covered > 0) & (covered / sizes >= least_covered)
    return met


def _diameters(sizes: NDArray[np.intp], spacing: Sequence[float]) -> NDArray[np.float64]:
    """The diameters of the spheres, or circles, as large as components of so many voxels."""
    volumes = sizes * math.prod(spacing)
    diameters: NDArray[np.float64] = (
        2 * np.sqrt(volumes / math.pi) if len(spacing) == 2 else np.cbrt(6 * volumes / math.pi)
    )
    return diameters
