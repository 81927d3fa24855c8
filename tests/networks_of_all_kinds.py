"""Small networks of every kind: the models, U-Mamba as it was released, and what the architecture's fields allow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch

from umamba_cli.pipeline.interop.released import released_umamba
from umamba_cli.pipeline.networks.architecture import Architecture
from umamba_cli.pipeline.networks.registry import NetworkPlan, build_network
from umamba_cli.pipeline.networks.unet import UNet

PATCH = 16
"""Voxels along each axis."""

MODELS = ("umamba-none", "umamba-bot", "umamba-enc")
VARIANTS: dict[str, dict[str, Any]] = {
    "pooling": {"mamba": "encoder", "mamba_every": 2, "shortcut": "pooling"},
    "plain": {"mamba": "encoder", "block": "plain", "block_decoder": "plain", "stem": "convolution"},
    "plain decoder": {"mamba": "bottleneck", "block_decoder": "plain"},
    "s4d": {"mamba": "bottleneck", "mixer": "s4d", "scan_directions": "both"},
    "mamba2": {"mamba": "encoder", "mixer": "mamba2"},
    "nearest": {"mamba": "encoder", "mamba_every": 2, "upsampling": "nearest", "full_resolution_skip": False},
}
NETWORKS = (*MODELS, "released bot", "released enc", *VARIANTS)


def network_of(name: str, dimensions: int) -> UNet:
    """One image channel, three classes; channels_last, the same weights each time."""
    torch.manual_seed(0)
    network = build_network(name, _plan(dimensions)) if name in MODELS else UNet(_architecture(name, dimensions))
    assert isinstance(network, UNet)
    network.to(memory_format=torch.channels_last if dimensions == 2 else torch.channels_last_3d)  # type: ignore[call-overload]
    return network


def _plan(dimensions: int) -> NetworkPlan:
    return NetworkPlan(
        input_channels=1,
        outputs=3,
        patch_size=(PATCH,) * dimensions,
        features_per_stage=(4, 6, 8),
        strides=((1,) * dimensions, (2,) * dimensions, (1,) * (dimensions - 2) + (2, 2)),
        kernel_sizes=((3,) * dimensions,) * 3,
        convolutions_per_stage=(2, 2, 2),
        convolutions_per_stage_decoder=(2, 2),
        blocks_per_stage=(1, 2, 1),
        blocks_per_stage_decoder=(1, 2),
    )


def _architecture(name: str, dimensions: int) -> Architecture:
    plan = _plan(dimensions)
    if name.startswith("released"):
        variant: Literal["bot", "enc"] = "bot" if name.endswith("bot") else "enc"
        return released_umamba(
            variant,
            patch_size=plan.patch_size,
            features_per_stage=plan.features_per_stage if dimensions == 3 else (4, 6, 16),
            kernel_sizes=plan.kernel_sizes,
            strides=plan.strides,
            input_channels=1,
            outputs=3,
            n_conv_per_stage=(2, 2, 2),
            n_conv_per_stage_decoder=(2, 2),
        )
    base = build_network("umamba-bot", plan).architecture
    assert isinstance(base, Architecture)
    return replace(base, **VARIANTS[name])
