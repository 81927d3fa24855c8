"""The sums that leave plane by plane are those of all tiles in one array."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch

from umamba_cli.pipeline.errors import InputError, WorkError
from umamba_cli.pipeline.inference import tile_sums
from umamba_cli.pipeline.inference.tile_sums import TiledImage, array_in_file, choose_place
from umamba_cli.pipeline.inference.tiles import gaussian_weight, padding_to, tile_boxes

TILE = (6, 8, 10)


def answers(shape: tuple[int, ...], tile: tuple[int, ...], step: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target, _ = padding_to(shape, tile)
    return [torch.randn(*tile, 3, generator=generator) for _ in tile_boxes(target, tile, step)]


def at_once(shape: tuple[int, ...], tile: tuple[int, ...], step: float) -> torch.Tensor:
    target, padding = padding_to(shape, tile)
    weight = gaussian_weight(tile)[..., None]
    sums, weights = torch.zeros(*target, 3), torch.zeros(*target, 1)
    for box, answer in zip(tile_boxes(target, tile, step), answers(shape, tile, step), strict=True):
        sums[box.slices] += answer * weight
        weights[box.slices] += weight
    inside = tuple(slice(before, before + n) for (before, _), n in zip(padding, shape, strict=True))
    return (sums / weights)[inside]


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((6, 8, 10), TILE),
        ((23, 19, 31), TILE),
        ((7, 8, 10), TILE),
        ((3, 30, 4), TILE),  # smaller than a tile along two axes
        ((40, 8, 10), TILE),
        ((5, 17, 21), (1, 8, 10)),  # slices
    ],
)
@pytest.mark.parametrize("step", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("place", ["memory", "file"])
@pytest.mark.parametrize("slab_bytes", [1, 1 << 26])
def test_sums_are_those_at_once(
    shape: tuple[int, ...], tile: tuple[int, ...], step: float, place: str, slab_bytes: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tile_sums, "_SLAB_BYTES", slab_bytes)
    image = np.zeros((1, *shape), dtype=np.float32)
    tiled = TiledImage(image, tile, step, gaussian_weight(tile), place=place)
    result, stop = torch.full((*shape, 3), torch.nan), 0
    for box, answer in zip(tiled.boxes, answers(shape, tile, step), strict=True):
        for slab in tiled.add(box, answer):
            assert slab.planes.start == stop
            stop = slab.planes.stop
            result[slab.planes] = slab.values
    assert stop == shape[0]
    torch.testing.assert_close(result, at_once(shape, tile, step))


def test_planes_leave_with_the_last_tile_that_touches_them_and_answers_are_not_kept() -> None:
    shape = (21, 8, 19)
    tiled = TiledImage(np.zeros((1, *shape), dtype=np.float32), TILE, 0.5, gaussian_weight(TILE))
    rest = answers(shape, TILE, 0.5)
    for index, box in enumerate(tiled.boxes):
        gone = weakref.ref(rest[0])
        planes = 0
        for slab in tiled.add(box, rest.pop(0)):
            assert gone() is None
            planes += len(slab.values)
        later = tiled.boxes[index + 1].start[0] if rest else shape[0]
        assert planes == later - box.start[0]


def test_answers_in_lower_precision_are_added_in_float32() -> None:
    shape = (9, 8, 19)
    results = []
    for kind in (torch.bfloat16, torch.float32):
        tiled = TiledImage(np.zeros((1, *shape), dtype=np.float32), TILE, 0.5, gaussian_weight(TILE))
        rounded = [answer.bfloat16().to(kind) for answer in answers(shape, TILE, 0.5)]
        pairs = zip(tiled.boxes, rounded, strict=True)
        slabs = [slab.values.clone() for box, answer in pairs for slab in tiled.add(box, answer)]
        results.append(torch.cat(slabs))
    assert results[0].dtype == torch.float32
    assert torch.equal(*results)


def test_a_tile_is_its_part_of_the_image() -> None:
    image = np.random.default_rng(0).random((2, 9, 11, 12), dtype=np.float32)
    tiled = TiledImage(image, TILE, 0.5, gaussian_weight(TILE))
    for box in tiled.boxes:
        np.testing.assert_array_equal(tiled.tile(box), image[box.slices_of_channels])


def test_the_place_is_chosen_by_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 4 * 10 * 10 * 10 * 5
    cpu = torch.device("cpu")
    for free, expected in ((2 * needed, "memory"), (needed, "file")):
        monkeypatch.setattr(tile_sums, "free_memory_bytes", lambda free=free: free)
        assert choose_place((10, 10, 10, 5), cpu) == expected
        for free_there, there in ((2 * needed, "device"), (needed, expected)):
            monkeypatch.setattr(tile_sums, "free_device_bytes", lambda device, free=free_there: free)
            assert choose_place((10, 10, 10, 5), torch.device("cuda")) == there
    with pytest.raises(InputError, match="cloud"):
        TiledImage(np.zeros((1, *TILE), dtype=np.float32), TILE, 0.5, gaussian_weight(TILE), place="cloud")


def test_a_file_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    array = array_in_file((3, 4), np.float32)
    array[1] = 5
    assert array.sum() == 20
    with pytest.raises(WorkError, match="no room"):
        array_in_file((1 << 20, 1 << 20, 1 << 10), np.float32)
