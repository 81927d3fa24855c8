"""A cascade's input: the previous stage's labels as channels of the image, and how they are changed for training.

The second stage would otherwise learn to copy an input that is better on the training cases than on new ones.
Source: Isensee et al. 2021, supplementary note 4, with the figures of nnU-Net 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.geometry import Box
from umamba_cli.pipeline.training.patches import Patch

P_OPERATOR, P_OPERATOR_LABEL = 0.4, 0.5
"""Those of nnU-Net 2.8.1; its versions before batchgeneratorsv2 left no label out."""
RADIUS = (1.0, 8.0)
"""Voxels."""

P_REMOVAL, P_REMOVAL_LABEL = 0.2, 0.5
LARGEST_REMOVED = 0.15
"""Of the patch."""

Mask = NDArray[np.bool_]


def with_previous(patch: Patch, previous_labels: tuple[int, ...]) -> Patch:
    """The patch with what the previous stage found as one more channel a label (0 or 1), after the image's own.

    Raises:
        ValueError: there are labels to append, but the patch does not know what the previous stage found.
    """
    if not previous_labels:
        return Patch(patch.image, patch.labels)
    if patch.previous is None:
        raise ValueError("the patch does not hold the previous stage's labels")
    channels = np.stack([patch.previous == label for label in previous_labels])
    return Patch(np.concatenate([patch.image, channels.astype(np.float32)]), patch.labels)


def corrupt(channels: NDArray[np.float32], generator: np.random.Generator) -> None:
    """Change the one-hot channels (label, [z,] y, x) of a previous stage in place, at random.

    With probability 0.4 half of the labels are grown, shrunk, opened or closed by a ball; a voxel that a label gains is
    taken from the others. With probability 0.2 a random connected component of half of the labels goes, if it covers
    less than 15 % of the patch.
    """
    if generator.random() < P_OPERATOR:
        for label in _some_in_random_order(len(channels), P_OPERATOR_LABEL, generator):
            before = channels[label] > 0
            after = _OPERATORS[generator.integers(len(_OPERATORS))](before, generator.uniform(*RADIUS))
            channels[:, after & ~before] = 0
            channels[label] = after
    if generator.random() < P_REMOVAL:
        for label in _some_in_random_order(len(channels), P_REMOVAL_LABEL, generator):
            channels[label][_random_component(channels[label] > 0, generator)] = 0


def _some_in_random_order(count: int, share: float, generator: np.random.Generator) -> list[int]:
    return [int(i) for i in generator.permutation(count) if generator.random() < share]


def dilation(mask: Mask, radius: float) -> Mask:
    """Every voxel no further than `radius` voxels from one of the mask."""
    result = np.zeros_like(mask)
    box = _around(mask, int(radius))
    if box is not None:
        result[box.slices] = _distance(~mask[box.slices]) <= radius
    return result


def erosion(mask: Mask, radius: float) -> Mask:
    """Every voxel further than `radius` voxels from all outside the mask; beyond the patch counts as the mask."""
    result = np.zeros_like(mask)
    box = _around(mask, 1)
    if box is not None:
        inside = mask[box.slices]
        result[box.slices] = True if inside.all() else _distance(inside) > radius
    return result


def opening(mask: Mask, radius: float) -> Mask:
    """Erosion, then dilation."""
    return dilation(erosion(mask, radius), radius)


def closing(mask: Mask, radius: float) -> Mask:
    """Dilation, then erosion."""
    return erosion(dilation(mask, radius), radius)


_OPERATORS = (dilation, erosion, opening, closing)


def _distance(mask: Mask) -> NDArray[np.float64]:
    """From each voxel of the mask to the nearest outside it, in voxels: a ball of any size at one price."""
    from scipy.ndimage import distance_transform_edt

    distance: NDArray[np.float64] = distance_transform_edt(mask)
    return distance


def _around(mask: Mask, margin: int) -> Box | None:
    """The box that holds the mask and a margin, within the array; None for an empty mask."""
    start, stop = [], []
    for axis in range(mask.ndim):
        line = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not line.size:
            return None
        start.append(max(int(line[0]) - margin, 0))
        stop.append(min(int(line[-1]) + 1 + margin, mask.shape[axis]))
    return Box(tuple(start), tuple(stop))


def _random_component(mask: Mask, generator: np.random.Generator) -> Mask:
    """One of the mask's components (neighbours touch at least in a corner) that are small enough; empty if none is."""
    from scipy.ndimage import label

    components, count = label(mask, np.ones((3,) * mask.ndim))
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    small = np.flatnonzero(sizes < LARGEST_REMOVED * mask.size) + 1
    chosen: Mask = components == generator.choice(small) if small.size else np.zeros_like(mask)
    return chosen
