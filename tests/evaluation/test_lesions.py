from __future__ import annotations

import functools
import itertools
import math
import operator
import pickle
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from umamba_cli.pipeline.evaluation.lesions import LesionCounts, lesion_metrics, size_classes

Mask = NDArray[np.bool_]
MM = (1.0, 1.0, 1.0)
PIXELS = (1.0, 1.0)


def empty(*shape: int) -> Mask:
    return np.zeros(shape, dtype=bool)


def mask_of(*rows: str) -> Mask:
    """A picture: `#` is in the mask."""
    return np.array([[letter == "#" for letter in row] for row in rows])


def line(length: int, voxels: int) -> Mask:
    """The first voxels of a line."""
    return np.arange(length)[None] < voxels


def test_one_voxel_that_is_met() -> None:
    mask = empty(3, 3, 3)
    mask[1, 1, 1] = True
    total = lesion_metrics(mask, mask, MM).total
    assert total == LesionCounts(reference=1, found=1, predicted=1, false=0)
    assert (total.sensitivity, total.precision, total.f1) == (1, 1, 1)


def test_one_voxel_beside_the_one_wanted_is_missed_and_false() -> None:
    prediction, reference = empty(3, 3, 3), empty(3, 3, 3)
    prediction[1, 1, 1], reference[1, 1, 2] = True, True
    total = lesion_metrics(prediction, reference, MM).total
    assert total == LesionCounts(reference=1, found=0, predicted=1, false=1)
    assert (total.sensitivity, total.precision, total.f1) == (0, 0, 0)


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3)])
def test_voxels_that_touch_in_a_corner_are_one_lesion(shape: tuple[int, ...]) -> None:
    mask = empty(*shape)
    mask[(0,) * len(shape)] = mask[(1,) * len(shape)] = True
    assert lesion_metrics(mask, mask, (1.0,) * len(shape)).total.reference == 1


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3)])
def test_voxels_with_one_between_them_are_two_lesions(shape: tuple[int, ...]) -> None:
    mask = empty(*shape)
    mask[(0,) * len(shape)] = mask[(2,) * len(shape)] = True
    assert lesion_metrics(mask, mask, (1.0,) * len(shape)).total.reference == 2


def test_lesions_at_the_border_count_and_do_not_join_around_it() -> None:
    mask = mask_of("#..#", "....", "#..#")
    assert lesion_metrics(mask, mask, PIXELS).total == LesionCounts(4, 4, 4, 0)


def test_nothing_in_either() -> None:
    metrics = lesion_metrics(empty(4, 4, 4), empty(4, 4, 4), MM)
    total = metrics.total
    assert total == LesionCounts()
    assert all(math.isnan(rate) for rate in (total.sensitivity, total.precision, total.f1))
    assert list(metrics.by_size) == ["< 5", "5 to 10", "10 to 20", "20 or more"]


def test_nothing_predicted() -> None:
    total = lesion_metrics(empty(1, 3), mask_of("#.#"), PIXELS).total
    assert total == LesionCounts(reference=2, found=0, predicted=0, false=0)
    assert total.sensitivity == total.f1 == 0
    assert math.isnan(total.precision)


def test_nothing_to_be_found() -> None:
    total = lesion_metrics(mask_of("#.#"), empty(1, 3), PIXELS).total
    assert total == LesionCounts(reference=0, found=0, predicted=2, false=2)
    assert total.precision == total.f1 == 0
    assert math.isnan(total.sensitivity)


def test_one_blob_over_two_lesions_finds_both() -> None:
    total = lesion_metrics(mask_of("#######"), mask_of("#.....#"), PIXELS).total
    assert total == LesionCounts(reference=2, found=2, predicted=1, false=0)
    assert total.f1 == 1


def test_one_lesion_in_two_parts_is_found_once_and_neither_part_is_false() -> None:
    total = lesion_metrics(mask_of("#.....#"), mask_of("#######"), PIXELS).total
    assert total == LesionCounts(reference=1, found=1, predicted=2, false=0)
    assert total.f1 == 1


