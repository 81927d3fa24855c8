"""nnU-Net's augmentation: batchgenerators' transforms in worker processes, or batched operations on the device.

Source: Isensee et al. 2021, supplementary note 4, with the ranges of nnU-Net 2: rotation, scaling, noise, blur,
brightness, contrast, low resolution, gamma, mirroring; for a cascade, changes to the previous stage's labels.
"""

from __future__ import annotations

from umamba_cli.pipeline.training.augmentation.batched import BatchedAugmentation
from umamba_cli.pipeline.training.augmentation.batchgenerators_path import Augmentation
from umamba_cli.pipeline.training.augmentation.cascade import with_previous
from umamba_cli.pipeline.training.augmentation.plan import AugmentationPlan, default_augmentation

__all__ = ["Augmentation", "AugmentationPlan", "BatchedAugmentation", "default_augmentation", "with_previous"]
