"""Slab by slab the result is that of all logits resampled at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from umamba_cli.pipeline.inference.finer_grid import FinerGrid
from umamba_cli.pipeline.inference.tile_sums import Slab
from umamba_cli.pipeline.preprocessing.resampling import resample_image

SHAPES = [
    ((9, 14, 11), (17, 25, 20)),  # finer along all axes
    ((9, 14, 11), (9, 14, 11)),
    ((12, 14, 11), (5, 9, 23)),  # coarser along some
    ((1, 14, 11), (1, 30, 7)),
    ((6, 8, 7), (6, 21, 19)),
]


def some_logits(shape: tuple[int, ...], outputs: int = 4) -> NDArray[np.float32]:
    """Blobs, in part of the voxels so that borders and insides both occur."""
    coarse = np.random.default_rng(0).standard_normal((outputs, *(max(1, n // 3) for n in shape))).astype(np.float32)
    return 5 * resample_image(coarse, shape, (1.0,) * 3, (1.0,) * 3, order=1)


def slabs(logits: NDArray[np.float32], *planes: int) -> Iterator[Slab]:
    """Of these numbers of planes, and the rest; each is spoilt once it was used, as the sums' memory is."""
    start = 0
    for count in (*planes, logits.shape[1]):
        stop = min(start + count, logits.shape[1])
        if stop > start:
            values = torch.from_numpy(logits[:, start:stop].copy()).movedim(0, -1)
            yield Slab(start, values)
            values.fill_(torch.nan)
        start = stop


@pytest.mark.parametrize(("shape", "new_shape"), SHAPES)
@pytest.mark.parametrize("cuts", [(), (1,), (2, 3, 1), (4, 1, 1, 1, 1)])
@pytest.mark.parametrize("thick_axis", [None, 0, 2])
def test_labels_and_values_are_those_of_the_whole(
    shape: tuple[int, ...], new_shape: tuple[int, ...], cuts: tuple[int, ...], thick_axis: int | None
) -> None:
    logits = some_logits(shape)
    spacing = tuple(9.0 if axis == thick_axis else 1.0 for axis in range(3))
    whole = resample_image(logits, new_shape, spacing, spacing, order=1)
    labels = np.full(new_shape, -1)
    grid = FinerGrid(shape, new_shape, thick_axis=thick_axis)
    for slab in slabs(logits, *cuts):
        for planes, found in grid.labels(slab, lambda values: values.argmax(-1)):
            assert (labels[planes] == -1).all()
            labels[planes] = found
    first, second = np.sort(whole, axis=0)[[-1, -2]]
    clear = first - second > 1e-4  # elsewhere the last digits decide
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], whole.argmax(0)[clear])
    assert len(np.unique(labels)) > 1

    values = np.full((4, *new_shape), np.nan, dtype=np.float32)
    grid = FinerGrid(shape, new_shape, thick_axis=thick_axis)
    for slab in slabs(logits, *cuts):
        for planes, found in grid.values(slab):
            values[:, planes] = found.movedim(-1, 0).numpy()
    np.testing.assert_allclose(values, whole, atol=1e-4)


def test_few_voxels_are_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those between voxels of different labels."""
    looked_at = []
    logits = np.zeros((2, 20, 20, 20), dtype=np.float32)
    logits[1, :, :, 10:] = 1
    logits[0, :, :, :10] = 1

    def labels_of(values: torch.Tensor) -> torch.Tensor:
        looked_at.append(values[..., 0].numel())
        return values.argmax(-1)

    grid = FinerGrid((20, 20, 20), (40, 40, 40), thick_axis=None)
    for slab in slabs(logits):
        list(grid.labels(slab, labels_of))
    assert looked_at == [8000, 40 * 40 * 2]


def test_the_nearest_voxel_where_nothing_is_interpolated() -> None:
    logits = some_logits((6, 8, 7))
    whole = resample_image(logits, (6, 17, 15), (1.0,) * 3, (1.0,) * 3, order=0)
    grid = FinerGrid((6, 8, 7), (6, 17, 15), thick_axis=None, linear=False)
    for slab in slabs(logits):
        ((_, labels),) = grid.labels(slab, lambda values: values.argmax(-1))
    np.testing.assert_array_equal(labels, whole.argmax(0))
