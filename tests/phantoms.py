"""Small things that several tests build."""

from __future__ import annotations

from dataclasses import dataclass

from umamba_cli.pipeline.planning.plans import Plans


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


def nnunet_plans(
    *,
    spacing: tuple[float, ...],
    transpose: tuple[int, ...] = (0, 1, 2),
    scheme: str = "ZScoreNormalization",
    masked: bool = False,
) -> Plans:
    """Plans with one configuration, `3d_fullres`, for one channel."""
    axes = 3
    network = {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3] * axes] * 2,
        "strides": [[1] * axes, [2] * axes],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
    }
    configuration = {
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "spacing": list(spacing),
        "median_image_size_in_voxels": [20, 20, 20],
        "normalization_schemes": [scheme],
        "use_mask_for_norm": [masked],
        "batch_dice": False,
        "architecture": {"network_class_name": "PlainConvUNet", "arch_kwargs": network},
    }
    intensities = {
        "max": 3000,
        "min": -1000,
        "mean": 50,
        "median": 45,
        "std": 20,
        "percentile_00_5": -100,
        "percentile_99_5": 200,
    }
    return Plans.model_validate(
        {
            "dataset_name": "Dataset001_A",
            "plans_name": "plans",
            "original_median_spacing_after_transp": list(spacing),
            "original_median_shape_after_transp": [20, 20, 20],
            "transpose_forward": list(transpose),
            "transpose_backward": [transpose.index(axis) for axis in range(3)],
            "foreground_intensity_properties_per_channel": {"0": intensities},
            "configurations": {"3d_fullres": configuration},
        }
    )
