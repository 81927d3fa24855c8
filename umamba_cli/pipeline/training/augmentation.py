"""nnU-Net's augmentation with batchgenerators' transforms.

Source: Isensee et al. 2021, supplementary note 4, with the ranges of nnU-Net 2: rotation, scaling, noise, blur,
brightness, contrast, low resolution, gamma, mirroring.
"""

from __future__ import annotations

import itertools
import math
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from umamba_cli.pipeline.geometry import ANISOTROPY_THRESHOLD, Shape
from umamba_cli.pipeline.preprocessing.case import OUTSIDE
from umamba_cli.pipeline.training.patches import Patch

Angles = tuple[float, float]

# batchgenerators draws from numpy's and Python's global generators, which are seeded for each patch.
_GLOBAL_GENERATORS = threading.Lock()


@dataclass(frozen=True)
class AugmentationPlan:
    """What the shape of a patch decides about its augmentation."""

    patch_size: Shape

    mask_channels: tuple[int, ...] = ()
    """Channels normalised inside the nonzero mask only: what noise and the like put outside is set to zero again."""

    @property
    def in_plane_only(self) -> bool:
        """Slices are turned and scaled one by one where the patch is much shorter along its first axis."""
        return len(self.patch_size) == 3 and max(self.patch_size) / self.patch_size[0] > ANISOTROPY_THRESHOLD

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
        size = self.patch_size[1:] if self.in_plane_only else self.patch_size
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


@dataclass(frozen=True)
class Augmentation:
    """Random transforms of one patch."""

    plan: AugmentationPlan

    def __call__(self, patch: Patch, generator: np.random.Generator) -> Patch:
        """A transformed copy of the plan's patch size; the same generator state gives the same result."""
        seed = int(generator.integers(2**32))
        content: dict[str, Any] = {"data": patch.image[None], "seg": patch.labels[None, None].astype(np.float32)}
        with _GLOBAL_GENERATORS:
            before = np.random.get_state(), random.getstate()
            np.random.seed(seed)
            random.seed(seed)
            try:
                for transform in self._transforms:
                    content = transform(**content)
            finally:
                np.random.set_state(before[0])
                random.setstate(before[1])
        image, labels = content["data"][0], content["seg"][0, 0]
        if self.plan.mask_channels:
            image[np.ix_(self.plan.mask_channels)] *= labels >= 0
        return Patch(
            np.ascontiguousarray(image, dtype=np.float32), np.ascontiguousarray(np.round(labels), dtype=np.int16)
        )

    @cached_property
    def _transforms(self) -> Sequence[Any]:
        return [*_spatial_transforms(self.plan), *_intensity_transforms(self.plan), *_mirror_transforms(self.plan)]


def _spatial_transforms(plan: AugmentationPlan) -> list[Any]:
    from batchgenerators.transforms.spatial_transforms import SpatialTransform

    angles = (-plan.largest_angle, plan.largest_angle)
    spatial = SpatialTransform(
        plan.patch_size[1:] if plan.in_plane_only else plan.patch_size,
        patch_center_dist_from_border=None,
        do_elastic_deform=False,
        angle_x=angles,
        angle_y=angles,
        angle_z=angles,
        scale=(0.7, 1.4),
        border_mode_data="constant",
        border_cval_data=0,
        order_data=3,
        border_mode_seg="constant",
        border_cval_seg=OUTSIDE,
        order_seg=1,
        random_crop=False,
        p_rot_per_sample=0.2,
        p_scale_per_sample=0.2,
    )
    return [partial(_slice_by_slice, spatial) if plan.in_plane_only else spatial]


def _slice_by_slice(transform: Callable[..., dict[str, Any]], **content: Any) -> dict[str, Any]:
    """Apply a 2D transform to all slices alike: they stand in for channels meanwhile."""
    flat = {key: value.reshape(1, -1, *value.shape[3:]) for key, value in content.items()}
    return {key: value.reshape(*content[key].shape[:3], *value.shape[2:]) for key, value in transform(**flat).items()}


def _intensity_transforms(plan: AugmentationPlan) -> list[Any]:
    from batchgenerators.transforms.color_transforms import (
        BrightnessMultiplicativeTransform,
        ContrastAugmentationTransform,
        GammaTransform,
    )
    from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
    from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform

    return [
        GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_sample=0.1),
        GaussianBlurTransform((0.5, 1.0), different_sigma_per_channel=True, p_per_sample=0.2, p_per_channel=0.5),
        BrightnessMultiplicativeTransform((0.75, 1.25), p_per_sample=0.15),
        ContrastAugmentationTransform((0.75, 1.25), p_per_sample=0.15),
        SimulateLowResolutionTransform(
            zoom_range=(0.5, 1),
            per_channel=True,
            p_per_channel=0.5,
            order_downsample=0,
            order_upsample=3,
            p_per_sample=0.25,
            ignore_axes=(0,) if plan.in_plane_only else None,
        ),
        GammaTransform((0.7, 1.5), invert_image=True, per_channel=True, retain_stats=True, p_per_sample=0.1),
        GammaTransform((0.7, 1.5), invert_image=False, per_channel=True, retain_stats=True, p_per_sample=0.3),
    ]


def _mirror_transforms(plan: AugmentationPlan) -> list[Any]:
    from batchgenerators.transforms.spatial_transforms import MirrorTransform

    return [MirrorTransform(plan.mirror_axes)]
