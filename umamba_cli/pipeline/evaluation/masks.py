"""What measures of two masks have in common: what they refuse, and the box that has to be looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def require_masks(prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float]) -> None:
    """Make sure that two arrays are masks of one shape with 2 or 3 axes, each with a spacing.

    Raises:
        ValueError: they are not.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    if prediction.dtype != np.bool_ or reference.dtype != np.bool_:
        raise ValueError(f"masks are boolean, not {prediction.dtype} and {reference.dtype}")
    if prediction.ndim not in {2, 3}:
        raise ValueError(f"masks have 2 or 3 axes, not {prediction.ndim}")
    if len(spacing) != prediction.ndim or not all(0 < step < math.inf for step in spacing):
        raise ValueError(f"a mask of {prediction.ndim} axes needs a positive spacing along each, not {tuple(spacing)}")


def box_of(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """The smallest box that holds a mask; None for an empty one."""
    box: tuple[slice, ...] = ()
    for axis in range(mask.ndim):
        inside = mask[box]
        places = np.flatnonzero(inside.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not places.size:
            return None
        box = (*box, slice(int(places[0]), int(places[-1]) + 1))
    return box
