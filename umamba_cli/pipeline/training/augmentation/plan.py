"""What both forms of the augmentation share: sizes, angles, probabilities and ranges."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from umamba_cli.pipeline.geometry import ANISOTROPY_THRESHOLD, Shape

Range = tuple[float, float]

# Probabilities are per patch; those named "channel" are for each channel of a patch that was chosen. Where a range
# reaches to both sides of 1, either side is drawn from equally often.
P_ROTATION, P_SCALE, P_MIRROR_AXIS = 0.2, 0.2, 0.5
SCALE: Range = (0.7, 1.4)
P_NOISE = 0.1
NOISE: Range = (0.0, 0.1)
"""Called a variance by nnU-Net and batchgenerators, which use it as the standard deviation."""
P_BLUR, P_BLUR_CHANNEL = 0.2, 0.5
BLUR_SIGMA: Range = (0.5, 1.0)
P_BRIGHTNESS = 0.15
BRIGHTNESS: Range = (0.75, 1.25)
P_CONTRAST = 0.15
CONTRAST: Range = (0.75, 1.25)
P_LOW_RESOLUTION, P_LOW_RESOLUTION_CHANNEL = 0.25, 0.5
ZOOM: Range = (0.5, 1.0)
P_GAMMA_INVERTED, P_GAMMA = 0.1, 0.3
GAMMA: Range = (0.7, 1.5)


@dataclass(frozen=True)
class AugmentationPlan:
    """What the shape of a patch decides about its augmentation."""

    patch_size: Shape

    mask_channels: tuple[int, ...] = ()
    """Channels normalised inside the nonzero mask only: what noise and the like put outside is set to zero again."""

    previous_labels: tuple[int, ...] = ()
    """In a cascade, the labels of the previous stage that become channels of the image, in this order."""

    @property
    def in_plane_only(self) -> bool:
        """Slices are turned and scaled one by one where the patch is much shorter along its first axis."""
        return len(self.patch_size) == 3 and max(self.patch_size) / self.patch_size[0] > ANISOTROPY_THRESHOLD

    @property
    def turned_size(self) -> Shape:
        """The axes of the patch that rotation and scaling know."""
        return self.patch_size[1:] if self.in_plane_only else self.patch_size

    @property
    def largest_angle(self) -> float:
        """In radians. All round in a plane of about equal sides; 15 degrees in an oblong one; 30 degrees in space."""
        if self.in_plane_only:
            return math.pi
        if len(self.patch_size) == 2:
            return math.radians(15) if max(self.patch_size) / min(self.patch_size) > 1.5 else math.pi
        return math.radians(30)

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Spatial axes to mirror: all of them."""
        return tuple(range(len(self.patch_size)))

    @property
    def read_size(self) -> Shape:
        """What must be read so that a rotated and scaled patch finds image in its corners.

        Source: nnU-Net's `get_patch_size`: the extent of the patch turned about one axis, divided by 0.85. Here it is
        the extent over all angles up to the largest, not at the largest alone.
        """
        size = self.turned_size
        angle = min(self.largest_angle, math.pi / 2)
        turned = np.array(size, dtype=float)
        for first, second in itertools.combinations(range(len(size)), 2):
            a, b = float(size[first]), float(size[second])
            # Over all angles up to the largest: a cos + b sin is greatest at atan2(b, a).
            turned[first] = max(turned[first], _widest(a, b, angle))
            turned[second] = max(turned[second], _widest(b, a, angle))
        read = tuple(int(n) for n in turned / 0.85)
        return (self.patch_size[0], *read) if self.in_plane_only else read


def _widest(along: float, across: float, largest_angle: float) -> float:
    angle = min(largest_angle, math.atan2(across, along))
    return along * math.cos(angle) + across * math.sin(angle)


def default_augmentation(device_type: str, plan: AugmentationPlan) -> tuple[Literal["workers", "batched"], str]:
    """Which form of the augmentation suits a training, and why.

    A rule, not a timing: a training that goes on, or is repeated, must choose alike. The figures behind it are those of
    `benchmarks/augmentation.py`.

    Returns:
        "batched" or "workers", and the reason in words.
    """
    if plan.previous_labels:
        return "workers", "the labels of a cascade's previous stage are changed in worker processes only"
    if device_type == "cuda":
        return "batched", "on the GPU it leaves the processor to reading patches"
    if device_type == "cpu":
        return "batched", "it takes fewer CPU seconds a patch than batchgenerators"
    return "workers", f"not every torch has the batched operations on {device_type}"