def test_parts_are_added_up_before_they_are_compared_with_a_tenth() -> None:
    # A lesion of 20 in whose row two predicted voxels lie apart: a twentieth each, a tenth together.
    prediction, reference = empty(1, 20), line(20, 20)
    prediction[0, [0, 19]] = True
    assert lesion_metrics(prediction, reference, PIXELS).total.found == 1


def test_a_blob_that_swallows_the_image_finds_the_lesion_and_is_false() -> None:
    reference = empty(5, 5)
    reference[2, 2] = True
    total = lesion_metrics(np.ones((5, 5), dtype=bool), reference, PIXELS).total
    assert total == LesionCounts(reference=1, found=1, predicted=1, false=1)
    assert (total.sensitivity, total.precision, total.f1) == (1, 0, 0)


@pytest.mark.parametrize("size", [10, 30, 70, 120])
def test_a_tenth_is_enough_and_less_is_not(size: int) -> None:
    lesion, tenth = line(size, size), line(size, size // 10)
    assert lesion_metrics(tenth, lesion, PIXELS).total == LesionCounts(1, 1, 1, 0)
    assert lesion_metrics(lesion, tenth, PIXELS).total == LesionCounts(1, 1, 1, 0)
    longer, less = line(size + 1, size + 1), line(size + 1, size // 10)
    assert lesion_metrics(less, longer, PIXELS).total == LesionCounts(1, 0, 1, 0)
    assert lesion_metrics(longer, less, PIXELS).total == LesionCounts(1, 1, 1, 1)


def test_the_share_can_be_chosen_and_is_one_voxel_at_least() -> None:
    half, nothing, whole = mask_of("##.."), mask_of("...."), mask_of("####")
    assert lesion_metrics(half, whole, PIXELS, least_covered=0.5).total.found == 1
    assert lesion_metrics(half, whole, PIXELS, least_covered=0.51).total.found == 0
    assert lesion_metrics(whole, whole, PIXELS, least_covered=1).total.found == 1
    assert lesion_metrics(nothing, whole, PIXELS, least_covered=0).total.found == 0
    assert lesion_metrics(whole, nothing, PIXELS, least_covered=0).total.false == 1


def test_the_share_is_met_exactly_whatever_the_rounding() -> None:
    # 0.07 * 100 is 7.000000000000001 in floating point, which 7 voxels would not reach.
    assert lesion_metrics(line(100, 7), line(100, 100), PIXELS, least_covered=0.07).total.found == 1


@pytest.mark.parametrize(
    ("spacing", "name"),
    [
        ((1.0, 1.0, 1.0), "< 5"),  # 27 cubic millimetres, a sphere of 3.72 mm
        ((3.0, 1.0, 1.0), "5 to 10"),  # 81: 5.37 mm
        ((1.0, 1.0, 3.0), "5 to 10"),
        ((1.0, 5.0, 5.0), "10 to 20"),  # 675: 10.88 mm
        ((16.0, 5.0, 5.0), "20 or more"),  # 10800: 27.4 mm
    ],
)
def test_size_is_that_of_a_sphere_of_the_same_volume(spacing: tuple[float, ...], name: str) -> None:
    mask = empty(7, 7, 7)
    mask[2:5, 2:5, 2:5] = True
    by_size = lesion_metrics(mask, mask, spacing).by_size
    assert {name: counts for name, counts in by_size.items() if counts.reference} == {name: LesionCounts(1, 1, 1, 0)}


@pytest.mark.parametrize(("pixels", "name"), [(19, "< 5"), (20, "5 to 10"), (78, "5 to 10"), (79, "10 to 20")])
def test_size_in_pictures_is_that_of_a_circle_of_the_same_area(pixels: int, name: str) -> None:
    # Circles of 4.92, 5.05, 9.97 and 10.03 pixels.
    mask = line(100, pixels)
    assert lesion_metrics(mask, mask, PIXELS).by_size[name] == LesionCounts(1, 1, 1, 0)


def test_a_class_begins_with_its_diameter() -> None:
    mask = mask_of("#")
    diameter = 2 * math.sqrt(1 / math.pi)
    by_size = lesion_metrics(mask, mask, PIXELS, diameters=(diameter, 4.0)).by_size
    assert [counts.reference for counts in by_size.values()] == [0, 1, 0]


def test_each_lesion_counts_in_the_class_of_its_own_size() -> None:
    # Left: 4 pixels wanted (2.26 across), 30 predicted (6.18) that cover them. Right: one predicted pixel, false.
    reference = line(60, 34) & ~line(60, 30)
    prediction = line(60, 34) & ~line(60, 4)
    prediction[0, 50] = True
    by_size = lesion_metrics(prediction, reference, PIXELS).by_size
    small, larger = by_size["< 5"], by_size["5 to 10"]
    assert small == LesionCounts(reference=1, found=1, predicted=1, false=1)
    assert larger == LesionCounts(reference=0, found=0, predicted=1, false=0)
    # The larger one is right, though the class has nothing to be found: a precision, but no sensitivity and no F1.
    assert larger.precision == 1
    assert math.isnan(larger.sensitivity)
    assert math.isnan(larger.f1)


def test_rates_by_hand() -> None:
    counts = LesionCounts(reference=4, found=3, predicted=10, false=4)
    assert counts.sensitivity == 3 / 4
    assert counts.precision == pytest.approx(6 / 10)
    assert counts.f1 == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))


