from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from numpy.typing import NDArray

from umamba_cli.pipeline.reporting.contours import inset, outlines, svg_path
from umamba_cli.pipeline.reporting.slices import (
    REFERENCE,
    ShownCase,
    across,
    best_slices,
    cut_case,
    differing_voxels,
    in_colour,
    slice_axis,
    smaller,
    to_8_bit,
    window_of,
)

MUCH = 10**7


def mask_of(*rows: str) -> NDArray[np.bool_]:
    return np.array([[sign == "#" for sign in row] for row in rows])


def refilled(path: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The mask that an SVG path encloses, by its vertical edges: left of each row the inside begins and ends."""
    crossings = np.zeros((shape[0], shape[1] + 1), dtype=int)
    for loop in re.findall(r"M(\d+) (\d+)([^z]*)z", path):
        x, y = int(loop[0]), int(loop[1])
        start = (x, y)
        for axis, step in re.findall(r"([hv])(-?\d+)", loop[2]):
            if axis == "h":
                x += int(step)
            else:
                crossings[min(y, y + int(step)) : max(y, y + int(step)), x] += 1
                y += int(step)
        assert x == start[0] or y == start[1]  # what closes a path runs along an axis too
        crossings[min(y, start[1]) : max(y, start[1]), x] += 1
    return np.asarray(np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1)


def case(shape: tuple[int, ...] = (6, 20, 24), **maps: NDArray[Any]) -> ShownCase:
    image = np.random.default_rng(0).normal(100, 10, shape).astype(np.float32)
    return ShownCase(image, maps, (3.0, 1.0, 1.0), {1: "front", 2: "back"})


def labels(z: int, rows: slice = slice(5, 15), value: int = 1, shape: tuple[int, ...] = (6, 20, 24)) -> NDArray[Any]:
    found = np.zeros(shape, dtype=np.int32)
    found[z, rows, 8:16] = value
    return found


def test_one_pixel_has_four_corners_clockwise() -> None:
    assert outlines(mask_of("...", ".#.", "...")) == [[(2, 1), (2, 2), (1, 2), (1, 1)]]
    assert svg_path(mask_of("#")) == "M1 0v1h-1v-1z"
    assert svg_path(mask_of("..", "..")) == ""


def test_a_hole_turns_the_other_way_and_straight_edges_have_no_corners_between() -> None:
    outer, hole = outlines(mask_of("###", "#.#", "###"))
    assert set(outer) == {(0, 0), (3, 0), (3, 3), (0, 3)}
    assert set(hole) == {(1, 1), (2, 1), (2, 2), (1, 2)}
    assert (area(outer), area(hole)) == (9, -1)


def area(corners: list[tuple[int, int]]) -> float:
    around = [*corners, corners[0]]
    return sum(x * b - a * y for (x, y), (a, b) in pairwise(around)) / 2


def test_pixels_that_touch_at_a_corner_have_outlines_of_their_own() -> None:
    assert len(outlines(mask_of("#.", ".#"))) == 2
    assert len(outlines(mask_of(".#", "#."))) == 2


@pytest.mark.parametrize("seed", range(5))
def test_an_outline_encloses_its_mask_and_nothing_else(seed: int) -> None:
    mask = np.random.default_rng(seed).random((17, 23)) < 0.5
    assert (refilled(svg_path(mask), mask.shape) == mask).all()


def test_an_outline_moved_in_lies_within_its_mask() -> None:
    (corners,) = outlines(mask_of("##", "#."))
    moved = inset(corners, 0.25)
    assert moved.shape == (7, 2)
    assert {tuple(point) for point in moved.tolist()} == {
        (0.25, 0.25),
        (1.75, 0.25),
        (1.75, 0.75),
        (0.75, 0.75),
        (0.75, 1.75),
        (0.25, 1.75),
    }


def test_the_slice_where_the_models_differ_most_from_the_reference() -> None:
    reference = labels(2)
    near, far = labels(2, slice(5, 14)), labels(2)
    far[4, 3:5, 3:6] = 1
    shown = case(**{REFERENCE: reference, "a": near, "b": far})
    assert differing_voxels(shown).tolist() == [0, 0, 8, 0, 6, 0]
    assert best_slices(shown) == [2]
    far[4, 3:6, 3:6] = 1
    assert best_slices(shown) == [4]
    # What nobody annotated counts nowhere.
    reference[4] = 3
    assert best_slices(replace(shown, ignored=3)) == [2]


def test_the_richest_slice_where_nothing_differs_or_there_is_no_reference() -> None:
    found = labels(1) + labels(4, slice(0, 3), 1) + labels(4, slice(3, 6), 2)
    assert best_slices(case(labels=found)) == [4]
    assert best_slices(case(**{REFERENCE: found, "a": found})) == [4]
    assert best_slices(case(labels=np.zeros_like(found))) == [3]


def test_several_slices_are_the_best_of_equal_parts() -> None:
    found = sum(labels(z, slice(0, 2 + z)) for z in range(6))
    assert best_slices(case(labels=found), 3) == [1, 3, 5]  # type: ignore[arg-type]
    assert best_slices(case(labels=labels(2)), 3) == [2]


def test_it_is_cut_where_the_resolution_lies() -> None:
    assert slice_axis((1.0, 1.0, 1.0)) == 0
    assert slice_axis((1.0, 3.0, 1.0)) == 0
    assert slice_axis((1.0, 1.0, 5.0)) == 2
    assert slice_axis((5.0, 1.0, 1.0)) == 0
    array = np.arange(24).reshape(2, 3, 4)
    assert across(array, 0) is not None
    assert (across(array, 2)[1] == array[::-1, :, 1]).all()  # the higher slice above
    maps = {"labels": np.zeros((8, 10, 4), dtype=np.int32)}
    image = np.zeros((8, 10, 4), dtype=np.float32)
    cut = cut_case(ShownCase(image, maps, (1.0, 1.0, 6.0), {1: "one"}), most_bytes=MUCH)
    assert (cut.axis, cut.total, cut.width, cut.height, cut.pixel_aspect) == (2, 4, 10, 8, 1.0)


def test_pixels_keep_their_shape() -> None:
    shown = replace(case(labels=labels(2)), spacing_mm=(3.0, 2.0, 0.5))
    cut = cut_case(shown, most_bytes=MUCH)
    assert (cut.width, cut.height, cut.pixel_aspect) == (24, 20, 4.0)


def test_the_picture_is_the_slice_and_the_path_its_outline() -> None:
    shown = case(**{REFERENCE: labels(2), "model": labels(2, slice(4, 12), 2)})
    cut = cut_case(shown, most_bytes=MUCH)
    best = cut.slices[cut.chosen]
    assert (best.number, cut.total, best.differing) == (3, 6, 11 * 8)
    kind, _, content = best.picture.partition(";base64,")
    assert kind == "data:image/png"
    pixels = imageio.imread(base64.b64decode(content))
    assert (pixels == to_8_bit(shown.image[2], window_of(shown.image))).all()
    assert [(each.source, each.label) for each in best.outlines] == [(0, 0), (1, 1)]
    assert (refilled(best.outlines[0].path, (20, 24)) == (labels(2)[2] == 1)).all()
    assert (cut.sources, cut.labels) == ((REFERENCE, "model"), ("front", "back"))


def test_a_region_is_outlined_as_a_whole() -> None:
    found = labels(2) + labels(2, slice(0, 3), 2)
    shown = replace(case(labels=found), label_names={(1, 2): "all", 2: "back"})
    cut = cut_case(shown, most_bytes=MUCH)
    whole, part = cut.slices[cut.chosen].outlines
    assert (refilled(whole.path, (20, 24)) == (found[2] > 0)).all()
    assert (refilled(part.path, (20, 24)) == (found[2] == 2)).all()


def test_there_are_as_many_slices_as_there_is_room_for() -> None:
    shape = (40, 20, 24)
    found = sum(labels(z, shape=shape) for z in range(10, 30))
    shown = case(shape, **{REFERENCE: found, "model": labels(17, shape=shape)})  # type: ignore[dict-item]
    all_of_them = cut_case(shown, most_bytes=MUCH)
    assert [each.number for each in all_of_them.slices] == list(range(7, 35))
    some = cut_case(shown, most_bytes=40_000)
    numbers = [each.number for each in some.slices]
    assert 1 < len(numbers) < 28
    assert len(set(np.diff(numbers))) == 1
    assert sum(each.size for each in some.slices) <= 40_000
    one = cut_case(shown, most_bytes=0)
    assert len(one.slices) == 1
    for cut in (all_of_them, some, one):
        assert cut.slices[cut.chosen].number == all_of_them.slices[all_of_them.chosen].number


def test_long_images_are_thinned() -> None:
    shape = (300, 8, 8)
    found = np.zeros(shape, dtype=np.int32)
    found[:, 3:5, 3:5] = 1
    cut = cut_case(
        ShownCase(np.zeros(shape, np.float32), {"labels": found}, (1.0, 1.0, 1.0), {1: "a"}), most_bytes=MUCH
    )
    assert 50 <= len(cut.slices) <= 64


def test_large_slices_are_made_smaller_and_small_objects_stay() -> None:
    shape = (1, 1500, 2000)
    found = np.zeros(shape, dtype=np.int32)
    found[0, 700, 900] = 1
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    cut = cut_case(ShownCase(image, {"labels": found}, (999.0, 1.0, 1.0), {1: "dot"}), most_bytes=MUCH)
    (only,) = cut.slices
    assert (cut.width, cut.height) == (500, 375)
    assert only.picture.startswith("data:image/jpeg")
    assert only.outlines[0].path == "M226 175v1h-1v-1z"


def test_blocks_are_averaged() -> None:
    pixels = np.array([[0, 10, 40], [20, 30, 60]], dtype=np.uint8)
    assert smaller(pixels, 2).tolist() == [[15, 50]]
    assert smaller(pixels, 1) is pixels
    assert smaller(pixels > 50, 2).tolist() == [[False, True]]


@pytest.mark.parametrize(
    "image",
    [np.full((2, 4, 4), 7.0), np.full((2, 4, 4), math.nan), np.where(np.indices((2, 4, 4))[2] > 1, math.inf, 1.0)],
)
def test_images_without_contrast_or_with_gaps(image: NDArray[Any]) -> None:
    low, high = window_of(image)
    assert low < high
    assert to_8_bit(image, (low, high)).max() <= 255


def test_a_window_shows_what_lies_in_it() -> None:
    pixels = np.array([-500.0, -160.0, 40.0, 240.0, 3000.0, math.nan])
    assert to_8_bit(pixels, (-160, 240)).tolist() == [0, 0, 128, 255, 255, 0]
    mostly_dark = np.zeros(10_000)
    mostly_dark[0] = 1000
    assert window_of(mostly_dark) == (0, 1000)


def test_colours_keep_their_proportions() -> None:
    channels = np.zeros((4, 1, 2, 2), dtype=np.float32)
    channels[0], channels[1] = 100, 50
    assert in_colour(channels, (0, 100))[0, 0, 0].tolist() == [255, 128, 0]
    assert in_colour(channels).shape == (1, 2, 2, 3)
