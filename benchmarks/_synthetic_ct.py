"""A CT that is drawn: a body with organs, each of its own brightness; and a model folder of nnU-Net's made for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

AIR_HU, BODY_HU, NOISE_HU = -1000.0, 40.0, 3.0
ORGANS_HU = (-400.0, -180.0, 260.0, 480.0, 700.0, 920.0)
"""What organs are drawn with, in turn: far enough apart for a network of eight feature maps."""

MEAN_HU, DEVIATION_HU, CLIPPED_HU = 100.0, 300.0, (-450.0, 1100.0)
"""What the plans say of the foreground's intensities."""

FEATURES, PATCH = (8, 16, 32, 32, 32, 32), (128, 128, 128)
"""Of the tiny network: patch and stages are those that nnU-Net plans for such a CT, the feature maps are not."""


@dataclass(frozen=True)
class DrawnCT:
    """Voxels (z, y, x) in Hounsfield units, and in each the number of the organ's brightness, 0 where there is none."""

    voxels: NDArray[np.int16]
    kinds: NDArray[np.uint8]


def draw_ct(shape: Sequence[int], spacing_mm: Sequence[float], organs: int, seed: int = 0) -> DrawnCT:
    """Draw a CT.

    Args:
        shape: voxels along z, y, x.
        spacing_mm: along z, y, x.
        organs: how many; ellipsoids at random places, of which later ones cover earlier ones.
        seed: of places, sizes and noise. Places do not depend on the spacing.
    """
    generator = np.random.default_rng(seed)
    size = np.array(shape) * spacing_mm
    found = np.zeros(shape, dtype=np.uint8)
    typical = 0.5 * np.cbrt(size.prod() / organs)
    for organ in range(organs):
        axes = typical * generator.uniform(0.5, 0.9, 3)
        lowest, highest = np.array([(0, 0.25, 0.25), (1, 0.75, 0.75)])
        centre = generator.uniform(lowest, highest) * size
        _fill(found, spacing_mm, centre, axes, 1 + organ % len(ORGANS_HU))
    y, x = (((np.arange(n) + 0.5) / n * 2 - 1) ** 2 for n in shape[1:])
    body = y[:, None] / 0.5 + x / 0.8 < 1
    levels = np.array([BODY_HU, *ORGANS_HU], dtype=np.float32)
    voxels = np.empty(shape, dtype=np.int16)
    for plane, kinds in zip(voxels, found, strict=True):
        kinds[~body] = 0
        clean = np.where(body, levels[kinds], np.float32(AIR_HU))
        plane[...] = clean + NOISE_HU * generator.standard_normal(clean.shape, dtype=np.float32)
    return DrawnCT(voxels, found)


def _fill(
    found: NDArray[np.uint8], spacing_mm: Sequence[float], centre_mm: NDArray[Any], axes_mm: NDArray[Any], kind: int
) -> None:
    """Draw an ellipsoid."""
    box, level = [], np.zeros(1)
    for i, (count, step) in enumerate(zip(found.shape, spacing_mm, strict=True)):
        first, last = ((centre_mm[i] + side * axes_mm[i]) / step for side in (-1, 1))
        box.append(slice(max(0, int(first)), min(count, int(last) + 1)))
        places = (np.arange(count)[box[-1]] + 0.5) * step
        level = level[..., None] + ((places - centre_mm[i]) / axes_mm[i]) ** 2
    found[tuple(box)][level[0] < 1] = kind


def normalised(voxels: NDArray[np.int16]) -> NDArray[np.float32]:
    """Intensities as a network sees them."""
    return ((np.clip(voxels, *CLIPPED_HU) - MEAN_HU) / DEVIATION_HU).astype(np.float32)


def write_ct(path: Path, voxels: NDArray[np.int16], spacing_mm: Sequence[float]) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(tuple(reversed(spacing_mm)))
    sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=1)


def write_model_folder(folder: Path, organs: int, spacing_mm: float) -> None:
    """plans.json and dataset.json as nnU-Net has them, for a tiny network; the checkpoint is to be added."""
    folder.mkdir(parents=True)
    labels = {"background": 0, **{f"organ {number}": number for number in range(1, organs + 1)}}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    intensities = {
        "mean": MEAN_HU, "median": MEAN_HU, "std": DEVIATION_HU, "min": CLIPPED_HU[0], "max": CLIPPED_HU[1],
        "percentile_00_5": CLIPPED_HU[0], "percentile_99_5": CLIPPED_HU[1],
    }  # fmt: skip
    plans = {
        "dataset_name": "Dataset999_DrawnCT",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.5, 0.8, 0.8],
        "original_median_shape_after_transp": [300, 512, 512],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": _configuration(spacing_mm)},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }
    for name, content in (("dataset.json", dataset), ("plans.json", plans)):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def _configuration(spacing_mm: float) -> dict[str, Any]:
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    stages = len(FEATURES)
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": PATCH,
        "median_image_size_in_voxels": [300, 273, 273],
        "spacing": [spacing_mm] * 3,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": FEATURES,
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3] * 3] * stages,
                "strides": [[1] * 3, *[[2] * 3] * (stages - 1)],
                "n_conv_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [2] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
