"""Rotation, scaling, mirroring and the cut from what was read to the patch, of images and labels alike.

Images are interpolated linearly (as nnU-Net 2 does; batchgenerators' cubic splines are many times the work). A voxel
gets the label that weighs most in the linear interpolation, which is batchgenerators' order 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from umamba_cli.pipeline.geometry import Shape
from umamba_cli.pipeline.preprocessing.case import OUTSIDE
from umamba_cli.pipeline.training.augmentation.draws import Draw, Values
from umamba_cli.pipeline.training.augmentation.parts import chosen, parts, put, sent

_LABELS_AT_ONCE = 8
"""Masks of labels that are sampled with the image: more would take much memory."""


def cut_patches(
    images: Tensor, labels: Tensor, draws: Sequence[Draw], patch_size: Shape, in_plane_only: bool
) -> tuple[Tensor, Tensor]:
    """The turned, scaled and mirrored patches.

    Args:
        images: float32 (B, C, *read).
        labels: int64 (B, *read), -1 outside.
        draws: one a patch.
        patch_size: of the result.
        in_plane_only: slices are turned one by one, the first axis is as it was.

    Returns:
        Images (B, C, *patch) and labels (B, *patch), contiguous.
    """
    new_images = images.new_empty((*images.shape[:2], *patch_size))
    new_labels = labels.new_empty((len(labels), *patch_size))
    for mirrored in sorted({draw.mirrored for draw in draws if draw.turn is None}):
        same = np.array([i for i, draw in enumerate(draws) if draw.turn is None and draw.mirrored == mirrored])
        for part in parts(same, images.device):
            put(new_images, part, chosen(_centre(images, patch_size), part).flip(_axes(mirrored, 2)))
            put(new_labels, part, chosen(_centre(labels, patch_size), part).flip(_axes(mirrored, 1)))
    turned = np.array([i for i, draw in enumerate(draws) if draw.turn is not None], dtype=np.int64)
    for part in parts(turned, images.device):
        turns = np.stack([_turn(draws[i], in_plane_only) for i in part])
        image, maps = chosen(images, part), chosen(labels, part)
        if in_plane_only:  # slices stand in for channels, and are put in their mirrored order afterwards
            image, maps = _sample(image.flatten(1, 2), maps, turns, patch_size[1:])
        else:
            image, maps = _sample(image, maps[:, None], turns, patch_size)
        put(new_images, part, image.view(len(part), -1, *patch_size))
        put(new_labels, part, maps.view(len(part), *patch_size))
        for i in part:
            if in_plane_only and draws[i].mirrored[0]:
                new_images[i], new_labels[i] = new_images[i].flip(1), new_labels[i].flip(0)
    return new_images, new_labels


def _centre(arrays: Tensor, size: Shape) -> Tensor:
    """Cut out of the centre along the last axes."""
    first = arrays.dim() - len(size)
    for axis, n in enumerate(size):
        arrays = arrays.narrow(first + axis, (arrays.shape[first + axis] - n) // 2, n)
    return arrays


def _axes(mirrored: tuple[bool, ...], first: int) -> list[int]:
    return [first + axis for axis, flip in enumerate(mirrored) if flip]


def _turn(draw: Draw, in_plane_only: bool) -> Values:
    """From offsets in the result to offsets in what was read: mirroring is done first."""
    assert draw.turn is not None
    mirrored = draw.mirrored[1:] if in_plane_only else draw.mirrored
    return draw.turn * np.where(mirrored, -1.0, 1.0)


def _sample(images: Tensor, labels: Tensor, turns: Values, size: Shape) -> tuple[Tensor, Tensor]:
    """Images (n, C, *read) and labels (n, S, *read) where matrices `turns` (n, k, k) look for the voxels of `size`."""
    reach = (np.abs(turns) @ ((np.array(size) - 1) / 2)).max(axis=0)
    for axis, n in enumerate(labels.shape[2:]):
        spare = max(int((n - 1) / 2 - reach[axis]) - 1, 0)  # what is never looked at, at either end
        images, labels = (array.narrow(2 + axis, spare, n - 2 * spare) for array in (images, labels))
    beyond = any(reach > (np.array(labels.shape[2:]) - 1) / 2)
    grid = _grid(turns, labels.shape[2:], size, images.device)
    labels = labels.to(torch.int16)
    present = _present(labels)
    channels, slices = images.shape[1], labels.shape[1]
    # Label 0 has what the others leave: its mask need not be made. Of equal weights, 0 and then the smaller label win.
    total = best = images.new_zeros(())
    winner = labels.new_zeros((len(labels), slices, *size), dtype=torch.int64)
    sampled = images.new_empty(())
    for start in range(0, max(len(present), 1), _LABELS_AT_ONCE):
        masks = present[start : start + _LABELS_AT_ONCE]
        begin = channels if start == 0 else 0
        stack = images.new_empty((len(images), begin + slices * len(masks), *images.shape[2:]))
        stack[:, :begin] = images[:, :begin]
        for number, label in enumerate(masks):
            stack[:, begin + number * slices : begin + (number + 1) * slices] = labels == label
        values = _grid_sample(stack, grid)
        sampled = values[:, :begin] if start == 0 else sampled
        for number, label in enumerate(masks):
            weight = values[:, begin + number * slices : begin + (number + 1) * slices]
            winner.masked_fill_(weight > best, label)
            total, best = total + weight, torch.maximum(best, weight)
    winner.masked_fill_(best <= 1 - total, 0)
    if beyond:  # as in scipy, nothing is interpolated between the last voxel and what lies beyond
        outside = (grid.abs() > 1).any(-1)[:, None]
        winner.masked_fill_(outside, OUTSIDE)
        sampled = sampled.masked_fill(outside, 0.0)
    return sampled, winner


def _present(labels: Tensor) -> list[int]:
    """The labels that occur, in order, without 0; one that does not may be among few."""
    lowest, highest = torch.stack([labels.amin(), labels.amax()]).tolist()
    if highest - lowest < _LABELS_AT_ONCE:
        labels_between = [n for n in range(lowest, highest + 1) if n]
        # A mask costs a CPU more than a look; a GPU would have to be waited for.
        return [n for n in labels_between if labels.device.type != "cpu" or bool((labels == n).any())]
    counts = torch.bincount((labels - lowest).flatten())
    return [n + lowest for n in counts.nonzero().flatten().tolist() if n + lowest]


def _grid(turns: Values, read: Sequence[int], size: Shape, device: torch.device) -> Tensor:
    """Where to look for each voxel, as `grid_sample` wants it: float32 (n, *size, k), x first, -1 to 1 over `read`."""
    dimensions = len(size)
    steps = turns * (2 / np.maximum(np.array(read) - 1, 1))[:, None]
    matrices = sent(steps.astype(np.float32), device)
    grid = matrices.new_empty((len(turns), *size, dimensions))
    offsets = []
    for axis, n in enumerate(size):
        along = [1] * dimensions
        along[axis] = n
        offsets.append((torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2).view(along))
    for axis in range(dimensions):
        *first, last = (matrices[:, axis, i].view(-1, *[1] * dimensions) * offsets[i] for i in range(dimensions))
        torch.add(sum(first[1:], first[0]), last, out=grid[..., dimensions - 1 - axis])
    return grid


def _grid_sample(arrays: Tensor, grid: Tensor) -> Tensor:
    """Linear interpolation of (n, C, *read) at (n, *size, k), 0 outside."""
    if arrays.device.type == "cpu" and len(arrays) == 1:
        # torch shares out only the batch among threads: here the slabs of one sample are its batch.
        rows = grid.shape[1]
        slabs = max(n for n in range(1, min(torch.get_num_threads(), rows) + 1) if rows % n == 0)
        if slabs > 1:
            parts = F.grid_sample(
                arrays.expand(slabs, *arrays.shape[1:]),
                grid.view(slabs, rows // slabs, *grid.shape[2:]),
                align_corners=True,
            )
            return parts.transpose(0, 1).reshape(1, arrays.shape[1], *grid.shape[1:-1])
    return F.grid_sample(arrays, grid, align_corners=True)