def test_counts_of_cases_add_up() -> None:
    first = lesion_metrics(mask_of("#.#"), mask_of("#.."), PIXELS)
    second = lesion_metrics(mask_of("..."), mask_of("#.#"), PIXELS)
    both = functools.reduce(operator.add, [first, second])
    assert both.total == first.total + second.total == LesionCounts(reference=3, found=1, predicted=2, false=1)
    assert both.by_size["< 5"] == both.total
    assert list(both.by_size) == list(first.by_size)


def test_other_size_classes_do_not_add_up() -> None:
    mask = mask_of("#")
    with pytest.raises(ValueError, match="size classes"):
        lesion_metrics(mask, mask, PIXELS) + lesion_metrics(mask, mask, PIXELS, diameters=(3.0,))


def test_size_classes_meet_without_a_gap() -> None:
    classes = size_classes((2.5, 30.0))
    assert [size.name for size in classes] == ["< 2.5", "2.5 to 30", "30 or more"]
    assert [(size.at_least, size.below) for size in classes] == [(0, 2.5), (2.5, 30), (30, math.inf)]
    assert [size.name for size in size_classes((3.0,))] == ["< 3", "3 or more"]


def test_the_metrics_travel_to_other_processes() -> None:
    metrics = lesion_metrics(mask_of("#.#"), mask_of("#.."), PIXELS)
    assert pickle.loads(pickle.dumps(metrics)) == metrics


def test_the_masks_are_left_as_they_were() -> None:
    prediction, reference = mask_of("#.#", "..."), mask_of("##.", "..#")
    before = prediction.copy(), reference.copy()
    lesion_metrics(prediction, reference, PIXELS)
    assert np.array_equal(prediction, before[0])
    assert np.array_equal(reference, before[1])


