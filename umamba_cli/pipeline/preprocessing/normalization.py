"""Bringing intensities to a common scale, channel by channel.

Source: nnU-Net (Isensee et al. 2021, online methods, "intensity normalization") and its normalisation classes, whose
names the plans use.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.planning.plans import Configuration, IntensityProperties, Plans

Channel = NDArray[np.float32]
Mask = NDArray[np.bool_]

_PART = 1 << 18  # values worked on at once
_SMALLEST = 1e-8  # keeps a constant image from a division by zero


def normalise(voxels: NDArray[np.float32], mask: Mask, plans: Plans, configuration: Configuration) -> None:
    """Normalise an image in place.

    Args:
        voxels: float32 (channels, z, y, x), cropped.
        mask: (z, y, x), what is image and not blanked background; statistics of a channel whose `use_mask_for_norm` is
            set are taken inside it and voxels outside stay as they are.
        plans: hold the foreground's intensity statistics of each channel.
        configuration: holds the scheme of each channel.
    """
    for index, scheme in enumerate(configuration.normalization_schemes):
        inside = mask if configuration.use_mask_for_norm[index] else None
        _SCHEMES[scheme](voxels[index], inside, plans.foreground_intensity_properties_per_channel[str(index)])


def _z_score(channel: Channel, inside: Mask | None, _: IntensityProperties) -> None:
    """Mean 0 and standard deviation 1 of the case itself."""
    values = channel if inside is None else channel[inside]
    if values.size == 0:
        return
    # A float32 mean is a little off, which the division would make large in a constant image.
    if values.min() == values.max():
        values[...] = 0
    else:
        mean, deviation = values.mean(), max(_standard_deviation(values), _SMALLEST)
        values -= mean
        values /= deviation
    if inside is not None:
        channel[inside] = values


def _standard_deviation(values: Channel) -> float:
    """That of all values, summed up in parts: numpy's own makes a copy of all of them."""
    flat = values.reshape(-1)
    mean = flat.mean()
    parts = (flat[start : start + _PART] for start in range(0, flat.size, _PART))
    return math.sqrt(sum(float(np.square(part - mean).sum(dtype=np.float64)) for part in parts) / flat.size)


def _ct(channel: Channel, _: Mask | None, foreground: IntensityProperties) -> None:
    """Hounsfield units mean the same in every case: clip and standardise with the foreground of all cases."""
    np.clip(channel, foreground.percentile_00_5, foreground.percentile_99_5, out=channel)
    channel -= foreground.mean
    channel /= max(foreground.std, _SMALLEST)


def _none(channel: Channel, _: Mask | None, __: IntensityProperties) -> None:
    """Leave the values as they are."""


def _rescale_to_01(channel: Channel, _: Mask | None, __: IntensityProperties) -> None:
    """The case's own minimum becomes 0, its maximum 1."""
    channel -= channel.min()
    channel /= max(channel.max(), _SMALLEST)


def _rgb_to_01(channel: Channel, _: Mask | None, __: IntensityProperties) -> None:
    """0 to 255 becomes 0 to 1."""
    channel /= 255.0


_SCHEMES: dict[str, Callable[[Channel, Mask | None, IntensityProperties], None]] = {
    "ZScoreNormalization": _z_score,
    "CTNormalization": _ct,
    "NoNormalization": _none,
    "RescaleTo01Normalization": _rescale_to_01,
    "RGBTo01Normalization": _rgb_to_01,
}
