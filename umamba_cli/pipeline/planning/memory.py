"""How much a U-Net keeps in memory while it trains, counted without building it.

The measure is nnU-Net's: the numbers in all feature maps that convolutions give out, for one image. It is compared with
the figure of a network that is known to fill a known GPU.

Source: `compute_conv_feature_map_size` of dynamic-network-architectures, for PlainConvUNet and ResidualEncoderUNet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from umamba_cli.pipeline.geometry import Shape


@dataclass(frozen=True)
class Network:
    """What the count depends on; stages from full resolution down."""

    strides: tuple[Shape, ...]
    features: tuple[int, ...]

    encoder: tuple[int, ...]
    """Convolutions (plain) or residual blocks (residual) of each encoder stage."""

    decoder: tuple[int, ...]
    """Convolutions of each decoder stage, from the lowest resolution up."""

    residual: bool
    num_classes: int


def count_features(network: Network, patch_size: Sequence[int]) -> int:
    """Numbers in all feature maps of one patch.

    Args:
        network: stages and layers.
        patch_size: voxels along each axis.
    """
    maps = _stage_sizes(network, patch_size)
    voxels = [math.prod(size) for size in maps]
    encoder = _residual_encoder(network, patch_size, maps) if network.residual else _plain_encoder(network, voxels)
    # Each decoder stage: its convolutions, and the transposed convolution that leads up to it.
    decoder = sum(
        (layers + 1) * network.features[stage] * voxels[stage]
        for layers, stage in zip(network.decoder, reversed(range(len(maps) - 1)), strict=True)
    )
    heads = network.num_classes * voxels[0] if network.decoder else 0
    return encoder + decoder + heads


def _stage_sizes(network: Network, patch_size: Sequence[int]) -> list[Shape]:
    sizes = []
    size = tuple(patch_size)
    for stride in network.strides:
        size = tuple(n // s for n, s in zip(size, stride, strict=True))
        sizes.append(size)
    return sizes


def _plain_encoder(network: Network, voxels: Sequence[int]) -> int:
    return sum(n * features * v for n, features, v in zip(network.encoder, network.features, voxels, strict=True))


def _residual_encoder(network: Network, patch_size: Sequence[int], maps: Sequence[Shape]) -> int:
    """A stem of one convolution, then blocks of two; a projection where a stage changes size or features."""
    total = network.features[0] * math.prod(patch_size)
    size, channels = tuple(patch_size), network.features[0]
    for blocks, features, stage_size in zip(network.encoder, network.features, maps, strict=True):
        projections = 1 if features != channels or stage_size != size else 0
        total += (2 * blocks + projections) * features * math.prod(stage_size)
        size, channels = stage_size, features
    return total
