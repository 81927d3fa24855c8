"""The logits of a whole preprocessed image, tile by tile, from one network or several."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from umamba_cli.pipeline.devices import Compute, channels_last
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Box, Shape
from umamba_cli.pipeline.inference.tiles import gaussian_weight, padding_to, tile_boxes


@dataclass(frozen=True)
class WindowOptions:
    """How an image is looked at."""

    step: float = 0.5
    """Distance between tiles, as a share of a tile."""

    mirror_axes: tuple[int, ...] = ()
    """Spatial axes to mirror; the logits of all combinations are averaged."""

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise InputError(
                f"the step between tiles is {self.step}", next_step="give a share of the patch above 0, at most 1"
            )


@torch.inference_mode()
def image_logits(
    networks: Sequence[nn.Module],
    image: NDArray[np.float32],
    patch_size: Shape,
    compute: Compute,
    options: WindowOptions,
) -> NDArray[np.float32]:
    """Logits of a preprocessed image, averaged over networks and mirrorings.

    Args:
        networks: in evaluation mode, on the device; they answer with full-resolution logits.
        image: float32 (channels, z, y, x).
        patch_size: what the networks take: (z, y, x), or (y, x), for which slices are worked on one by one.
        compute: device and precision.
        options: steps and mirroring.

    Returns:
        float32 (classes, z, y, x).
    """
    if len(patch_size) == 2:
        slices = [_window(networks, image[:, z], patch_size, compute, options) for z in range(image.shape[1])]
        return torch.stack(slices, dim=1).numpy()
    return _window(networks, image, patch_size, compute, options).numpy()


def _window(
    networks: Sequence[nn.Module],
    image: NDArray[np.float32],
    patch_size: Shape,
    compute: Compute,
    options: WindowOptions,
) -> Tensor:
    target, padding = padding_to(image.shape[1:], patch_size)
    padded = torch.from_numpy(np.pad(image, [(0, 0), *padding]))
    weight = gaussian_weight(patch_size)
    summed: Tensor | None = None
    weights = torch.zeros(target)
    for box in tile_boxes(target, patch_size, options.step):
        logits = _tile_logits(networks, padded[box.slices_of_channels][None], compute, options.mirror_axes)
        if summed is None:
            summed = torch.zeros((len(logits), *target))
        summed[box.slices_of_channels] += logits * weight
        weights[box.slices] += weight
    assert summed is not None
    summed /= weights
    start = tuple(before for before, _ in padding)
    inside = Box(start, tuple(a + n for a, n in zip(start, image.shape[1:], strict=True)))
    return summed[inside.slices_of_channels]


def _tile_logits(networks: Sequence[nn.Module], tile: Tensor, compute: Compute, mirror_axes: tuple[int, ...]) -> Tensor:
    """(1, channels, ...) to float32 logits (classes, ...) on the CPU, averaged over networks and mirrorings."""
    tile = tile.to(compute.device, memory_format=channels_last(tile.dim() - 2))
    total: Tensor | None = None
    flips = _flips(mirror_axes)
    for network, flip in itertools.product(networks, flips):
        with compute.autocast():
            logits = network(tile.flip(flip) if flip else tile)
        logits = (logits.flip(flip) if flip else logits).float()
        total = logits if total is None else total + logits
    assert total is not None
    return (total / (len(networks) * len(flips)))[0].cpu()


def _flips(mirror_axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every combination of axes to flip, none of them first, as dimensions of (batch, channels, ...)."""
    dimensions = [axis + 2 for axis in mirror_axes]
    return [flip for count in range(len(dimensions) + 1) for flip in itertools.combinations(dimensions, count)]
