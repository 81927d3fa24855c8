"""The augmentation with batchgenerators' transforms, one patch at a time, as worker processes do it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from umamba_cli.pipeline.preprocessing.case import OUTSIDE
from umamba_cli.pipeline.training.augmentation import plan as ranges
from umamba_cli.pipeline.training.augmentation.cascade import corrupt, with_previous
from umamba_cli.pipeline.training.augmentation.plan import AugmentationPlan
from umamba_cli.pipeline.training.patches import Patch

# batchgenerators draws from numpy's and Python's global generators, which are seeded for each patch.
_GLOBAL_GENERATORS = threading.Lock()


@dataclass(frozen=True)
class Augmentation:
    """Random transforms of one patch."""

    plan: AugmentationPlan

    def __call__(self, patch: Patch, generator: np.random.Generator) -> Patch:
        """A transformed copy of the plan's patch size; the same generator state gives the same result.

        What a cascade's previous stage found is moved with the labels, appended to the image as one channel a label,
        and changed there.
        """
        seed = int(generator.integers(2**32))
        maps = [patch.labels] if patch.previous is None else [patch.labels, patch.previous]
        content: dict[str, Any] = {"data": patch.image[None], "seg": np.stack(maps)[None].astype(np.float32)}
        with _GLOBAL_GENERATORS:
            before = np.random.get_state(), random.getstate()
            np.random.seed(seed)
            random.seed(seed)
            try:
                for transform in self.transforms.values():
                    content = transform(**content)
            finally:
                np.random.set_state(before[0])
                random.setstate(before[1])
        image, labels = content["data"][0], content["seg"][0]
        if self.plan.mask_channels:
            image[np.ix_(self.plan.mask_channels)] *= labels[0] >= 0
        labels = np.ascontiguousarray(np.round(labels), dtype=np.int16)
        previous = None if patch.previous is None else np.maximum(labels[1], 0)
        moved = Patch(np.ascontiguousarray(image, dtype=np.float32), labels[0], previous)
        if not self.plan.previous_labels:
            return Patch(moved.image, moved.labels)
        result = with_previous(moved, self.plan.previous_labels)
        corrupt(result.image[-len(self.plan.previous_labels) :], generator)
        return result

    @cached_property
    def transforms(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """The transforms of batchgenerators in their order, by the names that `Draw` has for what is drawn for them.

        They take and return `data` (1, C, ...) and `seg` (1, S, ...), and draw from the global generators.
        """
        from batchgenerators.transforms.spatial_transforms import MirrorTransform

        return {
            "turn": _spatial_transform(self.plan),
            **_intensity_transforms(self.plan),
            "mirrored": MirrorTransform(self.plan.mirror_axes),
        }


def _spatial_transform(plan: AugmentationPlan) -> Callable[..., dict[str, Any]]:
    from batchgenerators.transforms.spatial_transforms import SpatialTransform

    angles = (-plan.largest_angle, plan.largest_angle)
    spatial = SpatialTransform(
        plan.turned_size,
        patch_center_dist_from_border=None,
        do_elastic_deform=False,
        angle_x=angles,
        angle_y=angles,
        angle_z=angles,
        scale=ranges.SCALE,
        border_mode_data="constant",
        border_cval_data=0,
        order_data=3,
        border_mode_seg="constant",
        border_cval_seg=OUTSIDE,
        order_seg=1,
        random_crop=False,
        p_rot_per_sample=ranges.P_ROTATION,
        p_scale_per_sample=ranges.P_SCALE,
    )
    return partial(_slice_by_slice, spatial) if plan.in_plane_only else spatial


def _slice_by_slice(transform: Callable[..., dict[str, Any]], **content: Any) -> dict[str, Any]:
    """Apply a 2D transform to all slices alike: they stand in for channels meanwhile."""
    flat = {key: value.reshape(1, -1, *value.shape[3:]) for key, value in content.items()}
    return {key: value.reshape(*content[key].shape[:3], *value.shape[2:]) for key, value in transform(**flat).items()}


def _intensity_transforms(plan: AugmentationPlan) -> dict[str, Any]:
    from batchgenerators.transforms.color_transforms import (
        BrightnessMultiplicativeTransform,
        ContrastAugmentationTransform,
        GammaTransform,
    )
    from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
    from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform

    gamma = partial(GammaTransform, ranges.GAMMA, per_channel=True, retain_stats=True)
    return {
        "noise": GaussianNoiseTransform(noise_variance=ranges.NOISE, p_per_sample=ranges.P_NOISE),
        "blur": GaussianBlurTransform(
            ranges.BLUR_SIGMA,
            different_sigma_per_channel=True,
            p_per_sample=ranges.P_BLUR,
            p_per_channel=ranges.P_BLUR_CHANNEL,
        ),
        "brightness": BrightnessMultiplicativeTransform(ranges.BRIGHTNESS, p_per_sample=ranges.P_BRIGHTNESS),
        "contrast": ContrastAugmentationTransform(ranges.CONTRAST, p_per_sample=ranges.P_CONTRAST),
        "zoom": SimulateLowResolutionTransform(
            zoom_range=ranges.ZOOM,
            per_channel=True,
            p_per_channel=ranges.P_LOW_RESOLUTION_CHANNEL,
            order_downsample=0,
            order_upsample=3,
            p_per_sample=ranges.P_LOW_RESOLUTION,
            ignore_axes=(0,) if plan.in_plane_only else None,
        ),
        "gamma_inverted": gamma(invert_image=True, p_per_sample=ranges.P_GAMMA_INVERTED),
        "gamma": gamma(invert_image=False, p_per_sample=ranges.P_GAMMA),
    }
