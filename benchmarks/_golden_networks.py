"""Weights and an input that are formulas, so that a golden network is stored as names, shapes and results alone.

Needs numpy alone: the Python of a reference system imports it, too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def weight(name: str, shape: Sequence[int]) -> Array:
    """The parameter of this name: noise whose seed is the name, scaled so that a network of such weights is tame."""
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    noise = np.random.RandomState(seed).standard_normal(math.prod(shape)).reshape(shape)
    if name.endswith("A_log"):  # (channels, state)
        return np.asarray(np.log1p(np.arange(shape[1])) + 0.1 * noise)
    if name.endswith("dt_proj.bias"):
        return np.asarray(noise - 4)
    if len(shape) > 1:
        return np.asarray(noise / math.sqrt(math.prod(shape[1:])))
    return np.asarray((1 if name.endswith(("weight", ".D")) else 0) + 0.1 * noise)


def image(channels: int, patch_size: Sequence[int]) -> Array:
    """The input, (1, channels, *patch_size)."""
    return np.asarray(np.random.RandomState(0).standard_normal((1, channels, *patch_size)))