@pytest.mark.parametrize(
    ("prediction", "reference", "spacing", "options", "message"),
    [
        (empty(2, 2), empty(2, 3), PIXELS, {}, "differ in shape"),
        (empty(2, 2), empty(2, 2).astype(np.uint8), PIXELS, {}, "boolean"),
        (empty(2), empty(2), (1.0,), {}, "2 or 3 axes"),
        (empty(2, 2), empty(2, 2), MM, {}, "spacing"),
        (empty(2, 2), empty(2, 2), (1.0, 0.0), {}, "spacing"),
        (empty(2, 2), empty(2, 2), PIXELS, {"least_covered": 1.1}, "between 0 and 1"),
        (empty(2, 2), empty(2, 2), PIXELS, {"diameters": ()}, "diameters"),
        (empty(2, 2), empty(2, 2), PIXELS, {"diameters": (5.0, 5.0)}, "diameters"),
        (empty(2, 2), empty(2, 2), PIXELS, {"diameters": (0.0, 5.0)}, "diameters"),
        (empty(2, 2), empty(2, 2), PIXELS, {"diameters": (5.0, math.nan)}, "diameters"),
    ],
)
def test_wrong_arguments_are_refused(
    prediction: Mask, reference: Mask, spacing: tuple[float, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        lesion_metrics(prediction, reference, spacing, **options)


@pytest.mark.parametrize("seed", range(12))
def test_as_a_slow_count_voxel_by_voxel(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape, spacing = ((9, 8, 7), (2.5, 0.7, 1.1)) if seed % 2 else ((24, 20), (0.8, 1.3))
    reference = generator.random(shape) < generator.choice([0.04, 0.1, 0.2])
    # Part of the reference, and some more: lesions met in part, false ones, and both in one.
    prediction = (reference & (generator.random(shape) < 0.3)) | (generator.random(shape) < 0.05)
    share, diameters = float(generator.choice([0.1, 0.4])), (1.2, 2.0, 3.0)
    metrics = lesion_metrics(prediction, reference, spacing, diameters=diameters, least_covered=share)
    expected = slow_counts(prediction, reference, spacing, diameters, share)
    assert [counts_of(counts) for counts in metrics.by_size.values()] == expected
    assert metrics.total.reference > 0


def slow_counts(
    prediction: Mask, reference: Mask, spacing: tuple[float, ...], diameters: tuple[float, ...], share: float
) -> list[list[int]]:
    """Reference, found, predicted and false lesions of each size class, by loops over voxels in sets."""
    table = [[0, 0, 0, 0] for _ in range(len(diameters) + 1)]
    wanted, predicted = voxels_of(reference), voxels_of(prediction)
    for lesions, others, column in ((wanted, predicted, 0), (predicted, wanted, 2)):
        for lesion in components(lesions):
            volume = len(lesion) * math.prod(spacing)
            if len(spacing) == 2:
                diameter = math.sqrt(4 * volume / math.pi)
            else:
                diameter = 2 * (volume * 3 / 4 / math.pi) ** (1 / 3)
            row = table[sum(diameter >= edge for edge in diameters)]
            row[column] += 1
            covered = len(lesion & others)
            met = covered >= 1 and covered / len(lesion) >= share
            row[column + 1] += met if column == 0 else not met
    return table


def voxels_of(mask: Mask) -> set[tuple[int, ...]]:
    return {tuple(int(index) for index in place) for place in np.argwhere(mask)}


def components(voxels: set[tuple[int, ...]]) -> list[set[tuple[int, ...]]]:
    """Flood from voxel to voxel, over sides, edges and corners."""
    left, found = set(voxels), []
    while left:
        waiting = [left.pop()]
        lesion = set(waiting)
        while waiting:
            place = waiting.pop()
            for step in itertools.product((-1, 0, 1), repeat=len(place)):
                neighbour = tuple(index + by for index, by in zip(place, step, strict=True))
                if neighbour in left:
                    left.remove(neighbour)
                    lesion.add(neighbour)
                    waiting.append(neighbour)
        found.append(lesion)
    return found


def counts_of(counts: LesionCounts) -> list[int]:
    return [counts.reference, counts.found, counts.predicted, counts.false]


def test_as_many_lesions_as_scikit_image_labels() -> None:
    from skimage.measure import label

    mask = np.random.default_rng(5).random((30, 40, 50)) < 0.03
    total = lesion_metrics(mask, mask, MM).total
    assert total.reference == total.found == total.predicted == label(mask, connectivity=3).max()


def test_ten_thousand_lesions_take_less_than_a_second() -> None:
    reference = empty(66, 66, 66)
    reference[::3, ::3, ::3] = True
    prediction = reference.copy()
    prediction[:33] = False
    start = time.perf_counter()
    total = lesion_metrics(prediction, reference, MM).total
    assert time.perf_counter() - start < 1
    assert total == LesionCounts(reference=22**3, found=22**2 * 11, predicted=22**2 * 11, false=0)
