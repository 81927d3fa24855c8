"""What is drawn for one patch, from its seed alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.training.augmentation import plan as ranges
from umamba_cli.pipeline.training.augmentation.plan import AugmentationPlan, Range

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Draw:
    """The transforms of one patch. Those of intensity have a value a channel; 0 or 1 leaves it as it is."""

    turn: Values | None
    """From a voxel's offset from the patch's centre to its offset from the centre of what was read (both in voxels,
    over the axes that are turned); None: the patch is cut out of the centre."""

    mirrored: tuple[bool, ...]
    """Of each spatial axis."""

    noise: float
    """Standard deviation, of all channels; 0 for none."""

    noise_seed: int

    blur: Values
    """Standard deviation in voxels, of all axes; 0 for none."""

    brightness: Values
    contrast: Values

    zoom: Values
    """Low resolution: the size along an axis as a share of the patch's."""

    gamma_inverted: Values
    gamma: Values


def draw(plan: AugmentationPlan, channels: int, seed: int) -> Draw:
    """The transforms of the patch with a seed, distributed as batchgenerators draws them."""
    generator = np.random.default_rng(seed)
    return Draw(
        turn=_turn(plan, generator),
        mirrored=tuple(bool(generator.random() < ranges.P_MIRROR_AXIS) for _ in plan.patch_size),
        noise=generator.uniform(*ranges.NOISE) if generator.random() < ranges.P_NOISE else 0.0,
        noise_seed=int(generator.integers(2**63)),
        blur=_uniform(generator, channels, ranges.BLUR_SIGMA, ranges.P_BLUR, 0.0, ranges.P_BLUR_CHANNEL),
        brightness=_uniform(generator, channels, ranges.BRIGHTNESS, ranges.P_BRIGHTNESS, 1.0),
        contrast=_around_one(generator, channels, ranges.CONTRAST, ranges.P_CONTRAST),
        zoom=_uniform(generator, channels, ranges.ZOOM, ranges.P_LOW_RESOLUTION, 1.0, ranges.P_LOW_RESOLUTION_CHANNEL),
        gamma_inverted=_around_one(generator, channels, ranges.GAMMA, ranges.P_GAMMA_INVERTED),
        gamma=_around_one(generator, channels, ranges.GAMMA, ranges.P_GAMMA),
    )


def _turn(plan: AugmentationPlan, generator: np.random.Generator) -> Values | None:
    dimensions = len(plan.turned_size)
    rotated, scaled = generator.random() < ranges.P_ROTATION, generator.random() < ranges.P_SCALE
    angles = generator.uniform(-plan.largest_angle, plan.largest_angle, 3 if dimensions == 3 else 1)
    scale = float(_sides_of_one(generator, 1, ranges.SCALE)[0])
    if not (rotated or scaled):
        return None
    return turn_matrix(angles if rotated else np.zeros(len(angles)), scale if scaled else 1.0)


def turn_matrix(angles: Values, scale: float) -> Values:
    """Rotation by one angle in the plane or by three in space, and scaling, in the order and signs of batchgenerators.

    Args:
        angles: radians; in space about the first, the second and the third axis.
        scale: above 1, more is looked at, so that all becomes smaller.
    """
    from scipy.spatial.transform import Rotation

    if len(angles) == 1:
        sine, cosine = math.sin(angles[0]), math.cos(angles[0])
        rotation: Values = np.array([[cosine, -sine], [sine, cosine]])
    else:
        rotation = Rotation.from_euler("XYZ", angles).as_matrix()
    turned: Values = scale * rotation.T
    return turned


def _uniform(
    generator: np.random.Generator, channels: int, within: Range, share: float, neutral: float, of_channels: float = 1.0
) -> Values:
    chosen = (generator.random() < share) & (generator.random(channels) < of_channels)
    return np.where(chosen, generator.uniform(*within, channels), neutral)


def _around_one(generator: np.random.Generator, channels: int, within: Range, share: float) -> Values:
    chosen = generator.random() < share
    values = _sides_of_one(generator, channels, within)
    return values if chosen else np.ones(channels)


def _sides_of_one(generator: np.random.Generator, count: int, within: Range) -> Values:
    """Below and above 1 equally often, evenly on either side."""
    below = generator.random(count) < 0.5
    return np.where(below, generator.uniform(within[0], 1, count), generator.uniform(1, within[1], count))
