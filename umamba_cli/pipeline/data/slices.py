"""Where the slices of a volume lie: one after the other along their normal, with the same gap everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import numbers_text

_TOLERANCE = 0.01
"""Part of the usual gap that another gap may differ by, and of the volume's height that slices may be shifted by."""

_ROUNDING_MM = 0.02
"""What they may always differ by, because positions are often written with two decimals."""

_SAME_MM = 1e-3
"""Slices that are not further apart are at one position."""


def step_mm(volume: str, names: Sequence[str], positions: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Millimetres between slices that follow each other along their normal; below 0 where they run against it.

    Args:
        volume: what messages call it.
        names: of its slices, two or more.
        positions: of their first voxels, (slices, 3), x, y, z in mm.
        normal: of all of them, of length 1.

    Raises:
        InputError: two slices are at one position, they are in no order, the gaps differ, or slices are shifted across
            the normal.
    """
    along = (positions - positions[0]) @ normal
    gaps = np.diff(along) * (sign := -1.0 if along[-1] < 0 else 1.0)
    _check_gaps(volume, names, positions, gaps)
    sideways = np.linalg.norm(positions - positions[0] - along[:, None] * normal, axis=1)
    worst, height = int(sideways.argmax()), abs(float(along[-1]))
    if sideways[worst] > max(_TOLERANCE * height, _ROUNDING_MM):
        angle = math.degrees(math.atan2(sideways[worst], abs(along[worst])))
        raise InputError(
            f"{volume}: its slices are shifted against each other by up to {sideways[worst]:.6g} mm ({names[worst]}), "
            f"as if the gantry was tilted by {angle:.2g} degrees",
            next_step="convert it to NIfTI with a tool that corrects the tilt, as dcm2niix",
        )
    return sign * height / (len(along) - 1)


def _check_gaps(volume: str, names: Sequence[str], positions: NDArray[np.float64], gaps: NDArray[np.float64]) -> None:
    same = np.flatnonzero(np.abs(gaps) < _SAME_MM)
    if len(same):
        pair = f"{names[same[0]]} and {names[same[0] + 1]}"
        raise InputError(
            f"{volume}: {pair} are both at {numbers_text(positions[same[0]])} mm (x, y, z){_more(len(same), 'pairs')}",
            next_step="keep one file for each slice; give time points and echoes one by one",
        )
    if (gaps < 0).any():
        raise InputError(
            f"{volume}: {names[int((gaps < 0).argmax()) + 1]} is not in the order of the positions",
            next_step="convert it to NIfTI",
        )
    usual = float(np.median(gaps))
    uneven = np.flatnonzero(np.abs(gaps - usual) > max(_TOLERANCE * usual, min(_ROUNDING_MM, 0.1 * usual)))
    if len(uneven):
        first = uneven[0]
        raise InputError(
            f"{volume}: {gaps[first]:.6g} mm lie between {names[first]} and {names[first + 1]}, {usual:.6g} mm between "
            f"most slices{_more(len(uneven), 'places')}",
            next_step="add the slices that are missing, or export the series again",
        )


def _more(count: int, what: str) -> str:
    return f", and {count - 1} more such {what.removesuffix('s') if count == 2 else what}" if count > 1 else ""
