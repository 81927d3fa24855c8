"""Folders of models as nnU-Net and the released U-Mamba write them, with weights by formula."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_networks import formula_weights, read_golden
from torch import Tensor

GOLDENS = Path(__file__).parent / "networks/goldens"
CHANNEL = {
    "max": 3.0,
    "mean": 1.0,
    "median": 1.0,
    "min": 0.0,
    "percentile_00_5": 0.0,
    "percentile_99_5": 3.0,
    "std": 0.5,
}


class TrainedModel:
    """What a model of nnU-Net is made of; parts may be changed before `write`.

    Args:
        golden: the name of one of tests/networks/goldens, whose network it has.
        old_keys: plans as nnU-Net wrote them up to 2.1.
    """

    def __init__(self, golden: str = "plain_3d_thick", *, old_keys: bool = False) -> None:
        self.golden = read_golden(GOLDENS / f"{golden}.json")
        axes, channels = len(self.golden["patch_size"]), self.golden["input_channels"]
        self.name = "2d" if axes == 2 else "3d_fullres"
        self.configuration: dict[str, Any] = {
            "data_identifier": f"nnUNetPlans_{self.name}",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": self.golden["patch_size"],
            "median_image_size_in_voxels": [float(n) for n in self.golden["patch_size"]],
            "spacing": [1.0] * axes,
            "normalization_schemes": ["ZScoreNormalization"] * channels,
            "use_mask_for_norm": [False] * channels,
            "batch_dice": False,
            **(_old_network(self.golden) if old_keys else {"architecture": _network(self.golden)}),
        }
        self.plans: dict[str, Any] = {
            "dataset_name": "Dataset001_A",
            "plans_name": "nnUNetPlans",
            "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
            "original_median_shape_after_transp": [8, 16, 16],
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {str(i): CHANNEL for i in range(channels)},
            # Nothing but the configuration that was trained needs to be known.
            "configurations": {self.name: self.configuration, "other": {"normalization_schemes": ["MyOwn"]}},
        }
        self.dataset: dict[str, Any] = {
            "channel_names": {str(i): "MRI" for i in range(channels)},
            "labels": {"background": 0, **{f"label{i}": i for i in range(1, self.golden["num_classes"])}},
            "numTraining": 3,
            "file_ending": ".nii.gz",
        }
        self.trainer = "nnUNetTrainer"
        self.mirror_axes: Any = tuple(range(axes))
        self.checkpoint: dict[str, Any] = {}
        """Keys of the checkpoints that are other than usual."""

    def weights(self, fold: int | str = 0) -> dict[str, Tensor]:
        """The state_dict of the network, each tensor under all names that nnU-Net has for it."""
        found: dict[str, Tensor] = OrderedDict()
        factor = 1 + 0.5 * fold if isinstance(fold, int) else 2.0
        for name, plain in formula_weights(self.golden).items():
            tensor = plain.float() * factor
            number = name.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")
            for each in (name, number):
                found[each] = tensor
                if each.startswith("encoder."):
                    found[f"decoder.{each}"] = tensor
        return found

    def write(self, folder: Path, *, folds: Sequence[int | str] = (0,)) -> Path:
        """Write the folder of the model."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plans.json").write_text(json.dumps(self.plans))
        (folder / "dataset.json").write_text(json.dumps(self.dataset))
        for fold in folds:
            (folder / f"fold_{fold}").mkdir()
            torch.save(self.content(fold), folder / f"fold_{fold}/checkpoint_final.pth")
        return folder

    def content(self, fold: int | str = 0) -> dict[str, Any]:
        """What nnU-Net saves of a fold."""
        return {
            "network_weights": self.weights(fold),
            "optimizer_state": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.01}]},
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float32(0.1)], "lrs": [0.01]},
            "_best_ema": np.float64(0.5),
            "current_epoch": 7,
            "init_args": {
                "plans": self.plans,
                "configuration": self.name,
                "fold": fold,
                "dataset_json": self.dataset,
                "device": torch.device("cpu"),
            },
            "trainer_name": self.trainer,
            "inference_allowed_mirroring_axes": self.mirror_axes,
            **self.checkpoint,
        }


def _network(golden: dict[str, Any]) -> dict[str, Any]:
    axes = len(golden["patch_size"])
    layers = "n_conv_per_stage" if "n_conv_per_stage" in golden else "n_blocks_per_stage"
    module = "unet" if layers == "n_conv_per_stage" else "residual_unet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.{module}.{golden['variant']}",
        "arch_kwargs": {
            "n_stages": len(golden["strides"]),
            **{key: golden[key] for key in ("features_per_stage", "kernel_sizes", "strides", layers)},
            "n_conv_per_stage_decoder": golden["n_conv_per_stage_decoder"],
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _old_network(golden: dict[str, Any]) -> dict[str, Any]:
    return {
        "UNet_class_name": golden["variant"],
        "UNet_base_num_features": golden["features_per_stage"][0],
        "unet_max_num_features": max(golden["features_per_stage"]),
        "n_conv_per_stage_encoder": golden.get("n_conv_per_stage") or golden["n_blocks_per_stage"],
        "n_conv_per_stage_decoder": golden["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [2, 2],
        "pool_op_kernel_sizes": golden["strides"],
        "conv_kernel_sizes": golden["kernel_sizes"],
    }
