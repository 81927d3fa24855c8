"""What changes intensities: noise, blur, brightness, contrast, low resolution and gamma, in place.

Each is batchgenerators' transform of the same name. A row is one channel of one patch; only rows that a transform
touches are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from umamba_cli.pipeline.training.augmentation import operators
from umamba_cli.pipeline.training.augmentation.draws import Draw, Values
from umamba_cli.pipeline.training.augmentation.parts import Numbers, chosen, parts, put, sent

_SMALL = 1e-7
"""Added to the range of intensities before gamma divides by it, as batchgenerators does."""


def change_intensities(images: Tensor, draws: Sequence[Draw], in_plane_only: bool) -> None:
    """Apply the transforms of all patches to float32 `images` (B, C, [z,] y, x), contiguous, which are changed.

    Args:
        images: mirrored already.
        draws: one a patch.
        in_plane_only: the first axis keeps its resolution.
    """
    add_noise(images, draws)
    rows = images.flatten(0, 1)
    mirrored = [draw.mirrored for draw in draws for _ in range(images.shape[1])]

    def each(name: str, neutral: float, change: Callable[[Tensor, Values, Numbers], None]) -> None:
        values = np.concatenate([getattr(draw, name) for draw in draws])
        for part in parts(np.flatnonzero(values != neutral), images.device):
            # A row by itself is a view; several are a copy.
            touched = chosen(rows, part)
            change(touched, values[part], part)
            if part.size > 1:  # otherwise a view, which is changed already
                put(rows, part, touched)

    each("blur", 0.0, lambda row, sigma, _: blur(row, sigma))
    each("brightness", 1.0, lambda row, factor, _: _scale(row, factor))
    each("contrast", 1.0, lambda row, factor, _: change_contrast(row, factor))
    each("zoom", 1.0, lambda row, zoom, part: lower_resolution(row, zoom, [mirrored[i] for i in part], in_plane_only))
    each("gamma_inverted", 1.0, lambda row, gamma, _: change_gamma(row, gamma, inverted=True))
    each("gamma", 1.0, lambda row, gamma, _: change_gamma(row, gamma, inverted=False))


def _column(values: Values, like: Tensor) -> Tensor:
    """One value a row, float32, to be broadcast over the row's voxels."""
    return _per_row(sent(values.astype(np.float32), like.device), like)


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.view([-1] + [1] * (like.dim() - 1))


def add_noise(images: Tensor, draws: Sequence[Draw]) -> None:
    """Gaussian noise of the same strength in all channels of a patch."""
    for image, draw in zip(images, draws, strict=True):
        if draw.noise:
            generator = torch.Generator(images.device).manual_seed(draw.noise_seed)
            noise = torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)
            image.add_(noise, alpha=draw.noise)


def blur(rows: Tensor, sigma: Values) -> None:
    """A Gaussian of one standard deviation (voxels) along all axes of each row."""
    weights = sent(np.stack([operators.gaussian_weights(s) for s in sigma]).astype(np.float32), rows.device)
    matrices = []
    for size in rows.shape[1:]:
        sums = operators.neighbour_sums(size).to(rows.device)
        matrices.append((weights @ sums.flatten(1)).view(-1, size, size))
    rows.copy_(operators.along_all_axes(rows, matrices))


def _scale(rows: Tensor, factor: Values) -> None:
    rows.mul_(_column(factor, rows))


def change_contrast(rows: Tensor, factor: Values) -> None:
    """Intensities drawn away from their mean by a factor, or towards it, kept within the range that they had."""
    voxels = tuple(range(1, rows.dim()))
    lowest, highest = rows.amin(voxels, keepdim=True), rows.amax(voxels, keepdim=True)
    mean = rows.mean(voxels, keepdim=True)
    rows.sub_(mean).mul_(_column(factor, rows)).add_(mean).clamp_(lowest, highest)


def lower_resolution(rows: Tensor, zoom: Values, mirrored: Sequence[tuple[bool, ...]], in_plane_only: bool) -> None:
    """Fewer voxels along each axis by the nearest, and back by cubic splines, within the range of those kept."""
    matrices, kept = [], []
    for axis, size in enumerate(rows.shape[1:]):
        lower = [size if in_plane_only and axis == 0 else operators.lower_size(size, z) for z in zoom]
        pairs = [operators.lower_resolution(size, n, flip[axis]) for n, flip in zip(lower, mirrored, strict=True)]
        # Rows of several sizes at once: the last voxel that is kept is repeated, and counts nothing.
        index = np.stack([np.pad(voxels, (0, max(lower) - len(voxels)), mode="edge") for voxels, _ in pairs])
        matrix = np.stack([np.pad(back, ((0, 0), (0, max(lower) - back.shape[1]))) for _, back in pairs])
        kept.append(sent(index, rows.device))
        matrices.append(sent(matrix, rows.device))
    low = _voxels(rows, kept)
    voxels = tuple(range(1, rows.dim()))
    lowest, highest = low.amin(voxels, keepdim=True), low.amax(voxels, keepdim=True)
    rows.copy_(operators.along_all_axes(low, matrices).clamp_(lowest, highest))


def _voxels(rows: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """The voxels (r, *m) at the crossings of (r, m) indices along each axis."""
    if len(rows) == 1:
        for axis, index in enumerate(kept):
            rows = rows.index_select(1 + axis, index[0])
        return rows
    along = [_per_row(torch.arange(len(rows), device=rows.device), rows)]
    for axis, index in enumerate(kept):
        along.append(index.view([len(rows)] + [-1 if i == axis else 1 for i in range(len(kept))]))
    return rows[tuple(along)]


def _norm(rows: Tensor) -> Tensor:
    return _per_row(torch.linalg.vector_norm(rows.flatten(1), dim=1), rows)


def change_gamma(rows: Tensor, gamma: Values, *, inverted: bool) -> None:
    """Intensities, taken to 0..1, to the power gamma; then with the mean and standard deviation that they had.

    Inverted, it is the negative of the image that this is done to.
    """
    voxels = tuple(range(1, rows.dim()))
    if inverted:
        rows.neg_()
    mean = rows.mean(voxels, keepdim=True)
    deviation = _norm(rows - mean)
    lowest = rows.amin(voxels, keepdim=True)
    extent = rows.amax(voxels, keepdim=True).sub_(lowest).add_(_SMALL)
    rows.sub_(lowest).div_(extent).pow_(_column(gamma, rows))
    rows.sub_(rows.mean(voxels, keepdim=True))
    # The standard deviation is the norm over the square root of the number of voxels, which both sides share.
    rows.mul_(extent * deviation / (extent * _norm(rows) + 1e-8 * math.sqrt(rows[0].numel()))).add_(mean)
    if inverted:
        rows.neg_()
