"""The augmentation of a whole batch with torch operations, on the device that trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from umamba_cli.pipeline.training.augmentation.draws import draw
from umamba_cli.pipeline.training.augmentation.intensity import change_intensities
from umamba_cli.pipeline.training.augmentation.plan import AugmentationPlan
from umamba_cli.pipeline.training.augmentation.spatial import cut_patches


@dataclass(frozen=True)
class BatchedAugmentation:
    """Random transforms of a batch, each patch its own: `Augmentation`'s distribution, other random numbers.

    Known differences: images are turned with linear interpolation where batchgenerators has cubic splines.

    Raises:
        ValueError: the plan is a cascade's; its input is changed by `Augmentation` only.
    """

    plan: AugmentationPlan

    def __post_init__(self) -> None:
        if self.plan.previous_labels:
            raise ValueError("the batched augmentation has no transforms for a cascade's previous stage")

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The transformed patches; each depends on its own content and seed alone.

        Args:
            images: float32 (B, C, *read_size), in any memory format; not changed.
            labels: int64 (B, *read_size), -1 outside the image; not changed.
            seeds: one a patch, not negative.

        Returns:
            Images (B, C, *patch_size) and labels (B, *patch_size), -1 kept, both contiguous.
        """
        draws = [draw(self.plan, images.shape[1], seed) for seed in seeds]
        with torch.autocast(images.device.type, enabled=False):
            images, labels = cut_patches(images, labels, draws, self.plan.patch_size, self.plan.in_plane_only)
            change_intensities(images, draws, self.plan.in_plane_only)
            for channel in self.plan.mask_channels:
                images[:, channel] *= labels >= 0
        return images, labels
