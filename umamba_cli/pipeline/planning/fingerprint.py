"""What is measured on a dataset before anything is decided: shapes, spacings and foreground intensities.

Source: nnU-Net's dataset fingerprint (Isensee et al. 2021, supplementary note 2), in its keys.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field

from umamba_cli.pipeline.data.dataset import Case
from umamba_cli.pipeline.data.images import Image, LabelMap
from umamba_cli.pipeline.data.nonzero import nonzero_box
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Shape, Spacing, size_text
from umamba_cli.pipeline.planning.plans import Count, IntensityProperties, Size

VALUES_KEPT = 20_000_000
"""Foreground intensities held at once, over all cases and channels (80 MB).

nnU-Net draws five times as many for each channel, but with replacement: for most datasets that repeats every voxel.
"""


class Fingerprint(pydantic.BaseModel):
    """What was measured on a dataset; lists are in the order of the cases."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    spacings: Annotated[tuple[tuple[Size, Size, Size], ...], Field(min_length=1)]
    """Millimetres between voxels along z, y, x of each case."""

    shapes_after_crop: tuple[tuple[Count, Count, Count], ...]
    """Voxels along z, y, x of each case, cropped to its nonzero part."""

    foreground_intensity_properties_per_channel: Annotated[dict[str, IntensityProperties], Field(min_length=1)]
    """Channel index to statistics."""

    median_relative_size_after_cropping: Annotated[float, Field(gt=0, le=1)]
    """Share of a case's voxels that cropping leaves, median over the cases."""

    @pydantic.field_validator("shapes_after_crop")
    @classmethod
    def _one_shape_a_case(
        cls, shapes: tuple[tuple[int, int, int], ...], info: pydantic.ValidationInfo
    ) -> tuple[tuple[int, int, int], ...]:
        cases = len(info.data.get("spacings", shapes))
        if len(shapes) != cases:
            raise ValueError(f"must have {cases} entries, as spacings has, has {len(shapes)}")
        return shapes


@dataclass(frozen=True, eq=False)
class CaseFingerprint:
    """What was measured on one case."""

    identifier: str

    shape_after_crop: Shape
    """Voxels along z, y, x of the nonzero part."""

    spacing_mm: Spacing

    relative_size_after_crop: float
    """Share of the voxels that cropping leaves."""

    foreground: NDArray[np.float32]
    """Intensities (channels, voxels) of foreground voxels; no voxel where the case has no foreground."""


def voxels_per_case(cases: int, channels: int) -> int:
    """How many foreground voxels to keep of each case so that all of them together stay within `VALUES_KEPT`."""
    return max(1, VALUES_KEPT // max(cases * channels, 1))


def measure_case(case: Case, image: Image, label_map: LabelMap, *, most_voxels: int = 100_000) -> CaseFingerprint:
    """Measure one case.

    Args:
        case: named in errors; its identifier seeds the choice of voxels, so that neither the order of the cases nor
            the number of workers matters.
        image: all channels (channels, z, y, x).
        label_map: labels (z, y, x); the foreground is what is above 0.
        most_voxels: foreground voxels to keep, chosen at random where there are more; see `voxels_per_case`.

    Raises:
        InputError: image and label map differ in size, or the foreground holds intensities that are no number.
    """
    if label_map.labels.shape != image.voxels.shape[1:]:
        raise InputError(
            f"{case.identifier}: image is {size_text(image.voxels.shape[1:])}, "
            f"label is {size_text(label_map.labels.shape)}",
            next_step="correct or remove the case",
        )
    box = nonzero_box(image.voxels)
    places = np.flatnonzero(label_map.labels[box.slices] > 0)
    if len(places) > most_voxels:
        places = _generator(case.identifier).choice(places, most_voxels, replace=False, shuffle=False)
    foreground = np.stack([channel[box.slices].reshape(-1)[places] for channel in image.voxels])
    if not np.isfinite(foreground).all():
        raise InputError(
            f"{case.identifier}: the image holds values that are no number (NaN or infinite)",
            next_step="correct or remove the case",
        )
    return CaseFingerprint(
        identifier=case.identifier,
        shape_after_crop=box.shape,
        spacing_mm=image.grid.spacing_mm,
        relative_size_after_crop=math.prod(box.shape) / math.prod(image.voxels.shape[1:]),
        foreground=foreground.astype(np.float32, copy=False),
    )


def _generator(identifier: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:8], "big"))


def combine(cases: Sequence[CaseFingerprint]) -> Fingerprint:
    """The fingerprint of a dataset from those of its cases. Every case weighs equally, however large its foreground.

    Raises:
        InputError: there is no case, the cases differ in their number of channels, or none has any foreground.
    """
    if not cases:
        raise InputError("there is no case to measure", next_step="give a dataset with training cases")
    if len({len(case.foreground) for case in cases}) > 1:
        raise InputError(
            "the cases differ in their number of channels",
            details=[f"{case.identifier}: {len(case.foreground)}" for case in cases],
            next_step="bring the missing channels, or remove the cases",
        )
    filled = [case for case in cases if case.foreground.shape[1]]
    if not filled:
        raise InputError(
            f"none of the {len(cases)} cases has any foreground",
            next_step="check that labelsTr holds the right label maps",
        )
    counts = np.array([case.foreground.shape[1] for case in filled])
    weights = np.repeat(1 / (counts * len(filled)), counts)
    return Fingerprint.model_validate(
        {
            "spacings": [case.spacing_mm for case in cases],
            "shapes_after_crop": [case.shape_after_crop for case in cases],
            "foreground_intensity_properties_per_channel": {
                str(channel): _statistics(np.concatenate([case.foreground[channel] for case in filled]), weights)
                for channel in range(len(filled[0].foreground))
            },
            "median_relative_size_after_cropping": float(np.median([case.relative_size_after_crop for case in cases])),
        }
    )


def _statistics(values: NDArray[np.float32], weights: NDArray[np.float64]) -> IntensityProperties:
    """Statistics of values whose weights add up to 1.

    nnU-Net draws equally many voxels from each case with replacement; weights say the same without the repetition.
    """
    mean = float(np.average(values, weights=weights))
    variance = float(np.average((values - mean) ** 2, weights=weights))
    order = np.argsort(values)
    share_up_to = np.cumsum(weights[order])

    def percentile(share: float) -> float:
        """The smallest value that at least this share of the weight does not exceed."""
        index = int(np.searchsorted(share_up_to, share * share_up_to[-1]))
        return float(values[order[min(index, len(values) - 1)]])

    return IntensityProperties(
        max=float(values.max()),
        mean=mean,
        median=percentile(0.5),
        min=float(values.min()),
        percentile_00_5=percentile(0.005),
        percentile_99_5=percentile(0.995),
        std=math.sqrt(variance),
    )
